"""Defaults on transformers: what fields that are left open mean there, and which fields stay as they are."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.controls import presets
from t2ictl.controls.base import Control
from t2ictl.controls.loss_control import LossControl
from t2ictl.controls.presets import for_transformer, with_preset
from t2ictl.controls.registry import control_to_dict, list_controls
from t2ictl.families import find_adapter
from t2ictl.families.noise import level_at_fraction
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors import AttendAndExcite, AttentionSegregation, LayoutGuidance
from t2ictl.settings.fields import given_fields
from t2ictl.settings.windows import Window
from tests import tiny_transformers as tiny

SHORT = StepSize(mode="normalized", scale=0.05, final_scale_sq=1.0)
HALF = Window(start=1.0, stop=0.6, by="noise")
IN_NOISE = ((0.93, 0.05), (0.82, 0.5), (0.68, 0.8))


@functools.cache
def adapter(name: str) -> Any:
    return find_adapter(tiny.FAMILIES[name]())


def filled(control: Control, name: str = "flux") -> Any:
    (made,) = with_preset([control], adapter(name))
    return made


def far(maps_BNYX: Tensor, mask_BN: Tensor) -> Tensor:
    """A loss of a user's own."""
    return (maps_BNYX.mean((2, 3)) * mask_BN).sum(1)


@pytest.mark.parametrize("name", ["flux", "flux_schnell", "chroma", "sd3", "sd35", "sana"])
def test_flow_models_count_in_noise_and_steps_are_short(name: str) -> None:
    made = filled(AttendAndExcite(strength=0.5), name)
    assert made == AttendAndExcite(
        strength=0.5,
        step=SHORT,
        window=HALF,
        refinement=Refinement(thresholds=IN_NOISE, by="noise"),
        preset="none",
    )


@pytest.mark.parametrize("name", ["pixart_alpha", "pixart_sigma", "hunyuan_dit"])
def test_schedules_of_alphas_keep_their_fractions(name: str) -> None:
    """Their steps are spaced as those of Stable Diffusion; the gradient is that of another model all the same."""
    assert filled(AttendAndExcite(), name) == AttendAndExcite(step=SHORT, preset="none")


def test_the_rest_of_a_field_is_kept() -> None:
    control = AttentionSegregation()
    made = for_transformer(control, (), is_flow=True)
    assert isinstance(made, AttentionSegregation)
    assert made.step == SHORT and made.refinement is None
    assert made.window == control.window == Window()  # the whole of one schedule is the whole of any other
    given = LayoutGuidance(layout=({"word": "cat", "box": (0.0, 0.0, 0.5, 1.0)},))
    layout = for_transformer(given, (), is_flow=True)
    assert isinstance(layout, LayoutGuidance) and layout.layout == given.layout
    assert layout.window == Window(start=1.0, stop=0.82, by="noise") and layout.step == SHORT


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(start=0.2, stop=0.5), (0.82, 0.6)),
        (Window(start=0.5), (0.6, 0.0)),
        (Window(stop=0.2, by="steps"), (1.0, 0.82)),
        (Window(start=0.4, stop=0.4), (0.68, 0.68)),
    ],
)
def test_borders_of_a_window(window: Window, expected: tuple[float, float]) -> None:
    control = LossControl(far)
    vars(control).update(window=window)  # a default of somebody's own class
    made: Any = for_transformer(control, (), is_flow=True)
    assert (made.window.start, made.window.stop, made.window.by) == (*expected, "noise")
    for border in expected:
        assert border in (0.0, 1.0) or any(
            border == pytest.approx(level_at_fraction(each), abs=0.005) for each in (0.2, 0.4, 0.5)
        )


@pytest.mark.parametrize("is_flow", [True, False])
@pytest.mark.parametrize("name", sorted(list_controls()))
def test_every_control_is_what_it_was_but_for_steps_and_moments(name: str, is_flow: bool) -> None:
    cls = list_controls()[name]
    control = cls(preset="none")
    made = for_transformer(control, (), is_flow=is_flow)
    assert type(made) is cls and for_transformer(made, (), is_flow=is_flow) == made
    before, after = control_to_dict(control), control_to_dict(made)
    changed = {key for key in before if before[key] != after[key]}
    allowed = {"step", "window", "refinement"} if is_flow else {"step"}
    assert changed <= allowed
    assert control == cls(preset="none")  # a control is frozen: the one that was given stays
    step = getattr(made, "step", None)
    assert not isinstance(step, StepSize) or step.mode == "normalized"


# -- what stays as it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"step": StepSize()},
        {"step": StepSize(mode="raw", scale=3.0)},
        {"window": Window(stop=0.3)},
        {"window": Window()},
        {"window": {"stop": 0.3}},
        {"refinement": None},
        {"refinement": Refinement()},
        {"step": StepSize(scale=1.0), "window": Window(stop=0.3), "refinement": None},
    ],
    ids=str,
)
def test_a_field_that_was_set_stays(given: dict[str, Any]) -> None:
    made, chosen = filled(AttendAndExcite(**given)), AttendAndExcite(**given)
    for field in ("step", "window", "refinement"):
        is_kept = getattr(made, field) == getattr(chosen, field)
        assert is_kept == (field in given), field
    assert made.preset == "none"


@pytest.mark.parametrize("step", [StepSize(every=5), {"every": 5}], ids=str)
def test_what_a_chosen_part_does_not_touch_is_still_open(step: Any) -> None:
    made = filled(AttendAndExcite(step=step, refinement=Refinement(max_iterations=3)))
    assert (made.step.every, made.step.mode, made.step.scale) == (5, "normalized", 0.05)
    assert made.refinement is not None
    assert (made.refinement.max_iterations, made.refinement.by) == (3, "noise")


def test_an_empty_field_is_no_choice() -> None:
    """``StepSize()`` without a word in it is the default that somebody wrote down: it was chosen all the same."""
    assert given_fields(AttendAndExcite(step=StepSize())) == {"step"}
    assert filled(AttendAndExcite(step=StepSize())).step == StepSize()


def test_the_published_form_and_the_plain_defaults_stay() -> None:
    assert filled(AttendAndExcite(preset="published")) == AttendAndExcite.published()
    assert filled(AttendAndExcite(preset="none")) == AttendAndExcite(preset="none")
    own = AttendAndExcite.published()
    assert filled(own) is own


def test_what_was_measured_for_the_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"step": {"mode": "raw", "scale": 2.0}, "window": {"stop": 0.25}}
    monkeypatch.setattr(presets, "measured_settings", lambda *_: ("a table", found))
    made = filled(AttendAndExcite())
    assert made.step == StepSize(mode="raw", scale=2.0) and made.window == Window(stop=0.25)
    assert made.refinement == Refinement(thresholds=IN_NOISE, by="noise")  # of which nothing was measured


def test_a_loss_of_ones_own_keeps_its_loss() -> None:
    control = LossControl(far, concepts=("circle",), strength=0.5)
    made = filled(control)
    assert made is not control and vars(made)["loss"] is far and made.name == "far"
    assert made.window == HALF and made.step == control.step and made.strength == 0.5
    assert filled(LossControl(far, window=Window(stop=0.5))).window == Window(stop=0.5)
    pipe = tiny.FAMILIES["flux"]()
    with t2ictl.controlled(pipe, [control]) as session:
        tiny.run(pipe, "a red circle and a blue square", steps=5)
    moved = [entry.step for entry in session.trace]
    assert [step.index for step in moved] == [0, 1, 2] and all(step.noise > 0.6 for step in moved)  # type: ignore[operator]
    for entry in session.trace:
        assert sorted(entry.terms) == ["far.far"]
        assert float(entry.length[0]) > 0


def test_a_control_without_such_fields_is_the_very_same() -> None:
    class Bare(Control):
        name = "bare"

    control = Bare()
    assert for_transformer(control, (), is_flow=True) is control and filled(control) is control


def test_a_session_shows_what_it_took_and_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    presets._say_once.cache_clear()
    pipe = tiny.FAMILIES["flux"]()
    with caplog.at_level(logging.INFO, logger="t2ictl"):
        for _ in range(2):
            with t2ictl.controlled(pipe, [AttendAndExcite()]) as session:
                pass
    assert session.controls == (filled(AttendAndExcite()),)
    said = [each.getMessage() for each in caplog.records if each.name == "t2ictl"]
    assert said == [
        "attend_and_excite has other defaults on a transformer: refinement, step, window (docs/transformers.md)."
    ]


def test_steps_of_a_session_have_the_length_that_was_filled_in() -> None:
    pipe = tiny.FAMILIES["sd3"]()
    with t2ictl.controlled(pipe, [AttentionSegregation()]) as session:
        tiny.run(pipe, "a red circle and a blue square", steps=2)
    assert len(session.trace) == 2
    norm = torch.randn(1, 8, 16, 12, generator=torch.Generator().manual_seed(0)).norm()  # of the first sample
    assert float(session.trace[0].length) == pytest.approx(0.05 * float(norm), rel=1e-4)
