"""Stories: named errors before anything is made, restored pipelines, and the files of the command."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import t2ictl
from t2ictl import Scene, Subject
from t2ictl.cli import main
from t2ictl.errors import BadSetting, ShapeMismatch, SpanNotFound, T2ictlError
from t2ictl.processors.isolation_reposition import IsolationReposition
from t2ictl.settings import read_settings
from tests.processors.story_cases import CAT, DOG, FAST, SCENES, make, pixels

OVERLAPPING = {"cat": (0, 0, 0.6, 1), "dog": (0.5, 0, 1, 1)}


@pytest.fixture
def pipe() -> Any:
    return make()


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subjects", "scenes", "kind"),
    [
        ([CAT], [Scene(prompt="a cat", subjects=("lion",))], BadSetting),
        (
            [CAT, DOG],
            [Scene(prompt="a cat and a dog", boxes=OVERLAPPING)],
            BadSetting,
        ),
        ([CAT], [Scene(prompt="a cat", boxes={"cat": (0, 0, 1.5, 1)})], BadSetting),
        ([CAT], [Scene(prompt="a cat", masks={"cat": np.ones((32, 32))})], ShapeMismatch),
        ([], [Scene(prompt="a cat")], BadSetting),
        ([CAT], [Scene(prompt="a bench")], BadSetting),
        ([Subject(name="cat", prompt="photo of a dog")], [Scene(prompt="a cat")], SpanNotFound),
    ],
)
def test_what_cannot_be_told_is_named_before_anything_is_made(
    subjects: list[Subject], scenes: list[Scene], kind: type[T2ictlError], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make()
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **kwargs: pytest.fail("the denoiser was called"))
    with pytest.raises(kind):
        t2ictl.story(pipe, subjects, scenes, **FAST)


def test_settings_are_checked(pipe: Any) -> None:
    with pytest.raises(BadSetting, match="batch"):
        t2ictl.story(pipe, [CAT], [Scene(prompt="a cat")], batch=1)
    with pytest.raises(BadSetting, match="stepz"):
        t2ictl.story(pipe, [CAT], [Scene(prompt="a cat")], stepz=1)
    with pytest.raises(BadSetting, match="of its own"):
        t2ictl.story(pipe, [CAT], [Scene(prompt="a cat")], control=IsolationReposition(subjects=(CAT,)))


def test_an_error_in_a_late_call_leaves_the_pipeline_as_it_was(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    processors, keys, count = pipe.unet.attn_processors, set(pipe.unet.__dict__), [0]
    real = type(pipe.scheduler).step

    @functools.wraps(real)
    @functools.wraps(real)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == 5:
            raise RuntimeError("power cut")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "step", step)
    with pytest.raises(RuntimeError, match="power cut"):
        t2ictl.story(pipe, [CAT, DOG], SCENES, batch=3, **FAST)
    assert set(pipe.unet.__dict__) == keys and all(
        pipe.unet.attn_processors[name] is each for name, each in processors.items()
    )


# -- what is written ------------------------------------------------------------------------------


def test_a_story_can_be_told_again_from_any_of_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told_once = tmp_path / "once"
    (tmp_path / "story.yaml").write_text(
        "subjects:\n- {name: circle, prompt: a red circle}\n- {name: star, prompt: a blue star}\n"
        "scenes:\n- prompt: a circle and a star\n- prompt: a large star\n"
        "control: {ref_dropout: 0.25}\nsteps: 2\nguidance_scale: 3\n"
    )
    assert main(["story", str(tmp_path / "story.yaml"), "--out", str(told_once)]) == 0
    printed = capsys.readouterr()
    names = ["sheet", "portrait-1", "portrait-2", "scene-1", "scene-2"]
    assert printed.out.split() == [*(str(told_once / f"{name}.png") for name in names), str(told_once / "story.json")]
    assert "4 generations (2 portraits, 2 scenes)" in printed.err
    settings = read_settings(told_once / "scene-2.png")
    assert settings["picture"] == "scene-2" and settings["story"]["control"]["ref_dropout"] == 0.25
    assert {"pipeline", "versions", "parser", "controls"} <= settings.keys()
    assert json.loads((told_once / "story.json").read_text())["generations"] == {"portraits": 2, "scenes": 2}
    for number, source in enumerate(("scene-1.png", "sheet.png", "story.json")):
        again = tmp_path / str(number)
        assert main(["story", str(told_once / source), "--out", str(again), "--json"]) == 0
        for name in names:
            first, second = (pixels([Image.open(folder / f"{name}.png")]) for folder in (told_once, again))
            assert np.array_equal(first, second)
    summary = json.loads(capsys.readouterr().out.rpartition("\n}\n{")[2].join(["{", ""]))
    assert summary["generations"] == {"portraits": 2, "scenes": 2} and len(summary["files"]) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes: [{prompt: a star, subjects: [ring]}]", "which the story has not"),
        ("scenes: [{prompt: a star and a ring, boxes: {star: [0, 0, 2, 1]}}]", "The box is"),
        ("scenes: [{prompt: a ring}]", "no subject of the story"),
        ("control: {reposition: sideways}\nscenes: [{prompt: a star and a ring}]", "reposition"),
        ("scenes: [{prompt: a star and a ring}]\nfoo: 3", "foo"),
    ],
)
def test_bad_files_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "story.yaml").write_text("subjects: [{name: star, prompt: a red star}]\n" + text)
    assert main(["story", str(tmp_path / "story.yaml"), "--out", str(tmp_path / "told")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said
    assert not (tmp_path / "told").exists()


def test_check_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "subjects: [{name: star, prompt: a red star}]\nscenes: [{prompt: a large star}]"
    (tmp_path / "story.yaml").write_text(text)
    assert main(["story", str(tmp_path / "story.yaml"), "--out", str(tmp_path / "told"), "--check"]) == 0
    assert capsys.readouterr().out == "scene 1: star\n" and not (tmp_path / "told").exists()
