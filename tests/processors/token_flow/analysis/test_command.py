"""``t2ictl flow``: its files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2ictl.cli.app import main
from t2ictl.processors.token_flow.analysis.files import items_of
from t2ictl.processors.token_flow.items import Item


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


QUICK = "--model shapes --device cpu --steps 2 --seeds 2 --confirm 0 --guidance-scale 3".split()


def test_command_writes_report_and_twin_and_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["flow", "a red circle and a blue square", "--items", "circle,square", *QUICK, "--out", "out"]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["out/report.html", "out/report.json"] and Path("out/report.html").is_file()
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reused"] > 0 and printed["settings"]["judge"] == "shapes"
    twin = json.loads(Path("out/report.json").read_text())
    assert twin["scores"] == printed["scores"] and twin["settings"]["request"]["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--items", "heart"), "heart"),
        (("--items", "circle", "--sense", "circle=x"), "ITEM:OTHER=SEEN"),
        (("--items", "circle", "--swap", "square=star"), "is of no item"),
        (("--judge", "clip:nowhere"), "cannot be loaded"),
        (("--judge", "shapes:x"), "cannot be opened"),
        (("--operator", "guess"), "clean_pad"),
        (("--size", "big"), "WIDTHxHEIGHT"),
        (("--out", "nowhere/out"), "does not exist"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], match: str
) -> None:
    assert main(["flow", "a red circle and a blue square", *QUICK, *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t2ictl:")]
    assert len(error) == 1 and match in error[0]
    assert not Path("flow/report.html").exists()


def test_items_of_the_command_line() -> None:
    found = items_of("bat, ball", ["bat:ball=baseball bat"], ["ball=book"])
    assert found == (Item(words="bat", senses={"ball": "baseball bat"}), Item(words="ball", swap="book"))
    assert items_of("", [], []) == ()
