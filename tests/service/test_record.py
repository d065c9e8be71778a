"""The recorder and the searcher, driven without Ray: what Tune would call, in the order in which it would."""

import contextlib
import json
import pickle
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cs330ray.errors import NodeUnfit, WorkerLost
from cs330ray.ledger.records import Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.service.ask import LedgerSearcher
from cs330ray.service.listener import Listener
from cs330ray.service.messages import Assignment, Circumstances, News, Start, as_config, assigned
from cs330ray.service.recorder import ForwardingCallback, Recorder
from cs330ray.spec.places import checkpoints_of
from cs330ray.spec.study import Study
from tests import toy as toy_trainable
from tests.assignments import terms
from tests.studies_of_tests import toy


class Desk:
    """A study opened in a ledger, with its searcher and its recorder; `play` is a worker's message."""

    def __init__(self, home: Path, study: Study, interrupted: list[int] | None = None) -> None:
        self.home, self.ledger, self.study, self.cell = home, Writer.at(home), study, study.cells[0]
        self.ledger.open(study, {"tests.toy": toy_trainable.METRICS})
        waiting = [(self.cell, number) for number in interrupted or []]
        self.searcher = LedgerSearcher(self.ledger, study, lambda *_: terms(home), waiting)
        self.recorder = Recorder(self.ledger, study, Listener())
        self._messages = 0

    def ask(self) -> Assignment:
        self._messages += 1
        config = self.searcher.suggest(f"tune-{self._messages}")
        assert isinstance(config, dict)
        return assigned(config)

    def play(self, told: Assignment, *rows: tuple[int, float], **news: Any) -> bool:
        """News with rows, each a step and a value of every metric; whether the trial stops."""
        self._messages += 1
        sent = [Row(step, {"val_loss": value, "val_speed": value}, 0.0) for step, value in rows]
        return self.recorder.take(f"tune-{told.cell}-{told.trial}", self._messages, told, News(rows=sent, **news))


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    return lambda interrupted=None, **changes: Desk(tmp_path, toy(**changes), interrupted)


# The recorder

COMPLETE = Ending("COMPLETE")


def begun(*nodes: str, resumed_from_step: int | None = None) -> Start:
    """A start on these nodes."""
    on = Circumstances("host", "cpu", 1, "3.12", {}, nodes, pid=1, seed=7, code="c", data="d")
    return Start(resumed_from_step, 0.0, on)


ASHA = {"prune": {"kind": "asha", "min_steps": 5, "reduction": 2}, "budget": {"trials": 9, "steps": 20}}


def test_a_failed_batch_leaves_its_rows_then_its_end(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, order = desk(), []
    for name in ("write_rows", "report", "end"):
        original = getattr(at.ledger, name)
        monkeypatch.setattr(
            at.ledger, name, lambda *given, name=name, original=original: order.append(name) or original(*given)
        )
    told = at.ask()
    assert at.play(told, (5, 0.5), (10, 0.4), end=Ending("FAIL", "raised: planted", cause="raised"))
    assert order == ["write_rows", "report", "report", "end"]
    (trial,) = at.ledger.trials(at.study, at.cell)
    assert (trial.state, trial.cause, trial.reason) == ("FAIL", "raised", "raised: planted")
    assert [row.step for row in at.ledger.rows(at.study, at.cell, 0)] == [5, 10]


def test_a_result_that_comes_twice_is_taken_once_and_answered_the_same(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = at.ask()
    ended = News(end=Ending("FAIL", "first", cause="raised"))
    for iteration, news, stops in ((1, News(start=begun()), False), (2, ended, True)):
        for _ in range(2):
            assert at.recorder.take("tune", iteration, told, news) is stops
    assert len(at.ledger.attempts(at.study, at.cell, 0)) == 1


@pytest.mark.parametrize(("objective", "worse"), [("val_loss", 0.6), ("val_speed", 0.4)])
def test_the_pruner_stops_what_is_worse_by_the_goal_of_the_objective(
    desk: Callable[..., Desk], objective: str, worse: float
) -> None:
    at = desk(objective=[objective], **ASHA)
    first, bad, good = at.ask(), at.ask(), at.ask()
    assert not at.play(first, (5, 0.5))
    assert at.play(bad, (5, worse))
    assert not at.play(good, (5, 1 - worse))
    pruned = at.ledger.trials(at.study, at.cell)[1]
    assert (pruned.state, pruned.cause, pruned.reason) == ("PRUNED", "pruned", "asha at step 5, 1 rival")


def test_rows_that_come_again_are_not_judged_again(desk: Callable[..., Desk]) -> None:
    """The worker was lost after step 10; meanwhile a better rival has come to step 5."""
    at = desk(**ASHA)
    cut, better = at.ask(), at.ask()
    assert not at.play(cut, (5, 0.5))
    assert not at.play(cut, (10, 0.4))
    assert not at.play(better, (5, 0.1))
    assert not at.play(cut, (5, 0.5))


def test_the_last_step_is_not_judged(desk: Callable[..., Desk]) -> None:
    at = desk(prune={"kind": "median", "min_steps": 5, "startup": 1}, budget={"trials": 9, "steps": 10})
    best, last = at.ask(), at.ask()
    at.play(best, (5, 0.1), (10, 0.1))
    at.play(best, end=COMPLETE)
    assert not at.play(last, (10, 0.9))


def test_rivals_are_of_the_trials_own_cell(desk: Callable[..., Desk]) -> None:
    at = desk(compare={"data_seed": [0, 1]}, **ASHA)
    first, other, second = at.ask(), at.ask(), at.ask()
    assert first.cell == second.cell != other.cell
    assert not at.play(second, (5, 0.1))
    assert not at.play(other, (5, 0.9))


def test_the_median_is_that_of_complete_trials_and_a_trial_is_judged_by_its_best_row(desk: Callable[..., Desk]) -> None:
    at = desk(prune={"kind": "median", "min_steps": 5, "startup": 1}, budget={"trials": 9, "steps": 20})
    running, judged, complete = at.ask(), at.ask(), at.ask()
    at.play(running, (5, 0.1))
    assert not at.play(judged, (5, 0.3))  # none is complete yet
    at.play(complete, (5, 0.5), (10, 0.5), (20, 0.5))
    at.play(complete, end=COMPLETE)
    assert not at.play(judged, (10, 0.9))  # worse than 0.5, but it has been at 0.3
    assert at.play(at.ask(), (5, 0.6))


def test_a_worker_lost_four_times_has_failed_and_three_times_not(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = at.ask()
    assert [at.recorder.lose(told, "died") for _ in range(4)] == [True, True, True, False]
    (trial,) = at.ledger.trials(at.study, at.cell)
    assert (trial.state, trial.cause, trial.reason) == ("FAIL", "lost", "worker lost 4 times: died")


def test_a_worker_that_ray_ends_for_its_memory_four_times_has_failed_by_memory(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = at.ask()
    assert [at.recorder.lose(told, "OutOfMemoryError: 9 GiB") for _ in range(4)] == [True, True, True, False]
    (trial,) = at.ledger.trials(at.study, at.cell)
    assert (trial.cause, trial.reason) == ("memory", "out of memory: worker ended 4 times: OutOfMemoryError: 9 GiB")


def test_a_worker_lost_with_its_node_does_not_count(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = at.ask()
    for node in range(9):
        at.play(told, (5 + node, 0.5), start=begun(f"gone{node}", "stays"))
        assert at.recorder.lose(told, "died", live={"stays", f"gone{node}"})  # Ray does not know it yet
    at.play(told, (15, 0.5), start=begun("stays"))
    assert [at.recorder.lose(told, "died", live={"stays"}) for _ in range(4)] == [True, True, True, False]


def test_a_trial_that_takes_every_node_along_fails_in_the_end(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = at.ask()
    at.play(told, (5, 0.5), start=begun("gone"))
    goes_on = [at.recorder.lose(told, "died", live={"another"}) for _ in range(21)]
    assert goes_on == [True] * 20 + [False]
    (trial,) = at.ledger.trials(at.study, at.cell)
    assert (trial.state, trial.reason) == ("FAIL", "worker lost 21 times: died [on gone]")


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


def losses(at: Desk) -> list[tuple[str, list[str]]]:
    """The reason and the nodes of each loss in the ledger's own table."""
    with contextlib.closing(sqlite3.connect(at.home / "ledger.db")) as ledger:
        query = "select reason, nodes from cs330ray_losses order by attempt"
        return [(reason, json.loads(nodes)) for reason, nodes in ledger.execute(query)]


def test_a_loss_is_recorded_with_why_and_the_nodes_of_the_last_attempt(
    desk: Callable[..., Desk], tmp_path: Path
) -> None:
    at, again = desk(), []
    told = at.ask()
    nodes = FewNodes()
    callback = ForwardingCallback(at.recorder, lambda _, number: again.append(number), lambda: None, nodes)  # type: ignore[arg-type]
    at.play(told, (5, 0.5), start=begun("first"))
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error"))
    at.play(told, (10, 0.5), start=begun("second", resumed_from_step=5))
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error", WorkerLost("one of 2 workers is gone")))
    assert again == [0, 0]
    assert losses(at) == [
        ("no word of it [on first]", ["first"]),
        ("one of 2 workers is gone [on second]", ["second"]),
    ]


def test_a_loss_on_one_machine_names_no_node(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = at.ask()
    at.play(told, (5, 0.5), start=begun("here"))
    at.recorder.lose(told, "died")
    assert losses(at) == [("died", [])]


def test_a_trial_that_came_to_an_unfit_node_lost_nothing_and_the_node_gets_no_other(
    desk: Callable[..., Desk], tmp_path: Path
) -> None:
    at, again = desk(), []
    told = at.ask()
    nodes = FewNodes()
    callback = ForwardingCallback(at.recorder, lambda _, number: again.append(number), lambda: None, nodes)  # type: ignore[arg-type]
    callback.on_trial_error(0, [], Lost(told, tmp_path / "error", NodeUnfit("third", "torch must be 2.13.0")))
    assert nodes.unfit == {"third": "torch must be 2.13.0"}
    assert again == [0]
    assert losses(at) == []


def test_every_trial_has_a_place_of_its_own_for_its_checkpoints(tmp_path: Path) -> None:
    studies = [toy(name=name, compare={"data_seed": [0, 1]}) for name in ("one", "two")]
    each = [(study, cell, number) for study in studies for cell in study.cells for number in (0, 1)]
    places = {checkpoints_of(tmp_path, study.name, cell, number) for study, cell, number in each}
    assert len(places) == len(each) == 8


# The searcher


def test_cells_are_asked_in_turn_with_common_seeds_until_the_budget_is_spent(desk: Callable[..., Desk]) -> None:
    at = desk(compare={"data_seed": [0, 1]}, budget={"trials": 2})
    told = [at.ask() for _ in range(4)]
    assert [(json.loads(each.cell)["data_seed"], each.trial) for each in told] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert told[0].seed == told[1].seed != told[2].seed == told[3].seed
    assert at.searcher.suggest("one more") is None  # a worker may yet be lost
    for number in range(1, 5):
        at.searcher.on_trial_complete(f"tune-{number}")
    assert at.searcher.suggest("one more") == at.searcher.FINISHED


def test_no_more_are_asked_than_there_is_room_for_just_now(desk: Callable[..., Desk]) -> None:
    at, room = desk(), [1]
    at.searcher._room = lambda: room[0]
    at.ask()
    assert at.searcher.suggest("one more") is None
    room[0] = 3
    assert [at.ask().trial, at.ask().trial] == [1, 2]
    room[0] = 2  # a node has left
    at.searcher.on_trial_complete("tune-1")
    assert at.searcher.suggest("one more") is None


def test_a_lost_trial_comes_again_first_as_it_was_and_so_does_an_interrupted_one(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = [at.ask(), at.ask()]
    at.play(told[1], (5, 0.5), start=begun())
    at.searcher.again(at.cell, 1)
    told[1] = replace(told[1], recorded_step=5, begun=True)
    assert at.ask() == told[1]
    assert at.searcher.suggest("one more") is None  # until that one has begun, lest a new one take its place
    at.searcher.began(at.cell, 1)
    assert at.ask().trial == 2
    later = desk(interrupted=[0, 1])
    assert [later.ask(), later.ask()] == told
    later.searcher.began(at.cell, 0)
    assert later.searcher.suggest("one more") is None
    later.searcher.on_trial_complete("tune-2", error=True)  # lost before it began
    assert later.ask().trial == 3


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
    searcher = desk(budget=budget).searcher
    searcher.start_clock()
    assert isinstance(searcher.suggest("tune"), dict) is starts
