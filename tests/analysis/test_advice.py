"""What is advised to be done again: by a file in standard deviations, by a record in the metric's unit and in hours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cs330ray.analysis.claims import seen
from cs330ray.analysis.claims.advice import Advice, advice, obstacle
from cs330ray.analysis.claims.plan import UNITS, lead_told
from cs330ray.analysis.variance import layout
from cs330ray.errors import SpecError
from cs330ray.ledger.writer import Writer
from cs330ray.spec.study import Study
from tests import filled
from tests.analysis import test_replicates
from tests.analysis.test_replicates import fill

VALUES: Mapping[float, Sequence[Sequence[float]]] = {
    1.0: [[0.84, 0.88], [0.80, 0.82], [0.86, 0.84], [0.83, 0.85], [0.81, 0.86]],
    2.0: [[0.74, 0.73], [0.77, 0.74], [0.75, 0.71], [0.72, 0.78], [0.76, 0.70]],
}


def study(searches: int = 1, **changes: Any) -> Study:
    return test_replicates.study(searches, **({"budget": {"trials": 2, "steps": 20}} | changes))


@pytest.fixture
def ledger(tmp_path: Path) -> Writer:
    return Writer.at(tmp_path)


def recorded(ledger: Writer, searches: int, hours: float | None = None, **changes: Any) -> Advice:
    """The advice to a study of which so many searches are whole."""
    asked = study(searches, **changes)
    fill(ledger, asked, {cost: values[:searches] for cost, values in VALUES.items()})
    return advice(asked, "letters.toml", ledger, hours)


def units(made: Advice) -> list[int]:
    return [one.units for one in made.plan.options]


# By a file


def test_a_file_is_planned_in_standard_deviations_and_five_searches_are_advised() -> None:
    made = advice(study(), "letters.toml")
    assert [(one.units, one.seeds, one.lead) for one in made.plan.options] == [(n, 2, lead_told(2, n)) for n in UNITS]
    assert made.sheet.columns == ["searches", "fresh seeds", "lead told, sd", ""]
    assert made.sheet.rows[2] == ["5", "2", f"{lead_told(2, 5):.3g}", "advised"]
    assert made.said == [
        "sd is the standard deviation of what one search of a cell scores beside its rivals, which is not known before "
        "two are whole.",
        f"Advised: 5 searches of each cell, on 2 fresh seeds each, which tell a lead of {lead_told(2, 5):.2g} sd: "
        "`cs330ray run letters.toml --set repeat.searches=5`.",
    ]


def test_of_eight_cells_eight_searches_are_advised() -> None:
    made = advice(study(compare={"cost": [float(cost) for cost in range(8)]}), "f.toml")
    assert made.advised is not None
    assert made.advised.units == 8


def test_a_study_that_asks_for_more_keeps_its_number_and_plans_no_fewer() -> None:
    made = advice(study(7), "f.toml")
    assert units(made) == [7, 8, 10, 14, 15, 20]
    assert made.advised == made.asked == made.plan.options[0]
    assert made.sheet.rows[0][-1] == "as asked, advised"
    assert made.said[1].endswith(": `cs330ray run f.toml`.")


def test_no_more_searches_are_planned_than_a_study_may_have() -> None:
    """Of 200 cells at most 1000 / 200 searches."""
    assert units(advice(study(compare={"cost": [float(cost) for cost in range(200)]}), "f.toml")) == [3, 4, 5]


def test_where_nothing_is_searched_fresh_seeds_are_planned_and_with_a_split_splits() -> None:
    seeds = advice(study(search={}, budget={"trials": 1, "steps": 20}), "f.toml")
    assert seeds.sheet.columns == ["fresh seeds", "lead told, sd", ""]
    assert "`cs330ray run f.toml --set confirm.seeds=5`" in seeds.said[1]
    split = {"repeat": {"searches": 1, "split": "data_seed"}, "fixed": {"data_seed": 3}, "search": {}}
    splits = advice(study(**split), "f.toml")
    assert splits.sheet.columns == ["splits", "fresh seeds", "lead told, sd", ""]
    assert "`cs330ray run f.toml --set repeat.searches=5`" in splits.said[1]


# In one line


def test_one_search_each_tells_nothing_and_five_what_they_tell() -> None:
    beside = "standard deviations of what one search of a cell scores beside its rivals, with power 0.8"
    assert advice(study(), "f.toml").line == (
        f"1 search of each cell tells no cells apart; 5 tell a lead of {lead_told(2, 5):.2g} {beside} "
        "(--set repeat.searches=5)"
    )
    assert advice(study(4), "f.toml").line == (f"4 searches of each cell tell a lead of {lead_told(2, 4):.2g} {beside}")


def test_a_study_that_was_looked_at_is_told_what_the_next_look_would_tell(ledger: Writer) -> None:
    made = recorded(ledger, 3)
    assert made.line.startswith("3 searches of each cell tell a lead of ")
    seen.record(ledger, made.study)
    assert advice(made.study, "f.toml", ledger).line.startswith(
        "3 searches of each cell were looked at; at look 2, 5 tell a lead of "
    )


# By a record


def test_a_record_of_whole_searches_gives_leads_in_the_metrics_unit_with_their_interval(ledger: Writer) -> None:
    made = recorded(ledger, 3)
    known = layout({str(cost): values[:3] for cost, values in VALUES.items()})
    assert made.metric == "test_accuracy"
    assert made.plan.measured
    first = made.plan.options[0]
    residual, low, high = (variance**0.5 for variance in known.residual(2))
    lead = lead_told(2, 3)
    assert (first.units, first.seeds) == (3, 2)
    assert (first.lead, first.low, first.high) == pytest.approx((lead * residual, lead * low, lead * high))
    assert made.sheet.columns[2:4] == ["lead told, test_accuracy", "95 %"]
    assert made.said[0].startswith("The scatter is that of 3 searches of each cell; an hour is one of one slot")


def test_cells_that_never_differ_are_planned_in_standard_deviations_and_it_says_why(ledger: Writer) -> None:
    asked = study(3)
    fill(ledger, asked, dict.fromkeys(VALUES, VALUES[1.0][:3]))
    made = advice(asked, "f.toml", ledger)
    assert not made.plan.measured
    assert "which is not known yet: so far the cells differ by the same in each search;" in made.said[0]


def test_one_search_says_nothing_of_another(ledger: Writer) -> None:
    assert not recorded(ledger, 1).plan.measured


def test_of_seeds_the_record_of_one_search_is_enough(ledger: Writer) -> None:
    asked = study(search={}, budget={"trials": 1, "steps": 20})
    filled.unsearched(ledger, asked, [[0.5, 0.7], [0.4, 0.9]])
    made = advice(asked, "f.toml", ledger)
    assert made.plan.measured
    assert made.said[0].startswith("The scatter is that of 2 fresh seeds of each cell")


def test_after_a_look_the_next_ones_level_counts_and_what_was_looked_at_is_no_option(ledger: Writer) -> None:
    before = recorded(ledger, 3)
    seen.record(ledger, before.study)
    after = advice(before.study, "f.toml", ledger)
    assert after.look == 2
    assert (3, 2) not in [(one.units, one.seeds) for one in after.plan.options]
    five = [next(one for one in made.plan.options if one.units == 5) for made in (before, after)]
    assert five[1].lead / five[0].lead == pytest.approx(lead_told(2, 5, look=2) / lead_told(2, 5))
    assert "the next is at the level 0.005" in after.said[0]
    seen_all = study(3, repeat={"searches": 5})
    assert advice(seen_all, "f.toml", ledger).asked is not None


def test_where_the_sensible_number_was_looked_at_nothing_is_advised(ledger: Writer) -> None:
    made = recorded(ledger, 5)
    seen.record(ledger, made.study)
    after = advice(made.study, "f.toml", ledger)
    assert (after.asked, after.advised) == (None, None)
    assert after.said[1] == "The 5 searches asked for were looked at; more take another look."
    assert after.line == "5 searches of each cell were looked at; more of them take another look"


# Hours


class Clock:
    """A clock that a test sets."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = filled.AT_S
        patch.setattr("cs330ray.ledger.writer.wall_s", lambda: self.now_s)

    def fill(self, ledger: Writer, asked: Study, searches: int, beside_s: float | None = None) -> None:
        """Trials that take half an hour and runs of confirmation that take a quarter, each of one of them at a time.

        Runs may have trained beside three others so long before.
        """
        filled.opened(ledger, asked)
        for cell in (cell for cell in asked.cells if cell.replicate < searches):
            for number in range(asked.budget.trials):
                filled.enter(ledger, asked, cell, 0.1 * number)
                ledger.write_attempt(asked, cell, number, filled.ON)
                self.now_s += 1800
                filled.end(ledger, asked, cell, number, 0.9 - 0.1 * number)
            for fresh in range(2):
                if beside_s is not None:
                    part = {**filled.ON, "cpus": 0.25, "under_way_s": beside_s}
                    ledger.write_attempt(asked, cell.under(fresh), 0, part)
                    self.now_s += 90_000  # a day off
                alone = filled.ON if beside_s is None else {**filled.ON, "cpus": 1.0, "under_way_s": 100.0}
                ledger.write_attempt(asked, cell.under(fresh), 0, alone)
                self.now_s += 900
                filled.end(ledger, asked, cell.under(fresh), 0, 0.8 + 0.01 * fresh * cell.replicate)


def test_more_hours_are_those_of_what_is_not_done_yet(ledger: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search takes 2 x .5 h and its confirmation 2 x .25 h; five of each of two cells 15 h, of which 3 are spent."""
    asked = study(1)
    Clock(monkeypatch).fill(ledger, asked, 1)
    made = advice(asked, "f.toml", ledger)
    hours = {one.units: one.hours for one in made.plan.options}
    assert (hours[3], hours[5]) == (pytest.approx(6), pytest.approx(12))
    assert made.sheet.columns[-2:] == ["more hours", ""]
    assert "for 12 more hours: `cs330ray run f.toml --set repeat.searches=5`" in made.said[1]


def test_of_what_was_interrupted_the_time_is_not_known(ledger: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, clock = study(1), Clock(monkeypatch)
    clock.fill(ledger, asked, 1)
    before = advice(asked, "f.toml", ledger).cost
    again = study(2)
    cell = again.replicate(1)[0]
    number = filled.enter(ledger, again, cell, 0.1)
    ledger.write_attempt(again, cell, number, filled.ON)
    clock.now_s += 90_000  # a day off
    ledger.write_attempt(again, cell, number, filled.ON)
    filled.end(ledger, again, cell, number, 0.9)
    after = advice(again, "f.toml", ledger).cost
    assert before is not None
    assert after is not None
    assert after.trial_h == before.trial_h == pytest.approx(0.5)
    assert after.spent_h == pytest.approx(before.spent_h + 0.5)


def test_a_run_that_trained_beside_others_costs_its_share_and_then_what_it_took_alone(
    ledger: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch).fill(ledger, study(1), 1, beside_s=3200.0)
    cost = advice(study(1), "f.toml", ledger).cost
    assert cost is not None
    assert (cost.trial_h, cost.run_h) == (pytest.approx(0.5), pytest.approx(900 / 3600))


def test_within_hours_the_smallest_lead_is_advised(ledger: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch).fill(ledger, study(1), 1)
    made = advice(study(1), "f.toml", ledger, hours=10)
    assert units(made) == [3, 4]  # 6 and 9 hours
    assert made.advised is not None
    assert made.advised.units == 4
    assert made.said[1].startswith("Within 10 hours: 4 searches of each cell")


def test_hours_in_which_nothing_can_be_told_are_refused(ledger: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch).fill(ledger, study(1), 1)
    with pytest.raises(SpecError, match=r"--hours: expected at least 6, .*, got 5"):
        advice(study(1), "f.toml", ledger, hours=5)


def test_hours_without_a_record_are_refused() -> None:
    with pytest.raises(SpecError, match=r"--hours: expected a study with recorded trials, .*, got f\.toml"):
        advice(study(), "f.toml", hours=5)


# What tells nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare": {}}, "compare: expected two cells or more to tell apart, got 1; compare values of a parameter"),
        (
            {"confirm": None, "repeat": {}},
            "confirm: expected [confirm], since cells are compared on fresh seeds, got none; add it",
        ),
        ({"budget": {"trials": 1, "steps": 20}}, "budget.trials: expected at least 2 in each search, got 1; raise it"),
        (
            {"compare": {"cost": [float(cost) for cost in range(400)]}},
            "compare: expected at most 333 cells, since a claim takes 3 searches of each, got 400; compare fewer",
        ),
    ],
)  # fmt: skip
def test_what_tells_no_cells_apart_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    asked = study(**changes)
    assert obstacle(asked) == message
    with pytest.raises(SpecError) as refused:
        advice(asked, "f.toml")
    assert str(refused.value) == f"f.toml: {message}"
