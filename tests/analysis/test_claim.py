"""What one look claims: which cell to use, which pairs are told apart, and who may be the best."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cs330ray.analysis.claims.claim import Claim, chances_of_best, claim, further, may_claim
from cs330ray.analysis.claims.rule import critical_tukey
from cs330ray.analysis.statistics import over_seeds
from tests.analysis.looks import DEEP, THIN, WIDE, searched, unsearched


def names(made: Claim) -> tuple[list[str], list[str], list[str]]:
    """The rivals below, not told and above, the strongest first."""
    found = [[pair.second for pair in some] for some in (made.below, made.not_told, made.above)]
    return found[0], found[1], found[2]


def turned(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {cell: [-value for value in column] for cell, column in values.items()}


# The cell to use


def test_the_cell_to_use_has_the_best_mean_validation() -> None:
    look = searched({"deep": DEEP, "wide": WIDE}, test={"deep": WIDE, "wide": DEEP})
    assert claim(look).use == "wide"
    assert claim(replace(look, goal="min")).use == "deep"


def test_of_equal_cells_the_first_is_used_whatever_the_order_of_its_values() -> None:
    assert claim(searched({"b": WIDE, "a": WIDE[::-1]})).use == "b"


def test_the_cell_to_use_may_be_given() -> None:
    look = searched({"deep": DEEP, "wide": WIDE})
    assert claim(look, "deep").use == "deep"
    with pytest.raises(ValueError, match="expected the cell to use among deep, wide, got thin"):
        claim(look, "thin")


def test_no_cell_is_used_where_none_is_compared() -> None:
    made = claim(searched({}, test={}, left_out={"deep": "no test"}))
    assert (made.use, made.pairs, made.rivals, made.chances) == (None, (), (), {})


# Pairs


def test_a_pair_of_two_has_the_difference_interval_and_p_of_scipys_paired_t() -> None:
    (pair,) = claim(searched({"wide": WIDE, "deep": DEEP})).pairs
    published = stats.ttest_rel(WIDE, DEEP)
    assert (pair.first, pair.second, pair.told) == ("wide", "deep", True)
    assert pair.difference == pytest.approx(0.1)
    assert pair.p == pytest.approx(published.pvalue, rel=1e-4)
    plain, at_the_level = published.confidence_interval(0.95), published.confidence_interval(0.96)
    assert (pair.alone.low, pair.alone.high) == pytest.approx((plain.low, plain.high))
    assert (pair.together.low, pair.together.high) == pytest.approx((at_the_level.low, at_the_level.high))
    assert pair.alone.n == pair.together.n == 5


def test_of_several_cells_the_interval_is_the_wider_one_of_tukeys_and_the_pairs_own() -> None:
    values = {"wide": WIDE, "deep": DEEP, "thin": THIN}
    table = np.array(list(values.values()))
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    tukey = critical_tukey(0.04, 3, 5) * ((rest**2).sum() / 8 / 5) ** 0.5
    halves = {}
    for pair in claim(searched(values)).pairs:
        own = stats.ttest_rel(values[pair.first], values[pair.second]).confidence_interval(0.96)
        halves[pair.first, pair.second] = (own.high - own.low) / 2
        assert pair.together.high - pair.difference == pytest.approx(max(tukey, halves[pair.first, pair.second]))
    assert min(halves.values()) < tukey < max(halves.values())  # so that both were seen


def test_pairs_are_in_the_order_of_the_file_and_rivals_strongest_first() -> None:
    made = claim(searched({"deep": DEEP, "wide": WIDE, "thin": THIN}))
    assert [(pair.first, pair.second) for pair in made.pairs] == [("deep", "wide"), ("deep", "thin"), ("wide", "thin")]
    assert [pair.second for pair in made.rivals] == ["thin", "deep"]
    assert [pair.difference for pair in made.rivals] == pytest.approx([0.003, 0.1])


def test_rivals_are_the_pairs_with_the_cell_to_use_turned_to_it() -> None:
    made = claim(searched({"deep": DEEP, "wide": WIDE, "thin": THIN}))
    turned = [
        pair.turned if pair.second == "wide" else pair for pair in made.pairs if "wide" in (pair.first, pair.second)
    ]
    assert sorted(made.rivals, key=lambda pair: pair.second) == sorted(turned, key=lambda pair: pair.second)
    assert [pair.p for pair in made.rivals] == [pair.p for pair in sorted(turned, key=lambda pair: pair.difference)]


def test_a_metric_to_be_small_gives_the_same_claim() -> None:
    values = {"deep": DEEP, "wide": WIDE, "thin": THIN}
    most, least = claim(searched(values)), claim(searched(turned(values), goal="min"))
    assert (least.use, names(least), least.chances) == (most.use, names(most), most.chances)
    assert least.pairs == most.pairs


def test_claims_are_about_test_where_there_is_one() -> None:
    values, test = {"wide": WIDE, "deep": DEEP}, {"wide": DEEP, "deep": WIDE}
    assert names(claim(searched(values, test=test))) == ([], [], ["deep"])
    assert names(claim(searched(values, tested=None, test={}))) == (["deep"], [], [])


def test_rivals_are_below_above_or_not_told() -> None:
    test = {"wide": THIN, "deep": DEEP, "thin": WIDE, "best": [value + 0.1 for value in WIDE[::-1]]}
    made = claim(searched({"wide": WIDE, "deep": DEEP, "thin": DEEP, "best": DEEP}, test=test))
    assert names(made) == (["deep"], ["thin"], ["best"])
    assert not made.silent


def test_a_later_look_is_held_to_its_own_level() -> None:
    """Apart by .01, .02, .03, .02, .01: t = .018 / (.00837 / sqrt 5) = 4.81, p = .0086."""
    values = {"a": [0.51, 0.52, 0.53, 0.52, 0.51], "b": [0.5] * 5}
    first, second = claim(searched(values)), claim(searched(values, number=2))
    assert first.pairs[0].p == pytest.approx(0.0086, abs=5e-5)
    assert (first.confidence, second.confidence) == (0.96, 0.995)
    assert [made.pairs[0].told for made in (first, second)] == [True, False]
    assert second.pairs[0].together.low < 0 < first.pairs[0].together.low


def test_a_constant_difference_is_not_told_and_has_no_p() -> None:
    (pair,) = claim(searched({"wide": WIDE, "deep": [value - 0.02 for value in WIDE]})).pairs
    assert (pair.constant, pair.told, pair.p) == (True, False, None)


@pytest.mark.parametrize(("units", "trials"), [(1, 8), (2, 8), (5, 1)])
def test_too_few_searches_or_trials_claim_nothing(units: int, trials: int) -> None:
    look = searched({"wide": WIDE[:units], "deep": DEEP[:units]}, trials=trials)
    made = claim(look)
    assert (may_claim(look), made.silent, made.pairs[0].told, made.pairs[0].p) == (False, True, False, None)
    assert made.chances == {"wide": None, "deep": None}


def test_before_the_first_look_nothing_is_claimed() -> None:
    look = searched({"wide": WIDE, "deep": DEEP}, number=0)
    made = claim(look)
    assert (may_claim(look), made.silent, made.confidence) == (False, True, 0.96)
    assert (made.pairs[0].told, made.pairs[0].p, made.chances["wide"]) == (False, None, None)
    assert made.pairs[0].together == claim(replace(look, number=1)).pairs[0].together


def test_two_seeds_claim_nothing_and_three_may() -> None:
    assert [may_claim(unsearched({"a": WIDE[:n], "b": DEEP[:n]})) for n in (2, 3)] == [False, True]


def test_a_single_cell_may_claim_nothing() -> None:
    assert not may_claim(searched({"all": WIDE}))


def test_one_unit_has_intervals_without_width() -> None:
    (pair,) = claim(searched({"wide": WIDE[:1], "deep": DEEP[:1]})).pairs
    assert pair.together == pair.alone
    assert (pair.alone.low, pair.alone.high, pair.alone.n) == (pair.difference, pair.difference, 1)


# The chance to be best


def test_of_two_cells_the_chance_to_be_best_is_the_t_distributions() -> None:
    """The posterior of the difference is Student's t about the one found, so that the chance is 1 - p, one-sided.

    Apart by .1, .05 and .15: t = 3.46 on two degrees of freedom, p = .037; the normal's would be .0003.
    """
    ahead, behind = [0.5, 0.6, 0.7], [0.4, 0.55, 0.55]
    chances = chances_of_best(searched({"ahead": ahead, "behind": behind}))
    p = stats.ttest_rel(ahead, behind, alternative="greater").pvalue
    assert p == pytest.approx(0.037, abs=0.001)
    assert chances["ahead"] == pytest.approx(1 - p, abs=0.008)
    assert sum(chance or 0 for chance in chances.values()) == pytest.approx(1)


@pytest.mark.parametrize("cells", [2, 4])
@pytest.mark.parametrize("goal", ["max", "min"])
def test_equal_cells_have_equal_chances_on_average_and_are_seldom_sure(goal: str, cells: int) -> None:
    """The bootstrap is sure (.995 or more) of one of two equal cells in a quarter of studies of three replicates."""
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        values = (rng.normal(size=(cells, 3)) + rng.normal(size=3)).tolist()
        chances = chances_of_best(searched(dict(zip("abcd", values, strict=False)), goal=goal))
        found.append([chance or 0 for chance in chances.values()])
    assert np.mean(found, axis=0) == pytest.approx([1 / cells] * cells, abs=0.06)
    assert np.mean(np.max(found, axis=1) >= 0.995) <= 0.03


def test_chances_are_the_same_whenever_they_are_asked() -> None:
    look = searched({"wide": WIDE, "deep": DEEP, "thin": THIN})
    assert chances_of_best(look) == chances_of_best(look)


def test_values_that_do_not_scatter_say_nothing_of_chance() -> None:
    look = searched({"wide": WIDE, "deep": [value - 0.02 for value in WIDE]})
    assert chances_of_best(look) == {"wide": None, "deep": None}


# Further objectives


def test_further_objectives_have_intervals_and_no_verdict() -> None:
    look = searched({"wide": WIDE, "deep": DEEP}, objectives={"test_mse": {"wide": DEEP, "deep": WIDE}})
    assert further(look) == {"test_mse": {"wide": over_seeds(DEEP), "deep": over_seeds(WIDE)}}
    assert names(claim(look)) == (["deep"], [], [])
