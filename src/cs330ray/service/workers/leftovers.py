"""What a trial leaves running: the processes that it started, wherever they went since, and its threads.

A worker ends its descendants between two trials and before it ends. On Linux it is the parent of every orphan among
them. What outlives a worker, one that was killed, is told by a mark in its environment.
"""

import contextlib
import ctypes
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

MARK = "CS330RAY_TRIAL"  # in the environment of what a trial starts: the directory of its checkpoints
TERM_S = 1.0  # so long a process may take to end in order
KILLED_S = 5.0  # and so long one that was killed
PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Become the parent of every orphan among the descendants of this process, where there is such a thing (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def mark(home: Path) -> None:
    """Mark what is started from now on as the trial's whose checkpoints lie in `home`."""
    os.environ[MARK] = str(home.resolve())


def sweep() -> bool:
    """End what descends from this process; whether anything was left, or is: a thread that is none of Python's daemons.

    Python's own helpers of `multiprocessing` stay: they do no work, and end with this process.
    """
    helpers = {
        getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None),
        getattr(multiprocessing.forkserver._forkserver, "_forkserver_pid", None),
    }
    found = [process for process in descendants(psutil.Process()) if process.pid not in helpers]
    left = [process for process in found if _lives(process)]
    remove(found)
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    return bool(left) or any(not thread.daemon for thread in others)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """List what descends from a process; nothing where it is gone."""
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def of_trials(folder: Path) -> list[psutil.Process]:
    """List the processes of this machine that trials with checkpoints under `folder` have started, and their workers.

    Nobody may run such a trial meanwhile.
    """
    folder = folder.resolve()
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in own and _is_of(process, folder)]


def _is_of(process: psutil.Process, folder: Path) -> bool:
    """Whether a process has the mark, or is a worker or a fork of one, whose environment its title has overwritten."""
    try:
        marked = process.environ().get(MARK, "")
        if not marked and _is_worker(process):
            marked = str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except (psutil.Error, OSError):
        return False
    return bool(marked) and Path(marked).is_relative_to(folder)


def remove(processes: Sequence[psutil.Process]) -> None:
    """End processes: in order where they do so soon, but for workers, whose trials have left them."""
    left = list(processes)
    for last, patience_s in ((False, TERM_S), (True, KILLED_S)):
        for process in left:
            with contextlib.suppress(psutil.Error):
                (process.kill if last or _is_worker(process) else process.terminate)()
        _, left = psutil.wait_procs(left, timeout=patience_s)


def _is_worker(process: psutil.Process) -> bool:
    """Whether a process is one of Ray's. Raises psutil's errors."""
    return " ".join(process.cmdline()).startswith("ray::")


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def exit_within(seconds: float) -> threading.Timer:
    """End this process after so long, whatever its threads do, unless the timer is cancelled."""
    timer = threading.Timer(seconds, _exit)
    timer.daemon = True
    timer.start()
    return timer


@contextlib.contextmanager
def exit_unless_done(seconds: float) -> Iterator[None]:
    """End this process where what is done inside takes longer."""
    timer = exit_within(seconds)
    try:
        yield
    finally:
        timer.cancel()


def _exit() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
