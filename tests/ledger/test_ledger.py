"""The ledger: written once, whole or not at all, healed after a crash, open to Optuna; on SQLite and on PostgreSQL."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy as sql

from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import lines
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending, Row
from cs330ray.ledger.trials import stored
from cs330ray.ledger.writer import Writer
from cs330ray.report import tables
from cs330ray.service.search import ask
from cs330ray.spec.study import Cell, Study
from cs330ray.trial.contract import Metric
from cs330ray.words import redacted
from tests import toy as toy_trainable
from tests.postgres import Server
from tests.studies_of_tests import toy


@pytest.fixture
def ledger(tmp_path: Path, backend: str) -> Writer:
    return Writer.at(tmp_path)


def counted(ledger: Writer, table: str) -> int:
    """Rows of a table, by a connection that is not the ledger's."""
    engine = sql.create_engine(ledger.database.url)
    with engine.connect() as connection:
        number = connection.execute(sql.text(f"select count(*) from {table}")).scalar_one()
    engine.dispose()
    return int(number)


def opened(ledger: Writer, study: Study) -> Cell:
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    return study.cells[0]


def entered(ledger: Writer, study: Study, cell: Cell) -> int:
    asked = ask.ask(study, cell, ["min"], ledger.history(study, cell))
    return ledger.enter(study, cell, asked, seed=11)


def test_a_trial_enters_whole_with_its_parameters_and_seed(ledger: Writer, tmp_path: Path) -> None:
    study = toy()
    cell = opened(ledger, study)
    assert entered(ledger, study, cell) == 0
    (trial,) = Writer.at(tmp_path).trials(study, cell)
    assert trial.state == "RUNNING"
    assert trial.seed == 11
    assert {"lr", "body"} <= set(trial.params)


def test_trials_of_optunas_own_tools_are_left_alone_and_said(ledger: Writer, tmp_path: Path) -> None:
    """Queued, asked, added, and copied from one of ours: none is a trial of the search, and numbers stay true."""
    study = toy(budget={"trials": 3})
    cell = opened(ledger, study)
    assert entered(ledger, study, cell) == 0
    outside = optuna.load_study(study_name=f"toy {cell.key}", storage=ledger.database.storage)
    outside.enqueue_trial({"lr": 0.5, "body": "small"})
    ledger.write_rows(study, cell, 0, [Row(20, {"val_loss": 0.5}, 0.0)])
    ledger.end(study, cell, 0, Ending("COMPLETE"))
    outside.add_trial(outside.trials[0])
    outside.tell(outside.ask(), 0.1)  # which takes the queued one up
    outside.add_trial(optuna.trial.create_trial(value=0.1))
    assert entered(ledger, study, cell) == 4
    for reader in (ledger, Ledger.at(tmp_path)):
        assert [trial.number for trial in reader.trials(study, cell)] == [0, 4]
        assert reader.foreign(study, cell) == [1, 2, 3]
        assert reader.lineage(study, cell, 4) == [4]
        assert reader.entered(study, cell, 4).number == 4
        assert lines.left_alone(reader, study) == [
            "all: trial 1, 2, 3 were added with Optuna's own tools and left alone; to try a configuration of your own, "
            "name its values in [compare], as a cell"
        ]
    shown = tables.trials(ledger, study)
    assert [row[shown.columns.index("trial")] for row in shown.rows] == ["0", "4"]
    assert tables.studies(ledger).rows[0][3] == "2/3"
    assert ledger.heal(study, cell) == [4]


def test_a_trial_that_somebody_ended_with_optunas_tools_has_failed(ledger: Writer) -> None:
    """As people clear what a crash has left: it is ours, and is not taken up again."""
    study = toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    ledger.write_attempt(study, cell, number, {"config": {"lr": 0.1}})
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 0.5}, 0.0)])
    optuna.load_study(study_name=f"toy {cell.key}", storage=ledger.database.storage).tell(
        number, state=optuna.trial.TrialState.FAIL
    )
    assert ledger.foreign(study, cell) == []
    assert [trial.state for trial in ledger.trials(study, cell)] == ["RUNNING"]
    assert ledger.heal(study, cell) == []
    (trial,) = ledger.trials(study, cell)
    assert (trial.state, trial.cause, trial.reason) == ("FAIL", "stopped", "ended with Optuna's own tools")


def test_bounds_and_units_of_a_metric_may_be_corrected(ledger: Writer) -> None:
    study = toy()
    ledger.open(study, {"tests.toy": {"val_loss": Metric("min", 0.0, 1.0)}})
    ledger.open(study, {"tests.toy": {"val_loss": Metric("min", 0.0, 9.0, "nats"), "val_speed": Metric("max")}})
    assert ledger.metrics(study, "tests.toy") == {
        "val_loss": Metric("min", 0.0, 9.0, "nats"), "val_speed": Metric("max"),
    }  # fmt: skip


def test_a_row_is_written_once_and_the_first_one_stays(ledger: Writer) -> None:
    study = toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 0.5}, 1.0)])
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 9.9}, 2.0), Row(10, {"val_loss": 0.4}, 3.0)])
    assert [row.metrics["val_loss"] for row in ledger.rows(study, cell, number)] == [0.5, 0.4]


def test_a_trials_value_is_the_objective_of_the_last_row_that_holds_it(ledger: Writer) -> None:
    study = toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    rows = [Row(5, {"val_loss": 0.5}, 1.0), Row(10, {"val_loss": 0.4}, 2.0), Row(15, {"train_loss": 0.1}, 3.0)]
    ledger.write_rows(study, cell, number, rows)
    ledger.end(study, cell, number, Ending("COMPLETE"))
    (trial,) = ledger.trials(study, cell)
    assert (trial.state, trial.values) == ("COMPLETE", (0.4,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_trial_whose_value_is_not_finite_has_failed(ledger: Writer, value: float) -> None:
    study = toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": value}, 1.0)])
    assert ledger.end(study, cell, number, Ending("COMPLETE")).state == "FAIL"
    (trial,) = ledger.trials(study, cell)
    assert trial.values is None
    assert trial.cause == "unscored"
    assert "finite" in trial.reason


def test_a_trial_without_a_row_of_the_objective_has_failed(ledger: Writer) -> None:
    study = toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    assert ledger.end(study, cell, number, Ending("COMPLETE")) == Ending(
        "FAIL", "no row holds val_loss", cause="unscored"
    )


def test_an_end_is_written_once(ledger: Writer) -> None:
    study = toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 0.5}, 1.0)])
    first = Ending("PRUNED", "first", cause="pruned")
    assert ledger.end(study, cell, number, first) == first
    assert ledger.end(study, cell, number, Ending("COMPLETE")) == first
    (trial,) = ledger.trials(study, cell)
    assert (trial.state, trial.reason) == ("PRUNED", "first")


def test_a_crash_between_our_tables_and_optunas_is_healed(ledger: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    study = toy()
    cell = opened(ledger, study)
    running, cut = entered(ledger, study, cell), entered(ledger, study, cell)
    ledger.write_rows(study, cell, cut, [Row(5, {"val_loss": 0.5}, 1.0)])
    with monkeypatch.context() as crash:
        crash.setattr(Writer, "_tell", lambda *_: None)
        ledger.end(study, cell, cut, Ending("COMPLETE"))
    assert not ledger.history(study, cell)[cut].state.is_finished()
    assert ledger.heal(study, cell) == [running]
    healed = ledger.history(study, cell)[cut]
    assert healed.state == optuna.trial.TrialState.COMPLETE
    assert healed.value == 0.5
    assert healed.intermediate_values == {5: 0.5}


def test_a_driver_sees_what_it_writes_at_once_and_what_others_add_a_little_later(
    ledger: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, now = toy(), [100.0]
    monkeypatch.setattr("cs330ray.ledger.writer.time.monotonic", lambda: now[0])
    cell, reads = opened(ledger, study), []
    ledger.is_driver = True
    original = stored.refresh
    monkeypatch.setattr(stored, "refresh", lambda *given, **how: reads.append(None) or original(*given, **how))
    number = entered(ledger, study, cell)
    for _ in range(3):
        assert [trial.state.name for trial in ledger.history(study, cell)] == ["RUNNING"]
    assert reads == []
    longer = study.model_copy(update={"budget": study.budget.model_copy(update={"steps": 40})})
    ledger.retarget(longer, cell, number)
    assert ledger.history(study, cell)[0].user_attrs["steps"] == 40
    ledger.report(study, cell, number, 5, 0.5)
    assert ledger.history(study, cell)[0].intermediate_values == {5: 0.5}
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 0.5}, 1.0)])
    assert ledger.supersede(study, cell, number, 0) == 1
    assert ledger.history(study, cell)[0].intermediate_values == {}
    ledger.write_rows(study, cell, number, [Row(10, {"val_loss": 0.25}, 1.0)])
    ledger.end(study, cell, number, Ending("COMPLETE"))
    assert [trial.values for trial in ledger.history(study, cell)] == [[0.25]]
    assert len(ledger.trials(study, cell)) == 1
    optuna.load_study(study_name="toy {}", storage=ledger.database.storage).add_trial(
        optuna.trial.create_trial(value=0.1)
    )
    assert ledger.foreign(study, cell) == []
    assert reads == []
    now[0] += 6
    assert ledger.foreign(study, cell) == [1]
    failed = entered(ledger, study, cell)
    assert ledger.entered(study, cell, failed).state.name == "RUNNING"
    ledger.end(study, cell, failed, Ending("FAIL", "raised: planted", cause="raised"))  # of no row Optuna is told
    assert ledger.entered(study, cell, failed).state.name == "FAIL"


def test_optuna_itself_opens_the_ledger(ledger: Writer) -> None:
    study = toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 0.5}, 1.0)])
    ledger.end(study, cell, number, Ending("COMPLETE"))
    storage = optuna.storages.RDBStorage(ledger.database.url)
    found = optuna.load_study(study_name="toy {}", storage=storage)
    assert found.best_value == 0.5
    assert found.direction == optuna.study.StudyDirection.MINIMIZE
    storage.engine.dispose()


def test_another_study_under_an_old_name_is_refused_and_the_old_one_stays(ledger: Writer) -> None:
    opened(ledger, toy())
    with pytest.raises(SpecError, match=r"search\.lr\.high: 1\.0 -> 2\.0"):
        ledger.open(toy(search={"lr": {"low": 1e-3, "high": 2.0, "log": True}}), {})
    assert ledger.study("toy") == toy()


def test_a_deleted_study_leaves_nothing_and_its_name_is_free_for_another(ledger: Writer) -> None:
    study = toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 0.5}, 1.0)])
    uid = ledger.uid("toy")
    ledger.delete("toy")
    assert ledger.names() == []
    assert counted(ledger, "cs330ray_rows") == 0
    assert counted(ledger, "trials") == 0
    opened(ledger, toy(seed=1))
    assert ledger.history(toy(seed=1), cell) == []
    assert ledger.uid("toy") != uid


def test_a_study_whose_name_begins_like_another_is_not_deleted_with_it(ledger: Writer) -> None:
    first, second = toy(), toy(name="toy-two")
    opened(ledger, first), opened(ledger, second)
    entered(ledger, second, second.cells[0])
    ledger.delete("toy")
    assert len(ledger.history(second, second.cells[0])) == 1


def test_a_ledger_that_is_no_database_is_refused_in_one_line_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    before = (tmp_path / "ledger.db").read_bytes()
    with pytest.raises(LedgerError) as error:
        Writer.at(tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "ledger.db").read_bytes() == before


def test_the_database_of_another_program_is_refused_before_a_table_is_made_in_it(tmp_path: Path) -> None:
    engine = sql.create_engine(f"sqlite:///{tmp_path}/ledger.db")
    with engine.begin() as connection:
        connection.execute(sql.text("create table alembic_version (version_num varchar)"))  # as MLflow has it
    with pytest.raises(LedgerError, match="a database of its own"):
        Writer.at(tmp_path)
    assert sql.inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://***@host/db"),
        ("sqlite:////home/me/ledger.db", "sqlite:////home/me/ledger.db"),
        ("http://token@mlflow:5000", "http://***@mlflow:5000"),
        ("postgresql://me:sec@ret@host/db", "postgresql://***@host/db"),
    ],
)
def test_a_password_in_an_address_is_never_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:secret@127.0.0.1:9/db", "Connection refused"),
        ("postgresql://me:se@cret@127.0.0.1:9/db", "an @ of the password is written %40"),
        ("postgresql://me:secret@127.0.0.1:port/db", "must be sqlite:///FILE or postgresql://"),
        ("mysql://me:secret@127.0.0.1:9/db", "but got mysql"),
        ("secret", "must be sqlite:///FILE or postgresql://"),
    ],
)
def test_an_address_where_no_ledger_is_is_one_line_without_the_password(url: str, said: str) -> None:
    if said == "Connection refused":
        pytest.importorskip("psycopg")
    with pytest.raises(LedgerError, match=said) as error:
        Writer(url)
    assert "\n" not in str(error.value)
    assert url == "secret" or "cret" not in str(error.value)


def test_postgresql_without_its_driver_is_one_line_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(LedgerError, match=re.escape("pip install 'cs330ray[postgres]'")):
        Writer("postgresql://me:secret@127.0.0.1/db")


def test_a_password_may_hold_every_sign_that_an_address_can_spell(postgres: Server, database: str) -> None:
    before = quote(postgres.password, safe="")
    with postgres.password_changed("p:/@%? #&=é'"):
        address = database.replace(before, quote(postgres.password, safe=""))
        assert Writer(address).names() == []


def test_a_server_that_goes_away_is_one_line_and_what_was_written_is_there_when_it_comes_back(
    postgres: Server, database: str
) -> None:
    ledger, study = Writer(database), toy()
    cell = opened(ledger, study)
    number = entered(ledger, study, cell)
    ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 0.5}, 1.0)])
    postgres.stop()
    try:
        for use in (ledger.names, lambda: ledger.history(study, cell), lambda: entered(ledger, study, cell)):
            with pytest.raises(LedgerError) as error:
                use()
            assert "\n" not in str(error.value)
            assert postgres.password not in str(error.value)
    finally:
        postgres.start()
    ledger.write_rows(study, cell, number, [Row(10, {"val_loss": 0.4}, 2.0)])
    assert [row.step for row in ledger.rows(study, cell, number)] == [5, 10]
    assert [trial.number for trial in ledger.history(study, cell)] == [0]


OPENER = """
import pathlib, sys
from optuna.storages._rdb import storage, models  # what opening imports takes longer than opening
import alembic.command
from cs330ray.ledger.writer import Writer
print("ready", flush=True)
sys.stdin.readline()
Writer.at(pathlib.Path(sys.argv[1]))
"""


def test_processes_that_open_a_new_ledger_at_once_all_get_it(tmp_path: Path, backend: str) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", OPENER, str(tmp_path)]
    openers: list[subprocess.Popen[str]] = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    assert [(opener.communicate(timeout=120)[1], opener.returncode) for opener in openers] == [("", 0)] * 4
