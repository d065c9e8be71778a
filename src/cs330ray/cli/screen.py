"""What a command prints, where nobody may read it: a pipe that was closed, a full disk, no screen at all.

A command that only prints ends there. One that has more to do (`lasting`) goes on without a screen, and says its last
words where they can still be read. Whatever goes to stderr is shown without secrets.
"""

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from cs330ray.words import redacted

TERMINAL = "/dev/tty"


class ScreenLost(Exception):  # noqa: N818 - what happened, not what went wrong
    """Nobody reads what this command prints; `number` is the system's error number."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.number = error.errno


class Screen:
    """A standard stream; what it cannot write any more goes nowhere, also what lies in its buffer."""

    def __init__(self, stream: TextIO, *, lasting: bool, hides: bool, lost: str | None = None) -> None:
        self._stream, self.lasting, self.hides, self.lost = stream, lasting, hides, lost

    def write(self, text: str) -> int:
        """Write a text. Raises ScreenLost where it cannot, unless the command goes on without."""
        if text == "":  # typer tries a stream with it, and a full disk would refuse that
            return 0
        try:
            self._stream.write(redacted(text) if self.hides else text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Write what lies in the buffer. Raises ScreenLost as `write` does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = error.strerror or str(error)
        with contextlib.suppress(OSError, ValueError):  # what stands for a stream in a test has no number
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if not self.lasting:
            raise ScreenLost(error)
        if not self.hides:
            sys.stderr.write(f"stdout: {self.lost}; the work goes on without a screen\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def settle() -> None:
    """Make stdout and stderr outlive whoever reads them, and take any character."""
    for number in (0, 1, 2):  # a closed one would be the number of the next file that is opened, the ledger for one
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream, lost = getattr(sys, name), None
        if isinstance(stream, Screen):
            stream.lasting = number == 2
            continue
        if stream is None:  # it was closed before this process began
            stream, lost = os.fdopen(number, "w", closefd=False), os.strerror(errno.EBADF)
        with contextlib.suppress(AttributeError, ValueError):  # what stands for a stream in a test
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Screen(stream, lasting=number == 2, hides=number == 2, lost=lost))


def last() -> None:
    """Have this command go on where nobody reads what it prints."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Screen):
            stream.lasting = True


def must_be_read(line: str) -> None:
    """Print a line; where stdout is gone on stderr, and where that is gone too on the terminal, if there is one."""
    for stream in (sys.stdout, sys.stderr):
        stream.write(f"{line}\n")
        stream.flush()
        if getattr(stream, "lost", None) is None:
            return
    with contextlib.suppress(OSError), Path(TERMINAL).open("w") as terminal:
        terminal.write(f"{line}\n")


def end(error: ScreenLost) -> int:
    """The exit code of a command whose reader is gone, as a shell has it; where the disk is, a line says so."""
    if error.number == errno.EPIPE:
        return 128 + 13  # SIGPIPE
    sys.stderr.write(f"stdout: expected to write the output, got: {error}; send it elsewhere\n")
    return 2
