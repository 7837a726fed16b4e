"""Verbs and commands that methods and other packages contribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import t2ictl
from t2ictl.cli import app as cli
from t2ictl.cli.contributions import contributed
from tests.controls.package_cases import install


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a package with entry points, which are looked for anew; afterwards none of it is left."""

    def give(groups: dict[str, dict[str, str]]) -> None:
        install(tmp_path, monkeypatch, groups)
        contributed.cache_clear()

    commands = list(cli.app.registered_commands)
    yield give
    cli.app.registered_commands[:] = commands
    monkeypatch.undo()
    contributed.cache_clear()


def test_our_own_verb_is_there_and_listed() -> None:
    assert callable(t2ictl.story) and "story" in dir(t2ictl)
    with pytest.raises(AttributeError, match="no attribute 'storey'"):
        t2ictl.storey  # noqa: B018


def test_a_verb_and_a_command_of_another_package(
    installed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    where = {"where": "tests.cli.test_contributions:where"}
    installed({"t2ictl.exports": {"upper": "os.path:basename"}, "t2ictl.commands": where})
    verb: Any = t2ictl.upper
    assert verb("a/b") == "b" and "upper" in dir(t2ictl)
    for _ in range(2):  # added once, whatever the number of calls
        assert cli.main(["where", "--of", "cat"]) == 0
    assert capsys.readouterr().out == "cat\ncat\n"


def where(of: str = "") -> None:
    print(of)


def test_another_package_cannot_take_our_names(installed: Callable[..., None]) -> None:
    taken = "os.path:basename"
    installed({"t2ictl.exports": {"story": taken}, "t2ictl.commands": {"generate": taken}})
    assert t2ictl.story.__module__ == "t2ictl.processors.isolation_reposition.story.story"
    cli.main(["--version"])
    generate = [each for each in cli.app.registered_commands if getattr(each.callback, "__name__", "") == "generate"]
    assert len(generate) == 1 and generate[0].callback is cli.generate


def test_a_broken_command_is_said_and_takes_nothing_down(
    installed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    installed({"t2ictl.commands": {"broken": "no.such.module:work"}})
    assert cli.main(["--version"]) == 0
    said = capsys.readouterr()
    assert "'broken' (no.such.module:work) cannot be loaded" in said.err and t2ictl.__version__ in said.out
