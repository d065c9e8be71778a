"""Backups of the ledger, what is said of a damaged one, and the way back."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cs330ray.cli import app
from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import backup
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from cs330ray.spec.places import checkpoints_of
from cs330ray.spec.study import Study
from tests import in_process
from tests.service.test_run import runs_of
from tests.studies_of_tests import toy, whole


def study(**changes: Any) -> Study:
    return toy(resources={"slots": 1}, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("finished") / "runs"
    in_process.run(study(), home, mirror=False)
    return home


@pytest.fixture
def copied(finished: Path, home: Path) -> Path:
    connection = sqlite3.connect(finished / "ledger.db")
    connection.execute("pragma wal_checkpoint(truncate)")  # all of it is in the one file
    connection.close()
    return Path(shutil.copytree(finished, home))


def spoil(home: Path) -> None:
    """Overwrite the middle of the ledger, as a failing disk would, once all of it is in the one file."""
    connection = sqlite3.connect(home / "ledger.db")
    connection.execute("pragma wal_checkpoint(truncate)")
    connection.close()
    file = home / "ledger.db"
    size = file.stat().st_size
    with file.open("r+b") as damaged:
        damaged.seek(4096)
        damaged.write(b"\xa5" * (size - 3 * 4096))


def test_a_study_leaves_backups_that_are_whole(copied: Path) -> None:
    held = backup.backups(copied)
    assert held
    connection = sqlite3.connect(held[-1])
    assert connection.execute("select count(*) from cs330ray_ends").fetchone() == (4,)
    connection.close()
    assert backup.damage(held[-1]) is None


def test_a_backup_is_made_while_another_process_writes(copied: Path) -> None:
    writing = sqlite3.connect(copied / "ledger.db", isolation_level=None)
    writing.execute("begin immediate")
    writing.execute("delete from cs330ray_ends")
    made = backup.keep(copied)
    writing.execute("rollback")
    writing.close()
    assert made is not None
    connection = sqlite3.connect(made)
    assert connection.execute("select count(*) from cs330ray_ends").fetchone() == (4,)
    connection.close()


def test_the_oldest_backups_go_by_number_not_by_clock(copied: Path) -> None:
    for _ in range(5):
        backup.keep(copied)
    held = backup.backups(copied)
    assert len(held) == backup.KEPT
    numbers = [int(file.stem.removeprefix("ledger-")) for file in held]
    assert numbers == list(range(numbers[0], numbers[0] + backup.KEPT))
    assert not list((copied / backup.FOLDER).glob(".partial*"))


def test_a_damaged_ledger_never_becomes_a_backup(copied: Path) -> None:
    before = backup.backups(copied)
    spoil(copied)
    with pytest.raises(LedgerError, match="whole database"):
        backup.keep(copied)
    assert backup.backups(copied) == before


def refused(copied: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        app.guarded(app.app, list(words))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_damaged_ledger_is_refused_with_the_newest_backup_and_the_way_back(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copied)
    held = backup.backups(copied)
    before = (copied / "ledger.db").read_bytes()
    error = refused(copied, capsys, "show", "toy")
    assert str(held[-1]) in error
    assert f"CS330RAY_HOME={copied} cs330ray restore` puts it in place" in error
    assert (copied / "ledger.db").read_bytes() == before


def test_a_file_that_is_no_database_is_refused_likewise(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "ledger.db").write_text("a ledger this is not\n" * 500)
    assert "cs330ray restore" in refused(copied, capsys, "list")


@pytest.mark.parametrize("how", ["empty", "gone"])
def test_a_study_does_not_begin_anew_where_its_ledger_is_empty_or_gone(
    copied: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    for log in copied.glob("ledger.db-*"):
        log.unlink()
    (copied / "ledger.db").write_bytes(b"")
    if how == "gone":
        (copied / "ledger.db").unlink()
    with pytest.raises(LedgerError, match=rf"it is {how}; .*cs330ray restore` puts it in place \(to begin anew, move"):
        Writer.at(copied)
    backup.restore(copied)
    assert len(whole(copied)) == 4


def test_without_a_backup_that_is_said(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / backup.FOLDER)
    spoil(copied)
    assert "there is no backup of it" in refused(copied, capsys, "show", "toy")


def test_damage_that_no_read_has_met_yet_stops_a_study_before_it_starts(copied: Path) -> None:
    """One page of a table's index is swapped for another: reads go on, SQLite's check finds it."""
    connection = sqlite3.connect(copied / "ledger.db")
    connection.execute("pragma wal_checkpoint(truncate)")
    connection.execute("pragma writable_schema=on")
    connection.execute(
        "update sqlite_master set rootpage = (select rootpage from sqlite_master where name = 'cs330ray_untested') "
        "where name = 'sqlite_autoindex_cs330ray_rows_1'"
    )
    connection.commit()
    connection.close()
    assert backup.damage(copied / "ledger.db") is not None
    with pytest.raises(LedgerError, match="restore"):
        in_process.run(study(budget={"trials": 5}), copied, mirror=False)


def test_restored_the_study_goes_on_and_makes_again_what_was_recorded_after_the_backup(
    home: Path, finished: Path
) -> None:
    in_process.run(study(budget={"trials": 2}), home, mirror=False)
    chosen = backup.backups(home)[-1]
    kept = shutil.copy(chosen, home / "two.db")
    in_process.run(study(), home, mirror=False)
    spoil(home)
    restored, aside = backup.restore(home, Path(kept))
    assert restored == Path(kept)
    assert aside is not None
    assert (aside / "ledger.db").exists()
    assert len(whole(home)) == 2
    in_process.run(study(), home, mirror=False)
    assert whole(home) == whole(finished)


def test_checkpoints_of_trials_that_the_restored_record_does_not_know_are_not_gone_on_from(home: Path) -> None:
    in_process.run(study(budget={"trials": 1}), home, mirror=False)
    kept = Path(shutil.copy(backup.backups(home)[-1], home / "one.db"))
    in_process.run(study(budget={"trials": 2}), home, mirror=False)
    backup.restore(home, kept)
    (cell,) = study().cells
    (left,) = checkpoints_of(home, "toy", cell, 1).glob("step-*")
    (left / "state.json").write_text("not what trial 1 will be")
    in_process.run(study(budget={"trials": 2}), home, mirror=False)
    ledger = Writer.at(home)
    assert ledger.attempts(study(), cell, 1)[0]["resumed_from_step"] is None
    assert ledger.trials(study(), cell)[1].state == "COMPLETE"


def test_the_command_restores_and_mlflow_then_shows_what_the_ledger_holds(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Mirror(Writer.at(copied), "toy", copied).sync()
    spoil(copied)
    with pytest.raises(SystemExit) as end:
        app.app(["restore"])
    assert end.value.code == 0
    assert "studies: toy" in capsys.readouterr().out
    assert len(whole(copied)) == 4
    before = {found.info.run_id for found in runs_of(copied)}
    Mirror(Writer.at(copied), "toy", copied).sync()
    assert not before & {found.info.run_id for found in runs_of(copied)}
    assert sorted(found.data.tags["cs330ray.kind"] for found in runs_of(copied)) == ["cell", "study"] + ["trial"] * 4


def test_a_whole_ledger_is_not_replaced_without_a_word(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.confirm", lambda text: False)
    before = (copied / "ledger.db").read_bytes()
    with pytest.raises(SystemExit) as end:
        app.app(["restore"])
    assert end.value.code == 1
    assert (copied / "ledger.db").read_bytes() == before


def test_a_ledger_that_a_process_has_open_is_not_replaced(copied: Path) -> None:
    opens = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", opens, str(copied / "ledger.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(SpecError, match=f"process {other.pid} does"):
            backup.restore(copied)
        other.communicate(b"\n")


@pytest.mark.parametrize("cut", ["shutil.copy2", "pathlib.Path.unlink", "pathlib.Path.replace"])
def test_a_restore_that_is_cut_off_leaves_a_ledger_there(
    copied: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cut, killed)
    with pytest.raises(KeyboardInterrupt):
        backup.restore(copied)
    monkeypatch.undo()
    assert (copied / "ledger.db").stat().st_size > 0


@pytest.mark.parametrize("what", ["mlflow.db", "folder"])
def test_what_is_no_ledger_is_not_restored(copied: Path, what: str) -> None:
    (copied / "folder").mkdir()
    connection = sqlite3.connect(copied / "mlflow.db")
    connection.execute("create table runs (x)")
    connection.close()
    with pytest.raises(SpecError, match="a whole backup is needed"):
        backup.restore(copied, copied / what)


@pytest.mark.parametrize("backup_file", ["nothing.db", "torn.db"])
def test_only_a_whole_backup_is_restored(copied: Path, backup_file: str) -> None:
    (copied / "torn.db").write_bytes((copied / "ledger.db").read_bytes()[:5000])
    before = (copied / "ledger.db").read_bytes()
    with pytest.raises(SpecError, match="a whole backup is needed"):
        backup.restore(copied, copied / backup_file)
    assert (copied / "ledger.db").read_bytes() == before


def test_a_ledger_elsewhere_is_neither_backed_up_nor_restored_here(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CS330RAY_LEDGER", f"sqlite:///{copied}/other.db")
    assert backup.keep(copied) is None
    with pytest.raises(SpecError, match="CS330RAY_LEDGER"):
        backup.restore(copied)


def test_text_in_the_ledger_that_is_not_json_is_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = sqlite3.connect(copied / "ledger.db")
    connection.execute("update cs330ray_rows set metrics = '{torn'")
    connection.commit()
    connection.close()
    assert "must be JSON" in refused(copied, capsys, "show", "toy", "0")
