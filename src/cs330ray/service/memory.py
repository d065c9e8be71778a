"""The bound on a trial's memory: a worker that exceeds it leaves a mark and ends; the trial then fails by that mark."""

import os
import threading
from pathlib import Path

import psutil

LOOK_S = 0.1
GIB = 1024**3
MARK = "OUT_OF_MEMORY"


class Exceeded(Exception):  # noqa: N818 - the end of a trial
    """A trial's worker was ended because it held more memory than a trial may."""


def watch(home: Path, limit_gib: float) -> None:
    """End this process once it holds more than `limit_gib`, with a mark in `home`; the trial's home tells whose."""
    _Watch.of_this_process(home, limit_gib)


def refuse_again(home: Path) -> None:
    """Raise Exceeded where an earlier worker of the trial left its mark."""
    if (home / MARK).exists():
        raise Exceeded((home / MARK).read_text())


class _Watch:
    """One thread a process, whichever trial it runs."""

    _home: Path | None = None
    _limit_gib = 0.0
    _thread: threading.Thread | None = None

    @classmethod
    def of_this_process(cls, home: Path, limit_gib: float) -> None:
        cls._home, cls._limit_gib = home, limit_gib
        if cls._thread is None:
            cls._thread = threading.Thread(target=cls._look, daemon=True)
            cls._thread.start()

    @classmethod
    def _look(cls) -> None:
        process, pause = psutil.Process(), threading.Event()
        while not pause.wait(LOOK_S):
            held_gib, home = process.memory_info().rss / GIB, cls._home
            if home is not None and held_gib > cls._limit_gib:
                home.mkdir(parents=True, exist_ok=True)
                (home / MARK).write_text(f"{held_gib:.2f} GiB, but resources.memory allows {cls._limit_gib:g}")
                os._exit(1)
