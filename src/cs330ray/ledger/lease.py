"""The lease: who runs a study. It lies in the ledger, so that it holds on every machine that shares the ledger.

A driver beats as long as it lives. One that died is succeeded: on its own machine at once, since its process is gone,
elsewhere when it has not beaten for a minute by the successor's clock. Wall times are never compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sql

from cs330ray.clock import wall_s
from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger.database import Database
from cs330ray.ledger.tables import LEASES, REQUESTS

BEAT_S = 5.0
WHOLE = ("", -1)  # the cell and the trial of a request that means the whole study
SILENCE_S = 60.0  # a driver on another machine that has not beaten for so long is dead
LOOK_S = 0.5
DYING_S = 1.0  # a process that was killed may take so long to go


@dataclass(frozen=True)
class Holder:
    """A process that holds a study, told from every other process of any time on any machine."""

    host: str
    place: str  # the boot of the machine and the namespace in which `pid` counts
    pid: int
    birth: str

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        return cls(socket.gethostname(), _place(), os.getpid(), birth_of(os.getpid()) or "")

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.place == _place()

    @property
    def lives_here(self) -> bool:
        """Whether it is a living process of this machine."""
        return self.is_here and birth_of(self.pid) == self.birth


def take(database: Database, study: str, owner: str, holder: str, instead_of: tuple[str, int] | None) -> bool:
    """Take a study that nobody holds, or from `instead_of` = (owner, beats) if that is still so; whether it was."""
    if instead_of is None:
        database.insert(LEASES, [{"study": study, "owner": owner, "holder": holder, "beats": 0}])
        found = holder_of(database, study)
        return found is not None and found.owner == owner
    where = (LEASES.c.study == study) & (LEASES.c.owner == instead_of[0]) & (LEASES.c.beats == instead_of[1])
    return database.execute(LEASES.update().where(where).values(owner=owner, holder=holder, beats=0)) == 1


def beat(database: Database, study: str, owner: str) -> bool:
    """Say that the owner of a lease lives; whether it is the owner still."""
    where = (LEASES.c.study == study) & (LEASES.c.owner == owner)
    return database.execute(LEASES.update().where(where).values(beats=LEASES.c.beats + 1)) == 1


def holder_of(database: Database, study: str) -> Any:
    """The lease of a study with `owner`, `holder` and `beats`, or None."""
    found = database.select(sql.select(LEASES).where(LEASES.c.study == study))
    return found[0] if found else None


def lives(database: Database, study: str) -> bool:
    """Whether somebody holds a study, as far as this machine can tell: elsewhere everybody lives."""
    found = holder_of(database, study)
    return found is not None and (_holder(found).lives_here or not _holder(found).is_here)


def free(database: Database, study: str, owner: str) -> None:
    """Let a lease go."""
    database.execute(LEASES.delete().where((LEASES.c.study == study) & (LEASES.c.owner == owner)))


def is_dead(row: Any) -> bool:
    """Whether the holder of a lease is known to be dead: of one on another machine only its silence can tell."""
    return _holder(row).is_here and not _holder(row).lives_here


def who(row: Any) -> str:
    """Name the holder of a lease: `process 7 on host`."""
    holder = _holder(row)
    return f"process {holder.pid}" + ("" if holder.is_here else f" on {holder.host}")


def ask_to_stop(database: Database, study: str, owner: str, cell: str = WHOLE[0], trial: int = WHOLE[1]) -> None:
    """Ask the driver that owns a lease to stop, or to give one trial up; no later driver takes it for its own."""
    row = {"study": study, "owner": owner, "cell": cell, "trial": trial, "wall_s": wall_s()}
    database.insert(REQUESTS, [row])


def withdraw(database: Database, study: str, owner: str) -> None:
    """Take back what the owner of a lease was asked."""
    database.execute(REQUESTS.delete().where((REQUESTS.c.study == study) & (REQUESTS.c.owner == owner)))


def nobody_works(
    database: Database, study: str, is_to_be: str, says: Callable[[str], None], waits: Callable[[], None]
) -> None:
    """Make sure that no driver is at work on any study of a ledger, but for `study`, which the caller holds.

    `is_to_be` says why: upgraded. Raises SpecError where one lives: on this machine its process tells, on another one
    its beats do, within a minute.
    """
    before, began = _others(database, study), time.monotonic()
    afar = [row for row in before.values() if not _holder(row).is_here]
    for row in afar:
        says(
            f"{study}: the ledger is to be {is_to_be}; is {row.study} run on {_holder(row).host}? {SILENCE_S:.0f}s tell"
        )
    while True:
        now = _others(database, study)
        for row in now.values():
            if _holder(row).lives_here or (not _holder(row).is_here and _beats(row) != _beats(before.get(row.study))):
                raise _at_work(study, row, is_to_be)
        if not afar or time.monotonic() - began > SILENCE_S:
            return
        waits()
        time.sleep(LOOK_S)


def _others(database: Database, study: str) -> dict[str, Any]:
    """The leases on all studies but one, by study."""
    return {row.study: row for row in database.select(sql.select(LEASES)) if row.study != study}


def _beats(row: Any) -> Any:
    return None if row is None else (row.owner, row.beats)


def _holder(row: Any) -> Holder:
    return Holder(**json.loads(row.holder))


def _at_work(study: str, row: Any, is_to_be: str) -> SpecError:
    return SpecError(
        f"{study}: the ledger must be {is_to_be}, and nobody else may write to it meanwhile, but {who(row)} runs "
        f"{row.study}; wait until that has ended, or stop it"
    )


class Lease:
    """A study that this process holds."""

    def __init__(self, database: Database, study: str, owner: str) -> None:
        self._database, self._study, self._owner = database, study, owner
        self._lost = threading.Event()
        self._leaving = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Raise LedgerError where another driver is known to have taken the study over."""
        if self._lost.is_set():
            raise LedgerError(
                f"{self._study}: one driver at a time may write, but another took the study over while this one was "
                "silent; nothing was overwritten, leave it to that one"
            )

    def fence(self) -> None:
        """Beat now, before a write that must not be made twice. Raises LedgerError like `check`."""
        if not beat(self._database, self._study, self._owner):
            self._lost.set()
        self.check()

    def asked(self) -> list[tuple[str, int]]:
        """Take what this driver has been asked to stop: the key of the cell and the trial, or WHOLE.

        What an earlier driver was asked, and did not live to hear, is removed with it.
        """
        asked = self._database.select(sql.select(REQUESTS).where(REQUESTS.c.study == self._study))
        for row in asked:
            keys = (key == getattr(row, key.name) for key in REQUESTS.primary_key.columns)
            self._database.execute(REQUESTS.delete().where(*keys))
        return [(str(row.cell), int(row.trial)) for row in asked if row.owner == self._owner]

    def end(self) -> None:
        """Let the study go."""
        self._leaving.set()
        self._beating.join()
        with contextlib.suppress(LedgerError):  # then a successor finds this process dead
            free(self._database, self._study, self._owner)

    def _beat(self) -> None:
        while not self._leaving.wait(BEAT_S):
            try:
                if not beat(self._database, self._study, self._owner):
                    self._lost.set()
                    return
            except LedgerError:  # whoever writes the ledger next says so
                self._database.failure = None


@contextlib.contextmanager
def held(
    database: Database,
    study: str,
    says: Callable[[str], None] = lambda _: None,
    waits: Callable[[], None] = lambda: None,
) -> Iterator[Lease]:
    """Hold a study.

    Raises SpecError where a living driver holds it. Who holds one on another machine and is silent is waited for;
    `waits` is called meanwhile, and may raise.
    """
    owner = uuid.uuid4().hex
    _take(database, study, owner, says, waits)
    lease = Lease(database, study, owner)
    try:
        yield lease
    finally:
        lease.end()


def _take(database: Database, study: str, owner: str, says: Callable[[str], None], waits: Callable[[], None]) -> None:
    me = json.dumps(vars(Holder.here()))
    began, seen = time.monotonic(), None
    while not take(database, study, owner, me, instead_of=None):
        found = holder_of(database, study)
        if found is None:
            continue  # it has just left
        holder, now = Holder(**json.loads(found.holder)), (found.owner, found.beats)
        waited_s = time.monotonic() - began
        if holder.is_here:
            if not holder.lives_here and take(database, study, owner, me, instead_of=now):
                return
            if holder.lives_here and waited_s > DYING_S:
                raise _refused(study, f"process {holder.pid}")
        elif seen not in (None, now):
            raise _refused(study, f"process {holder.pid} on {holder.host}")
        elif seen is None:
            says(f"{study}: process {holder.pid} on {holder.host} holds it; succeeded when silent for {SILENCE_S:.0f}s")
        elif waited_s > SILENCE_S and take(database, study, owner, me, instead_of=now):
            return
        seen = now
        waits()
        time.sleep(LOOK_S)


def _refused(study: str, who: str) -> SpecError:
    return SpecError(f"{study}: a study runs once at a time, but {who} runs it; wait, or stop that one")


def _place() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux alone has these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def birth_of(pid: int) -> str | None:
    """When a process began, by a clock that never jumps; None where it is not alive."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
