"""Pruning: whether a trial that has reached a rung goes on. The rules are pure; Tune's scheduler only forwards.

A rule sees the values that trials of its cell had at the same step, in the order in which smaller is better. It keeps
nothing, so a decision that a crash cut off is made again. A loss that is no number stops its trial and is no rival.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from cs330ray.service.messages import assigned, news_of
from cs330ray.spec.tables import Prune

if TYPE_CHECKING:
    from cs330ray.service.recorder import Recorder


def is_rung(prune: Prune, step: int) -> bool:
    """Whether the pruner is asked at `step`: median at multiples of `min_steps`, asha at `min_steps * reduction**k`."""
    if prune.kind == "none" or step % prune.min_steps:
        return False
    if prune.kind == "median":
        return True
    rung = prune.min_steps
    while rung < step:
        rung *= prune.reduction
    return rung == step


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


class ForwardingScheduler(FIFOScheduler):
    """Tune's scheduler: first come, first served; whether a trial stops is the recorder's word."""

    def __init__(self, recorder: "Recorder", request: Callable[[], PlacementGroupFactory]) -> None:
        super().__init__()
        self._recorder = recorder
        self._request = request  # what a trial wants of the nodes that are fit by now

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Keep the trial off nodes that have turned out to be unfit since Tune was started."""
        trial.update_resources(self._request())

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """STOP where the pruner said so, else CONTINUE."""
        iteration, assignment = int(result["training_iteration"]), assigned(trial.config)
        stops = self._recorder.take(trial.trial_id, iteration, assignment, news_of(result))
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Tune starts what waits, in order, by itself; to look for it here would be a walk over all trials."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds all there is."""
