"""Presets: what is filled in where a field is left open, and for which model."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler

import t2ictl
from t2ictl.cli.app import main
from t2ictl.controls import presets
from t2ictl.controls.base import Control
from t2ictl.controls.presets import measured_models, measured_settings, with_preset
from t2ictl.controls.registry import control_from_dict, control_to_dict, list_controls
from t2ictl.families import find_adapter
from t2ictl.guidance.rules import Refinement, StepSize
from t2ictl.processors import AttendAndExcite, AttentionSegregation, ContrastiveAttention
from t2ictl.settings.fields import given_fields
from t2ictl.settings.windows import Window
from tests.tiny import run, sd

(SHAPES,) = measured_models()
MEASURED = SHAPES.settings["attend_and_excite"]


@pytest.fixture(scope="module")
def shapes() -> Any:
    return t2ictl.load("shapes")


def filled(control: Control, pipe: Any) -> Any:
    (made,) = with_preset([control], find_adapter(pipe))
    return made


@pytest.mark.parametrize("name", sorted(SHAPES.settings))
def test_what_was_measured_is_a_control(name: str) -> None:
    control = list_controls()[name](**SHAPES.settings[name], preset="none")
    assert control == control_from_dict(control_to_dict(control))


def test_a_model_is_known_by_its_weights(shapes: Any, tmp_path: Path) -> None:
    shapes.save_pretrained(tmp_path / "another name")
    for dtype in ("float32", "bfloat16"):
        again = t2ictl.load(str(tmp_path / "another name"), dtype=dtype)
        assert measured_settings(again.unet, "attend_and_excite") == (SHAPES.source, MEASURED)
    trained = copy.deepcopy(shapes.unet)
    with torch.no_grad():
        for each in trained.parameters():
            each.mul_(1.05)
    assert measured_settings(trained, "attend_and_excite") is None
    assert measured_settings(sd().unet, "attend_and_excite") is None


def test_fields_left_open_are_those_that_were_measured(shapes: Any) -> None:
    made = filled(AttendAndExcite(strength=0.5), shapes)
    assert made == AttendAndExcite(**MEASURED, strength=0.5, preset="none")
    assert made.refinement is None and made.step.mode == "normalized"


def test_on_other_models_they_are_the_defaults() -> None:
    assert filled(AttendAndExcite(strength=0.5), sd()) == AttendAndExcite(strength=0.5, preset="none")


def test_what_was_chosen_stays(shapes: Any) -> None:
    chosen = AttendAndExcite(refinement=Refinement(), step=StepSize(), normalize_over="none")
    assert filled(chosen, shapes) == AttendAndExcite(
        refinement=Refinement(), step=StepSize(), normalize_over="none", preset="none"
    )


@pytest.mark.parametrize("step", [StepSize(every=5), {"every": 5}])
def test_a_part_of_a_field_can_be_chosen(shapes: Any, step: Any) -> None:
    assert filled(AttendAndExcite(step=step), shapes).step == StepSize(**{**MEASURED["step"], "every": 5})


def test_a_part_of_another_kind_keeps_its_numbers(shapes: Any) -> None:
    assert filled(AttendAndExcite(step=StepSize(mode="raw", every=2)), shapes).step == StepSize(every=2)


def test_the_published_form_comes_before_what_was_measured(shapes: Any) -> None:
    made = filled(AttendAndExcite(preset="published", strength=0.5), shapes)
    assert made == AttendAndExcite.published(strength=0.5)
    assert made.parity and made.window.by == "steps"


@pytest.mark.parametrize(
    "control",
    [
        AttendAndExcite(), AttendAndExcite(step=StepSize(every=5)), AttendAndExcite(step=StepSize()),
        AttendAndExcite(window=Window(stop=0.2), refinement=None),
        AttentionSegregation(preset="published", strength=2.0),
        AttendAndExcite(preset="none"), AttendAndExcite(step=StepSize(mode="raw", every=2)),
    ],
)  # fmt: skip
def test_what_was_left_open_is_written_and_read(shapes: Any, control: Control) -> None:
    again = control_from_dict(json.loads(json.dumps(control_to_dict(control))))
    assert again == control
    assert filled(again, shapes) == filled(control, shapes)


def test_what_was_chosen_is_known_by_path() -> None:
    control = AttendAndExcite(strength=0.5, window=Window(stop=1.0), step={"every": 2}, refinement=None)
    assert given_fields(control) == {"strength", "window.stop", "step.every", "refinement"}


def test_images_hold_what_was_taken(shapes: Any, tmp_path: Path) -> None:
    made = t2ictl.generate(shapes, "a red circle", [AttendAndExcite()], steps=2)
    (written,) = made.settings["controls"]
    assert written["preset"] == "none" and written["step"]["scale"] == 0.05 and "left_open" not in written
    again = t2ictl.replay(shapes, made.save(tmp_path / "a.png"))
    assert again.image.tobytes() == made.image.tobytes()


def test_what_is_taken_is_said_once(shapes: Any, caplog: pytest.LogCaptureFixture) -> None:
    presets._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="t2ictl"):
        for _ in range(2):
            with t2ictl.controlled(shapes, [AttendAndExcite()]) as session:
                pass
    assert session.controls == (filled(AttendAndExcite(), shapes),)
    said = [each.getMessage() for each in caplog.records if each.name == "t2ictl"]
    assert said == ["attend_and_excite takes normalize_over, refinement, step from docs/catalogue.md."]


@pytest.mark.parametrize(
    ("control", "inside", "moves"),
    [
        (AttendAndExcite.published(refinement=None), 25, 25),
        (AttendAndExcite(refinement=None, preset="none"), 26, 25),
        (ContrastiveAttention.published(), 30, 29),
        (ContrastiveAttention(preset="none"), 31, 30),
    ],
)
def test_published_windows_are_of_the_steps_asked_for(control: Any, inside: int, moves: int) -> None:
    """PNDM evaluates 51 times in 50 steps, and throws the second sample away; diffusers' own pipeline moves it."""
    pipe = sd()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    with t2ictl.controlled(pipe, [control]) as session:
        run(pipe, "a red cat and a blue dog", steps=50)
    steps = {entry.step for entry in session.trace}
    assert len(control.window.steps(50 if control.window.by == "steps" else 51)) == inside
    assert len(steps) == moves


def test_the_command_line_takes_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    presets._say_once.cache_clear()
    arguments = ["generate", "a red circle and a blue square", "-c", "attend_and_excite", "--steps", "2"]
    assert main([*arguments, "--preset", "published", "--out", "published.png"]) == 0
    assert "attend_and_excite takes" in (said := capsys.readouterr().err) and "from the published form" in said
    assert main([*arguments, "--out", "auto.png"]) == 0
    assert "from docs/catalogue.md" in capsys.readouterr().err
    found = {name: t2ictl.read_settings(tmp_path / f"{name}.png")["controls"][0] for name in ("published", "auto")}
    assert found["published"]["parity"] and not found["auto"]["parity"]
    assert main([*arguments, "--preset", "nonsense"]) == 2
    assert main(["generate", "a red circle", "--preset", "published", "--out", "none.png"]) == 2
    assert "Add --control" in capsys.readouterr().err
    assert main(["controls", "attend_and_excite"]) == 0
    shown = capsys.readouterr().out
    assert "--preset auto on shapes (docs/catalogue.md)" in shown and "--preset published" in shown
