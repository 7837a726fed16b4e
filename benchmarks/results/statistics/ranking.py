"""Does the ranking of methods carry over from one model to another? Rank correlations, with prompts resampled.

Letters: ``P`` prompt, ``N`` method, ``R`` resample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from t2ictl.benchmarks.results.statistics.comparison import MACRO
from t2ictl.benchmarks.results.statistics.reading import PLAIN, Run, outcome_table
from t2ictl.errors import BadSetting
from t2ictl.evaluation.statistics.intervals import TAIL
from t2ictl.evaluation.statistics.resampling import Array, resampled_means, seed_of

__all__ = ["check_same_prompts", "is_method", "rank_correlation", "rank_methods"]

#: Fewer have no ranking to speak of.
FEWEST = 3
#: What names a prompt.
_PROMPT = ["category", "prompt_id", "prompt"]


def is_method(arm: str) -> bool:
    """Return whether an arm is something to rank: neither the untouched model, nor random moves, nor a selection.

    Args:
        arm: its label.

    Returns:
        Whether it takes part.

    Example:
        >>> [is_method(arm) for arm in ("excite", "plain", "random:excite", "best-of-4", "best-of-2:excite")]
        [True, False, False, False, False]
    """
    return arm != PLAIN and not arm.startswith(("random:", "best-of-"))


def rank_correlation(one_RN: Array, other_RN: Array) -> Array:
    """Return Spearman's correlation of the ranks in each row; equal values share their mean rank.

    Args:
        one_RN: values of ``N`` methods on one model.
        other_RN: values of the same methods on another.

    Returns:
        ``correlation_R`` in -1 to 1; NaN where all methods of a row are equal.

    Example:
        >>> rank_correlation(np.array([[1.0, 2.0, 4.0]]), np.array([[10.0, 30.0, 20.0]])).tolist()
        [0.5]

    Reference:
        C. Spearman, The proof and measurement of association between two things, American Journal of Psychology 15
        (1904), 72-101.
    """
    one, other = (stats.rankdata(values, axis=1) for values in (one_RN, other_RN))
    one, other = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (one, other))
    length_R = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.asarray(np.where(length_R > 0, (one * other).sum(axis=1) / np.where(length_R > 0, length_R, 1), np.nan))


def check_same_prompts(runs: Mapping[str, Run]) -> None:
    """Refuse runs that were not made on the same prompts.

    Args:
        runs: by name of the model.

    Raises:
        BadSetting: if one has other prompts than the first.
    """
    asked = {name: run.rows[_PROMPT].drop_duplicates().sort_values(_PROMPT).to_numpy() for name, run in runs.items()}
    first = next(iter(asked))
    for name, prompts in asked.items():
        if not np.array_equal(prompts, asked[first]):
            raise BadSetting(
                f"{first} and {name} were not run on the same prompts.",
                "Run both by plans that differ in model and arms.",
            )


def rank_methods(
    runs: Mapping[str, Run], *, outcome: str = "is_strict", resamples: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """Compare the rankings of each two models.

    Methods are ranked by the share of images with the outcome. Whole prompts are resampled, the same ones in both
    models, within their category; the interval is that of the percentiles. Chance lowers a rank correlation, and
    resampling adds some of it, so an interval lies rather too low.

    Args:
        runs: by name of the model, all on the same prompts.
        outcome: by which methods are ranked.
        resamples: bootstrap samples.
        seed: of the samples.

    Returns:
        One row for each two models and each category, and for the mean over categories: ``one``, ``other``,
        ``category``, number of ``methods`` in both, ``estimate``, ``low``, ``high``; NaN with fewer than three methods,
        or where all are equal.

    Raises:
        BadSetting: if the prompts differ.
    """
    check_same_prompts(runs)
    tables = {name: outcome_table(run, [outcome])[outcome] for name, run in runs.items()}
    found = []
    for one, other in combinations(runs, 2):
        methods = [arm for arm in runs[one].arms if arm in runs[other].arms and is_method(arm)]
        means = [_means(tables[name][methods], resamples, seed) for name in (one, other)]
        for category in means[0]:
            values = _bounds(*(each[category] for each in means)) if len(methods) >= FEWEST else (np.nan,) * 3
            labels = {"one": one, "other": other, "category": category, "methods": len(methods)}
            found.append(labels | dict(zip(("estimate", "low", "high"), values, strict=True)))
    return pd.DataFrame(found)


def _means(table: pd.DataFrame, resamples: int, seed: int) -> dict[str, Array]:
    """By category, and for their mean, the shares of the methods: as they are, then of each resample."""
    by_prompt = table.groupby(level=["category", "prompt_id"]).mean()
    found = {}
    for name, part in by_prompt.groupby(level="category"):
        values_PN = part.to_numpy(dtype=float)
        resampled_RN = resampled_means(values_PN, resamples, seed_of(str(name), seed))
        found[str(name)] = np.concatenate([np.nanmean(values_PN, axis=0, keepdims=True), resampled_RN])
    return found if len(found) == 1 else found | {MACRO: np.mean(list(found.values()), axis=0)}


def _bounds(one_RN: Array, other_RN: Array) -> Sequence[float]:
    """Estimate and interval; resamples in which all methods are equal say nothing."""
    estimate, *resampled = rank_correlation(one_RN, other_RN).tolist()
    known = [value for value in resampled if not np.isnan(value)]
    if np.isnan(estimate) or not known:
        return (np.nan,) * 3
    low, high = np.quantile(known, [TAIL, 1 - TAIL])
    return estimate, float(low), float(high)
