"""One question asked on several splits of the data, a study each: the report that averages over them."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cs330ray.analysis import confirmed, notes
from cs330ray.analysis.comparison import Alternative, Comparison, compare, over_splits
from cs330ray.analysis.confirmed import said
from cs330ray.analysis.statistics import over_seeds, with_interval
from cs330ray.analysis.table import Sheet
from cs330ray.errors import SpecError
from cs330ray.ledger.confirm import on_test
from cs330ray.report.figures.splits import over_the_splits
from cs330ray.report.open_study import Opened
from cs330ray.report.page import (
    Block,
    Drawn,
    Heading,
    Page,
    Points,
    Words,
    differences,
    metrics_table,
    question,
)
from cs330ray.spec.columns import RUN
from cs330ray.spec.growth import difference

CHOICE = "the confirmed choice"  # of a study of one cell
NO_CLAIM = (
    "Whether the cells differ is not known: these studies may share draws and seeds, whose luck is then the same on "
    "every split. One study with `[repeat]` and its `split` tells."
)
MAY_DIFFER = (
    "name", "question", "seed", "fixed.data_seed", "resources", "budget.time", "budget.cost", "budget.fail_share",
)  # fmt: skip


def page(studies: Sequence[Opened]) -> Page:
    """The report of one question over several splits. Raises SpecError where the studies are not of one question."""
    check(studies)
    first = studies[0]
    names = ", ".join(study.name for study in studies)
    asked = f"{question(first.study, first.goals)} Averaged over {len(studies)} splits of the data: {names}."
    return Page(f"{first.name} and {len(studies) - 1} more splits", asked, list(_blocks(studies)))


def check(studies: Sequence[Opened]) -> None:
    """Refuse studies that differ in more than their split. Raises SpecError."""
    first = studies[0]
    for other in studies[1:]:
        lines = [line for line in difference(first.study, other.study) if not line.startswith(MAY_DIFFER)]
        if lines:
            raise SpecError(
                f"report: studies of one question on several splits are needed (they may differ in fixed.data_seed), "
                f"but {other.name} differs from {first.name}: {'; '.join(lines)}"
            )
    for study in studies:
        if (searches := study.study.repeat.searches) > 1:
            raise SpecError(
                f"report: expected studies of one search each, got {study.name} with {searches} replicates; report it "
                "alone"
            )
    seeds = [study.study.fixed.get("data_seed", 0) for study in studies]
    if len(set(map(str, seeds))) < len(seeds):
        raise SpecError(
            f"report: each study needs a split of its own, but fixed.data_seed is {', '.join(map(str, seeds))}; "
            "`--fork NAME --set fixed.data_seed=N` makes another"
        )


def _blocks(studies: Sequence[Opened]) -> Iterator[Block]:
    objectives = studies[0].study.objective
    held = {name: _alternatives(studies, index) for index, name in enumerate(objectives)}
    compared = {name: _compared(studies, index, held[name]) for index, name in enumerate(objectives)}
    yield Heading("Answer")
    yield Words(_answer(objectives[0], compared[objectives[0]], held[objectives[0]], len(studies)), strong=True)
    if missing := _missing(studies, held[objectives[0]]):
        yield Points(missing)
    yield Heading("Over the splits")
    yield Words(
        "The value of an alternative on a split is its mean over the fresh seeds there; intervals and tests are over "
        "the splits, which pair. Splits of one data set share most of their training items, so their scatter is "
        "somewhat too small for what another data set would give."
    )
    for name, comparison in compared.items():
        if comparison is not None:
            yield _apart(differences(comparison, name))
        if held[name]:
            yield _drawn(studies, name, held[name], comparison)
    if (tested := _test_metrics(studies)) is not None:
        yield tested
    yield Heading("Each split")
    for study in studies:
        yield Words(f"`{study.name}` (data_seed {study.study.fixed.get('data_seed', 0)}): {study.answer}")


def _apart(sheet: Sheet) -> Sheet:
    """A table of differences without what claims something."""
    kept = [
        place
        for place, column in enumerate(sheet.columns)
        if column not in ("chance to be best", "p", "Holm's p") and not column.endswith("to tell")
    ]
    return Sheet(sheet.title, [sheet.columns[at] for at in kept], [[row[at] for at in kept] for row in sheet.rows])


def _alternatives(studies: Sequence[Opened], objective: int) -> list[Alternative]:
    """The cells' choices over the splits; of a study of one cell its choice, which is another on each split."""
    found = [confirmed.alternatives(study.ledger, study.study, objective) for study in studies]
    if len(studies[0].study.compared) == 1:
        chosen = [{f"trial {one.searched.number}" for one in study.choices.values()} for study in studies]
        found = [
            [replace(one, name=CHOICE) for one in held if one.name in names]
            for held, names in zip(found, chosen, strict=True)
        ]
    return over_splits(found)


def _compared(studies: Sequence[Opened], objective: int, held: Sequence[Alternative]) -> Comparison | None:
    everywhere = [one for one in held if len(one.validation) == len(studies)]
    goal = studies[0].ledger.goals(studies[0].study)[objective]
    return compare(everywhere, goal, unit="split") if len(everywhere) > 1 else None  # type: ignore[arg-type]


def _answer(metric: str, comparison: Comparison | None, held: Sequence[Alternative], splits: int) -> str:
    whole = {one.name: one for one in held if len(one.validation) == splits}
    best = whole.get(comparison.best if comparison else CHOICE)
    if best is None:
        return "There are not two alternatives that are confirmed on every split. Nothing is compared."
    first = f"Over {splits} splits {best.name} "
    first += "has the best mean" if comparison else "reaches a mean"
    first += f" {metric} of {with_interval(over_seeds(list(best.validation.values())))}"
    if best.test:
        first += f", and {on_test(metric)} {with_interval(over_seeds(list(best.test.values())))}"
    if comparison is None:
        return f"{first}. Each split has a choice of its own, so nothing is compared."
    return f"{first}. {NO_CLAIM}"


def _missing(studies: Sequence[Opened], held: Sequence[Alternative]) -> list[str]:
    part = [one for one in held if len(one.validation) < len(studies)]
    left_out = [f"{one.name} is confirmed on {len(one.validation)} of {len(studies)} splits: left out." for one in part]
    return left_out + [f"`{study.name}`: {note}" for study in studies for note in notes.notes(study)]


def _drawn(studies: Sequence[Opened], metric: str, held: Sequence[Alternative], comparison: Comparison | None) -> Drawn:
    order = [*(comparison.order if comparison else ()), *(one.name for one in held)]
    goal = studies[0].goals[metric]
    figure = over_the_splits(metric, goal, held, list(dict.fromkeys(order)), [study.name for study in studies])
    return Drawn(figure, f"cs330ray report {' '.join(study.name for study in studies)}")


def _test_metrics(studies: Sequence[Opened]) -> Sheet | None:
    """Every test metric of the choices: the mean over the splits of the means over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for study in studies:
        chosen = study.confirmed[study.confirmed["chosen"]][["cell", "trial"]].drop_duplicates()
        for cell, runs in study.runs.merge(chosen, on=["cell", "trial"]).groupby("cell", sort=False):
            for name in runs.columns:
                known = name in RUN or name in study.study.objective
                if not known and runs[name].notna().any():
                    found.setdefault(str(cell), {}).setdefault(name, []).append(statistics.fmean(runs[name].dropna()))
    names = list(dict.fromkeys(name for of_cell in found.values() for name in of_cell))
    table = {
        cell: [said(over_seeds(of_cell[name])) if name in of_cell else "" for name in names]
        for cell, of_cell in found.items()
    }
    return metrics_table("Test metrics of the choices, over the splits", names, table) if table else None
