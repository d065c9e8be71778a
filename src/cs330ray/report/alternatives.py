"""What a study's answer compares: its cells' confirmed choices or, where nothing is compared, its candidates."""

from cs330ray.report import confirmation
from cs330ray.report.comparison import Alternative, Comparison, compare
from cs330ray.service import confirm
from cs330ray.service.confirm import Confirmed
from cs330ray.service.ledger import Ledger
from cs330ray.spec import Study


def compared(ledger: Ledger, study: Study, objective: int = 0) -> Comparison | None:
    """The alternatives compared by one objective; None where fewer than two are confirmed."""
    found = alternatives(ledger, study, objective)
    return compare(found, ledger.goals(study)[objective]) if len(found) > 1 else None  # type: ignore[arg-type]


def alternatives(ledger: Ledger, study: Study, objective: int = 0) -> list[Alternative]:
    """The choice of each cell that has one, by the cell's title; of one cell its whole candidates within the bounds."""
    if len(study.cells) > 1:
        chosen = confirmation.choices(ledger, study)
        titles = {cell.key: cell.title for cell in study.cells}
        named = {titles[key]: one for key, one in chosen.items()}
    else:
        found = confirm.confirmed(ledger, study).get(study.cells[0].key, [])
        kept = [one for one in found if one.current and one.whole and not _breaks_bounds(ledger, study, one)]
        named = {f"trial {one.searched.number}": one for one in kept if not confirm.runs_to_come(found)}
    return [_alternative(ledger, study, name, one, objective) for name, one in named.items()]


def _breaks_bounds(ledger: Ledger, study: Study, one: Confirmed) -> bool:
    return bool(confirm.broken_bounds(study, ledger.goals(study), one.means))


def _alternative(ledger: Ledger, study: Study, name: str, one: Confirmed, objective: int) -> Alternative:
    metric = confirmation.on_test(study.objective[objective])
    runs = {run.trial.cell.fresh or 0: run for run in one.complete if run.trial.values}
    return Alternative(
        name,
        {fresh: (run.trial.values or ())[objective] for fresh, run in runs.items()},
        {fresh: run.test[metric] for fresh, run in runs.items() if metric in run.test},
        {
            fresh: ledger.test_items(study, run.trial.cell, run.trial.number).get(metric, [])
            for fresh, run in runs.items()
        },
    )
