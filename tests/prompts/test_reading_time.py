"""Reading a prompt takes time in proportion to its length, whatever it is made of."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ictl.prompts.accessories import kept_ranges, merged_text, object_groups
from t2ictl.prompts.grammar import group
from t2ictl.prompts.noun_phrases import noun_phrases
from t2ictl.prompts.queries import matches
from t2ictl.prompts.tagging import tagged_words

READERS: dict[str, Callable[[str], Any]] = {
    "tags": lambda text: tagged_words.__wrapped__(text),
    "objects": group,
    "accessories": lambda text: merged_text(text, object_groups(text)),
    "noun_phrases": noun_phrases,
    "matches": lambda text: matches(text, (), "red dog"),
}
#: Each repeated: brackets, lists, chains, runs of one kind of word, and what readers look back or ahead for.
UNITS = (
    "( blue ", "(red) ", "(red (", "a red (", "(", "[", ",", ", ", "'", '" ', "- ", "a(b)", "red ", "a red ", "very ",
    "very red ", "very very red ( ", "red and ", "a red, ", "of white, ", "of white and ", "is red ", "dog is red ",
    "dog is red and ", "dog ", "a dog, ", "a dog and ", "a dog with a hat and ", "a cat wearing a hat, ", "dog of ",
    "a cup of tea and ", "dogs' ", "dog's ", "her red \" ", "two ", "two two of ", "all of ", "the left side of ",
    "not red dog ", "an orange and white cat ", "really red dog ", "a man in a hat and a woman ", "riding ", "cut ",
    "a snow covered ", "glass and ", "a table with a lamp and a chair with ", "back to back ", "\U0001f600", "\u00e9",
    "  ",
)  # fmt: skip
#: Ended otherwise than they go on: what a search back from the end would have to give up.
TAILS = ("", " on dogs.")


def long(unit: str, length: int, tail: str = "") -> str:
    return (unit * length)[:length] + tail


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Fail instead of hanging: a wide bound for what would take hours."""

    def stop(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"It has not ended after {seconds} seconds.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def steps(read: Callable[[str], Any], text: str) -> int:
    """Lines of Python that a reading takes; regular expressions count as one each."""
    count = 0

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        read(text)
    finally:
        sys.settrace(before)
    return count


def seconds(read: Callable[[str], Any], text: str) -> float:
    """Processor time of a reading: the least of several."""
    found = []
    for _ in range(2):
        began = time.process_time()
        read(text)
        found.append(time.process_time() - began)
    return min(found)


@pytest.mark.parametrize("name", READERS)
def test_long_prompts_end(name: str) -> None:
    """4,000 characters of each kind; before, two dozen brackets took more time than a test has."""
    with ends_within(60):
        for unit in UNITS:
            READERS[name](long(unit, 4000))


@pytest.mark.parametrize("name", READERS)
def test_steps_grow_with_the_length(name: str) -> None:
    for unit in UNITS:
        count = 240 // len(unit)
        texts = [unit * count, unit * (2 * count)]
        for text in texts:
            READERS[name](text)  # once: patterns are compiled, and tags are kept
        short, twice = (steps(READERS[name], text) for text in texts)
        assert twice < 2.6 * short + 100, unit


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_time_grows_with_the_length(name: str) -> None:
    """Of what regular expressions do, too: squared, four times the length would take sixteen times as long."""
    for unit in UNITS:
        for tail in TAILS:
            texts = [unit * (length // len(unit)) + tail for length in (2000, 8000)]
            for text in texts:
                tagged_words(text)
            short, long_ = (seconds(READERS[name], text) for text in texts)
            assert long_ < 9 * short + 0.01, (unit, tail)


WORDS = st.sampled_from(
    """( ) [ ] { } " ' 's , and or & - of with in is that a the its two all not very red blue glass orange snow covered
    dog cat man hat bowl wearing riding painted cut lit sits on left side top .""".split()
)


@given(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from(["", " "]), WORDS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_repeated_words_are_read(unit: list[str], joint: str, last: str) -> None:
    text = long(joint.join(unit) + joint, 1500, f" {last}")
    with ends_within(20):
        for read in READERS.values():
            read(text)


@given(st.lists(WORDS, max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_is_kept_pairs_its_brackets(words: list[str]) -> None:
    """The marks of a prompt that had partners have them after merging, too."""
    text = " ".join(words)
    groups = object_groups(text)
    kept = "".join(text[slice(*place)] for place in kept_ranges(text, groups))
    for opening, closing in ("()", "[]", "{}"):
        assert text.count(opening) - text.count(closing) == kept.count(opening) - kept.count(closing), text
