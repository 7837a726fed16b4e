"""Estimates of single cells against scipy and statsmodels, and their coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from t2ictl.evaluation.statistics.resampling import holm
from t2ictl.processors.token_flow.analysis.cells import Estimate, adjusted, difference, paired_p_value, share


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (0, 10), (0, 20), (3, 8), (8, 8)])
def test_shares_have_wilsons_interval(hits: int, trials: int) -> None:
    found = share(np.array([1.0] * hits + [0.0] * (trials - hits)))
    wanted = proportion_confint(hits, trials, method="wilson")
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-9)
    assert found.value == hits / trials and found.count == trials


def test_five_seeds_cannot_certify_that_nothing_leaks() -> None:
    assert [round(share(np.zeros(n)).high, 2) for n in (5, 10, 20)] == [0.43, 0.28, 0.16]


@pytest.mark.parametrize(("ups", "downs"), [(5, 0), (4, 1), (3, 3), (0, 6)])
def test_p_values_are_mcnemars(ups: int, downs: int) -> None:
    one = np.array([1.0] * ups + [0.0] * downs + [1.0, 0.0])
    other = np.array([0.0] * ups + [1.0] * downs + [1.0, 0.0])
    wanted = mcnemar([[1, ups], [downs, 1]], exact=True).pvalue
    assert paired_p_value(one, other) == pytest.approx(wanted)
    assert paired_p_value(one, other, "greater") == pytest.approx(stats.binom.sf(ups - 1, ups + downs, 0.5))


def test_probabilities_have_wilcoxons_p_value() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.random(12), generator.random(12)
    assert paired_p_value(one, other) == pytest.approx(stats.wilcoxon(one, other).pvalue)


def test_no_difference_is_no_evidence() -> None:
    assert paired_p_value(np.ones(8), np.ones(8)) == 1.0
    assert difference(np.ones(8), np.ones(8)).value == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    values = np.random.default_rng(seed).random(7) ** 3
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
    with_gap = np.array([*values[:3], np.nan, *values[3:]])
    assert np.isnan(holm(with_gap)[3]) and holm(with_gap)[[0, 1, 2, 4, 5, 6, 7]] == pytest.approx(holm(values))


def test_what_is_no_test_is_not_counted() -> None:
    def one(p_value: float | None) -> Estimate:
        return Estimate(value=0, low=0, high=0, count=1, method="", p_value=p_value)

    assert adjusted([one(0.03), one(None), one(0.04)])[0] == pytest.approx(0.06)
    assert np.isnan(adjusted([one(0.03), one(None)])[1])


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.5), (0.8, 0.3), (0.3, 0.1)])
def test_intervals_of_differences_cover(before: float, after: float) -> None:
    generator, runs = np.random.default_rng(7), 400
    hits = 0
    for _ in range(runs):
        one, other = ((generator.random(20) < rate).astype(float) for rate in (before, after))
        found = difference(one, other)
        hits += found.low <= before - after <= found.high
    # 95 % of 400 with three standard errors; the interval may be too wide, hardly too narrow.
    assert hits / runs >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)
