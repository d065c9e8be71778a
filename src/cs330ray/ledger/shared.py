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
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cs330ray import files
from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import backup, lease
from cs330ray.ledger.database import Database, copied_whole, sqlite_url
from cs330ray.spec.places import LEDGER

BEAT_S = 10.0
SILENCE_S = 60.0  # without a beat, where Slurm does not answer, a holder is dead
LOOK_S = 0.5
ANSWER_S = 30.0  # of Slurm's own commands
NAMES = "lease-*.json"  # numbered: the highest counts, and a number is made once
AT_WORK = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"})


@dataclass(frozen=True)
class Holder:
    """A run of a job that holds a home, or held it."""

    number: int
    cluster: str
    job: str
    restarts: int  # of the job, when it took the home
    beats: int
    has_ended: bool  # and put the newest copy there before


def state_of(job: str) -> str | None:
    """The state of a job in Slurm's words, "" where Slurm knows none of this id; None where it does not answer."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True, timeout=ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "" if "nvalid job id" in done.stderr else None
    return done.stdout.strip()


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
        self._is_newest = is_newest  # what lies there, as far as anybody knows
        self._leaving = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Raise LedgerError where a later job has taken the home over."""
        found = _newest(self._home)
        if found is None or found.number != self._mine.number:
            raise LedgerError(
                f"{self._home}: one job at a time may write here, but another has taken the home over; nothing was "
                "overwritten, leave it to that one"
            )

    def fetch(self, own: Path, says: Callable[[str], None], waits: Callable[[], None]) -> Path:
        """Copy the home's ledger to a folder of this machine; where it lies, or is to be made.

        Raises LedgerError, and SpecError where somebody writes it outside of Slurm, which `waits` may take a minute.
        """
        there, here = self._home / LEDGER, own / LEDGER
        own.mkdir(parents=True, exist_ok=True)
        for left in own.glob(f"{LEDGER}*"):  # of an earlier run of this job
            left.unlink()
        if not there.exists():
            return here
        if Path(f"{there}-wal").exists():  # somebody has written it outside of Slurm, and may be at it
            lease.nobody_works(Database(sqlite_url(there), "follow"), "", "copied to a job's machine", says, waits)
            backup.into_one_file(there)
        try:
            copied_whole(there, own)
            backup.free_all(here, make_others=not self._is_newest)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{there}: the ledger must be copied to {own}, but {error}") from None
        return here

    def put(self, ledger: Path) -> None:
        """Put a whole copy of this machine's ledger in the place of the home's, by which nobody holds a study.

        Raises OSError or sqlite3.Error, and LedgerError as `check` does, or where the ledger is damaged.
        """
        copy = ledger.with_name("copy.db")  # SQLite works on the disks of this machine alone
        backup.copy_whole(ledger, copy)
        backup.free_all(copy, make_others=False)
        if (problem := backup.damage(copy)) is not None:
            raise LedgerError(backup.damaged(ledger, problem))
        with files.new_file(self._home / LEDGER) as partial:
            shutil.copyfile(copy, partial)
            self.check()

    def end(self) -> None:
        """Let the home go, with the newest copy of the ledger there."""
        self._leave(has_ended=True)

    def leave(self) -> None:
        """Let the home go as one that died: the newest copy is not there."""
        self._leave(has_ended=False)

    def _leave(self, *, has_ended: bool) -> None:
        self._leaving.set()
        self._beating.join()
        with contextlib.suppress(OSError):
            self._mine = dataclasses.replace(self._mine, has_ended=has_ended)
            self._write()

    def _beat(self) -> None:
        while not self._leaving.wait(BEAT_S):
            self._mine = dataclasses.replace(self._mine, beats=self._mine.beats + 1)
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        files.write_text(self._home / _name(self._mine.number), json.dumps(vars(self._mine)))


def claim(home: Path, says: Callable[[str], None], waits: Callable[[], None]) -> Claim:
    """Hold a home for this job.

    Raises SpecError where another job that lives holds it. One of which nobody knows is waited for; `waits` is called
    meanwhile, and may raise.
    """
    home.mkdir(parents=True, exist_ok=True)
    while True:
        before = _newest(home)
        if before is not None and _lives(home, before, says, waits):
            raise _refused(home, before)
        mine = _this_job(before.number + 1 if before is not None else 1)
        if not _make(home, mine):
            continue
        for left in home.glob(NAMES):
            if left.name < _name(mine.number):
                left.unlink(missing_ok=True)
        if _newest(home) == mine:  # a number is free again when a later one was made
            return Claim(home, mine, is_newest=before is None or before.has_ended)


def _this_job(number: int) -> Holder:
    return Holder(
        number, _cluster(), os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT") or 0), 0, False
    )


def _lives(home: Path, found: Holder, says: Callable[[str], None], waits: Callable[[], None]) -> bool:
    """Whether the holder of a home is at work."""
    if found.has_ended:
        return False
    if found.cluster and found.cluster == _cluster():
        if found.job == os.environ.get("SLURM_JOB_ID"):
            return False  # an earlier run of this very job: Slurm begins the next one after its end
        if (state := state_of(found.job)) is not None:
            return state in AT_WORK
    says(f"{home}: job {found.job} holds it, and Slurm does not say whether that runs; {SILENCE_S:.0f}s tell")
    until = time.monotonic() + SILENCE_S
    while time.monotonic() < until:
        waits()
        time.sleep(LOOK_S)
        if (now := _newest(home)) != found:
            return now is not None and not now.has_ended
    return False


def _cluster() -> str:
    """The name of the Slurm cluster that is asked here; empty where there is none."""
    if named := os.environ.get("SLURM_CLUSTER_NAME"):
        return named
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = [line.partition("=")[2].strip() for line in done.stdout.splitlines() if line.startswith("ClusterName")]
    return found[0] if found else ""


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
        return Holder(number, "", "of an unknown number", 0, 0, False)


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
        "with `cs330ray stop`"
    )
