"""Paired times: two ways in turn, so that a busy machine slows both, and the interval of their ratio."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from t2ictl.benchmarks.markdown import print_table

__all__ = ["device_and_dtype", "interval", "now", "paired_ratios", "print_ratios"]


def device_and_dtype(device: str | None) -> tuple[str, torch.dtype]:
    """Choose where to measure times.

    Args:
        device: of torch; None for CUDA where there is one.

    Returns:
        The device, and float16 on CUDA, float32 elsewhere.

    Example:
        >>> device_and_dtype("cpu")
        ('cpu', torch.float32)
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return chosen, torch.float16 if chosen.startswith("cuda") else torch.float32


def now() -> float:
    """Return the time in seconds, when all that the GPU was asked for is done.

    Returns:
        Of a clock for differences.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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
    start = now()
    run()
    return now() - start


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval of the median, from the order statistics (no distribution assumed).

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


def print_ratios(title: str, found: Mapping[str, Sequence[float]], base: str = "plain") -> None:
    """Print medians of ratios with their intervals.

    Args:
        title: what was timed.
        found: ratios by way, from :func:`paired_ratios`.
        base: what the ways were compared with.

    Example:
        >>> print_ratios("a story", {"told": [1.0, 1.5, 2.0]})
        <BLANKLINE>
        | time, a story | x plain | 95 % interval | pairs |
        |---|---|---|---|
        | told | 1.500 | [1.000, 2.000] | 3 |
    """
    print()
    rows = []
    for label, ratios in found.items():
        low, high = interval(ratios)
        rows.append((label, f"{statistics.median(ratios):.3f}", f"[{low:.3f}, {high:.3f}]", len(ratios)))
    print_table((f"time, {title}", f"x {base}", "95 % interval", "pairs"), rows)
