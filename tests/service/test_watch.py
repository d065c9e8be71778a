"""Ending trials from outside: silent ones, those that are given up, those that the study's time has overtaken."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray.tune.schedulers import TrialScheduler

from cs330ray.ledger import confirm
from cs330ray.ledger.records import Ending, Kept
from cs330ray.service import queue, run, tune, watch
from cs330ray.service.machines.own_ray import OwnRay
from cs330ray.service.messages import Assignment, News, as_config, as_result
from cs330ray.service.queue import Queue
from cs330ray.service.recorder import Recorder
from cs330ray.service.session import Session
from cs330ray.service.tune import ForwardingCallback, ForwardingScheduler
from cs330ray.service.watch import Watch
from tests.desk import Desk, begun
from tests.studies_of_tests import toy

SILENCE_S = 60.0
GIVEN_UP = ("FAIL", "stopped", "stopped by hand")


class Place:
    """A study on a desk, its watch, its workers that were killed, and a clock that the test moves."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.desk = Desk(home, toy(**{"resources": {"silence": SILENCE_S, "checkpoint": 30.0}, **changes}))
        self.now_s, self.killed = 1000.0, list[str]()
        monkeypatch.setattr(queue.time, "monotonic", lambda: self.now_s)  # the one module, for the watch too
        monkeypatch.setattr(watch.ray, "kill", self.killed.append)
        self.watch = Watch(self.desk.study, self.desk.queue, self.desk.recorder)

    def trial(self, told: Assignment, *, started: bool = True) -> Any:
        """A trial as Tune has it, whose worker goes by its number."""
        state = SimpleNamespace(ray_actor=f"worker {told.trial}" if started else None)
        trial = SimpleNamespace(trial_id=str(told.trial), config=as_config(told), temporary_state=state)
        self.watch.added(trial)
        if started:
            self.watch.started(trial)
        return trial

    def passes(self, seconds: float) -> None:
        """Let time pass, looked at every second."""
        for _ in range(int(seconds)):
            self.now_s += 1
            self.watch.look()

    def ends(self) -> list[tuple[str, str | None, str]]:
        trials = self.desk.ledger.trials(self.desk.study, self.desk.cell)
        return [(trial.state, trial.cause, trial.reason) for trial in trials]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Place]:
    return lambda **changes: Place(tmp_path, monkeypatch, **changes)


def scheduler_of(at: Place) -> ForwardingScheduler:
    """Tune's scheduler over the watch; it has no need of a ground."""
    return ForwardingScheduler(at.desk.queue, at.desk.recorder, at.watch, cast("Any", None), at.desk.study)


RUNNING = ("RUNNING", None, "")


def test_a_trial_that_says_nothing_for_as_long_as_silence_allows_fails_and_its_worker_is_ended(
    place: Callable[..., Place],
) -> None:
    at = place()
    quiet, busy = (at.trial(at.desk.ask()) for _ in range(2))
    at.passes(SILENCE_S - 1)
    at.watch.heard(busy, News(), ends=False)
    assert at.ends() == [RUNNING, RUNNING]
    at.passes(2)
    assert at.ends() == [("FAIL", "silent", "silent: no row for 1m 00s"), RUNNING]
    assert at.killed == ["worker 0"]
    assert at.watch.left(quiet) == (True, False)
    assert at.watch.left(busy) == (False, False)


def test_a_look_that_takes_time_rests_for_a_hundred_times_as_long_and_a_second_at_most(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of so many trials that one takes 4 ms, a look is due every .4 s, whatever happens meanwhile."""
    at, looks, takes_s = place(), [], [0.004]

    def overtakes(_: Any) -> bool:
        looks.append(at.now_s)
        at.now_s += takes_s[0]
        return False

    monkeypatch.setattr(at.desk.queue, "overtakes", overtakes)
    at.trial(at.desk.ask())
    for _ in range(1000):
        at.now_s += 0.01
        at.watch.look()
    assert len(looks) == pytest.approx(1000 * 0.01 / 0.404, rel=0.05)
    takes_s[0] = 5.0
    at.passes(1)
    looks.clear()
    at.passes(3)
    assert len(looks) >= 2


def test_without_silence_a_trial_may_say_nothing_for_ever(place: Callable[..., Place]) -> None:
    at = place(resources={})
    at.trial(at.desk.ask())
    at.passes(5000)
    assert (at.ends(), at.killed) == ([RUNNING], [])


def test_a_trial_that_waits_for_room_is_not_silent(place: Callable[..., Place]) -> None:
    at = place()
    trial = at.trial(at.desk.ask(), started=False)
    at.passes(5 * SILENCE_S)
    trial.temporary_state.ray_actor = "late"
    at.watch.started(trial)
    at.passes(SILENCE_S - 1)
    assert (at.ends(), at.killed) == ([RUNNING], [])


def test_a_driver_that_was_stopped_holds_no_silence_against_its_trials(place: Callable[..., Place]) -> None:
    at = place()
    at.trial(at.desk.ask())
    at.passes(SILENCE_S / 2)
    at.now_s += 3600  # a stopped process, a ledger that was locked
    at.watch.look()
    assert at.ends() == [RUNNING]
    at.passes(SILENCE_S / 2 + 1)
    assert at.ends()[0][1] == "silent"


def test_a_worker_that_does_not_leave_the_trial_before_is_ended_and_the_next_trial_loses_nothing(
    place: Callable[..., Place],
) -> None:
    at = place()
    trial = at.trial(at.desk.ask(), started=False)
    trial.temporary_state.ray_actor = "reused"  # and Tune waits for it to be reset
    at.passes(SILENCE_S + 2)
    assert (at.ends(), at.killed) == ([RUNNING], ["reused"])
    assert at.watch.left(trial) == (True, True)


@pytest.mark.parametrize(("worker", "begins", "losses"), [("reused", False, 0), (None, False, 1), ("its own", True, 1)])
def test_a_worker_that_dies_while_it_leaves_a_trial_is_no_loss_of_the_next(
    place: Callable[..., Place], worker: str | None, begins: bool, losses: int
) -> None:
    """Others are: a new worker that fails before it begins, which Tune does not name yet, and one that had begun."""
    at = place(budget={"trials": 1, "steps": 20})
    told = at.desk.ask()
    trial = at.trial(told, started=False)
    trial.pickled_error_file = trial.error_file = None
    trial.temporary_state.ray_actor = worker
    if begins:
        at.watch.started(trial)
    scheduler_of(at).on_trial_error(None, trial)
    at.desk.queue.left(told)
    trial.temporary_state.ray_actor = None
    ForwardingCallback(at.desk.queue, at.desk.recorder, at.watch, lambda: None).on_trial_error(0, [], trial)
    assert len(at.desk.losses()) == losses
    assert at.desk.ask().trial == told.trial


def test_silence_in_a_test_takes_nothing_from_the_training_and_it_is_not_tested_again(
    place: Callable[..., Place],
) -> None:
    at = place(budget={"trials": 1, "steps": 20}, confirm={"top": 1, "seeds": 1})
    first = at.desk.ask()
    at.desk.play(first, (20, 0.5), start=begun())
    at.desk.play(first, end=Ending("COMPLETE"))
    at.desk.queue.left(first)
    run = at.desk.ask()
    assert run.test
    trial = at.trial(run)
    at.desk.play(run, (10, 0.5), start=begun())
    at.desk.play(run, tests=True)  # it stopped early
    at.passes(SILENCE_S + 1)
    assert at.watch.left(trial) == (True, True)
    at.desk.queue.left(run)
    at.desk.queue.again(run)
    assert not at.desk.ask().test
    cell = at.desk.cell.under(0)
    assert at.desk.ledger.untested(at.desk.study, cell, 0) == ("silent: no row for 1m 00s", "")
    assert [each.state for each in at.desk.ledger.trials(at.desk.study, cell)] == ["RUNNING"]


def test_silence_after_the_last_row_and_before_the_test_is_a_failure(place: Callable[..., Place]) -> None:
    at, run = in_confirmation(place)
    at.trial(run)
    at.desk.play(run, (20, 0.5), start=begun())  # and its checkpoint hangs
    at.passes(SILENCE_S + 1)
    assert ends_of_runs(at)[0] == ["silent: no row for 1m 00s"]


# Given up


def test_a_trial_that_is_given_up_ends_with_its_next_news(place: Callable[..., Place]) -> None:
    at = place()
    told = at.desk.ask()
    at.trial(told)
    at.watch.give_up(told.cell, told.trial)
    assert at.ends() == [RUNNING]
    assert at.desk.play(told, (5, 0.5), start=begun())
    assert (at.ends(), at.killed) == ([GIVEN_UP], [])


@pytest.mark.parametrize("late", [False, True])
def test_a_trial_that_ends_with_news_of_a_checkpoint_is_not_said_to_be_resumed(
    place: Callable[..., Place], late: bool
) -> None:
    """It was given up, in a study without a time too, or after the study's time."""
    at, told, trial = at_its_time(place) if late else ((now := place()), (first := now.desk.ask()), now.trial(first))
    at.watch.give_up(told.cell, told.trial)
    saved = News(start=begun(), checkpoint=Kept("step-5", 5, "digest"))
    said = scheduler_of(at).on_trial_result(None, trial, {**as_result(saved), "training_iteration": 1})
    assert (said, at.ends()) == (TrialScheduler.STOP, [GIVEN_UP])
    assert not any("budget.time" in line for line in at.desk.ear.said)
    assert at.desk.queue.ran_out is None


def test_a_trial_that_is_given_up_and_hangs_ends_where_it_stands(place: Callable[..., Place]) -> None:
    at = place(resources={})
    told = at.desk.ask()
    at.trial(told)
    at.watch.give_up(told.cell, told.trial)
    at.passes(watch.STOP_S + 1)
    assert (at.ends(), at.killed) == ([GIVEN_UP], ["worker 0"])


def test_a_trial_that_is_given_up_says_nothing_of_its_parameters(place: Callable[..., Place]) -> None:
    at = place()
    told = at.desk.ask()
    at.watch.give_up(told.cell, told.trial)  # it has no worker just now
    assert at.ends() == [GIVEN_UP]
    assert at.desk.ledger.lost(at.desk.study, at.desk.cell) == {0}


def in_confirmation(place: Callable[..., Place], cost: str | None = None, **more: Any) -> tuple[Place, Assignment]:
    """A study whose trial 0 is confirmed on three seeds, with the first run of it."""
    at = place(budget={"trials": 1, "steps": 20, "cost": cost}, confirm={"top": 1, "seeds": 3}, **more)
    searched = at.desk.ask()
    at.desk.play(searched, (20, 0.5), start=begun())
    at.desk.play(searched, end=Ending("COMPLETE"))
    at.desk.queue.left(searched)
    return at, at.desk.ask()


def ends_of_runs(at: Place) -> list[list[str]]:
    cells = confirm.fresh_cells(at.desk.study)
    return [[trial.reason or trial.state for trial in at.desk.ledger.trials(at.desk.study, cell)] for cell in cells]


def test_when_a_confirmed_trial_is_given_up_its_runs_that_wait_end_and_the_one_at_work_with_its_next_news(
    place: Callable[..., Place],
) -> None:
    at, run = in_confirmation(place)
    at.trial(run)
    at.desk.play(run, (5, 0.5), start=begun())
    at.watch.give_up(at.desk.cell.key, 0)
    assert ends_of_runs(at) == [["RUNNING"], ["stopped by hand"], ["stopped by hand"]]
    assert at.desk.play(run, (10, 0.5))
    assert ends_of_runs(at) == [["stopped by hand"]] * 3
    at.desk.queue.left(run)
    assert at.desk.queue.next() is None
    assert at.desk.queue.is_over
    assert at.ends() == [("COMPLETE", None, "")]


def test_when_a_confirmed_trial_is_given_up_while_no_run_of_it_has_a_worker_all_of_them_end(
    place: Callable[..., Place],
) -> None:
    at, run = in_confirmation(place)
    at.desk.play(run, (5, 0.5), start=begun())
    at.desk.queue.left(run)
    at.desk.queue.again(run)  # its worker was lost
    at.watch.give_up(at.desk.cell.key, 0)
    assert ends_of_runs(at) == [["stopped by hand"]] * 3
    assert at.desk.queue.next() is None
    assert at.desk.queue.is_over


def test_a_trial_that_was_given_up_when_ray_died_ends_with_its_first_news_under_the_next_one(
    place: Callable[..., Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = place()
    session = Session(at.desk.ledger, at.desk.study, cast("Any", at.desk.lease), at.desk.ear, lambda: False)
    machine = SimpleNamespace(gpus_per_worker=lambda _: 0.0)
    ground = SimpleNamespace(store=None, nodes=None, slots=1, machine=machine, data={at.desk.cell.key: "d"})
    taken = list[tuple[Assignment, bool]]()

    def hand_over(_: Session, __: Any, own: OwnRay, recorder: Recorder, queue: Queue) -> bool:
        at.watch = Watch(at.desk.study, queue, recorder)
        told = queue.next()
        at.trial(told)
        if not taken:
            at.watch.give_up(told.cell, told.trial)
        taken.append((told, recorder.take("tune", 1, told, News()) if taken else False))
        return len(taken) == 2  # else Ray has died

    monkeypatch.setattr(tune, "hand_over", hand_over)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)  # so that none is started
    assert not run._tuned(session, tmp_path, cast("Any", ground))
    assert at.ends() == [RUNNING]
    assert run._tuned(session, tmp_path, cast("Any", ground))
    assert [(told.trial, ended) for told, ended in taken] == [(0, False), (0, True)]
    assert at.ends() == [GIVEN_UP]


def test_a_trial_that_was_given_up_when_ray_died_and_hangs_under_the_next_one_ends_where_it_stands(
    place: Callable[..., Place],
) -> None:
    at = place(resources={})
    told = at.desk.ask()
    at.desk.recorder.give_up(told)
    at.trial(told)
    at.passes(watch.STOP_S + 1)
    assert (at.ends(), at.killed) == ([GIVEN_UP], ["worker 0"])


# Time


def at_its_time(place: Callable[..., Place]) -> tuple[Place, Assignment, Any]:
    at = place(budget={"trials": 4, "steps": 20, "time": 100}, resources={"checkpoint": 30.0})
    at.desk.queue.start_clock()
    told = at.desk.ask()
    trial = at.trial(told)
    at.desk.queue.began(told)
    at.passes(99)
    assert not at.desk.queue.is_late
    at.passes(1)
    return at, told, trial


def test_when_the_time_is_spent_a_trial_leaves_its_worker_at_its_next_checkpoint(place: Callable[..., Place]) -> None:
    at, _, trial = at_its_time(place)
    assert not at.watch.heard(trial, News(), ends=False)
    assert at.watch.heard(trial, News(checkpoint=Kept("step-5", 5, "digest")), ends=False)
    assert (at.ends(), at.killed) == ([RUNNING], [])
    assert at.desk.queue.ran_out == "budget.time"


def test_when_no_checkpoint_comes_in_the_grace_its_worker_is_ended_and_the_trial_waits_for_more_time(
    place: Callable[..., Place],
) -> None:
    at, _, trial = at_its_time(place)
    at.passes(30 + watch.GRACE_S)
    assert at.killed == []
    at.passes(1)
    assert (at.ends(), at.killed) == ([RUNNING], ["worker 0"])
    assert at.watch.left(trial) == (True, False)
    assert at.desk.queue.ran_out == "budget.time"


def test_a_trial_that_ends_by_itself_after_the_time_has_ended(place: Callable[..., Place]) -> None:
    at, told, trial = at_its_time(place)
    at.desk.play(told, (20, 0.5), start=begun())
    ended = News(checkpoint=Kept("step-20", 20, "digest"), end=Ending("COMPLETE"))
    at.desk.play(told, end=Ending("COMPLETE"))
    assert not at.watch.heard(trial, ended, ends=True)
    assert at.ends() == [("COMPLETE", None, "")]
    assert at.desk.queue.ran_out is None


# Cost


def noted(at: Place, number: int, cell: Any = None) -> list[float | None]:
    """For how long each attempt of a trial is noted to have been under way, in seconds."""
    attempts = at.desk.ledger.attempts(at.desk.study, cell or at.desk.cell, number)
    return [attempt.get("under_way_s") for attempt in attempts]


def test_the_record_knows_every_five_seconds_how_long_a_trial_is_under_way(place: Callable[..., Place]) -> None:
    """So much a driver that is killed may lose; the attempt before keeps what it had."""
    at = place(resources={})
    told = at.desk.ask()
    trial = at.trial(told)
    at.passes(3)
    at.desk.play(told, start=begun())  # its data took so long
    for _ in range(8):
        at.passes(1)
        at.desk.queue.meter.look()
    assert noted(at, 0) == [9.0]
    at.watch.left(trial)
    assert noted(at, 0) == [11.0]
    at.trial(told)
    at.passes(20)
    at.desk.queue.meter.record()
    assert noted(at, 0) == [11.0]  # the second has not begun
    at.desk.play(told, start=begun())
    at.desk.queue.meter.record()
    assert noted(at, 0) == [11.0, 20.0]


def test_an_attempt_is_recorded_with_what_it_takes(place: Callable[..., Place]) -> None:
    at = place()
    told = at.desk.ask()
    many = replace(told, terms=replace(told.terms, cpus=2.0, gpus=1.0, workers=3))
    at.desk.play(many, start=begun())
    [attempt] = at.desk.ledger.attempts(at.desk.study, at.desk.cell, 0)
    assert (attempt["cpus"], attempt["gpus"]) == (6.0, 3.0)


def test_when_the_cap_is_spent_a_trial_leaves_its_worker_at_its_next_checkpoint_and_says_why(
    place: Callable[..., Place],
) -> None:
    at = place(budget={"trials": 4, "steps": 20, "cost": "0.05 cpu-hours"}, resources={"checkpoint": 30.0})
    at.desk.queue.start_clock()
    told = at.desk.ask()
    trial = at.trial(told)
    at.desk.play(told, start=begun())
    for _ in range(180):
        at.desk.queue.meter.look()
        at.passes(1)
    saved = News(checkpoint=Kept("step-5", 5, "digest"))
    assert not at.watch.heard(trial, saved, ends=False)
    at.desk.queue.meter.look()  # the last note was some seconds ago
    at.passes(1)
    assert at.watch.heard(trial, saved, ends=False)
    assert at.desk.ear.said[-1] == "trial 0 stops: budget.cost is spent; it is resumed when that is raised"
    assert (at.ends(), at.desk.queue.ran_out) == ([RUNNING], "budget.cost")


def test_when_the_cap_is_spent_a_run_of_confirmation_stops_too_with_the_same_grace(
    place: Callable[..., Place],
) -> None:
    at, run = in_confirmation(place, cost="0.1 cpu-hours", resources={"checkpoint": 30.0})
    at.desk.ledger.write_under_way(at.desk.study, at.desk.cell, 0, 1.0, since=0)
    at.trial(run)
    at.desk.play(run, (5, 0.5), start=begun())
    at.passes(359)
    at.desk.queue.meter.look()
    at.passes(31 + watch.GRACE_S)
    assert at.killed == []
    at.passes(1)
    assert at.killed == ["worker 0"]
    assert ends_of_runs(at)[0] == ["RUNNING"]


# All of them


def test_when_the_study_stops_a_worker_that_does_not_answer_is_killed(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = place()
    told = at.desk.ask()
    trial = at.trial(told)
    worker = trial.temporary_state.ray_actor = SimpleNamespace(stop=SimpleNamespace(remote=lambda: "promise"))
    waited = list[tuple[Any, float]]()
    monkeypatch.setattr(watch.ray, "wait", lambda asked, num_returns, timeout: waited.append((asked, timeout)))
    at.watch.let_go()
    assert (waited, at.killed) == ([(["promise"], watch.LEAVE_S)], [worker])


# Several in one worker -----------------------------------------------------------------------------------------------


def together(at: Place) -> tuple[Any, Assignment]:
    """Two trials that train together, as Tune has them, and both as they were told."""
    first, second = at.desk.ask(), at.desk.ask()
    told = replace(first, beside=(second,))
    return at.trial(told), told


def test_of_trials_that_train_together_nobody_is_silent_alone(place: Callable[..., Place]) -> None:
    at = place()
    trial, told = together(at)
    at.passes(SILENCE_S + 1)
    assert (at.ends(), at.killed) == ([RUNNING, RUNNING], ["worker 0"])
    assert [line for line in at.desk.ear.said if "go on alone" in line] == [
        "trials 0, 1 go on alone: no row for 1m 00s"
    ]
    assert at.watch.left(trial) == (True, False)
    assert at.desk.recorder.still_open(told) == list(told.members)


def test_one_of_those_that_train_together_is_given_up_and_the_others_leave_with_it(place: Callable[..., Place]) -> None:
    at = place()
    trial, told = together(at)
    news = News(start=begun(), beside=(News(start=begun()),))
    assert not at.desk.recorder.take(trial.trial_id, 1, told, news)
    at.watch.give_up(at.desk.cell.key, 1)
    assert at.desk.recorder.take(trial.trial_id, 2, told, News(beside=(News(),)))
    assert at.ends() == [RUNNING, GIVEN_UP]
    assert [each.trial for each in at.desk.recorder.still_open(told)] == [0]


def test_who_is_given_up_at_a_rung_leaves_with_the_checkpoints_that_come_next(place: Callable[..., Place]) -> None:
    at = place()
    trial, told = together(at)
    at.watch.give_up(at.desk.cell.key, 1)
    kept = Kept("/here", 4, "digest")
    rung = News(start=begun(), checkpoint=kept, saves=True, beside=(News(start=begun()),))
    ends = at.desk.recorder.take(trial.trial_id, 1, told, rung)
    assert (ends, at.watch.heard(trial, rung, ends=ends)) == (False, False)
    assert not [line for line in at.desk.ear.said if "spent" in line]
    assert at.desk.recorder.take(trial.trial_id, 2, told, News(checkpoint=kept, beside=(News(),)))


def test_trials_that_train_together_share_what_their_worker_takes(place: Callable[..., Place]) -> None:
    at = place(resources={})
    trial, told = together(at)
    at.desk.recorder.take(trial.trial_id, 1, told, News(start=begun(), beside=(News(start=begun()),)))
    at.passes(4)
    at.watch.left(trial)
    for number in (0, 1):
        [attempt] = at.desk.ledger.attempts(at.desk.study, at.desk.cell, number)
        assert (attempt["cpus"], attempt["under_way_s"]) == (told.terms.cpus / 2, 4.0)
