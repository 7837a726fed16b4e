"""Intervals and tests against values worked by hand, published values, and loops that share no code with them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from t2ictl.evaluation.statistics.intervals import (
    Bounds,
    combine,
    difference_bounds,
    macro_differences,
    share_bounds,
    wilson_bounds,
)
from t2ictl.evaluation.statistics.resampling import flipped_means, holm, resampled_means, seed_of, sign_flip_p_values

QUARTERS = st.lists(st.integers(-4, 4).map(lambda k: k / 4), min_size=12, max_size=40)


def _column(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def _bounds(bounds: Bounds, column: int = 0) -> tuple[float, float, float]:
    return float(bounds.low[column]), float(bounds.estimate[column]), float(bounds.high[column])


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    hits, total = np.array([81, 15, 0, 1]), np.array([263.0, 148.0, 20.0, 29.0])
    low, high = wilson_bounds(hits / total, total, np.full(4, stats.norm.ppf(0.975)))
    assert low == pytest.approx([0.2553, 0.0624, 0, 0.0061], abs=1e-4)
    assert high == pytest.approx([0.3662, 0.1605, 0.1611, 0.1718], abs=1e-4)


def test_interval_of_a_share_worked_by_hand() -> None:
    """Means 0, 0.5, 0.5, 1: variance 1/6, squared error 1/24, so 0.25 * 24 = 6 images; Student's point for 3."""
    low, estimate, high = _bounds(share_bounds(_column([0, 0.5, 0.5, 1])))
    point = 3.182446
    shrink = 1 + point**2 / 6
    half = point * math.sqrt(0.25 / 6 + point**2 / 144) / shrink
    assert estimate == 0.5
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_one_image_a_prompt_is_wilson_with_one_image_less() -> None:
    values = [1.0] * 30 + [0.0] * 70
    bounds = share_bounds(_column(values))
    low, high = wilson_bounds(np.array([0.3]), np.array([99.0]), np.array([stats.t.ppf(0.975, 99)]))
    assert _bounds(bounds) == pytest.approx((low[0], 0.3, high[0]))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_shares_that_are_all_alike_have_a_named_interval_with_width(value: float) -> None:
    bounds = share_bounds(_column([value] * 50))
    low, estimate, high = _bounds(bounds)
    assert bounds.method.tolist() == ["wilson-prompts"]
    assert low <= estimate <= high and high - low > 0.05
    assert 0 <= low and high <= 1
    if value == 0:
        point = stats.t.ppf(0.975, 49)
        assert high == pytest.approx(point**2 / (50 + point**2))


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, -0.0747, 0.0747), (1.0, 0.9253, 1.0), (-1.0, -1.0, -0.9253)])
def test_differences_that_are_all_alike_have_width(value: float, low: float, high: float) -> None:
    bounds = difference_bounds(_column([value] * 50), 99, [0]).bounds
    assert bounds.method.tolist() == ["wilson-prompts"]
    assert _bounds(bounds) == pytest.approx((low, value, high), abs=1e-4)


def test_few_changed_prompts_get_students_interval() -> None:
    values = [0.5] * 4 + [-0.5] * 2 + [0.0] * 34
    bounds = difference_bounds(_column(values), 99, [0]).bounds
    expected = stats.t.interval(0.95, 39, loc=np.mean(values), scale=stats.sem(values))
    assert bounds.method.tolist() == ["student"]
    assert _bounds(bounds) == pytest.approx((expected[0], 0.025, expected[1]))


def test_one_prompt_gives_no_false_certainty() -> None:
    low, _, high = _bounds(share_bounds(_column([1.0])))
    assert low < 0.3 and high == 1
    low, _, high = _bounds(difference_bounds(_column([0.5]), 99, [0]).bounds)
    assert low < 0 and high == 1


def test_no_prompt_gives_no_interval() -> None:
    bounds = share_bounds(np.full((3, 1), np.nan))
    assert bounds.method.tolist() == ["none"] and math.isnan(bounds.estimate[0])


def test_bootstrap_has_the_distribution_of_all_samples() -> None:
    """Three prompts have 27 equally probable samples: their means, counted one by one."""
    values = [0.0, 0.25, 1.0]
    exact = [round(sum(sample) / 3, 9) for sample in itertools.product(values, repeat=3)]
    drawn = resampled_means(_column(values), 40_000, [5]).ravel().round(9)
    for mean in set(exact):
        assert (drawn == mean).mean() == pytest.approx(exact.count(mean) / 27, abs=0.01)


def test_interval_is_that_of_a_loop_over_samples() -> None:
    generator = np.random.default_rng(3)
    values = generator.integers(-4, 5, 60) / 4
    means = []
    for _ in range(6000):
        means.append(sum(values[generator.integers(60)] for _ in range(60)) / 60)
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 59) * math.sqrt(60 / 59))
    expected = np.quantile(means, [tail, 1 - tail])
    bounds = difference_bounds(values[:, None], 9999, [0]).bounds
    assert bounds.method.tolist() == ["bootstrap"]
    assert [bounds.low[0], bounds.high[0]] == pytest.approx(expected.tolist(), abs=0.01)


def test_interval_agrees_with_scipys_bootstrap() -> None:
    values = np.random.default_rng(4).integers(-4, 5, 400) / 4
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    ours = difference_bounds(values[:, None], 9999, [0]).bounds
    assert [ours.low[0], ours.high[0]] == pytest.approx([theirs.low, theirs.high], abs=0.004)


def test_columns_with_the_same_prompts_share_their_samples() -> None:
    """So that a difference of two columns is resampled as the columns are."""
    values = np.random.default_rng(0).random((20, 2))
    both = resampled_means(values, 50, [1])
    difference = resampled_means(values[:, :1] - values[:, 1:], 50, [1])
    assert both[:, 0] - both[:, 1] == pytest.approx(difference[:, 0])


def test_a_prompt_without_a_value_takes_no_part() -> None:
    values = np.array([[1.0, 1.0], [0.0, np.nan], [0.5, 0.5], [0.25, 0.25]])
    mixed, alone = resampled_means(values, 50, [1]), resampled_means(values[[0, 2, 3], 1:], 50, [1])
    assert (mixed[:, 1] == alone[:, 0]).all()
    assert share_bounds(values).prompts.tolist() == [4, 3]


def test_signs_against_all_signs() -> None:
    """Five prompts have 32 equally probable signs."""
    values = [0.5, 0.25, 0.25, -0.25, 1.0]
    means = [
        sum(s * v for s, v in zip(signs, values, strict=True)) / 5 for signs in itertools.product((1, -1), repeat=5)
    ]
    exact = sum(abs(mean) >= 0.35 - 1e-12 for mean in means) / 32
    flipped = flipped_means(_column(values), 40_000, [0])
    assert sign_flip_p_values(np.array([0.35]), flipped)[0] == pytest.approx(exact, abs=0.01)


def test_p_agrees_with_scipys_permutation_test() -> None:
    values = np.random.default_rng(8).integers(-2, 4, 40) / 4
    theirs = stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=20_000, rng=1
    ).pvalue
    ours = sign_flip_p_values(np.array([values.mean()]), flipped_means(values[:, None], 20_000, [0]))[0]
    assert 0.001 < theirs < 0.5
    assert ours == pytest.approx(theirs, abs=0.01)


def test_p_is_1_without_a_difference_and_never_0() -> None:
    flat = flipped_means(np.zeros((30, 1)), 999, [0])
    assert sign_flip_p_values(np.zeros(1), flat).tolist() == [1.0]
    sure = flipped_means(np.ones((300, 1)), 999, [0])
    assert sign_flip_p_values(np.ones(1), sure).tolist() == [0.001]


def test_p_is_uniform_under_the_null() -> None:
    """Where there is no difference 5 % of the tests reject at 5 %."""
    values = np.random.default_rng(2).integers(-20, 21, (60, 2000)) / 40
    p = sign_flip_p_values(values.mean(axis=0), flipped_means(values, 999, [0]))
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.015)
    assert (p <= 0.5).mean() == pytest.approx(0.5, abs=0.04)


def test_holm_worked_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; none may fall: 0.06 twice."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1, 1])
    adjusted = holm(np.array([0.01, np.nan, 0.02]))
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.02]) and math.isnan(adjusted[1])


def test_mean_of_two_categories_worked_by_hand() -> None:
    """Distances 0.1 and 0.2 below, 0.3 and 0.4 above: half of sqrt(0.05) and of 0.5."""
    one, two = (
        Bounds(
            estimate=np.array([mean]),
            low=np.array([low]),
            high=np.array([high]),
            method=np.array(["wilson"]),
            prompts=np.array([10]),
        )
        for mean, low, high in ((0.4, 0.3, 0.7), (0.6, 0.4, 1.0))
    )
    found = combine([one, two])
    assert _bounds(found) == pytest.approx((0.5 - math.sqrt(0.05) / 2, 0.5, 0.75))
    assert found.prompts.tolist() == [20]


def test_macro_difference_resamples_within_categories() -> None:
    """Against a loop; if categories were pooled, the variance between them would widen the interval."""
    generator = np.random.default_rng(6)
    parts = [generator.integers(0, 3, 40) / 4 + 0.5, -generator.integers(0, 3, 80) / 4 - 0.5]
    found = macro_differences([difference_bounds(part[:, None], 9999, [k]) for k, part in enumerate(parts)])
    means = [np.mean([generator.choice(part, len(part)).mean() for part in parts]) for _ in range(4000)]
    assert found.method.tolist() == ["bootstrap"]
    expected = (*np.quantile(means, [0.025]), *np.quantile(means, [0.975]))
    assert (found.low[0], found.high[0]) == pytest.approx(expected, abs=0.005)


def test_macro_of_one_category_is_that_category() -> None:
    part = difference_bounds(_column([0.25, -0.5, 0.75, 0.5] * 10), 999, [0])
    assert _bounds(macro_differences([part])) == pytest.approx(_bounds(part.bounds))


def test_samples_of_a_category_do_not_depend_on_the_others() -> None:
    assert seed_of("pair", 1) != seed_of("pair", 2) != seed_of("triple", 2)


@settings(deadline=None, max_examples=30)
@given(QUARTERS)
def test_changing_sides_changes_the_sign(values: list[float]) -> None:
    ours, theirs = (difference_bounds(_column(v), 199, [0]).bounds for v in (values, [-x for x in values]))
    low, estimate, high = _bounds(ours)
    assert _bounds(theirs) == pytest.approx((-high, -estimate, -low))
    flips = [flipped_means(_column(v), 199, [0]) for v in (values, [-x for x in values])]
    assert sign_flip_p_values(ours.estimate, flips[0]) == sign_flip_p_values(theirs.estimate, flips[1])


@settings(deadline=None, max_examples=30)
@given(QUARTERS.filter(lambda values: sum(x != 0 for x in values) > 9), st.sampled_from([0.25, -0.25]))
def test_resampled_means_shift_with_the_values(values: list[float], shift: float) -> None:
    plain, shifted = (resampled_means(_column(v), 99, [0]) for v in (values, [x + shift for x in values]))
    assert shifted == pytest.approx(plain + shift)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4).map(lambda k: k / 4), min_size=1, max_size=60))
def test_a_share_lies_in_its_interval_and_mirrors(values: list[float]) -> None:
    low, estimate, high = _bounds(share_bounds(_column(values)))
    assert 0 <= low <= estimate + 1e-12 and estimate - 1e-12 <= high <= 1 and high > low
    mirrored = share_bounds(_column([1 - x for x in values]))
    assert _bounds(mirrored) == pytest.approx((1 - high, 1 - estimate, 1 - low), abs=1e-9)
