"""What Tune is told, and what it tells: each call in the order in which Tune would make it, without a Ray."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from cs330ray.errors import NodeUnfit, StudyError, WorkerLost, WorkerSpent
from cs330ray.ledger.records import Ending, Row
from cs330ray.service.messages import Assignment, News, as_config, as_result, assigned
from cs330ray.service.tune import ForwardingCallback, ForwardingScheduler, ForwardingSearcher
from tests.desk import Desk, begun
from tests.studies_of_tests import toy


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    return lambda interrupted=None, **changes: Desk(tmp_path, toy(**changes), interrupted)


class Room:
    """A ground that has room for so many trials."""

    def __init__(self, trials: int) -> None:
        self.trials = trials

    def room(self) -> float:
        return self.trials


class Watched:
    """A watch that finds nothing to end, or an end that came from it."""

    def __init__(self, *, ended: bool = False, again: bool = False) -> None:
        self.end, self.let_go_of_all = (ended, again), 0

    def heard(self, trial: Any, news: News, *, ends: bool) -> bool:
        return False

    def has_ended(self, trial: Any) -> bool:
        return self.end[0]

    def left(self, trial: Any) -> tuple[bool, bool]:
        return self.end

    def let_go(self) -> None:
        self.let_go_of_all += 1


def suggested(searcher: ForwardingSearcher, trial_id: str) -> Assignment:
    config = searcher.suggest(trial_id)
    assert isinstance(config, dict)
    return assigned(config)


# The searcher


def test_tune_is_told_to_wait_while_trials_run_and_that_all_is_finished_once_they_have_ended(
    desk: Callable[..., Desk],
) -> None:
    searcher = ForwardingSearcher(desk(budget={"trials": 2}).queue, Room(9))
    assert [suggested(searcher, name).trial for name in ("a", "b")] == [0, 1]
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("a")
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("b", error=True)
    assert searcher.suggest("c") == searcher.FINISHED


def test_no_more_are_asked_than_there_is_room_for_just_now(desk: Callable[..., Desk]) -> None:
    room = Room(1)
    searcher = ForwardingSearcher(desk().queue, room)
    suggested(searcher, "a")
    assert searcher.suggest("one more") is None
    room.trials = 3
    assert [suggested(searcher, name).trial for name in ("b", "c")] == [1, 2]
    room.trials = 2  # a node has left
    searcher.on_trial_complete("a")
    assert searcher.suggest("one more") is None


def test_where_nothing_runs_a_trial_is_asked_even_without_room(desk: Callable[..., Desk]) -> None:
    assert suggested(ForwardingSearcher(desk().queue, Room(0)), "a").trial == 0


# The scheduler


def result(iteration: int, news: News) -> dict[str, Any]:
    return {**as_result(news), "training_iteration": iteration}


def test_a_trial_that_comes_again_lets_others_pass_once_its_news_says_that_it_has_begun(
    desk: Callable[..., Desk],
) -> None:
    first = desk().ask()
    at = desk(interrupted=[first.trial])
    scheduler = ForwardingScheduler(at.queue, at.recorder, Watched(), Room(9), at.study)
    trial = SimpleNamespace(trial_id="a", config=as_config(at.ask()))
    scheduler.on_trial_result(None, trial, result(1, News()))
    assert at.queue.next() is None
    scheduler.on_trial_result(None, trial, result(2, News(start=begun())))
    assert at.ask().trial == 1


def test_a_trial_stops_where_it_is_pruned_or_has_ended_and_goes_on_else(desk: Callable[..., Desk]) -> None:
    at = desk(prune={"kind": "asha", "min_steps": 5, "reduction": 2}, budget={"trials": 9, "steps": 20})
    scheduler = ForwardingScheduler(at.queue, at.recorder, Watched(), Room(9), at.study)
    good, bad, fails = (SimpleNamespace(trial_id=name, config=as_config(at.ask())) for name in "abc")

    def said(trial: Any, iteration: int, news: News) -> str:
        return scheduler.on_trial_result(None, trial, result(iteration, news))

    def at_rung(loss: float) -> News:
        return News(rows=[Row(5, {"val_loss": loss, "val_speed": 0.5}, 0.0)])

    assert said(good, 1, at_rung(0.1)) == TrialScheduler.CONTINUE
    assert said(bad, 1, at_rung(0.9)) == TrialScheduler.STOP
    assert said(fails, 1, News(end=Ending("FAIL", "raised: planted", cause="raised"))) == TrialScheduler.STOP


# The callback


class FewNodes:
    """Some nodes of a cluster."""

    def __init__(self) -> None:
        self.unfit = dict[str, str]()

    def live(self) -> set[str]:
        return {"second", "third"}

    def exclude(self, node: str, why: str) -> None:
        self.unfit[node] = why


class Lost:
    """A trial of Tune's whose worker was lost."""

    def __init__(self, told: Assignment, file: Path, error: Exception | None = None) -> None:
        self.config, self.error_file, self.pickled_error_file = as_config(told), None, None
        if error is not None:
            file.write_bytes(pickle.dumps(error))
            self.pickled_error_file = str(file)


def test_a_loss_is_recorded_with_why_and_the_nodes_of_the_last_attempt(
    desk: Callable[..., Desk], tmp_path: Path
) -> None:
    at = desk()
    told = at.ask()
    nodes = FewNodes()
    callback = ForwardingCallback(at.queue, at.recorder, Watched(), lambda: None, nodes)
    at.play(told, (5, 0.5), start=begun("first"))
    at.queue.left(told)
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error"))
    assert at.ask().trial == told.trial
    at.play(told, (10, 0.5), start=begun("second", resumed_from_step=5))
    at.queue.left(told)
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error", WorkerLost("one of 2 workers is gone")))
    assert at.ask().trial == told.trial
    assert at.losses() == [
        ("no word of it [on first]", ["first"]),
        ("one of 2 workers is gone [on second]", ["second"]),
    ]


def test_a_trial_that_came_to_an_unfit_node_lost_nothing_and_the_node_gets_no_other(
    desk: Callable[..., Desk], tmp_path: Path
) -> None:
    at = desk()
    told = at.ask()
    nodes = FewNodes()
    callback = ForwardingCallback(at.queue, at.recorder, Watched(), lambda: None, nodes)
    at.queue.left(told)
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error", NodeUnfit("third", "torch must be 2.13.0")))
    assert nodes.unfit == {"third": "torch must be 2.13.0"}
    assert at.ask() == told
    assert at.losses() == []


def test_a_trial_that_has_lost_too_many_workers_is_not_queued_again(desk: Callable[..., Desk], tmp_path: Path) -> None:
    at = desk(budget={"trials": 2})
    told = at.ask()
    callback = ForwardingCallback(at.queue, at.recorder, Watched(), lambda: None)
    for _ in range(3):
        at.queue.left(told)
        callback.on_trial_error(0, [], Lost(told, tmp_path / "error"))
        assert at.ask().trial == told.trial
    at.queue.left(told)
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error"))
    assert at.ask().trial == told.trial + 1


def test_what_ends_a_study_leaves_tune_at_the_end_of_a_step(desk: Callable[..., Desk]) -> None:
    at, watch = desk(), Watched()

    def tick() -> None:
        raise StudyError("every trial has failed")

    with pytest.raises(StudyError, match="every trial has failed"):
        ForwardingCallback(at.queue, at.recorder, watch, tick).on_step_end(0, [])
    assert watch.let_go_of_all == 1


@pytest.mark.parametrize("again", [False, True])
def test_a_worker_that_was_ended_from_here_is_no_loss(desk: Callable[..., Desk], tmp_path: Path, again: bool) -> None:
    at = desk(budget={"trials": 2})
    told = at.ask()
    at.queue.left(told)
    callback = ForwardingCallback(at.queue, at.recorder, Watched(ended=True, again=again), lambda: None)
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error"))
    assert at.losses() == []
    assert at.ask().trial == (told.trial if again else told.trial + 1)


def test_a_trial_that_came_to_a_spent_worker_lost_nothing(desk: Callable[..., Desk], tmp_path: Path) -> None:
    at = desk()
    told = at.ask()
    at.queue.left(told)
    callback = ForwardingCallback(at.queue, at.recorder, Watched(), lambda: None)
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error", WorkerSpent("a trial left threads")))
    assert at.losses() == []
    assert at.ask() == told


def test_where_together_they_would_not_be_equal_no_others_train_together(desk: Callable[..., Desk]) -> None:
    at = desk(budget={"trials": 2})
    first, second = at.ask(), at.ask()
    at.queue.fuse = 4
    trial = SimpleNamespace(trial_id="a", config=as_config(replace(first, beside=(second,))))
    scheduler = ForwardingScheduler(at.queue, at.recorder, Watched(), Room(9), at.study)
    scheduler.on_trial_result(None, trial, result(1, News(beside=(News(),))))
    assert at.queue.fuse == 4
    scheduler.on_trial_result(None, trial, result(2, News(beside=(News(),), parts="unequal", unequal=True)))
    assert at.queue.fuse == 1


@pytest.mark.parametrize("error", [None, WorkerSpent("a trial left threads"), NodeUnfit("third", "another torch")])
def test_trials_that_train_together_are_queued_again_whatever_became_of_their_worker(
    desk: Callable[..., Desk], tmp_path: Path, error: Exception | None
) -> None:
    at = desk(budget={"trials": 2})
    first, second = at.ask(), at.ask()
    told = replace(first, beside=(second,))
    at.queue.left(told)
    nodes = FewNodes()
    ForwardingCallback(at.queue, at.recorder, Watched(), lambda: None, nodes).on_trial_error(
        0, [], Lost(told, tmp_path / "error", error)
    )
    assert [at.ask(), at.ask()] == [first, second]
    assert at.losses() == []
    assert bool(nodes.unfit) == isinstance(error, NodeUnfit)
    parted = [line for line in at.ear.said if "go on alone" in line]
    assert len(parted) == (error is None)


def test_news_that_come_after_a_trials_worker_was_ended_are_not_recorded(desk: Callable[..., Desk]) -> None:
    at = desk()
    trial = SimpleNamespace(trial_id="a", config=as_config(at.ask()))
    scheduler = ForwardingScheduler(at.queue, at.recorder, Watched(ended=True), Room(9), at.study)
    late = News(rows=[Row(5, {"val_loss": 0.5, "val_speed": 0.5}, 0.0)])
    assert scheduler.on_trial_result(None, trial, result(1, late)) == TrialScheduler.STOP
    assert at.ledger.rows(at.study, at.cell, 0) == []
