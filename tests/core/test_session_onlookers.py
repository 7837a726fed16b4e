"""Controls that only look on, and moves that look at nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.errors import BadSetting
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.processors.structured_guidance.control import StructuredGuidance
from t2ictl.settings.windows import Step
from tests import tiny
from tests.core.session_cases import SMALL, THREE, pipeline

LOOKING = (AttentionSegregation(), AttendAndExcite())


def call(pipe: Any, *controls: Any, measure: Any = ()) -> tuple[Tensor, t2ictl.Session]:
    with t2ictl.controlled(pipe, controls, measure=measure) as session:
        latents = tiny.run(pipe, list(THREE), steps=4)
    return latents, session


class Pushed(t2ictl.Control):
    """Moves by given vectors."""

    name, paper, families, needs_words = "pushed", "", ("sd", "sdxl"), False

    def __init__(self, *moves: float) -> None:
        self._moves = moves

    def plan(self, context: t2ictl.PlanContext) -> t2ictl.Plan:
        def push(x_BCYX: Tensor, step: Step) -> list[Tensor]:
            return [torch.full_like(x_BCYX, move) for move in self._moves] if step.index == 1 else []

        return t2ictl.Plan(perturb=push)


@pytest.mark.parametrize("family, scheduler", [("sd", "ddim"), ("sd", "heun"), ("sdxl", "euler")])
def test_looking_on_changes_no_bit_and_costs_no_pass(family: str, scheduler: str) -> None:
    pipe = pipeline(family, scheduler=scheduler)
    plain, before = call(pipe)
    seen, session = call(pipe, measure=LOOKING)
    assert torch.equal(plain, seen)
    assert session.cost.extra_forwards == session.cost.backwards == 0 and session.cost.forwards == before.cost.forwards
    assert session.trace == () and before.measured == ()
    for control in LOOKING:
        found = [entry for entry in session.measured if entry.control is control]
        assert found and all(entry.loss.shape == (len(THREE),) and entry.loss.isfinite().all() for entry in found)
        # Where the control would act: in its window, and not where the scheduler throws the sample away.
        _, acting = call(pipe, control)
        assert [entry.step.index for entry in found] == sorted({entry.step.index for entry in acting.trace})


@pytest.mark.parametrize("control", LOOKING, ids=lambda control: control.name)
def test_the_loss_is_the_one_that_the_control_would_see(control: Any) -> None:
    pipe = pipeline("sd")
    _, looking = call(pipe, measure=[control])
    _, acting = call(pipe, control)
    torch.testing.assert_close(looking.measured[0].loss, acting.trace[0].total, rtol=1e-4, atol=1e-5)


def test_one_control_can_look_on_while_another_acts() -> None:
    pipe = pipeline("sd")
    acting = AttentionSegregation(step=SMALL)
    alone, _ = call(pipe, acting)
    seen, session = call(pipe, acting, measure=[AttendAndExcite()])
    assert torch.equal(alone, seen)
    assert {entry.control.name for entry in session.measured} == {"attend_and_excite"}


def test_a_control_without_losses_has_nothing_to_measure() -> None:
    pipe = tiny.sd()
    with pytest.raises(BadSetting, match="StructuredGuidance has no loss"):
        with t2ictl.controlled(pipe, measure=[StructuredGuidance()]):
            tiny.run(pipe, "a red circle and a blue square", steps=1)


def test_what_looks_on_must_be_a_control() -> None:
    with pytest.raises(BadSetting, match="is not a control"):
        t2ictl.controlled(pipeline("sd"), measure=["attend_and_excite"])  # type: ignore[list-item]


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_pushes_move_in_scaled_space_and_are_traced(scheduler: str) -> None:
    pipe = pipeline("sd", scheduler=scheduler)
    plain, _ = call(pipe)
    moved, session = call(pipe, Pushed(0.1, 0.2))
    assert not torch.equal(plain, moved)
    assert [(entry.step.index, entry.iteration) for entry in session.trace] == [(1, 0), (1, 1)]
    size = plain[0].numel() ** 0.5
    for entry, move in zip(session.trace, (0.1, 0.2), strict=True):
        torch.testing.assert_close(entry.length, torch.full((3,), move * size), rtol=1e-5, atol=0)
    assert session.cost.extra_forwards == session.cost.backwards == 0


def test_pushes_of_nothing_are_nothing() -> None:
    pipe = pipeline("sd")
    plain, _ = call(pipe)
    for control in (Pushed(), Pushed(0.0)):
        assert torch.equal(plain, call(pipe, control)[0])


def test_a_push_follows_what_objectives_do() -> None:
    pipe = pipeline("sd")
    acting = AttentionSegregation(step=SMALL)
    _, session = call(pipe, acting, Pushed(0.1))
    at_one = [entry for entry in session.trace if entry.step.index == 1]
    assert [entry.iteration for entry in at_one] == [0, 1]
    assert [bool(entry.terms) for entry in at_one] == [True, False]
    both, _ = call(pipe, acting, Pushed(0.1, -0.1))
    torch.testing.assert_close(both, call(pipe, acting)[0], rtol=0, atol=1e-4)
