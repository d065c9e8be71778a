"""Values outside the bounds that METRICS declares: they are kept as they came, and said."""

import math
from collections.abc import Iterable, Iterator, Mapping

from cs330ray.trial.contract import Metric
from cs330ray.words import number, plural


def outside(metrics: Mapping[str, Metric], values: Mapping[str, float]) -> dict[str, float]:
    """The values that are outside their declared bounds; a metric that is not declared has none, and NaN has no side.

    One over an axis, `test_accuracy/shots/4`, has the bounds of `test_accuracy` unless it has its own.
    """
    known = {name: metrics.get(name, metrics.get(name.partition("/")[0])) for name in values}
    return {
        name: value
        for name, value in values.items()
        if (metric := known[name]) is not None and not (math.isnan(value) or metric.low <= value <= metric.high)
    }


def said(metrics: Mapping[str, Metric], name: str, value: float, where: str) -> str:
    """One value outside its bounds, in one line."""
    metric = metrics.get(name) or metrics[name.partition("/")[0]]
    bounds = f"[{number(metric.low)}, {number(metric.high)}]"
    return f"{name} is {number(value)} in {where}, outside its declared bounds {bounds}; correct METRICS or the metric"


def summary(metrics: Mapping[str, Metric], reached: Iterable[tuple[int, Mapping[str, float]]]) -> Iterator[str]:
    """A line for each metric that trials, by number, have outside its bounds: the first such value, and how many."""
    first: dict[str, tuple[int, float]] = {}
    trials: dict[str, set[int]] = {}
    for trial, values in reached:
        for name, value in outside(metrics, values).items():
            first.setdefault(name, (trial, value))
            trials.setdefault(name, set()).add(trial)
    for name, (trial, value) in first.items():
        more = len(trials[name]) - 1
        yield said(
            metrics, name, value, f"trial {trial}" + (f" (and so in {plural(more, 'other trial')})" if more else "")
        )
