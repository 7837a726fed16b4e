"""Accuracy of every word of the vocabulary: how often an image shows what the word says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from t2ictl.benchmarks.shapes.evaluate.shares import percent
from t2ictl.shapes.captions import NAMED_SIZES, NAMED_TEXTURES, POLYSEME, REDUNDANT, RELATIONS, Expectation, Wanted
from t2ictl.shapes.seeing import Found
from t2ictl.shapes.verdict import Verdict, agrees
from t2ictl.shapes.world import COLORS, MARKS, SHAPES

Trial = tuple[Expectation, Verdict]

#: Rows of the table, by kind of word.
WORDS = {
    "shape": (*SHAPES, POLYSEME),
    "color": COLORS,
    "texture": NAMED_TEXTURES,
    "size": NAMED_SIZES,
    "mark": MARKS,
    "redundant": (REDUNDANT,),
    "relation": RELATIONS,
}


def _object_words(wanted: Wanted, found: Found | None) -> Iterator[tuple[str, str, bool]]:
    """Return kind, word, and whether the object that has the noun shows it."""
    is_there = found is not None and agrees(wanted, found, "shape")
    yield "shape", wanted.noun or wanted.shape, is_there
    if wanted.is_round:
        yield "redundant", REDUNDANT, is_there
    said = {field: getattr(wanted, field) for field in ("color", "texture", "size")}
    said["mark"] = wanted.mark.kind if wanted.mark is not None else None
    for field, word in said.items():
        if word is not None:
            yield field, word, found is not None and is_there and agrees(wanted, found, field)


def said_words(asked: Expectation, verdict: Verdict) -> Iterator[tuple[str, str, bool]]:
    """List the words of a prompt that mean something, and whether the image shows each.

    A noun is right if its object is there; an attribute or a mark is right if moreover that
    object has it, a mark in its own color; a relation if it holds between both.

    Args:
        asked: from the prompt.
        verdict: on the image.

    Yields:
        Kind of word, word, whether it is right.

    Example:
        >>> import numpy as np
        >>> from t2ictl.shapes.captions import expect
        >>> from t2ictl.shapes.verdict import judge
        >>> empty = np.full((64, 64, 3), 238, np.uint8)
        >>> list(said_words(expect("a red star"), judge(empty, "a red star")))
        [('shape', 'star', False), ('color', 'red', False)]
    """
    for wanted, index in zip(asked.objects, verdict.matched, strict=True):
        yield from _object_words(wanted, None if index is None else verdict.found[index])
    if asked.relation is not None:
        yield "relation", asked.relation, verdict.is_related


def count_words(judged: Iterable[Trial]) -> dict[tuple[str, str], Sequence[int]]:
    """Count how often every word was asked for and right.

    Args:
        judged: expectations with verdicts.

    Returns:
        For kind and word: times right, times asked.

    Example:
        >>> count_words([])
        {}
    """
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for asked, verdict in judged:
        for kind, word, is_right in said_words(asked, verdict):
            counts[kind, word][0] += is_right
            counts[kind, word][1] += 1
    return dict(counts)


def words_table(judged: Iterable[Trial]) -> str:
    """Format the accuracy of every word that was asked for, in percent with intervals.

    Args:
        judged: expectations with verdicts.

    Returns:
        A Markdown table.

    Example:
        >>> print(words_table([]))
        | word | kind | asked | right |
        |---|---|---|---|
    """
    counts = count_words(judged)
    lines = ["| word | kind | asked | right |", "|---|---|---|---|"]
    for kind, words in WORDS.items():
        for word in words:
            if (kind, word) in counts:
                right, asked = counts[kind, word]
                lines.append(f"| {word} | {kind} | {asked} | {percent(right, asked)} |")
    return "\n".join(lines)
