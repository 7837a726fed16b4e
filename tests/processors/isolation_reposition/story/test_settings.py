"""Stories in files: YAML and JSON, files beside them, and what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ictl.errors import BadSetting
from t2ictl.processors.isolation_reposition.story.settings import StorySettings, read_story
from t2ictl.settings.files import write_json, write_png

STORY = """
subjects:
  - {name: circle, prompt: a red circle}
  - {name: star, prompt: a star, image: star.png, box: [0.1, 0.1, 0.9, 0.9]}
scenes:
  - prompt: a circle and a star
    boxes: {circle: [0, 0, 0.5, 1]}
    masks: {star: masks/star.png}
  - {prompt: a star, seed: 4}
control: {reposition: latent, window: {stop: 0.6}}
steps: 5
places: rehearsal
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "masks").mkdir()
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, 4:] = 255
    Image.fromarray(half).save(tmp_path / "masks" / "star.png")
    Image.new("RGB", (8, 8), "yellow").save(tmp_path / "star.png")
    (tmp_path / "story.yaml").write_text(STORY)
    return tmp_path / "story.yaml"


def test_a_yaml_file_and_the_files_beside_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent.parent)
    wanted, control = read_story(file)
    assert [subject.name for subject in wanted.subjects] == ["circle", "star"]
    assert wanted.subjects[1].image == str(file.parent / "star.png")
    assert wanted.scenes[0].masks["star"] == ((8, 8), ((0, 0, 0, 0, 1, 1, 1, 1),) * 8)
    assert (wanted.scenes[1].seed, wanted.steps, wanted.places) == (4, 5, "rehearsal")
    assert control == {"reposition": "latent", "window": {"stop": 0.6}}


def test_settings_survive_their_json_form_in_both_kinds_of_file(file: Path) -> None:
    wanted, control = read_story(file)
    data = {"story": {**wanted.to_dict(), "control": control}}
    for written in (
        write_json(file.parent / "story.json", data),
        write_png(Image.new("RGB", (8, 8)), file.parent / "scene.png", data),
    ):
        assert read_story(written) == (wanted, control)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subjects: [", "is not YAML"),
        ("just words", "is no story"),
        ("subjects: []\nsence: 3", "unknown key 'sence'"),
        ("control: 3", "control: 3 is no mapping"),
        ("steps: none", "steps cannot be 'none'"),
        ("subjects: [{name: cat}]", "not clear"),
        ("subjects: [{name: cat, prompt: a cat, imgae: x}]", "imgae"),
        ("scenes: [{prompt: a cat, boxes: {cat: [0, 1]}}]", "boxes"),
        ("scenes: [a cat]", "scenes"),
        ("subjects: [{name: cat, prompt: a cat, image: nowhere.png}]", "no image"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(text)
    with pytest.raises(BadSetting, match=message) as error:
        read_story(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="cannot be read"):
        read_story(tmp_path / "story.yaml")


def test_the_whole_story_is_the_default_of_nothing() -> None:
    assert StorySettings().scenes == () and StorySettings().request(["a cat"]).prompt == ("a cat",)
