"""The figures of the answer: the confirmed choices, the Pareto front, metrics over an axis."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import altair as alt
import pandas as pd

from cs330ray.analysis import frames
from cs330ray.analysis.statistics import over_seeds
from cs330ray.ledger.confirm import on_test
from cs330ray.report.figures import marks as drawing
from cs330ray.report.figures.marks import GREY, PALETTE, TICKS, Figure
from cs330ray.report.figures.search import Search
from cs330ray.spec.columns import beside
from cs330ray.spec.study import Cell
from cs330ray.words import plural

MOST_ALTERNATIVES = 20
SPLITS = ("validation", "test")
MEAN, SEARCH = "mean over fresh seeds", "the search's value"
OVER_AXIS = ("cell", "trial", "low", "high", "n", "place")  # columns beside a metric and its axis
APART_LOG, APART = 0.05, 0.012  # by which cells stand beside one another at one place of an axis


# Confirmation --------------------------------------------------------------------------------------------------------


def confirmed(search: Search) -> Iterator[Figure]:
    """The choices of the cells, or the candidates of the one cell, over fresh seeds; one figure an objective."""
    found, objectives = search.opened.confirmed, search.opened.study.objective
    found = found[found["chosen" if len(search.cells) > 1 else "whole"].astype(bool)]
    for objective in objectives:
        rows = found[found["metric"] == objective]
        if not rows.empty:
            name = f"confirmed/{objective}" if len(objectives) > 1 else "confirmed"
            yield _confirmed(search, name, objective, rows)


def _confirmed(search: Search, name: str, objective: str, rows: pd.DataFrame) -> Figure:
    rows = rows.sort_values("validation", ascending=search.metrics[objective].goal == "min", kind="stable")
    shown = rows.iloc[:MOST_ALTERNATIVES]
    found = [line for row in shown.to_dict("records") for line in _alternative(search, objective, row)]
    table = drawing.rounded(pd.DataFrame(found))
    says = (
        "Means over fresh seeds with their 95 % intervals (Student's t over the seeds), the best validation first; a "
        "small mark is one seed, a tick what the search had promised. Test chooses nothing."
    )
    if (shown["n"] == 1).any():
        says += " One seed has no interval."
    if len(shown) < len(rows):
        says += f" The best {len(shown)} of {len(rows)} are drawn."
    if len(search.cells) == 1:
        held = search.opened.confirmed
        part = int((~held[held["metric"] == objective]["whole"].astype(bool)).sum())
        says += f" {part} that are not COMPLETE on every seed, or no longer candidates, are left out." if part else ""
    if (missing := len(search.cells) - len(rows)) > 0:
        says += f" {missing} of {len(search.cells)} cells have no confirmed choice."
    base = objective.removeprefix("val_")
    return Figure(name, f"Confirmed on fresh seeds: {base}", says, _alternatives(search, objective, table), table)


def _alternative(search: Search, objective: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A candidate's means, its single seeds, and what the search had promised."""
    one = len(search.cells) == 1
    label = f"trial {row['trial']}{' (chosen)' if row['chosen'] else ''}" if one else row["cell"]
    runs = search.opened.runs
    runs = runs[(runs["cell"] == row["cell"]) & (runs["trial"] == row["trial"]) & (runs["state"] == "COMPLETE")]
    single = {"low": math.nan, "high": math.nan, "n": 1}
    for split, metric in zip(SPLITS, (objective, on_test(objective)), strict=True):
        values = {
            seed: value for seed, value in zip(runs["fresh"], runs.get(metric, []), strict=False) if value == value
        }
        place = {"alternative": label, "trial": row["trial"], "split": split}
        if values:
            ends = {"low": row[f"{split}_low"], "high": row[f"{split}_high"], "n": len(values)}
            yield {**place, "what": MEAN, "value": row[split], **ends}
            yield from (
                {**place, "what": f"fresh seed {seed}", "value": value, **single} for seed, value in values.items()
            )
    yield {
        "alternative": label,
        "trial": row["trial"],
        "split": SPLITS[0],
        "what": SEARCH,
        "value": row["searched"],
        **single,
    }


def _alternatives(search: Search, objective: str, table: pd.DataFrame) -> alt.LayerChart:
    """Each alternative in a band of its own, its validation above its test."""
    order = list(dict.fromkeys(table["alternative"]))
    splits = [split for split in SPLITS if split in set(table["split"])]
    base = objective.removeprefix("val_")
    title = drawing.title(drawing.said(base, search.metrics[objective]), longest=20)
    ticks = alt.Axis(tickCount=TICKS, labelOverlap=True)
    x = alt.X("value:Q", scale=alt.Scale(zero=False, padding=8), title=title, axis=ticks)
    legend = alt.Legend(orient="bottom", title=None, symbolOpacity=1, symbolSize=90)
    colours = alt.Scale(domain=splits, range=list(PALETTE[: len(splits)]))
    shapes = alt.Scale(domain=splits, range=["circle", "diamond"][: len(splits)])
    shape = alt.Shape("split:N", scale=shapes, legend=legend)
    labels = alt.Axis(labelExpr=drawing.wrapped(order), labelLimit=150)
    common = alt.Chart().encode(
        y=alt.Y("alternative:N", sort=order, title=None, axis=labels),
        yOffset=alt.YOffset("split:N", sort=splits),
        color=alt.Color("split:N", scale=colours, legend=legend),
        tooltip=drawing.tooltips(table),
    )  # fmt: skip
    mean, promised = drawing.where("what", MEAN), drawing.where("what", SEARCH)
    rule = common.mark_rule(strokeWidth=2).transform_filter(f"{mean} && isValid(datum.low)")
    intervals = [rule.encode(x=alt.X("low:Q"), x2="high:Q")] if table["low"].notna().any() else []
    height = max(100.0, sum(max(44.0, 14.0 * len(drawing.lines(label)) + 8) for label in order))
    return drawing.drawn(
        table,
        *intervals,
        common.mark_point(size=25, filled=True, opacity=0.5)
        .transform_filter(f"!({mean} || {promised})").encode(x=x, shape=shape),
        common.mark_tick(thickness=2, size=16).transform_filter(promised).encode(x=x, color=alt.value(GREY)),
        common.mark_point(size=90, filled=True, opacity=1).transform_filter(mean).encode(x=x, shape=shape),
        height=height,
    )  # fmt: skip


# The front -----------------------------------------------------------------------------------------------------------


def front(search: Search) -> Iterator[Figure]:
    """All trials by the first two objectives, and who of them no other of the cell dominates."""
    if len(search.goals) < 2:
        return
    found = [row for title in search.ranked for row in _placed(search, title)]
    if not found:
        return
    frame = pd.DataFrame(found)
    shown, fewer = search.thinned(frame)
    shown = frame[frame.index.isin(shown.index) | frame["front"] | frame["chosen"]]
    objectives = search.opened.study.objective
    table = drawing.rounded(search.columns(shown, ["trial", *objectives, "front", "chosen"]))
    says = "Filled marks are trials that no other of their cell betters in every objective, hollow ones are dominated"
    says += "; a ring is a confirmed choice. All are" if frame["chosen"].any() else ". They stand"
    says += " at the values of the search."
    if len(objectives) > 2:
        says += f" The front is one in all {len(objectives)} objectives, of which two are drawn."
    windows = [drawing.window(table[name].tolist(), search.metrics[name]) for name in objectives[:2]]
    far = sum(window.beyond for window in windows)
    says += f" {plural(far, 'value')} far off: at the rim." if far else ""
    chart = _front(search, table, windows)
    title = f"{objectives[0]} against {objectives[1]}"
    yield Figure("front", title, f"{says}{fewer}{search.cells_of(table).unsplit}", chart, table)


def _placed(search: Search, title: str) -> Iterator[dict[str, Any]]:
    """The trials of a cell at their objectives."""
    cell = next(cell for cell in search.opened.standings if cell.cell.title == title)
    members = {trial.number for trial in cell.front}
    chosen = cell.chosen.searched.number if cell.chosen is not None else None
    for trial in sorted(cell.ranked, key=lambda trial: trial.number):
        objectives = dict(zip(search.opened.study.objective, trial.values or (), strict=True))
        marks = {"front": trial.number in members, "chosen": trial.number == chosen}
        yield {"cell": title, "trial": trial.number, **objectives, **marks}


def _front(search: Search, table: pd.DataFrame, windows: list[drawing.Window]) -> alt.LayerChart:
    cells = search.cells_of(table)
    first, second = search.opened.study.objective[:2]
    titles = [drawing.title(drawing.said(name, search.metrics[name])) for name in (first, second)]
    ticks = alt.Axis(tickCount=TICKS, labelOverlap=True)
    x = alt.X(field=drawing.field(first), type="quantitative", scale=windows[0].scale(), title=titles[0], axis=ticks)
    y = alt.Y(field=drawing.field(second), type="quantitative", scale=windows[1].scale(), title=titles[1])
    base = alt.Chart().encode(x=x, y=y, color=cells.colour(), tooltip=drawing.tooltips(table))
    hollow = base.mark_point(filled=False, size=40, strokeWidth=1.4, opacity=0.8).encode(shape=cells.shape())
    filled = base.mark_point(filled=True, size=75, opacity=1).encode(shape=cells.shape())
    ring = alt.Chart().mark_point(filled=False, shape="circle", size=260, strokeWidth=2, color=GREY, opacity=1)
    member = drawing.where("front", True)
    layers = [hollow.transform_filter(drawing.where("front", False))]
    if len(search.goals) == 2 and (cells.split or len(cells.titles) == 1):  # else it is no line of steps
        line = base.mark_line(interpolate="step-before" if search.goals[0] == "max" else "step-after", strokeWidth=1.5)
        layers.append(line.transform_filter(member).encode(strokeDash=cells.dash()))
    layers += [filled.transform_filter(member), ring.transform_filter(drawing.where("chosen", True)).encode(x=x, y=y)]
    return drawing.drawn(table, *layers)


# Metrics over an axis ------------------------------------------------------------------------------------------------


def axes(search: Search) -> Iterator[Figure]:
    """Each family of test metrics over an axis: the choices of the cells, over fresh seeds."""
    for metric, axis, places in frames.axes(search.opened.runs.columns):
        (axis,), (metric,) = beside({axis: 0}, OVER_AXIS, "axis"), beside({metric: 0}, {axis, *OVER_AXIS}, "test")
        found = [row for cell in search.cells for row in _over_axis(search, cell, metric, axis, places)]
        if found:
            frame = drawing.rounded(search.columns(pd.DataFrame(found), ["trial", axis, metric, "low", "high", "n"]))
            chart = _axis(search, metric, axis, frame)
            whose = "each cell's confirmed choice" if len(search.cells) > 1 else "the confirmed choice"
            says = f"Mean over fresh seeds of {whose}, with its 95 % interval (Student's t over the seeds)."
            says += " One seed has no interval." if (frame["n"] == 1).any() else ""
            cells = search.cells_of(frame)
            says += " Cells stand a little apart at each place." if cells.split else ""
            yield Figure(f"axis/{metric}/{axis}", f"{metric} by {axis}", says + cells.unsplit, chart, frame)


def _over_axis(
    search: Search, cell: Cell, metric: str, axis: str, places: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """The mean of a cell's choice at each place of an axis."""
    runs, candidates = search.opened.runs, search.opened.confirmed
    chosen = set(candidates[candidates["chosen"].astype(bool) & (candidates["cell"] == cell.title)]["trial"])
    own = runs[(runs["cell"] == cell.title) & runs["trial"].isin(chosen) & (runs["state"] == "COMPLETE")]
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        values = [value for value in own[name] if math.isfinite(value)]
        if values:
            reached = over_seeds(values)
            low, high = (reached.low, reached.high) if reached.n > 1 else (math.nan, math.nan)
            at = {"cell": cell.title, "trial": int(own["trial"].iloc[0]), axis: place}
            yield {**at, metric: reached.mean, "low": low, "high": high, "n": reached.n}


def _axis(search: Search, metric: str, axis: str, table: pd.DataFrame) -> alt.LayerChart:
    cells, places = search.cells_of(table), sorted(set(table[axis]))
    log = places[0] > 0 and places[-1] >= 4 * places[0]
    kind: dict[str, Any] = {"type": "log", "base": 2} if log else {"type": "linear", "zero": False}
    scale, ticks = alt.Scale(**kind, nice=False, padding=14), alt.Axis(values=places, labelOverlap=True, grid=False)
    x = alt.X("place:Q", scale=scale, axis=ticks, title=f"{axis} (log scale)" if log else axis)
    title = drawing.title(drawing.said(metric, drawing.metric_of(search.metrics, metric)))
    y = alt.Y(field=drawing.field(metric), type="quantitative", scale=alt.Scale(zero=False), title=title)
    base = alt.Chart().encode(x=x, color=cells.colour(), tooltip=drawing.tooltips(table))
    rule = base.mark_rule(strokeWidth=1.5).transform_filter("isValid(datum.low)")
    intervals = [rule.encode(y=alt.Y("low:Q"), y2="high:Q")] if table["low"].notna().any() else []
    detail: Any = "cell:N" if "cell" in table else alt.Undefined
    chart = drawing.drawn(
        table,
        *intervals,
        base.mark_line(strokeWidth=1.5).encode(y=y, strokeDash=cells.dash(), detail=detail),
        base.mark_point(filled=True, size=65, opacity=1).encode(y=y, shape=cells.shape()),
    )
    at = f"datum[{json.dumps(axis)}]"
    if cells.split:
        aside = f"(indexof({json.dumps(cells.titles)}, datum.cell) - {(len(cells.titles) - 1) / 2})"
        step = APART * (places[-1] - places[0])
        at = f"{at} * pow(2, {APART_LOG} * {aside})" if log else f"{at} + {step} * {aside}"
    return chart.transform_calculate(place=at)
