"""The commands as a user types them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import rich
import typer
from rich.console import Console
from typer.testing import CliRunner

from t2ictl.benchmarks.results.compare import compare_command, power_command
from t2ictl.errors import BadSetting
from tests.benchmarks.run_folders import drawn_rows, write_run

app = typer.Typer()
app.command("compare")(compare_command)
app.command("power")(power_command)


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", drawn_rows())


def test_compare_prints_tables_and_writes_files(folder: Path, tmp_path: Path) -> None:
    markdown, csv = tmp_path / "table.md", tmp_path / "table.csv"
    options = ("--against", "plain", "--against", "random", "--resamples", 999, "--markdown", markdown, "--csv", csv)
    text = _run("compare", folder, *options)
    assert "Differences from plain in points" in text and "Differences from its random arm in points" in text
    assert markdown.read_text(encoding="utf-8").count("### ") == 4
    assert csv.read_text(encoding="utf-8").startswith("table,arm,category,outcome")
    assert _run("compare", folder, *options) == text


def test_compare_prints_json_of_the_outcomes_asked_for(folder: Path) -> None:
    found = json.loads(_run("compare", folder, "--json", "--outcomes", "is_strict", "--resamples", 999))
    assert found["outcomes"] == ["is_strict"] and found["header"]["tests"] == 9
    assert json.loads(_run("compare", folder, "--json", "--outcomes", "is_strict,has_all"))["header"]["tests"] == 18


def test_tables_fold_to_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(rich, "get_console", lambda: Console(file=output, force_terminal=True, width=100))
    _run("compare", folder, "--resamples", 999)
    assert "segregation" in output.getvalue()
    assert "INCOMPLETE" not in output.getvalue()


def test_a_file_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="cannot be written"):
        _run("compare", folder, "--resamples", 999, "--markdown", tmp_path / "nowhere" / "table.md")


def test_power_from_assumptions() -> None:
    text = _run("power", "--prompts", 400, "--seeds", 4, "--share", 0.5, "--sd", 0.3)
    assert "3.54" in text and "level 5 % / 1" in text
    rows = json.loads(_run("power", "--share", 0.5, "--sd", 0.3, "--json"))["rows"]
    assert rows[0]["half_width"] == pytest.approx(0.0354, abs=1e-4)


def test_power_from_a_pilot(folder: Path) -> None:
    text = _run("power", "--pilot", folder, "--prompts", 200, "--seeds", 8)
    assert "difference from plain" in text and "spread from the pilot" in text
