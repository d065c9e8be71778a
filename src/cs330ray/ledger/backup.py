"""Backups of an SQLite ledger: whole copies by SQLite's online backup, made while it is written; and the way back.

A ledger elsewhere, in PostgreSQL or another file, is backed up by whoever keeps it.
"""

import contextlib
import os
import shlex
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from cs330ray import files
from cs330ray.errors import LedgerError, SpecError
from cs330ray.spec.places import BACKUPS, LEDGER

KEPT = 3
EVERY_S = 300.0
LEFT_S = 3600.0
COPIES_ALLOWED = 20  # of a ledger that is written to meanwhile
LOGS = ("-wal", "-journal")  # of SQLite, beside its file
LOG_HEADER_BYTES = 32  # with the salts that change whenever the write-ahead log starts again
FOLDER = BACKUPS


def file_of(home: Path) -> Path | None:
    """The SQLite ledger of a home; None where the ledger lies elsewhere."""
    return None if os.environ.get("CS330RAY_LEDGER") else home / LEDGER


def backups(home: Path) -> list[Path]:
    """The backups of a home's ledger, oldest first: by their number, since clocks jump."""
    return sorted((home / FOLDER).glob("ledger-*.db"))


def copies(home: Path) -> list[Path]:
    """The copies of a home's ledger: those that were kept before an upgrade, then the backups, oldest first."""
    return [*sorted((home / FOLDER).glob("version-*.db"), key=lambda path: path.stat().st_mtime), *backups(home)]


def keep(home: Path) -> Path | None:
    """Back up the ledger, if it is an SQLite file that is whole; the backup. The oldest ones beyond a few are removed.

    Raises LedgerError where the ledger is damaged; OSError, and None, where the disk takes nothing are the caller's.
    """
    source = file_of(home)
    if source is None or not source.exists():
        return None

    def fill(partial: Path) -> None:
        try:
            copy_whole(source, partial)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise LedgerError(damaged(source, str(error))) from None
        if (problem := damage(partial)) is not None:
            raise LedgerError(damaged(source, problem))

    return _keep(home, fill)


def keep_copy(home: Path, copy: Path) -> Path:
    """Keep a file that is a whole copy of the ledger as a backup, as `keep` does; it. Raises OSError."""
    return _keep(home, lambda partial: shutil.copyfile(copy, partial))


def _keep(home: Path, fill: Callable[[Path], object]) -> Path:
    """Have `fill` write the next backup, and remove the oldest ones beyond a few; the backup."""
    (home / FOLDER).mkdir(exist_ok=True)
    _sweep(home / FOLDER)
    held = backups(home)
    number = int(held[-1].stem.removeprefix("ledger-")) + 1 if held else 1
    final = home / FOLDER / f"ledger-{number:06d}.db"
    with files.new_file(final) as partial:
        fill(partial)
    for old in held[: max(len(held) + 1 - KEPT, 0)]:
        old.unlink(missing_ok=True)
    return final


def before_upgrade(file: Path | None, version: int) -> Path | None:
    """Keep a whole copy of an SQLite ledger as it was in `version`, beside the backups; it, or None for another kind.

    It is not one of the backups that come and go. Raises LedgerError where it cannot be made: then nothing is upgraded.
    """
    if file is None:
        return None
    final = file.parent / FOLDER / f"version-{version}-{uuid.uuid4().hex[:8]}.db"
    try:
        final.parent.mkdir(exist_ok=True)
        with files.new_file(final) as partial:
            copy_whole(file, partial)
            if (problem := damage(partial)) is not None:
                raise LedgerError(damaged(file, problem))
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(
            f"{file}: the ledger must be backed up before it is upgraded, but {error}; make room in {final.parent}"
        ) from None
    return final


def copy_whole(source: Path, into: Path) -> None:
    """Copy an SQLite file that may be written meanwhile, as it is at one moment. Raises sqlite3.Error."""
    with _opened(source) as ledger, _opened(into) as copy:
        ledger.backup(copy)
    into_one_file(into)


def copied_whole(file: Path, folder: Path) -> Path:
    """Copy an SQLite file and its log into a folder as they were at one moment; the copy. Raises LedgerError.

    A writer may be at work. All that it moves from the write-ahead log into the file stands in the log until that
    starts again, with other salts in its header: so a copy of the file, then of the log, is whole where neither has
    begun again. A rollback journal, of a ledger without such a log, must be the same before and after.
    """
    there = file.resolve()  # SQLite keeps its logs beside the file itself, not beside a link to it
    copy = folder / there.name
    try:
        for _ in range(COPIES_ALLOWED):
            before = _state(there)
            _copy_file(there, copy)
            for suffix in LOGS:
                Path(f"{copy}{suffix}").unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    _copy_file(Path(f"{there}{suffix}"), Path(f"{copy}{suffix}"))
            if _state(there) == before:
                return copy
    except OSError as error:
        raise LedgerError(
            f"{file}: the ledger must be readable, but {error.strerror or error}; ask who owns it for the right to read"
        ) from None
    raise LedgerError(
        f"{file}: the ledger must stand still for a moment to be read, but it changes all the time; try again"
    )


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file. Raises OSError where it cannot be read, LedgerError where the copy cannot be written."""
    with source.open("rb") as original:
        try:
            with target.open("wb") as copy:
                shutil.copyfileobj(original, copy, 1 << 20)
        except OSError as error:
            raise no_room(source, error) from None


def no_room(file: Path, error: OSError) -> LedgerError:
    """Say that a ledger cannot be copied to be read."""
    return LedgerError(
        f"{file}: to be read the ledger is copied into the directory for temporary files, but "
        f"{error.strerror or error}; set TMPDIR to a directory with room for it"
    )


def _state(file: Path) -> tuple[object, ...]:
    """What tells whether a file or its log was begun again: without a write-ahead log, any change of the file does."""
    header, journal = _head(Path(f"{file}-wal")), _head(Path(f"{file}-journal"))
    if header:
        return (header,)
    at = file.stat()
    return journal, at.st_ino, at.st_size, at.st_mtime_ns


def _head(log: Path) -> bytes:
    try:
        with log.open("rb") as opened:
            return opened.read(LOG_HEADER_BYTES)
    except FileNotFoundError:
        return b""


def into_one_file(file: Path) -> None:
    """Have an SQLite file hold all that is its, without a log beside it. Raises sqlite3.Error where it is in use."""
    with _opened(file) as database:
        database.execute("PRAGMA journal_mode=DELETE")


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half-made; another driver of this home may be making one just now."""
    for partial in folder.glob(files.PARTIAL):
        if time.time() - partial.stat().st_mtime > LEFT_S:
            partial.unlink(missing_ok=True)


class Backups:
    """Keeps backups beside a study: at its start, now and then, and at its end."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._made_s = -EVERY_S

    def tend(self) -> None:
        """Back the ledger up where the last backup is old. Raises LedgerError where it is damaged."""
        if time.monotonic() - self._made_s >= EVERY_S:
            self.make()

    def make(self) -> None:
        """Back the ledger up now; a disk that takes nothing, or a ledger that is locked, leaves it at those before."""
        self._made_s = time.monotonic()
        with contextlib.suppress(OSError, sqlite3.OperationalError):
            keep(self._home)


def damage(file: Path) -> str | None:
    """What is wrong with a database file by SQLite's own check, or None."""
    try:
        with _opened(file, readonly=True) as database:
            found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            return None  # locked, or a disk that does not answer: nothing is known of the file
        return str(error)
    return None if found == "ok" else found.splitlines()[-1]


def damaged(file: Path, problem: str) -> str:
    """What a person reads of a damaged ledger: the newest whole backup and the way back."""
    whole = [path for path in copies(file.parent) if damage(path) is None]
    if not whole:
        way = "there is no backup of it; move it away to begin anew"
    else:
        named = "" if whole[-1] in backups(file.parent) else f" {whole[-1]}"
        command = f"{_prefix(file.parent)}cs330ray restore{named}"
        way = f"the newest backup is {whole[-1]} ({_age(whole[-1])} old), and `{command}` puts it in place"
        way += f" (to begin anew, move {whole[-1].parent} away)" if not file.exists() or not file.stat().st_size else ""
    return f"{file}: the ledger must be a whole database, but {problem}; nothing was overwritten, {way}"


def restore(home: Path, backup: Path | None = None) -> tuple[Path, Path | None]:
    """Put a backup in the place of the ledger, the newest by default; it, and where the old ledger lies now.

    Raises SpecError where that cannot be: a process has the ledger open, or the backup is not whole.
    """
    ledger = file_of(home)
    if ledger is None:
        raise SpecError("restore: the ledger must be the home's own, but CS330RAY_LEDGER is set; use that database's")
    ledger = ledger.resolve()  # where it is a link the file behind it counts, with SQLite's logs beside that
    whole = [path for path in backups(home) if damage(path) is None]
    chosen = backup or (whole[-1] if whole else None)
    if chosen is None or not _is_whole_ledger(chosen):
        known = ", ".join(path.name for path in whole) or "none"
        raise SpecError(
            f"restore: a whole backup is needed, but got {chosen or 'none'}; those in {home / FOLDER}: {known}"
        )
    for pid in _users(ledger):
        raise SpecError(f"{ledger}: nobody may have the ledger open, but process {pid} does; stop that one first")
    aside = None
    with files.new_file(ledger) as partial:  # at no moment is there no ledger: a study would begin anew
        shutil.copyfile(chosen, partial)
        free_all(partial, make_others=True)
        files.fsync(partial)
        if ledger.exists():
            aside = _set_aside(ledger, home / FOLDER / f"replaced-{uuid.uuid4().hex[:8]}")
    return chosen, aside


def _set_aside(ledger: Path, folder: Path) -> Path:
    """Keep the ledger as it is, with SQLite's log of it, which does not belong to the one that comes."""
    folder.mkdir()
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(f"{ledger}{suffix}", folder / f"{LEDGER}{suffix}")
            files.fsync(folder / f"{LEDGER}{suffix}")
    for suffix in ("-wal", "-shm"):
        Path(f"{ledger}{suffix}").unlink(missing_ok=True)
    return folder


def _is_whole_ledger(file: Path) -> bool:
    if not file.is_file() or damage(file) is not None:
        return False
    try:
        with _opened(file, readonly=True) as database:
            return bool(database.execute("select 1 from sqlite_master where name = 'cs330ray_studies'").fetchall())
    except sqlite3.DatabaseError:
        return False


def free_all(file: Path, *, make_others: bool) -> None:
    """Have nobody hold a study by a copy of a ledger. Raises sqlite3.Error.

    With `make_others` the studies of a copy that is put back get another identity, since MLflow may be ahead: the
    mirror begins anew.
    """
    with _opened(file) as database, database:
        names = database.execute("select name from cs330ray_studies").fetchall() if make_others else []
        for (name,) in names:
            database.execute("update cs330ray_studies set uid = ? where name = ?", (uuid.uuid4().hex, name))
        database.execute("delete from cs330ray_leases")


def _users(file: Path) -> list[int]:
    """The processes of this user that have a file open, but this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and any(Path(held.path) == file.resolve() for held in process.open_files()):
                found.append(process.pid)
    return found


@contextlib.contextmanager
def _opened(file: Path, *, readonly: bool = False) -> Iterator[sqlite3.Connection]:
    mode = "?mode=ro" if readonly else ""
    connection = sqlite3.connect(f"{file.resolve().as_uri()}{mode}", timeout=60, uri=True)
    try:
        yield connection
    finally:
        connection.close()


def _age(file: Path) -> str:
    minutes = max(time.time() - file.stat().st_mtime, 0) / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"


def _prefix(home: Path) -> str:
    return "" if home.resolve() == Path("runs").resolve() else f"CS330RAY_HOME={shlex.quote(str(home))} "
