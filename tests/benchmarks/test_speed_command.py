"""``t2ictl bench speed`` and ``t2ictl bench study``: which measurements and options there are, and what is refused."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import typing
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from t2ictl.benchmarks import study
from t2ictl.benchmarks.speed import command
from t2ictl.benchmarks.speed.pairs import print_ratios
from t2ictl.cli.app import main
from tests.repository.sources import ROOT

FOLDER = ROOT / "benchmarks" / "speed"
OPTIONS = [name for name in inspect.signature(command.speed_command).parameters if name not in ("name", "threads")]


def measurement(name: str) -> Any:
    return importlib.import_module(f"t2ictl.benchmarks.speed.{name}")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options that the measurement ``published`` was run with, which measures nothing here."""
    found: list[dict[str, Any]] = []

    def run(
        side: int = 64,
        pairs: int = 3,
        operations: bool = False,
        updates: tuple[int, ...] = (),
        device: str | None = None,
    ) -> None:
        given = {"side": side, "pairs": pairs, "operations": operations, "updates": updates, "device": device}
        found.append(given | {"threads": torch.get_num_threads()})

    monkeypatch.setitem(sys.modules, "t2ictl.benchmarks.speed.published", SimpleNamespace(run=run))  # type: ignore[arg-type]
    return found


def test_every_measurement_of_the_folder_has_its_name() -> None:
    files = [path.stem for path in FOLDER.glob("*.py") if re.search(r"^def run\(", path.read_text(), re.MULTILINE)]
    assert sorted(files) == sorted(command.MEASUREMENTS)


@pytest.mark.parametrize("name", command.MEASUREMENTS)
def test_every_option_of_a_measurement_can_be_given_and_has_a_default(name: str) -> None:
    parameters = inspect.signature(measurement(name).run).parameters
    assert set(parameters) <= set(OPTIONS)
    assert all(each.default is not inspect.Parameter.empty for each in parameters.values())


@pytest.mark.parametrize("option", OPTIONS)
def test_the_help_of_an_option_names_the_measurements_that_have_it(option: str) -> None:
    hint = typing.get_type_hints(command.speed_command, include_extras=True)[option]
    named = hint.__metadata__[0].help.rpartition("(")[2].partition(")")[0].split(", ")
    known = {name: inspect.signature(measurement(name).run).parameters for name in sorted(command.MEASUREMENTS)}
    assert named == [name for name, parameters in known.items() if option in parameters]


def test_options_reach_the_measurement(asked: list[dict[str, Any]]) -> None:
    before = torch.get_num_threads()
    options = ["--side", "32", "--pairs", "0", "--updates", "25, 13,5", "--operations", "--device", "cpu"]
    assert main(["bench", "speed", "published", *options, "--threads", "3"]) == 0
    assert main(["bench", "speed", "published"]) == 0
    given = {"side": 32, "pairs": 0, "operations": True, "updates": (25, 13, 5), "device": "cpu", "threads": 3}
    defaults = {"side": 64, "pairs": 3, "operations": False, "updates": (), "device": None, "threads": before}
    assert asked == [given, defaults] and torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "There is no measurement 'nothing'. Measurements: update, "),
        (["published", "--seeds", "2"], "has no option --seeds. It has --side, --pairs, "),
        (["published", "--updates", "25 13"], "--updates cannot be '25 13'. Give whole numbers"),
        (["published", "--updates", "0"], "--updates cannot be '0'"),
    ],
)
def test_what_there_is_not_is_one_line_and_status_2(
    words: list[str], message: str, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "speed", *words]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and len(err.splitlines()) == 1 and asked == []


def test_help_lists_all_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", "--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert set(command.MEASUREMENTS) <= {line[0] for line in lines}
    assert main(["bench", "study", "--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert set(study.STUDIES) <= {line[1] for line in lines if len(line) > 1}


@pytest.mark.parametrize("name", study.STUDIES)
def test_a_study_reads_its_own_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "study", name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: t2ictl bench study {name} ")
    assert main(["bench", "study", name, "--nothing"]) == 2


def test_a_study_of_a_wheel_asks_for_a_checkout_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "t2ictl.benchmarks.studies", None)  # type: ignore[arg-type]
    assert main(["bench", "study", "composition"]) == 2
    err = capsys.readouterr().err.strip()
    assert "not part of the wheel" in err and "checkout" in err and len(err.splitlines()) == 1


def test_commands_of_the_documentation_exist() -> None:
    """Every ``t2ictl bench speed NAME`` and ``t2ictl bench study NAME`` that a page or docstring names."""
    files = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    files += [path for name in ("benchmarks", "app") for path in (ROOT / name).glob("**/*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = {kind: set(re.findall(rf"t2ictl bench {kind} ([a-z][a-z-]*)", text)) for kind in ("speed", "study")}
    assert named["speed"] == set(command.MEASUREMENTS) and named["study"] == set(study.STUDIES)


def test_ratios_are_printed_with_medians_and_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    print_ratios("an update", {"ours": [0.5, 0.25, 1.0]}, base="theirs")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| time, an update | x theirs | 95 % interval | pairs |"
    assert lines[3] == "| ours | 0.500 | [0.250, 1.000] | 3 |"
