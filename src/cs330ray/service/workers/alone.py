"""Where a trial's generator runs: in this very process, or wherever else offers the same few calls (`workers`)."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import ray

from cs330ray.service.messages import Assignment, Circumstances
from cs330ray.service.workers import memory
from cs330ray.trial import named
from cs330ray.trial.contract import Progress, Scores, Trainable
from cs330ray.trial.environment import circumstances, settle


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
        self._trainable = named.load(assignment.trainable)
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
