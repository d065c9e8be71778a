"""Which run's weights stand for a study, the figures beside them, and the card that people read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs330ray import package
from cs330ray.analysis import confirmed as confirmation
from cs330ray.analysis import replicates
from cs330ray.analysis.answer import of_cells
from cs330ray.analysis.replicates import Replicates
from cs330ray.analysis.standing import Standing, best_by
from cs330ray.analysis.statistics import Interval, over_items, over_seeds
from cs330ray.errors import SpecError
from cs330ray.ledger.confirm import Confirmed
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Trial
from cs330ray.spec.study import Study
from cs330ray.words import number, plural


@dataclass(frozen=True)
class Pick:
    """A configuration, and the run of it whose weights are taken."""

    searched: Trial  # of the search
    confirmed: Confirmed | None  # with every fresh seed COMPLETE
    run: Trial  # the search's own, or a run of confirmation
    chosen: str  # how the configuration was chosen
    weights: str  # why this run's weights
    not_confirmed: str = ""  # why it is not


def pick(ledger: Ledger, study: Study, title: str | None, replicate: int | None, by: str | None) -> Pick:
    """Pick the confirmed choice of the cell of a title, else the best of its search; the best of the cells without one.

    Of several replicates it is the one to use, unless one is named. Between cells only choices are picked. With `by`
    the best of the search by that metric. Where the configuration is confirmed, the weights are those of the
    first fresh seed, which nothing chose; else the search's. Raises SpecError where nothing can be picked.
    """
    cells, among = replicates.read(ledger, study, replicate), ""
    if title is not None:
        one = cells.used[title]
    else:
        one = _best_cell(study, cells, by)
        among = f" of the best of {len(cells.of)} cells, all by" if len(cells.of) > 1 else ""
    choice = one.chosen if by is None else None
    searched = choice.searched if choice else best_by(ledger, one, by)
    if searched is None:
        raise SpecError(f"{study.name}: {one.cell.label}: no trial is COMPLETE yet; see `cs330ray show {study.name}`")
    goals, found, confirmed = one.goals, one.candidates, one.confirmed(searched.number)
    if choice:
        seeds = plural(choice.seeds, "fresh seed")
        which = f" of replicate {one.cell.replicate}" if study.repeat.searches > 1 else ""
        chosen = f"the choice{which}{among or ' by'} the mean {study.objective[0]} over {seeds}"
    else:
        chosen = f"the best of the search by its {by or study.objective[0]}, which promises too much"
    if confirmed is None:
        why = _why_not(study, goals, found, searched if by is not None else None)
        return Pick(searched, None, searched, chosen, "the search's: there is no run of confirmation to take", why)
    first = confirmed.runs[0].trial
    weights = f"fresh seed {first.cell.fresh}'s, the first of {confirmed.seeds}: taken whatever it scored"
    why = "" if choice or by is not None else confirmation.why_none(study, goals, found)
    return Pick(searched, confirmed, first, chosen, weights, why)


def _why_not(study: Study, goals: Sequence[str], found: Sequence[Confirmed], asked: Trial | None) -> str:
    """Why nothing of a cell is confirmed, or the trial that was asked for is not."""
    if study.confirm is None:
        return "the study has no [confirm]"
    if asked is None or not found:
        return confirmation.why_none(study, goals, found)
    own = [one for one in found if one.current and one.searched.number == asked.number]
    return confirmation.why_none(study, goals, own) if own else "it is none of those that were confirmed"


def _best_cell(study: Study, cells: Replicates, by: str | None) -> Standing:
    used = list(cells.used.values())
    if len(used) == 1:
        return used[0]
    first = cells.use if by is None and all(one.chosen is not None for one in used) else None
    if first is None:
        why = f"--by {by} ranks within one" if by is not None else "not every one is confirmed"
        titles = ", ".join(map(repr, cells.of))
        raise SpecError(f"{study.name}: it has several cells, and {why}; add --cell with one of {titles}")
    return first


def metrics(ledger: Ledger, study: Study, picked: Pick) -> dict[str, Any]:
    """What `metrics.json` says: of which run the weights are; promise, confirmation, and that run's own figures."""
    run, confirmed = picked.run, picked.confirmed
    tested = ledger.test_metrics(study, run.cell, run.number)
    return {
        "chosen": picked.chosen,
        "run": {
            "replicate": run.cell.replicate,
            "trial": run.number,
            "fresh": run.cell.fresh,
            "seed": run.seed,
            "weights": picked.weights,
            "validation": _named(study, run),
            "test": {name: _number(value) for name, value in tested.items()},
            "test_ci95_items": {name: _written(interval) for name, interval in _over_items(ledger, study, run).items()},
        },
        "search": {"seed": picked.searched.seed, "validation": _named(study, picked.searched)},
        "confirmed": None if confirmed is None else _confirmed(study, confirmed),
        **({"not_confirmed": picked.not_confirmed} if picked.not_confirmed else {}),
    }


def _confirmed(study: Study, confirmed: Confirmed) -> dict[str, Any]:
    def written(values: Sequence[float]) -> dict[str, Any]:
        return _written(over_seeds(values)) | {"values": [_number(value) for value in values]}

    columns = zip(*confirmed.values, strict=True)
    validation = {name: list(column) for name, column in zip(study.objective, columns, strict=True)}
    names = dict.fromkeys(name for run in confirmed.runs for name in run.test)
    test = {name: [run.test[name] for run in confirmed.runs if name in run.test] for name in names}
    return {
        "seeds": [run.trial.seed for run in confirmed.runs],
        "validation": {name: written(values) for name, values in validation.items()},
        "test": {name: written(values) for name, values in test.items()},
    }


def _named(study: Study, trial: Trial) -> dict[str, float]:
    return dict(zip(study.objective, trial.values or (), strict=True))


def _over_items(ledger: Ledger, study: Study, run: Trial) -> dict[str, Interval]:
    items = ledger.test_items(study, run.cell, run.number)
    return {name: over for name, found in items.items() if (over := over_items([found])) is not None}


def _written(interval: Interval) -> dict[str, Any]:
    return {key: _number(value) for key, value in vars(interval).items()}


def _number(value: float) -> float | None:
    """A number as JSON has it."""
    return value if math.isfinite(value) else None


# The card ----------------------------------------------------------------------------------------------------------


def card(
    ledger: Ledger, study: Study, picked: Pick, *, trainable: str, said: str, provenance: Mapping[str, Any]
) -> str:
    """A model's README: what it is, how it was chosen, its figures with intervals, then what the trainable said."""
    run, claimed = picked.run, of_cells(ledger, replicates.read(ledger, study))
    where = f", cell `{run.cell.label}`" if run.cell.values or run.cell.replicate else ""
    head = [
        f"# {study.name}: a model of `{trainable}`",
        "",
        f"Trained by cs330ray {package.VERSION}, study `{study.name}`{where}: "
        f"trial {run.number}, {picked.chosen}. The weights are {picked.weights}.",
        *(["", f"Not confirmed: {picked.not_confirmed}."] if picked.not_confirmed else []),
        *(["", f"Of the study's cells: {claimed}"] if claimed else []),
        "",
        "## Figures",
        "",
        *_figures(ledger, study, picked),
        "",
        "## Configuration",
        "",
        *[f"- {name} = {_in_a_line(value)}" for name, value in {**run.cell.fixed, **run.params}.items()],
        "",
        "All else is as the trainable has it by default; `config.json` says all of it.",
    ]
    foot = [
        "## Where it comes from",
        "",
        f"Study digest `{study.digest}`, data `{provenance['data']}`, code `{provenance['code']}`; versions and device "
        "are in `provenance.json`.",
    ]
    parts = ["\n".join(head), *([said] if said else []), "\n".join(foot)]
    return "\n\n".join(parts) + "\n"


def _in_a_line(value: Any) -> str:
    """A value as a list of Markdown has it; of a folder or a file here only its name: where it is is private."""
    if isinstance(value, str) and "/" in value:
        for is_there, kind in ((Path.is_dir, "folder"), (Path.is_file, "file")):
            if is_there(Path(value)):
                return f"{Path(value).name} (a {kind})"
    return str(value) if str(value).isprintable() else repr(value)


def _figures(ledger: Ledger, study: Study, picked: Pick) -> list[str]:
    """Tables: the objectives as promised, confirmed and of the run whose weights these are; then that run on test."""
    rows = ["| validation | the search promised | fresh seeds, 95 % interval | this run |", "|---|---|---|---|"]
    for place, name in enumerate(study.objective):
        fresh = picked.confirmed and over_seeds([values[place] for values in picked.confirmed.values])
        shown = confirmation.said(fresh) if fresh else "not confirmed"
        promised, own = ((trial.values or ())[place] for trial in (picked.searched, picked.run))
        rows.append(f"| {name} | {number(promised)} | {shown} | {number(own)} |")
    tested = ledger.test_metrics(study, picked.run.cell, picked.run.number)
    if not tested:
        return [*rows, "", "These weights were not scored on test: that is done by confirmation alone."]
    by_item = _over_items(ledger, study, picked.run)
    rows += [
        "",
        "| test | this run | 95 % interval over tasks, users or questions | fresh seeds |",
        "|---|---|---|---|",
    ]
    for name, value in tested.items():
        seeds = [run.test[name] for run in picked.confirmed.runs if name in run.test] if picked.confirmed else []
        over = confirmation.said(over_seeds(seeds)) if seeds else ""
        rows.append(f"| {name} | {number(value)} | {by_item.get(name, '')} | {over} |")
    return rows
