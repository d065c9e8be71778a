import math

import pytest

from cs330ray.report.statistics import averaged, over_seeds, over_units, paired
from cs330ray.trial import Item


def test_over_seeds_is_student_s_t_by_hand():
    """Of 1, 2, 3: s = 1, t(.975, 2) = 4.302653 from the tables, so 2 +- 4.302653 / sqrt(3)."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert over_seeds([0.7, 0.7]).half == 0.0


def test_one_seed_has_no_width_and_says_that_it_is_one():
    found = over_seeds([0.7])
    assert (found.mean, found.low, found.high, found.n) == (0.7, 0.7, 0.7, 1)


def test_paired_seeds_take_out_what_both_share():
    found = paired([0.9, 0.5, 0.7], [0.8, 0.4, 0.6])
    assert found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(0.0, abs=1e-9)


def test_over_units_of_one_item_each_is_the_normal_interval():
    scores = [0.2, 0.4, 0.9, 0.5]
    found = over_units([Item(str(unit), score) for unit, score in enumerate(scores)])
    mean = 0.5
    s = math.sqrt(sum((score - mean) ** 2 for score in scores) / 3)
    assert found.mean == pytest.approx(mean)
    assert found.half == pytest.approx(1.96 * s / 2, rel=1e-4)
    assert found.n == 4


def test_items_of_one_unit_are_not_independent():
    """Each unit's item ten times over is the same evidence: the same interval, and n counts units."""
    once = [Item(str(unit), score) for unit, score in enumerate([0.2, 0.4, 0.9, 0.5])]
    often = [item for item in once for _ in range(10)]
    assert over_units(often).half == pytest.approx(over_units(once).half)
    assert over_units(often).n == 4


def test_shares_have_wilson_s_interval():
    """Eight of ten: .4902 to .9433 (Wilson 1927, without continuity correction)."""
    found = over_units([Item(str(unit), float(unit < 8)) for unit in range(10)])
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    all_right = over_units([Item(str(unit), 1.0) for unit in range(10)])
    assert all_right.high == pytest.approx(1.0)
    assert all_right.low == pytest.approx(0.7225, abs=1e-4)


def test_the_same_items_of_several_seeds_are_averaged_item_by_item():
    assert averaged([[Item("a", 1.0), Item("b", 0.0)], [Item("a", 0.0), Item("b", 0.0)]]) == [
        Item("a", 0.5),
        Item("b", 0.0),
    ]


def test_runs_that_scored_other_items_cannot_be_averaged():
    with pytest.raises(ValueError, match="zip"):
        averaged([[Item("a", 1.0)], []])
