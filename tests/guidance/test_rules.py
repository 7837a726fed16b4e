"""Step lengths, refinement targets, and one rule for one latent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from t2ictl.errors import BadSetting, ControlConflict
from t2ictl.guidance.objectives import Losses, Objective, check_one_step_size
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.settings.windows import Step, Window


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(**settings: Any) -> Objective:
    given: dict[str, Any] = {"name": "test", "layers": (), "evaluate": lambda maps, step: Losses(terms={})}
    return Objective(**(given | settings))


@pytest.mark.parametrize("total", [1, 2, 5, 50, 51])
def test_lengths_are_those_of_attend_and_excite(total: int) -> None:
    published = 20 * np.sqrt(np.linspace(1.0, 0.5, total))
    found = [StepSize().length(index, total) for index in range(total)]
    np.testing.assert_allclose(found, published, rtol=1e-14)


@pytest.mark.parametrize(("decay", "last"), [(1.0, 3.0), (0.25, 1.5), (0.0, 0.0)])
def test_decay_is_the_square_of_what_is_left_at_the_end(decay: float, last: float) -> None:
    rule = StepSize(scale=3.0, final_scale_sq=decay)
    assert rule.length(0, 9) == 3.0
    assert rule.length(8, 9) == pytest.approx(last)


def test_raw_move_is_length_times_gradient() -> None:
    x_BCYX, gradient_BCYX = noise(3, 4, 5, 6), noise(3, 4, 5, 6, seed=1)
    move = StepSize().move(x_BCYX, gradient_BCYX, 3, 10)
    torch.testing.assert_close(move, -20 * (1 - 0.5 * 3 / 9) ** 0.5 * gradient_BCYX, rtol=1e-14, atol=0)
    # The gradient carries the strength in raw mode.
    assert torch.equal(move, StepSize().move(x_BCYX, gradient_BCYX, 3, 10, strength=7.0))


def test_normalized_moves_have_a_share_of_each_rows_norm() -> None:
    x_BCYX = noise(3, 4, 5, 6) * torch.tensor([1.0, 30.0, 0.01])[:, None, None, None]
    gradient_BCYX = noise(3, 4, 5, 6, seed=1) * torch.tensor([1e-9, 1e5, 1.0])[:, None, None, None]
    rule = StepSize(mode="normalized", scale=0.02, final_scale_sq=1.0)
    for strength in (0.0, 0.5, 2.0):
        move = rule.move(x_BCYX, gradient_BCYX, 0, 10, strength)
        share_B = move.flatten(1).norm(dim=1) / x_BCYX.flatten(1).norm(dim=1)
        torch.testing.assert_close(share_B, torch.full_like(share_B, 0.02 * strength), rtol=1e-12, atol=0)
    cosine = torch.nn.functional.cosine_similarity(move.flatten(1), gradient_BCYX.flatten(1))
    torch.testing.assert_close(cosine, -torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["raw", "normalized"])
@pytest.mark.parametrize("limit", [None, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradient_moves_nothing(mode: Any, limit: float | None, dtype: torch.dtype) -> None:
    x_BCYX = noise(2, 4, 30, 30).to(dtype)
    x_BCYX[1] = 0  # nor does a latent without length make a NaN
    rule = StepSize(mode=mode, max_norm=limit)
    assert torch.equal(rule.move(x_BCYX, torch.zeros_like(x_BCYX), 0, 5), torch.zeros_like(x_BCYX))
    assert torch.isfinite(rule.move(x_BCYX, torch.ones_like(x_BCYX), 0, 5)).all()


def test_limit_shortens_long_moves_and_leaves_short_ones() -> None:
    x_BCYX, gradient_BCYX = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    gradient_BCYX[1] *= 1e-6
    free, held = StepSize().move(x_BCYX, gradient_BCYX, 0, 5), StepSize(max_norm=0.1).move(x_BCYX, gradient_BCYX, 0, 5)
    assert held[0].norm() == pytest.approx(0.1 * float(x_BCYX[0].norm()))
    torch.testing.assert_close(held[0] / held[0].norm(), free[0] / free[0].norm())
    assert torch.equal(held[1], free[1])


def test_default_targets_are_the_published_ones() -> None:
    found = {index: Refinement().target(index, 50) for index in range(50)}
    assert {index: target for index, target in found.items() if target is not None} == {0: 0.05, 10: 0.5, 20: 0.8}


def test_every_step_can_be_named_whatever_the_rounding() -> None:
    for total in (3, 7, 10, 49, 50, 51, 1000):
        for index in range(total):
            assert Refinement(thresholds=((index / total, 0.5),)).target(index, total) == 0.5
            assert Refinement(thresholds=((index / total, 0.5),)).target(index + 1, total) is None


def test_of_two_targets_on_one_step_the_higher_counts() -> None:
    assert [Refinement().target(index, 4) for index in range(4)] == [0.5, 0.8, None, None]


@pytest.mark.parametrize(
    ("cls", "settings", "field"),
    [
        (StepSize, {"scale": -1.0}, "scale"),
        (StepSize, {"final_scale_sq": 1.5}, "final_scale_sq"),
        (StepSize, {"mode": "adam"}, "mode"),
        (StepSize, {"max_norm": -0.5}, "max_norm"),
        (StepSize, {"scale": float("nan")}, "scale"),
        (Refinement, {"max_iterations": -1}, "max_iterations"),
        (Refinement, {"max_iterations": 1.5}, "max_iterations"),
        (Refinement, {"thresholds": ((0.0, 1.5),)}, "thresholds"),
        (Refinement, {"thresholds": ((-0.1, 0.5),)}, "thresholds"),
        (Refinement, {"thresholds": ((0.1,),)}, "thresholds"),
    ],
)
def test_bad_values_name_field_and_value(cls: Any, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(BadSetting, match=f"{cls.__name__}.{field}.* cannot be"):
        cls(**settings)


def test_total_is_the_sum_of_the_terms() -> None:
    losses = Losses(terms={"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.5, -2.0])})
    assert losses.total.tolist() == [1.5, 0.0]


def test_window_and_target_of_an_objective() -> None:
    step = Step(index=5, total=10, timestep=500.0)
    assert objective().acts(step) and not objective(window=Window(stop=0.5)).acts(step)
    assert objective().target(step) is None
    assert objective(refinement=Refinement(thresholds=((0.5, 0.7),))).target(step) == 0.7


def test_one_latent_has_one_rule() -> None:
    check_one_step_size([])
    check_one_step_size(
        [objective(name="a", step_size=StepSize(scale=3)), objective(name="b", step_size=StepSize(scale=3.0))]
    )
    with pytest.raises(ControlConflict, match="a and b both own the step"):
        check_one_step_size([objective(name="a"), objective(name="b", step_size=StepSize(scale=3))])
