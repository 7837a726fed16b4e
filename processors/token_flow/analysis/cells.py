"""Estimates of a single cell: one prompt, some seeds. Seeds are independent of each other, so they are the units.

Letters: ``S`` seed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from t2ictl.evaluation.statistics.intervals import LEVEL, difference_bounds, share_bounds
from t2ictl.evaluation.statistics.resampling import Array, holm

__all__ = ["Estimate", "adjusted", "difference", "paired_p_value", "share"]

WILSON_SEEDS = "wilson-seeds"
# Resamples of the bootstrap over seeds, and its seed: one number for all cells, so that a table can be made again.
RESAMPLES, ENTROPY = 2000, [0]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval.

    Args:
        value: the mean.
        low: lower bound.
        high: upper bound.
        count: independent units behind it.
        method: how the interval was made.
        p_value: of the two-sided test against no difference; None where nothing is tested.
    """

    value: float
    low: float
    high: float
    count: int
    method: str
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return asdict(self)


def share(values_S: Array) -> Estimate:
    """Return the mean of probabilities over seeds: Wilson's interval where they are all yes or no.

    Args:
        values_S: in [0, 1], one a seed.

    Returns:
        The estimate.

    Example:
        >>> estimate = share(np.zeros(5))
        >>> round(estimate.high, 2), estimate.method
        (0.43, 'wilson-seeds')
    """
    if np.isin(values_S, (0.0, 1.0)).all():
        found = stats.binomtest(int(values_S.sum()), len(values_S)).proportion_ci(LEVEL, method="wilson")
        bounds = float(found.low), float(found.high)
        return Estimate(
            value=float(values_S.mean()), low=bounds[0], high=bounds[1], count=len(values_S), method=WILSON_SEEDS
        )
    made = share_bounds(values_S[:, None])
    return Estimate(
        value=float(made.estimate[0]),
        low=float(made.low[0]),
        high=float(made.high[0]),
        count=len(values_S),
        method=str(made.method[0]),
    )


def difference(one_S: Array, other_S: Array) -> Estimate:
    """Return the mean of paired differences ``one - other``, with the interval that the benchmarks use.

    Args:
        one_S: in [0, 1], one a seed.
        other_S: of the same seeds.

    Returns:
        The estimate, with an exact p-value.

    Example:
        >>> difference(np.ones(8), np.zeros(8)).p_value
        0.0078125
    """
    made = difference_bounds((one_S - other_S)[:, None], RESAMPLES, ENTROPY).bounds
    return Estimate(
        value=float(made.estimate[0]),
        low=float(made.low[0]),
        high=float(made.high[0]),
        count=len(one_S),
        method=str(made.method[0]),
        p_value=paired_p_value(one_S, other_S),
    )


def paired_p_value(one_S: Array, other_S: Array, alternative: str = "two-sided") -> float:
    """Test paired values against no difference: McNemar's exact test where they are yes or no, Wilcoxon's elsewhere.

    Args:
        one_S: in [0, 1], one a seed.
        other_S: of the same seeds.
        alternative: ``"two-sided"``, or ``"greater"`` if ``one`` is expected to be larger.

    Returns:
        The p-value; 1 where no pair differs.

    Example:
        >>> paired_p_value(np.array([1.0, 1, 1, 1, 1, 0]), np.array([0.0, 0, 0, 0, 0, 0]), "greater")
        0.03125

    Reference:
        Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
        Psychometrika 12 (1947), 153-157.
    """
    change_S = one_S - other_S
    changed = np.abs(change_S) > 1e-12
    if not changed.any():
        return 1.0
    if np.isin(np.concatenate([one_S, other_S]), (0.0, 1.0)).all():
        ups = int((change_S[changed] > 0).sum())
        return float(stats.binomtest(ups, int(changed.sum()), alternative=alternative).pvalue)
    return float(stats.wilcoxon(change_S[changed], alternative=alternative).pvalue)


def adjusted(estimates: list[Estimate]) -> list[float]:
    """Return the p-values of a family of tests, adjusted for their number by Holm's procedure.

    Args:
        estimates: all of the family; one without a p-value is no test.

    Returns:
        One a test, NaN for what is none.

    Example:
        >>> one = Estimate(value=0, low=0, high=0, count=1, method="", p_value=0.03)
        >>> adjusted([one, one])
        [0.06, 0.06]
    """
    values = np.array([np.nan if each.p_value is None else each.p_value for each in estimates])
    return [float(value) for value in holm(values)]
