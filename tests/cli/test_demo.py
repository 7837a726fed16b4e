"""The demo: files that one can open, and a sentence that says what the judge saw in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from t2ictl.cli import demo
from t2ictl.settings.files import read_settings
from t2ictl.shapes import judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "files"
    assert demo.main(["--out", str(out)]) == 0
    return out


def test_every_file_opens(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "compare.png",
        "words.png",
        "plain.png",
        "controlled.png",
        "settings.json",
    }
    assert Image.open(folder / "compare.png").width > 2 * Image.open(folder / "plain.png").width
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["request"]["prompt"] == demo.PROMPT and settings["controls"]
    assert read_settings(folder / "plain.png")["controls"] == []


def test_the_demo_shows_an_error_and_its_correction(folder: Path) -> None:
    plain, controlled = (judge(Image.open(folder / name), demo.PROMPT) for name in ("plain.png", "controlled.png"))
    assert plain.failure not in (None, "malformed")
    assert controlled.is_strict


def test_the_sentence_is_the_judges(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = Image.open(folder / "plain.png")
    verdict = judge(image, demo.PROMPT)
    said = demo.seen(image, demo.PROMPT)
    assert said.startswith(str(verdict.failure or "right"))
    assert all(found.color in said and found.shape in said for found in verdict.found if found.color and found.shape)
    assert demo.seen(Image.new("RGB", (64, 64), "#eeeeee"), demo.PROMPT) == "missing (shows: nothing)"
