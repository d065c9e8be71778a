"""What runs beside a study while its driver lives: the mirror, a process that is started again when it dies."""

import contextlib
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

WAIT_S = 60.0  # for the mirror at the end: it may have begun a moment ago
CUT_WAIT_S = 2.0  # and where a signal or a fault ends the study: a person waits
LOOK_S = 0.2  # whether a person will not wait
AGAIN_S = 5.0  # between two starts of one that dies, doubled each time that it dies young
MOST_S = 120.0


class Hears(Protocol):
    """Who is told that the mirror is behind."""

    def says(self, line: str) -> None:
        """Hear a line that a person should read."""


class MirrorProcess:
    """`cs330ray sync STUDY --follow`, held by a pipe: it leaves when this process does, however that died."""

    def __init__(self, study: str, home: Path) -> None:
        self._study, self._home = study, home.resolve()
        self.log = home / study / "mirror.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = -math.inf
        self._again_s = AGAIN_S
        self._left_s = math.inf  # when it was first told to make its last pass

    def tend(self) -> None:
        """Start it where it is not running, but not too often."""
        if self._process is not None and self._process.poll() is None:
            return
        age_s = time.monotonic() - self._started_s
        if age_s < self._again_s:
            return
        self._again_s = min(2 * self._again_s, MOST_S) if age_s < 4 * self._again_s else AGAIN_S
        self.let_go()
        self._started_s, self._left_s = time.monotonic(), math.inf
        command = [sys.executable, "-m", "cs330ray", "sync", self._study, "--follow", "--until-eof"]
        with contextlib.suppress(OSError), self.log.open("a") as log:  # a disk that takes nothing: again later
            with contextlib.suppress(OSError):  # another owner's file, or a disk without modes
                os.fchmod(log.fileno(), 0o600)  # what MLflow says may quote what opens it
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "CS330RAY_HOME": str(self._home)},
                start_new_session=True,
            )

    def end(self, leaves: Callable[[], bool] = lambda: False) -> bool:
        """Let it make one more pass; whether MLflow agrees with the ledger then. Who `leaves` does not wait for it."""
        if self._process is None or self._process.poll() is not None:
            self._started_s = -math.inf
            self.tend()
        return self._leave(WAIT_S, leaves)

    def cut(self) -> bool:
        """Let one that has started make a last pass; whether MLflow agrees with the ledger as far as is known now.

        Where it was let go of before, that time counts.
        """
        return self._process is None or self._leave(CUT_WAIT_S)

    def _leave(self, wait_s: float, leaves: Callable[[], bool] = lambda: False) -> bool:
        """Let go of it, and wait so long; whether it ended well. One that takes longer ends by itself.

        It is not killed: MLflow makes its tables in steps that are no transactions, and half of them is no database.
        """
        process = self._process
        if process is None:
            return False
        self.let_go()
        until = self._left_s + wait_s
        while time.monotonic() < until and not leaves():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(LOOK_S) == 0
        if (code := process.poll()) is not None:
            return code == 0
        threading.Thread(target=process.wait, daemon=True).start()
        return False

    def let_go(self) -> None:
        """Close the pipe that holds it, at which it makes its last pass and ends."""
        self._left_s = min(self._left_s, time.monotonic())
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


class NoMirror:
    """Where no mirror is wanted."""

    def tend(self) -> None:
        """Do nothing."""

    def let_go(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def mirrored(
    study: str, home: Path, listener: Hears, *, wanted: bool, leaves: Callable[[], bool] = lambda: False
) -> Iterator[MirrorProcess | NoMirror]:
    """Keep the mirror running beside the study, and wait for it at the end, unless a person `leaves`."""
    if not wanted:
        yield NoMirror()
        return
    mirror, agrees = MirrorProcess(study, home), True
    try:
        yield mirror
    except BaseException:
        agrees = mirror.cut()
        raise
    else:
        agrees = mirror.end(leaves)
    finally:
        if not agrees:
            listener.says(f"MLflow is behind (see {mirror.log}); `cs330ray sync {study}` catches up")
