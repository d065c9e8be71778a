"""What confirmation found, as tables and lines: promise against fresh seeds, validation against test, who is chosen."""

from collections.abc import Sequence

from cs330ray.analysis import replicates
from cs330ray.analysis.comparison import Alternative, Comparison, compare
from cs330ray.analysis.standing import choices, standings
from cs330ray.analysis.statistics import OTHER_ITEMS, Interval, over_items, over_seeds
from cs330ray.analysis.table import Sheet
from cs330ray.ledger import confirm
from cs330ray.ledger.confirm import Confirmed, Run, on_test
from cs330ray.ledger.ledger import Ledger
from cs330ray.spec.study import Study
from cs330ray.words import number

COLUMNS = [
    "cell", "trial", "metric", "search", "fresh seeds, ci95_seeds", "optimism",
    "test, ci95_seeds", "ci95_tasks", "val - test", "state",
]  # fmt: skip


def table(ledger: Ledger, study: Study) -> Sheet | None:
    """Every candidate, a row an objective; None where nothing is confirmed yet."""
    goals, rows = ledger.goals(study), []
    for cell in standings(ledger, study):
        for one in (one for one in cell.candidates if one.runs):
            state = "chosen" if one is cell.chosen else _state(study, goals, one)
            of = [cell.cell.label, str(one.searched.number)]
            rows += [[*of, *row, state] for row in _rows(ledger, study, goals, one)]
    by = study.objective[0]
    title = f"{study.name}: confirmation on fresh seeds; chosen by the mean {by} over them"
    return Sheet(title, COLUMNS, rows) if rows else None


def _rows(ledger: Ledger, study: Study, goals: Sequence[str], one: Confirmed) -> list[list[str]]:
    """Each objective of a candidate: promise, fresh validation, test."""
    rows = []
    for index, (name, goal) in enumerate(zip(study.objective, goals, strict=True)):
        promised = (one.searched.values or ())[index]
        row = [name, number(promised)]
        if one.values:
            fresh = over_seeds([values[index] for values in one.values])
            row += [said(fresh), f"{confirm.optimism(goal, promised, fresh.mean):+.3g}"]
            row += _tested(ledger, study, one, name, goal)
        else:
            row += [""] * 5
        rows.append(row)
    return rows


def _tested(ledger: Ledger, study: Study, one: Confirmed, name: str, goal: str) -> list[str]:
    """Test beside validation: mean, its intervals over seeds and over items, and the gap, positive for optimism."""
    metric = on_test(name)
    tested = [run for run in one.complete if metric in run.test]
    if not tested:
        return [f"failed: {one.runs[0].untested}" if one.runs[0].untested else "", "", ""]
    test = over_seeds([run.test[metric] for run in tested])
    place = study.objective.index(name)
    validated = over_seeds([(run.trial.values or ())[place] for run in tested])
    gap = confirm.optimism(goal, validated.mean, test.mean)
    return [said(test), _on_items(ledger, study, tested, metric), f"{gap:+.3g}"]


def _on_items(ledger: Ledger, study: Study, tested: Sequence[Run], metric: str) -> str:
    runs = [ledger.test_items(study, run.trial.cell, run.trial.number).get(metric, []) for run in tested]
    over = over_items(runs)
    return str(over or (OTHER_ITEMS if all(runs) else ""))


def said(interval: Interval) -> str:
    """A mean with its interval: `0.974 ±0.0035 (n 5)`."""
    return f"{number(interval.mean)} {interval}"


def _state(study: Study, goals: Sequence[str], one: Confirmed) -> str:
    """Why a candidate is not the chosen one."""
    failed = [run.trial.reason for run in one.runs if run.trial.state == "FAIL"]
    if not one.current:
        return "not among the candidates now"
    if failed:
        return f"not chosen: {len(failed)} of {one.seeds} failed ({failed[0]})"
    if not one.whole:
        return f"{len(one.complete)} of {one.seeds} seeds"
    broken = confirm.broken_bounds(study, goals, one.means)
    return f"breaks {', '.join(broken)}" if broken else ""


def lines(ledger: Ledger, study: Study) -> list[str]:
    """The choice of each cell, of several replicates the one to use, or why there is none, in words."""
    goals, words = ledger.goals(study), []
    used = replicates.read(ledger, study).used.values() if study.confirm is not None else []
    for cell in used:
        title = f"{cell.cell.label}: " if cell.cell.values or cell.cell.replicate else ""
        one = cell.chosen
        if one is None:
            words.append(f"{title}not confirmed: {why_none(study, goals, cell.candidates)}")
        else:
            words.append(f"{title}confirmed: trial {one.searched.number}, {'; '.join(_words(study, goals, one))}")
    return words


def why_none(study: Study, goals: Sequence[str], found: Sequence[Confirmed]) -> str:
    """Why a cell has no confirmed choice."""
    current = [one for one in found if one.current]
    if not current:
        return "no trial is COMPLETE among those that cells are compared on"
    if runs := confirm.runs_to_come(found):
        return f"{runs} of {sum(one.seeds for one in current)} runs are still to come"
    whole = [one for one in current if one.whole]
    if not whole:
        return "every candidate failed on a fresh seed; see `cs330ray show`"
    nearest = min(whole, key=lambda one: len(confirm.broken_bounds(study, goals, one.means)))
    broken = ", ".join(confirm.broken_bounds(study, goals, nearest.means))
    return f"no candidate keeps confirm.bounds (trial {nearest.searched.number} breaks {broken}); see `cs330ray show`"


def _words(study: Study, goals: Sequence[str], one: Confirmed) -> list[str]:
    words, own = [], one.searched.cell.command is not None and not any(run.untested for run in one.runs)
    no_test = ": nothing of this study reads a test split" if own else ""
    for index, (name, goal) in enumerate(zip(study.objective, goals, strict=True)):
        fresh = over_seeds([value[index] for value in one.values])
        curse = confirm.optimism(goal, (one.searched.values or ())[index], fresh.mean)
        words.append(f"{name} {said(fresh)}, optimism of the search {curse:+.2g}")
        reached = [run.test[on_test(name)] for run in one.complete if on_test(name) in run.test]
        words.append(
            f"{on_test(name)} {said(over_seeds(reached))}" if reached else f"{on_test(name)} is not known{no_test}"
        )
    return words


# What an answer compares: the cells' choices or, of one cell, its candidates ------------------------------------------


def compared(ledger: Ledger, study: Study, objective: int = 0) -> Comparison | None:
    """The alternatives compared by one objective; None where fewer than two are confirmed."""
    found = alternatives(ledger, study, objective)
    return compare(found, ledger.goals(study)[objective]) if len(found) > 1 else None  # type: ignore[arg-type]


def alternatives(ledger: Ledger, study: Study, objective: int = 0) -> list[Alternative]:
    """The choice of each cell that has one, by the cell's title; of one cell its whole candidates within the bounds."""
    if len(study.compared) > 1:
        chosen = choices(standings(ledger, study))
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
    metric = on_test(study.objective[objective])
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
