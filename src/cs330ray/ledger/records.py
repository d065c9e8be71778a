"""What the ledger holds, as plain records: endings, rows, checkpoints and trials."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cs330ray.errors import LedgerError
from cs330ray.spec.study import Cell, Study

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial  # not for the workers, which know the records alone

Ended = Literal["COMPLETE", "PRUNED", "FAIL"]
Asking = Literal["own", "common"]  # how a study draws: each cell on its own, as before, or points that all cells share
Cause = Literal[
    "pruned",  # the pruner stopped it
    "raised",  # its trainable raised
    "diverged",  # its loss stopped being finite
    "memory",  # it needed more memory than it may have, or than there is
    "lost",  # its worker was lost too often: it says nothing of the parameters
    "unscored",  # it did not reach a finite value of each objective
    "silent",  # it had no row for as long as resources.silence allows
    "stopped",  # a person gave it up: it says nothing of the parameters
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


@dataclass(frozen=True)
class Trial:
    """One trial as the ledger holds it."""

    cell: Cell
    number: int
    state: str  # RUNNING, COMPLETE, PRUNED or FAIL
    params: Mapping[str, Any]
    seed: int
    values: tuple[float, ...] | None  # of the objectives, in the study's order
    reason: str
    cause: Cause | None  # of its end; None while it is RUNNING and where it is COMPLETE
    traceback: str
    started_s: float
    ended_s: float | None
    steps: int  # the budget that it had, or has
    continues: int | None = None  # the trial of fewer steps that it goes on from
    continued_as: int | None = None  # the trial that supersedes it
    is_start: bool = False  # whether it is one of [start], or continues one


def continues(trial: "FrozenTrial") -> int | None:
    """The trial that one continues, or None."""
    found = trial.user_attrs.get("continues")
    return None if found is None else int(found)


def from_json(text: str) -> Any:
    """Read a text that the ledger holds; its value. Raises LedgerError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise LedgerError(
            f"ledger: each text must be JSON, but {text[:40]!r} is not ({error}); see `cs330ray restore --help`"
        ) from None


def started_at_s(frozen: "FrozenTrial") -> float:
    """Tell when a trial was entered, in seconds since the epoch."""
    assert frozen.datetime_start is not None
    return frozen.datetime_start.timestamp()


def trial_of(
    study: Study, cell: Cell, frozen: "FrozenTrial", seed: int, started_s: float, end: Any, continued_as: int | None
) -> Trial:
    """Join what Optuna holds of a trial with its row of our ends, if it has one; the trial."""
    worth = from_json(end.worth) if end is not None else None
    finite = worth is not None and all(math.isfinite(value) for value in worth)
    return Trial(
        cell=cell,
        number=frozen.number,
        state=end.state if end is not None else "RUNNING",
        params=frozen.params,
        seed=seed,
        values=tuple(worth) if worth is not None and finite else None,
        reason=end.reason if end is not None else "",
        cause=cause_in(end) if end is not None else None,
        traceback=end.traceback if end is not None else "",
        started_s=started_s,
        ended_s=end.wall_s if end is not None else None,
        steps=int(frozen.user_attrs.get("steps", study.budget.steps)),
        continues=continues(frozen),
        continued_as=continued_as,
        is_start="start" in frozen.user_attrs,
    )


# Ledgers of before -------------------------------------------------------------------------------------------------
#
# Their ends have no `cause` and their losses no `nodes`: both stand in the words of the reason alone, and are read from
# there.

CAUSES: Mapping[str, Cause] = {  # by how a reason began
    "diverged: ": "diverged",
    "raised: ": "raised",
    "out of memory": "memory",
    "worker lost": "lost",
}


def cause_of(reason: str, state: str) -> Cause | None:
    """Read the cause of an end from the words of its reason, as ledgers of before have it."""
    if state in ("COMPLETE", "PRUNED"):
        return "pruned" if state == "PRUNED" else None
    return next((cause for words, cause in CAUSES.items() if reason.startswith(words)), "unscored")


def nodes_of(reason: str) -> frozenset[str]:
    """Read the nodes of a loss from the words of its reason, as ledgers of before have them."""
    named = re.search(r" \[on ([0-9a-z ]+)\]$", reason)
    return frozenset(named[1].split()) if named else frozenset()


def cause_in(end: Any) -> Cause | None:
    """Read the cause of a row of `cs330ray_ends`, whichever version wrote it."""
    cause: Cause | None = getattr(end, "cause", None)
    return cause_of(end.reason, end.state) if cause is None else cause


def row_of(held: Any) -> Row:
    """Read a row of the table of rows."""
    return Row(held.step, from_json(held.metrics), held.wall_s)


def nodes_in(loss: Any) -> frozenset[str]:
    """Read the nodes of a row of `cs330ray_losses`, whichever version wrote it."""
    written = getattr(loss, "nodes", None)
    return nodes_of(loss.reason) if written is None else frozenset(from_json(written))
