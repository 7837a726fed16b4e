"""`generate --from`: what the file says, what options change, and what is said about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest

from t2ictl.families.loading import load
from t2ictl.generation import generate
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.settings.files import SCHEMA_VERSION, read_settings, write_json

PROMPT = "a red cat and a blue dog"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def batch(model: str, tmp_path: Path) -> Any:
    """Two images of one call, with a scheduler that is not the model's own."""
    pipe = load(model, device="cpu")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return generate(pipe, PROMPT, AttendAndExcite(refinement=None), images_per_prompt=2, steps=2, seed=7)


def test_the_second_image_of_a_batch_comes_alone(run: Run, model: str, batch: Any) -> None:
    path = batch.save("second.png", 1)
    status, out, err = run("generate", "--from", "second.png", "--model", model, "--device", "cpu", "--out", "a.png")
    assert (status, out.split()) == (0, ["a.png"]) and "change" not in err and "warning" not in err
    assert Path("a.png").read_bytes() == path.read_bytes()


def test_a_json_file_makes_all_images(run: Run, model: str, batch: Any) -> None:
    write_json("all.json", batch.settings)
    status, out, _ = run("generate", "--from", "all.json", "--model", model, "--compare", "--out", "a.png")
    assert status == 0 and out.split()[:4] == ["a.png", "a-1.png", "a.plain.png", "a-1.plain.png"]
    assert Path("a-1.png").read_bytes() == batch.save("b.png", 1).read_bytes()


def test_options_come_first_and_are_said_once(run: Run, model: str, batch: Any) -> None:
    batch.save("one.png")
    options = ("--seed", "99", "--steps", "3", "--size", "64x72", "--negative-prompt", "a bird")
    status, _, err = run("generate", "--from", "one.png", "--model", model, *options, "--out", "a.png")
    asked = read_settings("a.png")["request"]
    assert status == 0 and (asked["seed"], asked["steps"], asked["width"], asked["height"]) == (99, 3, 64, 72)
    assert asked["negative_prompt"] == "a bird" and asked["prompt"] == PROMPT
    said = [line for line in err.splitlines() if "options change" in line]
    assert len(said) == 1 and "seed 99 (file: 7)" in said[0] and "steps 3 (file: 2)" in said[0]


def test_an_option_at_its_default_comes_first_too(run: Run, model: str, batch: Any) -> None:
    batch.save("one.png")
    assert run("generate", "--from", "one.png", "--model", model, "--seed", "0", "--out", "a.png")[0] == 0
    assert read_settings("a.png")["request"]["seed"] == 0


def test_settings_change_the_controls_of_the_file(run: Run, model: str, batch: Any) -> None:
    batch.save("one.png")
    chosen = ("--set", "attend_and_excite.step.scale=3", "--model", model)
    status, _, err = run("generate", "--from", "one.png", *chosen, "--out", "a.png")
    made = read_settings("a.png")["controls"]
    assert status == 0 and made[0]["step"]["scale"] == 3 and made[0]["refinement"] is None and "--set" in err
    status, _, err = run("generate", "--from", "one.png", "--set", "box_diff.strength=1", "--model", model)
    assert status == 2 and "not used" in err


def test_other_controls_take_the_place_of_those_of_the_file(run: Run, model: str, batch: Any) -> None:
    batch.save("one.png")
    status, _, err = run("generate", "--from", "one.png", "-c", "attention_segregation", "--model", model)
    assert status == 0 and "other controls" in err
    assert [each["control"] for each in read_settings("out.png")["controls"]] == ["attention_segregation"]


def test_another_model_is_a_warning(run: Run, model: str, batch: Any, tmp_path: Path) -> None:
    batch.save("one.png")
    shutil.copytree(model, "other")
    status, _, err = run("generate", "--from", "one.png", "--model", "other", "--out", "a.png")
    said = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert status == 0 and len(said) == 1
    assert f"pipeline.model was {Path(model).name!r}, is 'other'" in said[0]


def test_a_model_that_was_not_named_is_asked_for(run: Run, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch.save("one.png")
    status, out, err = run("generate", "--from", "one.png", "--out", "a.png")
    assert status == 2 and "--model" in err and not out and not Path("a.png").exists()
    data = {"request": {"prompt": "a cat", "steps": 1}, "controls": [], "pipeline": {"model": "owner/name"}}
    write_json("hub.json", data)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", lambda *_, **__: pytest.fail("the hub was asked"))
    assert run("generate", "--from", "hub.json")[0] == 2


def test_images_and_a_prompt_beside_a_file_are_refused(run: Run, batch: Any) -> None:
    batch.save("one.png")
    assert run("generate", PROMPT, "--from", "one.png")[0] == 2
    write_json("missing.json", {**batch.settings, "arguments": {"image": "sha256:00"}})
    status, _, err = run("generate", "--from", "missing.json", "--model", "shapes")
    assert status == 2 and "image" in err


@pytest.mark.parametrize(
    "settings",
    [
        {"request": 3, "controls": []}, {"request": {"prompt": "a"}, "controls": [3]},
        {"request": {"prompt": "a", "seed": 10**400}, "controls": []},
        {"request": {"prompt": ["a", 3]}, "controls": []}, {"request": {"prompt": "a"}, "controls": [], "image": 4},
        {"request": {"prompt": "a", "steps": 5000}, "controls": []}, {"request": {"prompt": "\ud800"}, "controls": []},
        {"request": {"prompt": "a", "width": 65}, "controls": []}, {"controls": []}, {"request": {"prompt": "a"}},
    ],
)  # fmt: skip
def test_damaged_files_are_one_line(run: Run, model: str, settings: dict[str, Any]) -> None:
    Path("bad.json").write_text(json.dumps(settings))
    status, out, err = run("generate", "--from", "bad.json", "--model", model)
    lines = [line for line in err.splitlines() if line.startswith("t2ictl: ")]
    assert status == 2 and not out and len(lines) == 1 and not Path("out.png").exists(), err


@pytest.mark.usefixtures("stand_ins")
def test_an_embedded_model_is_found_again(run: Run, tmp_path: Path) -> None:
    made = ("generate", "a red circle", "--model", "shapes-dit", "--steps", "2", "--device", "cpu", "--out", "a.png")
    assert run(*made)[0] == 0
    assert run("generate", "--from", "a.png", "--device", "cpu", "--out", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert read_settings("b.png")["pipeline"]["model"] == "shapes-dit"


@pytest.mark.usefixtures("only_shapes")
def test_an_embedded_model_that_is_not_there_is_one_line(run: Run) -> None:
    settings = {"schema": SCHEMA_VERSION, "request": {"prompt": "a red circle"}, "controls": []}
    write_json("a.json", settings | {"pipeline": {"model": "shapes-dit"}})
    status, _, err = run("generate", "--from", "a.json", "--out", "b.png")
    assert status == 2 and "'shapes-dit' are not in this installation" in err and len(err.splitlines()) == 1
