"""The figure of one question over several splits of the data."""

from collections.abc import Sequence

import altair as alt
import pandas as pd

from cs330ray.analysis.comparison import Alternative
from cs330ray.analysis.statistics import over_seeds
from cs330ray.report.figures import marks
from cs330ray.report.figures.marks import PALETTE, Figure

PARTS = ("validation", "test")


def over_the_splits(
    metric: str, goal: str, held: Sequence[Alternative], order: Sequence[str], splits: Sequence[str]
) -> Figure:
    """Each alternative's mean over the splits with its interval, and each split as a faint mark."""
    table = marks.rounded(pd.DataFrame([row for one in held for row in _rows(one, splits)]))
    better = "higher" if goal == "max" else "lower"
    legend = alt.Legend(orient="bottom", title=None)
    base = alt.Chart().encode(
        y=alt.Y("cell:N").sort(list(order)).title(None).axis(labelExpr=marks.wrapped(order)),
        yOffset=alt.YOffset("part:N").sort(list(PARTS)),
        color=alt.Color("part:N", scale=alt.Scale(domain=PARTS, range=PALETTE[:2]), legend=legend),
        tooltip=marks.tooltips(table),
    )
    shape = alt.Shape("part:N", scale=alt.Scale(domain=PARTS, range=["circle", "diamond"]), legend=legend)
    value = alt.X("value:Q", title=f"{metric} ({better} is better)", scale=alt.Scale(zero=False))
    layers = [base.mark_point(opacity=0.5, size=25).encode(x=value, shape=shape)]
    if table["low"].notna().any():
        layers.append(base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q"))
    layers.append(base.mark_point(filled=True, size=80, opacity=1).encode(x="mean:Q", shape=shape))
    says = (
        "Filled: the mean over the splits, with Student's t over them; faint: each split's mean over its fresh seeds. "
        "Test chooses nothing."
    )
    chart = marks.drawn(table, *layers, height=max(110.0, 48.0 * len(order)))
    return Figure(f"splits/{metric}", f"{metric} over {len(splits)} splits", says, chart, table)


def _rows(one: Alternative, splits: Sequence[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for part, values in zip(PARTS, (one.validation, one.test), strict=True):
        if values:
            mean = over_seeds(list(values.values()))
            low, high = (mean.low, mean.high) if mean.n > 1 else (None, None)
            rows += [
                {"cell": one.name, "part": part, "split": splits[split], "value": value, "mean": mean.mean,
                 "low": low, "high": high}
                for split, value in values.items()
            ]  # fmt: skip
    return rows
