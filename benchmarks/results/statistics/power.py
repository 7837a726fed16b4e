"""Before running: how wide intervals will be, and what difference can be found.

An image's outcome varies between the prompts (some are easy) and, for the same prompt, between its images. With
``b^2`` the variance between prompts and ``w^2`` that within, a mean over ``n`` prompts with ``m`` seeds each has
the squared standard error ``(b^2 + w^2 / m) / n``: more seeds shrink only the second part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.power import TTestPower

from t2ictl.benchmarks.results.statistics.reading import PLAIN, Run, outcome_columns, outcome_table
from t2ictl.errors import BadSetting
from t2ictl.evaluation.statistics.intervals import TAIL, wilson_bounds
from t2ictl.evaluation.statistics.resampling import Array

#: Probability of finding the difference that is called detectable.
POWER = 0.8
#: Of prompts, of seeds, and of comparisons.
MOST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Design:
    """What would be run.

    Args:
        prompts: of one category, 2 to a million.
        seeds: images a prompt and arm, 1 to a million.
        comparisons: how many tests are corrected for, 1 to a million; Holm's first step divides the level by this.

    Example:
        >>> Design(prompts=400, seeds=4).comparisons
        1
    """

    prompts: int
    seeds: int
    comparisons: int = 1

    def __post_init__(self) -> None:
        counts = (self.prompts, self.seeds, self.comparisons)
        if self.prompts < 2 or min(counts) < 1 or max(counts) > MOST:
            raise BadSetting(
                f"{self.prompts} prompts with {self.seeds} seeds and {self.comparisons} comparisons cannot be planned.",
                "Use at least 2 prompts, 1 seed and 1 comparison, and at most a million of each.",
            )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Standard deviations of what is averaged.

    Args:
        between: of the prompts' own values.
        within: of one image's value (or one pair's difference) around that of its prompt.

    Example:
        >>> spread = Spread(between=0.3, within=0.4)
        >>> round(spread.standard_error(Design(prompts=400, seeds=4)), 4)
        0.018
    """

    between: float
    within: float

    def standard_error(self, design: Design) -> float:
        """Return the standard error of the mean over prompts."""
        return math.sqrt((self.between**2 + self.within**2 / design.seeds) / design.prompts)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a design can be expected to show, as shares (0.01 is one point).

    Args:
        half_width: half the width of the 95 % interval.
        detectable: smallest difference found with a probability of 80 %; NaN for a share.

    Example:
        >>> expect_share(0.5, 0.3, Design(prompts=400, seeds=4)).half_width < 0.04
        True
    """

    half_width: float
    detectable: float = math.nan


def expect_share(share: float, between: float, design: Design) -> Expected:
    """Return the expected half width of the interval of a share.

    Args:
        share: expected, above 0 and below 1.
        between: standard deviation of the prompts' own probabilities, 0 to ``sqrt(share (1 - share))``.
        design: what would be run.

    Returns:
        Half width.

    Raises:
        BadSetting: for a share or a deviation that cannot be.

    Example:
        >>> round(expect_share(0.5, 0.3, Design(prompts=400, seeds=4)).half_width, 4)
        0.0354
    """
    error = share_spread(share, between).standard_error(design)
    return Expected(half_width=_wilson_half(share, share * (1 - share) / error**2, design))


def share_spread(share: float, between: float) -> Spread:
    """Split the variance of a yes-or-no outcome, ``share (1 - share)``, into its two parts.

    Args:
        share: expected, above 0 and below 1.
        between: standard deviation of the prompts' own probabilities.

    Returns:
        Both standard deviations.

    Raises:
        BadSetting: if the prompts cannot differ that much.

    Example:
        >>> share_spread(0.5, 0.3)
        Spread(between=0.3, within=0.4)
    """
    if not 0 < share < 1:
        raise BadSetting(f"A share of {share} cannot be planned with.", "Use one between 0 and 1.")
    most = math.sqrt(share * (1 - share))
    if not 0 <= between <= most:
        raise BadSetting(
            f"Prompts with a mean share of {share} cannot have a standard deviation of {between}.",
            f"Use 0 to {most:.3f}.",
        )
    return Spread(between=between, within=math.sqrt(share * (1 - share) - between**2))


def difference_spread(share: float, between: float, effect_sd: float, correlation: float) -> Spread:
    """Return the spread of paired differences of two arms with about the same share.

    Args:
        share: of both arms.
        between: standard deviation of the prompts' own probabilities; it cancels, for both arms have the same prompts.
        effect_sd: standard deviation between prompts of the effect itself.
        correlation: of the two arms' outcomes of the same prompt and seed, around the prompt's probability, -1 to 1.

    Returns:
        Both standard deviations.

    Raises:
        BadSetting: for a value that cannot be.

    Example:
        >>> difference_spread(0.5, 0.3, 0.1, 0.5)
        Spread(between=0.1, within=0.4)
    """
    if effect_sd < 0 or not -1 <= correlation <= 1:
        raise BadSetting(
            f"An effect's deviation of {effect_sd} with a correlation of {correlation} cannot be.",
            "Use 0 or more, and -1 to 1.",
        )
    within = share_spread(share, between).within
    return Spread(between=effect_sd, within=round(math.sqrt(2 * (1 - correlation)) * within, 12))


def expect_difference(spread: Spread, design: Design) -> Expected:
    """Return the expected half width, and the smallest difference that the design finds in 4 of 5 runs.

    Args:
        spread: of the paired differences.
        design: what would be run.

    Returns:
        Half width at 95 %, and the detectable difference at level 5 % / comparisons.

    Example:
        >>> found = expect_difference(Spread(between=0.1, within=0.4), Design(prompts=400, seeds=4))
        >>> round(found.half_width, 4), round(found.detectable, 4)
        (0.022, 0.0314)
    """
    point = float(stats.t.ppf(1 - TAIL, design.prompts - 1))
    error = spread.standard_error(design)
    if error == 0:
        return Expected(half_width=point**2 / (design.prompts + point**2))
    effect = TTestPower().solve_power(nobs=design.prompts, alpha=0.05 / design.comparisons, power=POWER)
    return Expected(half_width=point * error, detectable=float(effect) * error * math.sqrt(design.prompts))


def spread_of(values: pd.Series) -> Spread:
    """Estimate both deviations from images, by analysis of variance; seeds have to be equally many a prompt.

    Args:
        values: of images, indexed by category, prompt and seed; NaN is left out.

    Returns:
        The estimates; that between prompts is 0 where it would be negative.

    Raises:
        BadSetting: if there are fewer than two prompts or seeds.

    Example:
        >>> index = pd.MultiIndex.from_product([["pair"], [0, 1], [0, 1]], names=["category", "prompt_id", "seed"])
        >>> spread_of(pd.Series([1.0, 1.0, 0.0, 0.0], index=index)).within
        0.0
    """
    groups = values.dropna().groupby(level=["category", "prompt_id"])
    seeds = float(groups.size().mean()) if len(groups) else 0
    if len(groups) < 2 or seeds < 2:
        raise BadSetting("A pilot needs two prompts a category, and two seeds a prompt.", "Run a larger one.")
    within = float(groups.var(ddof=1).mean())
    between = max(0.0, float(groups.mean().var(ddof=1)) - within / seeds)
    return Spread(between=math.sqrt(between), within=math.sqrt(within))


def pilot_table(run: Run, design: Design, outcomes: Sequence[str] = ()) -> pd.DataFrame:
    """Return what a design can be expected to show, from the spread in a pilot run.

    Args:
        run: the pilot; its own figures are estimates with errors, so a small pilot predicts roughly.
        design: what would be run, for each category.
        outcomes: names; empty: all.

    Returns:
        One row an arm, category and outcome: the share, and the difference from ``plain`` where there is one.
    """
    names = outcome_columns(run.rows, outcomes)
    table = outcome_table(run, names)
    rows = []
    for category, part in table.groupby(level="category"):
        for arm in run.arms:
            for name in names:
                values = part[name, arm]
                if values.isna().all():
                    continue
                labels = {"arm": arm, "category": category, "outcome": name, "quantity": "share"}
                rows.append({**labels, **_pilot_row(values, design, paired=False)})
                if arm != PLAIN and PLAIN in run.arms:
                    change = values - part[name, PLAIN]
                    if not change.isna().all():
                        labels["quantity"] = f"difference from {PLAIN}"
                        rows.append({**labels, **_pilot_row(change, design, paired=True)})
    return pd.DataFrame(rows)


def _pilot_row(values: pd.Series, design: Design, *, paired: bool) -> dict[str, float]:
    spread = spread_of(values)
    mean = float(values.groupby(level=["category", "prompt_id"]).mean().mean())
    if paired:
        expected = expect_difference(spread, design)
    else:
        variance = spread.standard_error(design) ** 2
        trials = mean * (1 - mean) / variance if variance > 0 else design.prompts
        expected = Expected(half_width=_wilson_half(mean, trials, design))
    return {"pilot": mean, **asdict(spread), **asdict(expected)}


def _wilson_half(share: float, trials: float, design: Design) -> float:
    point: Array = np.array([stats.t.ppf(1 - TAIL, design.prompts - 1)])
    low, high = wilson_bounds(np.array([share]), np.array([trials]), point)
    return float(high[0] - low[0]) / 2
