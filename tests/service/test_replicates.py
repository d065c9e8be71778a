"""Replicates: their order, their seeds, who is confirmed, and when the driver looks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs330ray.analysis.claims import seen
from cs330ray.ledger import confirm
from cs330ray.ledger.records import Ending
from cs330ray.ledger.tables import LOOKS
from cs330ray.ledger.writer import Writer
from cs330ray.report.open_study import opened
from cs330ray.service import queue
from cs330ray.service.messages import Assignment
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from tests import in_process
from tests.desk import Desk, begun
from tests.studies_of_tests import toy

COMPLETE = Ending("COMPLETE")
TWICE: dict[str, Any] = {
    "compare": {"data_seed": [0, 1]}, "repeat": {"searches": 2}, "budget": {"trials": 2},
    "confirm": {"top": 1, "seeds": 2},
}  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    return lambda **changes: Desk(tmp_path, toy(**{**TWICE, **changes}))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The queue's seconds, as the one item of a list."""
    now = [1000.0]
    monkeypatch.setattr(queue.time, "monotonic", lambda: now[0])
    return now


def completed(at: Desk, trial: Assignment, loss: float = 0.5) -> None:
    """Train a trial to its last step, and let it leave its worker."""
    at.queue.began(trial)
    at.play(trial, (20, loss), start=begun())
    at.play(trial, end=COMPLETE)
    at.queue.left(trial)


def place(at: Desk, told: Assignment) -> tuple[int, int | None, int]:
    """The replicate, the fresh seed and the number of a trial."""
    cell = at.recorder.cell(told)
    return cell.replicate, cell.fresh, told.trial


def played(at: Desk) -> list[Assignment]:
    """Train one trial after another until all is over."""
    told = []
    while (trial := at.queue.next()) is not None:
        completed(at, trial, 0.5 + 0.01 * len(told))
        told.append(trial)
    assert at.queue.is_over
    return told


def test_replicates_follow_one_another_each_with_its_confirmation(desk: Callable[..., Desk]) -> None:
    at = desk()
    search, confirmation = [None] * 4, [0, 0, 1, 1]
    told = played(at)
    assert [place(at, each)[:2] for each in told] == [
        (replicate, fresh) for replicate in (0, 1) for fresh in [*search, *confirmation]
    ]
    assert at.ear.confirmations == [4, 4]


def test_seeds_are_shared_by_the_cells_of_a_replicate_and_by_nothing_else(desk: Callable[..., Desk]) -> None:
    at = desk()
    seeds: dict[tuple[int, int | None, int], set[int]] = {}
    for each in played(at):
        replicate, fresh, number = place(at, each)
        seeds.setdefault((replicate, fresh, number if fresh is None else 0), set()).add(each.seed)
    assert all(len(shared) == 1 for shared in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds) == 2 * (2 + 2)


def test_replicate_0_is_the_study_without_replicates(desk: Callable[..., Desk], tmp_path: Path) -> None:
    told = played(desk())
    alone = played(Desk(tmp_path / "alone", toy(**{**TWICE, "repeat": {}})))

    def said(each: Assignment) -> tuple[Any, ...]:
        return each.cell, each.trial, each.seed, each.config, each.steps, each.test

    assert [said(each) for each in told[: len(alone)]] == [said(each) for each in alone]


def test_the_next_replicate_begins_while_the_last_drains(desk: Callable[..., Desk]) -> None:
    at = desk()
    first = [at.ask() for _ in range(4)]
    ahead = at.ask()
    assert place(at, ahead) == (1, None, 0)  # whom replicate 0 confirms hangs on ends that are still to come
    for each in first:
        completed(at, each)
    confirming = [at.ask() for _ in range(4)]
    assert [place(at, each)[:2] for each in confirming] == [(0, 0), (0, 0), (0, 1), (0, 1)]
    assert place(at, at.ask()) == (1, None, 0)  # there are no more to confirm


def test_a_lost_trial_of_the_last_replicate_holds_its_confirmation_up(desk: Callable[..., Desk]) -> None:
    at = desk()
    first = [at.ask() for _ in range(4)]
    for each in first[:3]:
        completed(at, each)
    at.queue.left(first[3])
    at.queue.again(first[3])
    again = at.ask()
    assert (again.cell, again.trial) == (first[3].cell, first[3].trial)
    assert at.queue.next() is None  # it has not begun
    at.queue.began(again)
    assert place(at, at.ask()) == (1, None, 0)
    completed(at, again)
    assert place(at, at.ask()) == (0, 0, 0)


def test_a_split_of_its_own_for_every_replicate(desk: Callable[..., Desk]) -> None:
    split = {"split": "data_seed", "searches": 3}
    at = desk(compare={}, fixed={"data_seed": 7}, repeat=split)
    assert [cell.fixed["data_seed"] for cell in at.study.cells] == [7, 8, 9]
    assert {(place(at, each)[0], each.config["data_seed"]) for each in played(at)} == {(0, 7), (1, 8), (2, 9)}


def test_time_counts_confirmation_and_only_whole_replicates_are_confirmed(
    desk: Callable[..., Desk], clock: list[float]
) -> None:
    at = desk(budget={"trials": 2, "time": 100})
    at.queue.start_clock()
    for _ in range(4 + 4):  # replicate 0, with its confirmation
        completed(at, at.ask())
    completed(at, begun_late := at.ask())
    assert place(at, begun_late) == (1, None, 0)
    clock[0] += 101
    assert at.queue.next() is None
    assert (at.queue.is_over, at.queue.ran_out) == (True, "budget.time")
    assert confirm.pending(at.ledger, at.study, 1) == []
    candidates = confirm.confirmed(at.ledger, at.study)
    assert [len(candidates[cell.key]) for cell in at.study.cells] == [1, 1, 0, 0]


def test_more_searches_end_as_if_they_had_been_asked_for_at_first(desk: Callable[..., Desk], tmp_path: Path) -> None:
    told = played(desk(repeat={"searches": 1}))
    grown = desk()
    more = played(grown)
    assert {place(grown, each)[0] for each in more} == {1}
    at_once = played(Desk(tmp_path / "at once", toy(**TWICE)))

    def said(each: Assignment) -> tuple[Any, ...]:
        return each.cell, each.trial, each.seed, each.config, each.steps, each.test

    assert [said(each) for each in [*told, *more]] == [said(each) for each in at_once]


def test_more_trials_are_searched_and_confirmed_replicate_by_replicate(desk: Callable[..., Desk]) -> None:
    played(desk())
    grown = desk(budget={"trials": 3})
    more = [place(grown, each)[:2] for each in played(grown)]
    assert more[:2] == [(0, None)] * 2
    first_of_second = more.index((1, None))
    assert all(replicate == 0 for replicate, _ in more[:first_of_second])


def test_a_run_records_a_look_when_all_is_whole_and_before_the_study_grows(home: Path) -> None:
    """Also the one that a driver did not come to record: a reader was shown it."""

    def asked(searches: int) -> Study:
        return parse(
            {
                "name": "again", "trainable": "tests.noisy", "objective": "val_accuracy",
                "compare": {"cost": [1.0, 2.0]},
                "search": {"quality": {"low": 0.2, "high": 0.9}}, "budget": {"trials": 2, "steps": 4},
                "confirm": {"top": 1, "seeds": 1}, "repeat": {"searches": searches}, "resources": {"slots": 2},
            },
            "again",
        )  # fmt: skip

    def looks() -> list[tuple[int, int]]:
        ledger = Writer.at(home)
        return [(look.number, look.units) for look in seen.recorded_looks(ledger, ledger.study("again"))]

    in_process.run(asked(2), home, mirror=False)
    assert looks() == []  # nothing can be claimed
    in_process.run(asked(3), home, mirror=False)
    assert looks() == [(1, 3)]
    before = opened("again", home).answer
    Writer.at(home).database.execute(LOOKS.delete())
    assert opened("again", home).answer == before
    in_process.run(asked(4), home, mirror=False)
    assert looks() == [(1, 3), (2, 4)]
    frame = opened("again", home).trials
    assert frame.groupby(["cell", "replicate"]).size().tolist() == [2] * 8
