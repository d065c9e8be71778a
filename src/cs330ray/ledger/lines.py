"""Lines of trials: one of more steps continues one of fewer, with its parameters and its seed, and supersedes it."""

from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Trial
from cs330ray.ledger.writer import Writer
from cs330ray.spec.study import Study
from cs330ray.words import plural


def standing(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that none continues, each in the place of the first that it goes back to."""
    by_number = {trial.number: trial for trial in trials}
    lines = []
    for trial in trials:
        if trial.continues is None:
            last = trial
            while last.continued_as is not None:
                last = by_number[last.continued_as]
            lines.append(last)
    return lines


def rankable(trials: Sequence[Trial]) -> list[Trial]:
    """The COMPLETE trials that may be ranked with one another: those with the most steps, but for those superseded."""
    ended = {trial.number for trial in trials if trial.state != "RUNNING"}
    held = [trial for trial in trials if trial.state == "COMPLETE" and trial.values and trial.continued_as not in ended]
    most = max((trial.steps for trial in held), default=0)
    return [trial for trial in held if trial.steps == most]


def to_continue(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """The COMPLETE trials that have had fewer steps than the study has by now, and that none continues yet."""
    return [
        trial
        for trial in trials
        if trial.state == "COMPLETE" and trial.continued_as is None and trial.steps < study.budget.steps
    ]


def finished(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that none continues, nor will, and that have ended."""
    waiting = {trial.number for trial in to_continue(study, trials)}
    return [
        trial
        for trial in trials
        if trial.state != "RUNNING" and trial.continued_as is None and trial.number not in waiting
    ]


def waiting(ledger: Ledger, study: Study) -> list[Trial]:
    """The trials that are to go on, cell by cell."""
    return [trial for cell in study.cells for trial in to_continue(study, ledger.trials(study, cell))]


def announced(ledger: Ledger, study: Study) -> list[str]:
    """What will go on, in words, before it does."""
    lines = []
    for cell in study.cells:
        trials = to_continue(study, ledger.trials(study, cell))
        gone = [trial for trial in trials if ledger.checkpoint(study, cell, trial.number) is None]
        if trials:
            again = f"; {len(gone)} of them have no checkpoint any more and train again from the start" if gone else ""
            before = ", ".join(map(str, sorted({trial.steps for trial in trials})))
            lines.append(
                f"{cell.label}: {plural(len(trials), 'COMPLETE trial')} of {before} steps go on to "
                f"{study.budget.steps}, as trials of their own{again}"
            )
    return lines


def left_alone(ledger: Ledger, study: Study) -> list[str]:
    """What of a study was added with Optuna's own tools, in words: no part of the search."""
    lines = []
    for cell in study.cells:
        if foreign := ledger.foreign(study, cell):
            numbers, were = ", ".join(map(str, foreign)), "was" if len(foreign) == 1 else "were"
            lines.append(
                f"{cell.label}: trial {numbers} {were} added with Optuna's own tools and left alone; to try a "
                "configuration of your own, name its values in [compare], as a cell"
            )
    return lines


def enter(ledger: Writer, study: Study) -> None:
    """Enter the trials that go on; a crash in the midst leaves the others waiting."""
    histories = {cell.key: {each.number: each for each in ledger.history(study, cell)} for cell in study.cells}
    for trial in waiting(ledger, study):
        before = histories[trial.cell.key][trial.number]
        same = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=before.params,
            distributions=before.distributions,
            user_attrs=before.user_attrs,  # of which `enter` keeps whether it is one of [start]
            system_attrs=before.system_attrs,
        )
        ledger.enter(study, trial.cell, same, trial.seed, continues=trial.number)
