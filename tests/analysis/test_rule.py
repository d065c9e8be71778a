"""The rule that tells cells apart, against scipy's tests, printed tables and simulated studies of equal cells."""

import math
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cs330ray.analysis.claims.rule import (
    critical_tukey,
    differences,
    level_of,
    may_claim,
    pairs_of,
    residual_variance,
    told_apart,
)

# Montgomery, Design and Analysis of Experiments, table 4.3: four extrusion pressures in six batches of resin.
GRAFTS = np.array(
    [
        [90.3, 89.2, 98.2, 93.9, 87.4, 97.9],
        [92.5, 89.5, 90.6, 94.7, 87.0, 95.8],
        [85.5, 90.8, 89.6, 86.2, 88.0, 93.4],
        [82.5, 89.5, 85.6, 87.4, 78.9, 90.7],
    ]
)


def equal(cells: int, units: int, studies: int, seed: int = 0) -> np.ndarray:
    """Studies of equal cells, whose units differ as much as their values do."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(studies, cells, units)) + rng.normal(size=(studies, 1, units))


# Levels


def test_the_first_look_is_at_4_percent_and_later_ones_share_one() -> None:
    assert [level_of(look) for look in (1, 2, 3, 4)] == [0.04, 0.005, 0.0025, 0.00125]
    assert math.fsum(level_of(look) for look in range(1, 60)) <= 0.05
    with pytest.raises(ValueError, match="1 or more, got 0"):
        level_of(0)


def test_a_claim_takes_three_units_and_where_something_is_searched_two_trials() -> None:
    assert [may_claim(units) for units in (1, 2, 3)] == [False, False, True]
    assert [may_claim(3, trials) for trials in (1, 2)] == [False, True]
    assert not may_claim(2, 100)


# The two tests


def test_the_pooled_residual_is_that_of_the_textbook() -> None:
    """Its analysis of variance: an error sum of squares of 109.89 on 15 degrees of freedom."""
    assert residual_variance(GRAFTS[None])[0] * 15 == pytest.approx(109.89, abs=0.01)


def test_the_pooled_residual_is_that_of_least_squares() -> None:
    values = equal(3, 5, 1)[0]
    design = np.array([[*np.eye(3)[cell], *np.eye(5)[unit]] for cell in range(3) for unit in range(5)])
    _, _, rank, _ = np.linalg.lstsq(design, values.ravel())
    rest = values.ravel() - design @ np.linalg.lstsq(design, values.ravel())[0]
    assert residual_variance(values[None])[0] == pytest.approx((rest**2).sum() / (15 - rank))


@pytest.mark.parametrize(
    ("level", "cells", "units", "printed"),
    [(0.05, 2, 3, 6.085), (0.05, 3, 4, 4.339), (0.05, 4, 5, 4.199), (0.05, 5, 4, 4.508), (0.01, 4, 5, 5.502)],
)
def test_critical_values_are_those_of_the_printed_table(level: float, cells: int, units: int, printed: float) -> None:
    """Of the studentized range, as in Harter 1960, by cells and (cells - 1)(units - 1) degrees of freedom."""
    assert critical_tukey(level, cells, units) == pytest.approx(printed, abs=0.002)


def test_two_cells_are_told_apart_exactly_where_the_paired_t_test_rejects() -> None:
    values = equal(2, 4, 400) + np.array([[[1.5], [0.0]]])
    p = stats.ttest_rel(values[:, 0], values[:, 1], axis=1).pvalue
    found = differences(values)
    assert 0.1 < (p <= 0.04).mean() < 0.9
    assert (told_apart(values, 0.04)[:, 0] == (p <= 0.04)).all()
    assert [found.p(study, 0) for study in range(20)] == pytest.approx(p[:20])


def test_tukeys_part_is_that_of_scipy_where_units_do_not_differ() -> None:
    """With the units' means at zero the layout has C (N - 1) degrees of freedom for scipy, and (C - 1)(N - 1) here."""
    values = equal(3, 4, 1)[0]
    values = values - values.mean(axis=0) + np.array([[0.0], [1.0], [5.0]])
    found, pooled = differences(values[None]), residual_variance(values[None])[0] * 6 / 9
    published = stats.tukey_hsd(*values)
    for place, (one, other) in enumerate(pairs_of(3)):
        q = abs(found.mean[0, place]) / (pooled / 4) ** 0.5
        assert stats.studentized_range.sf(q, 3, 9) == pytest.approx(published.pvalue[one, other], rel=1e-6)


def test_of_the_textbooks_pressures_those_are_told_that_both_tests_tell() -> None:
    """Means 92.82, 91.68, 88.92, 85.77: Tukey's least difference at 5 % is 4.08 sqrt(7.33 / 6) = 4.51."""
    tukey = [False, False, True, False, True, False]  # 92.82 - 85.77 = 7.05 and 91.68 - 85.77 = 5.91
    own = [stats.ttest_rel(GRAFTS[one], GRAFTS[other]).pvalue <= 0.05 for one, other in pairs_of(4)]
    both = [a and b for a, b in zip(tukey, own, strict=True)]
    assert (told_apart(GRAFTS[None], 0.05)[0].tolist(), any(both)) == (both, True)


def test_a_pair_that_one_test_alone_rejects_is_not_told() -> None:
    steady = [0.0, 0.1, -0.1, 0.05, -0.05]
    wild = [3.0, -3.0, 2.0, -2.0, 0.0]
    near = [value + 0.3 + 0.01 * place for place, value in enumerate(steady)]
    by_t_alone = np.array([[steady, near, wild]])  # the wild cell's scatter hides the small lead from Tukey's test
    assert stats.ttest_rel(steady, near).pvalue < 0.001
    assert not told_apart(by_t_alone, 0.04).any()
    far = [value + 3.0 for value in wild]
    by_tukey_alone = np.array(
        [[far, steady, near, steady[::-1], near[::-1], steady]]
    )  # which the calm ones lend sureness
    found = differences(by_tukey_alone)
    assert stats.ttest_rel(far, steady).pvalue > 0.04
    assert abs(found.mean[0, 0]) > critical_tukey(0.04, 6, 5) * found.pooled[0, 0]
    assert not told_apart(by_tukey_alone, 0.04)[0, 0]


def test_p_is_the_least_level_at_which_a_pair_is_told() -> None:
    values = equal(4, 5, 1, seed=3)
    values[0, 0] += 3
    found = differences(values)
    for place in range(6):
        p = found.p(0, place)
        assert p is not None
        assert not found.told(p * 0.999)[0, place]
        assert p > 0.99 or found.told(p * 1.001)[0, place]


# What is never told


@pytest.mark.parametrize("cells", [2, 3])
def test_a_difference_that_is_the_same_in_every_unit_is_never_told(cells: int) -> None:
    first = np.array([0.5, 0.6, 0.7, 0.3])
    others = [first - 0.1, np.array([0.1, 0.2, 0.15, 0.11])]
    found = differences(np.array([[first, *others[: cells - 1]]]))
    assert found.constant[0].tolist() == [True, False, False][: math.comb(cells, 2)]
    assert not found.told(0.04)[0, 0]
    assert found.p(0, 0) is None


def test_a_cell_of_another_size_does_not_make_a_difference_constant() -> None:
    values = np.array([[[0.1, 0.2, 0.3], [0.2, 0.1, 0.25], [1e15, 1e15, 1e15]]])
    assert differences(values).constant[0].tolist() == [False, True, True]


def test_two_units_and_searches_of_one_trial_tell_nothing_however_far_apart() -> None:
    values = equal(3, 5, 50) + np.array([[[100.0], [0.0], [-100.0]]])
    assert told_apart(values, 0.04).all()
    assert told_apart(values, 0.04, trials=2).all()
    assert not told_apart(values, 0.04, trials=1).any()
    assert not told_apart(values[..., :2], 0.04).any()
    assert not told_apart(values[..., :1], 0.04).any()


def test_one_cell_has_no_pairs() -> None:
    assert told_apart(equal(1, 5, 7), 0.04).shape == (7, 0)


# What does not matter


@st.composite
def studies(draw: st.DrawFn) -> np.ndarray:
    """Values in 64ths, so that sums and differences are exact."""
    cells, units = draw(st.integers(2, 4)), draw(st.integers(3, 5))
    whole = st.lists(st.integers(-640, 640), min_size=cells * units, max_size=cells * units)
    return np.array(draw(whole)).reshape(1, cells, units) / 64


@given(studies(), st.data())
def test_what_all_cells_of_a_unit_share_changes_nothing(values: np.ndarray, data: st.DataObject) -> None:
    shared = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=values.shape[2], max_size=values.shape[2])))
    one, other = differences(values), differences(values + shared)
    assert other.mean == pytest.approx(one.mean)
    assert other.half(0.04) == pytest.approx(one.half(0.04), abs=1e-9)
    assert (other.constant == one.constant).all()


@given(studies(), st.sampled_from([2.0**-900, 2.0**-3, 2.0**40, 2.0**900]), st.sampled_from([-1, 1]))
def test_the_unit_of_a_metric_and_its_sign_change_nothing(values: np.ndarray, scale: float, sign: int) -> None:
    assert (told_apart(values * scale * sign, 0.04) == told_apart(values, 0.04)).all()


@given(studies(), st.randoms())
def test_the_order_of_cells_changes_the_order_of_pairs_alone(values: np.ndarray, random: Random) -> None:
    order = list(range(values.shape[1]))
    random.shuffle(order)
    one, other = differences(values), differences(values[:, order])
    places = {frozenset(pair): place for place, pair in enumerate(pairs_of(len(order)))}
    moved = [places[frozenset((order[a], order[b]))] for a, b in pairs_of(len(order))]
    assert other.half(0.04) == pytest.approx(one.half(0.04)[:, moved], abs=1e-12)
    assert abs(other.mean) == pytest.approx(abs(one.mean)[:, moved], abs=1e-12)


def test_many_studies_at_once_give_what_each_gives_alone() -> None:
    values = equal(4, 5, 30) + np.array([[[2.0], [0.0], [0.0], [-1.0]]])
    at_once = told_apart(values, 0.04)
    assert 0 < at_once.mean() < 1
    assert (at_once == np.array([told_apart(study[None], 0.04)[0] for study in values])).all()
    some = differences(values, pairs=[(0, 3)])
    assert (some.told(0.04)[:, 0] == at_once[:, pairs_of(4).index((0, 3))]).all()


# Simulated studies: 4,000 of equal cells, whose share of false claims has a standard error of .003


@pytest.mark.parametrize(("cells", "units"), [(2, 3), (4, 5), (8, 3)])
def test_equal_cells_are_seldom_told_apart(cells: int, units: int) -> None:
    assert told_apart(equal(cells, units, 4000), level_of(1)).any(axis=1).mean() <= 0.05


def test_one_noisy_cell_of_eight_makes_no_more_false_claims() -> None:
    """It holds up the pooled residual; what is left of the rule is a t-test a pair, of which there are 21 more."""
    values = equal(8, 8, 4000)
    values[:, 0] *= 3
    assert told_apart(values, level_of(1)).any(axis=1).mean() <= 0.06


def test_looks_at_a_growing_study_of_equal_cells_claim_seldom_in_all() -> None:
    values = equal(4, 10, 4000)
    looks = [told_apart(values[..., :units], level_of(look)).any(axis=1) for look, units in enumerate((3, 5, 10), 1)]
    assert np.logical_or.reduce(looks).mean() <= 0.05
    at_once = [told_apart(values[..., :units], 0.05).any(axis=1) for units in (3, 5, 10)]
    assert np.logical_or.reduce(at_once).mean() > 0.06  # so that levels are needed


def test_a_lead_of_three_deviations_is_found_at_five_replicates() -> None:
    values = equal(4, 5, 4000)
    values[:, 0] += 3
    with_first = [place for place, pair in enumerate(combinations(range(4), 2)) if 0 in pair]
    assert told_apart(values, level_of(1))[:, with_first].all(axis=1).mean() >= 0.65


def test_all_intervals_of_a_study_hold_together_as_often_as_the_level_says() -> None:
    """The differences are zero, 1 and 2 apart; each interval holds its own."""
    means = np.array([0.0, 1.0, 3.0])
    found = differences(equal(3, 4, 4000) + means[:, None])
    true = np.array([means[one] - means[other] for one, other in pairs_of(3)])
    held = (abs(found.mean - true) <= found.half(0.04)).all(axis=1).mean()
    assert 0.955 <= held <= 1
