"""How much each searched parameter decided, of what the ledger holds of a search."""

import warnings

import optuna
from optuna.trial import TrialState

from cs330ray.ledger.ledger import Ledger, directions
from cs330ray.spec.study import Cell, Study

ENOUGH_FOR_IMPORTANCE = 20  # COMPLETE trials: a tenth of fewer is one


def shares_of(ledger: Ledger, study: Study, cell: Cell, objective: int = 0) -> dict[str, float]:
    """Measure each searched parameter's share in reaching a cell's best tenth, by PED-ANOVA; shares that sum to 1.

    Watanabe et al. 2023, by Optuna. Empty below `ENOUGH_FOR_IMPORTANCE` COMPLETE trials of the most steps, and
    where none differs.
    """
    ended = [trial for trial in ledger.standing(study, cell) if trial.state == TrialState.COMPLETE]
    steps = [int(trial.user_attrs.get("steps", study.budget.steps)) for trial in ended]
    complete = [trial for trial, had in zip(ended, steps, strict=True) if had == max(steps)]
    if len(complete) < ENOUGH_FOR_IMPORTANCE:
        return {}
    memory = optuna.create_study(directions=directions(ledger.goals(study)))
    memory.add_trials(complete)
    sign = -1.0 if ledger.goals(study)[objective] == "max" else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, and takes low targets for good ones
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(
            memory,
            evaluator=evaluator,
            target=lambda trial: sign * trial.values[objective],
            normalize=False,
        )
    total = sum(shares.values())
    return {name: float(share / total) for name, share in shares.items()} if total else {}
