"""The figures of a search: what each parameter does, how trials learned, how the best grew, what trials cost."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from cs330ray.report import drawing
from cs330ray.report.drawing import GREY, Cells, Figure
from cs330ray.service import confirm
from cs330ray.service.ledger import Trial
from cs330ray.spec import Cell, Choice, Domain
from cs330ray.trial import Metric

if TYPE_CHECKING:
    from cs330ray.report.opened import Opened

MOST_DRAWN = 16_000  # points of all parameters' figures together
TOP_CURVES = 10
PRUNED_CURVES = 40
POINTS_OF_A_CURVE = 100


@dataclass(frozen=True)
class Search:
    """A study's search as its figures need it."""

    opened: "Opened"

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells in the order of the file."""
        return self.opened.study.cells

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """What the metrics of all trainables mean."""
        study, found = self.opened.study, {}
        for trainable in study.trainables():
            found |= self.opened.ledger.metrics(study, trainable)
        return found

    @property
    def objective(self) -> str:
        """The first objective."""
        return self.opened.study.objective[0]

    @cached_property
    def held(self) -> dict[str, list[Trial]]:
        """The trials of each cell, by its title."""
        return {cell.title: self.opened.ledger.trials(self.opened.study, cell) for cell in self.cells}

    @cached_property
    def ranked(self) -> dict[str, list[Trial]]:
        """The trials of each cell that may be ranked with one another, the best first."""
        goals = list(self.opened.goals.values())
        return {
            title: sorted(confirm.rankable(found), key=lambda trial: confirm.losses(trial.values or (), goals)[0])
            for title, found in self.held.items()
        }

    @cached_property
    def best(self) -> dict[str, int]:
        """The number of each cell's best trial, of the cells that have one."""
        return {title: found[0].number for title, found in self.ranked.items() if found}

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The trials that have ended and that none continues, the best of a cell marked; by cell and number."""
        frame = self.opened.trials
        frame = frame[~frame["superseded"].astype(bool) & (frame["state"] != "RUNNING")]
        best = [self.best.get(cell) == number for cell, number in zip(frame["cell"], frame["trial"], strict=True)]
        return frame.assign(best=pd.Series(best, index=frame.index, dtype=bool))

    def cells_of(self, table: pd.DataFrame) -> Cells:
        """The cells that a table holds, in the order of the file."""
        held = set(table["cell"])
        return Cells([cell.title for cell in self.cells if cell.title in held])


# Trials as points ---------------------------------------------------------------------------------------------------


def by_state(
    table: pd.DataFrame, cells: Cells, x: Any, y: str, metric: Metric, **channels: Any
) -> tuple[alt.LayerChart, str]:
    """Trials at their values: COMPLETE filled, PRUNED hollow, FAIL an x at the bad rim, the best ringed; what to say."""
    scale, beyond = drawing.scale(table[y].tolist(), metric)
    up = alt.Y(field=drawing.field(y), type="quantitative", scale=scale, title=drawing.said(y, metric))
    base = alt.Chart().encode(x=x, color=cells.colour(), tooltip=drawing.tooltips(table), **channels)
    rim = alt.value("height" if metric.goal == "max" else 0)
    states = set(table["state"])
    layers = []
    if "PRUNED" in states:
        pruned = base.mark_point(filled=False, size=45, strokeWidth=1.2, opacity=0.7)
        layers.append(pruned.transform_filter(drawing.where("state", "PRUNED")).encode(y=up, shape=cells.shape()))
    complete = base.mark_point(filled=True, size=55, opacity=0.85)
    layers.append(complete.transform_filter(drawing.where("state", "COMPLETE")).encode(y=up, shape=cells.shape()))
    ring = alt.Chart().mark_point(filled=False, shape="circle", size=260, strokeWidth=2, color=GREY, opacity=1)
    layers.append(ring.transform_filter(drawing.where("best", True)).encode(x=x, y=up, **channels))
    if "FAIL" in states:
        offset = -7 if metric.goal == "max" else 7
        failed = base.mark_point(shape=drawing.FAILED, size=60, strokeWidth=1.6, filled=False, yOffset=offset)
        layers.append(failed.transform_filter(drawing.where("state", "FAIL")).encode(y=rim))
    words = ["a filled mark is a COMPLETE trial"]
    words += ["a hollow one was pruned and stands at its last value"] if "PRUNED" in states else []
    words += ["an x at the rim failed and has no value"] if "FAIL" in states else []
    ringed = "the ring is the search's best" + (" of each cell" if len(cells.titles) > 1 else "")
    said = f"{', '.join(words)}; {ringed}.{beyond}{cells.unsplit}"
    return drawing.drawn(table, *layers), said[0].upper() + said[1:]


def parameters(search: Search) -> Iterator[Figure]:
    """What the trials reached against each parameter that was searched."""
    domains: dict[str, list[Domain]] = {}
    for cell in search.cells:
        for name, domain in cell.space.items():
            domains.setdefault(name, []).append(domain)
    most = max(300, MOST_DRAWN // max(len(domains), 1))
    for name, found in domains.items():
        column = f"param.{name}" if f"param.{name}" in search.trials else name
        if column not in search.trials:
            continue
        tried = search.trials[search.trials[column].notna()]
        if tried[search.objective].notna().any():
            yield _parameter(search, name, column, found, tried, most)


def _parameter(
    search: Search, name: str, column: str, domains: Sequence[Domain], tried: pd.DataFrame, most: int
) -> Figure:
    shown = thinned(tried, most, search.objective, search.metrics[search.objective])
    failed = ["reason"] if (shown["state"] == "FAIL").any() else []
    table = _columns(search, shown, ["trial", "state", column, search.objective, "best", *failed])
    channels: dict[str, Any] = {}
    if any(isinstance(domain, Choice) for domain in domains):
        order = list(dict.fromkeys(_text(value) for domain in domains for value in _values(domain, tried[column])))
        table[column] = [_text(value) for value in table[column]]
        axis = alt.Axis(labelExpr=drawing.wrapped(order), labelAngle=0, labelLimit=130, labelOverlap=False)
        x = alt.X(field=drawing.field(column), type="nominal", sort=order, title=name, axis=axis)
        channels["xOffset"] = alt.XOffset("jitter:Q", scale=alt.Scale(domain=[-0.35, 1.35]))
    else:
        log = all(domain.log for domain in domains if not isinstance(domain, Choice))
        whole = all(domain.whole for domain in domains if not isinstance(domain, Choice))
        table[column] = table[column].astype(int if whole else float)
        scale = alt.Scale(type="log" if log else "linear", zero=False, nice=False, padding=12)
        axis = alt.Axis(tickMinStep=1 if whole else alt.Undefined, tickCount=6, labelOverlap=True)
        title = f"{name} (log scale)" if log else name
        x = alt.X(field=drawing.field(column), type="quantitative", scale=scale, title=title, axis=axis)
    table = drawing.rounded(table)
    chart, said = by_state(
        table, search.cells_of(tried), x, search.objective, search.metrics[search.objective], **channels
    )
    if channels:
        chart = chart.transform_calculate(jitter="(datum.trial * 0.618034) % 1")
    fewer = (
        f" {len(shown)} of {len(tried)} trials are drawn: the best half of them, the others evenly."
        if len(shown) < len(tried)
        else ""
    )
    says = f"Each mark is a trial at its {name} and what it reached. {said}{fewer}"
    return Figure(f"parameters/{name}", f"{search.objective} by {name}", says, chart, table)


def _values(domain: Domain, tried: pd.Series) -> list[Any]:
    return domain.choices if isinstance(domain, Choice) else sorted(set(tried))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _columns(search: Search, frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Columns of a frame, with the cell where there are several."""
    cell = ["cell"]
    return frame[[*cell, *names]].copy()


def thinned(frame: pd.DataFrame, most: int, objective: str, metric: Metric) -> pd.DataFrame:
    """At most so many trials: the best half of them, and of the others evenly many."""
    if len(frame) <= most:
        return frame
    order = frame.sort_values(objective, ascending=metric.goal == "min", kind="stable", na_position="last")
    top, rest = order.iloc[: most // 2], order.iloc[most // 2 :].sort_index()
    return pd.concat([top, evenly(rest, most - most // 2)]).sort_index()


def evenly(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows of a frame, evenly chosen, the first and the last among them."""
    if len(frame) <= most:
        return frame
    return frame.iloc[[round(index * (len(frame) - 1) / (most - 1)) for index in range(most)]]


def importance(search: Search) -> Iterator[Figure]:
    """The share of each parameter in reaching the best tenth."""
    study, ledger = search.opened.study, search.opened.ledger
    found = [
        {"cell": cell.title, "parameter": name, "share": share}
        for cell in search.cells
        for name, share in ledger.importance(study, cell).items()
    ]
    if not found:
        return
    table = drawing.rounded(pd.DataFrame(found))
    cells = search.cells_of(table)
    means = table.groupby("parameter")["share"].mean().sort_values(ascending=False)
    order, wanted = list(means.index), len(cells.titles) if cells.split else 1
    channels = {"yOffset": alt.YOffset("cell:N", sort=cells.titles)} if cells.split else {}
    axis = alt.Axis(labelExpr=drawing.wrapped(order), labelLimit=150)
    share = "share" if len(cells.titles) == 1 or cells.split else "mean(share)"
    bars = alt.Chart().mark_bar().encode(
        y=alt.Y("parameter:N", sort=order, title=None, axis=axis),
        x=alt.X(f"{share}:Q", title="share of the importance", scale=alt.Scale(zero=True)),
        color=cells.colour(),
        tooltip=drawing.tooltips(table),
        **channels,
    )  # fmt: skip
    says = (
        f"PED-ANOVA: how much each parameter alone decides whether a trial is among the best tenth by {search.objective}; "
        "the shares of a cell sum to 1, and say neither which value is good nor how parameters act together."
        + (" Each bar is the mean over cells." if share != "share" else "")
    )
    height = max(120.0, 16.0 * len(order) * max(wanted, 1.6))
    yield Figure("importance", "Importance of the parameters", says, drawing.drawn(table, bars, height=height), table)


# Learning, progress, cost ---------------------------------------------------------------------------------------------


def curves(search: Search) -> Iterator[Figure]:
    """How the objectives went with the steps: the top trials, and some of the pruned ones behind them."""
    rows = {key: found for key, found in search.opened.rows.groupby(["cell", "trial"])}
    several = len(search.opened.study.objective) > 1
    for objective in search.opened.study.objective:
        found = _curves(search, objective, rows)
        if found is not None:
            yield Figure(f"curves/{objective}" if several else "curves", f"Learning curves: {objective}", *found)


def _curves(
    search: Search, objective: str, rows: dict[Any, pd.DataFrame]
) -> tuple[str, alt.LayerChart, pd.DataFrame] | None:
    top = _top(search)
    pruned = search.trials[search.trials["state"] == "PRUNED"]
    some = evenly(pruned, PRUNED_CURVES)
    wanted = [(cell, trial, "top") for cell, trial in top]
    wanted += [(cell, trial, "pruned") for cell, trial in zip(some["cell"], some["trial"], strict=True)]
    lines = [_line(search, rows, objective, *one) for one in wanted]
    lines = [line for line in lines if not line.empty]
    if not lines:
        return None
    table = drawing.rounded(pd.concat(lines))
    cells = search.cells_of(table)
    metric = search.metrics[objective]
    scale, beyond = drawing.scale(table[objective].tolist(), metric)
    base = alt.Chart().encode(
        x=alt.X("step:Q", title="step", scale=alt.Scale(zero=False, nice=False)),
        y=alt.Y(field=drawing.field(objective), type="quantitative", scale=scale, title=drawing.said(objective, metric)),
        detail=["cell:N", "trial:Q"],
        tooltip=drawing.tooltips(table),
    )  # fmt: skip
    layers = []
    if (table["line"] == "pruned").any():
        faint = base.mark_line(color=GREY, strokeWidth=1, opacity=0.45)
        layers.append(faint.transform_filter(drawing.where("line", "pruned")))
    if (table["line"] == "top").any():
        strong = base.mark_line(strokeWidth=2, opacity=0.9, point={"size": 18, "filled": True})
        layers.append(
            strong.transform_filter(drawing.where("line", "top")).encode(color=cells.colour(), strokeDash=cells.dash())
        )
    says = f"The {len(top)} best trials" if len(search.cells) == 1 else f"The best trial of {len(top)} cells"
    says += f", and faint behind them {len(some)} of the {len(pruned)} pruned ones" if len(pruned) else ""
    says += f"; at most {POINTS_OF_A_CURVE} rows of each.{beyond}{cells.unsplit}"
    return says, drawing.drawn(table, *layers), table


def _top(search: Search) -> list[tuple[str, int]]:
    """The best trials of one cell, or the best of each cell where cells are compared; the best first."""
    if len(search.cells) == 1:
        return [(title, trial.number) for title, found in search.ranked.items() for trial in found[:TOP_CURVES]]
    sign = -1 if search.metrics[search.objective].goal == "max" else 1
    best = sorted(
        (sign * (found[0].values or (0.0,))[0], index, title)
        for index, (title, found) in enumerate(search.ranked.items())
        if found
    )
    return [(title, search.best[title]) for _, _, title in best[:TOP_CURVES]]


def _line(
    search: Search, rows: dict[Any, pd.DataFrame], objective: str, cell: str, number: int, kind: str
) -> pd.DataFrame:
    """The rows of a trial that hold an objective, behind those of the trials that it continues."""
    before = {trial.number: trial.continues for trial in search.held[cell]}
    line = [number]
    while (earlier := before[line[0]]) is not None:
        line.insert(0, earlier)
    parts = [rows[cell, each][["step", objective]] for each in line if (cell, each) in rows]
    if not parts:
        return pd.DataFrame(columns=["step", objective])
    found = pd.concat(parts).sort_values("step", kind="stable")
    found = found[found[objective].map(lambda value: isinstance(value, float) and math.isfinite(value))]
    found = evenly(found, POINTS_OF_A_CURVE)
    found.insert(0, "line", kind)
    found.insert(0, "trial", number)
    found.insert(0, "cell", cell)
    return found


def progress(search: Search) -> Iterator[Figure]:
    """The best so far against the number of trials."""
    metric, found = search.metrics[search.objective], []
    for title, ranked in search.ranked.items():
        better, best = (max, -math.inf) if metric.goal == "max" else (min, math.inf)
        for trial in sorted(ranked, key=lambda trial: trial.number):
            value = better(best, (trial.values or (math.nan,))[0])
            if value != best:
                found.append({"cell": title, "trials": trial.number + 1, "best": value, "trial": trial.number})
            best = value
        if ranked and (last := max(trial.number for trial in search.held[title])) > found[-1]["trial"]:
            found.append({**found[-1], "trials": last + 1})
    if len(found) <= len(search.best):
        return  # a point a cell is no progress
    table = drawing.rounded(pd.DataFrame(found))
    cells = search.cells_of(table)
    scale, beyond = drawing.scale(table["best"].tolist(), metric)
    title = f"best {drawing.said(search.objective, metric)}"
    line = alt.Chart().mark_line(interpolate="step-after", strokeWidth=2, point={"size": 25, "filled": True}).encode(
        x=alt.X("trials:Q", title="trials begun", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("best:Q", scale=scale, title=title),
        color=cells.colour(),
        strokeDash=cells.dash(),
        detail="cell:N",
        tooltip=drawing.tooltips(table),
    )  # fmt: skip
    says = (
        "The best value so far of one search, whose order is partly luck; there is no band: a band needs random search "
        f"without pruning, since it assumes independent, complete draws.{beyond}{cells.unsplit}"
    )
    yield Figure("progress", "Best so far", says, drawing.drawn(table, line), table)


def cost(search: Search) -> Iterator[Figure]:
    """What each trial cost against what it reached."""
    spent = search.trials[search.trials["seconds"].map(math.isfinite)]
    if not spent[search.objective].notna().any():
        return
    metric = search.metrics[search.objective]
    failed = ["reason"] if (spent["state"] == "FAIL").any() else []
    table = drawing.rounded(_columns(search, spent, ["trial", "state", "seconds", search.objective, "best", *failed]))
    log = spent["seconds"].min() > 0 and spent["seconds"].max() > 20 * spent["seconds"].min()
    scale = alt.Scale(type="log" if log else "linear", zero=not log, nice=False, padding=12)
    x = alt.X(
        "seconds:Q",
        scale=scale,
        title=f"seconds of a trial{' (log scale)' if log else ''}",
        axis=alt.Axis(tickCount=6, labelOverlap=True),
    )
    chart, said = by_state(table, search.cells_of(table), x, search.objective, metric)
    says = f"{_spent(spent)} {said}"
    yield Figure("cost", "What trials cost", says, chart, table)


def _spent(spent: pd.DataFrame) -> str:
    """Where the time went, in words."""
    total = spent["seconds"].sum()
    shares = spent.groupby("state")["seconds"].sum() / total if total else {}
    parts = [
        f"{shares[state]:.0%} on {words}"
        for state, words in (("PRUNED", "pruned"), ("FAIL", "failed"))
        if state in shares
    ]
    hours = (
        f"{total / 3600:.3g} hours"
        if total >= 3600
        else f"{total / 60:.3g} minutes"
        if total >= 60
        else f"{total:.3g} s"
    )
    return f"{len(spent)} trials took {hours} of wall time" + (f", {' and '.join(parts)} ones." if parts else ".")
