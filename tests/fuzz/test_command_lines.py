"""No command line ends in a traceback: it works, or says in one line what is wrong and leaves no file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.command_lines import command_lines
from tests.fuzz.running import faults, run_line, shared_model
from tests.fuzz.tally import IS_SEARCH, Tally

FAST, FULL = 100, 3000
#: Of the streams; few terminals write anything but UTF-8.
ENCODINGS = st.sampled_from(["utf-8"] * 6 + ["ascii", "cp1252"])


@pytest.fixture(scope="module", autouse=True)
def model() -> Iterator[None]:
    with shared_model():
        yield


def try_lines(count: int, *, is_same: bool) -> Tally:
    """Run that many command lines, always the same ones or others each time."""
    tally = Tally("command lines")

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=is_same, suppress_health_check=list(HealthCheck)
    )
    @given(command_lines(), ENCODINGS)
    def each(line: list[str], encoding: str) -> None:
        ended = run_line(line, encoding)
        tally.add(ended.status)
        assert faults(ended) == [], ended.err[-2000:]

    each()
    tally.show()
    return tally


def test_a_hundred_command_lines() -> None:
    tally = try_lines(FAST, is_same=True)
    assert tally.share(0) > 0.15 and tally.share(2) > 0.15


@pytest.mark.slow
def test_many_command_lines() -> None:
    tally = try_lines(FULL, is_same=not IS_SEARCH)
    assert tally.share(0) > 0.15 and tally.share(2) > 0.15


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["generate", "--from", "ours.json"], "an argument 'record'"),
        (["generate", "a circle", "--steps", "1", "--parser", "spacy"], "spacy"),
        (["maps", "?!", "--steps", "1"], "no words"),
        (["bench", "power", "--prompts", "18446744073709551616"], "at most a million"),
        (["bench", "power", "--comparisons", "18446744073709551616"], "at most a million"),
        (["maps", "a circle", "--steps", "1", "--words", "dog"], "No 'dog'"),
        (["flow", "a circle", "--seeds", "2147483648", "--size", "64x64"], "seeds=2147483648, "),
        (["flow", "a circle", "--seeds", "9" * 400, "--size", "64x64"], "at most"),
        (["generate", "a circle", "--steps", "9" * 4000], "steps"),
        (["flow", "a circle", "--seeds", str(2**64), "--size", "64x64"], "at most"),
        (["bench", "sets", "x" * 5000], "too long"),
        (["bench", "speed", "x" * 5000], "no measurement"),
        (["x" * 5000], "No such command"),
        (["generate", "--from", "good.png", "--negative-prompt", "a " * 4000, "--out", "a.jpg"], "a.jpg"),
    ],
)
def test_a_line_that_was_once_a_fault_is_refused(line: list[str], said: str) -> None:
    ended = run_line(line)
    assert ended.status == 2 and said in ended.err and faults(ended) == [], ended


@pytest.mark.parametrize(
    ("line", "encoding"),
    [
        (["generate", "a circle", "--steps", "1", "--out", "🟥.png"], "ascii"),
        (["generate", "a circle", "--steps", "1", "--out", "é.png", "--json"], "ascii"),
        (["maps", "a circle", "--steps", "1", "--out", "é"], "cp1252"),
        (["maps", "a" * 4000, "--steps", "1"], "utf-8"),
        (
            ["maps", "?!", "--words", "?!", "--steps", "1", "--layers", "up.*,down.*", "-c", "attend_and_excite"],
            "utf-8",
        ),
    ],
)
def test_a_line_that_was_once_a_fault_works(line: list[str], encoding: str) -> None:
    ended = run_line(line, encoding)
    assert ended.status == 0 and faults(ended) == [], ended
