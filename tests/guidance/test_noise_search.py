"""The search for initial noise: closed forms, bounds, rows on their own, and whole images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.guidance.noise_search import optimize_noise
from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.guidance.rules import NoiseSearch, kl_divergence
from t2ictl.processors import AttendAndExcite, InitialNoise
from t2ictl.settings.windows import Step
from tests.tiny import run, sd, sdxl

STEP = Step(index=0, total=10, timestep=999.0)
PROMPT = "a red circle and a blue square"


class Passes:
    """Stands for the denoiser: maps are the latents; counts rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x_BCYX: Tensor, rows: Sequence[int] | None = None) -> Sequence[Tensor]:
        looked = x_BCYX if rows is None else x_BCYX[list(rows)]
        self.rows.append(len(looked))
        return [looked]


def objective(presence: Any = None, **search: Any) -> Objective:
    """Pulls every number up; presence is the mean of the latent."""

    def evaluate(maps: Tensor, step: Step) -> Losses:
        mean_B = maps.flatten(1).mean(1)
        return Losses(terms={"up": -mean_B}, presence=mean_B if presence is None else presence(maps))

    return Objective(name="up", layers=(), evaluate=evaluate, search=NoiseSearch(**search))


def noise(*seeds: int) -> Tensor:
    made = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(made)


def test_divergence_by_hand_and_of_what_is_normal() -> None:
    mean, log_variance = torch.tensor([[[[0.0, 2.0]]]]), torch.log(torch.tensor([[[[1.0, 4.0]]]]))
    expected = (0 + (4 + 4 - 1 - torch.tensor(4.0).log()) / 2) / 2
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected[None])
    assert kl_divergence(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0


def test_first_step_of_adam_in_closed_form() -> None:
    """Adam's first step has the length of its rate in every number, down the sign of the gradient."""
    x_BCYX, passes = noise(1), Passes()
    move = optimize_noise(x_BCYX, [objective(max_steps=1, lr=0.01, kl_weight=0.0, target=1.0)], passes, STEP)
    up = 0.01 * x_BCYX.sign()  # the mean goes up, and the variance of positive noise too
    expected = 0.01 + (up / 2).exp() * x_BCYX
    torch.testing.assert_close(move.latents, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(move.delta, expected - x_BCYX, rtol=1e-5, atol=1e-6)
    assert len(move.trace) == 1 and move.trace[0].terms["up.up"].item() == pytest.approx(-x_BCYX.mean().item())


def test_it_improves_and_stays_near_normal_noise() -> None:
    x_BCYX = noise(1, 2)
    free = optimize_noise(x_BCYX, [objective(max_steps=100, kl_weight=0.0, target=1.0)], Passes(), STEP)
    held = optimize_noise(x_BCYX, [objective(max_steps=100, target=1.0)], Passes(), STEP)
    for move in (free, held):
        assert (move.latents.flatten(1).mean(1) > x_BCYX.flatten(1).mean(1) + 0.01).all()
    assert (free.delta.flatten(1).norm(dim=1) > 5 * held.delta.flatten(1).norm(dim=1)).all()
    assert held.latents.std() == pytest.approx(float(x_BCYX.std()), rel=0.1)


def test_rows_stop_on_their_own_and_do_not_mix() -> None:
    x_BCYX, passes = noise(1, 2, 3), Passes()
    start = x_BCYX.flatten(1).mean(1)
    x_BCYX = x_BCYX - start[:, None, None, None] + torch.tensor([0.02, 0.0, -0.02])[:, None, None, None]
    asked = objective(max_steps=60, kl_weight=0.0, target=0.05)
    together = optimize_noise(x_BCYX, [asked], passes, STEP)
    assert len(set(passes.rows)) == 3, "rows need unlike numbers of tries"
    asked_for_more = torch.stack([entry.refined for entry in together.trace]).sum(0)
    assert int((asked_for_more + 1).sum()) == sum(passes.rows)  # what benchmarks count as an image's own looks
    for row in range(3):
        alone = optimize_noise(x_BCYX[row : row + 1], [asked], Passes(), STEP)
        torch.testing.assert_close(together.latents[row], alone.latents[0], rtol=1e-9, atol=1e-9)


def test_what_is_good_enough_is_not_moved() -> None:
    x_BCYX = noise(1)
    move = optimize_noise(
        x_BCYX, [objective(target=0.0, presence=lambda maps: maps.flatten(1).mean(1) * 0 + 1)], Passes(), STEP
    )
    assert torch.equal(move.latents, x_BCYX) and not move.delta.any() and len(move.trace) == 1


def test_a_loss_that_is_no_number_leaves_its_image_alone() -> None:
    x_BCYX = noise(1, 2)
    x_BCYX[0, 0, 0, 0] = float("nan")
    move = optimize_noise(x_BCYX, [objective(max_steps=3, target=1.0)], Passes(), STEP)
    assert move.trace[0].skipped.tolist() == [True, False]
    assert torch.equal(move.latents[0].isnan(), x_BCYX[0].isnan()) and not torch.equal(move.latents[1], x_BCYX[1])


@pytest.mark.parametrize("kind", ["loss", "gradient", "too large"])
def test_an_image_that_cannot_be_searched_is_told_once_and_stays(kind: str) -> None:
    def evaluate(maps: Tensor, step: Step) -> Losses:
        mean_B = maps.flatten(1).mean(1)
        if len(maps) == 2 and kind == "loss":
            mean_B = mean_B + torch.tensor([torch.nan, 0.0])
        elif len(maps) == 2 and kind == "gradient":  # a root of zero: a finite loss with an infinite gradient
            poison_B = (mean_B[:1] - mean_B[:1].detach()).abs().sqrt()
            mean_B = mean_B + torch.cat([poison_B, torch.zeros(1, dtype=maps.dtype)])
        return Losses(terms={"up": -mean_B}, presence=torch.zeros(len(maps)))

    x_BCYX = noise(1, 2).half() if kind == "too large" else noise(1, 2)
    if kind == "too large":
        x_BCYX[0, 0, 0, 0] = 65504  # the largest number of float16
    search = objective(max_steps=3, target=1.0, lr=1.0 if kind == "too large" else 0.01)
    move = optimize_noise(x_BCYX, [dataclasses.replace(search, evaluate=evaluate)], Passes(), STEP)
    assert [entry.skipped.tolist() for entry in move.trace] == [[True, False], [False, False], [False, False]]
    assert torch.equal(move.latents[0], x_BCYX[0]) and not torch.equal(move.latents[1], x_BCYX[1])
    assert torch.isfinite(move.delta).all()


@pytest.mark.parametrize("build", [sd, sdxl])
def test_whole_images_begin_with_other_noise_and_end_otherwise(build: Any) -> None:
    pipe = build()
    control = InitialNoise(search=NoiseSearch(max_steps=4, target=1.0))
    with t2ictl.controlled(pipe, [control]) as session:
        made = run(pipe, [PROMPT, "a cat and a dog"], steps=3)
    assert {entry.step.index for entry in session.trace} == {0} and len(session.trace) == 4
    assert session.cost.extra_forwards == session.cost.backwards == 8
    assert (made - run(pipe, [PROMPT, "a cat and a dog"], steps=3)).abs().max() > 1e-3
    assert set(session.trace[0].terms) == {"initial_noise.presence", "initial_noise.conflict"}


def test_it_joins_a_control_that_moves_at_every_step() -> None:
    pipe = sd()
    with t2ictl.controlled(
        pipe, [AttendAndExcite(refinement=None), InitialNoise(search=NoiseSearch(max_steps=2))]
    ) as both:
        run(pipe, PROMPT, steps=4)
    at = [entry.step.index for entry in both.trace]
    assert at == [0, 0, 0, 1] and "attend_and_excite.presence" in both.trace[2].terms
