"""Expected precision against hand-worked values and against simulated runs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from t2ictl.benchmarks.results.statistics import power
from t2ictl.benchmarks.results.statistics.reading import check_rows
from t2ictl.benchmarks.results.statistics.scenarios import Population
from t2ictl.errors import BadSetting
from t2ictl.evaluation.statistics.intervals import share_bounds
from tests.benchmarks.run_folders import PLAN, TINY, drawn_rows, rows_of


def test_standard_error_worked_by_hand() -> None:
    """(0.09 + 0.16 / 4) / 400 = 0.000325."""
    spread = power.Spread(between=0.3, within=0.4)
    assert spread.standard_error(power.Design(prompts=400, seeds=4)) == pytest.approx(math.sqrt(0.000325))


def test_expected_width_is_that_of_simulated_runs() -> None:
    """Beta-distributed prompts with r = 0.3 have a standard deviation of sqrt(0.3 * 0.25)."""
    population = Population(prompts=200, share=0.5, correlation=0.3)
    bounds = share_bounds(population.draw(500, np.random.default_rng(0), paired=False))
    expected = power.expect_share(0.5, math.sqrt(0.3 * 0.25), power.Design(prompts=200, seeds=4))
    assert expected.half_width == pytest.approx((bounds.high - bounds.low).mean() / 2, rel=0.02)


def test_detectable_difference_is_found_in_four_of_five_runs() -> None:
    spread, design = power.Spread(between=0.1, within=0.4), power.Design(prompts=60, seeds=4)
    detectable = power.expect_difference(spread, design).detectable
    generator = np.random.default_rng(0)
    values = detectable + math.sqrt(0.01 + 0.04) * generator.normal(size=(60, 4000))
    t = values.mean(axis=0) / (values.std(axis=0, ddof=1) / math.sqrt(60))
    assert (np.abs(t) > 2.001).mean() == pytest.approx(0.8, abs=0.02)


def test_more_seeds_shrink_only_the_part_within_prompts() -> None:
    few, many = (
        power.expect_share(0.5, 0.3, power.Design(prompts=100, seeds=seeds)).half_width for seeds in (1, 10_000)
    )
    assert many / few == pytest.approx(0.3 / 0.5, abs=0.02)


def test_correcting_for_more_tests_asks_for_more() -> None:
    spread = power.Spread(between=0.1, within=0.4)
    one, many = (
        power.expect_difference(spread, power.Design(prompts=100, seeds=4, comparisons=k)).detectable for k in (1, 30)
    )
    assert one < many < 2 * one


def test_pilot_without_any_change_still_has_a_width() -> None:
    spread, design = power.Spread(between=0, within=0), power.Design(prompts=50, seeds=4)
    assert power.expect_difference(spread, design).half_width == pytest.approx(0.0747, abs=1e-4)


def test_pilot_recovers_the_spread() -> None:
    rows = drawn_rows(prompts=60, seeds=4)
    run = check_rows(rows, {**PLAN, "seeds": 4})
    table = power.pilot_table(run, power.Design(prompts=400, seeds=4)).set_index(
        ["arm", "category", "outcome", "quantity"]
    )
    row = table.loc["plain", "pair", "is_strict", "share"]
    images = rows[(rows["arm"] == "plain") & (rows["category"] == "pair")]
    groups = [group["is_strict"].astype(float) for _, group in images.groupby("prompt_id")]
    within = np.mean([np.var(group, ddof=1) for group in groups])
    between = np.var([group.mean() for group in groups], ddof=1) - within / 4
    assert (row["within"], row["between"]) == pytest.approx((math.sqrt(within), math.sqrt(between)))
    assert ("segregation", "pair", "is_strict", "difference from plain") in table.index


def test_pilot_with_one_seed_is_refused() -> None:
    rows = rows_of(TINY)
    with pytest.raises(BadSetting, match="two seeds"):
        power.pilot_table(check_rows(rows[rows["seed"] == 0], PLAN), power.Design(prompts=10, seeds=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power.Design(prompts=1, seeds=4), "at least 2 prompts"),
        (lambda: power.share_spread(0.5, 0.6), "Use 0 to 0.500"),
        (lambda: power.share_spread(1.0, 0.1), "between 0 and 1"),
        (lambda: power.difference_spread(0.5, 0.3, 0.1, 2.0), "-1 to 1"),
    ],
)
def test_designs_that_cannot_be_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        call()
