"""Where a trial's generator runs: in this very process, or wherever else offers the same few calls (`workers`)."""

import gc
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

import ray

from cs330ray.service.messages import Assignment, Circumstances
from cs330ray.service.workers import memory
from cs330ray.trial import named, run
from cs330ray.trial.child.own import OwnProcess
from cs330ray.trial.contract import Progress, Scores, Trainable
from cs330ray.trial.environment import circumstances, settle


class Runs(Protocol):
    """Who runs a trial's generator; one trial after another."""

    def take_up(self, assignment: Assignment) -> None:
        """Load the trainable and check the configuration of a trial."""

    def circumstances(self) -> Circumstances:
        """On what the trial runs."""
        ...

    def train(self, resume: Path | None, begin_step: int) -> Generator[Progress]:
        """Begin or resume the training at a checkpoint of `begin_step`; rows that keep the contract."""
        ...

    def tests(self) -> bool:
        """Whether the trainable reads a test split."""
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
        self._trainable = named.load(assignment.trainable, assignment.command, frozenset(assignment.config))
        settle(assignment.seed, assignment.terms.cpus)
        self._config = self._trainable.Config(**assignment.config)

    def circumstances(self) -> Circumstances:
        """On what the trial runs."""
        assert self._assignment is not None
        terms = self._assignment.terms
        own = self._trainable.digest() if isinstance(self._trainable, OwnProcess) else None  # it may change meanwhile
        return Circumstances(
            **circumstances(),
            nodes=[ray.get_runtime_context().get_node_id()] if ray.is_initialized() else [],
            pid=os.getpid(),
            seed=self._assignment.seed,
            code=own or terms.code,
            data=own or terms.data,
            config=named.whole(self._config),
        )

    def train(self, resume: Path | None, begin_step: int) -> Generator[Progress]:
        """Begin or resume the training, within the trial's memory; rows that keep the contract."""
        assert self._trainable is not None
        assert self._assignment is not None
        self._watch(self._assignment)
        asked = self._assignment
        return run.train(self._trainable, self._config, asked.seed, asked.steps, resume, begin_step=begin_step)

    def tests(self) -> bool:
        """Whether the trainable reads a test split: a process of one's own may have none."""
        return bool(getattr(self._trainable, "tests", True))

    def test(self, checkpoint: Path) -> Scores:
        """Score a checkpoint on the test split, within the trial's memory; scores that keep the contract."""
        assert self._trainable is not None
        assert self._assignment is not None
        settle(self._assignment.seed, self._assignment.terms.cpus)
        self._watch(self._assignment)
        return run.scores(self._trainable.test(self._config, self._assignment.seed, checkpoint))

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
