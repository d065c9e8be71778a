"""The process in which a trial trains: its seeds, threads and GPUs, what it says of itself, and how it can end."""

import os
import platform
import random
import signal
import socket
import sys
import threading
import traceback
from types import FrameType
from typing import Any, Literal, Self

import numpy as np
from pydantic import ValidationError

from cs330ray.errors import ContractError, Diverged, ProcessFailed
from cs330ray.trial.declared import said
from cs330ray.words import redacted, typed_first_line

VERSIONS = ("torch", "numpy", "transformers", "peft", "accelerate", "ray")

LONGEST_TRACEBACK = 100_000  # characters that the record keeps of one
_EDGE = 10_000  # more than a secret has

Cause = Literal["diverged", "memory", "raised"]  # those of a recorded ending that an error tells of


def circumstances() -> dict[str, Any]:
    """On what this process trains: host, device, threads, versions."""
    torch, asked = sys.modules.get("torch"), os.environ.get("CS330RAY_DEVICE")
    cuda = torch is not None and asked in (None, "", "cuda") and torch.cuda.is_available()
    without = "mps" if asked == "mps" else platform.processor() or "cpu"
    return {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if torch is not None and cuda else without,
        "threads": torch.get_num_threads() if torch is not None else threads() or 1,
        "python": platform.python_version(),
        "versions": {name: sys.modules[name].__version__ for name in VERSIONS if name in sys.modules},
    }


def reason_of(error: BaseException) -> str:
    """Why a trial failed, in one line: what its trainable raised, or which promise it broke."""
    if isinstance(error, Diverged):
        return plain(f"diverged: {error}")
    if isinstance(error, ContractError | ProcessFailed):
        return plain(str(error))
    text = _of_config(error) if isinstance(error, ValidationError) else typed_first_line(error)
    return plain(f"out of memory: {text}" if cause_of(error) == "memory" else f"raised: {text}")


def reason_of_before(error: BaseException) -> str:
    """What versions of before recorded of an error, where it was raised: its last line, be that a note."""
    return plain(f"raised: {traceback.format_exception_only(error)[-1].strip().splitlines()[0]}")


def _of_config(error: ValidationError) -> str:
    """Say field, rule and value of what a pydantic model refused, in place of `1 validation error for Config`."""
    found, *more = error.errors(include_url=False)
    place = ".".join([error.title, *(str(part) for part in found["loc"])])
    others = f" (and {len(more)} more)" if more else ""
    return f"ValidationError: {place}: {' '.join(said(found).split())}{others}"


def cause_of(error: BaseException) -> Cause:
    """Why a trial failed that raised `error`: "diverged", "memory" or "raised"."""
    if isinstance(error, Diverged):
        return "diverged"
    memory_is_short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "memory" if memory_is_short else "raised"


def traceback_of(error: BaseException) -> str:
    """The traceback of an error, without its middle where it is longer than `LONGEST_TRACEBACK` characters.

    Of a process of one's own it is the end of what that wrote to stderr.
    """
    text = error.tail if isinstance(error, ProcessFailed) else "".join(traceback.format_exception(error))
    if len(text) <= LONGEST_TRACEBACK:
        return plain(text)
    half, left = LONGEST_TRACEBACK // 2, len(text) - LONGEST_TRACEBACK
    head = plain(text[: half + _EDGE])[:-_EDGE][:half]  # half a secret at the edge is not known as one
    tail = plain(text[-half - _EDGE :])[_EDGE:][-half:]
    return f"{head}\n... {left:,} characters left out ...\n{tail}"


def plain(text: str) -> str:
    """A text that every database takes, and everybody may read: the record and MLflow show it."""
    return storable(redacted(text))


def storable(text: str) -> str:
    """A text that every database takes: no lone surrogates, no NUL. It is the same whatever the environment holds."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def see_no_more_gpus_than_asked(gpus: float) -> None:
    """Hide all GPUs from a process whose trials asked for none: on a cluster, Ray leaves them in sight."""
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


_settled: list[int] = []  # the threads of the last `settle`


def threads() -> int | None:
    """With how many threads what this process starts is to compute; None before `settle`."""
    return _settled[-1] if _settled else None


def settle(seed: int, cpus: float) -> None:
    """Set what a trainable should not depend on but a library may: global seeds and the number of threads."""
    _settled[:] = [max(int(cpus), 1)]
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
        torch.set_num_threads(max(int(cpus), 1))


class Told:
    """Whether a signal has told this process to end: then what a trainable raises is no word of its own.

    SIGINT and SIGTERM do what they did before, which is to raise KeyboardInterrupt, or SystemExit in a worker of Ray's.
    Ctrl-C at a terminal does not reach those: Ray blocks SIGINT in them.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # signals go elsewhere
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(before := signal.getsignal(number)):  # else it ends the process at once, or does nothing
                self._before[number] = before
                signal.signal(number, self._note)

    def __call__(self) -> bool:
        """Whether one came."""
        return self._told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        self._before[number](number, frame)
