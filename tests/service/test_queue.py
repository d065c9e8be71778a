"""The queue, driven without Ray: which trial is next, and which must wait."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cs330ray.errors import LedgerError
from cs330ray.ledger import confirm
from cs330ray.ledger.records import Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.service import queue
from cs330ray.service.messages import Assignment, Continuation
from cs330ray.service.queue import Queue
from cs330ray.service.search.ask import draw
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.trial.starts import starts
from tests import company
from tests.assignments import terms
from tests.desk import Desk, Ear, OwnLease, begun
from tests.studies_of_tests import toy

COMPLETE = Ending("COMPLETE")


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    return lambda interrupted=None, **changes: Desk(tmp_path, toy(**changes), interrupted)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The queue's seconds, as the one item of a list."""
    now = [1000.0]
    monkeypatch.setattr(queue.time, "monotonic", lambda: now[0])
    return now


def completed(at: Desk, trial: Assignment, loss: float) -> None:
    """Train a trial to its last step, and let it leave its worker."""
    at.queue.began(trial)
    at.play(trial, (20, loss), start=begun())
    at.play(trial, end=COMPLETE)
    at.queue.left(trial)


# The order


def test_cells_are_asked_in_turn_with_common_seeds_until_the_budget_is_spent(desk: Callable[..., Desk]) -> None:
    at = desk(compare={"data_seed": [0, 1]}, budget={"trials": 2})
    told = [at.ask() for _ in range(4)]
    assert [(json.loads(each.cell)["data_seed"], each.trial) for each in told] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert told[0].seed == told[1].seed != told[2].seed == told[3].seed
    assert at.queue.next() is None  # a worker may yet be lost
    assert not at.queue.is_over
    for each in told:
        at.queue.left(each)
    assert at.queue.next() is None
    assert at.queue.is_over


def test_a_lost_trial_comes_again_first_as_it_was_and_so_does_an_interrupted_one(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = [at.ask(), at.ask()]
    at.play(told[1], (5, 0.5), start=begun())
    at.queue.left(told[1])
    at.queue.again(told[1])
    told[1] = replace(told[1], recorded_step=5, begun=True)
    assert at.ask() == told[1]
    assert at.queue.next() is None  # until that one has begun, lest a new one take its place
    at.queue.began(told[1])
    assert at.ask().trial == 2
    later = desk(interrupted=[0, 1])
    assert [later.ask(), later.ask()] == told
    later.queue.began(told[0])
    assert later.queue.next() is None
    later.queue.left(told[1])  # lost before it began
    assert later.ask().trial == 3


def test_of_the_trials_that_wait_the_one_that_was_lost_last_comes_first(desk: Callable[..., Desk]) -> None:
    first, second, third = (at := desk()).ask(), at.ask(), at.ask()
    later = desk(interrupted=[first.trial, second.trial, third.trial])
    taken = later.ask()
    assert taken.trial == first.trial
    later.queue.left(taken)
    later.queue.again(taken)
    assert [later.ask().trial for _ in range(3)] == [first.trial, second.trial, third.trial]


def test_a_lost_run_of_confirmation_comes_again_under_its_fresh_seed(desk: Callable[..., Desk]) -> None:
    at = desk(budget={"trials": 1}, confirm={"top": 1, "seeds": 1})
    completed(at, at.ask(), 0.5)
    run = at.ask()
    at.queue.left(run)
    at.queue.again(run)
    again = at.ask()
    assert (again.cell, again.trial, again.seed, again.test) == (run.cell, run.trial, run.seed, True)


# The lease


def test_a_driver_that_has_lost_the_study_enters_no_trial(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = desk()

    def lost() -> None:
        raise LedgerError("another took the study over")

    monkeypatch.setattr(at.lease, "fence", lost)
    with pytest.raises(LedgerError, match="another took the study over"):
        at.queue.next()
    assert at.ledger.trials(at.study, at.cell) == []


def test_the_lease_is_looked_at_before_every_entry_and_for_none_that_is_entered_already(
    desk: Callable[..., Desk],
) -> None:
    at = desk()
    at.ask()
    at.ask()
    assert at.lease.fences == 2
    later = desk(interrupted=[0, 1])
    later.ask()
    later.ask()
    assert later.lease.fences == 0


# Confirmation


def test_confirmation_waits_until_every_trial_has_left_and_is_announced_once(desk: Callable[..., Desk]) -> None:
    at = desk(budget={"trials": 2}, confirm={"top": 1, "seeds": 2})
    better, worse = at.ask(), at.ask()
    completed(at, better, 0.1)
    assert at.queue.next() is None
    assert at.ear.confirmations == []
    completed(at, worse, 0.9)
    runs = [at.ask(), at.ask()]
    assert at.ear.confirmations == [2]
    assert {run.trial for run in runs} == {better.trial}
    assert all(run.test for run in runs)
    assert len({run.cell for run in runs} | {better.cell}) == 3
    assert len({run.seed for run in runs} | {better.seed}) == 3
    for run in runs:
        at.queue.began(run)
    assert at.queue.next() is None
    assert not at.queue.is_over
    for run in runs:
        at.queue.left(run)
    assert at.queue.next() is None
    assert at.queue.is_over
    assert at.ear.confirmations == [2]


def test_where_there_is_nothing_to_confirm_nobody_hears_of_it(desk: Callable[..., Desk]) -> None:
    at = desk(budget={"trials": 1}, confirm={"top": 1, "seeds": 2})
    failed = at.ask()
    at.play(failed, end=Ending("FAIL", "raised: planted", cause="raised"))
    at.queue.left(failed)
    assert at.queue.next() is None
    assert at.queue.is_over
    assert at.ear.confirmations == []


# Time


@pytest.mark.parametrize(("time_s", "starts"), [(90.0, False), (110.0, True)])
def test_the_time_of_earlier_sessions_counts(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, time_s: float, starts: bool
) -> None:
    """Two earlier sessions have worked for 50 seconds each, while the clock jumped back by an hour."""
    budget = {"trials": 4, "steps": 20, "time": time_s}
    earlier = desk(budget=budget)
    clock = tmp_path / "clock"
    monkeypatch.setenv("CS330RAY_CLOCK", str(clock))
    for name in ("one", "two"):
        for worked_s, jump in ((20.0, "0"), (50.0, "-3600")):
            clock.write_text(jump)
            earlier.ledger.seen(earlier.study, name, worked_s)
    later = desk(budget=budget).queue
    later.start_clock()
    assert (later.next() is not None) is starts
    assert (later.ran_out is None) is starts


def test_time_runs_from_the_first_trial_that_begins(desk: Callable[..., Desk], clock: list[float]) -> None:
    at = desk(budget={"trials": 4, "steps": 20, "time": 60})
    at.queue.start_clock()
    clock[0] += 3600  # Ray takes its time
    first = at.ask()
    at.queue.began(first)
    clock[0] += 59
    at.queue.began(at.ask())  # a second one sets no other deadline
    assert at.queue.ran_out is None
    clock[0] += 1
    assert at.queue.next() is None
    assert at.queue.ran_out == "budget.time"


def test_after_its_time_no_trial_of_the_search_runs_and_with_more_time_each_comes_again(
    desk: Callable[..., Desk], clock: list[float]
) -> None:
    budget = {"trials": 4, "steps": 20, "time": 60}
    at = desk(budget=budget)
    had_begun, had_not = at.ask(), at.ask()
    at.play(had_begun, (5, 0.5), start=begun())
    at.ledger.seen(at.study, "earlier", 61.0)
    later = desk(budget=budget, interrupted=[had_not.trial, had_begun.trial])
    later.queue.start_clock()
    assert later.queue.next() is None
    assert later.queue.ran_out == "budget.time"
    more = desk(budget={**budget, "time": 120}, interrupted=[had_not.trial, had_begun.trial])
    more.queue.start_clock()
    assert [more.ask().trial, more.ask().trial] == [had_not.trial, had_begun.trial]
    assert more.queue.ran_out is None


def test_a_study_that_runs_out_of_time_is_confirmed_all_the_same(desk: Callable[..., Desk], clock: list[float]) -> None:
    at = desk(budget={"trials": 4, "steps": 20, "time": 60}, confirm={"top": 1, "seeds": 1})
    at.queue.start_clock()
    only = at.ask()
    completed(at, only, 0.5)
    clock[0] += 61
    run = at.ask()
    assert (run.trial, run.test) == (only.trial, True)


# Cost


def took(at: Desk, trial: Assignment, hours: float, loss: float = 0.5) -> None:
    """Train a trial to its last step, for so many hours on one CPU."""
    completed(at, trial, loss)
    cell = at.recorder.cell(trial)
    before = len(at.ledger.attempts(at.study, cell, trial.trial)) - 1
    at.ledger.write_under_way(at.study, cell, trial.trial, 3600 * hours, since=before)
    at.queue.meter.read()


@pytest.mark.parametrize(("cap", "begins"), [("2 cpu-hours", False), ("2.001 cpu-hours", True)])
def test_no_trial_begins_once_the_cap_is_spent_exactly_also_by_earlier_sessions(
    desk: Callable[..., Desk], cap: str, begins: bool
) -> None:
    budget = {"trials": 4, "steps": 20, "cost": cap}
    at = desk(budget=budget)
    at.queue.start_clock()
    took(at, at.ask(), 1.5)
    took(at, at.ask(), 0.5)
    assert (at.queue.next() is not None) is begins
    later = desk(budget=budget)
    later.queue.start_clock()
    assert (later.queue.next() is not None) is begins
    assert (later.queue.is_over, later.queue.ran_out) == ((False, None) if begins else (True, "budget.cost"))


def test_a_greater_cap_goes_on_with_what_the_smaller_one_cut(desk: Callable[..., Desk]) -> None:
    at = desk(budget={"trials": 2, "steps": 20, "cost": "1 cpu-hour"})
    first, cut = at.ask(), at.ask()
    at.play(cut, (5, 0.5), start=begun())
    took(at, first, 1.0)
    later = desk(budget={"trials": 2, "steps": 20, "cost": "1 cpu-hour"}, interrupted=[cut.trial])
    later.queue.start_clock()
    assert later.queue.next() is None
    assert later.queue.ran_out == "budget.cost"
    more = desk(budget={"trials": 2, "steps": 20, "cost": "3 cpu-hours"}, interrupted=[cut.trial])
    more.queue.start_clock()
    assert more.ask().trial == cut.trial


def test_the_search_ends_where_confirmation_needs_the_rest_and_that_is_confirmed(desk: Callable[..., Desk]) -> None:
    """For two runs of an hour 2.2 hours are set aside, so that of 4.1 hours 1.9 are the search's: two trials begin."""
    at = desk(budget={"trials": 8, "steps": 20, "cost": "4.1 cpu-hours"}, confirm={"top": 1, "seeds": 2})
    at.queue.start_clock()
    took(at, best := at.ask(), 1.0, loss=0.1)
    took(at, at.ask(), 1.0)
    runs = [at.ask(), at.ask()]
    assert [(run.trial, at.recorder.cell(run).fresh) for run in runs] == [(best.trial, 0), (best.trial, 1)]
    assert at.queue.ran_out == "budget.cost"
    for run in runs:
        took(at, run, 1.0)
    assert at.queue.next() is None  # a tenth of an hour is left, and no search begins again
    assert at.queue.is_over


def test_no_run_of_confirmation_begins_beyond_the_cap_and_a_greater_one_makes_it_whole(
    desk: Callable[..., Desk],
) -> None:
    asked = {"budget": {"trials": 1, "steps": 20, "cost": "3 cpu-hours"}, "confirm": {"top": 1, "seeds": 2}}
    at = desk(**asked)
    at.queue.start_clock()
    took(at, at.ask(), 1.0)
    took(at, at.ask(), 2.0)  # twice as long as its search
    assert at.queue.next() is None
    assert (at.queue.is_over, at.queue.ran_out) == (True, "budget.cost")
    more = desk(**{**asked, "budget": {"trials": 1, "steps": 20, "cost": "3.1 cpu-hours"}})
    more.queue.start_clock()
    assert more.recorder.cell(more.ask()).fresh == 1


def test_a_cost_and_a_time_stand_side_by_side(desk: Callable[..., Desk], clock: list[float]) -> None:
    at = desk(budget={"trials": 4, "steps": 20, "cost": "9 cpu-hours", "time": 60})
    at.queue.start_clock()
    took(at, at.ask(), 1.0)
    clock[0] += 61
    assert at.queue.next() is None
    assert at.queue.ran_out == "budget.time"


def test_a_trial_that_a_person_gave_up_is_not_taken_up_again(desk: Callable[..., Desk]) -> None:
    told = [(at := desk()).ask(), at.ask()]
    later = desk(interrupted=[0, 1])
    waiting = later.queue.drop(told[0].cell, 0)
    later.recorder.end_waiting(told[0].cell, 0, waiting, [])
    assert later.ask().trial == 1
    assert [(trial.state, trial.cause) for trial in later.ledger.trials(later.study, later.cell)] == [
        ("FAIL", "stopped"),
        ("RUNNING", None),
    ]


# What it needs


def test_neither_the_queue_nor_the_recorder_needs_ray() -> None:
    said = "import sys, cs330ray.service.queue, cs330ray.service.recorder; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_the_time_has_overtaken_is_left_out_of_confirmation_and_comes_again_with_more_time(
    desk: Callable[..., Desk], clock: list[float]
) -> None:
    budget = {"trials": 12, "steps": 20, "time": 60}
    at = desk(budget=budget, confirm={"top": 3, "seeds": 1})
    at.queue.start_clock()
    told = [at.ask() for _ in range(12)]
    for each in told:
        if each.trial != 1:
            completed(at, each, 0.9 - each.trial / 100)
    clock[0] += 61
    at.queue.left(told[1])  # it left its worker at a checkpoint
    assert at.queue.next().trial == 11
    assert [number for _, number in confirm.pending(at.ledger, at.study, 0)] == [11, 10, 9]
    [said] = confirm.limits(at.ledger, at.study, 0)
    assert said.endswith("trial 1 has not ended; it is confirmed without")
    longer = desk(interrupted=[1], budget={**budget, "time": 600}, confirm={"top": 3, "seeds": 1})
    again = longer.ask()
    assert again.trial == 1
    completed(longer, again, 0.0)
    assert longer.ask().trial == 1
    assert [number for _, number in confirm.pending(longer.ledger, longer.study, 0)] == [1, 11, 10]


def test_what_limits_who_is_confirmed_is_said_truly(desk: Callable[..., Desk]) -> None:
    at = desk(compare={"data_seed": [0, 1]}, budget={"trials": 3}, confirm={"top": 3, "seeds": 1})
    told = [at.ask() for _ in range(6)]
    for each in (told[0], told[2], told[4], told[1]):
        completed(at, each, 0.5)
    first, *second = confirm.limits(at.ledger, at.study, 0)
    limited = "1 of at most 3 to confirm: no more configurations are COMPLETE among the first 1 trial that ended"
    assert first.endswith(limited)
    assert second[0].endswith("trials 1, 2 have not ended; it is confirmed without")
    assert second[1].endswith(limited)
    assert len(second) == 2


# Runs that train together --------------------------------------------------------------------------------------------


def shared_out(home: Path, *, fuse: int, slots: int, seeds: int, parts: bool = True, **changes: Any) -> list[list[int]]:
    """How the runs of confirmation are shared out, each by its fresh seed; the first of them part."""
    study = parse(
        {
            "name": "company", "trainable": "tests.company", "objective": ["val_loss"], "sampler": {"kind": "random"},
            "search": {"lr": {"low": 0.01, "high": 0.5}, "width": [1, 2]}, "budget": {"trials": 1, "steps": 4},
            "confirm": {"top": 1, "seeds": seeds}, "resources": {"fuse": fuse}, **changes,
        },
        "company",
    )  # fmt: skip
    ledger = Writer.at(home)
    ledger.open(study, {"tests.company": company.METRICS})
    told = Queue(ledger, study, lambda *_: terms(home), lease=OwnLease(), listener=Ear(), slots=slots)
    for cell in study.cells:
        searched = told.next()
        assert searched is not None
        assert searched.beside == ()
        ledger.write_rows(study, cell, 0, [Row(4, {"val_loss": 0.5}, 0.0)])
        ledger.end(study, cell, 0, Ending("COMPLETE"))
        told.left(searched)
    fresh = {cell.key: cell.fresh for cell in confirm.fresh_cells(study)}
    found = []
    while (trial := told.next()) is not None:
        found.append([fresh[each.cell] for each in trial.members])
        if len(found) == 1 and parts:
            told.part(trial.members)
            told.left(trial)
    return found


@pytest.mark.parametrize(
    ("fuse", "slots", "seeds", "found"),
    [
        (1, 1, 2, [[0], [0], [1]]),
        (4, 1, 6, [[0, 1, 2], [0], [1], [2], [3, 4, 5]]),
        (4, 2, 4, [[0, 1], [0], [1], [2, 3]]),
        (8, 1, 3, [[0, 1, 2], [0], [1], [2]]),
    ],
)
def test_runs_of_confirmation_are_shared_out_evenly_and_who_has_parted_goes_first_and_alone(
    tmp_path: Path, fuse: int, slots: int, seeds: int, found: list[list[int]]
) -> None:
    assert shared_out(tmp_path, fuse=fuse, slots=slots, seeds=seeds) == found


def test_runs_that_differ_in_more_than_may_differ_train_apart(tmp_path: Path) -> None:
    changes = {"search": {"lr": {"low": 0.01, "high": 0.5}}, "compare": {"width": [1, 2]}}
    assert shared_out(tmp_path, fuse=8, slots=1, seeds=2, parts=False, **changes) == [[0, 1], [0, 1]]


def test_runs_whose_configuration_is_refused_train_apart_and_each_fails_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ValueError("lr: a bound was tightened")

    monkeypatch.setattr(queue.named, "signature", refuses)
    assert shared_out(tmp_path, fuse=8, slots=1, seeds=2, parts=False) == [[0], [1]]


# Trials of the search that train together -----------------------------------------------------------------------------


def company_study(fuse: int, **changes: Any) -> Study:
    raw = {
        "name": "company", "trainable": "tests.company", "objective": ["val_loss"], "sampler": {"kind": "random"},
        "search": {"lr": {"low": 0.01, "high": 0.5}}, "budget": {"trials": 7, "steps": 4}, "resources": {"fuse": fuse},
    }  # fmt: skip
    return parse({**raw, **changes}, "company")


class Searched:
    """A study of company whose trials are taken from its queue, each with those beside it."""

    def __init__(self, home: Path, fuse: int, slots: int = 1, **changes: Any) -> None:
        self.study, self.ledger = company_study(fuse, **changes), Writer.at(home)
        self.ledger.open(self.study, {"tests.company": company.METRICS})
        self._home, self._slots = home, slots
        self.taken_up()

    def taken_up(self, *interrupted: int, fresh: Sequence[int] = ()) -> None:
        """As by a command that comes after one that was cut off; `fresh` are cut off on the first fresh seed."""
        cell = self.study.cells[0]
        cut = [(cell, number) for number in interrupted]
        cut += [(confirm.fresh_cells(self.study)[0], number) for number in fresh]
        self.queue = Queue(
            self.ledger,
            self.study,
            lambda *_: terms(self._home),
            lease=OwnLease(),
            listener=Ear(),
            interrupted=cut,
            starts={cell.key: starts(self.study, cell) for cell in self.study.cells},
            slots=self._slots,
        )

    def next(self) -> list[tuple[int, int]]:
        """Those that train together next, each by the place of its cell and its number."""
        told = self.queue.next()
        return [] if told is None else [self.place(each) for each in told.members]

    def place(self, told: Assignment) -> tuple[int, int]:
        return [cell.key for cell in self.study.cells].index(told.cell), told.trial

    def end(self, told: Assignment) -> None:
        for each in told.members:
            cell = next(cell for cell in self.study.cells if cell.key == each.cell)
            self.ledger.write_rows(self.study, cell, each.trial, [Row(4, {"val_loss": 0.5}, 0.0)])
            self.ledger.end(self.study, cell, each.trial, COMPLETE)
        self.queue.left(told)


def numbers(at: Searched, times: int) -> list[list[int]]:
    return [[number for _, number in at.next()] for _ in range(times)]


@pytest.mark.parametrize(
    ("fuse", "slots", "found"),
    [
        (1, 1, [[0], [1], [2], [3], [4], [5], [6]]),
        (3, 1, [[0, 1, 2], [3, 4, 5], [6]]),
        (3, 2, [[0, 1, 2], [3, 4, 5], [6]]),
        (8, 2, [[0, 1, 2, 3], [4, 5, 6]]),
    ],
)
def test_trials_that_no_model_chooses_are_drawn_together_and_shared_out_over_the_slots(
    tmp_path: Path, fuse: int, slots: int, found: list[list[int]]
) -> None:
    at = Searched(tmp_path, fuse, slots)
    assert numbers(at, len(found)) == found
    assert at.next() == []
    alone = Searched(tmp_path / "alone", 1)
    numbers(alone, 7)
    drawn = [[(each.params, each.user_attrs["seed"]) for each in history(one)] for one in (at, alone)]
    assert drawn[0] == drawn[1]


def history(at: Searched) -> list[Any]:
    return at.ledger.history(at.study, at.study.cells[0])


@pytest.mark.parametrize(
    ("sampler", "first"),
    [
        ({"kind": "tpe", "startup": 4}, [0, 1, 2, 3]),
        ({"kind": "gp", "startup": 3}, [0, 1, 2]),
        ({"kind": "qmc"}, [0, 1, 2, 3, 4, 5, 6]),
    ],
    ids=["tpe", "gp", "qmc"],
)
def test_what_a_model_chooses_is_never_drawn_beside_another(
    tmp_path: Path, sampler: dict[str, Any], first: list[int]
) -> None:
    at = Searched(tmp_path, 8, sampler=sampler)
    told = at.queue.next()
    assert told is not None
    assert [each.trial for each in told.members] == first
    at.end(told)
    assert numbers(at, 1) == ([[len(first)]] if len(first) < 7 else [[]])


def test_starts_are_drawn_together_too(tmp_path: Path) -> None:
    at = Searched(tmp_path, 8, sampler={"kind": "tpe", "startup": 1}, start=["default", {"lr": 0.2}, {"lr": 0.3}])
    assert numbers(at, 1) == [[0, 1, 2]]


def test_trials_of_several_cells_are_drawn_in_the_order_in_which_they_are_asked(tmp_path: Path) -> None:
    rates = {"lr": [0.1, 0.2]}
    at = Searched(tmp_path / "unlike", 4, compare=rates, search={"width": {"low": 1, "high": 10**6}})
    assert [at.next() for _ in range(3)] == [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 2), (1, 2)]]
    at = Searched(tmp_path / "alike", 4, compare=rates, search={"sleep_s": {"low": 0.0, "high": 0.1}})
    assert at.next() == [(0, 0), (1, 0), (0, 1), (1, 1)]
    at = Searched(tmp_path / "apart", 4, compare={"width": [1, 2]}, budget={"trials": 3, "steps": 4})
    assert [at.next() for _ in range(2)] == [[(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1), (1, 2)]]


def test_where_time_may_run_out_no_cell_gets_ahead_of_one_that_is_unlike(tmp_path: Path) -> None:
    budget = {"trials": 3, "steps": 4, "time": "1h"}
    at = Searched(tmp_path, 4, compare={"width": [1, 2]}, budget=budget)
    assert [at.next() for _ in range(3)] == [[(0, 0)], [(1, 0), (1, 1)], [(0, 1), (0, 2)]]
    at = Searched(tmp_path / "one", 4, budget=budget)
    assert at.next() == [(0, 0), (0, 1), (0, 2)]


def test_trainables_all_of_whose_fields_may_differ_are_not_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue.named, "signature", lambda *_: {})
    assert Queue._signature_of("tests.company", {}) != Queue._signature_of("tests.toy", {})
    assert Queue._signature_of("tests.company", {}) is not None


def test_a_study_that_asks_as_it_began_before_draws_one_trial_at_a_time(tmp_path: Path) -> None:
    at = Searched(tmp_path, 4)
    at.queue._asking = "own"
    assert [at.next() for _ in range(2)] == [[(0, 0)], [(0, 1)]]


def test_a_trial_that_continues_another_trains_alone(tmp_path: Path) -> None:
    """It has rows to pass over, and may be pruned by the last of them."""
    at = Searched(tmp_path, 4)
    told = at.queue.next()
    assert told is not None
    assert at.queue._may_fuse(told)
    assert not at.queue._may_fuse(replace(told, continues=Continuation(4, None)))


def test_cut_off_before_they_began_the_same_are_drawn_together(tmp_path: Path) -> None:
    """The driver died when it had entered two of them."""
    cut = Searched(tmp_path, 2)
    assert cut.next() == [(0, 0), (0, 1)]
    at = Searched(tmp_path, 4)
    at.taken_up(0, 1)
    assert numbers(at, 1) == [[0, 1, 2, 3]]


def test_no_draw_joins_trials_that_have_begun(tmp_path: Path) -> None:
    at = Searched(tmp_path, 4)
    told = at.queue.next()
    assert told is not None
    for each in told.members:
        at.ledger.write_attempt(at.study, at.study.cells[0], each.trial, begun().recorded())
    at.queue.left(told)
    for each in reversed(told.members[:3]):  # the fourth was pruned at a rung
        at.queue.again(each)
    assert numbers(at, 2) == [[0, 1, 2], []]  # none goes before those have begun
    for each in told.members[:3]:
        at.queue.began(each)
    assert numbers(at, 1) == [[4, 5, 6]]


def test_no_draw_goes_before_one_that_waits_and_is_unlike(tmp_path: Path) -> None:
    """Trials 0 and 2 have one width, and trial 1 another."""
    at = Searched(tmp_path, 4, search={"lr": {"low": 0.01, "high": 0.5}, "width": [1, 2]}, seed=0)
    assert numbers(at, 1) == [[0]]
    assert numbers(at, 1) == [[1]]
    widths = [draw(at.study, at.study.cells[0], number)["width"] for number in range(3)]
    assert widths[0] == widths[2] != widths[1]
    at.taken_up(0, 1)
    assert numbers(at, 2) == [[0], [1]]


def test_a_trial_of_the_search_and_a_run_of_confirmation_train_apart(tmp_path: Path) -> None:
    """The one may be overtaken by the study's time, and the other not."""
    at = Searched(tmp_path, 4, budget={"trials": 1, "steps": 4}, confirm={"top": 1, "seeds": 1})
    assert numbers(at, 1) == [[0]]
    at.taken_up(0, fresh=[0])
    assert [at.queue.next().beside for _ in range(2)] == [(), ()]  # type: ignore[union-attr]


def test_one_that_waits_alone_comes_before_any_draw(tmp_path: Path) -> None:
    at = Searched(tmp_path, 2)
    first = at.queue.next()
    assert first is not None
    at.queue.left(first)
    at.queue.part(first.members)
    assert numbers(at, 2) == [[0], [1]]
