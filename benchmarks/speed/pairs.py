"""Intervals of paired times."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["interval"]


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Give the 95 % interval of the median, from the order statistics (no distribution assumed).

    Args:
        ratios: one a pair.

    Returns:
        Its ends.

    Example:
        >>> interval([1.0, 1.1, 1.2, 0.9, 1.0])
        (0.9, 1.2)
    """
    ordered = sorted(ratios)
    rank = max(0, int((len(ordered) - 1.96 * len(ordered) ** 0.5) / 2))
    return ordered[rank], ordered[-1 - rank]
