"""The figures of a course: how trials learned, and how the best grew with the trials."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from cs330ray.analysis.band import best_so_far, tuning_band
from cs330ray.report.figures import marks
from cs330ray.report.figures.marks import GREY, PALETTE, TICKS, Cells, Figure
from cs330ray.report.figures.search import Search, evenly

TOP_CURVES = 10
PRUNED_CURVES = 40
POINTS_OF_A_CURVE = 100
DOTS_OF_A_CURVE = 25  # more hide its dashes
LEAST_FOR_PROGRESS = 3  # trials of a cell
LINEAR_BUDGETS = 60  # numbers of trials up to which their axis is linear, and each has its point
BUDGETS = 100
NO_BAND = "a band needs random search without pruning, since it assumes independent, complete draws"

Rows = Mapping[tuple[str, int], pd.DataFrame]


def curves(search: Search) -> Iterator[Figure]:
    """How each objective went with the steps: the top trials, and some of the pruned ones faint behind them."""
    rows: Rows = {(str(cell), int(trial)): own for (cell, trial), own in search.opened.rows.groupby(["cell", "trial"])}
    objectives = search.opened.study.objective
    for objective in objectives:
        lines, pruned = _lines(search, objective, rows)
        if lines:
            name = f"curves/{objective}" if len(objectives) > 1 else "curves"
            table = marks.rounded(search.columns(pd.concat(lines), ["trial", "line", "step", objective]))
            says, chart = _curves(search, objective, table, pruned)
            yield Figure(name, f"Learning curves: {objective}", says, chart, table)


def _lines(search: Search, objective: str, rows: Rows) -> tuple[list[pd.DataFrame], int]:
    """The curves to draw, and how many pruned trials there are.

    They are the top trials, of one cell or, where cells are compared, the best of each, and some of the pruned ones.
    """
    if len(search.cells) == 1:
        top = [(title, trial.number) for title, found in search.ranked.items() for trial in found[:TOP_CURVES]]
    else:
        top = [(title, trial.number) for title, trial in search.best.items()][:TOP_CURVES]
    pruned = search.trials[search.trials["state"] == "PRUNED"]
    some = evenly(pruned, PRUNED_CURVES)
    wanted = [(*one, "top" if place else "best") for place, one in enumerate(top)]
    wanted += [(str(cell), int(trial), "pruned") for cell, trial in zip(some["cell"], some["trial"], strict=True)]
    found = [_line(search, rows, objective, *one) for one in wanted]
    return [line for line in found if not line.empty], len(pruned)


def _line(search: Search, rows: Rows, objective: str, cell: str, number: int, kind: str) -> pd.DataFrame:
    """The rows of a trial that hold an objective, behind those of the trials that it continues."""
    before = {trial.number: trial.continues for trial in search.held[cell]}
    line = [number]
    while (earlier := before[line[0]]) is not None:
        line.insert(0, earlier)
    parts = [rows[cell, each][["step", objective]] for each in line if (cell, each) in rows]
    found = pd.concat(parts) if parts else pd.DataFrame({"step": [], objective: []})
    found = evenly(found[[math.isfinite(value) for value in found[objective]]], POINTS_OF_A_CURVE)
    return found.assign(cell=cell, trial=number, line=kind)


def _curves(search: Search, objective: str, table: pd.DataFrame, pruned: int) -> tuple[str, alt.LayerChart]:
    cells, metric = search.cells_of(table), search.metrics[objective]
    window = marks.window(table[objective].tolist(), metric)
    title = marks.title(marks.said(objective, metric))
    steps = alt.Scale(zero=True, nice=False)
    base = alt.Chart().encode(
        x=alt.X("step:Q", title="step", scale=steps, axis=alt.Axis(tickCount=TICKS, labelOverlap=True)),
        y=alt.Y(
            field=marks.field(objective), type="quantitative", scale=window.scale(clamp=False), title=title
        ),
        detail=["cell:N", "trial:Q"] if "cell" in table else ["trial:Q"],
        tooltip=marks.tooltips(table),
    )  # fmt: skip
    pruned_line = marks.where("line", "pruned")
    faint = base.mark_line(color=GREY, strokeWidth=1, opacity=0.5, clip=True).transform_filter(pruned_line)
    layers = [faint] if (table["line"] == "pruned").any() else []
    strong = _strong(base, cells, table[table["line"] != "pruned"])
    layers += [each.transform_filter(f"!({pruned_line})") for each in strong]
    return _said(search, table, pruned) + window.says + cells.unsplit, marks.drawn(table, *layers)


def _strong(base: alt.Chart, cells: Cells, table: pd.DataFrame) -> Iterator[alt.Chart]:
    """The top trials: one a cell by colour and dash, or those of one cell, the very best thick; few rows as dots."""
    if table.empty:
        return
    if cells.split:
        yield base.mark_line(strokeWidth=2, clip=True).encode(color=cells.colour(), strokeDash=cells.dash())
    else:
        for kind, width, opacity in (("top", 1.2, 0.7), ("best", 2.5, 1.0)):
            line = base.mark_line(strokeWidth=width, opacity=opacity, clip=True, color=PALETTE[0])
            if (table["line"] == kind).any():
                yield line.transform_filter(marks.where("line", kind))
    dots = base.mark_point(fill=cells.paint(), strokeWidth=0, size=18, opacity=1, clip=True)
    of_each = [name for name in ("cell", "trial") if name in table]
    if table.groupby(of_each).size().min() > DOTS_OF_A_CURVE:
        return
    counted = dots.transform_joinaggregate(rows="count()", groupby=of_each)
    yield counted.transform_filter(f"datum.rows <= {DOTS_OF_A_CURVE}")


def _said(search: Search, table: pd.DataFrame, pruned: int) -> str:
    """Which trials are drawn, in words."""
    shown = table.drop_duplicates([name for name in ("cell", "trial") if name in table])["line"].value_counts()
    top = int(shown.get("best", 0)) + int(shown.get("top", 0))
    compared = len(search.cells) > 1
    said = f"The best trial of each of {top} cells" if compared else f"The best {top} trials, the very best thick"
    if compared and top < len(search.best):
        said = f"The best trials of the {top} best cells"
    if top == 1:
        said = "The best trial"
    if not top:
        said = "No trial is COMPLETE"
    behind = f"; faint are {shown.get('pruned', 0)} of {pruned} pruned ones" if pruned else ""
    continued = any(trial.continues is not None for found in search.ranked.values() for trial in found)
    joined = " A trial that continues another goes on from its curve." if continued else ""
    return f"{said}{behind}.{joined}"


# The best so far ------------------------------------------------------------------------------------------------------


def progress(search: Search) -> Iterator[Figure]:
    """The best so far against the number of trials; of random search without pruning, with the band of its median."""
    study = search.opened.study
    if not search.best or max(len(search.held[title]) for title in search.best) < LEAST_FOR_PROGRESS:
        return
    random = study.sampler.kind == "random" and study.prune.kind == "none" and not study.start
    if random and len(search.best) <= marks.MOST_CELLS:
        yield from _band(search)
        return
    found = [row for title in search.ranked for row in _grown(search, title)]
    table = marks.rounded(search.columns(pd.DataFrame(found), ["trials", "best", "trial"]))
    cells = search.cells_of(table)
    why = "bands of so many cells would hide one another" if random else NO_BAND
    window = marks.window(table["best"].tolist(), search.metric)
    base = _best_by_trials(search, table, window, "trials begun")
    line = base.mark_line(interpolate="step-after", strokeWidth=2)
    dots = base.mark_point(fill=cells.paint(), strokeWidth=0, size=25, opacity=1)
    chart = marks.drawn(
        table,
        line.encode(color=cells.colour(), strokeDash=cells.dash(), detail=_detail(table)),
        dots,
    )
    says = "The best value so far of one search, whose order is partly luck. There is no band: "
    yield Figure("progress", "Best so far", f"{says}{why}.{window.says}{cells.unsplit}", chart, table)


def _best_by_trials(search: Search, table: pd.DataFrame, window: marks.Window, title: str, log: bool = False) -> Any:
    """The frame of a curve of best values: its axes."""
    y = marks.title(f"best {marks.said(search.objective, search.metric)}")
    values = alt.Undefined if log else marks.whole_ticks(0, int(table["trials"].max()))
    ticks = alt.Axis(tickCount=TICKS, values=values, labelOverlap=True, format=",d")
    scale = marks.along(log=log, zero=True)
    layered = alt.Chart().encode(
        x=alt.X("trials:Q", title=title, axis=ticks, scale=scale), tooltip=marks.tooltips(table)
    )
    return layered.encode(y=alt.Y("best:Q", scale=window.scale(), title=y))


def _detail(table: pd.DataFrame) -> Any:
    return "cell:N" if "cell" in table else alt.Undefined


def _grown(search: Search, title: str) -> Iterator[dict[str, Any]]:
    """Where the best of a cell grew, and where its trials end: `trials` begun by then, and by which `trial`."""
    row: dict[str, Any] = {}
    for trial in sorted(search.ranked[title], key=lambda trial: trial.number):
        value = (trial.values or (math.nan,))[0]
        if not row or (value > row["best"] if search.metric.goal == "max" else value < row["best"]):
            row = {"cell": title, "trials": trial.number + 1, "best": value, "trial": trial.number}
            yield row
    last = max((trial.number for trial in search.held[title]), default=0)
    if row and last > row["trial"]:
        yield {**row, "trials": last + 1}


def _band(search: Search) -> Iterator[Figure]:
    """The median tuning curve of each cell with its band, and the best so far of the one cell."""
    drawn = {title: _draws(search, title) for title in search.best}
    found = [row for title, values in drawn.items() for row in _budgets(search, title, values)]
    longest = max(map(len, drawn.values()), default=0)
    table = marks.rounded(search.columns(pd.DataFrame(found), ["trials", "best", "median", "low", "high"]))
    cells = search.cells_of(table)
    window = marks.window([*table["median"], *table["low"], *table["high"], *table["best"]], search.metric)
    log = longest > LINEAR_BUDGETS
    base = _best_by_trials(search, table, window, f"random trials{' (log scale)' if log else ''}", log)
    area = base.transform_calculate(
        bottom=f"isValid(datum.low) ? datum.low : {window.low}", top=f"isValid(datum.high) ? datum.high : {window.high}"
    )
    layers = [
        area.mark_area(fill=cells.paint(), opacity=0.2).encode(
            y=alt.Y("bottom:Q"), y2="top:Q", detail=_detail(table)
        ),
        base.transform_filter("isValid(datum.median)").mark_line(strokeWidth=2).encode(
            y="median:Q", color=cells.colour(), strokeDash=cells.dash(), detail=_detail(table)
        ),
    ]  # fmt: skip
    says = (
        "The line is the median best of so many random trials; the band holds that whole curve in 95 of 100 studies, "
        "and ends with the metric's range where the trials cannot say more. A failed trial counts as the worst draw."
    )
    if len(search.cells) == 1:
        layers.append(base.mark_line(interpolate="step-after", strokeWidth=1.2, strokeDash=[3, 2], color=GREY))
        says += " Dashed is the best so far of this search, in its order."
    yield Figure("progress", "Best of so many random trials", says, marks.drawn(table, *layers), table)


def _draws(search: Search, title: str) -> list[float]:
    """What a cell's trials drew, in their order; those lost say nothing, others that failed are the worst."""
    worst = -math.inf if search.metric.goal == "max" else math.inf
    ranked = {trial.number for trial in search.ranked[title]}
    return [
        (trial.values or (worst,))[0] if trial.number in ranked else worst
        for trial in sorted(search.held[title], key=lambda trial: trial.number)
        if trial.number in ranked or (trial.state == "FAIL" and trial.cause not in ("lost", "stopped"))
    ]


def _budgets(search: Search, title: str, values: Sequence[float]) -> Iterator[dict[str, Any]]:
    """The curves of a cell at budgets from one trial to all."""
    metric = search.metric
    band = tuning_band(values, metric.goal, metric.low, metric.high)
    best = best_so_far([value if math.isfinite(value) else math.nan for value in values], metric.goal)
    for k in _spaced(len(values)):
        curves = {"best": best[k - 1], "median": band.median[k - 1], "low": band.low[k - 1], "high": band.high[k - 1]}
        yield {"cell": title, "trials": k, **curves}


def _spaced(n: int) -> list[int]:
    """Numbers from 1 to n: all where they are few, else by equal ratios."""
    if n <= LINEAR_BUDGETS:
        return list(range(1, n + 1))
    return sorted({round(n ** (index / (BUDGETS - 1))) for index in range(BUDGETS)})
