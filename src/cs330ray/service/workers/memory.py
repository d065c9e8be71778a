"""The bound on a trial's memory: a worker that exceeds it ends, and leaves a mark by which its trial fails.

A process keeps memory of the trials that it ran before. So only one that has run no other leaves the mark; from any
other the trial is taken up again by a fresh process, which decides.
"""

import os
import threading
from pathlib import Path

import psutil

LOOK_S = 0.1
GIB = 1024**3
MARK = "OUT_OF_MEMORY"


def watch(home: Path, limit_gib: float) -> None:
    """End this process once it holds more than `limit_gib` while the trial of `home` runs in it."""
    _Watch.begin(home, limit_gib)


def leave() -> None:
    """Watch no longer: the trial is over."""
    _Watch.home = None


def mark_of(home: Path) -> str | None:
    """What an earlier worker of the trial left when it was ended, or None."""
    return (home / MARK).read_text() if (home / MARK).exists() else None


def forget(home: Path) -> None:
    """Remove the mark of another trial that lay in this place."""
    (home / MARK).unlink(missing_ok=True)


class _Watch:
    """One thread a process, whichever trial it runs."""

    home: Path | None = None
    last: Path | None = None
    limit_gib = 0.0
    trials = 0
    thread: threading.Thread | None = None

    @classmethod
    def begin(cls, home: Path, limit_gib: float) -> None:
        cls.trials += home != cls.last
        cls.home, cls.last, cls.limit_gib = home, home, limit_gib
        if cls.thread is None:
            cls.thread = threading.Thread(target=cls._look, daemon=True)
            cls.thread.start()

    @classmethod
    def _look(cls) -> None:
        process, pause = psutil.Process(), threading.Event()
        while not pause.wait(LOOK_S):
            held_gib, home = process.memory_info().rss / GIB, cls.home
            if home is None or held_gib <= cls.limit_gib:
                continue
            try:
                if cls.trials == 1:
                    home.mkdir(parents=True, exist_ok=True)
                    (home / MARK).write_text(f"{held_gib:.2f} GiB, but resources.memory allows {cls.limit_gib:g}")
            finally:
                os._exit(1)
