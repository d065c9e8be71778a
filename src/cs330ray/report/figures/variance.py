"""The figures of a study over its replicates: what each gave in every cell, and what results owe to chance."""

import json
import math
from collections.abc import Iterator

import altair as alt
import pandas as pd

from cs330ray.analysis.claims.sentence import UNITS
from cs330ray.analysis.statistics import over_seeds
from cs330ray.analysis.study import Snapshot
from cs330ray.ledger.confirm import on_test
from cs330ray.report.figures import marks
from cs330ray.report.figures.answer import MOST_ALTERNATIVES
from cs330ray.report.figures.marks import GREY, PALETTE, TICKS, Figure
from cs330ray.report.figures.search import Search
from cs330ray.words import plural

MEAN = "mean"
REACH = 4  # how many times the largest standard deviation an interval is drawn to


def replicates(study: Snapshot) -> Iterator[Figure]:
    """Draw what each whole replicate gave in every compared cell, with the cells' means: where there are two."""
    cells = study.replicates
    tested, units = cells.test(), cells.whole
    values = tested or cells.validation()
    if cells.by_seed or len(units) < 2 or not values:
        return
    objective, goal = next(iter(study.goals.items()))
    metric = on_test(objective) if tested else objective
    means = {title: over_seeds(column) for title, column in values.items()}
    order = sorted(means, key=lambda title: -means[title].mean if goal == "max" else means[title].mean)
    unit, several = UNITS[study.study.unit]
    rows = [
        row
        for title in order[:MOST_ALTERNATIVES]
        for row in [
            *(
                {"cell": title, "what": unit, "replicate": str(number), "value": value, "low": math.nan,
                 "high": math.nan, "n": 1}
                for number, value in zip(units, values[title], strict=True)
            ),
            {"cell": title, "what": MEAN, "replicate": "all", "value": means[title].mean, "low": means[title].low,
             "high": means[title].high, "n": means[title].n},
        ]
    ]  # fmt: skip
    table = marks.rounded(pd.DataFrame(rows))
    says = (
        f"Small: what each {unit} came to, the mean over its fresh seeds. A line joins the cells in one {unit}: where "
        f"the lines run side by side, cells differ more surely than their intervals say. Large: the mean over "
        f"{len(units)} {several} with its 95 % interval (Student's t over them)."
    )
    if len(order) > MOST_ALTERNATIVES:
        says += f" The best {MOST_ALTERNATIVES} of {len(order)} are drawn."
    if study.seen is not None and study.seen.since:
        says += f" {study.seen.since} of them came after the look that the answer rests on."
    said = marks.said(metric, marks.metric_of(Search(study).metrics, metric))
    yield Figure("replicates", f"{metric} in each {unit}", says, _replicates(table, said, unit), table)


def _replicates(table: pd.DataFrame, said: str, unit: str) -> alt.LayerChart:
    order = list(dict.fromkeys(table["cell"]))
    x = alt.X(
        "value:Q", scale=alt.Scale(zero=False, padding=8), title=marks.title(said),
        axis=alt.Axis(tickCount=TICKS, labelOverlap=True),
    )  # fmt: skip
    labels = alt.Axis(labelExpr=marks.wrapped(order), labelLimit=150)
    common = alt.Chart().encode(
        y=alt.Y("cell:N", sort=order, title=None, axis=labels),
        yOffset=alt.YOffset("what:N", sort=[unit, MEAN]),
        tooltip=marks.tooltips(table),
    )  # fmt: skip
    one, mean = marks.where("what", unit), marks.where("what", MEAN)
    place = f"indexof({json.dumps(order)}, datum.cell)"
    line = common.mark_line(strokeWidth=1, color=GREY, opacity=0.7).transform_filter(one)
    joined = line.transform_calculate(place=place).encode(x=x, detail="replicate:N", order="place:Q")
    height = max(100.0, sum(max(44.0, 14.0 * len(marks.lines(label)) + 8) for label in order))
    return marks.drawn(
        table,
        *([joined] if len(order) > 1 else []),
        common.mark_point(filled=True, size=30, shape="circle", opacity=1, color=PALETTE[0])
        .transform_filter(one).encode(x=x),
        common.mark_rule(strokeWidth=2, color=PALETTE[1]).transform_filter(mean).encode(x=alt.X("low:Q"), x2="high:Q"),
        common.mark_point(filled=True, size=90, shape="diamond", opacity=1, color=PALETTE[1])
        .transform_filter(mean).encode(x=x),
        height=height,
    )  # fmt: skip


def sources(study: Snapshot) -> Iterator[Figure]:
    """Draw the standard deviation that each source adds to a result: where replicates or seeds are two or more."""
    found = study.sources
    if found is None:
        return
    rows = [
        {"source": one.source, "sd": one.variance**0.5, "low": one.low**0.5, "high": one.high**0.5, "n": one.n}
        for one in found.components
    ]
    table = marks.rounded(pd.DataFrame(rows))
    rim = REACH * float(table["sd"].max())
    beyond = int((table["high"] > rim).sum()) if rim > 0 else 0
    says = "How much of a result of one cell is luck of each kind, with 95 % intervals."
    says += f" {plural(beyond, 'interval')} {'ends' if beyond == 1 else 'end'} beyond the rim." if beyond else ""
    chart = _sources(table, f"standard deviation of {found.metric}", rim if beyond else None)
    yield Figure("variance", "Sources of variance", says, chart, table)


def _sources(table: pd.DataFrame, said: str, rim: float | None) -> alt.LayerChart:
    scale = alt.Scale(zero=True, nice=True) if rim is None else alt.Scale(domain=[0, rim], clamp=True, nice=False)
    x = alt.X("sd:Q", scale=scale, title=said, axis=alt.Axis(tickCount=TICKS, labelOverlap=True))
    order = list(table["source"])
    common = alt.Chart().encode(y=alt.Y("source:N", sort=order, title=None), tooltip=marks.tooltips(table))
    return marks.drawn(
        table,
        common.mark_rule(strokeWidth=2, color=PALETTE[0]).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        common.mark_point(filled=True, size=90, opacity=1, color=PALETTE[0]).encode(x=x),
        height=max(100.0, 44.0 * len(order)),
    )
