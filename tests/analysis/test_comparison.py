from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from scipy import stats

from cs330ray.analysis.comparison import Alternative, compare, holm_of_pairs, in_words, over_splits, probability_best
from cs330ray.analysis.statistics import holm, over_seeds, p_paired, paired, paired_units
from cs330ray.trial.contract import Item

A = [0.91, 0.88, 0.93, 0.90, 0.89]
B = [0.86, 0.87, 0.88, 0.84, 0.85]
C = [0.80, 0.95, 0.70, 0.99, 0.60]


def test_the_order_is_by_the_mean_on_validation():
    assert compare([of("c", C), of("a", A), of("b", B)], "max").order == ("a", "b", "c")
    assert compare([of("c", C), of("a", A), of("b", B)], "min").order == ("c", "b", "a")


def test_equal_alternatives_stay_in_the_order_given():
    assert compare([of("x", B), of("y", A), of("z", A)], "max").order == ("y", "z", "x")
    assert compare([of("x", B), of("z", A), of("y", A)], "min").order == ("x", "z", "y")


def test_the_best_is_compared_with_each_other_one_by_paired_seeds():
    found = compare([of("b", B), of("a", A), of("c", C)], "max")
    assert [apart.name for apart in found.differences] == ["b", "c"]
    for apart, values in zip(found.differences, [B, C], strict=True):
        assert apart.validation == paired(A, values)
        assert apart.p == pytest.approx(stats.ttest_rel(A, values).pvalue)
    assert (found.n, found.unit, found.means["b"]) == (5, "seed", over_seeds(B))


def test_a_metric_to_be_small_gives_the_same_answer_in_its_own_sign():
    most = compare([of("a", A), of("b", B), of("c", C)], "max")
    least = compare(
        [of(name, [-value for value in values]) for name, values in zip("abc", [A, B, C], strict=True)], "min"
    )
    assert least.order == most.order
    assert least.probability_best == most.probability_best
    assert least.rivals == most.rivals
    for one, other in zip(least.differences, most.differences, strict=True):
        assert one.validation.mean == pytest.approx(-other.validation.mean)
        assert (one.p, one.seeds_needed) == (pytest.approx(other.p), other.seeds_needed)


def test_p_is_adjusted_for_every_pair_and_not_for_those_with_the_best_alone():
    """Three pairs: a-b, a-c and b-c, sorted and multiplied by 3, 2, 1."""
    found = compare([of("a", A), of("b", B), of("c", C)], "max")
    a_b, a_c, b_c = (stats.ttest_rel(*pair).pvalue for pair in [(A, B), (A, C), (B, C)])
    assert a_b < a_c < b_c
    adjusted = [apart.p_holm for apart in found.differences]
    assert adjusted == pytest.approx([3 * a_b, max(3 * a_b, 2 * a_c)])


def test_equal_alternatives_seldom_show_a_false_difference():
    """Eight of one mean over five seeds; adjusted for the pairs with the best alone, one "differs" in 10 of 100."""
    rng = np.random.default_rng(0)
    of_all_pairs, of_those_with_the_best = [], []
    for _ in range(1000):
        columns = dict(enumerate(rng.normal(size=(8, 5)).tolist()))
        best = max(columns, key=lambda name: sum(columns[name]))
        of_all_pairs.append(any(p < 0.05 for pair, p in holm_of_pairs(columns).items() if best in pair))
        with_best = [p_paired(columns[best], columns[name]) for name in columns if name != best]
        of_those_with_the_best.append(min(holm(with_best)) < 0.05)
    assert 0.01 < np.mean(of_all_pairs) < 0.05
    assert np.mean(of_those_with_the_best) > 0.08


# Distinguished


def test_a_best_whose_difference_to_the_second_holds_zero_is_not_distinguished():
    found = compare([of("a", A), of("c", [0.89, 0.95, 0.84, 0.93, 0.86])], "max")
    assert found.differences[0].validation.low < 0 < found.differences[0].validation.mean
    assert (found.distinguished, found.rivals) == (False, ("c",))
    assert found.seeds_needed == found.differences[0].seeds_needed > 5


def test_a_best_that_is_ahead_on_every_seed_is_distinguished():
    found = compare([of("a", A), of("b", B)], "max")
    assert found.differences[0].validation.low > 0
    assert (found.distinguished, found.rivals, found.best) == (True, (), "a")


def test_a_best_told_from_the_second_but_not_from_a_noisy_third_is_not_distinguished():
    found = compare([of("a", A), of("b", B), of("c", C)], "max")
    assert not found.differences[0].holds_zero
    assert found.differences[1].holds_zero
    assert (found.distinguished, found.rivals) == (False, ("c",))


@pytest.mark.parametrize("goal", ["max", "min"])
def test_one_seed_orders_and_distinguishes_nothing(goal):
    found = compare([of("a", [0.9]), of("b", [0.1])], goal)
    (apart,) = found.differences
    assert found.order == (("a", "b") if goal == "max" else ("b", "a"))
    assert (apart.p, apart.p_holm, found.seeds_needed, found.n) == (None, None, None, 1)
    assert (found.distinguished, found.rivals) == (False, found.order[1:])
    assert found.probability_best == {"a": None, "b": None}


def test_alternatives_that_are_one_are_not_distinguished():
    found = compare([of("a", A), of("b", A)], "max")
    (apart,) = found.differences
    assert (apart.p, apart.p_holm, found.distinguished, found.seeds_needed) == (1.0, 1.0, False, None)
    assert found.probability_best == {"a": 0.5, "b": 0.5}


# Which seeds count


def test_only_seeds_that_all_share_count():
    found = compare([Alternative("a", {0: 0.1, 2: 0.9, 3: 0.7}), Alternative("b", {0: 0.2, 1: 5.0, 2: 0.6})], "max")
    assert (found.n, found.order) == (2, ("a", "b"))
    assert found.means["b"] == over_seeds([0.2, 0.6])
    assert found.differences[0].validation == paired([0.1, 0.9], [0.2, 0.6])


def test_seeds_pair_by_their_index_in_whichever_order_they_stand():
    straight = compare([of("a", A), of("b", B)], "max")
    turned = compare([of("a", A), Alternative("b", dict(reversed(list(enumerate(B)))))], "max")
    assert straight == turned


@pytest.mark.parametrize(
    ("alternatives", "message"),
    [
        ([], "two alternatives or more, but got 0"),
        ([Alternative("a", {0: 1.0})], "two alternatives or more, but got 1"),
        ([Alternative("a", {0: 1.0}), Alternative("a", {0: 2.0})], "must differ, but got a, a"),
        ([Alternative("a", {0: 1.0}), Alternative("b", {1: 2.0})], "no seed is shared by all of a, b"),
        ([Alternative("a", {0: 1.0}), Alternative("b", {0: float("nan")})], "values of b must be finite"),
        ([Alternative("a", {0: 1.0}, {0: float("inf")}), Alternative("b", {0: 1.0})], "values of a must be finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(alternatives, message):
    with pytest.raises(ValueError, match=message):
        compare(alternatives, "max")


# Test beside validation


def test_test_is_reported_and_chooses_nothing():
    found = compare([of("a", A, test=B), of("b", B, test=A)], "max")
    assert found.order == ("a", "b")
    assert found.differences[0].test == paired(B, A)


def test_test_pairs_over_the_seeds_that_both_were_tested_on():
    one = Alternative("a", dict(enumerate(A)), {0: 0.8, 1: 0.7, 4: 0.6})
    found = compare([one, Alternative("b", dict(enumerate(B)), {1: 0.6, 3: 0.1, 4: 0.6})], "max")
    assert found.differences[0].test == paired([0.7, 0.6], [0.6, 0.6])


def test_without_a_test_on_a_common_seed_there_is_no_difference_on_test():
    found = compare([Alternative("a", {0: 2.0, 1: 2.0}, {0: 0.8}), Alternative("b", {0: 1.0, 1: 1.5}, {1: 0.8})], "max")
    assert (found.differences[0].test, found.differences[0].test_items) == (None, None)


def test_the_test_s_items_pair_over_the_seeds_that_scored_both():
    a = {seed: [Item("t1", 0.5 + seed), Item("t2", 0.75)] for seed in (0, 1)}
    b = {seed: [Item("t1", 0.25), Item("t2", 0.5 + seed)] for seed in (1, 2)}
    alternatives = [
        Alternative("a", {0: 2.0, 1: 2.0, 2: 2.0}, items=a),
        Alternative("b", {0: 1.0, 1: 1.0, 2: 1.0}, items=b),
    ]
    assert compare(alternatives, "max").differences[0].test_items == paired_units([a[1]], [b[1]])


def test_tests_of_other_items_have_no_interval_over_items():
    alternatives = [
        Alternative(name, {0: value}, items={0: [Item(f"{name}1", 0.5), Item(f"{name}2", 0.75)]})
        for name, value in (("a", 2.0), ("b", 1.0))
    ]
    assert compare(alternatives, "max").differences[0].test_items is None


# The chance of being the best


@pytest.mark.parametrize("goal", ["max", "min"])
def test_probability_best_is_the_share_of_all_resamples(goal):
    """Three seeds have 27 equally likely resamples; equal sums share one."""
    columns = {"a": [3, 1, 2], "b": [1, 3, 2], "c": [2, 2, 1]}
    expected = dict.fromkeys(columns, Fraction(0))
    for drawn in product(range(3), repeat=3):
        sums = {name: sum(values[seed] for seed in drawn) for name, values in columns.items()}
        top = (max if goal == "max" else min)(sums.values())
        winners = [name for name, total in sums.items() if total == top]
        for name in winners:
            expected[name] += Fraction(1, 27 * len(winners))
    found = probability_best(columns, goal)
    assert found == pytest.approx({name: float(share) for name, share in expected.items()}, abs=0.015)
    assert sum(found.values()) == pytest.approx(1)


def test_seeds_are_drawn_for_all_alternatives_together():
    """a is a little ahead on each seed and would often lose were seeds drawn for each alone."""
    assert probability_best({"a": [1.01, 5.01, 9.01], "b": [1.0, 5.0, 9.0]}, "max") == {"a": 1.0, "b": 0.0}


def test_means_that_differ_by_rounding_alone_share_a_draw():
    """.1 + .2 + .3 is not .3 + .2 + .1. Of 27 resamples c leads 10 and shares 7 (seed 0 as often as 2) with a and b."""
    found = probability_best({"a": [0.1, 0.2, 0.3], "b": [0.1, 0.2, 0.3], "c": [0.3, 0.2, 0.1]}, "max")
    assert found["a"] == found["b"]
    assert found["c"] == pytest.approx(10 / 27 + 7 / 81, abs=0.015)


def test_probability_best_is_the_same_each_time():
    assert probability_best({"a": A, "c": C}, "max") == probability_best({"a": A, "c": C}, "max")


# Over splits


def test_splits_pair_by_their_place_each_at_its_mean_over_seeds():
    """On split 0: a .6 and b .3; on split 1: a .7 and b .5; test of a on split 0 alone."""
    first = [Alternative("a", {0: 0.5, 1: 0.7}, {0: 0.25, 1: 0.75}), Alternative("b", {0: 0.3, 1: 0.3})]
    second = [Alternative("b", {0: 0.4, 1: 0.6}), Alternative("a", {0: 0.7, 1: 0.7})]
    a, b = over_splits([first, second])
    assert (a.name, a.validation, a.test) == ("a", pytest.approx({0: 0.6, 1: 0.7}), {0: 0.5})
    assert (b.name, b.validation, b.test) == ("b", pytest.approx({0: 0.3, 1: 0.5}), {})
    found = compare([a, b], "max", unit="split")
    assert (found.unit, found.n, found.order) == ("split", 2, ("a", "b"))
    assert found.differences[0].validation.mean == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("needed", "unit", "words"),
    [(12, "seed", "about 12 seeds"), (1001, "split", "more than 1000 splits"), (None, "seed", "not known")],
)
def test_seeds_needed_in_words(needed, unit, words):
    assert in_words(needed, unit) == words


def of(name, validation, test=()):
    """An alternative whose values are those of seeds 0, 1, 2, ..."""
    return Alternative(name, dict(enumerate(validation)), dict(enumerate(test)))
