"""Reading writes nothing: on a read-only mount, for a colleague who may only read, and beside a driver at work."""

import errno
import gc
import hashlib
import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from cs330ray.errors import LedgerError
from cs330ray.ledger import backup
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.tables import STUDIES
from cs330ray.ledger.writer import Writer
from tests.filled import fill, search
from tests.postgres import Server

BEFORE = Path(__file__).parents[1] / "before"
COMMANDS = [
    ["list"],
    ["show", "slope"],
    ["show", "slope", "0", "--cell", "body=flat", "--log"],
    ["best", "slope"],
    ["best", "slope", "--export", "OUT"],
    ["report", "slope", "-o", "OUT"],
    ["reproduce", "slope", "0", "--cell", "body=flat"],
]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user, or a mount")


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and digest of every file and folder, by name."""
    gc.collect()  # connections that nobody holds
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def of_before(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BEFORE / "home", tmp_path / "runs"))


def command(words: list[str], out: Path) -> list[str]:
    return [sys.executable, "-m", "cs330ray", *(str(out) if word == "OUT" else word for word in words)]


ONE_AFTER_ANOTHER = """
import json, sys
from cs330ray.cli import app
for words in json.loads(sys.argv[1]):
    sys.argv = ["cs330ray", *words]
    try:
        app.main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""


def environment(home: Path, scratch: Path) -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {
        "CS330RAY_HOME": str(home), "HOME": str(scratch), "TMPDIR": str(scratch), "TZ": "UTC",
        "PATH": os.environ["PATH"], "PYTHONPATH": f"{root / 'src'}:{root}", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


NO_PRIVILEGE = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]  # root, for whom rights hold as for anybody


@AS_ROOT
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_colleague_who_may_only_read_reads_a_study(of_before: Path, tmp_path: Path, words: list[str]) -> None:
    owner, scratch = pwd.getpwnam("nobody"), tmp_path / "scratch"
    scratch.mkdir()
    for path in [of_before, *of_before.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.chown(path, owner.pw_uid, owner.pw_gid)
    before = contents(of_before)
    denied = subprocess.run([*NO_PRIVILEGE, "touch", str(of_before / "x")], capture_output=True, check=False)
    assert denied.returncode != 0
    done = subprocess.run(
        [*NO_PRIVILEGE, *command(words, scratch / "out")],
        env=environment(of_before, scratch), capture_output=True, text=True, cwd=scratch, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(of_before) == before


@AS_ROOT
@pytest.mark.slow
def test_a_study_is_read_on_a_read_only_mount(of_before: Path, tmp_path: Path) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "scratch" / "out"
    scratch.mkdir()
    mount = f"mount --bind '{of_before}' '{of_before}' && mount -o remount,bind,ro '{of_before}'"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    commands = [command(words, Path(f"{out}-{number}"))[3:] for number, words in enumerate(COMMANDS)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} && ! touch '{of_before}/x' 2>/dev/null && exec \"$@\"", "sh",
         sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(commands)],
        env=environment(of_before, scratch), capture_output=True, text=True, cwd=scratch, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_ledger_whose_driver_was_killed_is_read_with_what_its_log_holds(home: Path) -> None:
    study = fill(Writer.at(home), "letters")
    writer = Writer.at(home)
    number = search(writer, study, study.cells[0], 0.5)
    assert Path(f"{home}/ledger.db-wal").stat().st_size > 0
    copied = Path(shutil.copytree(home, home.parent / "copied"))
    Path(f"{copied}/ledger.db-shm").unlink()
    before = contents(copied)
    assert Ledger.at(copied).last_step(study, study.cells[0], number) == 20
    assert contents(copied) == before


def test_a_reader_leaves_nothing_in_the_temporary_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Writer.at(home), "letters")
    scratch = home.parent / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    ledger = Ledger.at(home)
    assert ledger.names() == ["letters"]
    assert len([*scratch.iterdir()]) == 1
    del ledger
    gc.collect()
    assert [*scratch.iterdir()] == []


@pytest.mark.slow
def test_a_copy_that_is_made_while_a_driver_writes_is_whole(home: Path, tmp_path: Path) -> None:
    file, over = home / "ledger.db", threading.Event()
    home.mkdir()
    with closing(sqlite3.connect(file)) as made, made:
        made.execute("pragma journal_mode=wal")
        made.execute("create table pairs (number integer primary key, one text, other text)")

    def write() -> None:
        with closing(sqlite3.connect(file)) as writer:
            writer.execute("pragma wal_autocheckpoint=20")
            number = 0
            while not over.is_set():
                with writer:  # both or neither
                    text = f"{number} " * 400
                    writer.execute("insert into pairs values (?, ?, '')", (number, text))
                    writer.execute("update pairs set other = ? where number = ?", (text, number))
                number += 1

    writing = threading.Thread(target=write)
    writing.start()
    counts = []
    try:
        for turn in range(60):
            folder = tmp_path / f"copy-{turn}"
            folder.mkdir()
            try:
                backup.copied_whole(file, folder)
            except LedgerError:
                continue  # it changed all the time
            with closing(sqlite3.connect(folder / "ledger.db")) as copy:
                assert copy.execute("pragma integrity_check").fetchall() == [("ok",)]
                assert copy.execute("select count(*) from pairs where one <> other").fetchall() == [(0,)]
                counts.append(copy.execute("select count(*) from pairs").fetchone()[0])
            shutil.rmtree(folder)
    finally:
        over.set()
        writing.join()
    assert counts == sorted(counts)
    assert len(set(counts)) > 10


def test_who_reads_sees_the_ledger_as_it_was_and_who_follows_sees_what_comes(home: Path) -> None:
    writer = Writer.at(home)
    study = fill(writer, "letters")
    reader, follower = Ledger.at(home), Ledger.at(home, access="follow")
    before = len(reader.trials(study, study.cells[0]))
    search(writer, study, study.cells[0], 0.5)
    assert len(reader.trials(study, study.cells[0])) == before
    assert len(follower.trials(study, study.cells[0])) == before + 1
    assert len(Ledger.at(home).trials(study, study.cells[0])) == before + 1


def test_there_is_no_ledger_to_read_where_there_is_none_and_none_is_made(home: Path) -> None:
    with pytest.raises(LedgerError, match="a ledger is needed here, but there is none"):
        Ledger.at(home)
    assert not home.exists()


def test_opening_a_study_in_python_leaves_no_lock_and_no_log(home: Path) -> None:
    study = fill(Writer.at(home), "letters")
    gc.collect()
    for beside in home.glob("ledger.db*"):
        if beside.name != "ledger.db":
            beside.unlink()
    before = contents(home)
    assert Ledger.at(home).study(study.name) == study
    assert contents(home) == before


def test_a_role_that_may_only_select_reads_a_ledger_in_postgresql(
    postgres: Server, database: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setenv("CS330RAY_LEDGER", database)
    study = fill(Writer.at(home), "letters")
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("create role colleague login password 'only-reads'")
        try:
            owner.execute("grant select on all tables in schema public to colleague")
            address = database.replace(quote(postgres.password, safe=""), "only-reads").replace("tester:", "colleague:")
            ledger = Ledger(address, home)
            assert ledger.study("letters") == study
            assert [trial.number for trial in ledger.trials(study, study.cells[0])] == [0, 1, 2, 3]
            with pytest.raises(LedgerError, match="permission denied"):
                ledger.database.execute(STUDIES.delete())
            ledger.database.engine.dispose()
            ledger.database.storage.engine.dispose()
        finally:
            owner.execute("drop owned by colleague")
            owner.execute("drop role colleague")


def test_a_ledger_behind_a_link_is_read_with_the_log_that_lies_beside_the_file(home: Path, tmp_path: Path) -> None:
    writer = Writer.at(home)
    study = fill(writer, "letters")
    before = len(Ledger.at(home).trials(study, study.cells[0]))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "ledger.db").symlink_to(home / "ledger.db")
    search(writer, study, study.cells[0], 0.5)
    assert Path(f"{home}/ledger.db-wal").stat().st_size > 0
    assert len(Ledger.at(tmp_path / "linked").trials(study, study.cells[0])) == before + 1


def test_half_a_transaction_in_a_file_with_a_rollback_journal_is_not_read(tmp_path: Path) -> None:
    file, folder = tmp_path / "ledger.db", tmp_path / "copy"
    folder.mkdir()
    script = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("create table rows (text)")
database.executemany("insert into rows values (?)", [("x" * 900,)] * 39)
database.execute("pragma cache_size=1")
database.execute("begin")
database.execute("delete from rows")
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script, str(file)], check=False)
    assert Path(f"{file}-journal").exists()
    copy = backup.copied_whole(file, folder)
    with closing(sqlite3.connect(copy)) as copied:
        assert copied.execute("select count(*) from rows").fetchall() == [(39,)]


def test_a_temporary_directory_without_room_is_named_and_not_the_ledger(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(Writer.at(home), "letters")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup.shutil, "copyfileobj", full)
    with pytest.raises(LedgerError, match="temporary files, but No space left on device; set TMPDIR"):
        Ledger.at(home)


@AS_ROOT
@pytest.mark.parametrize(
    ("closed", "words", "code", "said"),
    [
        ("", ["list"], 2, "a ledger is needed here"),
        ("slope", ["show", "slope", "0", "--cell", "body=flat", "--log"], 0, ""),
        ("slope", ["best", "slope", "--export", "OUT"], 2, "its checkpoint must be at"),
    ],
)
def test_a_directory_that_may_not_be_seen_is_no_traceback(
    of_before: Path, tmp_path: Path, closed: str, words: list[str], code: int, said: str
) -> None:
    owner, scratch = pwd.getpwnam("nobody"), tmp_path / "scratch"
    scratch.mkdir()
    os.chown(of_before / closed, owner.pw_uid, owner.pw_gid)
    (of_before / closed).chmod(0o700)
    done = subprocess.run(
        [*NO_PRIVILEGE, *command(words, scratch / "out")],
        env=environment(of_before, scratch), capture_output=True, text=True, cwd=scratch, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") <= 1
