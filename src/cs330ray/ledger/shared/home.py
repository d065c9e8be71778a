"""A ledger that a job of Slurm works on: on its machine's own disk, with a whole copy in the home, on a shared one.

SQLite wants one machine, and shared disks say too little of locks. So the job holds the home by a lease, a file there,
fetches the copy, and puts a newer one in its place. Whether a holder lives is asked of Slurm; only where that does not
answer do its beats tell, within a minute.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cs330ray import files
from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import backup, lease
from cs330ray.ledger.database import Database, sqlite_url
from cs330ray.ledger.shared import slurm
from cs330ray.spec.places import LEDGER

BEAT_S = 10.0
SILENCE_S = 60.0  # without a beat, where Slurm does not answer, a holder is dead
ENDING_S = 120.0  # so long a job that is about to end is waited for
LOOK_S = 0.5
NAMES = f"lease-{'[0-9]' * 6}.json"  # the highest counts, and a number is made once

Says = Callable[[str], None]
Waits = Callable[[], None]  # is called again and again while something is waited for, and may raise


@dataclass(frozen=True)
class Holder:
    """A run of a job that holds a home, or held it."""

    number: int
    cluster: str
    job: str
    beats: int
    has_ended: bool  # and put the newest copy there before


def must_be_free(home: Path) -> None:
    """Refuse to write the ledger of a home that a job works on: the job would put another one in its place. SpecError.

    Where Slurm does not answer this takes a minute.
    """
    found = _newest(home)
    if found is not None and _lives(home, found, lambda _: None, lambda: None):
        raise _refused(home, found)


class Claim:
    """A home that this job holds."""

    def __init__(self, home: Path, mine: Holder, *, is_newest: bool) -> None:
        self._home, self._mine = home, mine
        self._is_newest = is_newest  # what is there, as far as anybody knows
        self._leaving = threading.Event()
        self._lost: LedgerError | None = None
        self._copy: Path | None = None  # the last that was put
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Raise LedgerError where a later job has taken the home over, as of the last beat."""
        if self._lost is not None:
            raise self._lost

    def fetch(self, own: Path, says: Says, waits: Waits) -> Path:
        """Copy the home's ledger to a folder of this machine; where it is, or is to be made.

        Raises OSError, sqlite3.Error or LedgerError, and SpecError where somebody writes it outside of Slurm, which may
        take a minute to find out.
        """
        there, here = self._home / LEDGER, own / LEDGER
        for left in own.glob(f"{LEDGER}*"):  # of an earlier run of this job
            left.unlink()
        if not there.exists():
            if backup.copies(self._home):
                raise LedgerError(backup.damaged(there, "it is gone"))
            return here
        if Path(f"{there}-wal").exists():  # somebody has written it outside of Slurm, and may be at it
            lease.nobody_works(Database(sqlite_url(there), "follow"), "", "copied to a job's machine", says, waits)
            backup.into_one_file(there)
        backup.copied_whole(there, own)
        if (problem := backup.damage(here)) is not None:
            raise LedgerError(backup.damaged(there, problem))
        backup.free_all(here, make_others=not self._is_newest)
        return here

    def put(self, ledger: Path) -> None:
        """Put a whole copy of this machine's ledger in the place of the home's, by which nobody holds a study.

        Raises OSError or sqlite3.Error, and LedgerError where another job has the home or the ledger is damaged.
        """
        self._copy = copy = ledger.with_name("copy.db")  # SQLite works on the disks of this machine alone
        backup.copy_whole(ledger, copy)
        backup.free_all(copy, make_others=False)
        if (problem := backup.damage(copy)) is not None:
            raise LedgerError(
                f"{ledger}: the ledger must be a whole database, but {problem}; the copy in {self._home} is whole, and "
                "the same submit resumes from it"
            )
        with files.new_file(self._home / LEDGER) as partial:
            shutil.copyfile(copy, partial)
            files.fsync(partial)
            self._must_be_mine()
            for log in backup.LOGS:  # which would be taken for one of the copy
                if Path(f"{self._home / LEDGER}{log}").exists():
                    raise OSError(f"{self._home / LEDGER}{log} is there: something writes the home outside of this job")

    def end(self, *, is_newest: bool) -> None:
        """Let the home go, and say whether the newest copy of the ledger is there."""
        self._leaving.set()
        self._beating.join()
        if is_newest and self._copy is not None:
            with contextlib.suppress(OSError):
                backup.keep_copy(self._home, self._copy)
        self._mine = dataclasses.replace(self._mine, has_ended=is_newest)
        with contextlib.suppress(OSError):
            self._write()

    def unused(self) -> None:
        """Let the home go as it was found."""
        self.end(is_newest=self._is_newest)

    def _must_be_mine(self) -> None:
        found = _newest(self._home)
        if found is None or found.number != self._mine.number:
            raise LedgerError(
                f"{self._home}: one job at a time may write here, but another has taken the home over; nothing was "
                "overwritten, leave it to that one"
            )

    def _beat(self) -> None:
        while not self._leaving.wait(BEAT_S):
            try:
                self._must_be_mine()
                self._mine = dataclasses.replace(self._mine, beats=self._mine.beats + 1)
                self._write()
            except LedgerError as lost:
                self._lost = lost
                return
            except OSError:  # whoever puts the next copy says so
                pass

    def _write(self) -> None:
        files.write_text(self._home / _name(self._mine.number), json.dumps(vars(self._mine)))


def claim(home: Path, says: Says, waits: Waits) -> Claim:
    """Hold a home for this job.

    Raises OSError, and SpecError where another job that lives holds it. One that is about to end is waited for, as one
    is of which nobody knows.
    """
    home.mkdir(parents=True, exist_ok=True)
    while True:
        before = _newest(home)
        if before is not None and _lives(home, before, says, waits):
            raise _refused(home, before)
        number = before.number + 1 if before is not None else 1
        mine = Holder(number, slurm.cluster(), os.environ["SLURM_JOB_ID"], 0, False)
        if _make(home, mine):
            for left in home.glob(NAMES):
                if left.name < _name(mine.number):
                    left.unlink(missing_ok=True)
            if _newest(home) == mine:  # a number is free again when a later one was made
                return Claim(home, mine, is_newest=before is None or before.has_ended)
        waits()
        time.sleep(LOOK_S)


def _lives(home: Path, found: Holder, says: Says, waits: Waits) -> bool:
    """Whether the holder of a home is at work."""
    if found.has_ended:
        return False
    if found.cluster and found.cluster == slurm.cluster():
        if found.job == os.environ.get("SLURM_JOB_ID"):
            return False  # an earlier run of this very job: Slurm begins the next one after its end
        until = time.monotonic() + ENDING_S
        while (states := slurm.states(found.job)) and slurm.ENDING in states and time.monotonic() < until:
            waits()
            time.sleep(LOOK_S)
        if states is not None:
            return not set(states) <= slurm.NOT_AT_WORK
    says(f"{home}: job {found.job} holds it, and Slurm does not say whether that runs; {SILENCE_S:.0f}s tell")
    until = time.monotonic() + SILENCE_S
    while time.monotonic() < until:
        waits()
        time.sleep(LOOK_S)
        if (now := _newest(home)) != found:
            return now is not None and not now.has_ended
    return False


def _newest(home: Path) -> Holder | None:
    """Who holds a home, or held it last; None where nobody ever did."""
    found = max(home.glob(NAMES), default=None)
    if found is None:
        return None
    number = int(found.stem.removeprefix("lease-"))
    try:
        return Holder(**json.loads(found.read_text(encoding="utf-8")))
    except FileNotFoundError:  # its successor was quicker
        return _newest(home)
    except (ValueError, TypeError):  # it is just being made, or its maker was killed at that
        return Holder(number, "", "of an unknown number", 0, False)


def _make(home: Path, mine: Holder) -> bool:
    """Make the lease of a number, which only one can; whether it was this one."""
    try:
        with (home / _name(mine.number)).open("x", encoding="utf-8") as file:
            file.write(json.dumps(vars(mine)))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _name(number: int) -> str:
    return f"lease-{number:06d}.json"


def _refused(home: Path, found: Holder) -> SpecError:
    return SpecError(
        f"{home}: one job at a time may work here, but job {found.job} of Slurm does; wait for its end, or stop it "
        "with `cs330ray stop` where it was submitted"
    )
