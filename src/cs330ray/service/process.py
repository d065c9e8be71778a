"""Where a trial's generator runs: in this very process, or wherever else offers the same few calls (`workers`)."""

import contextlib
import gc
import os
import platform
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from cs330ray.errors import Diverged
from cs330ray.service import memory, trainables
from cs330ray.service.messages import Assignment, Circumstances
from cs330ray.service.places import LOG
from cs330ray.service.records import Cause
from cs330ray.trial import Progress, Scores, Trainable
from cs330ray.words import typed_first_line

VERSIONS = ("torch", "numpy", "transformers", "peft", "accelerate", "ray")


class Runs(Protocol):
    """Who runs a trial's generator; one trial after another."""

    def take_up(self, assignment: Assignment) -> None:
        """Load the trainable and check the configuration of a trial."""

    def circumstances(self) -> Circumstances:
        """On what the trial runs."""
        ...

    def train(self, resume: Path | None) -> Iterator[Progress]:
        """Begin or resume the training."""
        ...

    def test(self, checkpoint: Path) -> Scores:
        """Score a checkpoint on the test split."""
        ...

    def leave(self) -> None:
        """Give back what the trial took."""

    def end(self) -> None:
        """End what was started to run trials."""


class Alone:
    """Runs a trial's generator in this process."""

    def __init__(self) -> None:
        self._assignment: Assignment | None = None
        self._trainable: Trainable | None = None
        self._config: Any = None

    def take_up(self, assignment: Assignment) -> None:
        """Load the trainable and check the configuration of a trial."""
        self._assignment = assignment
        self._trainable = trainables.load(assignment.trainable)
        settle(assignment.seed, assignment.terms.cpus)
        self._config = self._trainable.Config(**assignment.config)

    def circumstances(self) -> Circumstances:
        """On what the trial runs."""
        assert self._assignment is not None
        return Circumstances(
            **circumstances(),
            nodes=[ray.get_runtime_context().get_node_id()] if ray.is_initialized() else [],
            pid=os.getpid(),
            seed=self._assignment.seed,
            code=self._assignment.terms.code,
            data=self._assignment.terms.data,
        )

    def train(self, resume: Path | None) -> Iterator[Progress]:
        """Begin or resume the training, within the trial's memory."""
        assert self._trainable is not None
        assert self._assignment is not None
        self._watch(self._assignment)
        return self._trainable.train(self._config, self._assignment.seed, self._assignment.steps, resume)

    def test(self, checkpoint: Path) -> Scores:
        """Score a checkpoint on the test split, within the trial's memory."""
        assert self._trainable is not None
        assert self._assignment is not None
        settle(self._assignment.seed, self._assignment.terms.cpus)
        self._watch(self._assignment)
        return self._trainable.test(self._config, self._assignment.seed, checkpoint)

    def leave(self) -> None:
        """Give back the memory of the trial."""
        memory.leave()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def end(self) -> None:
        """Nothing: this process ends by itself."""

    def _watch(self, assignment: Assignment) -> None:
        if assignment.terms.memory_gib:
            memory.watch(assignment.terms.home, assignment.terms.memory_gib)


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
