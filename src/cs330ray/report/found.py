"""The figures of what was found: the confirmed choices, the Pareto front, metrics over an axis."""

import math
from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from cs330ray.report import drawing, frames
from cs330ray.report.drawing import GREY, PALETTE, Figure
from cs330ray.report.searched import Search
from cs330ray.report.statistics import over_seeds
from cs330ray.service import confirm

MOST_ALTERNATIVES = 20
VALIDATION, TEST = "validation", "test"


def confirmed(search: Search) -> Iterator[Figure]:
    """The choices of the cells, or the candidates of the one cell, over fresh seeds; one figure an objective."""
    study = search.opened.study
    found = search.opened.confirmed
    for objective in study.objective:
        rows = found[found["metric"] == objective]
        if len(search.cells) > 1:
            rows = rows[rows["chosen"].astype(bool)]
        if not rows.empty:
            yield _confirmed(search, objective, rows)


def _confirmed(search: Search, objective: str, rows: pd.DataFrame) -> Figure:
    metric, compared = search.metrics[objective], len(search.cells) > 1
    rows = rows.sort_values("validation", ascending=metric.goal == "min", kind="stable")
    shown = rows.iloc[:MOST_ALTERNATIVES]
    table = drawing.rounded(
        pd.DataFrame(
            [line for row in shown.to_dict("records") for line in _alternative(search, objective, row, compared)]
        )
    )
    order = list(dict.fromkeys(table["alternative"]))
    base = objective.removeprefix("val_")
    x = alt.X("value:Q", scale=alt.Scale(zero=False), title=_two_lines(base, drawing.said(base, metric)))
    axis = alt.Axis(labelExpr=drawing.wrapped(order), labelLimit=150)
    y = alt.Y("alternative:N", sort=order, title=None, axis=axis)
    splits = [split for split in (VALIDATION, TEST) if split in set(table["split"])]
    legend = alt.Legend(orient="bottom", title=None)
    colour = alt.Color("split:N", scale=alt.Scale(domain=splits, range=list(PALETTE[: len(splits)])), legend=legend)
    shape = alt.Shape(
        "split:N", scale=alt.Scale(domain=splits, range=["circle", "diamond"][: len(splits)]), legend=legend
    )
    common = alt.Chart().encode(
        y=y, yOffset=alt.YOffset("split:N", sort=splits), color=colour, tooltip=drawing.tooltips(table)
    )
    mean, seed = drawing.where("what", "mean"), f"!({drawing.where('what', 'mean')})"
    layers = [
        common.mark_point(size=25, filled=True, opacity=0.4).transform_filter(seed).encode(x=x, shape=shape),
        common.mark_rule(strokeWidth=2).transform_filter(f"{mean} && isValid(datum.low)").encode(x=alt.X("low:Q"), x2="high:Q"),
        common.mark_point(size=90, filled=True, opacity=1).transform_filter(mean).encode(x=x, shape=shape),
    ]  # fmt: skip
    height = max(120.0, sum(max(44, 15 * drawing.most_lines([label])) for label in order))
    says = (
        "Mean over fresh seeds with its 95 % interval (Student's t over seeds), the best validation first; each seed is a small mark. "
        "Validation chose, test chooses nothing."
        + (f" The best {len(shown)} of {len(rows)} are drawn." if len(shown) < len(rows) else "")
        + (" One seed has no interval." if (rows["n"] == 1).any() else "")
    )
    several = len(search.opened.study.objective) > 1
    name = f"confirmed/{objective}" if several else "confirmed"
    return Figure(name, f"Confirmed on fresh seeds: {base}", says, drawing.drawn(table, *layers, height=height), table)


def _two_lines(first: str, text: str) -> list[str]:
    return [first, text.removeprefix(first).strip()]


def _alternative(search: Search, objective: str, row: dict[str, Any], compared: bool) -> Iterator[dict[str, Any]]:
    """A candidate's means, and its single seeds."""
    label = row["cell"] if compared else f"trial {row['trial']}{' (chosen)' if row['chosen'] else ''}"
    place = {"alternative": label, "trial": row["trial"]}
    runs = search.opened.runs
    runs = runs[(runs["cell"] == row["cell"]) & (runs["trial"] == row["trial"]) & (runs["state"] == "COMPLETE")]
    for split, name in ((VALIDATION, objective), (TEST, f"test_{objective.removeprefix('val_')}")):
        if name not in runs or not math.isfinite(row[split]):
            continue
        yield {
            **place,
            "split": split,
            "what": "mean",
            "value": row[split],
            "low": row[f"{split}_low"],
            "high": row[f"{split}_high"],
            "n": row["n"],
        }
        for seed, value in zip(runs["fresh"], runs[name], strict=True):
            if math.isfinite(value):
                yield {
                    **place,
                    "split": split,
                    "what": f"fresh seed {seed}",
                    "value": value,
                    "low": math.nan,
                    "high": math.nan,
                    "n": 1,
                }


def front(search: Search) -> Iterator[Figure]:
    """All COMPLETE trials by the first two objectives, and who of them no other dominates."""
    study, goals = search.opened.study, list(search.opened.goals.values())
    if len(goals) < 2:
        return
    chosen = search.opened.confirmed
    picked = {(row["cell"], row["trial"]) for row in chosen[chosen["chosen"].astype(bool)].to_dict("records")}
    found = []
    for title, trials in search.ranked.items():
        members = {trial.number for trial in confirm.pareto_front(trials, goals)}
        found += [
            {"cell": title, "trial": trial.number, **dict(zip(study.objective, trial.values or (), strict=True)),
             "front": trial.number in members, "chosen": (title, trial.number) in picked}
            for trial in sorted(trials, key=lambda trial: trial.number)
        ]  # fmt: skip
    if not found:
        return
    table = drawing.rounded(pd.DataFrame(found))
    cells = search.cells_of(table)
    first, second = study.objective[:2]
    scales, beyond = zip(
        *(drawing.scale(table[name].tolist(), search.metrics[name]) for name in (first, second)), strict=True
    )
    x = alt.X(
        field=drawing.field(first),
        type="quantitative",
        scale=scales[0],
        title=drawing.said(first, search.metrics[first]),
        axis=alt.Axis(tickCount=6, labelOverlap=True),
    )
    y = alt.Y(
        field=drawing.field(second),
        type="quantitative",
        scale=scales[1],
        title=drawing.said(second, search.metrics[second]),
    )
    base = alt.Chart().encode(x=x, y=y, color=cells.colour(), tooltip=drawing.tooltips(table))
    layers = [
        base.mark_point(filled=False, size=40, opacity=0.6)
        .transform_filter(drawing.where("front", False))
        .encode(shape=cells.shape())
    ]
    if len(goals) == 2:
        corner = "step-before" if goals[0] == "max" else "step-after"
        layers.append(
            base.mark_line(interpolate=corner, strokeWidth=1.5, opacity=0.8)
            .transform_filter(drawing.where("front", True))
            .encode(strokeDash=cells.dash(), detail="cell:N")
        )
    layers.append(
        base.mark_point(filled=True, size=70, opacity=1)
        .transform_filter(drawing.where("front", True))
        .encode(shape=cells.shape())
    )
    ring = alt.Chart().mark_point(filled=False, shape="circle", size=260, strokeWidth=2, color=GREY, opacity=1)
    layers.append(ring.transform_filter(drawing.where("chosen", True)).encode(x=x, y=y))
    says = (
        "A filled mark is a trial that no other of its cell betters in every objective, at its values of the search; hollow ones are dominated"
        + ("; a ring is the confirmed choice." if picked else ".")
        + (f" The front is one in all {len(goals)} objectives." if len(goals) > 2 else "")
        + "".join(beyond)
        + cells.unsplit
    )
    yield Figure("front", f"{first} against {second}", says, drawing.drawn(table, *layers), table)


def axes(search: Search) -> Iterator[Figure]:
    """Each family of test metrics over an axis: the choices of the cells, over fresh seeds."""
    runs, chosen = search.opened.runs, search.opened.confirmed
    picked = chosen[chosen["chosen"].astype(bool) & (chosen["metric"] == search.objective)]
    for metric, axis, places in frames.axes(
        [name for name in runs.columns if name not in search.opened.study.objective]
    ):
        found = []
        for row in picked.to_dict("records"):
            own = runs[(runs["cell"] == row["cell"]) & (runs["trial"] == row["trial"]) & (runs["state"] == "COMPLETE")]
            for name, place in sorted(places.items(), key=lambda item: item[1]):
                values = [value for value in own[name] if math.isfinite(value)]
                if values:
                    reached = over_seeds(values)
                    ends = (reached.low, reached.high) if reached.n > 1 else (math.nan, math.nan)
                    found.append(
                        {
                            "cell": row["cell"],
                            "trial": row["trial"],
                            axis: place,
                            metric: reached.mean,
                            "low": ends[0],
                            "high": ends[1],
                            "n": reached.n,
                        }
                    )
        if found:
            yield _axis(search, metric, axis, drawing.rounded(pd.DataFrame(found)))


def _axis(search: Search, metric: str, axis: str, table: pd.DataFrame) -> Figure:
    cells = search.cells_of(table)
    places = sorted(set(table[axis]))
    log = places[0] > 0 and places[-1] >= 4 * places[0]
    scale = (
        alt.Scale(type="log", base=2, nice=False, padding=12) if log else alt.Scale(zero=False, nice=False, padding=12)
    )
    ticks = alt.Axis(values=places, labelOverlap=True)
    x = alt.X(
        field=drawing.field(axis),
        type="quantitative",
        scale=scale,
        axis=ticks,
        title=f"{axis}{' (log scale)' if log else ''}",
    )
    title = drawing.said(metric, drawing.metric_of(search.metrics, metric))
    y = alt.Y(field=drawing.field(metric), type="quantitative", scale=alt.Scale(zero=False), title=title)
    base = alt.Chart().encode(x=x, color=cells.colour(), tooltip=drawing.tooltips(table))
    layers = [
        base.mark_rule(strokeWidth=1.5).transform_filter("isValid(datum.low)").encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=y, strokeDash=cells.dash(), detail="cell:N"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=cells.shape()),
    ]
    says = f"Mean over fresh seeds of each cell's confirmed choice, with its 95 % interval (Student's t over seeds) where there are several.{cells.unsplit}"
    if len(search.cells) == 1:
        says = says.replace("each cell's", "the")
    return Figure(f"axis/{metric}/{axis}", f"{metric} by {axis}", says, drawing.drawn(table, *layers), table)
