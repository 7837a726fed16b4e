"""Two-sided 95 % intervals for shares and for paired differences, with prompts as the independent units.

Which method is used where was decided by measured coverage (``docs/statistics.md``). Every bound carries the
name of its method. Letters: ``P`` prompt, ``C`` column, ``R`` resample, ``K`` category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from t2ictl.evaluation.statistics.resampling import Array, resampled_means

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
#: With fewer changed prompts the percentiles of the bootstrap are too coarse: coverage fell to 89 % in simulation.
FEW_CHANGED = 10

WILSON = "wilson"
ALL_ALIKE = "wilson-prompts"
BOOTSTRAP = "bootstrap"
STUDENT = "student"
COMBINED = "mover"
NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Estimates with intervals, one a column.

    Args:
        estimate: means over prompts.
        low: lower bounds.
        high: upper bounds.
        method: names of the methods.
        prompts: how many prompts take part.

    Example:
        >>> share_bounds(np.zeros((100, 1))).method.tolist()
        ['wilson-prompts']
    """

    estimate: Array
    low: Array
    high: Array
    method: NDArray[np.str_]
    prompts: NDArray[np.int_]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Paired differences of one category, with what the macro mean needs.

    Args:
        bounds: the intervals of the category.
        resampled_RC: bootstrap means.
        variance_C: squared standard error of the mean.
    """

    bounds: Bounds
    resampled_RC: Array
    variance_C: Array


def _moments(values_PC: Array) -> tuple[NDArray[np.int_], Array, Array]:
    """Number of prompts, mean, and squared standard error; the last is 0 where all prompts are alike."""
    present = ~np.isnan(values_PC)
    count_C = present.sum(axis=0)
    known = np.maximum(1, count_C)
    mean_C = np.where(present, values_PC, 0).sum(axis=0) / known
    squares = (np.where(present, values_PC - mean_C, 0) ** 2).sum(axis=0)
    variance_C = squares / np.maximum(1, count_C - 1) / known
    variance_C[variance_C < 1e-18] = 0  # rounding of equal values
    return count_C, np.where(count_C > 0, mean_C, np.nan), variance_C


def _student_point(prompts: NDArray[np.int_]) -> Array:
    point: Array = np.asarray(stats.t.ppf(1 - TAIL, np.maximum(1, prompts - 1)), dtype=float)
    return np.where(prompts > 1, point, stats.norm.ppf(1 - TAIL))


def wilson_bounds(share: Array, trials: Array, point: Array) -> tuple[Array, Array]:
    """Return Wilson's score interval, for any real number of trials.

    Args:
        share: successes over trials, 0 to 1.
        trials: above 0.
        point: quantile of the normal distribution, or of Student's.

    Returns:
        Lower and upper bounds.

    Example:
        >>> low, high = wilson_bounds(np.array([0.5]), np.array([100.0]), np.array([1.96]))
        >>> round(float(low[0]), 4), round(float(high[0]), 4)
        (0.4038, 0.5962)

    Reference:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, Journal of the American
        Statistical Association 22 (1927), 209-212.
    """
    shrink = 1 + point**2 / trials
    center = (share + point**2 / (2 * trials)) / shrink
    half = point / shrink * np.sqrt(share * (1 - share) / trials + point**2 / (4 * trials**2))
    return np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)


def share_bounds(means_PC: Array) -> Bounds:
    """Return intervals of mean shares: Wilson's formula with the effective number of independent images.

    With ``v`` the squared standard error of the mean over prompts, as many independent images as
    ``share (1 - share) / v`` would be as precise; they take the place of the number of trials, and Student's
    point with prompts - 1 degrees of freedom that of the normal one. If all prompts are alike ``v`` says
    nothing, and every prompt counts as one image (method ``wilson-prompts``).

    Args:
        means_PC: mean over seeds, 0 to 1, one a prompt and column; NaN where the prompt does not take part.

    Returns:
        The bounds.

    Example:
        >>> bounds = share_bounds(np.array([[0.0], [0.25], [1.0], [0.5]]))
        >>> [round(float(value[0]), 3) for value in (bounds.low, bounds.estimate, bounds.high)]
        [0.076, 0.438, 0.881]

    Reference:
        C. Franco, R. J. A. Little, T. A. Louis, E. V. Slud, Comparative study of confidence intervals for
        proportions in complex sample surveys, Journal of Survey Statistics and Methodology 7 (2019), 334-364.
    """
    count_C, share_C, variance_C = _moments(means_PC)
    alike = variance_C == 0
    trials = np.where(alike, count_C, share_C * (1 - share_C) / np.where(alike, 1, variance_C))
    low, high = wilson_bounds(share_C, np.maximum(trials, 1e-9), _student_point(count_C))
    method = np.where(count_C == 0, NONE, np.where(alike, ALL_ALIKE, WILSON))
    return Bounds(estimate=share_C, low=low, high=high, method=method, prompts=count_C)


def difference_bounds(values_PC: Array, resamples: int, entropy: list[int]) -> Differences:
    """Return intervals of paired differences.

    - ``bootstrap``: percentiles of means of resampled prompts, expanded for small samples: percentiles of a
      bootstrap are too narrow by ``sqrt((n - 1) / n)`` and by the ratio of the normal to Student's point.
    - ``student``: where fewer than :data:`FEW_CHANGED` prompts changed, Student's interval of the same mean.
    - ``wilson-prompts``: where all prompts have the same difference. No prompt among ``n`` fell out of line, so by
      Wilson's formula at most ``t^2 / (n + t^2)`` of all prompts do, and each moves the mean by at most that.

    Args:
        values_PC: difference of the two arms, averaged over common seeds, -1 to 1; NaN where there is none.
        resamples: bootstrap samples.
        entropy: seed of the samples.

    Returns:
        The bounds, the bootstrap means and the variances.

    Example:
        >>> same = difference_bounds(np.zeros((100, 1)), 99, [0]).bounds
        >>> [round(float(value[0]), 3) for value in (same.low, same.estimate, same.high)]
        [-0.038, 0.0, 0.038]

    Reference:
        T. C. Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015),
        371-386: the expanded percentile interval.
    """
    count_C, mean_C, variance_C = _moments(values_PC)
    resampled_RC = resampled_means(values_PC, resamples, entropy)
    point_C, margin_C = _student_point(count_C), np.zeros(len(count_C))
    changed_C = (np.abs(np.nan_to_num(values_PC)) > 0).sum(axis=0)
    alike, few = variance_C == 0, changed_C < FEW_CHANGED
    margin_C = np.where(alike, point_C**2 / (np.maximum(1, count_C) + point_C**2), point_C * np.sqrt(variance_C))
    low, high = np.maximum(-1, mean_C - margin_C), np.minimum(1, mean_C + margin_C)
    expansion = np.sqrt(count_C / np.maximum(1, count_C - 1))
    for column in np.flatnonzero(~alike & ~few):
        low[column], high[column] = _percentiles(resampled_RC[:, column], point_C[column] * expansion[column])
    method = np.where(count_C == 0, NONE, np.where(alike, ALL_ALIKE, np.where(few, STUDENT, BOOTSTRAP)))
    bounds = Bounds(estimate=mean_C, low=low, high=high, method=method, prompts=count_C)
    return Differences(bounds=bounds, resampled_RC=resampled_RC, variance_C=variance_C)


def _percentiles(resampled_R: Array, point: float) -> tuple[float, float]:
    tail = float(stats.norm.sf(point))
    low, high = np.quantile(resampled_R, [tail, 1 - tail])
    return float(low), float(high)


def combine(parts: Sequence[Bounds]) -> Bounds:
    """Return the interval of a mean over categories from the intervals of the categories.

    The distances of the estimates from their bounds are added like standard errors (squared), below and above
    apart, so skewed intervals and categories in which all prompts are alike keep their say.

    Args:
        parts: one a category, all with the same columns.

    Returns:
        Bounds of the mean over the categories in which a column has an estimate.

    Example:
        >>> bounds = share_bounds(np.zeros((100, 1)))
        >>> [round(float(value.high[0]), 3) for value in (bounds, combine([bounds] * 4))]
        [0.038, 0.019]

    Reference:
        G. Y. Zou, A. Donner, Construction of confidence limits about effect measures: a general approach,
        Statistics in Medicine 27 (2008), 1693-1702.
    """
    estimate_KC = np.stack([part.estimate for part in parts])
    present = ~np.isnan(estimate_KC)
    number_C = np.maximum(1, present.sum(axis=0))
    below, above = (
        np.sqrt((np.where(present, np.stack(limits) - estimate_KC, 0) ** 2).sum(axis=0)) / number_C
        for limits in ([part.low for part in parts], [part.high for part in parts])
    )
    estimate = np.where(present.any(axis=0), np.where(present, estimate_KC, 0).sum(axis=0) / number_C, np.nan)
    method = np.where(present.any(axis=0), COMBINED, NONE)
    prompts = np.stack([part.prompts for part in parts]).sum(axis=0)
    return Bounds(estimate=estimate, low=estimate - below, high=estimate + above, method=method, prompts=prompts)


def macro_differences(parts: Sequence[Differences]) -> Bounds:
    """Return intervals of the mean over categories of paired differences.

    Prompts are resampled within their category, and percentiles are expanded as for one category, with
    Satterthwaite's degrees of freedom. Where a category cannot be resampled (fewer than :data:`FEW_CHANGED`
    changed prompts) the intervals of the categories are combined instead (method ``mover``).

    Args:
        parts: one a category, all with the same columns.

    Returns:
        The bounds.

    Example:
        >>> part = difference_bounds(np.zeros((100, 1)), 99, [0])
        >>> macro_differences([part, part]).method.tolist()
        ['mover']

    Reference:
        F. E. Satterthwaite, An approximate distribution of estimates of variance components, Biometrics
        Bulletin 2 (1946), 110-114.
    """
    combined = combine([part.bounds for part in parts])
    low, high, method = combined.low.copy(), combined.high.copy(), combined.method.astype("<U16")
    for column in range(len(low)):
        used = [part for part in parts if part.bounds.method[column] != NONE]
        if not used or any(part.bounds.method[column] != BOOTSTRAP for part in used):
            continue
        count = np.array([part.bounds.prompts[column] for part in used])
        variance = np.array([part.variance_C[column] for part in used])
        freedom = variance.sum() ** 2 / (variance**2 / (count - 1)).sum()
        expansion = np.sqrt(variance.sum() / (variance * (count - 1) / count).sum())
        resampled_R = np.mean([part.resampled_RC[:, column] for part in used], axis=0)
        low[column], high[column] = _percentiles(resampled_R, float(stats.t.ppf(1 - TAIL, freedom)) * expansion)
        method[column] = BOOTSTRAP
    return Bounds(estimate=combined.estimate, low=low, high=high, method=method, prompts=combined.prompts)
