"""Shares with their intervals, for the tables of this folder."""

from __future__ import annotations

import numpy as np

from t2ictl.evaluation.statistics.intervals import wilson_bounds

#: 97.5 % point of the normal distribution, for intervals of 95 %.
NORMAL_POINT = 1.959964


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Compute the 95 % interval of a share by Wilson's formula; trials count as independent.

    Args:
        hits: successes.
        total: trials, at least 1.

    Returns:
        Lower and upper bound, 0 to 1.

    Example:
        >>> [round(bound, 3) for bound in wilson(198, 200)]
        [0.964, 0.997]
    """
    bounds = wilson_bounds(np.array([hits / total]), np.array([float(total)]), np.array([NORMAL_POINT]))
    return float(bounds[0][0]), float(bounds[1][0])


def percent(hits: int, total: int, digits: int = 1) -> str:
    """Format a share with its interval, in percent.

    Args:
        hits: successes.
        total: trials; none give a dash.
        digits: after the point.

    Returns:
        Such as ``"99.0 [96.4, 99.7]"``.

    Example:
        >>> percent(198, 200), percent(0, 0)
        ('99.0 [96.4, 99.7]', '-')
    """
    if not total:
        return "-"
    share, low, high = (f"{100 * value:.{digits}f}" for value in (hits / total, *wilson(hits, total)))
    return f"{share} [{low}, {high}]"
