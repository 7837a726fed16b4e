"""Controls that only look on, moves that look at nothing, and a function that is told of every move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.errors import BadSetting
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.guidance.rules import Refinement
from t2ictl.processors import InitialNoise, TokenMerging
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.processors.structured_guidance.control import StructuredGuidance
from t2ictl.settings.windows import Step, Window
from tests import tiny
from tests.session.pipeline_cases import state
from tests.session.session_cases import SMALL, THREE, pipeline

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


# -- who is told of moves ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:token_merging does nothing:UserWarning")
@pytest.mark.parametrize(
    ("scheduler", "controls"),
    [
        (
            "ddim",
            [
                AttendAndExcite(step=SMALL, refinement=Refinement(thresholds=((0.0, 1.0),), max_iterations=2)),
                Pushed(0.1),
            ],
        ),
        ("heun", [AttentionSegregation(step=SMALL)]),
        ("ddim", [InitialNoise(search={"max_steps": 2})]),
        ("ddim", [TokenMerging(entropy_steps=2, binding_steps=0, thresholds=(0.0,), window=Window())]),
    ],
    ids=["objectives and pushes", "samples thrown away", "a search", "text rows"],
)
def test_each_move_is_told_once_as_it_stands_in_the_trace(scheduler: str, controls: list[Any]) -> None:
    pipe = pipeline("sd", scheduler=scheduler)
    told: list[MoveTrace] = []
    plain, _ = call(pipe, *controls)
    with t2ictl.controlled(pipe, controls, on_move=told.append) as session:
        assert torch.equal(tiny.run(pipe, list(THREE), steps=4), plain)
    assert len(told) > 1 and all(one is other for one, other in zip(told, session.trace, strict=True))
    assert all(isinstance(entry.step, Step) and entry.step.total >= 4 for entry in told)


def test_moves_are_told_before_the_denoiser_makes_the_image_with_them() -> None:
    pipe, happened = pipeline("sd"), []
    handle = pipe.unet.conv_out.register_forward_hook(lambda *_: happened.append("image"))  # our passes end earlier
    with t2ictl.controlled(pipe, [AttentionSegregation(step=SMALL)], on_move=lambda entry: happened.append(entry.step)):
        tiny.run(pipe, THREE[0], steps=3)
    handle.remove()
    assert [each if each == "image" else each.index for each in happened] == [0, "image", 1, "image", 2, "image"]


def test_what_the_told_function_raises_ends_the_call() -> None:
    pipe = pipeline("sd")
    before, plain = state(pipe), tiny.run(pipe, THREE[0], steps=3)

    def stop(entry: MoveTrace) -> None:
        if entry.step.index == 1:
            raise KeyError("mine")

    with (
        pytest.raises(KeyError, match="mine"),
        t2ictl.controlled(pipe, [AttentionSegregation()], on_move=stop) as session,
    ):
        tiny.run(pipe, THREE[0], steps=3)
    assert [entry.step.index for entry in session.trace] == [0, 1] and session.cost.forwards == 2
    assert state(pipe) == before and torch.equal(tiny.run(pipe, THREE[0], steps=3), plain)


def test_nobody_is_told_where_nothing_moves() -> None:
    pipe = pipeline("sd")
    told: list[MoveTrace] = []
    with t2ictl.controlled(pipe, [StructuredGuidance()], record=True, measure=LOOKING, on_move=told.append):
        tiny.run(pipe, THREE[0], steps=2)
    assert told == []
