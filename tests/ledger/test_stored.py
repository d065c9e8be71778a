"""Trials in Optuna's tables: what we write there is what Optuna reads, and what we read is what Optuna would."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sql
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cs330ray.errors import LedgerError
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.spec.study import Cell, Study
from tests import toy as toy_trainable
from tests.studies_of_tests import toy

DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-5, 0.1, log=True),
    "dropout": FloatDistribution(0.0, 0.3, step=0.1),
    "ways": IntDistribution(2, 7),
    "hidden": IntDistribution(1, 100, log=True),
    "body": CategoricalDistribution(("course", None, True, 3, 0.5)),
}
PARAMS = {"lr": 0.00123456789, "dropout": 0.1, "ways": 7, "hidden": 33, "body": None}


@pytest.fixture
def home(tmp_path: Path, backend: str) -> Path:
    """A home whose ledger lies in a file, or in PostgreSQL."""
    return tmp_path


def driver(home: Path, study: Study) -> Writer:
    ledger = Writer.at(home)
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    ledger.is_driver = True
    return ledger


def by_optuna(ledger: Ledger, study: Study, cell: Cell) -> list[FrozenTrial]:
    """A cell's trials as Optuna's own tools read them, with nothing in memory."""
    storage = optuna.storages.RDBStorage(ledger.database.engine.url.render_as_string(hide_password=False))
    try:
        return list(optuna.load_study(study_name=f"{study.name} {cell.key}", storage=storage).trials)
    finally:
        storage.engine.dispose()


def with_optuna(ledger: Ledger, cell: Cell) -> optuna.Study:
    """A cell's trials in the hands of somebody with Optuna's own tools."""
    return optuna.load_study(study_name=f"toy {cell.key}", storage=ledger.database.storage)


def drawn(**changes: Any) -> FrozenTrial:
    whole = {"state": TrialState.RUNNING, "params": PARAMS, "distributions": DISTRIBUTIONS}
    return create_trial(**{**whole, "system_attrs": {"NSGAIISampler:generation": 3}, **changes})


def test_what_a_driver_writes_is_at_every_moment_what_optuna_reads(home: Path) -> None:
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]

    def agree() -> list[FrozenTrial]:
        found = ledger.in_optuna(study, cell)
        assert found == by_optuna(ledger, study, cell) == Ledger.at(home).in_optuna(study, cell)
        return found

    assert [ledger.enter(study, cell, drawn(), seed) for seed in (11, 12)] == [0, 1]
    assert agree()[0].params == PARAMS
    for step, value in ((5, 0.5), (10, math.inf), (15, -math.inf), (10, 0.25)):  # the last is told again
        ledger.report(study, cell, 0, step, value)
        agree()
    longer = study.model_copy(update={"budget": study.budget.model_copy(update={"steps": 40})})
    ledger.retarget(longer, cell, 1)
    assert agree()[1].user_attrs["steps"] == 40
    ledger.write_rows(study, cell, 0, [Row(15, {"val_loss": 0.125}, 0.0)])
    ledger.supersede(study, cell, 0, 10)
    assert agree()[0].intermediate_values == {5: 0.5, 10: 0.25}
    ledger.write_rows(study, cell, 0, [Row(20, {"val_loss": 0.125}, 0.0)])
    ledger.end(study, cell, 0, Ending("COMPLETE"))
    ledger.end(study, cell, 1, Ending("FAIL", "raised: planted", cause="raised"))
    complete, failed = agree()
    assert (complete.values, complete.intermediate_values[20]) == ([0.125], 0.125)
    assert (failed.values, failed.user_attrs["reason"]) == (None, "raised: planted")


def test_a_value_that_is_no_number_is_told_as_such(home: Path) -> None:
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    ledger.enter(study, cell, drawn(), 11)
    ledger.report(study, cell, 0, 5, math.nan)
    for trial in (*ledger.in_optuna(study, cell), *by_optuna(ledger, study, cell)):
        assert math.isnan(trial.intermediate_values[5])


def test_a_reader_that_follows_sees_what_others_add_and_change(home: Path) -> None:
    """Each way in which a trial comes about with Optuna's own tools, a queued one too."""
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    reader = Ledger.at(home, access="follow")
    assert reader.in_optuna(study, cell) == []
    ledger.enter(study, cell, drawn(), 11)
    outside = with_optuna(ledger, cell)
    assert reader.in_optuna(study, cell) == outside.trials
    outside.enqueue_trial({"lr": 0.01})
    outside.add_trial(create_trial(values=[math.inf]))
    outside.add_trial(drawn(state=TrialState.PRUNED, intermediate_values={1: 0.5}))
    assert reader.in_optuna(study, cell) == outside.trials
    running = outside.ask()
    running.set_user_attr("note", {"deep": [1, None]})
    running.report(0.5, 1)
    assert reader.in_optuna(study, cell) == outside.trials
    outside.tell(running, 0.5)
    assert reader.in_optuna(study, cell) == outside.trials
    assert ledger.enter(study, cell, drawn(), 12) == len(outside.trials) - 1


def test_an_end_that_somebody_gave_with_optunas_tools_a_moment_before_stays(home: Path) -> None:
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    ledger.enter(study, cell, drawn(), 11)
    ledger.write_rows(study, cell, 0, [Row(20, {"val_loss": 0.5}, 0.0)])
    outside = with_optuna(ledger, cell)
    outside.tell(0, state=TrialState.FAIL)
    (before,) = outside.trials
    ledger.end(study, cell, 0, Ending("COMPLETE"))  # by our tables, which count
    assert by_optuna(ledger, study, cell) == [before]
    assert [trial.state for trial in ledger.trials(study, cell)] == ["COMPLETE"]


def test_of_an_end_that_somebody_gave_a_moment_before_the_driver_knows_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cs330ray.ledger.writer.HELD_S", math.inf)
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    ledger.enter(study, cell, drawn(), 11)
    ledger.write_rows(study, cell, 0, [Row(20, {"val_loss": 0.5}, 0.0)])
    outside = with_optuna(ledger, cell)
    outside.tell(0, state=TrialState.FAIL)
    ledger.end(study, cell, 0, Ending("COMPLETE"))
    assert ledger.in_optuna(study, cell) == outside.trials


@pytest.mark.parametrize("held_s", [0.0, math.inf])
def test_a_trial_that_somebody_ended_before_its_worker_came_up_stays_ours_from_its_first_start(
    home: Path, monkeypatch: pytest.MonkeyPatch, held_s: float
) -> None:
    monkeypatch.setattr("cs330ray.ledger.writer.REST", 0)
    monkeypatch.setattr("cs330ray.ledger.writer.HELD_S", 0.0)
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    for seed in (11, 12):
        ledger.enter(study, cell, drawn(), seed)
    outside = with_optuna(ledger, cell)
    outside.tell(1, state=TrialState.FAIL)
    assert [trial.number for trial in ledger.history(study, cell)] == [0]  # nothing of ours says that it is
    if held_s:  # nobody looks at Optuna's tables again
        ledger._read_s[study.name, cell.key] = math.inf
    ledger.write_attempt(study, cell, 1, {})
    assert [trial.number for trial in ledger.history(study, cell)] == [0, 1]
    ledger.write_rows(study, cell, 1, [Row(20, {"val_loss": 0.5}, 0.0)])
    ledger.report(study, cell, 1, 20, 0.5)
    assert ledger.end(study, cell, 1, Ending("COMPLETE")).state == "COMPLETE"
    assert [trial.state for trial in ledger.trials(study, cell)] == ["RUNNING", "COMPLETE"]


def test_what_others_added_before_a_trial_of_the_drivers_is_read_all_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cs330ray.ledger.writer.HELD_S", math.inf)
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    ledger.enter(study, cell, drawn(), 11)
    ledger.write_rows(study, cell, 0, [Row(20, {"val_loss": 0.5}, 0.0)])
    ledger.end(study, cell, 0, Ending("COMPLETE"))  # nothing runs
    outside = with_optuna(ledger, cell)
    outside.add_trial(create_trial(values=[0.5]))
    ledger.enter(study, cell, drawn(), 12)
    ledger._read_s.clear()  # it is time to look
    assert ledger.foreign(study, cell) == [1]
    assert ledger.in_optuna(study, cell) == by_optuna(ledger, study, cell)


def test_a_driver_enters_nothing_in_a_study_that_was_deleted_with_optunas_tools(home: Path) -> None:
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    ledger.enter(study, cell, drawn(), 11)
    optuna.delete_study(study_name=f"toy {cell.key}", storage=ledger.database.storage)
    with pytest.raises(LedgerError, match="expected Optuna's study that the trials are in, got none: it was deleted"):
        ledger.enter(study, cell, drawn(), 12)
    with ledger.database.engine.connect() as connection:
        assert connection.execute(sql.text("select count(*) from trials")).scalar() == 0


def test_a_trial_that_claims_to_continue_one_that_is_not_ours_is_in_no_readers_way(home: Path) -> None:
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    ledger.enter(study, cell, drawn(), 11)
    outside = with_optuna(ledger, cell)
    outside.add_trial(drawn(user_attrs={"seed": 1, "steps": 20, "continues": 77}))
    assert [trial.number for trial in Ledger.at(home).standing(study, cell)] == [0, 1]


def test_what_goes_wrong_inside_of_a_transaction_is_no_fault_of_the_database(home: Path) -> None:
    ledger = driver(home, toy())
    with pytest.raises(ImportError, match="planted"), ledger.at_once():
        raise ImportError("planted")
    assert ledger.database.failure is None


def test_what_is_written_at_once_is_there_whole_or_not_at_all(home: Path) -> None:
    study = toy()
    ledger, cell = driver(home, study), study.cells[0]
    ledger.enter(study, cell, drawn(), 11)

    def torn() -> None:
        with ledger.at_once():
            ledger.write_rows(study, cell, 0, [Row(20, {"val_loss": 0.5}, 0.0)])
            ledger.end(study, cell, 0, Ending("COMPLETE"))
            ledger.enter(study, cell, drawn(), 12)
            assert len(ledger.history(study, cell)) == 2
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        torn()
    for reader in (ledger, Ledger.at(home)):
        (trial,) = reader.history(study, cell)
        assert trial.state == TrialState.RUNNING
        assert reader.rows(study, cell, 0) == []
    assert ledger.enter(study, cell, drawn(), 12) == 1


def statements(ledger: Ledger) -> list[str]:
    """What is executed from now on."""
    done: list[str] = []

    def note(_: Any, __: Any, statement: str, *rest: Sequence[Any]) -> None:
        done.append(statement)

    for engine in (ledger.database.engine, ledger.database.storage.engine):
        sql.event.listen(engine, "before_cursor_execute", note)
    return done


def test_a_driver_reads_none_of_the_trials_again_that_it_knows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether 3 have ended and 2 run, or 30 and 20: a trial's way takes the same statements, each of that trial."""
    study = toy(budget={"trials": 99})
    ledger, cell, took = driver(home, study), study.cells[0], list[list[str]]()
    monkeypatch.setattr("cs330ray.ledger.writer.HELD_S", math.inf)  # what others add is looked for by the clock
    done = statements(ledger)
    for number in range(60):
        done.clear()
        assert ledger.enter(study, cell, drawn(), number) == number
        ledger.write_rows(study, cell, number, [Row(20, {"val_loss": 0.5}, 0.0)])
        if number % 5 < 3:
            ledger.end(study, cell, number, Ending("COMPLETE"))
            took.append(list(done))
    assert took[3] == took[-1]
    assert len(took[-1]) < 20
