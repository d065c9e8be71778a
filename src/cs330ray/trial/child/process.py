"""A process of one's own: started in its folder, heard line by line, ended whole."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import psutil

from cs330ray.checkpoints.local import Checkpoint, copy
from cs330ray.errors import ContractError, ProcessFailed, WorkerLost
from cs330ray.files import Scratch
from cs330ray.trial import environment as environment_of_trial
from cs330ray.trial.child.protocol import MOST_BYTES
from cs330ray.trial.child.report import CHECKPOINTS, RESUME, ROWS
from cs330ray.words import short

OF_WORDS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.E2BIG, errno.ENOTDIR, errno.ENAMETOOLONG}
GRACE_S = 3.0  # between SIGTERM and SIGKILL
LOOK_S = 0.05  # between two looks at what it has reported
DRAIN_S = 1.0  # for the last of what it wrote to stderr, which a process of its own may hold open
TAIL = 40  # lines of stderr that are kept
TAIL_LINE = 2000  # characters of each


class Child:
    """A process, its group, and its own directory with rows, checkpoints and temporary files."""

    def __init__(
        self,
        words: Callable[[Path | None], Sequence[str]],
        folder: Path,
        resume: Checkpoint | None,
        told: Mapping[str, str],
    ) -> None:
        """Start the words that are made with a copy of the checkpoint `resume`: the record's own is not to be touched.

        Raises ContractError where they cannot be started.
        """
        self.scratch = Scratch("child")
        own = self.scratch.path
        self._rows, self.checkpoints, temporary = own / "rows.jsonl", own / "checkpoints", own / "tmp"
        self._rows.touch()
        for directory in (self.checkpoints, temporary):
            directory.mkdir()
        environment = _environment(told) | {ROWS: str(self._rows), CHECKPOINTS: str(self.checkpoints)}
        environment["TMPDIR"] = str(temporary)
        copied = None
        if resume is not None:
            copied = own / "resume"
            copy(resume, copied)
            environment[RESUME] = str(copied)
        told_words = list(words(copied))
        try:
            self._process = subprocess.Popen(
                told_words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        except ValueError as error:  # a NUL
            raise ContractError(f"{short(told_words)} cannot be started: {error}; correct [command]") from None
        except OSError as error:
            if error.errno not in OF_WORDS:  # the machine is short of processes, memory or files: nobody's fault
                raise WorkerLost(f"no process can be started: {error.strerror}") from None
            raise ContractError(
                f"{short(told_words[0])} cannot be started: {error.strerror}; correct [command]"
            ) from None
        assert self._process.stderr is not None
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._ear = threading.Thread(target=self._hear, args=(self._process.stderr,), daemon=True)
        self._ear.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def lines(self) -> Iterator[bytes]:
        """Yield what it reports, line by line, until it has ended; an empty line while it is silent.

        Raises ContractError where a line has no end.
        """
        rest = b""
        with self._rows.open("rb") as file:
            seen = _state(self._rows)
            while True:
                ended = self._process.poll() is not None  # before the look: what it wrote is there by then
                before, seen = seen, _state(self._rows)
                if _written_anew(before, seen):
                    time.sleep(LOOK_S)  # an appended line shows its time before its size
                    if _written_anew(before, seen := _state(self._rows)):
                        raise ContractError(
                            f"{ROWS}: its file must be appended to, but was written anew; open it with 'a'"
                        )
                if read := file.read(MOST_BYTES):
                    *whole, rest = (rest + read).split(b"\n")
                    yield from (line for line in whole if line.strip())
                elif ended:
                    break
                else:
                    time.sleep(LOOK_S)
                    yield b""
                if len(rest) > MOST_BYTES:
                    raise ContractError(f"a line must have at most {MOST_BYTES} bytes, got more; report fewer metrics")
        if rest.strip() and self._process.returncode == 0:
            raise ContractError(
                f"its last line is cut off: {short(rest.decode(errors='replace'))}; end it by a newline"
            )

    def check(self) -> None:
        """Raise ProcessFailed, or MemoryError, where it has ended otherwise than with exit code 0."""
        code = self._process.wait()
        if code == 0:
            return
        self._ear.join(DRAIN_S)
        said = [line for line in self._tail if line.strip()]
        last = said[-1].strip() if said else "it wrote nothing to stderr"
        known = -code in set(signal.Signals)
        how = (
            f"exit code {code}"
            if code > 0
            else f"ended by {signal.Signals(-code).name if known else f'signal {-code}'}"
        )
        if "OutOfMemoryError" in last or last.startswith("MemoryError"):
            raise MemoryError(last)
        raise ProcessFailed(f"{how}: {last}", "\n".join(self._tail))

    def end(self) -> None:
        """End it and its group: SIGTERM, and SIGKILL after `GRACE_S` seconds for what is left."""
        group, others = self._process.pid, _descendants(self._process.pid)
        until = time.monotonic() + GRACE_S
        _signal(group, signal.SIGTERM)
        while (self._process.poll() is None or _lives(group)) and time.monotonic() < until:
            time.sleep(LOOK_S)
        _signal(group, signal.SIGKILL)
        for process in others:  # with sessions of their own, as torchrun's
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()
        self._ear.join(DRAIN_S)

    def _hear(self, stderr: IO[bytes]) -> None:
        """Pass stderr on to this process's own, and keep its end."""
        with contextlib.suppress(OSError, ValueError), stderr:
            rest = b""
            while read := os.read(stderr.fileno(), 1 << 16):
                with contextlib.suppress(OSError):
                    os.write(2, read)
                *whole, rest = (rest + read).split(b"\n")
                rest = rest[-TAIL_LINE:]
                self._tail.extend(line.decode(errors="replace")[:TAIL_LINE] for line in whole)
            if rest:
                self._tail.append(rest.decode(errors="replace"))


def _environment(told: Mapping[str, str]) -> dict[str, str]:
    """This process's environment as one of its own has it: with what it is `told`, its threads, and no rank."""
    found = {**os.environ, **told, "PYTHONUNBUFFERED": "1", "PATH": search_path()}
    for name in (RESUME, "RANK", "LOCAL_RANK", "WORLD_SIZE"):  # of who runs this process
        found.pop(name, None)
    if (threads := environment_of_trial.threads()) is not None:
        found |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return found


def search_path() -> str:
    """Where programs are looked for: first beside the Python that runs this, so that `python` is that one."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _state(file: Path) -> tuple[int, int, int]:
    """Which file it is, its size and time. Raises ContractError where it is gone."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        raise ContractError(f"{ROWS}: its file must be appended to, but is gone; open it with 'a'") from None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _written_anew(before: tuple[int, int, int], now: tuple[int, int, int]) -> bool:
    """Whether a file is another, or shorter, or was written to without growing."""
    return now[0] != before[0] or now[1] < before[1] or (now[1] == before[1] and now[2] != before[2])


def _descendants(process: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(process).children(recursive=True))
    except psutil.Error:
        return []


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _lives(group: int) -> bool:
    """Whether any process of a group is left, whose first has ended."""
    with contextlib.suppress(ChildProcessError):  # orphans that this process has adopted
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
