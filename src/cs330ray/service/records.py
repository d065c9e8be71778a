"""What the ledger holds, as plain records: endings, rows, checkpoints and trials."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial

from cs330ray.errors import LedgerError
from cs330ray.spec import Cell, Study

Ended = Literal["COMPLETE", "PRUNED", "FAIL"]
LOST = "worker lost"  # the reason for a FAIL that says nothing of the parameters


@dataclass(frozen=True)
class Ending:
    """How a trial ended, and why."""

    state: Ended
    reason: str = ""
    traceback: str = ""


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
class Trial:
    """One trial as the ledger holds it."""

    cell: Cell
    number: int
    state: str  # RUNNING, COMPLETE, PRUNED or FAIL
    params: Mapping[str, Any]
    seed: int
    values: tuple[float, ...] | None  # of the objectives, in the study's order
    reason: str
    traceback: str
    started_s: float
    ended_s: float | None
    steps: int  # the budget that it had, or has
    continues: int | None = None  # the trial of fewer steps that it goes on from
    continued_as: int | None = None  # the trial that supersedes it


def continues(trial: FrozenTrial) -> int | None:
    """The trial that one continues, or None."""
    found = trial.user_attrs.get("continues")
    return None if found is None else int(found)


def standing(history: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of a history that none continues, each in the place of the first that it goes back to."""
    last: dict[int, FrozenTrial] = {}  # by the first of each line
    first: dict[int, int] = {}
    for trial in history:
        before = continues(trial)
        first[trial.number] = trial.number if before is None else first[before]
        last[first[trial.number]] = trial
    return list(last.values())


def from_json(text: str) -> Any:
    """Read a text that the ledger holds; its value. Raises LedgerError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise LedgerError(
            f"ledger: each text must be JSON, but {text[:40]!r} is not ({error}); see `cs330ray restore --help`"
        ) from None


def started_at_s(frozen: FrozenTrial) -> float:
    """Tell when a trial was entered, in seconds since the epoch."""
    assert frozen.datetime_start is not None
    return frozen.datetime_start.timestamp()


def trial_of(
    study: Study, cell: Cell, frozen: FrozenTrial, seed: int, started_s: float, end: Any, continued_as: int | None
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
        traceback=end.traceback if end is not None else "",
        started_s=started_s,
        ended_s=end.wall_s if end is not None else None,
        steps=int(frozen.user_attrs.get("steps", study.budget.steps)),
        continues=continues(frozen),
        continued_as=continued_as,
    )
