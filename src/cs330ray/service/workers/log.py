"""A trial's log: all that its process and its children write, in one file of bounded size.

The file stands behind descriptors 1 and 2 and is open for appending, so that the last words of a process that is killed
are in it. A thread takes the middle out of it while it grows.
"""

import contextlib
import fcntl
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TextIO

from cs330ray.spec.places import LOG

HEAD_BYTES = 256 * 1024  # that are kept of its beginning
TAIL_BYTES = 768 * 1024  # and of its end
MOST_BYTES = 2 * (HEAD_BYTES + TAIL_BYTES)  # at which the middle is taken out
LOOK_S = 1.0
LEFT_OUT = re.compile(rb"\n\.\.\. (\d+) bytes of this log are left out \.\.\.\n")


def log_into(home: Path) -> None:
    """Let all that this process writes from now on, whatever writes it, go into the log of a trial."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # whatever the trial before has put there
            stream.flush()
    bound()  # the one before
    with contextlib.suppress(OSError):  # a disk that takes nothing: then it stays in the log before
        home.mkdir(parents=True, exist_ok=True)
        with _beyond_standard(home / LOG) as handle:
            os.dup2(handle, 1)
            os.dup2(handle, 2)
        _Bound.watch(home / LOG)
    sys.stdout, sys.stderr = _Forgiving.into(1), _Forgiving.into(2)


def bound() -> None:
    """Bring the log that this process writes within its bounds now."""
    _Bound.trim()


def trim(log: Path) -> None:
    """Take the middle out of a log that is longer than `MOST_BYTES`, and say in its place how much that was.

    Head and tail stay in the same file, which processes have open; what one of them writes in this very moment may be
    lost. Raises OSError.
    """
    with log.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another worker of the trial is at it
            return
        size = os.fstat(file.fileno()).st_size
        if size <= MOST_BYTES:
            return
        handle = file.fileno()
        before = LEFT_OUT.match(os.pread(handle, 100, HEAD_BYTES))
        begins = HEAD_BYTES + (before.end() if before else 0)  # what was written since
        tail = os.pread(handle, size, max(begins, size - TAIL_BYTES))
        read = max(begins, size - TAIL_BYTES) + len(tail)
        gone = read - begins - len(tail) + (int(before[1]) if before else 0)
        text = b"\n... %d bytes of this log are left out ...\n" % gone + tail
        written = HEAD_BYTES + os.pwrite(handle, text, HEAD_BYTES)
        while more := os.pread(handle, size, read):  # what came meanwhile
            read += len(more)
            written += os.pwrite(handle, more, written)
        os.ftruncate(handle, written)


@contextlib.contextmanager
def _beyond_standard(log: Path) -> Iterator[int]:
    """Open a file for appending under a descriptor beyond 2: a trial that has closed 1 and 2 leaves them free."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if handle <= 2:
            handle, low = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3), handle
            os.close(low)
        yield handle
    finally:
        os.close(handle)


class _Bound:
    """One thread a process, which keeps the log that it writes now within bounds."""

    log: Path | None = None
    thread: threading.Thread | None = None
    at_it = threading.Lock()  # so that the last word on a log, when the next begins, is not left to a look under way

    @classmethod
    def watch(cls, log: Path) -> None:
        cls.log = log
        if cls.thread is None:
            cls.thread = threading.Thread(target=cls._look, daemon=True)
            cls.thread.start()

    @classmethod
    def trim(cls) -> None:
        log = cls.log
        with cls.at_it, contextlib.suppress(OSError):  # it is gone, or the disk takes nothing
            if log is not None and log.stat().st_size > MOST_BYTES:
                trim(log)

    @classmethod
    def _look(cls) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_S):
            cls.trim()


class _Forgiving:
    """A stream into a descriptor, whose words are lost where that takes none: no reason for a trial to fail.

    One for each descriptor as long as the process lives: what keeps one, as logging does, writes into the log of now.
    """

    _all: ClassVar[dict[int, "_Forgiving"]] = {}

    @classmethod
    def into(cls, handle: int) -> Any:
        """The stream into a descriptor, opened again where a trial has closed it."""
        found = cls._all.get(handle) or cls._all.setdefault(handle, cls(handle))
        if not _writes(found._stream):
            found._stream = _opened(handle)
        return found

    def __init__(self, handle: int) -> None:
        self._handle, self._stream = handle, _opened(handle)

    def write(self, text: str) -> int:
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._forgiven():
            self._stream.flush()

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        """Lose what cannot be written: kept in the stream's buffer, it would go into the log of the next trial."""
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self._stream.buffer.raw.close()  # type: ignore[attr-defined]
                self._stream = _opened(self._handle)
        except ValueError:  # it is closed, until the next trial
            pass

    def close(self) -> None:
        """Only flush: the next trial of this process writes here too."""
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _writes(stream: TextIO) -> bool:
    try:
        return not stream.closed
    except ValueError:  # it is detached
        return False


def _opened(handle: int) -> TextIO:
    return open(handle, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
