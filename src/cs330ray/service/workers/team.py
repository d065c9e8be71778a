"""A trial over several processes: the same generator in every worker of a team, in lock-step; rank 0 speaks for all.

The workers stand in the bundles of the trial's placement group, which Tune made and frees. They outlive the trial, so
that the next one need not start Python, torch and a process group again. `cs330ray.parallel` is what they share.
"""

import contextlib
import functools
import gc
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cs330ray.checkpoints import local
from cs330ray.checkpoints.local import DiskFault
from cs330ray.errors import ContractError, WorkerLost
from cs330ray.quiet import quiet
from cs330ray.service.machines import fitness
from cs330ray.service.messages import Assignment, Circumstances
from cs330ray.service.workers import leftovers
from cs330ray.service.workers.alone import Alone
from cs330ray.service.workers.failure import Failed, failed_by
from cs330ray.service.workers.log import log_into
from cs330ray.trial.contract import Progress, Scores
from cs330ray.trial.environment import Told, see_no_more_gpus_than_asked
from cs330ray.words import first_line

PATIENCE_S = 10.0  # how long the others may take to fail, too, once one has failed


@dataclass(frozen=True)
class Answer:
    """What a worker says: a value, or why there is none."""

    value: Any = None
    error: WorkerLost | DiskFault | Failed | None = None

    @property
    def kind(self) -> str:
        """The type of what was raised."""
        return self.error.kind if isinstance(self.error, Failed) else type(self.error).__name__


@dataclass(frozen=True)
class Place:
    """Where a worker stands."""

    node: str
    address: str
    port: int  # free when asked


class Team:
    """The workers of a trial as one process; see `process.Runs`."""

    def __init__(self, workers: int, cpus: float, gpus: float) -> None:
        self._size, self._cpus, self._gpus = workers, cpus, gpus
        self._workers: Sequence[Any] = ()  # by rank
        self._away = False  # whether some stand on other nodes, with disks of their own

    def take_up(self, assignment: Assignment) -> None:
        """Have every worker load the trainable and check the configuration of a trial."""
        if not all(self._all("sweep")):
            self.end()
        if not self._workers:
            self._start()
        self._all("take_up", assignment)

    def circumstances(self) -> Circumstances:
        """On what rank 0 runs, and the hosts of all."""
        each: Sequence[Circumstances] = self._all("circumstances")
        nodes = [node for worker in each for node in worker.nodes]
        return replace(each[0], workers=[worker.host for worker in each], nodes=nodes)

    def tests(self) -> bool:
        """Whether the trainable reads a test split."""
        return True

    def train(self, resume: Path | None, begin_step: int) -> Generator[Progress]:
        """Begin or resume the training in all workers; a moment of rank 0's after each step that all have taken."""
        self._all("train", *self._sent(resume), begin_step)
        try:
            while True:
                moments = self._all("next")
                steps = [None if moment is None else moment[0] for moment in moments]
                if len(set(steps)) > 1:
                    self.end()
                    raise ContractError(f"all workers must yield at the same steps, got {_in_words(steps)}")
                if moments[0] is None:
                    return
                step, metrics = moments[0]
                yield Progress(step, metrics, self._save)
        finally:
            self._at_the_end("stop")

    def test(self, checkpoint: Path) -> Scores:
        """Score a checkpoint on the test split, each worker its share."""
        scores: Scores = self._all("test", *self._sent(checkpoint))[0]
        return scores

    def leave(self) -> None:
        """Have every worker give back the memory of the trial."""
        self._at_the_end("leave")

    def end(self) -> None:
        """End the workers."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = ()

    def _at_the_end(self, call: str) -> None:
        """Tell the workers that are left: one that is lost by now is no matter of the trial that is over."""
        with contextlib.suppress(WorkerLost):
            self._all(call)

    def _save(self, directory: Path) -> None:
        self._answers([self._workers[0].save.remote(str(directory))])

    def _start(self) -> None:
        group, here = ray.util.get_current_placement_group(), ray.get_runtime_context().get_node_id()
        options: list[dict[str, Any]] = [{"num_cpus": self._cpus, "num_gpus": self._gpus} for _ in range(self._size)]
        if group is not None:
            for index, bundle in enumerate(options):
                bundle["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=index
                )
        self._workers = [ray.remote(Worker).options(**bundle).remote(self._gpus) for bundle in options]
        found = zip(self._all("place"), self._workers, strict=True)
        # Rank 0 writes checkpoints, so it stands on this node, as one does: the group's first bundle is this process's.
        places, self._workers = zip(*sorted(found, key=lambda one: (one[0].node != here, one[0].node)), strict=True)
        self._away = any(place.node != here for place in places)
        address = places[0].address if self._away else "127.0.0.1"
        self._answers(
            [worker.join.remote(rank, self._size, address, places[0].port) for rank, worker in enumerate(self._workers)]
        )

    def _sent(self, checkpoint: Path | None) -> tuple[str | None, Any]:
        """A checkpoint's place, and where workers stand on other nodes its files."""
        if checkpoint is None:
            return None, None
        if not self._away:
            return str(checkpoint), None
        held = [file for file in checkpoint.rglob("*") if file.is_file()]
        return str(checkpoint), ray.put({str(file.relative_to(checkpoint)): file.read_bytes() for file in held})

    def _all(self, call: str, *arguments: Any) -> list[Any]:
        """What each worker answers, by rank."""
        return self._answers([getattr(worker, call).remote(*arguments) for worker in self._workers])

    def _answers(self, asked: Sequence[Any]) -> list[Any]:
        """The values of all answers. Raises the error that came first, WorkerLost where a worker is gone.

        A worker that fails alone leaves the others waiting for it: such a team is ended, and the next trial starts one.
        """
        waiting, failed, until = list(asked), list[Answer](), None
        while waiting:
            left_s = None if until is None else max(until - time.monotonic(), 0.0)
            done, waiting = ray.wait(waiting, num_returns=1, timeout=left_s)
            if not done:
                break
            try:
                answer = ray.get(done[0])
            except ray.exceptions.RayError as error:
                self.end()
                raise WorkerLost(f"one of {self._size} workers is gone: {first_line(error)}") from None
            if answer.error is not None:
                failed.append(answer)
                until = until or time.monotonic() + PATIENCE_S
        if failed:
            first = min(failed, key=lambda answer: isinstance(answer.error, WorkerLost))  # who misses another says less
            assert first.error is not None
            together = len(failed) == len(asked) and len({answer.kind for answer in failed}) == 1
            if not together or isinstance(first.error, WorkerLost):
                self.end()
            raise first.error
        return [ray.get(one).value for one in asked]


def _in_words(steps: Sequence[int | None]) -> str:
    return ", ".join("the end" if step is None else str(step) for step in steps)


def share_what_is_free() -> None:
    """Let the Ray tasks and actors that a trial starts run on what the machine has free.

    In the trial's placement group, which the trial itself fills, they would wait for ever.
    """
    ray._private.worker.Worker.should_capture_child_tasks_in_placement_group = False


def _answered(call: Callable[..., Any]) -> Callable[..., Answer]:
    """Have a call of a worker answer where it would raise: what leaves an actor as an exception loses its type."""

    @functools.wraps(call)
    def answers(worker: "Worker", *arguments: Any) -> Answer:
        try:
            return Answer(call(worker, *arguments))
        except (WorkerLost, DiskFault) as error:
            return Answer(error=error)
        except BaseException as error:  # what a trainable raises is a result
            if worker.told():
                raise
            return Answer(error=failed_by(error))

    return answers


class Worker:
    """One of a team: a process that runs its share of one trial after another."""

    def __init__(self, gpus: float) -> None:
        quiet()
        leftovers.adopt()
        share_what_is_free()
        see_no_more_gpus_than_asked(gpus)
        self._runs = Alone()
        self.told = Told()
        self._rows: Generator[Progress] | None = None
        self._latest: Progress | None = None
        self._fetched: tempfile.TemporaryDirectory[str] | None = None  # of a checkpoint that lies on another node

    @_answered
    def place(self) -> Place:
        """Where this worker stands."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return Place(ray.get_runtime_context().get_node_id(), address, probe.getsockname()[1])

    @_answered
    def join(self, rank: int, workers: int, address: str, port: int) -> None:
        """Meet the others of the team."""
        from cs330ray.training import parallel  # torch is not for the processes that only lead

        parallel.join(rank, workers, address, port)

    @_answered
    def sweep(self) -> bool:
        """End what the trial before has left; whether there was nothing."""
        return not leftovers.sweep()

    @_answered
    def take_up(self, assignment: Assignment) -> None:
        """Load the trainable and check the configuration of a trial. Raises NodeUnfit."""
        leftovers.mark(assignment.terms.home)
        log_into(assignment.terms.home)
        fitness.gate(assignment)
        self._runs.take_up(assignment)
        gc.freeze()  # see `TrialActor`

    @_answered
    def circumstances(self) -> Circumstances:
        """On what this worker runs."""
        return self._runs.circumstances()

    @_answered
    def train(self, resume: str | None, files: Mapping[str, bytes] | None, begin_step: int) -> None:
        """Begin or resume the training; nothing is trained yet."""
        self._rows = self._runs.train(self._here(resume, files), begin_step)

    @_answered
    def next(self) -> tuple[int, Mapping[str, float]] | None:
        """Train to the next moment: its step and metrics; None where there is no other."""
        assert self._rows is not None
        self._latest = next(self._rows, None)
        return None if self._latest is None else (self._latest.step, self._latest.metrics)

    @_answered
    def save(self, directory: str) -> None:
        """Write the moment at which the training stands."""
        assert self._latest is not None
        with local.disk_faults(Path(directory)):
            assert self._latest.save is not None
            self._latest.save(Path(directory))

    @_answered
    def stop(self) -> None:
        """Leave the training."""
        rows, self._rows, self._latest = self._rows, None, None
        if rows is not None:
            rows.close()

    @_answered
    def test(self, checkpoint: str, files: Mapping[str, bytes] | None) -> Scores:
        """Score a checkpoint on the test split."""
        place = self._here(checkpoint, files)
        assert place is not None
        return self._runs.test(place)

    @_answered
    def leave(self) -> None:
        """Give back the memory of the trial."""
        self._fetched = None
        self._runs.leave()

    def _here(self, checkpoint: str | None, files: Mapping[str, bytes] | None) -> Path | None:
        """A checkpoint that can be read here, made of its files where it lies on another node."""
        if files is None:
            return None if checkpoint is None else Path(checkpoint)
        self._fetched = tempfile.TemporaryDirectory(prefix="cs330ray-")
        for name, content in files.items():
            (Path(self._fetched.name) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(self._fetched.name) / name).write_bytes(content)
        return Path(self._fetched.name)
