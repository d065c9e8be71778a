"""What all figures share: a figure with its numbers, marks that can be read in grey, axes that say which way is better.

The page sets text and background, light or dark; the colours here are mid tones that stand on both.
"""

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from cs330ray.trial import Metric

HEIGHT = 260
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07C00", "#56A0CC")  # Okabe and Ito's, the light ones darker
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (12, 4), (4, 1))
GREY = "#808080"
FAILED = "M-0.7,-0.7L0.7,0.7M0.7,-0.7L-0.7,0.7"  # an x
MOST_CELLS = len(PALETTE)  # that a figure tells apart
DIGITS = 5
LINE = 22  # characters of a label in a narrow page


@dataclass(frozen=True)
class Figure:
    """One figure: how it is called, how it is read, the chart, and the numbers it draws, its one data set."""

    name: str
    title: str
    says: str
    chart: alt.TopLevelMixin
    table: pd.DataFrame


def drawn(table: pd.DataFrame, *layers: alt.Chart, height: float = HEIGHT) -> alt.LayerChart:
    """The layers over a table, as wide as what holds them."""
    return alt.layer(*layers, data=alt.InlineData(values=records(table))).properties(width="container", height=height)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON has it: what is not a finite number is null."""
    columns = [[_plain(value) for value in table[name].tolist()] for name in table.columns]
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose numbers have `DIGITS` digits, its rows numbered anew."""
    short = table.reset_index(drop=True)
    for name in short.columns:
        if pd.api.types.is_float_dtype(short[name]):
            short[name] = [float(f"{value:.{DIGITS}g}") for value in short[name]]
    return short


def field(name: str) -> str:
    """The name of a column as Vega-Lite reads it: a bare dot or bracket would look into the value."""
    return re.sub(r"([.\[\]\\])", r"\\\1", name)


def where(column: str, value: object) -> str:
    """The rows that have a value in a column, as an expression of Vega's."""
    return f"datum[{json.dumps(column)}] === {json.dumps(value)}"


def tooltips(table: pd.DataFrame) -> list[alt.Tooltip]:
    """All that a row holds."""
    numeric = pd.api.types.is_numeric_dtype
    return [
        alt.Tooltip(
            field=field(name),
            type="quantitative" if numeric(table[name]) and table[name].dtype != bool else "nominal",
            title=name,
        )
        for name in table.columns
    ]


def said(name: str, metric: Metric | None) -> str:
    """A metric with its unit and goal: `val_mse in stars^2 (lower is better)`."""
    if metric is None:
        return name
    unit = f" in {metric.unit}" if metric.unit else ""
    return f"{name}{unit} ({'higher' if metric.goal == 'max' else 'lower'} is better)"


def wrapped(labels: Sequence[str]) -> str:
    """The expression of an axis that breaks its labels into lines, so that long ones leave room for the plot."""
    lines = {label: textwrap.wrap(label, LINE) or [""] for label in labels}
    return f"({json.dumps(lines)})[datum.label]"


def most_lines(labels: Sequence[str]) -> int:
    """The lines of the longest label."""
    return max((len(textwrap.wrap(label, LINE)) for label in labels), default=1)


class Cells:
    """The cells of a figure: told apart by colour and shape, or colour and dash, where they are few; else not at all."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.titles = list(titles)
        self.split = 1 < len(self.titles) <= MOST_CELLS

    def colour(self) -> Any:
        """The channel of colours."""
        return self._channel(alt.Color, PALETTE) if self.split else alt.value(PALETTE[0])

    def shape(self) -> Any:
        """The channel of shapes."""
        return self._channel(alt.Shape, SHAPES) if self.split else alt.value(SHAPES[0])

    def dash(self) -> Any:
        """The channel of dashes."""
        return self._channel(alt.StrokeDash, DASHES) if self.split else alt.value(DASHES[0])

    def _channel(self, channel: Any, values: Sequence[Any]) -> Any:
        n = len(self.titles)
        scale = alt.Scale(domain=self.titles, range=list(values[:n]))
        return channel(field="cell", type="nominal", scale=scale, legend=self.legend())

    def legend(self) -> alt.Legend:
        """Below the plot, in as many columns as the longest title leaves room for."""
        longest = max(map(len, self.titles))
        columns = 3 if longest <= 12 else 2 if longest <= 22 else 1
        return alt.Legend(orient="bottom", columns=columns, title=None, labelLimit=300, symbolSize=80)

    @property
    def unsplit(self) -> str:
        """That cells are not told apart, in words; empty where they are."""
        many = len(self.titles) > MOST_CELLS
        return f" The {len(self.titles)} cells are too many to be told apart here." if many else ""


def window(values: Sequence[float], metric: Metric) -> tuple[float, float, int]:
    """The part of an axis worth its room: its ends, and how many values lie beyond.

    The good end is the best value; the bad one leaves out what is further off than three times the distance between
    the quartiles from the nearer quartile (Tukey's far outliers), which one diverged trial would stretch the axis for.
    """
    found = pd.Series([value for value in values if math.isfinite(value)])
    low, high = float(found.min()), float(found.max())
    lower, upper = float(found.quantile(0.25)), float(found.quantile(0.75))
    reach = 3 * (upper - lower)
    if metric.goal == "max" and reach > 0:
        low = max(low, lower - reach)
    if metric.goal == "min" and reach > 0:
        high = min(high, upper + reach)
    beyond = int(((found < low) | (found > high)).sum())
    room = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room, beyond


def scale(values: Sequence[float], metric: Metric) -> tuple[alt.Scale, str]:
    """The scale of an objective, and in words what lies beyond it."""
    low, high, beyond = window(values, metric)
    ends = [float(f"{low:.{DIGITS}g}"), float(f"{high:.{DIGITS}g}")]
    plain = f" {beyond} value{'s' * (beyond > 1)} far off {'are' if beyond > 1 else 'is'} drawn at the rim."
    return alt.Scale(domain=ends, clamp=True, nice=False, zero=False), plain if beyond else ""


def metric_of(known: Mapping[str, Metric], name: str) -> Metric | None:
    """What a metric means, one on an axis (`test_accuracy/shots/4`) as the metric itself."""
    return known.get(name, known.get(name.split("/")[0]))
