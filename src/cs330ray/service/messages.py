"""The two messages between the driver and its workers: an Assignment goes out, News come back.

Both are plain, frozen and picklable, and neither holds a secret: Tune writes what it passes on to the disk. Tune's own
dictionaries, a trial's configuration and a result, hold one value each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cs330ray.ledger.records import Ending, Kept, Row
from cs330ray.spec.command import Command
from cs330ray.trial.contract import Scores

ASSIGNMENT, NEWS = "assignment", "news"  # the one key of ours in Tune's configuration, and in its result


@dataclass(frozen=True)
class Facts:
    """On what a node would run trials."""

    python: str  # version
    versions: Mapping[str, str]  # of the dependencies that are installed
    cuda: str  # the one that torch was built for, or none; empty where there is no GPU
    free_bytes: int  # where the checkpoints go
    data: Mapping[str, str]  # digest by cell, or what is wrong with them


@dataclass(frozen=True)
class NodeTerms:
    """What a node of a cluster must have before it may run a trial."""

    facts: Facts  # what every node must have
    prepares: Mapping[str, Mapping[str, Any]]  # the configuration that the data are prepared for, by cell key
    command: Command | None = None  # of the study


@dataclass(frozen=True)
class Terms:
    """On what terms a trial runs: where its files lie, how often it reports, what it may use, under which digests."""

    home: Path  # the directory of its checkpoints
    place: str | None  # of their copies in the store; None where checkpoints stay on the disk
    checkpoint_s: float  # seconds between two checkpoints
    batch_s: float  # seconds for which rows are collected before they are sent
    prune_every: int  # the first row at or past each multiple of it is sent at once, for the pruner; 0: none
    cpus: float  # of each worker
    gpus: float  # of each worker
    workers: int  # processes that train together
    memory_gib: float | None  # the most that a worker may hold; None: no bound
    code: str  # digest of the code
    data: str  # digest of the data
    node: NodeTerms | None  # what its node must have; None where there is no cluster

    def taken(self) -> dict[str, float]:
        """What the trial takes as long as it is under way, as the ledger keeps it: CPUs and GPUs of all workers."""
        return {"cpus": self.cpus * self.workers, "gpus": self.gpus * self.workers}


@dataclass(frozen=True)
class Continuation:
    """What a worker must know of the trial of fewer steps that a trial continues."""

    after_step: int  # the step of that trial's last row
    begin_at: str | None  # its last checkpoint, a directory or the address of a copy; None where none is left


@dataclass(frozen=True)
class Assignment:
    """One trial for one worker."""

    cell: str  # key of the cell
    trial: int  # number within the cell
    trainable: str  # name, as `trainables.load` takes it
    config: Mapping[str, Any]  # every hyperparameter that the study fixes or has asked
    seed: int  # of the training
    steps: int  # outer steps to train
    test: bool  # whether it is scored on the test split at the end
    recorded_step: int  # the step of the last row that the ledger holds, 0 where it holds none
    begun: bool  # whether the ledger knows of a start
    continues: Continuation | None  # the trial that it continues, or None
    terms: Terms  # places, resources and digests
    command: Command | None = None  # how the trainable is started, where it is a process of one's own
    is_start: bool = False  # whether the study file gave its configuration: no pruner stops it
    beside: tuple["Assignment", ...] = ()  # the trials that train as one computation with it

    @property
    def members(self) -> tuple["Assignment", ...]:
        """Itself, and those that train beside it."""
        return (self, *self.beside)

    def taken(self, among: int = 1) -> dict[str, float]:
        """What it takes as long as it is under way `among` so many, as the ledger keeps it: CPUs and GPUs."""
        return {name: amount / among for name, amount in self.terms.taken().items()}


@dataclass(frozen=True)
class Circumstances:
    """On what a trial runs."""

    host: str  # name of the machine
    device: str  # name of the GPU, or of the processor
    threads: int  # of torch
    python: str  # version
    versions: Mapping[str, str]  # of the packages that are loaded
    nodes: Sequence[str]  # Ray's ids of the nodes of all workers
    pid: int  # of the process that writes the checkpoints
    seed: int  # of the training
    code: str  # digest of the code
    data: str  # digest of the data
    config: Mapping[str, Any]  # every hyperparameter, defaults too, as JSON has them
    workers: Sequence[str] | None = None  # hosts by rank, where several processes train
    together: Mapping[str, Any] | None = None  # the `seeds` of those beside it, and the `proof` of equal numbers


@dataclass(frozen=True)
class Start:
    """A trial was started, or taken up again."""

    resumed_from_step: int | None  # the step of the checkpoint that it began at; None from scratch
    began_s: float  # seconds since the epoch, on the machine that trains
    circumstances: Circumstances  # on what it runs

    def recorded(self) -> dict[str, Any]:
        """Lay the start out as the ledger keeps it; a dictionary that JSON has."""
        seldom = [("workers", None), ("together", None)]
        on = {name: value for name, value in asdict(self.circumstances).items() if (name, value) not in seldom}
        return {"resumed_from_step": self.resumed_from_step, "began_s": self.began_s, **on}


@dataclass(frozen=True)
class Untested:
    """A test that failed: it takes nothing from the training."""

    reason: str  # in one line
    traceback: str  # empty where there is none


@dataclass(frozen=True)
class News:
    """What has happened to a trial since the last news of it; a field that says nothing is None."""

    start: Start | None = None  # it was started, or taken up again
    checkpoint: Kept | None = None  # its newest checkpoint, by the place where it will be found
    rows: Sequence[Row] = ()  # by step
    unsaved: str | None = None  # why no checkpoint can be written, or read
    waits: Literal["begin", "end"] | None = None  # what it cannot do without that checkpoint
    saves: Literal[True] | None = None  # the checkpoint of its newest row is the next news, before it trains on
    tests: Literal[True] | None = None  # it has trained to its end, and is scored on the test split from now on
    scores: Scores | None = None  # what it reached on the test split
    untested: Untested | None = None  # why that is not known
    end: Ending | None = None  # how it ended; it is the last news
    beside: tuple["News", ...] = ()  # what has happened to those that train beside it, in their order
    parts: str | None = None  # why they part: each goes on alone; "" where they have trained to their end
    unequal: Literal[True] | None = None  # they part since together their numbers would be others

    @property
    def members(self) -> tuple["News", ...]:
        """The news of all that train together."""
        return (self, *self.beside)


def as_config(assignment: Assignment) -> dict[str, Any]:
    """Wrap an assignment as Tune's configuration of a trial."""
    return {ASSIGNMENT: assignment}


def assigned(config: Mapping[str, Any]) -> Assignment:
    """Take the assignment out of Tune's configuration of a trial."""
    assignment = config[ASSIGNMENT]
    assert isinstance(assignment, Assignment)
    return assignment


def as_result(news: News) -> dict[str, Any]:
    """Wrap news as a result of Tune's, which says whether the trial is over."""
    return {NEWS: news, "done": news.end is not None or news.parts is not None}


def news_of(result: Mapping[str, Any]) -> News:
    """Take the news out of a result of Tune's."""
    news = result[NEWS]
    assert isinstance(news, News)
    return news
