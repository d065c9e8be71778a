"""What runs in a job of Slurm beside its study: it brings the ledger to this machine and back.

    python -m cs330ray.cluster.slurm.keeper HOME OWN FOLDER WORDS...

HOME is the study's, on the shared disk; OWN a folder of this machine, FOLDER that of the job; the words are those of
`cs330ray`. The ledger's copy in HOME is a minute old at most while the study runs, and the newest after its end; where
it cannot be put there, OWN keeps the ledger, with a file `not-copied` beside it. With CS330RAY_LEDGER, a PostgreSQL,
nothing is brought. The last thing that is written is the exit code, into FOLDER/ended: 130 where a signal has stopped
the study. SIGUSR1 leaves it as long as the time limit of a job allows, SIGTERM as long as Slurm gives a cancelled job.
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from cs330ray import files
from cs330ray.errors import Cs330rayError
from cs330ray.ledger.database import sqlite_url
from cs330ray.ledger.shared import home as shared

PUT_S = 60.0
LOOK_S = 0.2
LEAVES_S = {signal.SIGUSR1: 80.0, signal.SIGTERM: 15.0}  # so long may a study take that is told to end
TRIES, AGAIN_S = 6, 5.0  # to put the last copy
ENDED, NOT_COPIED, INTERRUPTED = "ended", "not-copied", 130


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal came before the study had begun."""


class Signals:
    """What Slurm has asked of this process."""

    def __init__(self) -> None:
        self.leaves_by_s: float | None = None  # when the study must have ended
        for number in LEAVES_S:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        by_s = time.monotonic() + LEAVES_S[signal.Signals(number)]
        self.leaves_by_s = by_s if self.leaves_by_s is None else min(by_s, self.leaves_by_s)

    def leave_if(self) -> None:
        """Raise Stopped where it was asked to end."""
        if self.leaves_by_s is not None:
            raise Stopped


def main(home: Path, own: Path, folder: Path, words: Sequence[str]) -> int:
    """Run the study of a job; its exit code, which is written as well."""
    signals = Signals()
    try:
        meets = ["cs330ray.cluster.slurm.meet", os.environ["SLURM_JOB_NUM_NODES"]]
        code = _run(meets, os.environ, signals) or _kept(home, own, ["cs330ray", *words], signals)
    except Stopped:
        code = INTERRUPTED
    except (Cs330rayError, OSError, sqlite3.Error) as error:
        sys.stderr.write(f"{error}\n" if isinstance(error, Cs330rayError) else f"{home}: {error}\n")
        code = 2
    files.write_text(folder / ENDED, str(code))
    return code


def _kept(home: Path, own: Path, words: Sequence[str], signals: Signals) -> int:
    """Run the study with its ledger on this machine; its exit code."""
    environment = {**os.environ, "CS330RAY_HOME": str(home)}
    if os.environ.get("CS330RAY_LEDGER"):
        return _run(words, environment, signals)
    claim = shared.claim(home, _say, signals.leave_if)
    try:
        ledger = claim.fetch(own, _say, signals.leave_if)
    except BaseException:
        claim.unused()
        raise
    had, put_s, is_there = ledger.exists(), time.monotonic(), False

    def tend() -> None:
        nonlocal put_s
        claim.check()
        if time.monotonic() - put_s > PUT_S:
            _put(claim, ledger)
            put_s = time.monotonic()

    try:
        code = _run(words, {**environment, "CS330RAY_LEDGER": sqlite_url(ledger)}, signals, tend)
        is_there = _put_last(claim, ledger) if ledger.exists() else not had
        return code if is_there else 1
    finally:
        claim.end(is_newest=is_there)


def _put_last(claim: shared.Claim, ledger: Path) -> bool:
    """Put the newest copy of the ledger into the home; whether it is there."""
    for left in reversed(range(TRIES)):
        if _put(claim, ledger):
            return True
        if left:
            time.sleep(AGAIN_S)
    ledger.with_name(NOT_COPIED).touch()
    _say(f"the newest ledger stays at {socket.gethostname()}:{ledger}; make room, and copy it into the home")
    return False


def _put(claim: shared.Claim, ledger: Path) -> bool:
    """Put a copy of the ledger into the home; whether it is there. Raises LedgerError where another job holds that."""
    try:
        if ledger.exists():
            claim.put(ledger)
    except (OSError, sqlite3.Error) as error:
        _say(f"{ledger}: the copy in the home stays as it was: {error}")
        return False
    return True


def _run(
    module: Sequence[str], environment: Mapping[str, str], signals: Signals, tends: Callable[[], None] = lambda: None
) -> int:
    """Run a module of Python with its words, and call `tends` again and again; its exit code."""
    signals.leave_if()
    study = subprocess.Popen([sys.executable, "-m", *module], env=dict(environment))
    told = False
    try:
        while (code := study.poll()) is None:
            if signals.leaves_by_s is not None:
                if not told:
                    study.terminate()
                    told = True
                if time.monotonic() > signals.leaves_by_s:
                    study.kill()
            tends()
            time.sleep(LOOK_S)
    finally:
        study.kill()
        study.wait()
    return INTERRUPTED if told and code != 0 else code if code >= 0 else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
