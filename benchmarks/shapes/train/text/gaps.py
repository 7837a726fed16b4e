"""Span corruption: gaps in a text, each named by a sentinel, and the row that fills them in order."""

from __future__ import annotations

import numpy as np

#: Positions that the loss leaves out.
IGNORED = -100


def cut_into(total: int, parts: int, generator: np.random.Generator) -> list[int]:
    """Cut a length into parts of at least one, all ways being equally likely.

    Args:
        total: at least ``parts``.
        parts: at least 1.
        generator: the only source of randomness.

    Returns:
        ``parts`` lengths.

    Example:
        >>> sum(cut_into(7, 3, np.random.default_rng(0)))
        7
    """
    cuts = np.sort(generator.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff([0, *cuts.tolist(), total]).tolist()


def choose_gaps(length: int, share: float, mean_span: float, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Choose which tokens are hidden.

    Args:
        length: tokens of the text, at least 2.
        share: part of them to hide.
        mean_span: tokens a gap.
        generator: the only source of randomness.

    Returns:
        Start and end of each gap, in order, at least one token apart.

    Example:
        >>> choose_gaps(10, 0.2, 2.0, np.random.default_rng(0))
        [(7, 9)]
    """
    hidden = min(max(1, round(length * share)), length - 1)
    count = min(max(1, round(hidden / mean_span)), length - hidden)
    gaps = cut_into(hidden, count, generator)
    # Before, between and behind the gaps; only those between must hold a token.
    rest = length - hidden - (count - 1)
    parts = cut_into(rest + count + 1, count + 1, generator)
    spaces = [part - 1 + (0 < place < count) for place, part in enumerate(parts)]
    found, here = [], 0
    for space, gap in zip(spaces, gaps, strict=False):
        found.append((here + space, here + space + gap))
        here += space + gap
    return found


def corrupt(row: list[int], gaps: list[tuple[int, int]], sentinels: list[int], end: int) -> tuple[list[int], list[int]]:
    """Replace gaps by sentinels, and write what they hid.

    Args:
        row: tokens of the text, without its end.
        gaps: from :func:`choose_gaps`.
        sentinels: tokens that name gaps, at least as many.
        end: token that ends a row.

    Returns:
        The text with its gaps, and the sentinels with what each hid; both ended.

    Example:
        >>> corrupt([5, 6, 7, 8], [(1, 3)], [99], 1)
        ([5, 99, 8, 1], [99, 6, 7, 1])
    """
    shown: list[int] = []
    hidden: list[int] = []
    here = 0
    for sentinel, (first, last) in zip(sentinels, gaps, strict=False):
        shown += [*row[here:first], sentinel]
        hidden += [sentinel, *row[first:last]]
        here = last
    return [*shown, *row[here:], end], [*hidden, end]
