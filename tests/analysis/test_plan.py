"""What so many replicates and seeds would tell, and at what price."""

import numpy as np
import pytest
from scipy import stats

from cs330ray.analysis.claims.plan import UNITS, Cost, lead_told, plan
from cs330ray.analysis.claims.rule import level_of, pairs_of, told_apart
from cs330ray.analysis.variance import layout
from tests.analysis.test_variance import EIGHT, study


@pytest.mark.parametrize(("cells", "units"), [(2, 5), (4, 3), (4, 5), (8, 8)])
def test_the_lead_is_told_by_the_rule_in_eight_of_ten_fresh_studies(cells: int, units: int) -> None:
    values = np.random.default_rng(99).normal(size=(4000, cells, units))
    values[:, 0] += lead_told(cells, units)
    with_first = [place for place, pair in enumerate(pairs_of(cells)) if 0 in pair]
    found = told_apart(values, level_of(1))[:, with_first].all(axis=1).mean()
    assert found == pytest.approx(0.8, abs=0.03)


def test_of_two_cells_the_lead_is_that_of_the_paired_t_test() -> None:
    """Its power is the noncentral t's, at sqrt(n / 2) times the lead, since a difference has twice the variance."""
    lead = lead_told(2, 5)
    critical = stats.t.ppf(0.98, 4)
    assert stats.nct.sf(critical, 4, lead * (5 / 2) ** 0.5) == pytest.approx(0.8, abs=0.02)


def test_more_units_tell_smaller_leads_and_more_cells_need_larger_ones() -> None:
    leads = [lead_told(4, units) for units in UNITS]
    assert leads == sorted(leads, reverse=True)
    assert lead_told(2, 5) < lead_told(4, 5) < lead_told(8, 5)


def test_without_data_leads_are_in_standard_deviations_at_the_studys_seeds() -> None:
    made = plan(4, trials=8, seeds=3)
    assert not made.measured
    assert [(one.units, one.seeds, one.lead) for one in made.options] == [(n, 3, lead_told(4, n)) for n in UNITS]
    assert {(one.low, one.high, one.hours) for one in made.options} == {(None, None, None)}
    assert made.efficient == made.options
    assert made.finest == made.options[-1]


def test_with_data_leads_are_in_the_metrics_unit_with_the_interval_of_the_scatter() -> None:
    """Of EIGHT the residual is 1 at its two seeds, and (2 - 0) / 2 at any number of them."""
    known = layout(EIGHT)
    made = plan(4, trials=8, seeds=2, known=known, units=[5])
    assert [one.seeds for one in made.options] == [2, 3, 5, 10]  # seeds never fall
    assert made.measured
    assert [one.lead for one in made.options] == pytest.approx([lead_told(4, 5)] * 4)
    assert all((one.low or 0) < one.lead < (one.high or 0) for one in made.options)


def test_more_seeds_help_where_seeds_scatter() -> None:
    known = layout(study(4, 6, 3, np.random.default_rng(0), (0.0, 0.2, 0.0, 2.0)))
    leads = [one.lead for one in plan(4, trials=8, seeds=3, known=known, units=[5]).options]
    assert leads == sorted(leads, reverse=True)
    assert leads[-1] < 0.7 * leads[0]


def test_one_seed_a_replicate_is_planned_with_one() -> None:
    known = layout(study(4, 6, 1, np.random.default_rng(0), (0.0, 1.0, 0.0, 1.0)))
    assert {one.seeds for one in plan(4, trials=8, seeds=3, known=known).options} == {1}


@pytest.mark.parametrize("apart", [0.0, 0.1])
def test_cells_that_differ_by_the_same_in_each_replicate_say_nothing_of_what_will_be_told(apart: float) -> None:
    """Such a pair is never told apart, so that no lead may be promised: neither zero nor one of rounding."""
    one = [[0.1, 0.3], [0.7, 0.2], [0.6, 0.4]]
    known = layout({"a": one, "b": [[value + apart for value in seeds] for seeds in one]})
    made = plan(2, trials=8, seeds=2, known=known, units=[5])
    assert known.is_flat
    assert (made.measured, made.options[0].lead) == (False, lead_told(2, 5))


def test_one_replicate_says_nothing_of_another() -> None:
    known = layout(study(4, 1, 5, np.random.default_rng(0), (0.0, 0.0, 0.0, 1.0)))
    assert not plan(4, trials=8, seeds=3, known=known).measured


def test_hours_are_those_of_every_search_and_every_run_of_confirmation() -> None:
    """4 cells x 5 replicates x (8 trials x .5 h + 2 candidates x 3 seeds x .25 h) = 110 h."""
    (option,) = plan(4, trials=8, seeds=3, units=[5], cost=Cost(trial_h=0.5, run_h=0.25, top=2)).options
    assert option.hours == pytest.approx(110)


def test_hours_that_are_spent_are_not_spent_again() -> None:
    cost = Cost(trial_h=0.5, run_h=0.25, top=2, spent_h=100)
    few, more = plan(4, trials=8, seeds=3, units=[3, 5], cost=cost).options
    assert (few.hours, more.hours) == (0, pytest.approx(10))


def test_a_later_look_has_a_stricter_level_and_tells_a_larger_lead() -> None:
    """Of two cells the lead is that of the paired t-test, at .01 / 2 for the second look."""
    (option,) = plan(2, trials=8, seeds=3, units=[5], look=2).options
    critical = stats.t.ppf(1 - 0.005 / 2, 4)
    assert stats.nct.sf(critical, 4, option.lead * (5 / 2) ** 0.5) == pytest.approx(0.8, abs=0.02)


def test_where_seeds_are_the_unit_there_is_one_search() -> None:
    """4 cells x (1 trial x .5 h + 5 seeds x .25 h) = 7 h; the residual is that of a seed."""
    known = layout(study(4, 1, 50, np.random.default_rng(0), (0.0, 0.0, 3.0, 2.0)))
    made = plan(4, trials=1, seeds=5, unit="seed", units=[5], known=known, cost=Cost(trial_h=0.5, run_h=0.25))
    (option,) = made.options
    assert (option.units, option.seeds, option.hours) == (5, None, pytest.approx(7))
    assert option.lead == pytest.approx(2 * lead_told(4, 5), rel=0.15)


def test_hours_leave_out_what_is_dearer_and_the_finest_is_the_best_of_the_rest() -> None:
    cost, known = Cost(trial_h=0.5, run_h=0.25), layout(study(4, 6, 3, np.random.default_rng(0), (1.0, 1.0, 0.5, 1.0)))
    whole = plan(4, trials=8, seeds=3, known=known, cost=cost)
    some = plan(4, trials=8, seeds=3, known=known, cost=cost, hours=100)
    assert some.options == tuple(one for one in whole.options if (one.hours or 0) <= 100)
    assert 0 < len(some.options) < len(whole.options)
    assert some.finest is not None
    assert some.finest.lead == min(one.lead for one in some.options)
    assert plan(4, trials=8, seeds=3, cost=cost, hours=1).finest is None


def test_of_efficient_options_a_dearer_one_tells_a_smaller_lead() -> None:
    known = layout(study(4, 6, 3, np.random.default_rng(0), (1.0, 1.0, 0.5, 1.0)))
    made = plan(4, trials=8, seeds=3, known=known, cost=Cost(trial_h=0.5, run_h=0.25))
    kept = sorted(made.efficient, key=lambda one: one.hours or 0)
    assert [one.lead for one in kept] == sorted((one.lead for one in kept), reverse=True)
    assert 2 < len(kept) < len(made.options)


def test_one_cell_and_hours_without_a_cost_are_refused() -> None:
    with pytest.raises(ValueError, match="two cells or more to be told apart, got 1"):
        plan(1, trials=8, seeds=3)
    with pytest.raises(ValueError, match="expected a cost to count hours by"):
        plan(4, trials=8, seeds=3, hours=10)


def test_what_can_claim_nothing_is_no_option() -> None:
    assert plan(4, trials=1, seeds=3).options == ()
    assert [one.units for one in plan(4, trials=2, seeds=3, units=[1, 2, 3]).options] == [3]
    assert [one.units for one in plan(4, trials=1, seeds=5, unit="seed", units=[2, 3]).options] == [3]
