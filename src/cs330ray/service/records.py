"""What the ledger holds of a trial, as plain records: a worker reads them without any database."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Ended = Literal["COMPLETE", "PRUNED", "FAIL"]
Cause = Literal[
    "pruned",  # the pruner stopped it
    "raised",  # its trainable raised
    "diverged",  # its loss stopped being finite
    "memory",  # it needed more memory than it may have, or than there is
    "lost",  # its worker was lost too often: it says nothing of the parameters
    "unscored",  # it did not reach a finite value of each objective
]


@dataclass(frozen=True)
class Ending:
    """How a trial ended, and why."""

    state: Ended
    reason: str = ""  # for people, in one line
    traceback: str = ""
    cause: Cause | None = None  # None where it is COMPLETE, and only there

    def __post_init__(self) -> None:
        if (self.state == "COMPLETE") != (self.cause is None):
            raise ValueError(f"an ending must have a cause unless it is COMPLETE, but got {self.state}, {self.cause}")
        if (self.state == "PRUNED") != (self.cause == "pruned"):
            raise ValueError(f"what is pruned must be PRUNED and nothing else, but got {self.state}, {self.cause}")


@dataclass(frozen=True)
class Row:
    """One row of a trial: what it had reached after `step` outer steps."""

    step: int
    metrics: Mapping[str, float]
    wall_s: float  # seconds since the epoch, on the machine that trained


@dataclass(frozen=True)
class Kept:
    """A checkpoint as it was recorded: where it lies, the outer steps done in it, the digest of its manifest."""

    path: str  # a directory, or the address of its copy
    step: int
    digest: str


@dataclass(frozen=True)
class Loss:
    """The loss of a trial's worker: why, and on which nodes of a cluster."""

    reason: str  # for people, in one line
    nodes: frozenset[str]  # Ray's ids; none where there is no cluster
