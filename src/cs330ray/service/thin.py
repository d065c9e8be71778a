"""Thinning: of the finished trials of a cell the best keep their last checkpoint, of the others the rows stay.

Runs of confirmation keep theirs: they are what a study is for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from cs330ray import checkpoint
from cs330ray.service import confirm
from cs330ray.service.ledger import Ledger, Trial
from cs330ray.spec import Cell, Study


def kept(study: Study, goals: Sequence[str], trials: Sequence[Trial]) -> set[int]:
    """The trials of a cell whose checkpoints stay: the best that are COMPLETE, and all that have not ended for good."""
    over = confirm.finished(study, trials)
    complete = [trial for trial in over if trial.state == "COMPLETE" and trial.values]
    if len(goals) > 1:
        front = confirm.by_crowding(confirm.pareto_front(complete, goals), goals)
        complete = front + [trial for trial in complete if trial not in front]
    else:
        complete.sort(key=lambda trial: (confirm.losses(trial.values or (), goals), trial.number))
    ended = {trial.number for trial in trials if trial.state != "RUNNING"}
    waiting = {trial.number for trial in confirm.to_continue(study, trials)}
    begun_at = {trial.continues for trial in trials if trial.state == "RUNNING"}
    best = {trial.number for trial in complete[: study.resources.keep]}
    return {
        trial.number
        for trial in trials
        if trial.number not in ended or trial.number in best | waiting or trial.number in begun_at
    }


def thin(
    ledger: Ledger,
    study: Study,
    cell: Cell,
    place: Callable[[Cell, int], Path],
    ended: Sequence[int] | None = None,
) -> list[int]:
    """Remove the checkpoints of a cell that are not to be kept, recorded or not; of which trials.

    `place` is where a trial's lie, `ended` who has just ended; by default every trial is looked at. The files go first:
    cut off between, the record names what is gone, and the next call goes on. What this machine does not see stays.
    """
    held = ledger.checkpoints(study, cell)
    trials = ledger.trials(study, cell, None if ended is None else {*held, *ended})
    stay = kept(study, ledger.goals(study), trials)
    removed = []
    for trial in trials:
        home = place(cell, trial.number)
        if trial.number not in stay and home.exists() and (trial.number in held or any(home.glob("step-*"))):
            checkpoint.remove(home)
            ledger.forget_checkpoints(study, cell, trial.number)
            removed.append(trial.number)
    return removed
