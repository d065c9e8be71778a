"""Intervals: how far a mean can be trusted, over seeds and over the items of a test."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cs330ray.trial import Item

Z95 = 1.959963984540054  # the normal's 97.5 % quantile


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval, and the number of independent units behind it."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """The interval and its n: `±0.02 (n 5)`, or `[0.72, 1] (n 10)` where the mean is not in its middle."""
        if self.n < 2:
            return "(n 1, no interval)"
        up, down = self.high - self.mean, self.mean - self.low
        if abs(up - down) > 0.05 * (up + down):
            return f"[{self.low:.4g}, {self.high:.4g}] (n {self.n})"
        return f"±{(up + down) / 2:.2g} (n {self.n})"


def over_seeds(values: Sequence[float]) -> Interval:
    """`ci95_seeds`: Student's t over the values, one a seed; without width for a single one (n says so)."""
    mean, n = statistics.fmean(values), len(values)
    half = _t975(n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else 0.0
    return Interval(mean, mean - half, mean + half, n)


def prediction(values: Sequence[float]) -> Interval:
    """Where one further value lies in 95 of 100 cases: Student's t for a new draw, mean +- t s sqrt(1 + 1/n).

    Without width for a single value (n says so).
    """
    mean, n = statistics.fmean(values), len(values)
    half = _t975(n - 1) * statistics.stdev(values) * (1 + 1 / n) ** 0.5 if n > 1 else 0.0
    return Interval(mean, mean - half, mean + half, n)


def paired(one: Sequence[float], other: Sequence[float]) -> Interval:
    """The difference one - other of two that share their seeds: Student's t over the pairs."""
    return over_seeds([a - b for a, b in zip(one, other, strict=True)])


def over_units(runs: Sequence[Sequence[Item]]) -> Interval:
    """`ci95_tasks`: the mean over the items of one test, scored by one or several seeds; over their independent units.

    Wilson's where every unit is one item of 0 or 1 (with n units, however many seeds), else normal with the units' sums
    as clusters, which for one item a unit is 1.96 s / sqrt(n). Raises ValueError where the seeds scored other items.
    """
    units = [item.unit for item in runs[0]]
    if any([item.unit for item in run] != units for run in runs):
        raise ValueError("the seeds scored other items")
    scores = [statistics.fmean(values) for values in zip(*([item.score for item in run] for run in runs), strict=True)]
    by_unit: dict[str, list[float]] = defaultdict(list)
    for unit, score in zip(units, scores, strict=True):
        by_unit[unit].append(score)
    n, mean = len(by_unit), statistics.fmean(scores)
    if len(scores) == n and all(item.score in (0.0, 1.0) for run in runs for item in run):
        return _wilson(mean, n)
    scatter = sum((sum(found) - len(found) * mean) ** 2 for found in by_unit.values())
    half = Z95 * (scatter * n / (n - 1)) ** 0.5 / len(scores) if n > 1 else 0.0
    return Interval(mean, mean - half, mean + half, n)


def _wilson(share: float, n: int) -> Interval:
    """Wilson 1927: the shares that a test would not reject."""
    scale = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / scale
    half = Z95 * (share * (1 - share) / n + Z95**2 / (4 * n**2)) ** 0.5 / scale
    return Interval(share, centre - half, centre + half, n)


def _t975(freedom: int) -> float:
    from scipy.special import stdtrit  # here, so that a table without intervals does not wait for it

    return float(stdtrit(freedom, 0.975))
