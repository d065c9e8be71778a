import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from cs330ray.analysis.band import best_so_far, cdf_band, probability_within, tuning_band

INFINITY = math.inf


# The exact probability that all order statistics lie within bounds


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_probability_within_is_steck_s_determinant(n):
    """Steck 1971: n! det[(u_i - l_j)_+^(j-i+1) / (j-i+1)!], with 0 for negative powers."""
    rng = np.random.default_rng(n)
    for _ in range(5):
        lower = np.sort(rng.uniform(0, 0.6, n))
        upper = np.maximum(np.sort(rng.uniform(0.3, 1, n)), lower + 0.05)
        assert probability_within(lower, upper) == pytest.approx(steck(lower, upper), abs=1e-12)


def test_probability_within_is_an_area_for_two_draws():
    """Of the triangle x < y, where the density is 2: x in [.1, .5], y in [.3, .9] less the corner x > y."""
    area = 0.4 * 0.6 - 0.2**2 / 2
    assert probability_within(np.array([0.1, 0.3]), np.array([0.5, 0.9])) == pytest.approx(2 * area)


def test_probability_within_bounds_that_cross_is_zero():
    assert probability_within(np.array([0.1, 0.6]), np.array([0.2, 0.5])) == 0.0


@pytest.mark.parametrize(("n", "distance"), [(20, 0.2), (100, 0.1), (140, 0.12)])
def test_probability_within_an_even_band_is_kolmogorov_s(n, distance):
    i = np.arange(1, n + 1)
    lower, upper = np.clip(i / n - distance, 0, 1), np.clip((i - 1) / n + distance, 0, 1)
    assert probability_within(lower, upper) == pytest.approx(stats.kstwo.cdf(distance, n), abs=1e-10)


# The band of the distribution


def test_the_band_of_one_value_is_the_middle_of_the_uniform():
    lower, upper = cdf_band(1, 0.95)
    assert (*lower, *upper) == pytest.approx((0.025, 0.975))


def test_the_band_of_two_values_by_hand():
    """Beta(1, 2) and Beta(2, 1): bounds 1 - sqrt(1 - q) and sqrt(q); the level at which the area, twice, is .95."""
    lower, upper = cdf_band(2, 0.95)
    level = 2 * (1 - (1 - lower[0]) ** 2)
    assert lower[1] == pytest.approx(math.sqrt(level / 2))
    assert upper == pytest.approx([1 - lower[1], 1 - lower[0]])
    corner = max(upper[0] - lower[1], 0) ** 2 / 2
    assert 2 * ((upper[0] - lower[0]) * (upper[1] - lower[1]) - corner) == pytest.approx(0.95, abs=1e-6)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
def test_the_bounds_are_equal_tailed_intervals_of_one_level(confidence):
    n = 7
    lower, upper = cdf_band(n, confidence)
    i = np.arange(1, n + 1)
    below, above = stats.beta.cdf(lower, i, n + 1 - i), stats.beta.sf(upper, i, n + 1 - i)
    assert below == pytest.approx(np.full(n, below[0]))
    assert above == pytest.approx(below)
    assert steck(lower, upper) == pytest.approx(confidence, abs=1e-6)


@pytest.mark.parametrize(("n", "studies"), [(3, 20_000), (20, 20_000), (200, 10_000), (2000, 2000)])
def test_the_band_holds_the_whole_distribution_in_95_of_100_studies(n, studies):
    lower, upper = cdf_band(n, 0.95)
    drawn = np.sort(np.random.default_rng(n).random((studies, n)), axis=1)
    held = ((lower <= drawn) & (drawn <= upper)).all(axis=1).mean()
    assert held == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / studies))


# The curve


def test_the_curves_are_quantiles_of_the_distribution_and_of_its_band():
    """By the definition: the least y, of the range's ends and the values, where a CDF reaches 0.5^(1/k)."""
    values = [0.2, 0.9, 0.4, 0.7, 0.5, 0.65, 0.1, 0.3, 0.8, 0.35]
    n, y = len(values), [0.0, *sorted(values), 1.0]
    lower, upper = cdf_band(n, 0.95)
    point_cdf = [0, *(np.arange(1, n + 1) / n), 1]
    lower_cdf, upper_cdf = [0, *lower, 1], [*upper, 1, 1]
    found = tuning_band(values, "max", 0.0, 1.0)
    for k in range(1, n + 1):
        quantile = 0.5 ** (1 / k)
        for curve, cdf in ((found.median, point_cdf), (found.low, upper_cdf), (found.high, lower_cdf)):
            assert curve[k - 1] == next(at for at, reached in zip(y, cdf, strict=True) if reached >= quantile)


def test_the_median_curve_by_hand():
    """Of four: .5 is reached by the second, .707 by the third, .794 and .841 by the fourth."""
    assert tuning_band([4.0, 1.0, 3.0, 2.0], "max").median == (2.0, 3.0, 4.0, 4.0)
    assert tuning_band([4.0, 1.0, 3.0, 2.0], "min").median == (3.0, 2.0, 1.0, 1.0)


@pytest.mark.parametrize("goal", ["max", "min"])
def test_the_band_holds_the_whole_curve_at_least_as_often_as_it_says(goal):
    """Uniform values: the median of the best of k is 0.5^(1/k), or 1 less it."""
    rng, n = np.random.default_rng(12), 20
    truth = 0.5 ** (1 / np.arange(1, n + 1))
    truth = truth if goal == "max" else 1 - truth
    assert 0.95 <= curve_coverage(rng.random((3000, n)), goal, truth) < 0.99


def test_values_that_tie_leave_the_band_conservative():
    """Accuracies over ten tasks: 0, .1, ..., 1, at equal chances."""
    rng, n = np.random.default_rng(13), 20
    truth = (np.ceil(11 * 0.5 ** (1 / np.arange(1, n + 1))) - 1) / 10
    assert curve_coverage(rng.integers(0, 11, (2000, n)) / 10, "max", truth) >= 0.95


def test_a_metric_to_be_small_has_the_mirrored_band():
    values = np.random.default_rng(14).normal(size=30).tolist()
    most = tuning_band(values, "max", -5.0, 9.0)
    least = tuning_band([-value for value in values], "min", -9.0, 5.0)
    assert least.median == tuple(-value for value in most.median)
    assert (least.low, least.high) == (tuple(-value for value in most.high), tuple(-value for value in most.low))


def test_the_best_of_many_has_no_bound_but_the_metric_s_range():
    values = np.random.default_rng(15).random(20).tolist()
    assert tuning_band(values, "max").high[-1] == INFINITY
    assert tuning_band(values, "max", 0.0, 1.0).high[-1] == 1.0
    assert tuning_band(values, "min").low[-1] == -INFINITY
    assert tuning_band(values, "min", 0.0).low[-1] == 0.0
    assert tuning_band(values, "max").high[0] < 1.0


def test_a_single_value_says_nothing_of_the_rest():
    found = tuning_band([0.7], "max", 0.0, 1.0)
    assert (found.low, found.median, found.high, found.confidence) == ((0.0,), (0.7,), (1.0,), 0.95)


def test_failed_trials_are_draws_at_the_worst_end():
    found = tuning_band([-INFINITY] * 3 + [0.5] * 2, "max")
    assert found.median == (-INFINITY, 0.5, 0.5, 0.5, 0.5)


def test_the_band_rises_with_the_budget_and_holds_its_median():
    found = tuning_band(np.random.default_rng(16).normal(size=200).tolist(), "max")
    for curve in (found.low, found.median, found.high):
        assert all(before <= after for before, after in pairwise(curve))
    assert all(low <= mid <= high for low, mid, high in zip(found.low, found.median, found.high, strict=True))


def test_a_smaller_confidence_has_a_narrower_band():
    values = np.random.default_rng(17).random(50).tolist()
    wide, narrow = (
        tuning_band(values, "max", 0.0, 1.0, confidence=0.95),
        tuning_band(values, "max", 0.0, 1.0, confidence=0.5),
    )
    assert all(one <= other for one, other in zip(wide.low, narrow.low, strict=True))
    assert all(one >= other for one, other in zip(wide.high, narrow.high, strict=True))
    assert wide.low != narrow.low


@pytest.mark.parametrize("goal", ["max", "min"])
def test_a_range_that_a_value_breaks_bounds_nothing(goal):
    above, below = tuning_band([0.5, 1.0000001], goal, 0.0, 1.0), tuning_band([-0.1, 0.5], goal, 0.0, 1.0)
    assert {*above.low, *above.high} - {0.5, 1.0000001} == {0.0, INFINITY}
    assert {*below.low, *below.high} - {-0.1, 0.5} == {-INFINITY, 1.0}


@pytest.mark.parametrize("values", [[], [0.5, math.nan]])
def test_values_that_no_band_takes_are_refused(values):
    with pytest.raises(ValueError, match="one value or more, and none that is NaN"):
        tuning_band(values, "max", 0.0, 1.0)


# The plain curve


def test_best_so_far_keeps_the_best_in_the_order_given():
    assert best_so_far([0.3, 0.1, 0.5, 0.4], "max") == [0.3, 0.3, 0.5, 0.5]
    assert best_so_far([0.3, 0.1, 0.5, 0.4], "min") == [0.3, 0.1, 0.1, 0.1]
    assert best_so_far([], "max") == []


def test_best_so_far_passes_over_failed_trials():
    nan = math.nan
    found = best_so_far([nan, 0.3, nan, 0.5, nan], "max")
    assert math.isnan(found[0])
    assert found[1:] == [0.3, 0.3, 0.5, 0.5]


def steck(lower, upper):
    n = len(lower)
    powers = [[j - i + 1 for j in range(n)] for i in range(n)]
    matrix = [
        [0.0 if e < 0 else 1.0 if e == 0 else max(upper[i] - lower[j], 0) ** e / math.factorial(e)
         for j, e in enumerate(row)]
        for i, row in enumerate(powers)
    ]  # fmt: skip
    return math.factorial(n) * np.linalg.det(np.array(matrix))


def curve_coverage(studies, goal, truth):
    found = [tuning_band(values, goal, 0.0, 1.0) for values in studies.tolist()]
    held = [
        all(
            low <= true + 1e-9 and true <= high + 1e-9
            for low, true, high in zip(band.low, truth, band.high, strict=True)
        )
        for band in found
    ]
    return np.mean(held)
