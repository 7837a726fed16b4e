"""The inner loop on latents whose losses are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.benchmarks.speed.synchronizations import Synchronizations
from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.guidance.optimize import optimize, push
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors import AttendAndExcite, AttentionSegregation
from t2ictl.settings.windows import Step
from tests.tiny import run, sd

STEP = Step(index=0, total=10, timestep=900.0)
RULE = StepSize(scale=0.1, final_scale_sq=1.0)


class Passes:
    """Stands for the denoiser: each objective's maps are the latents themselves; counts the passes."""

    def __init__(self, objectives: int = 1) -> None:
        self.objectives, self.seen, self.rows = objectives, list[Tensor](), list[Any]()

    def __call__(self, x_BCYX: Tensor, rows: Sequence[int] | None = None) -> Sequence[Tensor]:
        looked = x_BCYX if rows is None else x_BCYX[rows]
        self.seen.append(looked.detach().clone())
        self.rows.append(rows)
        return [looked] * self.objectives


def start(*norms: float, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """One row for each norm."""
    x_BCYX = torch.randn(len(norms), 4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x_BCYX / x_BCYX.flatten(1).norm(dim=1)[:, None, None, None] * _tall(norms)).to(dtype)


def _tall(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None]


def shrink(maps: Tensor, step: Step) -> Losses:
    """``|x|^2 / 2``: one raw step of size a multiplies the latents by 1 - a. Presence is 1 - |x|."""
    return Losses(terms={"half": maps.flatten(1).square().sum(1) / 2}, presence=1 - maps.flatten(1).norm(dim=1))


def objective(**settings: Any) -> Objective:
    return Objective(**({"name": "shrink", "layers": (), "evaluate": shrink, "step_size": RULE} | settings))


def target(presence: float, **more: Any) -> Refinement:
    return Refinement(thresholds=((0.0, presence),), **more)


def test_one_update_in_closed_form_and_nothing_given_is_changed() -> None:
    x_BCYX, passes = start(1.0, 2.0), Passes()
    before, version = x_BCYX.clone(), x_BCYX._version
    move = optimize(x_BCYX, [objective(strength=0.5)], passes, STEP)
    torch.testing.assert_close(move.latents, before * 0.95, rtol=1e-14, atol=0)
    torch.testing.assert_close(move.delta, before * -0.05, rtol=1e-13, atol=0)
    assert torch.equal(x_BCYX, before) and x_BCYX._version == version and not x_BCYX.requires_grad
    assert not move.latents.requires_grad and len(passes.seen) == len(move.trace) == 1
    (entry,) = move.trace
    torch.testing.assert_close(entry.terms["shrink.half"], torch.tensor([0.5, 2.0]).double())
    torch.testing.assert_close(entry.total, torch.tensor([0.25, 1.0]).double())
    torch.testing.assert_close(entry.length, torch.tensor([0.05, 0.1]).double())
    assert not entry.refined.any() and not entry.skipped.any()


def refinements(norm: float, presence: float, most: int, *, stale: bool) -> int:
    """How many extra updates one row makes, in plain numbers; the stale rule is the published loop."""
    count = 0
    if not stale:
        while count < most and 1 - norm < presence:
            norm, count = norm * 0.9, count + 1
        return count
    loss = norm
    while loss > 1 - presence and count < most:
        loss, norm, count = norm, norm * 0.9, count + 1
    return count


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("most", [0, 1, 4, 20])
def test_each_row_refines_as_long_as_it_must(stale: bool, most: int) -> None:
    norms, presence = (0.3, 0.95, 0.62, 3.0), 0.5
    x_BCYX, passes = start(*norms), Passes()
    move = optimize(
        x_BCYX, [objective(refinement=target(presence, max_iterations=most, decide_before_update=stale))], passes, STEP
    )
    counts = [refinements(norm, presence, most, stale=stale) for norm in norms]
    assert len(set(counts)) > (1 if most else 0)
    assert torch.stack([entry.refined for entry in move.trace]).sum(0).tolist() == counts
    # K refinements cost K + 1 passes, and every row makes one regular move after its own.
    assert len(passes.seen) == len(move.trace) == max(counts) + 1
    torch.testing.assert_close(move.latents, x_BCYX * _tall([0.9 ** (count + 1) for count in counts]))
    moved = torch.stack([entry.length > 0 for entry in move.trace]).sum(0).tolist()
    assert moved == [count + 1 for count in counts]
    assert [entry.iteration for entry in move.trace] == list(range(len(move.trace)))


def test_rows_that_are_good_enough_leave_the_batch() -> None:
    norms, presence = (0.3, 0.95, 0.62, 3.0), 0.5
    passes, objectives = Passes(), [objective(refinement=target(presence))]
    move = optimize(start(*norms), objectives, passes, STEP)
    counts = [refinements(norm, presence, 20, stale=False) for norm in norms]
    assert passes.rows == [
        None if tries == 0 else [row for row, count in enumerate(counts) if count >= tries]
        for tries in range(max(counts) + 1)
    ]
    assert sum(map(len, passes.seen)) == sum(counts) + len(norms)
    last = move.trace[-1].total  # losses of rows that left are those they had when they were seen last
    assert last[0] == move.trace[0].total[0] and last[3] < move.trace[0].total[3]


@pytest.mark.parametrize("look", [1, 2, 3, 50])
@pytest.mark.parametrize("most", [3, 20])
def test_looking_seldom_changes_no_image(look: int, most: int) -> None:
    norms = (0.3, 0.95, 0.62, 3.0)
    often, seldom = Passes(), Passes()
    one = optimize(start(*norms), [objective(refinement=target(0.5, max_iterations=most))], often, STEP)
    other = optimize(
        start(*norms), [objective(refinement=target(0.5, max_iterations=most, check_every=look))], seldom, STEP
    )
    assert torch.equal(one.latents, other.latents)
    needed = len(often.seen)
    assert len(seldom.seen) == min(-(-needed // look) * look, most + 1)


def test_the_device_is_asked_once_a_look_and_never_without_a_target() -> None:
    asked = Synchronizations()
    with asked:
        optimize(start(0.3, 3.0), [objective()], Passes(), STEP)
    assert asked.count == 0
    for look, expected in ((1, 19), (6, 3)):
        passes = Passes()
        with Synchronizations() as asked:
            optimize(start(0.3, 3.0), [objective(refinement=target(0.5, check_every=look))], passes, STEP)
        assert asked.count == expected == len(passes.seen) // look


def test_rows_refined_together_end_where_single_ones_do() -> None:
    norms = (0.3, 0.95, 3.0)
    together = optimize(start(*norms), [objective(refinement=target(0.5))], Passes(), STEP).latents
    for row, each in enumerate(start(*norms)):
        alone = optimize(each[None], [objective(refinement=target(0.5))], Passes(), STEP).latents
        assert torch.equal(together[row], alone[0])


def test_a_row_that_is_done_stays_done_even_if_its_last_move_made_it_worse() -> None:
    def fading(maps: Tensor, step: Step) -> Losses:
        return Losses(terms=shrink(maps, step).terms, presence=maps.flatten(1).norm(dim=1))

    x_BCYX = start(0.9, 0.5)  # presence falls with every move: the first row is good enough only at the start
    move = optimize(x_BCYX, [objective(evaluate=fading, refinement=target(0.85, max_iterations=3))], Passes(), STEP)
    assert [entry.refined.tolist() for entry in move.trace] == [[False, True]] * 3 + [[False, False]]
    torch.testing.assert_close(move.latents, x_BCYX * _tall([0.9, 0.9**4]))


def test_no_target_at_this_step_means_one_pass() -> None:
    passes, later = Passes(), Step(index=1, total=10, timestep=800.0)
    move = optimize(start(3.0), [objective(refinement=target(0.99))], passes, later)
    assert len(passes.seen) == len(move.trace) == 1


@pytest.mark.parametrize("kind", ["loss", "loss alone", "gradient", "infinite", "too large"])
def test_a_row_that_is_not_finite_stays_alone(kind: str) -> None:
    def evaluate(maps: Tensor, step: Step) -> Losses:
        found = shrink(maps, step)
        factor_B = torch.ones(len(maps), dtype=maps.dtype)
        # The last is a finite loss and gradient, and a move past the largest number.
        factor_B[1] = {"loss": torch.nan, "infinite": torch.inf, "too large": 1e308}.get(kind, 1.0)
        half_B = found.terms["half"] * factor_B
        if kind == "loss alone":  # its gradient is finite
            half_B = half_B + torch.tensor([0.0, torch.nan, 0.0], dtype=maps.dtype)
        if kind == "gradient":  # a root of zero: a finite loss with an infinite gradient
            poison_B = (maps.flatten(1)[:, 0] * torch.tensor([0.0, 1.0, 0.0], dtype=maps.dtype)).abs().sum()
            half_B = half_B + (poison_B - poison_B.detach()).sqrt() * torch.tensor([0.0, 1.0, 0.0], dtype=maps.dtype)
        return Losses(terms={"half": half_B}, presence=found.presence)

    x_BCYX = start(0.8, 0.9, 3.0)
    settings = {
        "refinement": target(0.5),
        "step_size": StepSize(scale=30.0 if kind == "too large" else 0.1, final_scale_sq=1.0),
    }
    move = optimize(x_BCYX, [objective(evaluate=evaluate, **settings)], Passes(), STEP)
    clean = optimize(x_BCYX, [objective(**settings)], Passes(), STEP)
    if kind != "gradient":  # there the poison multiplies 0 by infinity in the other rows too, in the test's own loss
        assert torch.equal(move.latents[[0, 2]], clean.latents[[0, 2]])
    assert torch.equal(move.latents[1], x_BCYX[1])
    assert move.trace[0].skipped[1] and not move.trace[0].refined[1] and move.trace[0].length[1] == 0
    assert not any(entry.skipped[1] for entry in move.trace[1:])  # it is counted once
    assert torch.isfinite(move.latents).all()


@pytest.mark.parametrize("mode", ["raw", "normalized"])
def test_a_move_that_half_precision_cannot_hold_is_not_made(mode: Any) -> None:
    """It is finite in float32, in which it is made; the other rows go where they would go without it."""

    def evaluate(maps: Tensor, step: Step) -> Losses:
        slope_B = torch.tensor([1.0, 1e5 if mode == "raw" else 1.0, 1.0])
        return Losses(terms={"sum": maps.flatten(1).float().mean(1) * slope_B}, presence=torch.zeros(len(maps)))

    x_BCYX = start(1.0, 1.0 if mode == "raw" else 6e4, 1.0, dtype=torch.float16)
    rule = StepSize(scale=60.0 if mode == "raw" else 20.0, final_scale_sq=1.0, mode=mode)
    move = optimize(x_BCYX, [objective(evaluate=evaluate, step_size=rule)], Passes(), STEP)
    assert move.trace[0].skipped.tolist() == [False, True, False] and move.trace[0].length[1] == 0
    assert torch.equal(move.latents[1], x_BCYX[1]) and not torch.equal(move.latents[0], x_BCYX[0])
    assert torch.isfinite(move.latents).all() and torch.isfinite(move.delta).all()


def test_a_move_that_only_the_scheduler_cannot_hold_is_not_made() -> None:
    """The scheduler's sample is larger than the latent that the denoiser sees."""

    def evaluate(maps: Tensor, step: Step) -> Losses:
        return Losses(terms={"sum": maps.flatten(1).float().sum(1) * torch.tensor([1.0, 100.0])})

    x_BCYX, rule = start(1.0, 1.0, dtype=torch.float16), StepSize(scale=100.0, final_scale_sq=1.0)
    for scale, skipped in ((1.0, [False, False]), (1 / 14, [False, True])):
        move = optimize(x_BCYX, [objective(evaluate=evaluate, step_size=rule)], Passes(), STEP, input_scale=scale)
        assert move.trace[0].skipped.tolist() == skipped


def test_a_length_that_is_no_number_is_not_traced() -> None:
    """Every number of the move is finite in float32, and the sum of their squares is not."""

    def evaluate(maps: Tensor, step: Step) -> Losses:
        return Losses(terms={"sum": maps.flatten(1).sum(1) * torch.tensor([1.0, 1e25])})

    move = optimize(start(1.0, 1.0, dtype=torch.float32), [objective(evaluate=evaluate)], Passes(), STEP)
    assert move.trace[0].skipped.tolist() == [False, True] and move.trace[0].length[1] == 0


def test_pushes_are_looked_at_as_moves_are() -> None:
    x_BCYX = start(1.0, 1.0, 1.0, dtype=torch.float16)
    far = torch.ones(3, 4, 3, 5)
    far[1] = 7e4
    made = push(x_BCYX, [far, torch.ones(3, 4, 3, 5)], STEP)
    assert [entry.skipped.tolist() for entry in made.trace] == [[False, True, False], [False] * 3]
    torch.testing.assert_close(made.delta[:, 0, 0, 0], torch.tensor([2.0, 1.0, 2.0]))
    assert torch.isfinite(made.latents).all()


def test_small_half_precision_gradients_survive() -> None:
    """A gradient of 3e-8 is zero in float16; the scaled loss keeps it, to the precision of the type."""

    def evaluate(maps: Tensor, step: Step) -> Losses:
        assert maps.dtype == torch.float16
        return Losses(terms={"sum": maps.flatten(1).float().sum(1) * 3e-8})

    rule = StepSize(scale=1e6, final_scale_sq=1.0)
    move = optimize(start(1.0, dtype=torch.float16), [objective(evaluate=evaluate, step_size=rule)], Passes(), STEP)
    torch.testing.assert_close(move.delta, torch.full_like(move.delta, -0.03), rtol=2e-2, atol=0)
    assert move.delta.dtype == torch.float32 and move.latents.dtype == torch.float16


def test_half_precision_moves_add_up_in_float32() -> None:
    """Ten moves, each below the spacing of float16 at 1, must not be lost one by one."""

    def evaluate(maps: Tensor, step: Step) -> Losses:
        return Losses(terms={"sum": maps.flatten(1).float().sum(1)}, presence=torch.zeros(len(maps)))

    refined = objective(
        evaluate=evaluate, step_size=StepSize(scale=1e-4, final_scale_sq=1.0), refinement=target(0.5, max_iterations=9)
    )
    move = optimize(torch.ones(1, 4, 2, 2, dtype=torch.float16), [refined], Passes(), STEP)
    torch.testing.assert_close(move.delta, torch.full_like(move.delta, -1e-3), rtol=1e-3, atol=0)
    assert move.latents[0, 0, 0, 0] < 1


def test_objectives_add_up_with_their_strengths() -> None:
    def lean(maps: Tensor, step: Step) -> Losses:
        return Losses(terms={"lean": maps.flatten(1).sum(1)})

    x_BCYX = start(1.0, 2.0)
    both = [objective(strength=0.5), objective(name="lean", evaluate=lean, strength=0.25)]
    move = optimize(x_BCYX, both, Passes(2), STEP)
    torch.testing.assert_close(move.delta, -0.1 * (0.5 * x_BCYX + 0.25), rtol=1e-13, atol=0)
    normalized = StepSize(scale=0.01, final_scale_sq=1.0, mode="normalized")
    both = [objective(strength=0.5, step_size=normalized), objective(name="lean", evaluate=lean, step_size=normalized)]
    share_B = optimize(x_BCYX, both, Passes(2), STEP).delta.flatten(1).norm(dim=1) / torch.tensor([1.0, 2.0])
    torch.testing.assert_close(share_B, torch.full_like(share_B, 0.01))  # the strongest sets the length


def test_only_the_refining_objective_decides_about_refining() -> None:
    refining = objective(name="refining", refinement=target(0.5, max_iterations=3))
    move = optimize(start(3.0), [objective(), refining], Passes(2), STEP)
    assert len(move.trace) == 4
    silent = objective(evaluate=lambda maps, step: Losses(terms=shrink(maps, step).terms), refinement=target(0.5))
    assert len(optimize(start(3.0), [silent], Passes(), STEP).trace) == 1  # no presence, nothing to reach


def test_two_controls_of_one_name_both_stand_in_the_trace() -> None:
    move = optimize(start(1.0), [objective(), objective(strength=2.0)], Passes(2), STEP)
    assert sorted(move.trace[0].terms) == ["shrink#2.half", "shrink.half"]


@pytest.mark.parametrize("mode", ["raw", "normalized"])
@pytest.mark.parametrize("control", [AttentionSegregation, AttendAndExcite])
def test_strength_acts_continuously_from_the_untouched_image(control: Any, mode: Any) -> None:
    pipe, prompt = sd(dtype=torch.float64), "a red circle and a blue square"
    plain = run(pipe, prompt, steps=3)
    rule = StepSize(mode=mode, scale=20.0 if mode == "raw" else 0.05)
    far = []
    for strength in (0.0, 1e-6, 1e-4):
        settings = control(strength=strength, step=rule, refinement=None)
        with t2ictl.controlled(pipe, [settings]):
            far.append(float((run(pipe, prompt, steps=3) - plain).norm()))
    assert far[0] == 0.0 and 0 < far[1] < 1e-3
    assert far[2] / far[1] == pytest.approx(100, rel=0.05)  # to first order, as far as it is strong
