"""What runs in a job of Slurm beside its study: it brings the ledger to this machine and back.

    python -m cs330ray.cluster.slurm.keeper HOME OWN FOLDER WORDS...

HOME is the study's, on the shared disk; OWN a folder of this machine, FOLDER that of the job; the words are those of
`cs330ray`. The ledger's copy in HOME is a minute old at most while the study runs, and the newest after its end. With
CS330RAY_LEDGER, a PostgreSQL for one, nothing is brought. The last thing that is written is the exit code, into
FOLDER/ended: 130 where a signal has stopped the study.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from cs330ray import files
from cs330ray.errors import Cs330rayError
from cs330ray.ledger import shared
from cs330ray.ledger.database import sqlite_url

PUT_S = 60.0
LOOK_S = 0.2
LEAVE_S = 15.0  # a cancelled job has half a minute: the newest copy of the ledger must be there by then
ENDED, INTERRUPTED = "ended", 130


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal came before the study had begun."""


class Signals:
    """Whether Slurm has asked this process to end."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.came = True

    def leave_if(self) -> None:
        """Raise Stopped where it has."""
        if self.came:
            raise Stopped


def main(home: Path, own: Path, folder: Path, words: Sequence[str]) -> int:
    """Run the study of a job; its exit code, which is written as well."""
    signals = Signals()
    try:
        meets = ["cs330ray.cluster.slurm.meet", os.environ["SLURM_JOB_NUM_NODES"]]
        code = _run(meets, os.environ, signals) or _kept(home, own, ["cs330ray", *words], signals)
    except Stopped:
        code = INTERRUPTED
    except Cs330rayError as error:
        sys.stderr.write(f"{error}\n")
        code = 2
    files.write_text(folder / ENDED, str(code))
    return code


def _kept(home: Path, own: Path, words: Sequence[str], signals: Signals) -> int:
    """Run the study with its ledger on this machine; its exit code."""
    environment = {**os.environ, "CS330RAY_HOME": str(home)}
    if os.environ.get("CS330RAY_LEDGER"):
        return _run(words, environment, signals)
    claim = shared.claim(home, _say, signals.leave_if)
    is_there = False
    try:
        ledger = claim.fetch(own, _say, signals.leave_if)
        environment["CS330RAY_LEDGER"] = sqlite_url(ledger)
        code = _run(words, environment, signals, lambda: _put(claim, ledger))
        is_there = not ledger.exists() or _put(claim, ledger)
        return code
    finally:
        claim.end() if is_there else claim.leave()


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
    module: Sequence[str], environment: Mapping[str, str], signals: Signals, puts: Callable[[], object] = lambda: None
) -> int:
    """Run a module of Python with its words, and call `puts` now and then; its exit code."""
    signals.leave_if()
    study = subprocess.Popen([sys.executable, "-m", *module], env=dict(environment))
    put_s, leaves_by_s = time.monotonic(), float("inf")
    try:
        while (code := study.poll()) is None:
            if signals.came and leaves_by_s == float("inf"):
                study.terminate()
                leaves_by_s = time.monotonic() + LEAVE_S
            if time.monotonic() > leaves_by_s:
                study.kill()
                leaves_by_s = float("inf")
            if time.monotonic() - put_s > PUT_S:
                puts()
                put_s = time.monotonic()
            time.sleep(LOOK_S)
    finally:
        study.kill()
        study.wait()
    return INTERRUPTED if signals.came and code != 0 else code if code >= 0 else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
