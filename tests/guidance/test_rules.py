"""Step lengths, refinement targets, and one rule for one latent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from t2ictl.errors import BadSetting, ControlConflict
from t2ictl.guidance.objectives import Losses, Objective, check_one_step_size
from t2ictl.guidance.rules import NoiseSearch, Refinement, StepSize
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


# -- targets and moves that count in noise ----------------------------------------------------------------------------

IN_NOISE = Refinement(thresholds=((0.93, 0.05), (0.82, 0.5), (0.68, 0.8)), by="noise")


def schedule(*levels: float) -> list[Step]:
    """The evaluations of a call with these noise levels."""
    before = (None, *levels)
    return [
        Step(index=index, total=len(levels), timestep=0.0, noise=level, noise_before=before[index])
        for index, level in enumerate(levels)
    ]


@pytest.mark.parametrize(
    ("levels", "targets"),
    [
        ((1.0, 0.96, 0.92, 0.9, 0.82, 0.7, 0.65, 0.3), (None, None, 0.05, None, 0.5, None, 0.8, None)),
        ((0.9, 0.85, 0.8, 0.2), (0.05, None, 0.5, 0.8)),  # image to image begins below the first one
        ((1.0, 0.75, 0.5, 0.25), (None, 0.5, 0.8, None)),  # of two in one step the higher counts
        ((1.0, 0.1), (None, 0.8)),
        ((0.5, 0.4), (0.8, None)),
        ((1.0, 0.95), (None, None)),
        ((0.93, 0.93, 0.93), (0.05, None, None)),  # two-stage solvers evaluate twice at one level
    ],
)
def test_by_noise_each_target_falls_on_the_first_evaluation_that_is_past_it(
    levels: tuple[float, ...], targets: tuple[float | None, ...]
) -> None:
    assert tuple(IN_NOISE.target_at(step, len(levels)) for step in schedule(*levels)) == targets
    refining = objective(window=Window(start=1.0, stop=0.0, by="noise"), refinement=IN_NOISE)
    assert tuple(refining.target(step) for step in schedule(*levels)) == targets


def test_by_noise_each_target_is_met_once_in_a_schedule_of_any_length() -> None:
    for steps in (3, 4, 20, 28, 50):
        levels = [1 - index / steps for index in range(steps)]
        found = [IN_NOISE.target_at(step, steps) for step in schedule(*levels)]
        met = [target for target in found if target is not None]
        assert met == sorted(set(met)) and met[-1] == 0.8
        assert steps < 20 or met == [0.05, 0.5, 0.8]


def test_where_nobody_knows_the_noise_there_is_no_target() -> None:
    assert IN_NOISE.target_at(Step(index=0, total=4, timestep=0.0), 4) is None


def test_by_fraction_the_noise_does_not_matter() -> None:
    found = [Refinement().target_at(step, 50) for step in schedule(*(1 - index / 50 for index in range(50)))]
    assert {index: target for index, target in enumerate(found) if target} == {0: 0.05, 10: 0.5, 20: 0.8}
    asked_for = Step(index=10, total=51, timestep=0.0, requested=50)
    assert objective(refinement=Refinement(), window=Window(by="steps")).target(asked_for) == 0.5
    assert objective(refinement=Refinement()).target(asked_for) == 0.5  # 10.2 of 51 is evaluation 10 as well


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_moves_at_every_so_many_evaluations(every: int) -> None:
    steps = schedule(*(1 - index / 12 for index in range(12)))

    def acting(window: Window) -> list[int]:
        return [step.index for step in steps if objective(window=window, step_size=StepSize(every=every)).acts(step)]

    assert acting(Window()) == [*range(0, 12, every)]
    assert acting(Window(start=0.25, stop=0.8)) == [*range(3, 10, every)]  # from the first one of the window on
    # In noise, from the start of the call: levels above .5 are those of the evaluations 0 to 5, at .5 stands number 6.
    assert acting(Window(start=1.0, stop=0.5, by="noise")) == [*range(0, 6, every)]
    assert acting(Window(start=0.8, stop=0.3, by="noise")) == [
        index for index in range(12) if index % every == 0 and 0.3 < 1 - index / 12 <= 0.8
    ]


def test_a_search_for_noise_is_made_once_whatever_the_window() -> None:
    searching = objective(search=NoiseSearch(), window=Window(start=0.1, stop=0.0, by="noise"))
    assert [searching.acts(step) for step in schedule(1.0, 0.5, 0.05)] == [True, False, False]


def test_one_latent_has_one_rule() -> None:
    check_one_step_size([])
    check_one_step_size(
        [objective(name="a", step_size=StepSize(scale=3)), objective(name="b", step_size=StepSize(scale=3.0))]
    )
    with pytest.raises(ControlConflict, match="a and b both own the step"):
        check_one_step_size([objective(name="a"), objective(name="b", step_size=StepSize(scale=3))])
