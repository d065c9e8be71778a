"""What a study has cost, and what it will: by hand, from records made for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs330ray.analysis.cost.forecast import Forecast, forecast, most_confirmed, steps_to_come
from cs330ray.analysis.cost.spent import efforts
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending, Row
from cs330ray.spec.study import Cell
from tests.desk import Desk
from tests.studies_of_tests import toy

HOUR_S = 3600.0
COMPLETE = Ending("COMPLETE")
PRUNED = Ending("PRUNED", "asha at step 5, 3 rivals", cause="pruned")


class Filled:
    """A study whose record is written by hand."""

    def __init__(self, home: Path, **changes: Any) -> None:
        self.desk = Desk(home, toy(**changes))
        self.ledger, self.study, self.cell = self.desk.ledger, self.desk.study, self.desk.cell

    def trial(self, seconds: float, step: int, ending: Ending | None = COMPLETE, **taken: float) -> int:
        """Enter a trial of the search that one attempt took to a step; its number."""
        told = self.desk.ask()
        self.attempt(told.trial, seconds, step, ending, **taken)
        self.desk.queue.left(told)
        return told.trial

    def attempt(
        self,
        number: int,
        seconds: float | None,
        step: int = 0,
        ending: Ending | None = None,
        *,
        cell: Cell | None = None,
        at_s: float = 0.0,
        began_s: float = 0.0,
        **taken: float,
    ) -> None:
        """Add an attempt of a trial that was noted to take so long, or that nobody noted, with a row."""
        cell = cell or self.cell
        on = {"began_s": began_s, "config": {}, **taken}
        self.ledger.write_attempt(self.study, cell, number, on if seconds is None else {**on, "under_way_s": seconds})
        if step:
            row = Row(step, {"val_loss": 0.5, "val_speed": 0.5}, at_s)
            self.ledger.write_rows(self.study, cell, number, [row])
        if ending is not None:
            self.ledger.end(self.study, cell, number, ending)

    def forecast(self, **changes: Any) -> Forecast:
        """What a reader foresees, of the study changed."""
        return forecast(Ledger.at(self.desk.home), toy(**changes))


@pytest.fixture
def filled(tmp_path: Path) -> Callable[..., Filled]:
    return lambda **changes: Filled(tmp_path / "runs", **changes)


# What has been spent


def test_a_trial_costs_the_seconds_of_all_its_attempts_times_what_each_took(filled: Callable[..., Filled]) -> None:
    """One was lost under 2 CPUs, one was cut under 4 CPUs and half a GPU, and the last took no GPU."""
    at = filled()
    number = at.trial(10.0, 5, None, cpus=2, gpus=0)
    at.attempt(number, 20.0, 10, cpus=4, gpus=0.5)
    at.attempt(number, 1.0, 20, COMPLETE, cpus=1, gpus=0)
    found = efforts(Ledger.at(at.desk.home), at.study, at.cell)[number]
    assert (found.seconds, found.cpu_s, found.gpu_s) == (31.0, 2 * 10 + 4 * 20 + 1, 10.0)


def test_what_no_driver_noted_lasts_to_its_last_sign_and_takes_what_the_study_says_now(
    filled: Callable[..., Filled],
) -> None:
    """As attempts of earlier versions do; the time that a trial lay still between two attempts is nobody's."""
    at = filled(resources={"cpus": 3.0, "workers": 2})
    number = at.trial(0.0, 0, None)
    at.attempt(number, None, 5, began_s=1000.0, at_s=1040.0)
    at.attempt(number, None, 10, began_s=9000.0, at_s=9007.0)
    at.attempt(number, None, began_s=9500.0)  # and no word of it
    at.ledger.end(at.study, at.cell, number, Ending("FAIL", "stopped by hand", cause="stopped"))  # in our days
    found = efforts(Ledger.at(at.desk.home), at.study, at.cell)[number]
    assert (found.seconds, found.cpu_s) == (47.0, 6 * 47.0)


def test_search_and_confirmation_are_spent_alike(filled: Callable[..., Filled]) -> None:
    confirm = {"top": 1, "seeds": 1}
    at = filled(budget={"trials": 1}, confirm=confirm)
    number = at.trial(HOUR_S, 20, cpus=1)
    at.attempt(number, 2 * HOUR_S, 20, COMPLETE, cell=at.cell.under(0), cpus=1)
    found = at.forecast(budget={"trials": 1}, confirm=confirm)
    assert (found.spent_s, found.said) == (3 * HOUR_S, "3 cpu-hours spent")


# What is to come


def test_a_trial_trains_on_as_others_did_where_they_ended() -> None:
    """Of four trials that reached step 5 two ended there; one of the two others ended at 10, and one runs at 15."""
    reached = [(5, True), (5, True), (10, True), (15, False)]
    assert steps_to_come(reached, 0, 20) == pytest.approx(5 + 0.5 * 5 + 0.25 * 10)
    assert steps_to_come(reached, 5, 20) == pytest.approx(5 + 0.5 * 10)
    assert steps_to_come(reached, 15, 20) == 5


def test_what_still_runs_counts_where_it_has_been_and_says_nothing_of_later_rungs() -> None:
    """One of two ended at step 10, which a third has not reached."""
    assert steps_to_come([(10, True), (20, True), (4, False)], 0, 20) == 10 + 0.5 * 10


def test_trials_that_failed_before_their_first_step_take_their_share() -> None:
    assert steps_to_come([(0, True), (20, True), (20, True), (20, True)], 0, 20) == 0.75 * 20


def test_before_a_trial_has_ended_early_each_trains_to_its_end() -> None:
    assert steps_to_come([], 0, 20) == steps_to_come([(20, True), (7, False)], 0, 20) == 20


def test_the_forecast_is_rates_times_steps_and_runs_of_confirmation(filled: Callable[..., Filled]) -> None:
    """Two trials trained 25 steps in 2.5 hours; one of them ended at 5, so that the last two take 5 + 15 / 2 each.

    Six runs of confirmation take what the COMPLETE trial took.
    """
    asked: dict[str, Any] = {"confirm": {"top": 2, "seeds": 3}, "resources": {"cpus": 2.0}}
    at = filled(**asked)
    at.trial(2 * HOUR_S, 20, cpus=2)
    at.trial(0.5 * HOUR_S, 5, PRUNED, cpus=2)
    found = at.forecast(**asked)
    assert most_confirmed(at.study) == 6
    assert found.spent_s == 2 * 2.5 * HOUR_S
    assert found.total_s == pytest.approx(found.spent_s + 2 * HOUR_S * (2 * 12.5 * 0.1 + 6 * 2))
    assert found.reserve_s == pytest.approx(1.1 * 2 * HOUR_S * 6 * 2)
    assert (found.undone, found.said) == (0, "5 cpu-hours spent, about 34 in all")


def test_a_trial_under_way_is_foreseen_from_where_it_stands(filled: Callable[..., Filled]) -> None:
    at = filled(budget={"trials": 1})
    at.trial(HOUR_S, 10, None, cpus=1)
    assert at.forecast(budget={"trials": 1}).said == "1 cpu-hours spent, about 2 in all"


def test_before_any_step_nothing_is_foreseen(filled: Callable[..., Filled]) -> None:
    assert filled().forecast().said == "0 cpu-hours spent"


def test_more_steps_are_foreseen_for_each_trial_that_continues(filled: Callable[..., Filled]) -> None:
    at = filled(budget={"trials": 2})
    for _ in range(2):
        at.trial(HOUR_S, 20, cpus=1)
    found = at.forecast(budget={"trials": 2, "steps": 60})
    assert found.total_s == pytest.approx(2 * HOUR_S * (1 + 2))


def test_a_cell_without_a_record_takes_what_was_timed(filled: Callable[..., Filled]) -> None:
    study = toy(compare={"data_seed": [0, 1]}, budget={"trials": 3, "steps": 20})
    found = forecast(None, study, {"data_seed=0": 1.0, "data_seed=1": 3.0})
    assert (found.spent_s, found.total_s) == (0.0, 3 * 20 * 4.0)


# The cap


def test_a_run_that_shared_its_worker_is_expected_to_take_its_share(filled: Callable[..., Filled]) -> None:
    """One of two runs was two hours under way with half a CPU; the other is to come."""
    asked: dict[str, Any] = {"budget": {"trials": 1}, "confirm": {"top": 1, "seeds": 2}}
    at = filled(**asked)
    number = at.trial(HOUR_S, 20, cpus=1)
    at.attempt(number, 2 * HOUR_S, 20, COMPLETE, cell=at.cell.under(0), cpus=0.5)
    found = at.forecast(**asked)
    assert found.spent_s == 2 * HOUR_S
    assert found.total_s == pytest.approx(3 * HOUR_S)


def test_the_cap_leaves_undone_what_has_no_room_beside_confirmation(filled: Callable[..., Filled]) -> None:
    """A trial takes 2 hours, confirmation 4.4 with its margin: of 10 hours, 3.6 are left to the search after one."""
    asked = {"confirm": {"top": 1, "seeds": 2}, "budget": {"trials": 8, "cost": "10 cpu-hours"}}
    at = filled(**asked)
    at.trial(2 * HOUR_S, 20, cpus=1)
    found = at.forecast(**asked)
    assert (found.undone, found.runs_undone, found.total_s) == (6, 0, pytest.approx((2 + 3.6 + 4) * HOUR_S))
    assert (
        found.said == "2 of 10 cpu-hours spent; all would take about 20, so the cap leaves about 6 of 8 trials undone"
    )


def test_without_a_complete_trial_there_is_nothing_to_set_aside_for(filled: Callable[..., Filled]) -> None:
    at = filled(confirm={"top": 1, "seeds": 2})
    at.trial(HOUR_S, 10, None, cpus=1)
    assert at.forecast(confirm={"top": 1, "seeds": 2}).reserve_s == 0


def test_runs_that_the_cap_has_no_room_for_are_said(filled: Callable[..., Filled]) -> None:
    asked = {"confirm": {"top": 1, "seeds": 3}, "budget": {"trials": 1, "cost": "2 cpu-hours"}}
    at = filled(**asked)
    number = at.trial(HOUR_S, 20, cpus=1)
    at.attempt(number, 0.5 * HOUR_S, 20, COMPLETE, cell=at.cell.under(0), cpus=1)
    found = at.forecast(**asked)
    assert (found.undone, found.runs_undone) == (0, 1)
    assert found.said.endswith("all would take about 2.5, so the cap leaves about 1 run of confirmation undone")


def test_a_replicate_that_is_not_searched_whole_is_not_confirmed(filled: Callable[..., Filled]) -> None:
    """Each replicate takes 2 trials and 1 run, an hour each: the second has room for one trial."""
    asked = {
        "confirm": {"top": 1, "seeds": 1}, "budget": {"trials": 2, "cost": "5.2 cpu-hours"}, "repeat": {"searches": 2},
    }  # fmt: skip
    at = filled(**asked)
    at.trial(HOUR_S, 20, cpus=1)
    found = at.forecast(**asked)
    assert (found.trials, found.undone, found.runs_undone) == (4, 1, 1)


def test_a_cap_of_gpu_hours_counts_gpus(filled: Callable[..., Filled]) -> None:
    asked = {"resources": {"gpus": 0.25, "cpus": 8.0}, "budget": {"trials": 2, "cost": "20 gpu-hours"}}
    at = filled(**asked)
    at.trial(4 * HOUR_S, 20, cpus=8, gpus=0.25)
    assert at.forecast(**asked).said == "1 of 20 gpu-hours spent, about 2 in all"


def test_without_a_cap_gpus_are_what_is_said_where_trials_took_any(filled: Callable[..., Filled]) -> None:
    at = filled(budget={"trials": 1})
    at.trial(4 * HOUR_S, 20, cpus=8, gpus=0.25)
    assert at.forecast(budget={"trials": 1}).said == "1 gpu-hours spent"
