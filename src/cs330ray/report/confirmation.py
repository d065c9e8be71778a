"""What confirmation found, as tables and lines: promise against fresh seeds, validation against test, who is chosen."""

from collections.abc import Sequence

from cs330ray.report.sheet import Sheet
from cs330ray.report.statistics import Interval, averaged, over_seeds, over_units, paired
from cs330ray.service import confirm
from cs330ray.service.confirm import Confirmed
from cs330ray.service.ledger import Ledger
from cs330ray.spec import Cell, Study


def choices(ledger: Ledger, study: Study) -> dict[str, Confirmed]:
    """The confirmed choice of each cell that has one, by cell key."""
    goals = ledger.goals(study)
    chosen = {key: confirm.choice(study, goals, found) for key, found in confirm.confirmed(ledger, study).items()}
    return {key: one for key, one in chosen.items() if one is not None}


def table(ledger: Ledger, study: Study) -> Sheet | None:
    """Every candidate, a row an objective; None where nothing is confirmed yet."""
    goals, rows = ledger.goals(study), []
    confirmed = confirm.confirmed(ledger, study)
    for cell in study.cells:
        found = confirmed.get(cell.key, [])
        chosen = confirm.choice(study, goals, found)
        for one in found:
            if one.runs:
                rows += _rows(ledger, study, cell, goals, one, one is chosen)
    if not rows:
        return None
    columns = [
        "cell", "trial", "metric", "search", "fresh seeds", "ci95_seeds", "n", "optimism",
        "test", "ci95_seeds", "ci95_tasks", "n", "val - test", "state",
    ]  # fmt: skip
    return Sheet(f"{study.name}: confirmation on fresh seeds (chosen by their mean validation)", columns, rows)


def _rows(
    ledger: Ledger, study: Study, cell: Cell, goals: Sequence[str], one: Confirmed, chosen: bool
) -> list[list[str]]:
    rows, values = [], one.values
    for index, (name, goal) in enumerate(zip(study.objective, goals, strict=True)):
        promised = (one.searched.values or ())[index]
        row = [cell.title, str(one.searched.number), name, f"{promised:.4g}"]
        if values:
            fresh = over_seeds([value[index] for value in values])
            row += [f"{fresh.mean:.4g}", *_width(fresh), f"{confirm.optimism(goal, promised, fresh.mean):+.3g}"]
            row += _tested(ledger, study, one, name, goal, fresh)
        else:
            row += [""] * 9
        rows.append([*row, _state(one, chosen)])
    return rows


def _tested(ledger: Ledger, study: Study, one: Confirmed, name: str, goal: str, fresh: Interval) -> list[str]:
    """Test beside validation: mean, its intervals over seeds and over items, and the gap, positive for optimism."""
    metric = test_name(name)
    reached = [run.test[metric] for run in one.runs if run.trial.state == "COMPLETE" and metric in run.test]
    if not reached:
        return [""] * 5
    test = over_seeds(reached)
    items = [
        ledger.test_items(study, run.trial.cell, run.trial.number).get(metric, [])
        for run in one.runs
        if metric in run.test
    ]
    units = over_units(averaged(items)) if all(items) else None
    return [
        f"{test.mean:.4g}", _width(test)[0], *(_width(units) if units else ["", ""]),
        f"{confirm.optimism(goal, fresh.mean, test.mean):+.3g}",
    ]  # fmt: skip


def test_name(name: str) -> str:
    """The test metric beside a validation metric: `test_mse` for `val_mse`."""
    return f"test_{name.removeprefix('val_')}"


def _width(interval: Interval) -> list[str]:
    return [f"±{interval.half:.2g}" if interval.n > 1 else "one only", str(interval.n)]


def _state(one: Confirmed, chosen: bool) -> str:
    if chosen:
        return "chosen"
    failed = [run.trial.reason for run in one.runs if run.trial.state == "FAIL"]
    if failed:
        return f"not chosen: {len(failed)} of {one.seeds} failed ({failed[0]})"
    if not one.current:
        return "no longer among the best"
    return "" if one.whole else f"{len(one.values)} of {one.seeds} seeds"


def lines(ledger: Ledger, study: Study) -> list[str]:
    """The choice of each cell, and between cells, in words."""
    goals, said = ledger.goals(study), []
    chosen = choices(ledger, study)
    for cell in study.cells:
        one = chosen.get(cell.key)
        if one is None:
            continue
        title = f"{cell.title}: " if cell.values else ""
        said.append(f"{title}confirmed: trial {one.searched.number}, {', '.join(_words(study, goals, one))}")
    return said + _between(study, goals, chosen)


def _words(study: Study, goals: Sequence[str], one: Confirmed) -> list[str]:
    words = []
    for index, (name, goal) in enumerate(zip(study.objective, goals, strict=True)):
        fresh = over_seeds([value[index] for value in one.values])
        curse = confirm.optimism(goal, (one.searched.values or ())[index], fresh.mean)
        words.append(
            f"{name} {fresh.mean:.4g} ±{fresh.half:.2g} over {fresh.n} fresh seeds, optimism of the search {curse:+.2g}"
        )
        reached = [run.test[test_name(name)] for run in one.runs if test_name(name) in run.test]
        if reached:
            test = over_seeds(reached)
            words.append(f"{test_name(name)} {test.mean:.4g} ±{test.half:.2g}")
    return words


def _between(study: Study, goals: Sequence[str], chosen: dict[str, Confirmed]) -> list[str]:
    """The cells in the order of their choices' mean validation, each with its paired difference to the first."""
    if len(chosen) < 2 or len(study.objective) > 1:
        return []
    titles = {cell.key: cell.title for cell in study.cells}
    order = sorted(chosen, key=lambda key: confirm.losses(chosen[key].means, goals))
    said = [f"between cells: {titles[order[0]]} by the mean validation over fresh seeds"]
    first = [value[0] for value in chosen[order[0]].values]
    for key in order[1:]:
        apart = paired(first, [value[0] for value in chosen[key].values])
        said.append(
            f"  {study.objective[0]} {apart.mean:+.3g} ±{apart.half:.2g} to {titles[key]} ({apart.n} seeds, paired)"
        )
    return said
