"""The figures of trials as points: what each parameter does, what trials cost; and the importance of parameters."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import pandas as pd

from cs330ray.ledger.importance import ENOUGH_FOR_IMPORTANCE, shares_of
from cs330ray.report.figures import marks
from cs330ray.report.figures.marks import GREY, TICKS, Figure
from cs330ray.report.figures.search import Search
from cs330ray.spec.tables import Choice, Domain
from cs330ray.words import plural

WIDE = 44  # characters that a narrow page has room for, side by side
SIDE_BY_SIDE = 6  # labels; more are slanted
JITTER = "(datum.trial * 0.618034) % 1"  # the golden ratio's multiples spread evenly


def points(search: Search, table: pd.DataFrame, x: Any, **channels: Any) -> tuple[alt.LayerChart, str]:
    """Trials by their first objective: COMPLETE filled, PRUNED hollow, FAIL an x at the bad rim, the best ringed.

    And these in words.
    """
    cells, metric, window = search.cells_of(table), search.metric, search.window
    title = marks.title(marks.said(search.objective, metric))
    y = alt.Y(field=marks.field(search.objective), type="quantitative", scale=window.scale(), title=title)
    base = alt.Chart().encode(x=x, color=cells.colour(), tooltip=marks.tooltips(table), **channels)
    filled = base.mark_point(filled=True, size=55, opacity=0.85).encode(y=y, shape=cells.shape())
    hollow = base.mark_point(filled=False, size=45, strokeWidth=1.4, opacity=0.9).encode(y=y, shape=cells.shape())
    ring = alt.Chart().mark_point(filled=False, shape="circle", size=260, strokeWidth=2, color=GREY, opacity=1)
    down = metric.goal == "max"
    cross = base.mark_point(shape=marks.FAILED, size=60, strokeWidth=1.8, filled=False, yOffset=-7 if down else 7)
    held, layers, words = set(table["state"]), [], []
    for state, layer, meaning in (
        ("COMPLETE", filled, "filled is COMPLETE"),
        ("PRUNED", hollow, "hollow was pruned, at its last value"),
        ("FAIL", cross.encode(y=alt.value("height" if down else 0)), "an x at the rim failed and has no value"),
    ):
        if state in held:
            layers.append(layer.transform_filter(marks.where("state", state)))
            words.append(meaning)
    if table["best"].any() and (table["state"] == "COMPLETE").sum() > 1:
        layers.append(ring.transform_filter(marks.where("best", True)).encode(x=x, y=y, **channels))
        words.append(f"a ring is the search's best{' of a cell' if len(search.ringed) > 1 else ''}")
    beyond = ((table[search.objective] < window.low) | (table[search.objective] > window.high)).sum()
    rim = f" {beyond} far off {'stand' if beyond > 1 else 'stands'} at the rim." if beyond else ""
    meant = f": {'; '.join(words)}" if held != {"COMPLETE"} or len(words) > 1 else ""
    return marks.drawn(table, *layers), f"Each mark is a trial{meant}.{rim}{search.of_fewer_steps}{cells.unsplit}"


def parameters(search: Search) -> Iterator[Figure]:
    """What the trials reached against each parameter that was searched."""
    for name, domains in search.space.items():
        column = f"param.{name}" if f"param.{name}" in search.trials else name
        if column in search.trials:
            tried = search.trials[search.trials[column].notna()]
            if tried[search.objective].notna().any():
                yield _parameter(search, name, column, domains, tried)


def _parameter(search: Search, name: str, column: str, domains: Sequence[Domain], tried: pd.DataFrame) -> Figure:
    shown, fewer = search.thinned(tried)
    table = search.columns(shown, ["trial", "state", column, search.objective, "best"])
    choices = any(isinstance(domain, Choice) for domain in domains)
    if choices:
        table[column] = pd.Series([_text(value) for value in table[column]], table.index, dtype=str)
    elif all(isinstance(value, int) for value in tried[column].tolist()) or _whole(domains):
        table[column] = table[column].astype(int)
    else:
        table[column] = table[column].astype(float)
    table = marks.rounded(table)
    if choices:
        held = set(table[column])
        order = [text for text in dict.fromkeys([*_choices(domains), *table[column]]) if text in held]
        jitter = alt.XOffset("jitter:Q", scale=alt.Scale(domain=[-0.35, 1.35]))
        chart, words = points(search, table, _strips(name, column, order), xOffset=jitter)
        chart = chart.transform_calculate(jitter=JITTER)
    else:
        chart, words = points(search, table, _along(name, column, domains, table))
    says = f"{words}{fewer}"
    return Figure(f"parameters/{name}", f"{search.objective} by {name}", says, chart, table)


def _whole(domains: Sequence[Domain]) -> bool:
    return all(not isinstance(domain, Choice) and domain.whole for domain in domains)


def _choices(domains: Sequence[Domain]) -> list[str]:
    """The values of all domains as texts, in the order of the file."""
    found = [domain.choices if isinstance(domain, Choice) else [] for domain in domains]
    return list(dict.fromkeys(_text(value) for choices in found for value in choices))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _strips(name: str, column: str, order: Sequence[str]) -> alt.X:
    """The axis of a parameter of a few values."""
    if len(order) > SIDE_BY_SIDE:
        axis = alt.Axis(labelAngle=-45, labelLimit=90, labelOverlap=False)
    else:
        length = max(6, WIDE // len(order))
        axis = alt.Axis(labelExpr=marks.wrapped(order, length), labelAngle=0, labelLimit=150, labelOverlap=False)
    return alt.X(field=marks.field(column), type="nominal", sort=list(order), title=name, axis=axis)


def _along(name: str, column: str, domains: Sequence[Domain], table: pd.DataFrame) -> alt.X:
    """The axis of a parameter with a range."""
    log = all(not isinstance(domain, Choice) and domain.log for domain in domains)
    scale = marks.along(log=log, zero=False, padding=12)
    values: Any = alt.Undefined
    whole = _whole(domains)
    if whole and not log:
        values = marks.whole_ticks(int(table[column].min()), int(table[column].max()))
    kind = ",d" if whole else alt.Undefined
    axis = alt.Axis(tickCount=TICKS, values=values, format=kind, labelOverlap=True, grid=False)
    title = f"{name} (log scale)" if log else name
    return alt.X(field=marks.field(column), type="quantitative", scale=scale, title=title, axis=axis)


def cost(search: Search) -> Iterator[Figure]:
    """What each trial cost against what it reached."""
    if not search.trials[search.objective].notna().any():
        return
    shown, fewer = search.thinned(search.trials)
    table = marks.rounded(search.columns(shown, ["trial", "state", "seconds", search.objective, "best"]))
    least, most = table["seconds"].min(), table["seconds"].max()
    log = least > 0 and most > 20 * least
    scale = marks.along(log=log, zero=True, padding=12)
    axis = alt.Axis(tickCount=TICKS, labelOverlap=True, grid=False)
    title = f"seconds of a trial{' (log scale)' if log else ''}"
    chart, words = points(search, table, alt.X("seconds:Q", scale=scale, title=title, axis=axis))
    yield Figure("cost", "What trials cost", f"{_spent(search.opened.trials)} {words}{fewer}", chart, table)


def _spent(spent: pd.DataFrame) -> str:
    """Where the time of all trials went, in words."""
    total = float(spent["seconds"].sum())
    by_state = {str(state): float(seconds) for state, seconds in spent.groupby("state")["seconds"].sum().items()}
    parts = [
        f"{by_state[state] / total:.0%} on {words}"
        for state, words in (("PRUNED", "pruned"), ("FAIL", "failed"))
        if total and state in by_state
    ]
    unit, name = next(((unit, name) for unit, name in ((3600, "h"), (60, "min")) if total >= unit), (1, "s"))
    trials = plural(len(spent), "trial")
    return f"{trials} took {total / unit:.3g} {name} of wall time{', ' * bool(parts)}{' and '.join(parts)}."


def importance(search: Search) -> Iterator[Figure]:
    """The share of each parameter in reaching the best tenth."""
    study, ledger = search.opened.study, search.opened.ledger
    shares = {cell.title: shares_of(ledger, study, cell) for cell in search.cells}
    found = [
        {"cell": title, "parameter": name, "share": share}
        for title, own in shares.items()
        for name, share in own.items()
    ]
    if not found:
        return
    frame = pd.DataFrame(found)
    means = frame.groupby("parameter", sort=False)["share"].mean().sort_values(ascending=False, kind="stable")
    table = marks.rounded(search.columns(frame, ["parameter", "share"]))
    cells, order = search.cells_of(table), [str(name) for name in means.index]
    shown = len(cells.titles)
    averaged = shown > 1 and not cells.split
    bars = alt.Chart().mark_bar().encode(
        y=alt.Y("parameter:N", sort=order, title=None, axis=alt.Axis(labelExpr=marks.wrapped(order), labelLimit=150)),
        x=alt.X(
            "mean(share):Q" if averaged else "share:Q",
            title="share of the importance", scale=alt.Scale(zero=True),
            axis=alt.Axis(tickCount=TICKS, labelOverlap=True),
        ),
        color=cells.colour(),
        tooltip=alt.Undefined if averaged else marks.tooltips(table),
        **({"yOffset": alt.YOffset("cell:N", sort=cells.titles)} if cells.split else {}),
    )  # fmt: skip
    says = (
        f"How much each parameter alone decides whether a trial is among the best tenth by {search.objective} "
        "(PED-ANOVA); shares sum to 1 and say neither which value is good nor how parameters act together."
    )
    says += " A bar is the mean over cells." if averaged else ""
    few = sum(1 for cell in search.cells if cell.space) - shown
    says += f" {few} cells have fewer than the {ENOUGH_FOR_IMPORTANCE} COMPLETE trials it needs." if few > 0 else ""
    height = max(100.0, len(order) * max(26.0, 14.0 * shown if cells.split else 0.0))
    yield Figure("importance", "Importance of the parameters", says, marks.drawn(table, bars, height=height), table)
