"""A trial that was run again beside what was recorded of it: what differs, and the verdict, in tables and lines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cs330ray.analysis.statistics import Interval, prediction
from cs330ray.analysis.table import Sheet
from cs330ray.ledger import confirm
from cs330ray.ledger.confirm import on_test
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Row, Trial
from cs330ray.spec.study import Study, canonical
from cs330ray.words import number, plural

EQUAL, WITHIN, NOT = "equal", "within the seed interval", "not reproduced"


@dataclass(frozen=True)
class Pair:
    """A metric at a step: as recorded and as it is now; None where there is none."""

    step: int
    metric: str
    recorded: float | None
    now: float | None

    @property
    def equal(self) -> bool:
        """Whether both are there and equal to the bit; one NaN is as good as another."""
        if self.recorded is None or self.now is None:
            return False
        if math.isnan(self.recorded) or math.isnan(self.now):
            return math.isnan(self.recorded) and math.isnan(self.now)
        return self.recorded == self.now and math.copysign(1, self.recorded) == math.copysign(1, self.now)


@dataclass(frozen=True)
class Again:
    """A trial as recorded, and as it was run again."""

    trial: Trial
    recorded: Sequence[Row]  # with those of the trials that it continues
    now: Sequence[Row]
    reason: str = ""  # what it raised now
    must_raise: bool = False  # whether it ended by what it raised when it was recorded
    test: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)  # recorded, now

    @property
    def pairs(self) -> list[Pair]:
        """Every metric of every row of either, in the order of the steps; those of test at the end."""
        return pairs(self.recorded, self.now) + [
            Pair(self.trial.steps, name, recorded, now) for name, (recorded, now) in self.test.items()
        ]

    @property
    def ended_alike(self) -> bool:
        """Whether it ended by the same words, or by none, at the same step."""
        steps = [[row.step for row in rows] for rows in (self.recorded, self.now)]
        return self.reason == (self.trial.reason if self.must_raise else "") and steps[0] == steps[1]


def pairs(recorded: Sequence[Row], now: Sequence[Row]) -> list[Pair]:
    """Every metric of every row of either, in the order of the steps."""
    before = {row.step: row.metrics for row in recorded}
    here = {row.step: row.metrics for row in now}
    return [
        Pair(step, name, before.get(step, {}).get(name), here.get(step, {}).get(name))
        for step in sorted({*before, *here})
        for name in {**before.get(step, {}), **here.get(step, {})}
    ]


def table(again: Again) -> Sheet:
    """A row a metric: at how many steps it was compared, and the first that differs."""
    lines, pairs = [], again.pairs
    for name in dict.fromkeys(pair.metric for pair in pairs):
        found = [pair for pair in pairs if pair.metric == name]
        first = next((pair for pair in found if not pair.equal), None)
        differs = ["", "", ""] if first is None else [str(first.step), _exact(first.recorded), _exact(first.now)]
        lines.append([name, str(len(found)), str(sum(pair.equal for pair in found)), *differs])
    return Sheet("rows", ["metric", "rows", "equal", "first to differ, at step", "recorded", "now"], lines)


def objectives(study: Study, again: Again, intervals: Mapping[str, Interval]) -> Sheet:
    """The objectives at the end, as recorded and now, and where one further run lies."""
    lines = [
        [name, _exact(recorded), _exact(now), _said(intervals.get(name))]
        for name, (recorded, now) in _at_the_end(study, again).items()
    ]
    return Sheet("at the end", ["objective", "recorded", "now", "one further run lies in (95 %)"], lines)


def intervals(ledger: Ledger, study: Study, again: Again) -> dict[str, Interval]:
    """Where one further run of this configuration lies, by metric: from its confirmation on other seeds than its own.

    Empty where fewer than two of them are COMPLETE with as many steps, and where the trial itself was not COMPLETE.
    """
    if again.trial.state != "COMPLETE":
        return {}
    runs = [run for run in _confirmed(ledger, study, again.trial) if run.trial.seed != again.trial.seed]
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in [*zip(study.objective, run.trial.values or (), strict=False), *run.test.items()]:
            values.setdefault(name, []).append(value)
    wanted = {*study.objective, *again.test}
    return {name: prediction(found) for name, found in values.items() if len(found) > 1 and name in wanted}


def _confirmed(ledger: Ledger, study: Study, trial: Trial) -> list[confirm.Run]:
    """The COMPLETE runs of confirmation of a configuration, one a seed, whichever of its trials was confirmed."""
    runs = [
        run
        for one in confirm.confirmed(ledger, study).get(trial.cell.searched.key, [])
        if canonical(dict(one.searched.params)) == canonical(dict(trial.params)) and one.searched.steps == trial.steps
        for run in one.complete
    ]
    return list({run.trial.seed: run for run in reversed(runs)}.values())[::-1]


def verdict(study: Study, again: Again, intervals: Mapping[str, Interval]) -> tuple[str, str]:
    """EQUAL, WITHIN or NOT, and why in one line."""
    found = again.pairs
    if again.ended_alike and all(pair.equal for pair in found):
        rows, metrics = len(again.recorded), len({pair.metric for pair in found})
        counts = f"{plural(rows, 'row')}, {plural(metrics, 'metric')}"
        end = f", and it ended again by: {again.reason}" if again.reason else ""
        return EQUAL, f"every metric of every row ({counts}) to the bit{end}"
    why = _first_difference(again)
    if again.trial.state != "COMPLETE" or again.reason:
        return NOT, why
    ends = _at_the_end(study, again)
    if not intervals:
        return NOT, (
            f"{why}; there is no seed interval to hold it against: that needs the configuration COMPLETE on 2 fresh "
            "seeds beside its own (see [confirm])"
        )
    judged = [name for name in ends if name in study.objective or name in map(on_test, study.objective)]
    outside = [name for name in judged if name in intervals and not _lies_in(ends[name][1], intervals[name])]
    if outside:
        return NOT, f"{why}; {', '.join(outside)} now lies outside where one further run would"
    if without := [name for name in judged if name not in intervals]:
        return NOT, (
            f"{why}; there is no seed interval to hold {', '.join(without)} against: that needs it of 2 fresh seeds "
            "beside its own"
        )
    n = min(intervals[name].n for name in judged)
    return WITHIN, f"{why}; at the end it lies where one further run would, by its {n} other fresh seeds"


def _first_difference(again: Again) -> str:
    """The first thing that differs, in words."""
    wanted = again.trial.reason if again.must_raise else ""
    differs = next((pair for pair in again.pairs if not pair.equal), None)
    if differs is not None and (differs.recorded is not None or not again.must_raise):
        said = f"{differs.metric} at step {differs.step} was {_exact(differs.recorded)} and is {_exact(differs.now)}"
        return f"{said}; it raised now: {again.reason}" if again.reason and not wanted else said
    if wanted and not again.reason:
        return f"it ended by {wanted!r} after step {_last(again.recorded)}, and goes on now"
    if again.reason != wanted:
        return f"it ended by {again.reason!r} after step {_last(again.now)}, before by {wanted or again.trial.state!r}"
    return f"the rows ended at step {_last(again.recorded)} and end at step {_last(again.now)}"


def _at_the_end(study: Study, again: Again) -> dict[str, tuple[float | None, float | None]]:
    """The objectives in the last row that holds them, and what test showed: recorded, now."""
    ends = {name: (_newest(again.recorded, name), _newest(again.now, name)) for name in study.objective}
    return {**ends, **again.test}


def _newest(rows: Sequence[Row], name: str) -> float | None:
    return next((row.metrics[name] for row in reversed(rows) if name in row.metrics), None)


def _lies_in(value: float | None, interval: Interval) -> bool:
    return value is not None and interval.low <= value <= interval.high


def _last(rows: Sequence[Row]) -> int:
    return rows[-1].step if rows else 0


def _exact(value: float | None) -> str:
    """A number to the bit."""
    return "none" if value is None else repr(value)


def _said(interval: Interval | None) -> str:
    return "" if interval is None else f"[{number(interval.low, 6)}, {number(interval.high, 6)}] (n {interval.n})"
