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

    @property
    def half(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2


def over_seeds(values: Sequence[float]) -> Interval:
    """`ci95_seeds`: Student's t over the values, one a seed; without width for a single one (n says so)."""
    mean, n = statistics.fmean(values), len(values)
    half = _t975(n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else 0.0
    return Interval(mean, mean - half, mean + half, n)


def paired(one: Sequence[float], other: Sequence[float]) -> Interval:
    """The difference one - other of two that share their seeds: Student's t over the pairs."""
    return over_seeds([a - b for a, b in zip(one, other, strict=True)])


def over_units(items: Sequence[Item]) -> Interval:
    """`ci95_tasks`: the mean over items, its interval over their independent units (task, user, story).

    Wilson's where every unit is one item of 0 or 1, else normal with the units' sums as clusters, which for one item a
    unit is 1.96 s / sqrt(n).
    """
    by_unit: dict[str, list[float]] = defaultdict(list)
    for item in items:
        by_unit[item.unit].append(item.score)
    n, mean = len(by_unit), statistics.fmean(item.score for item in items)
    if len(items) == n and all(item.score in (0.0, 1.0) for item in items):
        return _wilson(mean, n)
    scatter = sum((sum(scores) - len(scores) * mean) ** 2 for scores in by_unit.values())
    half = Z95 * (scatter * n / (n - 1)) ** 0.5 / len(items) if n > 1 else 0.0
    return Interval(mean, mean - half, mean + half, n)


def averaged(runs: Sequence[Sequence[Item]]) -> list[Item]:
    """The same items scored by several seeds, each at its mean over them."""
    return [
        Item(same[0].unit, statistics.fmean(item.score for item in same)) for same in zip(*runs, strict=True) if same
    ]


def _wilson(share: float, n: int) -> Interval:
    """Wilson 1927: the shares that a test would not reject."""
    scale = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / scale
    half = Z95 * (share * (1 - share) / n + Z95**2 / (4 * n**2)) ** 0.5 / scale
    return Interval(share, centre - half, centre + half, n)


def _t975(freedom: int) -> float:
    from scipy.special import stdtrit  # here, so that a table without intervals does not wait for it

    return float(stdtrit(freedom, 0.975))
