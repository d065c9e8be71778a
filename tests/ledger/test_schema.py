"""The ledger's version: who upgrades an older one, when not, and that a step is taken whole or not at all."""

import json
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sql

from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import backup, lease, schema
from cs330ray.ledger.database import Database
from cs330ray.ledger.lease import Holder
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.writer import Writer

BEFORE = Path(__file__).parents[1] / "before" / "home"


@pytest.fixture
def of_before(home: Path) -> Path:
    """A home whose ledger was made by version 0.1.0, before ledgers had versions."""
    home.mkdir()
    shutil.copy(BEFORE / "ledger.db", home / "ledger.db")
    with closing(sqlite3.connect(home / "ledger.db")) as ledger, ledger:
        ledger.execute("delete from cs330ray_leases")
    return home


@pytest.fixture
def ask(of_before: Path) -> Iterator[Callable[[str], list[tuple[object, ...]]]]:
    """Ask the ledger's file, past our code."""
    with closing(sqlite3.connect(of_before / "ledger.db")) as database:
        yield lambda statement: database.execute(statement).fetchall()


def upgraded(home: Path) -> list[str]:
    said = list[str]()
    Writer.at(home).upgrade("slope", said.append)
    return said


def test_a_new_ledger_has_the_newest_version(home: Path) -> None:
    assert Writer.at(home).database.version == schema.VERSION
    with closing(sqlite3.connect(home / "ledger.db")) as database:
        assert database.execute("select version from cs330ray_schema").fetchall() == [(schema.VERSION,)]


def test_a_ledger_that_is_newer_than_the_code_is_refused_in_one_line_by_readers_and_writers(home: Path) -> None:
    Writer.at(home)
    with closing(sqlite3.connect(home / "ledger.db")) as database, database:
        database.execute("update cs330ray_schema set version = 99")
    for opens in (Ledger.at, Writer.at):
        with pytest.raises(LedgerError, match=r"must have version 4 or less, but got 99.*install that one$") as refused:
            opens(home)
        assert "\n" not in str(refused.value)


def test_an_upgrade_is_said_with_the_copy_of_what_was(of_before: Path) -> None:
    (line,) = upgraded(of_before)
    (kept,) = (of_before / "backups").glob("version-0-*.db")
    assert line == f"slope: the ledger is upgraded from version 0 to 4; as it was it is kept as {kept}"
    assert backup.damage(kept) is None
    with closing(sqlite3.connect(kept)) as database:
        assert database.execute("select 1 from sqlite_master where name = 'cs330ray_schema'").fetchall() == []
        ((path,),) = database.execute("select path from cs330ray_checkpoints limit 1").fetchall()
    assert path.startswith("/home/ada/studies/runs/")
    assert upgraded(of_before) == []


def test_an_upgrade_makes_every_path_relative_to_the_home(of_before: Path, ask: Callable[[str], list]) -> None:
    before = ask("select path from cs330ray_checkpoints order by 1") + ask("select checkpoint from cs330ray_tests")
    assert all(path.startswith("/home/ada/studies/runs/") for (path,) in before)
    upgraded(of_before)
    after = ask("select path from cs330ray_checkpoints order by 1") + ask("select checkpoint from cs330ray_tests")
    assert after == [(path.removeprefix("/home/ada/studies/runs/"),) for (path,) in before]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/a/b/slope/checkpoints/0123456789ab/trial-00001/step-00000012", None),
        ("/a/alone/maml/0123456789ab/step-00000012", "alone/maml/0123456789ab/step-00000012"),
        ("slope/checkpoints/0123456789ab/trial-00001/step-00000012", None),
        ("s3://bucket/slope-1/0123/trial-00001/step-00000012", "s3://bucket/slope-1/0123/trial-00001/step-00000012"),
        ("runs/slope/checkpoints/0123456789ab/trial-00001/step-00000012", None),
        ("runs/alone/maml/0123456789ab/step-00000012", "alone/maml/0123456789ab/step-00000012"),
        ("/somewhere/else", "/somewhere/else"),
    ],
)
def test_a_path_is_relative_to_whichever_home_it_was_in(path: str, wanted: str | None) -> None:
    assert schema.relative(path) == (wanted or "slope/checkpoints/0123456789ab/trial-00001/step-00000012")


def test_a_step_that_fails_leaves_the_ledger_as_it_was(
    of_before: Path, ask: Callable[[str], list], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = schema.STEPS[1]

    def fails(connection: sql.Connection) -> None:
        taken(connection)
        raise OSError("planted")

    before = ask("select sql from sqlite_master order by name") + ask("select * from cs330ray_checkpoints")
    ledger = Writer.at(of_before)
    monkeypatch.setattr(schema, "STEPS", {1: fails})
    with pytest.raises(OSError, match="planted"):
        schema.upgrade(ledger.database.engine, 0)
    assert ask("select sql from sqlite_master order by name") + ask("select * from cs330ray_checkpoints") == before
    assert Ledger.at(of_before).database.version == 0


def test_a_step_that_is_cut_off_after_its_last_statement_is_not_taken(
    of_before: Path, ask: Callable[[str], list]
) -> None:
    before = ask("select sql from sqlite_master order by name") + ask("select * from cs330ray_checkpoints")
    database = Database(f"sqlite:///{of_before}/ledger.db", "write")

    def cut_off() -> None:
        with schema.transaction(database.engine) as connection:
            schema.STEPS[1](connection)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert ask("select sql from sqlite_master order by name") + ask("select * from cs330ray_checkpoints") == before


def test_a_living_driver_of_another_study_keeps_the_ledger_from_being_upgraded(of_before: Path) -> None:
    ledger = Writer.at(of_before)
    with lease.held(ledger.database, "grown"), pytest.raises(SpecError, match=r"process \d+ runs grown; wait until"):
        ledger.upgrade("slope", lambda _: None)
    assert Ledger.at(of_before).database.version == 0
    ledger.upgrade("slope", lambda _: None)
    assert Ledger.at(of_before).database.version == schema.VERSION


def test_a_driver_on_another_machine_that_beats_keeps_the_ledger_from_being_upgraded(
    of_before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.01)
    monkeypatch.setattr(lease, "SILENCE_S", 5.0)
    ledger, far = Writer.at(of_before), json.dumps(vars(Holder("faraway", "another machine", 7, "1")))
    lease.take(ledger.database, "grown", "far", far, None)
    with pytest.raises(SpecError, match="process 7 on faraway runs grown"):
        ledger.upgrade("slope", lambda _: None, lambda: lease.beat(ledger.database, "grown", "far"))
    assert Ledger.at(of_before).database.version == 0


def test_a_driver_on_another_machine_that_is_silent_does_not(of_before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.01)
    monkeypatch.setattr(lease, "SILENCE_S", 0.1)
    ledger, far = Writer.at(of_before), json.dumps(vars(Holder("faraway", "another machine", 7, "1")))
    lease.take(ledger.database, "grown", "far", far, None)
    ledger.upgrade("slope", lambda _: None)
    assert Ledger.at(of_before).database.version == schema.VERSION


def test_only_a_driver_upgrades(of_before: Path) -> None:
    Writer.at(of_before)
    Ledger.at(of_before, access="follow")
    Ledger.at(of_before)
    assert Ledger.at(of_before).database.version == 0


def test_optunas_own_older_tables_are_upgraded_too(of_before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Writer.at(of_before)
    upgrades = list[int]()
    monkeypatch.setattr(ledger.database.storage, "upgrade", lambda: upgrades.append(1))
    monkeypatch.setattr(ledger.database.storage, "get_current_version", lambda: "v3.0.0.d")
    assert ledger.database.is_old
    ledger.upgrade("slope", lambda _: None)
    assert upgrades == [1]


@pytest.mark.parametrize("table", ["losses", "stores", "untested", "tests", "leases", "scores"])
def test_a_ledger_that_is_older_than_a_table_is_read_and_upgraded(of_before: Path, table: str) -> None:
    with closing(sqlite3.connect(of_before / "ledger.db")) as database, database:
        database.execute(f"drop table cs330ray_{table}")
    ledger = Ledger.at(of_before)
    study = ledger.study("endings")
    states = [trial.state for cell in study.cells for trial in ledger.trials(study, cell)]
    assert states
    assert (ledger.folder(study), ledger.losses(study, study.cells[0], 0)) == (None, [])
    upgraded(of_before)
    with closing(sqlite3.connect(of_before / "ledger.db")) as database:
        assert database.execute(f"select count(*) from cs330ray_{table}").fetchall() == [(0,)]
    again = Ledger.at(of_before)
    assert [trial.state for cell in study.cells for trial in again.trials(study, cell)] == states


def test_a_ledger_of_version_1_is_read_as_it_is_and_upgraded(of_before: Path) -> None:
    upgraded(of_before)
    with closing(sqlite3.connect(of_before / "ledger.db")) as database, database:
        database.execute("drop table cs330ray_requests")
        database.execute("update cs330ray_schema set version = 1")
    before = Ledger.at(of_before)
    assert before.database.version == 1
    assert before.database.select(sql.select(lease.REQUESTS)) == []
    with lease.held(Ledger.at(of_before, access="follow").database, "slope") as mine:
        assert mine.asked() == []
    (line,) = upgraded(of_before)
    assert line.startswith("slope: the ledger is upgraded from version 1 to 4; as it was it is kept as ")
    with lease.held(Writer.at(of_before).database, "slope") as mine:
        lease.ask_to_stop(Writer.at(of_before).database, "slope", mine._owner)
        assert mine.asked() == [lease.WHOLE]


def test_studies_of_before_are_read_and_upgraded_as_asking_each_cell_for_itself(of_before: Path) -> None:
    before = Ledger.at(of_before)
    assert {before.asking(before.study(name)) for name in before.names()} == {"own"}
    upgraded(of_before)
    after = Writer.at(of_before)
    assert {after.asking(after.study(name)) for name in after.names()} == {"own"}
    new = after.study("slope").model_copy(update={"name": "new"})
    after.open(new, {})
    assert (after.asking(new), after.asking(after.study("slope"))) == ("common", "own")
    after.open(after.study("slope"), {})  # as where it is resumed
    assert after.asking(after.study("slope")) == "own"


def test_a_ledger_of_version_2_is_read_as_it_is_and_upgraded(of_before: Path) -> None:
    upgraded(of_before)
    with closing(sqlite3.connect(of_before / "ledger.db")) as database, database:
        database.execute("alter table cs330ray_studies drop column asking")
        database.execute("update cs330ray_schema set version = 2")
    before = Ledger.at(of_before)
    assert before.asking(before.study("slope")) == "own"
    (line,) = upgraded(of_before)
    assert line.startswith("slope: the ledger is upgraded from version 2 to 4; as it was it is kept as ")
    after = Ledger.at(of_before)
    assert after.asking(after.study("slope")) == "own"


def test_tables_of_an_optuna_that_is_newer_are_refused_in_one_line(of_before: Path) -> None:
    with closing(sqlite3.connect(of_before / "ledger.db")) as database, database:
        database.execute("update alembic_version set version_num = 'v9.9.9.a'")
    for opens in (Ledger.at, Writer.at):
        with pytest.raises(LedgerError, match=r"but got v9\.9\.9\.a; install the newer Optuna"):
            opens(of_before)


def test_an_upgrade_prints_nothing_and_leaves_logging_as_it_was(
    of_before: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = Writer.at(of_before)
    monkeypatch.setattr(ledger.database, "_optuna_is_old", lambda: True)
    handlers, disabled = [*logging.getLogger().handlers], logging.getLogger("optuna").disabled
    ledger.upgrade("slope", lambda _: None)
    assert ([*logging.getLogger().handlers], logging.getLogger("optuna").disabled) == (handlers, disabled)
    assert capfd.readouterr() == ("", "")


def test_a_driver_of_before_that_starts_while_another_waits_keeps_the_ledger_from_being_upgraded(
    of_before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.01)
    monkeypatch.setattr(lease, "SILENCE_S", 5.0)
    ledger, far = Writer.at(of_before), json.dumps(vars(Holder("faraway", "another machine", 7, "1")))
    lease.take(ledger.database, "grown", "far", far, None)
    here = json.dumps(vars(Holder.here()))
    with pytest.raises(SpecError, match=r"process \d+ runs front"):
        ledger.upgrade("slope", lambda _: None, lambda: lease.take(ledger.database, "front", "near", here, None))
    assert Ledger.at(of_before).database.version == 0


def test_who_opened_before_another_upgraded_upgrades_nothing(of_before: Path) -> None:
    first, second, said = Writer.at(of_before), Writer.at(of_before), list[str]()
    first.upgrade("slope", said.append)
    second.upgrade("grown", said.append)
    assert len(said) == 1
    assert second.database.version == schema.VERSION
    assert len([*(of_before / "backups").glob("version-*.db")]) == 1


def test_what_was_kept_before_an_upgrade_is_a_way_back_too(of_before: Path) -> None:
    upgraded(of_before)
    (kept,) = (of_before / "backups").glob("version-0-*.db")
    (of_before / "ledger.db").unlink()
    with pytest.raises(LedgerError, match=f"it is gone.*restore {kept}`"):
        Writer.at(of_before)


def test_the_checkpoint_of_a_lone_trial_is_relative_to_the_home_however_that_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.chdir(tmp_path)
    for name in (Path("runs"), tmp_path / "link", home):
        Writer.at(name).write_opening("maml", "{}", str(name / "alone" / "maml" / "0123" / "step-00000004"))
    with closing(sqlite3.connect(home / "ledger.db")) as database:
        written = database.execute("select distinct checkpoint from cs330ray_tests").fetchall()
    assert written == [("alone/maml/0123/step-00000004",)]
