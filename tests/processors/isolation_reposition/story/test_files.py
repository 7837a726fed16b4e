"""Stories: named errors before anything is made, restored pipelines, and the files of the command."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

import t2ictl
from t2ictl import Scene, Subject
from t2ictl.cli.app import main
from t2ictl.errors import BadSetting, ShapeMismatch, SpanNotFound, T2ictlError
from t2ictl.processors.isolation_reposition.control import IsolationReposition
from t2ictl.processors.isolation_reposition.story.result import StoryImage
from t2ictl.settings.files import read_settings, write_png
from tests.processors.isolation_reposition.story.story_cases import CAT, DOG, FAST, SCENES, make, pixels

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
    assert settings["image"] == "scene-2" and settings["story"]["control"]["ref_dropout"] == 0.25
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
    assert main(["story", str(tmp_path / "story.yaml"), "--out", str(tmp_path / "subject_text")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said
    assert not (tmp_path / "subject_text").exists()


def test_check_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "subjects: [{name: star, prompt: a red star}]\nscenes: [{prompt: a large star}]"
    (tmp_path / "story.yaml").write_text(text)
    assert main(["story", str(tmp_path / "story.yaml"), "--out", str(tmp_path / "subject_text"), "--check"]) == 0
    assert capsys.readouterr().out == "scene 1: star\n" and not (tmp_path / "subject_text").exists()


# -- going on -------------------------------------------------------------------------------------


class PowerCut(Exception):
    """Comes between two calls."""


def tell(pipe: Any, folder: Path, calls: int | None = None, **settings: Any) -> t2ictl.Story:
    """A story whose images are written as they come, and that goes on with those that are there."""
    done, real = [0], type(pipe).__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if done[0] == calls:
            raise PowerCut
        done[0] += 1
        return real(self, *args, **kwargs)

    finished = [StoryImage.read(path) for path in sorted(folder.glob("*-*.png"))]
    with patch.object(type(pipe), "__call__", counted):
        return t2ictl.story(
            pipe,
            [CAT, DOG],
            SCENES,
            on_image=lambda image: image.save(folder),
            finished=finished,
            **{**FAST, "batch": 3, **settings},
        )


@pytest.mark.parametrize(
    ("settings", "calls", "left"),
    [
        ({"control": IsolationReposition()}, 1, {"portrait-1", "portrait-2", "scene-1"}),
        ({"control": IsolationReposition()}, 0, set()),
        ({"control": IsolationReposition(), "batch": 2}, 2, {"portrait-1", "portrait-2", "scene-1", "scene-2"}),
        ({"control": IsolationReposition(), "places": "rehearsal"}, 2, set()),
        ({"control": IsolationReposition(reposition="latent")}, 4, {"portrait-1", "portrait-2", "scene-1"}),
    ],
    ids=["a call", "none", "two calls", "rehearsals", "latent"],
)
def test_after_a_crash_only_what_is_missing_is_made_and_all_is_as_if_nothing_had_been(
    settings: dict[str, Any], calls: int, left: set[str], pipe: Any, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = tell(pipe, tmp_path / "whole", **settings)
    with pytest.raises(PowerCut):
        tell(pipe, tmp_path / "cut", calls, **settings)
    assert {path.stem for path in (tmp_path / "cut").iterdir()} == left
    told = tell(pipe, tmp_path / "cut", **settings)
    assert np.abs(pixels(told.scenes) - pixels(whole.scenes)).max() <= 1
    assert told.places == whole.places and told.settings == whole.settings
    assert told.generations["scenes"] == 4 - sum(name.startswith("scene") for name in left)
    again = tell(pipe, tmp_path / "cut", 0, **settings)  # nothing is left to do
    assert again.generations == {} and again.cost.forwards == 0
    assert np.array_equal(pixels(again.scenes), pixels(told.scenes)) and list(again.portraits) == ["cat", "dog"]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 2}, {"control": IsolationReposition(cross=0.5)}, {"places": "rehearsal"}]
)
def test_images_of_another_story_are_made_anew(change: dict[str, Any], pipe: Any, tmp_path: Path) -> None:
    tell(pipe, tmp_path)
    told = tell(pipe, tmp_path, **change)
    assert told.generations["scenes"] == 4 and told.generations["portraits"] == 2


def test_so_are_those_of_another_scheduler(pipe: Any, tmp_path: Path) -> None:
    tell(pipe, tmp_path)
    assert tell(make(scheduler="euler"), tmp_path).generations["scenes"] == 4


def test_what_is_no_image_of_a_story_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "scene-1.png")
    with pytest.raises(BadSetting):
        StoryImage.read(tmp_path / "scene-1.png")
    write_png(Image.new("RGB", (8, 8)), tmp_path / "scene-2.png", {"request": {"prompt": "a cat"}})
    with pytest.raises(BadSetting, match="no image of a story"):
        StoryImage.read(tmp_path / "scene-2.png")


def test_the_command_goes_on_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = "scenes: [{prompt: a large star}, {prompt: a small star}]\nsteps: 2"
    text = f"subjects: [{{name: star, prompt: a red star}}]\n{scenes}"
    (tmp_path / "story.yaml").write_text(text)
    out = tmp_path / "subject_text"
    arguments = ["story", str(tmp_path / "story.yaml"), "--out", str(out)]
    assert main(arguments) == 0
    before = (out / "scene-2.png").read_bytes()
    (out / "scene-1.png").unlink()
    (out / "holiday-1.png").write_bytes(b"not ours")  # stays, and disturbs nobody
    capsys.readouterr()
    assert main(arguments) == 0
    assert "2 generations (1 portraits, 1 scenes)" in capsys.readouterr().err
    assert (out / "scene-1.png").exists() and (out / "scene-2.png").read_bytes() == before
    assert main(arguments) == 0
    assert "0 generations" in capsys.readouterr().err and (out / "holiday-1.png").read_bytes() == b"not ours"
