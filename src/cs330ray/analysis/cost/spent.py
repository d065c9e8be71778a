"""What has been spent: for how long each trial was under way, and what it took meanwhile, by the record."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cs330ray.ledger.ledger import Ledger
from cs330ray.spec.study import Cell, Study
from cs330ray.spec.tables import Processor


@dataclass(frozen=True)
class Effort:
    """What one trial has taken so far, in all its attempts, those that were lost or cut too."""

    seconds: float = 0.0  # under way
    cpu_s: float = 0.0  # seconds of one CPU
    gpu_s: float = 0.0  # seconds of one GPU

    def of(self, processor: Processor) -> float:
        """Seconds of one processor of a kind."""
        return self.gpu_s if processor == "gpu" else self.cpu_s


def total(efforts: Iterable[Effort]) -> Effort:
    """Add efforts."""
    some = list(efforts)
    return Effort(sum(each.seconds for each in some), sum(e.cpu_s for e in some), sum(e.gpu_s for e in some))


def taken(study: Study) -> dict[str, float]:
    """What one trial of a study takes while it is under way, by the study file: all its CPUs and GPUs."""
    wanted = study.resources
    return {"cpus": wanted.cpus * wanted.workers, "gpus": wanted.gpus * wanted.workers}


def efforts(ledger: Ledger, study: Study, cell: Cell) -> dict[int, Effort]:
    """What each trial of a cell that was started has taken, by its number."""
    attempts = ledger.attempts_by_trial(study, cell)
    signs = _signs(ledger, study, cell) if any(map(_is_of_before, attempts.values())) else {}
    now = taken(study)
    found = {}
    for number, starts in attempts.items():
        times = _seconds(starts, signs.get(number, ()))
        found[number] = total(
            Effort(each, each * start.get("cpus", now["cpus"]), each * start.get("gpus", now["gpus"]))
            for start, each in zip(starts, times, strict=True)
        )
    return found


def _is_of_before(starts: Sequence[Mapping[str, Any]]) -> bool:
    return any("under_way_s" not in start for start in starts)


def _signs(ledger: Ledger, study: Study, cell: Cell) -> dict[int, list[float]]:
    """The wall times at which each trial of a cell is known to have been under way: of its rows, and of its own end."""
    signs = {number: [row.wall_s for row in rows] for number, rows in ledger.rows_by_trial(study, cell).items()}
    for trial in ledger.trials(study, cell):
        if trial.ended_s is not None and trial.cause != "stopped":  # by hand it may end long after its worker left it
            signs.setdefault(trial.number, []).append(trial.ended_s)
    return signs


def _seconds(starts: Sequence[Mapping[str, Any]], signs: Sequence[float]) -> list[float]:
    """How long each attempt was under way.

    Of one that no driver has noted, as in earlier versions and within seconds of a driver's death, it is the time to
    its last sign before the next attempt.
    """
    begins = [*(float(start.get("began_s", math.inf)) for start in starts), math.inf]
    return [
        float(start["under_way_s"])
        if "under_way_s" in start
        else max((at - began for at in signs if began <= at < then), default=0.0)
        for start, began, then in zip(starts, begins, begins[1:], strict=False)
    ]
