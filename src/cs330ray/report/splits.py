"""One question asked on several splits of the data, a study each: the report that averages over them."""

import statistics
from collections.abc import Iterator, Sequence

import altair as alt
import pandas as pd

from cs330ray.errors import SpecError
from cs330ray.growth import difference
from cs330ray.report import alternatives, words
from cs330ray.report.comparison import Alternative, Comparison, compare, over_splits
from cs330ray.report.confirmation import on_test, said
from cs330ray.report.figures import Figure
from cs330ray.report.opened import Opened
from cs330ray.report.page import Block, Drawn, Heading, Page, Points, Words, differences, question
from cs330ray.report.sheet import Sheet
from cs330ray.report.statistics import over_seeds

MAY_DIFFER = ("name", "question", "seed", "fixed.data_seed", "resources", "budget.time", "budget.fail_share")


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
    if missing := _missing(studies):
        yield Points(missing)
    yield Heading("Over the splits")
    yield Words(
        "The value of an alternative on a split is its mean over the fresh seeds there; intervals and tests are over "
        "the splits, which pair. Splits of one data set share most of their training items, so their scatter is "
        "somewhat too small for what another data set would give."
    )
    for name, comparison in compared.items():
        if comparison is not None:
            yield Words(f"By {name}: {words.how_sure(comparison, name)}")
            yield differences(comparison, name)
            yield _drawn(studies, name, held[name], comparison)
    if (tested := _test_metrics(studies)) is not None:
        yield tested
    yield Heading("Each split")
    for study in studies:
        yield Words(f"`{study.name}` (data_seed {study.study.fixed.get('data_seed', 0)}): {study.answer}")


def _alternatives(studies: Sequence[Opened], objective: int) -> list[Alternative]:
    return over_splits([alternatives.alternatives(study.ledger, study.study, objective) for study in studies])


def _compared(studies: Sequence[Opened], objective: int, held: Sequence[Alternative]) -> Comparison | None:
    everywhere = [one for one in held if len(one.validation) == len(studies)]
    goal = studies[0].ledger.goals(studies[0].study)[objective]
    return compare(everywhere, goal, unit="split") if len(everywhere) > 1 else None  # type: ignore[arg-type]


def _answer(metric: str, comparison: Comparison | None, held: Sequence[Alternative], splits: int) -> str:
    if comparison is None:
        return "There are not two alternatives that are confirmed on every split. Nothing is compared."
    best = next(one for one in held if one.name == comparison.best)
    test = f" (on test {on_test(metric)} {said(over_seeds(list(best.test.values())))})" if best.test else ""
    first = f"Over {splits} splits {best.name} has the best mean {metric}, {said(comparison.means[best.name])}{test}"
    return f"{first}. {words.how_sure(comparison, metric)}"


def _missing(studies: Sequence[Opened]) -> list[str]:
    return [f"`{study.name}`: {note}" for study in studies for note in words.notes(study)]


def _drawn(studies: Sequence[Opened], metric: str, held: Sequence[Alternative], comparison: Comparison) -> Drawn:
    """Each alternative's mean over the splits with its interval, and each split as a faint point."""
    rows = []
    for one in held:
        for part, values in (("validation", one.validation), ("test", one.test)):
            if not values:
                continue
            mean = over_seeds(list(values.values()))
            rows += [
                {"cell": one.name, "part": part, "split": studies[split].name, "value": value,
                 "mean": mean.mean, "low": mean.low, "high": mean.high}
                for split, value in values.items()
            ]  # fmt: skip
    table = pd.DataFrame(rows).round(6)
    order = [*comparison.order, *(one.name for one in held if one.name not in comparison.order)]
    y = alt.Y("cell:N").sort(order).title(None).axis(labelLimit=220)
    base = alt.Chart(table, width="container", height=max(120, 44 * len(held))).encode(
        y=y, yOffset=alt.YOffset("part:N").sort(["validation", "test"])
    )
    colour = (
        alt.Color("part:N")
        .scale(range=["#0072b2", "#d55e00"])
        .sort(["validation", "test"])
        .legend(orient="bottom", title=None)
    )
    shape = (
        alt.Shape("part:N")
        .scale(range=["circle", "diamond"])
        .sort(["validation", "test"])
        .legend(orient="bottom", title=None)
    )
    each = base.mark_point(opacity=0.35, size=25).encode(
        x=alt.X("value:Q").title(metric).scale(zero=False),
        color=colour,
        shape=shape,
        tooltip=["split", "part", "value"],
    )
    bars = base.mark_rule().encode(x="low:Q", x2="high:Q", color=colour)
    means = base.mark_point(filled=True, size=70).encode(
        x="mean:Q", color=colour, shape=shape, tooltip=["cell", "part", "mean", "low", "high"]
    )
    says = (
        "Filled: the mean over the splits, with Student's t over them; faint: each split's mean over its fresh seeds."
    )
    figure = Figure(
        f"splits/{metric}", f"{metric} over {len(studies)} splits", says, alt.layer(each, bars, means), table
    )
    names = " ".join(study.name for study in studies)
    return Drawn(figure, f"cs330ray report {names}")


def _test_metrics(studies: Sequence[Opened]) -> Sheet | None:
    """Every test metric of the choices: the mean over the splits of the means over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for study in studies:
        chosen = study.confirmed[study.confirmed["chosen"]][["cell", "trial"]].drop_duplicates()
        for cell, runs in study.runs.merge(chosen, on=["cell", "trial"]).groupby("cell", sort=False):
            for name in runs.columns:
                if name.startswith("test_") and name.count("/") != 2 and runs[name].notna().any():
                    found.setdefault(str(cell), {}).setdefault(name, []).append(statistics.fmean(runs[name].dropna()))
    names = list(dict.fromkeys(name for of_cell in found.values() for name in of_cell))
    rows = [
        [cell, *(said(over_seeds(of_cell[name])) if name in of_cell else "" for name in names)]
        for cell, of_cell in found.items()
    ]
    return Sheet("Test metrics of the choices, over the splits", ["cell", *names], rows) if rows else None
