"""More steps: each COMPLETE trial of fewer steps goes on as a new trial, which keeps its parameters and its seed."""

import optuna
from optuna.trial import TrialState

from cs330ray.service import confirm
from cs330ray.service.ledger import Ledger
from cs330ray.service.records import Trial
from cs330ray.spec import Study
from cs330ray.words import plural


def waiting(ledger: Ledger, study: Study) -> list[Trial]:
    """The trials that are to go on, cell by cell."""
    return [trial for cell in study.cells for trial in confirm.to_continue(study, ledger.trials(study, cell))]


def announced(ledger: Ledger, study: Study) -> list[str]:
    """What will go on, in words, before it does."""
    lines = []
    for cell in study.cells:
        trials = confirm.to_continue(study, ledger.trials(study, cell))
        gone = [trial for trial in trials if ledger.checkpoint(study, cell, trial.number) is None]
        if trials:
            again = f"; {len(gone)} of them have no checkpoint any more and train again from the start" if gone else ""
            before = ", ".join(map(str, sorted({trial.steps for trial in trials})))
            lines.append(
                f"{cell.title}: {plural(len(trials), 'COMPLETE trial')} of {before} steps go on to "
                f"{study.budget.steps}, as trials of their own{again}"
            )
    return lines


def enter(ledger: Ledger, study: Study) -> None:
    """Enter the trials that go on; a crash in the midst leaves the others waiting."""
    for trial in waiting(ledger, study):
        before = ledger.history(study, trial.cell)[trial.number]
        same = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=before.params,
            distributions=before.distributions,
            system_attrs=before.system_attrs,
        )
        ledger.enter(study, trial.cell, same, trial.seed, continues=trial.number)
