"""The bound on a trial's memory: a worker that exceeds it ends, and leaves a mark by which its trial fails.

A process keeps memory of the trials that it ran before. So only one that has run no other leaves the mark; from any
other the trial is taken up again by a fresh process, which decides.

The processes that it started count too, and theirs. What they share counts once: four forked workers of a DataLoader
over 2 GiB have 10 GiB of resident memory (RSS) among them, but hold 2 (the sum of their proportional shares, PSS). To
ask for the shares takes some 30 ms a GiB, so that it is done only where the resident memory exceeds the bound.
"""

import contextlib
import math
import os
import threading
import time
from pathlib import Path

import psutil

LOOK_S = 0.1
LIST_S = 1.0  # between two looks for new processes: each walks over all that the machine has
SHARE_OF_TIME = 0.05  # that asking for the shares may take, as long as it need not wait longer than
LONGEST_S = 1.0
GIB = 1024**3
MARK = "OUT_OF_MEMORY"


def watch(home: Path, limit_gib: float, *, marks: bool = True) -> None:
    """End this process once it holds more than `limit_gib` while the trial of `home` runs in it.

    Where several trials run in it, nobody knows whose memory it is: then it leaves no mark.
    """
    _Watch.begin(home, limit_gib, marks=marks)


def leave() -> None:
    """Watch no longer: the trial is over."""
    _Watch.home = None


def mark_of(home: Path) -> str | None:
    """What an earlier worker of the trial left when it was ended, or None."""
    return (home / MARK).read_text() if (home / MARK).exists() else None


class _Watch:
    """One thread a process, whichever trial it runs."""

    home: Path | None = None
    last: Path | None = None
    limit_gib = 0.0
    trials = 0
    thread: threading.Thread | None = None

    @classmethod
    def begin(cls, home: Path, limit_gib: float, *, marks: bool) -> None:
        cls.trials += (home != cls.last) if marks else 2  # never one again: this process has run others
        cls.home, cls.last, cls.limit_gib = home, home, limit_gib
        if cls.thread is None:
            cls.thread = threading.Thread(target=cls._look, daemon=True)
            cls.thread.start()

    @classmethod
    def _look(cls) -> None:
        tree, pause = _Tree(), threading.Event()
        while not pause.wait(LOOK_S):
            home, limit_gib = cls.home, cls.limit_gib
            if home is None or (held_gib := tree.beyond(limit_gib)) is None:
                continue
            among = f" in {tree.processes} processes" if tree.processes > 1 else ""
            try:
                if cls.trials == 1:
                    home.mkdir(parents=True, exist_ok=True)
                    (home / MARK).write_text(f"{held_gib:.2f} GiB{among}, but resources.memory allows {limit_gib:g}")
            finally:
                tree.end()


class _Tree:
    """This process and those that come from it, as long as their parents live."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._children: list[psutil.Process] = []
        self._list_again_s = self._ask_again_s = -math.inf

    @property
    def processes(self) -> int:
        """How many they were at the last look."""
        return 1 + len(self._children)

    def beyond(self, limit_gib: float) -> float | None:
        """What they hold, in GiB, where that is more than `limit_gib`."""
        now_s = time.monotonic()
        if now_s >= self._list_again_s:
            self._list_again_s = now_s + LIST_S
            self._children = self._descendants()
        held = _resident(self._own) + sum(map(_resident, self._children))
        if held > limit_gib * GIB and self._children:
            if now_s < self._ask_again_s:
                return None
            began_s = time.thread_time()
            held = sum(map(_share, [self._own, *self._children]))
            asked_s = time.thread_time() - began_s
            self._ask_again_s = time.monotonic() + min(asked_s / SHARE_OF_TIME, LONGEST_S)
        return held / GIB if held > limit_gib * GIB else None

    def end(self) -> None:
        """End them all, this process last."""
        for child in self._descendants():
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(1)

    def _descendants(self) -> list[psutil.Process]:
        try:
            found: list[psutil.Process] = self._own.children(recursive=True)
        except (psutil.Error, OSError):
            return []
        return found


def _resident(process: psutil.Process) -> int:
    """Resident memory, shared or not, in bytes; 0 of a process that has ended."""
    try:
        return int(process.memory_info().rss)
    except (psutil.Error, OSError):
        return 0


def _share(process: psutil.Process) -> int:
    """Its own memory and its share of what several have, in bytes; without the latter where only Linux tells it."""
    try:
        full = process.memory_full_info()
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return _resident(process)
    return int(getattr(full, "pss", full.uss))
