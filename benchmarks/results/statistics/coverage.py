"""How often the intervals cover the truth: ``python -m t2ictl.benchmarks.results.statistics.coverage``.

Runs are simulated (``scenarios.py``) and analysed by the functions that analyse real ones.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tabulate
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from t2ictl.benchmarks.arguments import ArgumentParser
from t2ictl.benchmarks.results.statistics.scenarios import EXTREME, SCENARIOS, Scenario
from t2ictl.evaluation.statistics.intervals import (
    TAIL,
    Bounds,
    combine,
    difference_bounds,
    macro_differences,
    share_bounds,
)
from t2ictl.evaluation.statistics.resampling import Array, resampled_means

#: Where the coverage of an interval of 95 % should lie.
AIM = (0.93, 0.97)
#: Simulated runs that share their bootstrap samples, as the columns of one table do.
BLOCK = 200
#: An interval that ends exactly at the truth covers it, whatever the last digit says.
ROUNDING = 1e-9

Method = Callable[[Scenario, list[Array], int, list[int]], tuple[Array, Array]]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What one method did in one scenario.

    Args:
        simulations: how many.
        covered: how many intervals contained the truth.
        above: how many lay above it.
        below: how many lay below it.
        width: mean width of the intervals.

    Example:
        >>> result = Coverage(simulations=1000, covered=950, above=30, below=20, width=0.1)
        >>> result.share, [round(bound, 3) for bound in result.interval]
        (0.95, [0.935, 0.963])
    """

    simulations: int
    covered: int
    above: int
    below: int
    width: float

    @property
    def share(self) -> float:
        """Share of intervals that contained the truth."""
        return self.covered / self.simulations

    @property
    def interval(self) -> tuple[float, float]:
        """Exact binomial 95 % interval of the coverage (Clopper and Pearson)."""
        low, high = proportion_confint(self.covered, self.simulations, method="beta")
        return float(low), float(high)


def chosen(scenario: Scenario, values: list[Array], resamples: int, entropy: list[int]) -> tuple[Array, Array]:
    """Return the intervals that the tables print.

    Args:
        scenario: what is simulated.
        values: ``values_PC`` of every category.
        resamples: bootstrap samples.
        entropy: seed of the samples.

    Returns:
        Lower and upper bounds, one a simulated run.

    Example:
        >>> low, high = chosen(SCENARIOS[0], [np.zeros((50, 1))], 99, [0])
        >>> low.tolist()
        [0.0]
    """
    bounds: Bounds
    if scenario.paired:
        parts = [difference_bounds(values_PC, resamples, [*entropy, k]) for k, values_PC in enumerate(values)]
        bounds = parts[0].bounds if len(parts) == 1 else macro_differences(parts)
    else:
        shares = [share_bounds(values_PC) for values_PC in values]
        bounds = shares[0] if len(shares) == 1 else combine(shares)
    return bounds.low, bounds.high


def _moments(values: list[Array]) -> tuple[Array, Array]:
    """Mean over categories, and its standard error."""
    mean_C = np.mean([values_PC.mean(axis=0) for values_PC in values], axis=0)
    variance_C = np.sum([values_PC.var(axis=0, ddof=1) / len(values_PC) for values_PC in values], axis=0)
    return mean_C, np.sqrt(variance_C) / len(values)


def _student(scenario: Scenario, values: list[Array], resamples: int, entropy: list[int]) -> tuple[Array, Array]:
    mean_C, error_C = _moments(values)
    point = stats.t.ppf(1 - TAIL, sum(len(values_PC) - 1 for values_PC in values))
    return mean_C - point * error_C, mean_C + point * error_C


def _percentile(scenario: Scenario, values: list[Array], resamples: int, entropy: list[int]) -> tuple[Array, Array]:
    means = [resampled_means(values_PC, resamples, [*entropy, k]) for k, values_PC in enumerate(values)]
    low, high = np.quantile(np.mean(means, axis=0), [TAIL, 1 - TAIL], axis=0)
    return low, high


def _bootstrap_t(scenario: Scenario, values: list[Array], resamples: int, entropy: list[int]) -> tuple[Array, Array]:
    mean_C, error_C = _moments(values)
    means, variances = [], []
    for k, values_PC in enumerate(values):
        mean_RC, square_RC = (resampled_means(x, resamples, [*entropy, k]) for x in (values_PC, values_PC**2))
        means.append(mean_RC)
        variances.append(np.maximum(0, square_RC - mean_RC**2) / (len(values_PC) - 1))
    error_RC = np.sqrt(np.sum(variances, axis=0)) / len(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_RC = np.nan_to_num((np.mean(means, axis=0) - mean_C) / error_RC, nan=0.0, posinf=1e9, neginf=-1e9)
    low, high = np.quantile(ratio_RC, [TAIL, 1 - TAIL], axis=0)
    return np.clip(mean_C - high * error_C, -1, 1), np.clip(mean_C - low * error_C, -1, 1)


def _bca(scenario: Scenario, values: list[Array], resamples: int, entropy: list[int]) -> tuple[Array, Array]:
    if len(values) > 1:
        return np.full(values[0].shape[1], np.nan), np.full(values[0].shape[1], np.nan)
    generator = np.random.default_rng(entropy)
    with warnings.catch_warnings():  # scipy gives NaN, with a warning, where all prompts are alike
        warnings.simplefilter("ignore")
        result = stats.bootstrap((values[0],), np.mean, n_resamples=resamples, method="BCa", batch=50, rng=generator)
    mean_C = values[0].mean(axis=0)
    low, high = result.confidence_interval
    return np.where(np.isnan(low), mean_C, low), np.where(np.isnan(high), mean_C, high)


METHODS: dict[str, Method] = {
    "chosen": chosen,
    "student": _student,
    "percentile": _percentile,
    "bca": _bca,
    "bootstrap-t": _bootstrap_t,
}


def measure_coverage(
    scenario: Scenario, simulations: int, *, method: str = "chosen", resamples: int = 999, seed: int = 0
) -> Coverage:
    """Simulate runs, put an interval around each, and count how many contain the truth.

    Args:
        scenario: what is simulated.
        simulations: how many runs.
        method: one of :data:`METHODS`.
        resamples: bootstrap samples a run.
        seed: of the simulation.

    Returns:
        The counts.

    Example:
        >>> measure_coverage(SCENARIOS[6], 100, seed=1).simulations
        100
    """
    covered = above = below = 0
    width = 0.0
    generator = np.random.default_rng([seed, 1])
    for start in range(0, simulations, BLOCK):
        values = scenario.draw(min(BLOCK, simulations - start), generator)
        low, high = METHODS[method](scenario, values, resamples, [seed, start])
        above += int((low > scenario.truth + ROUNDING).sum())
        below += int((high < scenario.truth - ROUNDING).sum())
        covered += int(((low <= scenario.truth + ROUNDING) & (high >= scenario.truth - ROUNDING)).sum())
        width += float((high - low).sum())
    return Coverage(simulations=simulations, covered=covered, above=above, below=below, width=width / simulations)


def _row(scenario: Scenario, methods: Sequence[str], options: argparse.Namespace) -> list[str]:
    cells = [scenario.name]
    for method in methods:
        found = measure_coverage(
            scenario, options.simulations, method=method, resamples=options.resamples, seed=options.seed
        )
        if not found.covered:
            cells += ["-"] if len(methods) > 1 else ["-"] * 4
            continue
        low, high = (100 * bound for bound in found.interval)
        mark = "" if AIM[0] <= found.share <= AIM[1] else (" over" if found.share > AIM[1] else " UNDER")
        if len(methods) > 1:
            cells.append(f"{100 * found.share:.1f}{mark}")
        else:
            misses = f"{100 * found.below / found.simulations:.1f} / {100 * found.above / found.simulations:.1f}"
            cells += [f"{100 * found.share:.1f}{mark}", f"[{low:.1f}, {high:.1f}]", misses, f"{100 * found.width:.1f}"]
    return cells


def main(arguments: list[str] | None = None) -> int:
    """Print the coverage table."""
    parser = ArgumentParser(prog="python -m t2ictl.benchmarks.results.statistics.coverage", description=__doc__)
    parser.add_argument("--simulations", type=int, default=4000, help="simulated runs a cell")
    parser.add_argument("--resamples", type=int, default=999, help="bootstrap samples a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["chosen"])
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--extreme", action="store_true", help="the cells that no interval gets right, instead")
    options = parser.parse_args(arguments)
    single = len(options.methods) == 1
    head = ["coverage, %", "95 % interval", "too low / too high, %", "width, points"] if single else options.methods
    grid = [scenario for scenario in (EXTREME if options.extreme else SCENARIOS) if options.only in scenario.name]
    rows = [_row(scenario, options.methods, options) for scenario in grid]
    print(f"{options.simulations} simulations a cell, {options.resamples} resamples, seed {options.seed}")
    print(f"nominal 95 %, aim {AIM[0]:.0%} to {AIM[1]:.0%}; {', '.join(options.methods)}")
    print(tabulate.tabulate(rows, [f"{len(rows)} scenarios", *head], tablefmt="github", disable_numparse=True))
    missed = sum(any(mark in cell for mark in ("over", "UNDER")) for row in rows for cell in row[1:])
    print(f"{missed} outside the aim")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
