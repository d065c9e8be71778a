"""Pruning: whether a trial that has reached a rung goes on. The rules are pure.

A rung is decided at a trial's first row at or past it. A rule sees the values that trials of its cell had at that row
of theirs, in the order in which smaller is better. It keeps nothing, so a decision that a crash cut off is made again.
A loss that is no number stops its trial and is no rival.
"""

import math
import statistics
from collections.abc import Sequence

from cs330ray.spec.tables import Prune


def last_rung(prune: Prune, step: int) -> int:
    """Find the highest rung at or below `step`, 0 where there is none.

    The rungs of median are the multiples of `min_steps`, those of asha `min_steps * reduction**k`.
    """
    if prune.kind == "none" or step < prune.min_steps:
        return 0
    if prune.kind == "median":
        return step - step % prune.min_steps
    rung = prune.min_steps
    while rung * prune.reduction <= step:
        rung *= prune.reduction
    return rung


def asha_stops(loss: float, rivals: Sequence[float], reduction: int) -> bool:
    """Whether asynchronous successive halving stops a trial: Li et al. 2020, algorithm 2, without pausing.

    `rivals` are the losses of the other trials at this rung so far. The best of the first `reduction - 1` goes on.
    """
    order = sorted([*_numbers(rivals), loss])
    promoted = max(len(order) // reduction, 1)
    return math.isnan(loss) or loss > order[promoted - 1]


def median_stops(best_loss: float, rivals: Sequence[float], startup: int) -> bool:
    """Whether the median rule stops a trial: its best loss so far is worse than the rivals' median at this step.

    `rivals` are the losses at this step of COMPLETE trials (Golovin et al. 2017, as in Optuna's MedianPruner).
    """
    numbers = _numbers(rivals)
    return math.isnan(best_loss) or (len(numbers) >= startup and best_loss > statistics.median(numbers))


def _numbers(losses: Sequence[float]) -> list[float]:
    return [loss for loss in losses if not math.isnan(loss)]
