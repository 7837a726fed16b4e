"""Runs of stories: resumed, refused, the same noise for all arms, and tables whose numbers are worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from t2ictl.benchmarks.studies.stories.arms import ARMS, StoryArm, StoryImages, arm_settings, arms_of
from t2ictl.benchmarks.studies.stories.measures import Appearance, SceneReading, StoryReading
from t2ictl.benchmarks.studies.stories.run import main, read_story, tell
from t2ictl.benchmarks.studies.stories.store import StoryStore
from t2ictl.benchmarks.studies.stories.suite import Story, stories
from t2ictl.benchmarks.studies.stories.table import COLUMNS, difference_table, share_table, show
from t2ictl.errors import BadSetting
from t2ictl.processors.isolation_reposition.control import IsolationReposition
from t2ictl.shapes import Look, Placed, Scene, expect, model_path, render
from tests.repository.sources import ROOT

COLORS = {"circle": "red", "square": "green", "triangle": "blue", "star": "yellow", "cross": "purple", "ring": "cyan"}
PLACES = ((14, 14), (48, 48), (48, 14))


class DrawingArm:
    """Draws what the prompts say, without a model; ``worse`` gives scenes the colors of the next subject."""

    def __init__(self, worse: bool = False, **settings: Any) -> None:
        self.worse, self.settings, self.calls = worse, settings, 0

    def __call__(self, pipe: Any, story: Story, steps: int, guidance: float) -> StoryImages:
        self.calls += 1
        names = list(story.subjects)
        wrong = {name: COLORS[names[(place + 1) % len(names)]] for place, name in enumerate(names)}
        return StoryImages(
            portraits=tuple(self._draw(prompt, COLORS) for prompt in story.portraits),
            scenes=tuple(self._draw(prompt, wrong if self.worse else COLORS) for prompt in story.scenes),
        )

    def _draw(self, prompt: str, colors: dict[str, str]) -> Image.Image:
        shapes = [wanted.shape for wanted in expect(prompt).objects]
        objects = [
            Placed(look=Look(shape=shape, color=colors[shape]), x=x, y=y, radius=9.8)
            for shape, (x, y) in zip(shapes, PLACES, strict=False)
        ]
        made = render(Scene(objects=tuple(objects)))
        return made if isinstance(made, Image.Image) else Image.fromarray(np.asarray(made))


def store(folder: Path, **settings: Any) -> StoryStore:
    return StoryStore(folder, {"steps": 1, **settings})


@pytest.fixture
def told() -> tuple[Story, ...]:
    return stories("tune", 2, 3)


def test_a_story_that_is_there_is_not_told_again(tmp_path: Path, told: tuple[Story, ...]) -> None:
    good, bad = DrawingArm(), DrawingArm(worse=True)
    assert tell(None, told[:2], {"good": good}, store(tmp_path), steps=1, guidance=3.0) == 2
    assert tell(None, told, {"good": good, "bad": bad}, store(tmp_path), steps=1, guidance=3.0) == 4
    assert (good.calls, bad.calls) == (3, 3)
    rows = store(tmp_path).rows()
    assert sorted((row["story"], row["arm"]) for row in rows) == sorted(
        (each.key, arm) for each in told for arm in ("good", "bad")
    )


def test_a_torn_line_is_cut_off_and_its_story_told_again(tmp_path: Path, told: tuple[Story, ...]) -> None:
    arm = DrawingArm()
    tell(None, told, {"good": arm}, store(tmp_path), steps=1, guidance=3.0)
    rows, path = store(tmp_path).rows(), tmp_path / "stories.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(StoryStore(tmp_path, None).rows()) == 2  # reading alone changes nothing
    tell(None, told, {"good": arm}, store(tmp_path), steps=1, guidance=3.0)
    again = store(tmp_path).rows()
    assert [row["reading"] for row in again] == [row["reading"] for row in rows]


def test_other_settings_are_refused(tmp_path: Path, told: tuple[Story, ...]) -> None:
    tell(None, told, {"good": DrawingArm(a=1)}, store(tmp_path), steps=1, guidance=3.0)
    with pytest.raises(BadSetting, match="steps differ"):
        store(tmp_path, steps=2)
    with pytest.raises(BadSetting, match="had other settings"):
        tell(None, told, {"good": DrawingArm(a=2)}, store(tmp_path), steps=1, guidance=3.0)
    with pytest.raises(BadSetting, match="no story run"):
        StoryStore(tmp_path / "nowhere", None)


def test_contact_sheets_of_the_first_stories(tmp_path: Path, told: tuple[Story, ...]) -> None:
    tell(None, told, {"good": DrawingArm(), "bad": DrawingArm()}, store(tmp_path), steps=1, guidance=3.0, images=2)
    sheets = sorted(tmp_path.glob("*.png"))
    assert [sheet.stem for sheet in sheets] == [each.key for each in told[:2]]
    with Image.open(sheets[0]) as sheet:
        assert sheet.size[0] > 6 * 128 and sheet.size[1] > 2 * 128


def test_tables_of_drawn_stories(tmp_path: Path, told: tuple[Story, ...]) -> None:
    arms = {"plain": DrawingArm(worse=True), "resample": DrawingArm()}
    tell(None, (*told, *stories("tune", 3, 2)), arms, store(tmp_path), steps=1, guidance=3.0)
    kept = StoryStore(tmp_path, None)
    text = show(kept.header["settings"], kept.rows())
    cells = {tuple(line.split(" | ")[:2]): line.split(" | ")[2:] for line in text.splitlines() if line.startswith("| ")}
    plain, resample = cells["| 2", "plain"], cells["| 2", "resample"]
    assert plain[:2] == resample[:2] == ["3", "24"]  # stories; subjects in scenes
    column = 2 + COLUMNS.index("swap")
    assert plain[2].startswith("0.0 [") and resample[2].startswith("100.0 [")
    assert plain[column].startswith("100.0 [") and resample[column].startswith("0.0 [")
    difference = cells["| 2", "resample - plain"]
    assert difference[0] == "3" and difference[1].startswith("+100.0 [")
    assert ("| 3", "resample - plain") in cells and ("| 2", "plain - resample") not in cells
    assert "steps 1" in text and "2 subjects, plain: " in text


def row(arm: str, number: int, same: int) -> dict[str, Any]:
    """A story of which so many of four scenes show the one subject as its portrait does."""
    red, blue = (Appearance(color=color, texture="plain", size="small") for color in ("red", "blue"))
    scenes = [SceneReading(subjects=(red if place < same else blue,), failure=None, extra=0) for place in range(4)]
    reading = StoryReading(portraits=(red,), scenes=tuple(scenes))
    return {"story": f"s{number}", "arm": arm, "seconds": 1.0, "reading": json.loads(json.dumps(reading.to_dict()))}


def test_a_story_is_one_unit() -> None:
    """Shares of 12 stories are 0 or 1: 48 scenes are worth 12, so the interval is that of 6 of 12 and no narrower."""
    rows = [row("plain", number, 4 * (number % 2)) for number in range(12)]
    cell = share_table(rows).splitlines()[2].split(" | ")[4]
    estimate, low, high = (float(part) for part in cell.replace("[", "").replace("]", "").replace(",", "").split())
    assert estimate == 50 and high - low > 50  # Wilson's for 6 of 12 is 25.4 to 74.6, for 24 of 48 it is 36.4 to 63.6


def test_differences_are_paired_by_story() -> None:
    """Stories that both have, whatever their order: 1, 2, 3 of 4 scenes more give 50 on average."""
    rows = [row("plain", number, 1) for number in range(3)] + [row("resample", 9, 0)]
    rows += [row("resample", number, 2 + number) for number in (2, 1, 0)]
    line = difference_table(rows, ["plain"]).splitlines()[2].split(" | ")
    assert line[1:3] == ["resample - plain", "3"] and line[3].startswith("+50.0 [")


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = StableDiffusionPipeline.from_pretrained(str(model_path()))
    made.set_progress_bar_config(disable=True)
    return made


def test_all_arms_begin_with_the_same_noise_and_portraits(pipe: Any) -> None:
    story = stories("tune", 2, 1, "subject_text")[0]
    made = {label: arm(pipe, story, 2, 3.0) for label, arm in ARMS.items()}
    plain = pipe(
        list(story.prompts),
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in story.seeds],
    ).images
    for image, own in zip(plain, (*made["plain"].portraits, *made["plain"].scenes), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(own))
    for label in set(made) - {"gather"}:  # nothing in a scene reaches a portrait
        for own, other in zip(made[label].portraits, made["plain"].portraits, strict=True):
            assert np.abs(np.asarray(own, int) - np.asarray(other, int)).max() <= 1
    scenes = {label: np.stack([np.asarray(image, int) for image in each.scenes]) for label, each in made.items()}
    for label in scenes:
        assert label == "plain" or np.abs(scenes[label] - scenes["plain"]).max() > 1, label
    assert len(read_story(story, made["plain"]).scenes) == 4
    assert arm_settings(ARMS["resample"])["control"] == "isolation_reposition"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--stories", "1", "--subjects", "2", "--arms", "plain,gather", "--steps", "2"]
    assert main([*arguments, "--images", "1"]) == 0
    assert (tmp_path / "tune-2-0000.png").exists()
    first = capsys.readouterr().out
    assert "tune-2-0000 gather" in first and "gather - plain" in first
    assert main(arguments) == 0
    assert "tune-2-0000 gather" not in capsys.readouterr().out  # nothing made again
    assert main(["--out", str(tmp_path), "--table"]) == 0
    assert "| 2 | plain | 1 | " in capsys.readouterr().out
    with pytest.raises(BadSetting, match="settings"):
        main([*arguments, "--guidance", "4"])
    with pytest.raises(BadSetting, match="no arm"):
        main(["--out", str(tmp_path), "--arms", "nobody"])


def test_arms_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "arms.yaml").write_text("apart: {control: {isolation: 0.5}, options: {places: rehearsal}}\nbare: {}\n")
    found = arms_of(tmp_path / "arms.yaml")
    assert arm_settings(found["apart"]) == {
        "control": "isolation_reposition",
        "isolation": 0.5,
        "places": "rehearsal",
    }
    arguments = ["--out", str(tmp_path / "run"), "--stories", "1", "--subjects", "2", "--steps", "2", "--arms", "plain"]
    assert main([*arguments, "--arms-file", str(tmp_path / "arms.yaml")]) == 0
    assert "apart - plain" in capsys.readouterr().out
    for text, message in (
        ("plain: {}", "there already"),
        ("- a", "holds no arms"),
        ("a: {isolation: 1}", "holds no arms"),
    ):
        (tmp_path / "arms.yaml").write_text(text)
        with pytest.raises(BadSetting, match=message):
            arms_of(tmp_path / "arms.yaml")


def test_the_arms_of_the_search_are_settings_of_the_method() -> None:
    for arm in arms_of(ROOT / "docs" / "evidence" / "search_stories.yaml").values():
        assert isinstance(arm, StoryArm) and IsolationReposition(**arm.fields)
