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

from cs330ray.trial.contract import Metric

HEIGHT = 260
PALETTE = (  # Okabe and Ito's, towards mid tones, and two more
    "#1F7FBF", "#D55E00", "#009E73", "#CC79A7", "#B07C00", "#56A0CC", "#7D5BA6", "#7E8C2C",
)  # fmt: skip
SHAPES = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-left", "triangle-right",
)  # fmt: skip
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (14, 4), (4, 1), (9, 2, 2, 2, 2, 2), (2, 5))
GREY = "#808080"
FAILED = "M-0.7,-0.7L0.7,0.7M0.7,-0.7L-0.7,0.7"  # an x
MOST_CELLS = len(PALETTE)  # that a figure tells apart
DIGITS = 5
TICKS = 6
LINES = 3
LABEL = 24  # characters of a line beside the plot, in a narrow page
LONGEST_TITLE = 40  # characters along an axis
SQUEEZED = 5  # an axis leaves out what would squeeze the better three quarters into less than one in `SQUEEZED`


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
    data = {"values": records(table)}  # not InlineData, whose rows Altair would validate one by one
    chart = alt.LayerChart(layer=list(layers), data=data)
    return chart.properties(width="container", height=height)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON has it: what is not a finite number is null."""
    columns = [[_plain(value) for value in table[name].tolist()] for name in table.columns]
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose numbers have `DIGITS` digits, its rows numbered anew."""
    short = table.reset_index(drop=True)
    for name in short.columns:
        if pd.api.types.is_float_dtype(short[name]):
            short[name] = [float(f"{value:.{DIGITS}g}") for value in short[name]]
    return short


# Words of Vega-Lite --------------------------------------------------------------------------------------------------


def field(name: str) -> str:
    """The name of a column as Vega-Lite reads it: a bare dot or bracket would look into the value."""
    return re.sub(r"([.\[\]\\])", r"\\\1", name)


def where(column: str, value: object) -> str:
    """The rows that have a value in a column, as an expression of Vega's."""
    return f"datum[{json.dumps(column)}] === {json.dumps(value)}"


def tooltips(table: pd.DataFrame) -> list[alt.Tooltip]:
    """All that a row holds."""
    return [
        alt.Tooltip(
            field=field(name),
            type="quantitative" if pd.api.types.is_float_dtype(table[name]) else "nominal",
            format=f".{DIGITS}~g" if pd.api.types.is_float_dtype(table[name]) else alt.Undefined,
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


def title(text: str, longest: int = LONGEST_TITLE) -> str | list[str]:
    """The title of an axis, in two lines where it is long."""
    first, bracket, rest = text.partition(" (")
    return [first, f"({rest}"] if bracket and len(text) > longest else text


def along(*, log: bool, zero: bool, padding: float = 0) -> alt.Scale:
    """The scale of a number along an axis; a logarithmic one has no zero."""
    if log:
        return alt.Scale(type="log", nice=False, padding=padding)
    return alt.Scale(type="linear", zero=zero, nice=False, padding=padding)


def lines(label: str, length: int = LABEL) -> list[str]:
    """A label broken into at most three lines, at spaces where that suffices, else behind other signs too."""
    found: list[str] = []
    for word in label.split():
        long = len(word) > length
        pieces = [piece for part in re.split(r"(?<=[=_/,-])", word) for piece in textwrap.wrap(part, length)]
        for index, piece in enumerate(pieces if long else [word]):
            space = "" if index else " "
            if found and len(found[-1]) + len(space) + len(piece) <= length:
                found[-1] += space + piece
            else:
                found.append(piece)
    return found if len(found) <= LINES else [*found[: LINES - 1], f"{found[LINES - 1][: length - 1]}…"]


def wrapped(labels: Sequence[str], length: int = LABEL) -> str:
    """The expression of an axis that breaks its labels, so that long ones leave room for the plot."""
    return f"({json.dumps({label: lines(label, length) or [''] for label in labels})})[datum.label]"


# Cells and objectives ------------------------------------------------------------------------------------------------


class Cells:
    """The cells of a figure: where they are few, each has its colour and its shape or dash, the same in all figures."""

    def __init__(self, titles: Sequence[str], of_study: Sequence[str]) -> None:
        self.titles = list(titles)
        self.split = len(of_study) > 1 and len(self.titles) <= MOST_CELLS
        self._all = list(of_study if len(of_study) <= MOST_CELLS else titles)

    def colour(self) -> Any:
        """The channel of colours."""
        return self._channel(alt.Color, PALETTE) if self.split else alt.value(PALETTE[0])

    def paint(self) -> Any:
        """The same colours for a mark that brings no legend."""
        paints = {title: PALETTE[self._all.index(title)] for title in self.titles} if self.split else {}
        return alt.ExprRef(f"({json.dumps(paints)})[datum.cell]") if self.split else PALETTE[0]

    def shape(self) -> Any:
        """The channel of shapes."""
        return self._channel(alt.Shape, SHAPES) if self.split else alt.value(SHAPES[0])

    def dash(self) -> Any:
        """The channel of dashes."""
        return self._channel(alt.StrokeDash, DASHES) if self.split else alt.value(DASHES[0])

    def _channel(self, channel: Any, values: Sequence[Any]) -> Any:
        scale = alt.Scale(domain=self.titles, range=[values[self._all.index(title)] for title in self.titles])
        return channel(field="cell", type="nominal", scale=scale, legend=self.legend())

    def legend(self) -> alt.Legend:
        """Below the plot, in as many columns as the longest title leaves room for."""
        longest = max(map(len, self.titles))
        columns = 3 if longest <= 12 else 2 if longest <= 22 else 1
        return alt.Legend(
            orient="bottom", columns=columns, title=None, labelLimit=300, symbolSize=90, symbolOpacity=1
        )  # fmt: skip

    @property
    def unsplit(self) -> str:
        """That cells are not told apart, in words; empty where they are."""
        many = len(self.titles) > MOST_CELLS
        return f" The {len(self.titles)} cells are too many to be told apart here." if many else ""


@dataclass(frozen=True)
class Window:
    """The part of an objective's axis that is worth its room."""

    low: float
    high: float
    beyond: int  # values outside

    def scale(self, **options: Any) -> alt.Scale:
        """The scale of the axis; values outside are drawn at its rim."""
        return alt.Scale(**{"domain": [self.low, self.high], "clamp": True, "nice": False, "zero": False, **options})

    @property
    def says(self) -> str:
        """How many values lie outside, in words."""
        if not self.beyond:
            return ""
        return f" {self.beyond} value{'s lie' if self.beyond > 1 else ' lies'} far off, beyond the rim."


def window(values: Sequence[float], metric: Metric) -> Window:
    """The axis from the best value to the worst, or to where the better three quarters still take a fifth of it."""
    found = pd.Series([value for value in values if math.isfinite(value)], dtype=float)
    highest = metric.goal == "max"
    best, worst = (found.max(), found.min()) if highest else (found.min(), found.max())
    reach = SQUEEZED * abs(best - found.quantile(0.25 if highest else 0.75))
    if 0 < reach < abs(best - worst):
        worst = best - reach if highest else best + reach
    low, high = min(best, worst), max(best, worst)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
    ends = [float(f"{end:.{DIGITS}g}") for end in (low - room, high + room)]
    return Window(ends[0], ends[1], int(((found < low) | (found > high)).sum()))


def whole_ticks(low: int, high: int) -> list[int]:
    """At most `TICKS` and one ticks at whole numbers, round ones where not all have room."""
    step = next(
        step
        for power in range(20)
        for step in (10**power, 2 * 10**power, 5 * 10**power)
        if (high - low) / step <= TICKS
    )
    return list(range(low + (-low) % step, high + 1, step))


def metric_of(known: Mapping[str, Metric], name: str) -> Metric | None:
    """What a metric means: one on an axis (`test_accuracy/shots/4`) means what the metric itself does."""
    return known.get(name, known.get(name.split("/")[0]))
