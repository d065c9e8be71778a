"""The recorder, driven without Ray: what Tune would say, in the order in which it would."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cs330ray.ledger.records import Ending
from cs330ray.service.messages import News
from cs330ray.spec.places import checkpoints_of
from tests.desk import Desk, begun
from tests.studies_of_tests import toy


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    return lambda interrupted=None, **changes: Desk(tmp_path, toy(**changes), interrupted)


COMPLETE = Ending("COMPLETE")


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


def test_a_loss_on_one_machine_names_no_node(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = at.ask()
    at.play(told, (5, 0.5), start=begun("here"))
    at.recorder.lose(told, "died")
    assert at.losses() == [("died", [])]


def test_every_trial_has_a_place_of_its_own_for_its_checkpoints(tmp_path: Path) -> None:
    studies = [toy(name=name, compare={"data_seed": [0, 1]}) for name in ("one", "two")]
    each = [(study, cell, number) for study in studies for cell in study.cells for number in (0, 1)]
    places = {checkpoints_of(tmp_path, study.name, cell, number) for study, cell, number in each}
    assert len(places) == len(each) == 8
