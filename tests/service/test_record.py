"""The recorder, driven without Ray: what Tune would say, in the order in which it would."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from cs330ray.errors import LedgerError
from cs330ray.ledger import lines
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending, Kept, Row
from cs330ray.ledger.writer import Writer
from cs330ray.report import tables
from cs330ray.service.listener import Silent
from cs330ray.service.messages import News
from cs330ray.service.recorder import Recorder
from cs330ray.spec.command import Command
from cs330ray.spec.places import checkpoints_of
from tests.desk import Desk, begun
from tests.studies_of_tests import toy


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    return lambda interrupted=None, **changes: Desk(tmp_path, toy(**changes), interrupted)


COMPLETE = Ending("COMPLETE")


ASHA_LONG = {"prune": {"kind": "asha", "min_steps": 5, "reduction": 2}, "budget": {"trials": 9, "steps": 80}}
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
    assert order == ["write_rows", "end", "report"]  # Optuna is told of the end alone
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


def test_all_that_a_message_says_is_written_in_one_transaction(desk: Callable[..., Desk]) -> None:
    at, commits = desk(), list[None]()
    for engine in (at.ledger.database.engine, at.ledger.database.storage.engine):
        sql.event.listen(engine, "commit", lambda _: commits.append(None))
    told = at.ask()
    assert len(commits) == 1
    at.play(told, (5, 0.5), (20, 0.4), start=begun(), checkpoint=Kept("there", 20, "digest"), end=COMPLETE)
    assert len(commits) == 2
    assert [trial.state.name for trial in Ledger.at(at.home).in_optuna(at.study, at.cell)] == ["COMPLETE"]


def test_people_hear_of_a_message_once_it_is_recorded_and_hold_no_ledger_up(desk: Callable[..., Desk]) -> None:
    at, heard = desk(), list[tuple[str, int]]()

    class Hears(Silent):
        def took_up(self, *given: Any) -> None:
            heard.append(("start", len(at.ledger.attempts(at.study, at.cell, 0))))
            self.stands_still()

        def reached(self, *given: Any) -> None:
            heard.append(("row", len(at.ledger.rows(at.study, at.cell, 0))))
            self.stands_still()

        def stands_still(self) -> None:
            """While it does, another driver writes."""
            Writer.at(at.ledger.home).database.execute(sql.text("create table if not exists another (number)"))

    at.recorder._listener = Hears()
    at.play(at.ask(), (5, 0.5), (10, 0.4), start=begun())
    assert heard == [("start", 1), ("row", 2), ("row", 2)]


def test_of_a_message_that_is_cut_off_nothing_is_kept_and_no_checkpoint_goes(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files go behind the end that lets them go."""
    at = desk(resources={"keep": 0})
    told = at.ask()
    home = at.home / "checkpoints"
    (home / "step-20").mkdir(parents=True)
    recorder = Recorder(at.ledger, at.study, at.ear, lambda *_: home)
    news = News(start=begun(), rows=[Row(20, {"val_loss": 0.5}, 0.0)], end=COMPLETE)

    def cut(*_: Any) -> None:
        raise LedgerError("planted")

    with monkeypatch.context() as crash:
        crash.setattr(Writer, "_tell", cut)
        with pytest.raises(LedgerError, match="planted"):
            recorder.take("tune", 1, told, news)
    assert (home / "step-20").exists()
    assert [trial.state for trial in at.ledger.trials(at.study, at.cell)] == ["RUNNING"]
    assert at.ledger.attempts(at.study, at.cell, 0) == at.ledger.rows(at.study, at.cell, 0) == []
    assert recorder.take("tune", 1, told, news)
    assert not (home / "step-20").exists()


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


def test_a_value_outside_its_declared_bounds_is_kept_and_said_once_for_each_metric(desk: Callable[..., Desk]) -> None:
    at = desk()
    told = at.ask()
    at.play(told, (5, 0.5), (10, -1.0))
    at.play(told, (15, -2.0))
    assert [row.metrics["val_loss"] for row in at.ledger.rows(at.study, at.cell, 0)] == [0.5, -1.0, -2.0]
    ends = "in trial 0 at step 10, outside its declared bounds"
    assert [line for line in at.ear.said if "bounds" in line] == [
        f"val_loss is -1 {ends} [0, inf]; correct METRICS or the metric",
        f"val_speed is -1 {ends} [0, 1]; correct METRICS or the metric",
    ]
    assert tables.outside(at.ledger, at.study, at.ledger.trials(at.study, at.cell)[0]) == [
        "val_loss is -1 in trial 0, outside its declared bounds [0, inf]; correct METRICS or the metric",
        "val_speed is -1 in trial 0, outside its declared bounds [0, 1]; correct METRICS or the metric",
    ]


def test_rows_that_come_again_are_not_judged_again(desk: Callable[..., Desk]) -> None:
    """The worker was lost after step 10; meanwhile a better rival has come to step 5."""
    at = desk(**ASHA)
    cut, better = at.ask(), at.ask()
    assert not at.play(cut, (5, 0.5))
    assert not at.play(cut, (10, 0.4))
    assert not at.play(better, (5, 0.1))
    assert not at.play(cut, (5, 0.5))


def test_a_rung_is_decided_at_the_first_row_at_or_past_it(desk: Callable[..., Desk]) -> None:
    """Rungs 5, 10, 20, 40; rows at multiples of 7, or of 6: none of them meets a rung."""
    at = desk(**ASHA_LONG)
    first, bad, finer = at.ask(), at.ask(), at.ask()
    assert not at.play(first, (7, 0.5))  # decides rung 5
    assert not at.play(first, (14, 0.4))  # rung 10
    assert not at.play(first, (21, 0.3))  # rung 20
    assert not at.play(first, (28, 0.9))  # none
    assert at.play(finer, (6, 0.6))  # against 0.5, at step 7
    assert not at.play(bad, (7, 0.4))
    assert at.play(bad, (14, 0.45))  # against 0.4
    reasons = [trial.reason for trial in at.ledger.trials(at.study, at.cell)]
    assert reasons == ["", "asha at step 14 (rung 10), 1 rival", "asha at step 6 (rung 5), 1 rival"]


def test_one_row_past_several_rungs_decides_the_highest(desk: Callable[..., Desk]) -> None:
    at = desk(**ASHA_LONG)
    first, late = at.ask(), at.ask()
    assert not at.play(first, (21, 0.5))
    assert not at.play(first, (42, 0.4))
    assert at.play(late, (42, 0.45))
    assert at.ledger.trials(at.study, at.cell)[1].reason == "asha at step 42 (rung 40), 1 rival"


def test_a_row_without_the_objective_decides_nothing_and_the_next_one_does(desk: Callable[..., Desk]) -> None:
    at = desk(**ASHA_LONG)
    first, bad = at.ask(), at.ask()
    at.say(first, (5, {"val_speed": 0.1}), (6, {"val_loss": 0.5}))
    assert not at.say(bad, (5, {"val_speed": 0.9}))
    assert at.say(bad, (7, {"val_speed": 0.9}), (8, {"val_loss": 0.6}), (9, {"val_speed": 0.9}))
    assert at.ledger.trials(at.study, at.cell)[1].reason == "asha at step 8 (rung 5), 1 rival"


def test_what_was_judged_is_not_judged_again_where_later_rows_came(desk: Callable[..., Desk]) -> None:
    """Row 7 decided rung 5 and row 9 came; then the worker was lost, and both come again beside a better rival."""
    at = desk(**ASHA_LONG)
    cut, better = at.ask(), at.ask()
    assert not at.play(cut, (7, 0.5))
    assert not at.play(cut, (9, 0.4))
    assert not at.play(better, (7, 0.1))
    again = dataclasses.replace(cut, recorded_step=9)
    assert not at.play(again, (7, 0.5), (9, 0.4))


def test_a_decision_that_a_crash_cut_off_is_made_again(desk: Callable[..., Desk]) -> None:
    at = desk(**ASHA_LONG)
    cut, better = at.ask(), at.ask()
    assert not at.play(better, (7, 0.1))
    at.ledger.write_rows(at.study, at.cell, cut.trial, [Row(7, {"val_loss": 0.5}, 0.0)])  # and then the driver died
    assert at.play(dataclasses.replace(cut, recorded_step=7), (7, 0.5))


def test_a_decision_that_stands_is_not_made_again_beside_rivals_that_came_later(desk: Callable[..., Desk]) -> None:
    """It went on, and its worker was lost before its next row."""
    at = desk(**ASHA_LONG)
    cut, better = at.ask(), at.ask()
    assert not at.play(cut, (7, 0.5))
    assert not at.play(better, (7, 0.1))
    assert not at.play(dataclasses.replace(cut, recorded_step=7), (7, 0.5))


def test_a_process_that_reports_its_rung_again_is_judged_again(desk: Callable[..., Desk]) -> None:
    """Its earlier rows are set aside, and it need not report the same."""
    at = desk(**ASHA_LONG)
    at.recorder._cells[at.cell.key] = dataclasses.replace(
        at.cell, command=Command(run=["train"], metrics={"val_loss": "min"})
    )
    cut, better = at.ask(), at.ask()
    assert not at.play(cut, (7, 0.5), start=begun())
    assert not at.play(better, (7, 0.1))
    assert at.play(dataclasses.replace(cut, recorded_step=7), (7, 0.6), start=begun())


def grown_from_20_to_80(desk: Callable[..., Desk], *losses: float, step: int = 20) -> Desk:
    """A study whose trials ended at a step, and then were given 80; the trials that continue them are yet to begin."""
    at = desk(**ASHA | {"budget": {"trials": len(losses), "steps": 20}})
    for loss in losses:
        at.play(told := at.ask(), (step, loss), start=begun())
        at.play(told, end=COMPLETE)
    grown = toy(**ASHA_LONG | {"budget": {"trials": len(losses) + 1, "steps": 80}})
    lines.enter(Desk(at.home, grown).ledger, grown)
    return Desk(at.home, grown, [len(losses) + number for number in range(len(losses))])


def test_a_continuation_is_judged_when_it_begins_by_the_last_row_before_it(desk: Callable[..., Desk]) -> None:
    """Step 20 was the end of the smaller budget, where nobody was asked."""
    at = grown_from_20_to_80(desk, 0.5, 0.1)
    worse, better = at.ask(), at.ask()
    assert at.play(worse, start=begun())
    assert not at.play(better, start=begun())


def test_a_continuation_that_has_begun_is_not_judged_by_that_row_again(desk: Callable[..., Desk]) -> None:
    at = grown_from_20_to_80(desk, 0.5, 0.9)
    told, other = at.ask(), at.ask()
    assert not at.play(told, (25, 0.5), start=begun())
    at.queue.began(told)
    at.queue.began(other)
    assert not at.play(at.ask(), (20, 0.1), start=begun())
    assert not at.play(dataclasses.replace(told, recorded_step=25, begun=True), start=begun())
    assert at.ledger.entered(at.study, at.cell, told.trial).intermediate_values == {}  # it has no row at a rung


def test_what_was_decided_for_a_trial_that_ended_itself_is_not_decided_again_for_its_continuation(
    desk: Callable[..., Desk],
) -> None:
    """Step 15 of 20 decided the rung at 10, when there was no better one."""
    at = grown_from_20_to_80(desk, 0.5, step=15)
    told = at.ask()
    at.queue.began(told)
    assert not at.play(at.ask(), (15, 0.1), start=begun())
    assert not at.play(told, start=begun())


def test_of_trials_that_train_together_one_is_pruned_and_they_leave_with_the_checkpoints_of_the_rung(
    desk: Callable[..., Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, thinned = desk(**ASHA), []
    monkeypatch.setattr(at.recorder, "_thin", lambda cell, number: thinned.append(number))
    told = [at.ask(), at.ask(), at.ask()]
    together = dataclasses.replace(told[0], beside=tuple(told[1:]))

    def news(step: int | None, losses: Sequence[float], *, kept: int | None = None, **more: Any) -> News:
        checkpoint = None if kept is None else Kept(str(tmp_path), kept, "digest")
        sent = [[Row(step, {"val_loss": loss}, 0.0)] if step else [] for loss in losses]
        first, *others = (News(rows=rows, checkpoint=checkpoint) for rows in sent)
        return dataclasses.replace(first, beside=tuple(others), **more)

    assert not at.recorder.take("tune", 1, together, news(4, (0.5, 0.9, 0.4)))
    assert not at.recorder.take("tune", 2, together, news(5, (0.5, 0.9, 0.4), saves=True))
    states = [trial.state for trial in at.ledger.trials(at.study, at.cell)]
    assert states == ["RUNNING", "PRUNED", "RUNNING"]  # each against those before it
    assert at.recorder.take("tune", 3, together, news(None, (0.5, 0.9, 0.4), kept=5))
    assert at.recorder.take("tune", 3, together, news(None, (0.5, 0.9, 0.4), kept=5))
    kept = [at.ledger.kept(at.study, at.cell, each.trial) for each in told]
    assert [found and found.step for found in kept] == [5, None, 5]
    assert thinned == [1, 1]  # at its end, and when its worker has written a checkpoint all the same
    assert [each.trial for each in at.recorder.still_open(together)] == [0, 2]
    assert at.recorder.has_pruned(together)
    at.recorder.parted(together, "planted")
    assert at.ear.said[-1] == "trials 0, 2 go on alone: planted"


def test_that_another_trial_has_ended_on_its_fresh_seed_is_no_end_of_a_run(desk: Callable[..., Desk]) -> None:
    """Runs that trained together go on alone one by one; the others must not be forgotten."""
    at = desk(budget={"trials": 2}, confirm={"top": 2, "seeds": 1})
    for told in (at.ask(), at.ask()):
        at.play(told, (20, 0.5), start=begun())
        at.play(told, end=COMPLETE)
        at.queue.left(told)
    first, second = at.ask(), at.ask()
    assert first.cell == second.cell
    together = dataclasses.replace(first, beside=(second,))
    assert [each.trial for each in at.recorder.still_open(together)] == [first.trial, second.trial]
    at.play(first, (20, 0.5), start=begun())
    at.play(first, end=COMPLETE)
    assert at.recorder.still_open(together) == [second]


def test_a_rung_in_the_midst_of_a_batch_whose_decision_was_cut_off_is_decided_when_it_comes_again(
    desk: Callable[..., Desk],
) -> None:
    at = desk(**ASHA_LONG)
    cut, better = at.ask(), at.ask()
    assert not at.play(better, (7, 0.1))
    sent = [Row(step, {"val_loss": 0.5}, 0.0) for step in (7, 9)]
    at.ledger.write_rows(at.study, at.cell, cut.trial, sent)  # and then the driver died
    assert at.play(dataclasses.replace(cut, recorded_step=9), (7, 0.5), (9, 0.5))


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


def test_a_worker_lost_four_times_has_failed_and_three_times_not(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, heard = desk(), []
    monkeypatch.setattr(Silent, "lost", lambda self, cell, number, times: heard.append(f"lost {times}"))
    monkeypatch.setattr(Silent, "ended", lambda self, cell, number, params, end, values: heard.append(end.reason))
    told = at.ask()
    assert [at.recorder.lose(told, "died") for _ in range(4)] == [True, True, True, False]
    (trial,) = at.ledger.trials(at.study, at.cell)
    assert (trial.state, trial.cause, trial.reason) == ("FAIL", "lost", "worker lost 4 times: died")
    assert heard == ["lost 1", "lost 2", "lost 3", "worker lost 4 times: died"]  # of the last nobody says "goes on"


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
