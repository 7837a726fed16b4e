"""Paired times: two ways in turn, so that a busy machine slows both, and the interval of their ratio."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["interval", "paired_ratios"]


def paired_ratios(base: Callable[[], Any], ways: Mapping[str, Callable[[], Any]], pairs: int) -> dict[str, list[float]]:
    """Time ways against a base, the two of a pair in random order; each is run once before.

    Args:
        base: what the others are compared with.
        ways: by label.
        pairs: measurements of each.

    Returns:
        Ratios way / base, one a pair, by label; ``plain again`` is the base against itself.

    Example:
        >>> sorted(paired_ratios(lambda: None, {"twice": lambda: None}, 2))
        ['plain again', 'twice']
    """
    every = {"plain again": base, **ways}
    for way in every.values():
        way()
    dice = random.Random(0)
    found: dict[str, list[float]] = {label: [] for label in every}
    for _ in range(pairs):
        for label, way in every.items():
            if dice.random() < 0.5:
                plain, own = _seconds(base), _seconds(way)
            else:
                own, plain = _seconds(way), _seconds(base)
            found[label].append(own / plain)
    return found


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


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
