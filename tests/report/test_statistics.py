import math

import numpy as np
import pytest

from cs330ray.report.statistics import Interval, over_seeds, over_units, paired, prediction
from cs330ray.trial import Item


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


def half(interval):
    assert interval.high - interval.mean == pytest.approx(interval.mean - interval.low)
    return (interval.high - interval.low) / 2
