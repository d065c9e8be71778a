"""The short form of `benchmarks/answers.py`: few simulated studies, and bounds that hold where its bars do.

A bound is what a share at the bar exceeds once in ten thousand times, so that it speaks of the rule and not of chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist, correlation, fmean, pstdev
from typing import Any

import pytest
from benchmarks.answers import BAR, BASE, LEAD, LEAST_FOUND, SILENT, counted, distinguished_before, named
from benchmarks.simulated import HIGH, LOW, SD, Setting, reached
from scipy.stats import binom

from benchmarks import simulated
from cs330ray.analysis.claims import rule

SELDOM = 1e-4
CLAIMED = 0.05  # what all looks at equal cells may claim
STUDIES = 40  # of a kind
EQUAL = [
    replace(BASE, trials=4),
    replace(BASE, optima="one", cells=8, trials=2, searches=(3,)),
    replace(BASE, optima="half", trials=2, searches=(3, 5, 10)),
    replace(BASE, luck="skewed", trials=4, prune="asha"),
]


def claimed_falsely(settings: Sequence[Setting]) -> int:
    """In how many studies of equal cells, so many of each kind, anything is claimed."""
    return sum(int(counted(setting, range(STUDIES)).false.sum()) for setting in settings)


def most(settings: Sequence[Setting]) -> int:
    """How many false claims are not yet a sign that the bar does not hold."""
    return int(binom.isf(SELDOM, STUDIES * len(settings), CLAIMED))


def test_equal_cells_that_are_searched_are_seldom_told_apart() -> None:
    assert claimed_falsely(EQUAL) <= most(EQUAL)


def shared_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Confirm all replicates on the fresh seeds of the first."""
    own = simulated.fresh_seed
    monkeypatch.setattr(simulated, "fresh_seed", lambda seed, index, replicate: own(seed, index))


def repeated_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw in all replicates what the first draws."""
    own = simulated.ask
    monkeypatch.setattr(
        simulated, "ask", lambda study, cell, *given, **more: own(study, replace(cell, replicate=0), *given, **more)
    )


def pairs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave Tukey's test out, so that no claim knows of the other pairs."""
    monkeypatch.setattr(rule, "critical_tukey", lambda level, cells, units: 0.0)


@pytest.mark.parametrize(
    ("broken", "setting"),
    [
        (shared_seeds, replace(BASE, trials=2, searches=(10,))),
        (repeated_draws, replace(BASE, optima="half", trials=2)),
        (pairs_one_by_one, replace(BASE, cells=8, trials=2, searches=(3,))),
    ],
)
def test_where_replicates_share_luck_or_pairs_are_asked_one_by_one_the_bound_is_broken(
    broken: Callable[[pytest.MonkeyPatch], None], setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    assert claimed_falsely([setting]) > most([setting])


@pytest.mark.parametrize("setting", SILENT, ids=named)
def test_of_two_searches_or_of_one_trial_nothing_is_claimed_however_far_a_cell_leads(setting: Setting) -> None:
    assert not counted(setting, range(5)).claims.any()


@pytest.mark.parametrize("setting", [BAR, replace(BASE, lead=LEAD, trials=4)], ids=["idle", "searched"])
def test_a_cell_that_leads_by_three_deviations_is_told_from_every_other(setting: Setting) -> None:
    assert counted(setting, range(STUDIES)).found.sum() >= binom.ppf(SELDOM, STUDIES, LEAST_FOUND)


def test_where_cells_draw_each_on_its_own_the_bound_is_broken() -> None:
    found = counted(replace(BASE, lead=LEAD, trials=4, asking="own"), range(STUDIES)).found.sum()
    assert found < binom.ppf(SELDOM, STUDIES, LEAST_FOUND)


def test_the_code_of_before_told_equal_cells_apart_more_often_than_not() -> None:
    assert distinguished_before(1, 5, range(40)) > 20


# What is simulated


@pytest.mark.parametrize("luck", ["normal", "skewed"])
def test_luck_has_the_size_by_which_leads_are_counted(luck: Any) -> None:
    """Of 4,000 differences between two cells on one seed, sqrt(2) SD: its standard error is about 2 %."""
    setting = Setting("flat", luck, seeds=1, lead=LEAD)
    first, second = ([reached(setting, place, 0.1, seed, test=True) for seed in range(4000)] for place in (0, 1))
    apart = [one - other for one, other in zip(first, second, strict=True)]
    assert setting.sd == SD
    assert pstdev(apart) == pytest.approx(2**0.5 * SD, rel=0.08)
    assert fmean(apart) == pytest.approx(LEAD * SD, abs=0.1 * SD)


def test_mirrored_optima_reach_as_much_at_mirrored_rates() -> None:
    """Over 4,000 seeds: u of one is 1 - u of the other, and .95 - .6 (u - .35)^2 at .1 is .9125."""
    setting = Setting("one")
    rates = [LOW * (HIGH / LOW) ** u for u in (0.1, 0.9)]
    means = [fmean(reached(setting, place, rates[place], seed) for seed in range(4000)) for place in (0, 1)]
    assert means == pytest.approx([0.9125, 0.9125], abs=NormalDist().inv_cdf(1 - SELDOM) * 1.1 * SD / 4000**0.5)


def test_a_trial_is_on_its_way_before_its_last_step_with_the_luck_that_it_ends_with() -> None:
    """Of the variance at step 9, .66 * 2.25 + 1 parts, and at the end, 2.25 + 1, it is .81 * 2.25 that they share."""
    setting = Setting("flat")
    ends = [[reached(setting, 0, 0.1, seed, step=step) for seed in range(1000)] for step in (3, 9, 27)]
    assert 0.2 < fmean(ends[0]) < fmean(ends[1]) < fmean(ends[2])
    assert correlation(ends[1], ends[2]) == pytest.approx(0.81 * 2.25 / (2.49 * 3.25) ** 0.5, abs=0.07)
