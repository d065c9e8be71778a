"""Configurations that a study file gives: tried first, never pruned, confirmed beside the best, and shown as such."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs330ray.errors import SpecError
from cs330ray.ledger import confirm, lines
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending
from cs330ray.report import tables
from cs330ray.service import unchanged
from cs330ray.service.messages import Assignment
from cs330ray.trial.starts import starts
from tests import in_process
from tests import toy as toy_trainable
from tests.desk import Desk, begun
from tests.studies_of_tests import toy

STARTED: dict[str, Any] = {"start": [{"lr": 0.5, "body": "large"}, "default"], "budget": {"trials": 4, "steps": 20}}
GIVEN = [{"lr": 0.5, "body": "large", "width": 4}, {"lr": 0.1, "body": "small"}]


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    return lambda interrupted=None, **changes: Desk(tmp_path, toy(**STARTED | changes), interrupted)


def completed(at: Desk, trial: Assignment, loss: float) -> None:
    at.queue.began(trial)
    at.play(trial, (20, loss), start=begun())
    at.play(trial, end=Ending("COMPLETE"))
    at.queue.left(trial)


def of_search(trial: Assignment) -> dict[str, Any]:
    return {name: trial.config[name] for name in ("lr", "body", "width") if name in trial.config}


def test_every_cell_and_every_replicate_tries_them_first(desk: Callable[..., Desk]) -> None:
    at = desk(compare={"data_seed": [0, 1]}, confirm={"top": 1, "seeds": 1}, repeat={"searches": 2})
    told = [at.ask() for _ in range(16)]
    for cell in at.study.cells:
        own = [trial for trial in told if trial.cell == cell.key]
        assert [of_search(trial) for trial in own[:2]] == GIVEN
        assert [trial.is_start for trial in own] == [True, True, False, False]
    held = at.ledger.trials(at.study, at.cell)
    assert [trial.is_start for trial in held] == [True, True, False, False]


def test_one_that_was_cut_off_comes_again_as_a_start(desk: Callable[..., Desk]) -> None:
    first = desk().ask()
    again = desk(interrupted=[0]).ask()
    assert (again.trial, again.is_start, of_search(again)) == (0, True, of_search(first))


PRUNES: dict[str, Any] = {"prune": {"kind": "asha", "min_steps": 5, "reduction": 2}}


def test_the_pruner_stops_no_start_and_hears_of_its_values(desk: Callable[..., Desk]) -> None:
    at = desk(**PRUNES)
    good, bad, worse, third = (at.ask() for _ in range(4))
    for trial in (good, bad, worse, third):
        at.queue.began(trial)
    assert not at.play(good, (5, 0.1), start=begun())
    assert not at.play(bad, (5, 0.9), start=begun())  # a start: any other would stop here
    assert at.play(worse, (5, 0.8), start=begun())
    (stopped,) = [trial for trial in at.ledger.trials(at.study, at.cell) if trial.state == "PRUNED"]
    assert (stopped.number, stopped.reason) == (2, "asha at step 5, 2 rivals")


def test_a_start_of_more_steps_is_a_start_still(desk: Callable[..., Desk], tmp_path: Path) -> None:
    at = desk(**PRUNES)
    for loss in (0.9, 0.1):
        completed(at, at.ask(), loss)
    grown = Desk(tmp_path, toy(**STARTED | PRUNES | {"budget": {"trials": 4, "steps": 40}}))
    lines.enter(grown.ledger, grown.study)
    longer = {trial.continues: trial for trial in grown.ledger.trials(grown.study, grown.cell) if trial.continues is not None}  # noqa: E501 # fmt: skip
    assert [longer[number].is_start for number in (0, 1)] == [True, True]
    grown.queue._waiting = [(grown.cell, longer[0].number)]
    again = grown.ask()
    assert (again.trial, again.is_start) == (longer[0].number, True)
    assert not grown.play(again, (40, 0.9), start=begun(resumed_from_step=20))


def candidates(at: Desk) -> list[int]:
    found = {at.cell.key: at.ledger.trials(at.study, at.cell)}
    return [trial.number for trial in confirm.candidates(at.study, ["min"], found)[at.cell.key]]


@pytest.mark.parametrize(
    ("losses", "confirmed"),
    [
        ((0.9, 0.8, 0.1, 0.2), [2, 1, 0]),  # the best one, and both starts, the better first
        ((0.9, 0.1, 0.2, 0.3), [1, 0]),  # the best one is a start
        ((0.1, 0.2, 0.3, 0.4), [0, 1]),
    ],
)
def test_starts_are_confirmed_beside_the_best(
    desk: Callable[..., Desk], losses: tuple[float, ...], confirmed: list[int]
) -> None:
    at = desk(confirm={"top": 1, "seeds": 2})
    for loss in losses:
        completed(at, at.ask(), loss)
    assert candidates(at) == confirmed
    assert len(confirm.pending(at.ledger, at.study, 0)) == 2 * len(confirmed)
    assert confirm.limits(at.ledger, at.study, 0) == []


def test_a_start_that_failed_is_not_confirmed(desk: Callable[..., Desk]) -> None:
    at = desk(confirm={"top": 1, "seeds": 2})
    first = at.ask()
    at.queue.began(first)
    at.play(first, end=Ending("FAIL", "diverged", cause="diverged"), start=begun())
    at.queue.left(first)
    for loss in (0.8, 0.1, 0.2):
        completed(at, at.ask(), loss)
    assert candidates(at) == [2, 1]


def test_show_says_which_trials_are_starts(desk: Callable[..., Desk]) -> None:
    at = desk()
    for loss in (0.4, 0.3, 0.2, 0.1):
        completed(at, at.ask(), loss)
    at.ledger = Ledger.at(at.home)
    said = {row[1]: row[-1] for row in tables.trials(at.ledger, at.study).rows}
    assert said == {"0": "of [start]", "1": "of [start]", "2": "", "3": ""}
    first, _, third, _ = at.ledger.trials(at.study, at.cell)
    assert ["start", "of [start] in the study file"] in tables.trial(at.ledger, at.study, first)[0].rows
    assert "start" not in [row[0] for row in tables.trial(at.ledger, at.study, third)[0].rows]


def test_a_default_that_a_start_went_by_may_not_change(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = desk()
    at.ask(), at.ask()
    unchanged.check(at.ledger, at.study)

    class Config(toy_trainable.Config):
        lr: float = 0.25

    monkeypatch.setattr(toy_trainable, "Config", Config)
    assert starts(at.study, at.cell)[1]["lr"] == 0.25
    with pytest.raises(SpecError, match=r"trainable has changed since: start 1: lr: 0\.1 -> 0\.25\. Change it back"):
        unchanged.check(at.ledger, at.study)


def test_a_run_tries_them_first_draws_in_common_and_confirms_them(home: Path) -> None:
    """Two cells on two slots, with gp and a pruner that stops what is no start."""
    asked = toy(
        compare={"data_seed": [0, 1]},
        search={"width": {"low": 1, "high": 8}},
        start=["default", {"lr": 0.002}],
        sampler={"kind": "gp", "startup": 4},
        prune={"kind": "asha", "min_steps": 5, "reduction": 2},
        budget={"trials": 6, "steps": 20},
        resources={"slots": 2, "checkpoint": "1s"},
        confirm={"top": 1, "seeds": 1},
    )
    in_process.run(asked, home, mirror=False)
    ledger = Ledger.at(home)
    found = [ledger.trials(asked, cell) for cell in asked.cells]
    given = [{"lr": rate, "body": "small", "width": 4} for rate in (0.1, 0.002)]
    for trials in found:
        assert [trial.params for trial in trials[:2]] == given
        assert [trial.state for trial in trials[:2]] == ["COMPLETE"] * 2
        assert [trial.is_start for trial in trials] == [True, True, False, False, False, False]
    assert [trial.params for trial in found[0][2:4]] == [trial.params for trial in found[1][2:4]]
    assert any(trial.state == "PRUNED" for trials in found for trial in trials[2:])
    for candidates in confirm.confirmed(ledger, asked).values():
        assert {0, 1} <= {one.searched.number for one in candidates if one.whole}
