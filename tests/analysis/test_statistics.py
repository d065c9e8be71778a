import math
import statistics
from itertools import chain, combinations

import numpy as np
import pytest
from scipy import stats

from cs330ray.analysis.statistics import (
    MOST_SEEDS,
    Interval,
    holm,
    over_seeds,
    over_units,
    p_paired,
    paired,
    paired_units,
    prediction,
    seeds_needed,
)
from cs330ray.trial.contract import Item


def test_over_seeds_is_student_s_t_by_hand():
    """Of 1, 2, 3: s = 1, t(.975, 2) = 4.302653 from the tables, so 2 +- 4.302653 / sqrt(3)."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert half(found) == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert half(over_seeds([0.7, 0.7])) == 0.0


def test_one_seed_has_no_interval_and_says_so():
    found = over_seeds([0.7])
    assert (found.mean, found.n, str(found)) == (0.7, 1, "(n 1, no interval)")


def test_an_interval_says_its_width_where_it_is_even_and_its_ends_where_it_is_not():
    assert str(Interval(0.5, 0.4, 0.6, 5)) == "±0.1 (n 5)"
    assert str(Interval(1.0, 0.7225, 1.0, 10)) == "[0.7225, 1] (n 10)"


def test_paired_seeds_take_out_what_both_share():
    found = paired([0.9, 0.5, 0.7], [0.8, 0.4, 0.6])
    assert found.mean == pytest.approx(0.1)
    assert half(found) == pytest.approx(0.0, abs=1e-9)


def test_over_units_of_one_item_each_is_the_normal_interval():
    scores = [0.2, 0.4, 0.9, 0.5]
    found = over_units([[Item(str(unit), score) for unit, score in enumerate(scores)]])
    mean = 0.5
    s = math.sqrt(sum((score - mean) ** 2 for score in scores) / 3)
    assert found.mean == pytest.approx(mean)
    assert half(found) == pytest.approx(1.96 * s / 2, rel=1e-4)
    assert found.n == 4


def test_items_of_one_unit_are_not_independent():
    """Each unit's item ten times over is the same evidence: the same interval, and n counts units."""
    once = [Item(str(unit), score) for unit, score in enumerate([0.2, 0.4, 0.9, 0.5])]
    often = [item for item in once for _ in range(10)]
    assert half(over_units([often])) == pytest.approx(half(over_units([once])))
    assert over_units([often]).n == 4


def test_shares_have_wilson_s_interval():
    """Eight of ten: .4902 to .9433 (Wilson 1927, without continuity correction)."""
    found = over_units([[Item(str(unit), float(unit < 8)) for unit in range(10)]])
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    all_right = over_units([[Item(str(unit), 1.0) for unit in range(10)]])
    assert all_right.high == pytest.approx(1.0)
    assert all_right.low == pytest.approx(0.7225, abs=1e-4)


def test_items_scored_by_several_seeds_count_once_at_their_mean():
    """Of .2, .4, .9, .5 twice, once a tenth higher and once a tenth lower."""
    scores = [0.2, 0.4, 0.9, 0.5]
    runs = [[Item(str(unit), score + shift) for unit, score in enumerate(scores)] for shift in (0.1, -0.1)]
    once = over_units([[Item(str(unit), score) for unit, score in enumerate(scores)]])
    assert over_units(runs).mean == pytest.approx(once.mean)
    assert half(over_units(runs)) == pytest.approx(half(once))
    assert over_units(runs).n == 4


def test_shares_that_two_seeds_split_evenly_are_not_certain():
    """Each seed is right on the other half: every mean is .5, and ten units still say little."""
    runs = [[Item(str(unit), float((unit < 5) == first)) for unit in range(10)] for first in (True, False)]
    found = over_units(runs)
    assert (found.low, found.high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))


@pytest.mark.parametrize("other", [[], [Item("b", 1.0)], [Item("a", 1.0), Item("b", 1.0)]])
def test_seeds_that_scored_other_items_are_refused(other):
    with pytest.raises(ValueError, match="other items"):
        over_units([[Item("a", 1.0)], other])


def test_one_further_value_lies_where_student_s_t_says():
    """Of 1, 2, 3: mean 2, s 1, and t of two degrees of freedom is 4.3027; 4.3027 * sqrt(4 / 3) = 4.9683."""
    found = prediction([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert half(found) == pytest.approx(4.9683, abs=1e-4)


@pytest.mark.parametrize("n", [2, 5])
def test_a_prediction_holds_for_95_of_100_further_values(n):
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, n + 1))
    found = [prediction(list(row[:-1])) for row in draws]
    held = [interval.low <= row[-1] <= interval.high for interval, row in zip(found, draws, strict=True)]
    assert 0.94 < np.mean(held) < 0.96


# Tests of a difference


def test_p_paired_is_scipy_s():
    rng = np.random.default_rng(1)
    for n in (2, 3, 5, 20):
        one, other = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
        assert p_paired(one.tolist(), other.tolist()) == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [([0.9], [0.1], None), ([], [], None), ([0.5, 0.7], [0.5, 0.7], 1.0), ([1.5, 0.75], [1.25, 0.5], 0.0)],
    ids=["one pair", "no pair", "the same", "always a quarter more"],
)
def test_p_paired_without_scatter(one, other, p):
    assert p_paired(one, other) == p


def test_p_paired_is_below_five_percent_exactly_where_the_interval_leaves_zero_out():
    rng = np.random.default_rng(2)
    for _ in range(200):
        one, other = rng.normal(1, 1, 4).tolist(), rng.normal(0, 1, 4).tolist()
        apart = paired(one, other)
        assert (p_paired(one, other) < 0.05) == (not apart.low <= 0 <= apart.high)


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        p_paired([1.0, 2.0], [1.0])


def test_holm_by_hand():
    """Sorted .005 * 4 = .02, .01 * 3 = .03, .03 * 2 = .06, .04 * 1 raised to .06; 1 is the most."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis falls where every set with it falls: its p is the largest of size * least p over those sets."""
    p = np.random.default_rng(3).uniform(0, 0.3, 6).tolist()
    sets = list(chain.from_iterable(combinations(range(6), size) for size in range(1, 7)))
    by_closure = [max(min(1, len(one) * min(p[i] for i in one)) for one in sets if index in one) for index in range(6)]
    assert holm(p) == pytest.approx(by_closure)


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_those_of_power_tables(effect, pairs):
    """Two-sided paired t-test at .05 with power .8, as G*Power tabulates it for Cohen's small, medium, large and 1."""
    assert seeds_needed(of_mean_and_scatter(effect, 1.0)) == pairs
    assert seeds_needed(of_mean_and_scatter(-effect / 100, 0.01)) == pairs


def test_so_many_seeds_find_the_difference_four_times_in_five_and_one_less_does_not():
    rng = np.random.default_rng(4)
    needed = seeds_needed(of_mean_and_scatter(1.0, 1.0))

    def power(n):
        apart = rng.normal(1.0, 1.0, (200_000, n))
        return (stats.ttest_1samp(apart, 0, axis=1).pvalue < 0.05).mean()

    assert power(needed - 1) < 0.79
    assert power(needed) >= 0.8


def test_a_difference_too_small_for_a_thousand_seeds_says_more():
    assert seeds_needed(of_mean_and_scatter(0.08, 1.0)) == MOST_SEEDS + 1


def test_a_difference_far_beyond_its_scatter_needs_two_seeds():
    assert seeds_needed(of_mean_and_scatter(1.0, 0.01)) == 2
    assert seeds_needed(of_mean_and_scatter(1.0, 1e-8)) == 2


@pytest.mark.parametrize("apart", [[], [0.3], [0.0, 0.0], [0.25, 0.25], [0.5, -0.5], [1.1 - 1.0, 0.3 - 0.2]])
def test_seeds_needed_are_unknown_without_scatter_or_difference(apart):
    assert seeds_needed(apart) is None


# Two alternatives on the same items


def test_paired_units_of_one_item_each_is_the_normal_interval_of_the_differences():
    """Differences .1, .3, -.1, .1: mean .1, s = sqrt(.08 / 3), so .1 +- 1.96 s / 2."""
    found = paired_units([items(0.3, 0.7, 0.4, 0.6)], [items(0.2, 0.4, 0.5, 0.5)])
    assert (found.mean, found.n) == (pytest.approx(0.1), 4)
    assert half(found) == pytest.approx(1.959964 * math.sqrt(0.08 / 3) / 2, rel=1e-6)


def test_paired_units_averages_each_item_over_the_seeds():
    runs_one = [items(0.2, 0.8, 0.3), items(0.4, 0.6, 0.5)]
    runs_other = [items(0.1, 0.2, 0.3), items(0.1, 0.4, 0.1)]
    averaged = paired_units([items(0.3, 0.7, 0.4)], [items(0.1, 0.3, 0.2)])
    found = paired_units(runs_one, runs_other)
    assert (found.low, found.high, found.n) == (pytest.approx(averaged.low), pytest.approx(averaged.high), 3)


def test_paired_units_counts_units_and_not_items():
    one, other = items(0.3, 0.7, 0.4, 0.6), items(0.2, 0.4, 0.5, 0.5)
    often = [[item for item in run for _ in range(10)] for run in (one, other)]
    once = paired_units([one], [other])
    assert half(paired_units([often[0]], [often[1]])) == pytest.approx(half(once))
    assert paired_units([often[0]], [often[1]]).n == 4


def test_paired_shares_have_agresti_and_min_s_interval():
    """Of 100 tasks one alone is right on 20, the other alone on 10, both on 50: n = 102, b = 20.5, c = 10.5."""
    one = items(*[1.0] * 50, *[1.0] * 20, *[0.0] * 10, *[0.0] * 20)
    other = items(*[1.0] * 50, *[0.0] * 20, *[1.0] * 10, *[0.0] * 20)
    found = paired_units([one], [other])
    centre, width = 10 / 102, 1.959964 * math.sqrt(20.5 + 10.5 - (20.5 - 10.5) ** 2 / 102) / 102
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == (pytest.approx(centre - width), pytest.approx(centre + width))


def test_two_that_agree_on_every_task_are_not_certainly_equal():
    found = paired_units([items(1.0, 0.0, 1.0, 1.0)], [items(1.0, 0.0, 1.0, 1.0)])
    assert found.mean == 0
    assert found.low < -0.3
    assert found.high > 0.3


def test_shares_beside_scores_are_scores():
    """Differences .5, -.5, .5, -.5 of one that is 0 or 1 and one that is always .5: mean 0, s = sqrt(1 / 3)."""
    found = paired_units([items(1.0, 0.0, 1.0, 0.0)], [items(0.5, 0.5, 0.5, 0.5)])
    assert half(found) == pytest.approx(1.959964 * math.sqrt(1 / 3) / 2, rel=1e-6)


def test_paired_shares_stay_between_minus_one_and_one():
    found = paired_units([items(1.0, 1.0, 1.0)], [items(0.0, 0.0, 0.0)])
    assert (found.mean, found.high) == (1.0, 1.0)
    assert 0 < found.low < 1


@pytest.mark.parametrize(
    "other",
    [[[Item("a", 0.2)]], [[Item("a", 0.2), Item("c", 0.4)]], [[Item("b", 0.2), Item("a", 0.4)]],
     [[Item("a", 0.2), Item("b", 0.4)], [Item("a", 0.2), Item("a", 0.4)]]],
    ids=["fewer", "another", "in another order", "a seed of its own"],
)  # fmt: skip
def test_two_that_scored_other_items_are_refused(other):
    with pytest.raises(ValueError, match="other items"):
        paired_units([[Item("a", 0.5), Item("b", 0.5)]], other)


# Coverage: of intervals said to hold the truth in 95 of 100 cases


@pytest.mark.parametrize("n", [3, 5, 20])
def test_over_seeds_holds_the_mean_of_normal_values_in_95_of_100_cases(n):
    rows = np.random.default_rng(n).normal(0.7, 0.02, (4000, n)).tolist()
    assert 0.93 < coverage(map(over_seeds, rows), 0.7) < 0.97


def test_paired_holds_the_difference_in_95_of_100_cases_though_seeds_scatter_far_more():
    rng = np.random.default_rng(6)
    shared = rng.normal(0, 10, (3000, 5))
    one = (shared + rng.normal(0.3, 0.1, (3000, 5))).tolist()
    other = (shared + rng.normal(0.1, 0.1, (3000, 5))).tolist()
    assert 0.93 < coverage(map(paired, one, other), 0.2) < 0.97


def test_over_units_holds_the_mean_of_continuous_items_in_95_of_100_cases():
    """600 tasks of one item, skewed: the square of a uniform, of mean 1/3."""
    rows = np.random.default_rng(7).random((800, 600)) ** 2
    assert 0.93 < coverage((over_units([items(*row)]) for row in rows.tolist()), 1 / 3) < 0.97


def test_over_units_holds_the_mean_of_clustered_items_in_95_of_100_cases():
    """150 users of four items each, most of the scatter being the user's; taken for 600 units it would hold in 75."""
    rng = np.random.default_rng(8)
    users = np.repeat(rng.normal(0.5, 0.2, (800, 150)), 4, axis=1)
    rows = (users + rng.normal(0, 0.1, users.shape)).tolist()
    names = [str(item // 4) for item in range(600)]
    assert 0.93 < coverage((over_units([list(map(Item, names, row))]) for row in rows), 0.5) < 0.97
    assert coverage((over_units([items(*row)]) for row in rows[:200]), 0.5) < 0.8


@pytest.mark.parametrize(("n", "share"), [(100, 0.5), (100, 0.9), (300, 0.97)])
def test_over_units_holds_a_share_in_95_of_100_cases(n, share):
    rows = (np.random.default_rng(n).random((1500, n)) < share).astype(float).tolist()
    assert 0.93 < coverage((over_units([items(*row)]) for row in rows), share) < 0.97


def test_paired_units_holds_the_difference_of_clustered_items_in_95_of_100_cases():
    """100 users of three items; both alternatives, each under two seeds, share what a user and an item are like."""
    rng = np.random.default_rng(9)
    names = [str(item // 3) for item in range(300)]
    effect = np.repeat(rng.normal(0.05, 0.1, (1000, 100)), 3, axis=1)
    shared = rng.normal(0.5, 1.0, effect.shape)

    def scored(values):
        return [list(map(Item, names, row)) for row in (values + rng.normal(0, 0.05, (2, 300))).tolist()]

    found = (paired_units(scored(one + gain), scored(one)) for one, gain in zip(shared, effect, strict=True))
    assert 0.93 < coverage(found, 0.05) < 0.97


def test_paired_units_holds_the_difference_of_shares_in_95_of_100_cases():
    """Two that share the task's difficulty: each is right where its skill exceeds it, but for a task in ten."""
    rng = np.random.default_rng(11)
    hard = rng.random((1000, 100))

    def right(skill):
        return ((hard < skill) ^ (rng.random(hard.shape) < 0.1)).astype(float).tolist()

    pairs = zip(right(0.8), right(0.7), strict=True)
    found = (paired_units([items(*one)], [items(*other)]) for one, other in pairs)
    assert 0.93 < coverage(found, 0.8 * 0.1) < 0.97


def items(*scores):
    """One item a unit."""
    return [Item(str(unit), score) for unit, score in enumerate(scores)]


def of_mean_and_scatter(mean, scatter):
    """Two values with that mean and standard deviation."""
    return [mean + scatter / math.sqrt(2), mean - scatter / math.sqrt(2)]


def coverage(intervals, truth):
    held = [found.low <= truth <= found.high for found in intervals]
    return sum(held) / len(held)


def half(interval):
    assert interval.high - interval.mean == pytest.approx(interval.mean - interval.low)
    return (interval.high - interval.low) / 2


def test_values_that_are_all_the_same_lie_in_their_own_interval() -> None:
    """The mean of three times .1 is another number in floating point."""
    held = next(value for value in (index / 997 for index in range(1, 997)) if statistics.fmean([value] * 3) != value)
    assert prediction([held] * 3) == Interval(held, held, held, 3)
