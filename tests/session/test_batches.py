"""Batches are real: an image is the same alone and in a batch; and strength acts from the plain image on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import t2ictl
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.registry import list_controls
from t2ictl.errors import NonFiniteLoss
from t2ictl.guidance.objectives import Losses, Objective
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.settings.windows import Step
from tests import tiny
from tests.session.session_cases import PROMPT, THREE, distance, generators, pipeline, rows_apart

RULE = StepSize(scale=0.02, mode="normalized")


def refined(presence: float) -> AttendAndExcite:
    """Tries again until the weakest concept has this presence, three times at most at two of the steps."""
    return AttendAndExcite(
        step=RULE, refinement=Refinement(thresholds=((0.0, presence), (0.4, presence)), max_iterations=3)
    )


REFINED = refined(0.45)
# Presences that some of the images have at once, some after a few tries and some never.
PRESENCE = {"sd": 0.45, "sdxl": 0.1}
IMAGES = 2
SEEDS = range(len(THREE) * IMAGES)


def batch(pipe: Any, controls: list[Control] | None) -> tuple[torch.Tensor, Any]:
    """All prompts in one call, two images each, one generator an image."""
    call = {"num_images_per_prompt": IMAGES, "generator": generators(SEEDS), "steps": 3}
    return run(pipe, list(THREE), controls, call)


def single(pipe: Any, row: int, controls: list[Control] | None) -> tuple[torch.Tensor, Any]:
    """One image of that batch in a call of its own."""
    return run(pipe, THREE[row // IMAGES], controls, {"generator": generators([row]), "steps": 3})


def run(pipe: Any, prompt: Any, controls: list[Control] | None, call: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    if controls is None:
        return tiny.run(pipe, prompt, **call), None
    before = torch.get_rng_state()
    with t2ictl.controlled(pipe, controls) as session:
        latents = tiny.run(pipe, prompt, **call)
    assert torch.equal(torch.get_rng_state(), before)
    return latents, session


def tries(session: Any, row: int) -> int:
    """How often a row was refined in all steps."""
    return sum(int(entry.refined[row]) for entry in session.trace)


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [("sd", "ddim"), ("sd", "euler_ancestral"), ("sd", "pndm"), ("sdxl", "lcm"), ("sdxl", "kdpm2")],
)
def test_rows_are_the_images_they_are_alone(family: str, scheduler: str) -> None:
    pipe = pipeline(family, scheduler=scheduler)
    controls: list[Control] = [refined(PRESENCE[family]), AttentionSegregation(step=RULE)]
    plain, _ = batch(pipe, None)
    together, session = batch(pipe, controls)
    counts = [tries(session, row) for row in SEEDS]
    assert len(set(counts)) > 1  # rows stop on their own
    assert min(rows_apart(together, plain)) > 0.01
    for row in SEEDS:
        alone, own = single(pipe, row, controls)
        plain_alone, _ = single(pipe, row, None)
        allowed = 5 * rows_apart(plain[row : row + 1], plain_alone)[0] + 1e-3
        assert rows_apart(together[row : row + 1], alone)[0] <= allowed
        assert tries(own, 0) == counts[row]


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_rows_are_independent_to_rounding_in_double_precision(scheduler: str) -> None:
    # Refinement grows rounding by a few times a try, so in float32 the bound above says something about these weights
    # too. In float64 nothing is left of it, and any influence of a row on another would show.
    pipe = tiny.sd(dtype=torch.float64)
    pipe.scheduler = tiny.scheduler(scheduler, pipe)
    controls: list[Control] = [refined(PRESENCE["sd"]), AttentionSegregation(step=RULE)]
    together, session = batch(pipe, controls)
    assert len({tries(session, row) for row in SEEDS}) > 1
    for row in SEEDS:
        alone, _ = single(pipe, row, controls)
        assert rows_apart(together[row : row + 1], alone)[0] < 1e-7


def test_order_of_the_prompts_does_not_matter() -> None:
    pipe = pipeline("sd")
    forwards, _ = run(pipe, list(THREE), [REFINED], {"generator": generators([0, 1, 2]), "steps": 3})
    backwards, _ = run(pipe, list(THREE[::-1]), [REFINED], {"generator": generators([2, 1, 0]), "steps": 3})
    assert max(rows_apart(forwards, backwards.flip(0))) < 1e-3


def test_recorded_maps_belong_to_their_rows() -> None:
    pipe = pipeline("sd")
    words = ("circle", "frog", "lion")
    call = {"num_images_per_prompt": IMAGES, "generator": generators(SEEDS), "steps": 2}
    with t2ictl.controlled(pipe, record=True) as session:
        tiny.run(pipe, list(THREE), **call)
    together = [session.record.map(words[row // IMAGES], image=row) for row in SEEDS]
    for row in SEEDS:
        with t2ictl.controlled(pipe, record=True) as session:
            tiny.run(pipe, THREE[row // IMAGES], generator=generators([row]), steps=2)
        alone = session.record.map(words[row // IMAGES])
        assert torch.allclose(together[row], alone, atol=1e-5)
        assert float(alone.std()) > 1e-4


# -- losses that are not finite ---------------------------------------------------------------------------------------


BROKEN_ROW = 1


class Broken(AttendAndExcite):
    """Attend-and-Excite with a loss that is not finite for one image."""

    def plan(self, context: PlanContext) -> Plan:
        plan = super().plan(context)
        return replace(plan, objectives=tuple(self._broken(each) for each in plan.objectives))

    def _broken(self, objective: Objective) -> Objective:
        def evaluate(maps: Any, step: Step) -> Losses:
            found = objective.evaluate(maps, step)
            scale_B = torch.ones_like(found.total)
            scale_B[BROKEN_ROW] = float("nan")
            return replace(found, terms={name: value * scale_B for name, value in found.terms.items()})

        return replace(objective, evaluate=evaluate)


def test_only_the_broken_row_is_skipped() -> None:
    pipe = pipeline("sd")
    call = {"generator": generators([0, 1, 2]), "steps": 2}
    plain = tiny.run(pipe, list(THREE), **call)
    with pytest.warns(RuntimeWarning, match="updates were skipped"):
        with t2ictl.controlled(pipe, [Broken(step=RULE, refinement=None)]) as session:
            found = tiny.run(pipe, list(THREE), **call | {"generator": generators([0, 1, 2])})
    assert all(entry.skipped.tolist() == [False, True, False] for entry in session.trace)
    with t2ictl.controlled(pipe, [AttendAndExcite(step=RULE, refinement=None)]):
        sound = tiny.run(pipe, list(THREE), **call | {"generator": generators([0, 1, 2])})
    assert torch.equal(found[[0, 2]], sound[[0, 2]])
    assert torch.equal(found[BROKEN_ROW], plain[BROKEN_ROW])


def test_a_loss_that_is_not_finite_raises_when_asked() -> None:
    pipe = pipeline("sd")
    with pytest.raises(NonFiniteLoss, match=rf"evaluation 0 for images \[{BROKEN_ROW}\]"):
        with t2ictl.controlled(pipe, [Broken(step=RULE, refinement=None)], on_nonfinite="raise"):
            tiny.run(pipe, list(THREE), steps=2)


# -- strength and recording -------------------------------------------------------------------------------------------


def settings_of(name: str, **more: Any) -> Control:
    """A registered control with a step that needs no model-specific size, where it has one."""
    control = list_controls()[name]
    known = control.__dataclass_fields__  # type: ignore[attr-defined]
    # A length of 2 % of the latent's norm: at strength 1 the image moves by about 5 %, far below saturation, so that
    # the order of distances says something about strength, and far above rounding.
    moves_latents = "step" in known and known["step"].type == "StepSize"  # another step has its own size
    # A search for noise of three looks ends before it meets its own limit, from where strength changes nothing.
    wanted = ({"step": RULE} if moves_latents else {}) | {"refinement": None, "search": {"max_steps": 3}} | more
    return control(**{key: value for key, value in wanted.items() if key in known})


@pytest.mark.parametrize("name", sorted(list_controls()))
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_strength_acts_from_nothing_on(family: str, name: str) -> None:
    pipe = pipeline(family)
    plain = tiny.run(pipe, PROMPT, steps=2)
    away = {}
    for strength in (0.0, 1e-4, 0.25, 0.5, 1.0):
        with t2ictl.controlled(pipe, [settings_of(name, strength=strength)]) as session:
            moved = tiny.run(pipe, PROMPT, steps=2)
        away[strength] = distance(moved, plain)
        if strength == 0:
            assert torch.equal(moved, plain)
            assert session.cost.extra_forwards == 0
    assert away[1e-4] < 1e-2
    assert away[1e-4] < away[0.25] < away[0.5] < away[1.0]


@pytest.mark.parametrize(
    "controls", [[], [REFINED], [AttentionSegregation(step=RULE)]], ids=["plain", "refined", "both"]
)
@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_recording_leaves_images_bit_equal(family: str, controls: list[Control]) -> None:
    pipe = pipeline(family)
    call = {"num_images_per_prompt": 2, "steps": 3}
    with t2ictl.controlled(pipe, controls):
        silent = tiny.run(pipe, list(THREE[:2]), **call)
    with t2ictl.controlled(pipe, controls, record=True) as session:
        recorded = tiny.run(pipe, list(THREE[:2]), **call)
    assert torch.equal(silent, recorded)
    assert session.record.steps == 3
    if not controls:
        assert torch.equal(recorded, tiny.run(pipe, list(THREE[:2]), **call))
