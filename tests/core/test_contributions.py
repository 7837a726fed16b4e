"""Verbs and commands that methods and other packages contribute."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import t2ictl
from t2ictl.cli import app as cli
from t2ictl.cli import contributions


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points of packages that are not there."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(contributions, "entry_points", lambda group: [each for each in points if each.group == group])
    contributions.contributed.cache_clear()
    commands = list(cli.app.registered_commands)
    yield points
    cli.app.registered_commands[:] = commands
    contributions.contributed.cache_clear()


def test_our_own_verb_is_there_and_listed() -> None:
    assert callable(t2ictl.story) and "story" in dir(t2ictl)
    with pytest.raises(AttributeError, match="no attribute 'storey'"):
        t2ictl.storey  # noqa: B018


def test_a_verb_and_a_command_of_another_package(
    installed: list[EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    installed += [
        EntryPoint("upper", "os.path:basename", "t2ictl.exports"),
        EntryPoint("where", "tests.core.test_contributions:where", "t2ictl.commands"),
    ]
    verb: Any = t2ictl.upper
    assert verb("a/b") == "b" and "upper" in dir(t2ictl)
    for _ in range(2):  # added once, whatever the number of calls
        assert cli.main(["where", "--of", "cat"]) == 0
    assert capsys.readouterr().out == "cat\ncat\n"


def where(of: str = "") -> None:
    print(of)


def test_another_package_cannot_take_our_names(installed: list[EntryPoint]) -> None:
    installed += [
        EntryPoint("story", "os.path:basename", "t2ictl.exports"),
        EntryPoint("generate", "os.path:basename", "t2ictl.commands"),
    ]
    assert t2ictl.story.__module__ == "t2ictl.processors.isolation_reposition.story.story"
    cli.main(["--version"])
    generate = [each for each in cli.app.registered_commands if getattr(each.callback, "__name__", "") == "generate"]
    assert len(generate) == 1 and generate[0].callback is cli.generate


def test_a_broken_command_is_said_and_takes_nothing_down(
    installed: list[EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    installed.append(EntryPoint("broken", "no.such.module:work", "t2ictl.commands"))
    assert cli.main(["--version"]) == 0
    said = capsys.readouterr()
    assert "'broken' (no.such.module:work) cannot be loaded" in said.err and t2ictl.__version__ in said.out
