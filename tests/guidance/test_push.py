"""Moves that are given, not found; and losses that are no number although their gradient is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.guidance.optimize import optimize, push
from t2ictl.guidance.rules import StepSize
from t2ictl.settings.windows import Step

STEP = Step(index=3, total=10, timestep=700.0)


def latents(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_given_moves_are_made_one_after_the_other() -> None:
    x_BCYX = latents()
    first, second = torch.full_like(x_BCYX, 0.5), torch.zeros_like(x_BCYX)
    second[1] = -2.0
    before = x_BCYX.clone()
    move = push(x_BCYX, [first, second], STEP, first=4)
    torch.testing.assert_close(move.latents, before + first + second, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(move.delta, first + second, rtol=1e-13, atol=1e-13)
    assert torch.equal(x_BCYX, before)
    numbers = 60**0.5  # each row has 60
    lengths = [entry.length.tolist() for entry in move.trace]
    assert lengths == [pytest.approx([0.5 * numbers] * 2), pytest.approx([0.0, 2.0 * numbers])]
    assert [entry.iteration for entry in move.trace] == [4, 5]
    assert [entry.refined.tolist() for entry in move.trace] == [[False, False], [True, True]]
    assert all(entry.step is STEP and not entry.skipped.any() and not entry.terms for entry in move.trace)
    assert all(entry.total.tolist() == [0.0, 0.0] for entry in move.trace)


def test_no_move_leaves_the_latents() -> None:
    move = push(latents(), [], STEP)
    assert torch.equal(move.latents, latents()) and not move.delta.any() and move.trace == ()


def test_given_moves_of_half_precision_latents_add_up_in_float32() -> None:
    x_BCYX = torch.full((1, 4, 3, 5), 1024.0, dtype=torch.float16)
    move = push(x_BCYX, [torch.full(x_BCYX.shape, 0.25)] * 4, STEP)
    assert move.latents.dtype == torch.float16 and (move.latents == 1025.0).all()
    assert move.delta.dtype == torch.float32 and (move.delta == 1.0).all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_loss_that_is_no_number_moves_nothing_although_its_gradient_is_finite(value: float) -> None:
    def half(maps: Tensor, step: Step) -> Losses:
        poison_B = torch.tensor([0.0, value], dtype=maps.dtype)
        return Losses(terms={"half": maps.flatten(1).square().sum(1) / 2 + poison_B})

    rule = StepSize(scale=0.1, final_scale_sq=1.0)
    acting = Objective(name="half", layers=(), evaluate=half, step_size=rule)
    move = optimize(latents(), [acting], lambda x_BCYX, rows=None: [x_BCYX], STEP)
    torch.testing.assert_close(move.latents[0], 0.9 * latents()[0])
    assert torch.equal(move.latents[1], latents()[1])
    (entry,) = move.trace
    assert entry.skipped.tolist() == [False, True] and entry.length[1] == 0 < entry.length[0]
