"""The process in which a trial trains: its seeds, threads and GPUs, its log, and what it says of itself."""

import contextlib
import os
import platform
import random
import socket
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cs330ray.errors import Diverged
from cs330ray.spec.places import LOG
from cs330ray.words import typed_first_line

VERSIONS = ("torch", "numpy", "transformers", "peft", "accelerate", "ray")

Cause = Literal["diverged", "memory", "raised"]  # those of a recorded ending that an error tells of


def circumstances() -> dict[str, Any]:
    """On what this process trains: host, device, threads, versions."""
    torch, asked = sys.modules.get("torch"), os.environ.get("CS330RAY_DEVICE")
    cuda = torch is not None and asked in (None, "", "cuda") and torch.cuda.is_available()
    without = "mps" if asked == "mps" else platform.processor() or "cpu"
    return {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if torch is not None and cuda else without,
        "threads": torch.get_num_threads() if torch is not None else 1,
        "python": platform.python_version(),
        "versions": {name: sys.modules[name].__version__ for name in VERSIONS if name in sys.modules},
    }


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line: what its trainable raised."""
    if isinstance(error, Diverged):
        return plain(f"diverged: {error}")
    text = typed_first_line(error)
    return plain(f"out of memory: {text}" if cause_of(error) == "memory" else f"raised: {text}")


def cause_of(error: Exception) -> Cause:
    """Why a trial failed that raised `error`: "diverged", "memory" or "raised"."""
    if isinstance(error, Diverged):
        return "diverged"
    memory_is_short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "memory" if memory_is_short else "raised"


def plain(text: str) -> str:
    """A text that every database takes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def see_no_more_gpus_than_asked(gpus: float) -> None:
    """Hide all GPUs from a process whose trials asked for none: on a cluster, Ray leaves them in sight."""
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def settle(seed: int, cpus: float) -> None:
    """Set what a trainable should not depend on but a library may: global seeds and the number of threads."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
        torch.set_num_threads(max(int(cpus), 1))


def log_into(home: Path) -> None:
    """Let all that this process writes from now on, whatever writes it, go into the log of a trial."""
    with contextlib.suppress(OSError):  # a disk that takes nothing: then it stays in the log before
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        home.mkdir(parents=True, exist_ok=True)
        with (home / LOG).open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Forgiving):
            setattr(sys, name, _Forgiving(getattr(sys, name)))


class _Forgiving:
    """A stream whose words are lost where the disk takes none: no reason for a trial to fail."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
