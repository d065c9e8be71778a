"""Intervals and tests: how far a mean or a difference can be trusted, over seeds and over the items of a test."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cs330ray.trial.contract import Item
from cs330ray.words import number

Z95 = 1.959963984540054  # the normal's 97.5 % quantile
MOST_SEEDS = 1000  # beyond that many, `seeds_needed` says only that it is more
OTHER_ITEMS = "the seeds scored other items"
ROUNDING = 1e-12  # a scatter this much smaller than the mean is that of floating point


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
            return f"[{number(self.low)}, {number(self.high)}] (n {self.n})"
        return f"±{(up + down) / 2:.2g} (n {self.n})"


def with_interval(interval: Interval) -> str:
    """Write a mean with its interval and without its n: `0.8402 ±0.043`; alone for one seed."""
    return number(interval.mean) + (f" {interval}".rsplit(" (n ", 1)[0] if interval.n > 1 else "")


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
    if len(set(values)) == 1:
        return Interval(values[0], values[0], values[0], n)  # whose mean may be another number, by rounding
    half = _t975(n - 1) * statistics.stdev(values) * (1 + 1 / n) ** 0.5
    return Interval(mean, mean - half, mean + half, n)


def paired(one: Sequence[float], other: Sequence[float]) -> Interval:
    """The difference one - other of two that share their seeds: Student's t over the pairs."""
    return over_seeds([a - b for a, b in zip(one, other, strict=True)])


def p_paired(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test of `one` against `other`; it agrees with the interval of `paired`.

    None for fewer than two pairs. 1 where every difference is zero. 0 where all are the same and not zero: what each
    seed repeats exactly does not depend on seeds, and the interval has no width either.
    """
    apart = [a - b for a, b in zip(one, other, strict=True)]
    if len(apart) < 2:
        return None
    mean, scatter = statistics.fmean(apart), statistics.stdev(apart)
    if scatter == 0:
        return 1.0 if mean == 0 else 0.0
    from scipy.special import stdtr

    return float(2 * stdtr(len(apart) - 1, -abs(mean) * len(apart) ** 0.5 / scatter))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: p-values adjusted for being several, in the order given; those up to .05 hold together at 5 %."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def seeds_needed(apart: Sequence[float], power: float = 0.8) -> int | None:
    """How many pairs a paired t-test at 5 % needs to find, with `power`, a difference as large as `apart`'s mean.

    Its power is the noncentral t's; MOST_SEEDS + 1 stands for more than MOST_SEEDS. None where `apart` is one value, or
    all the same, or of mean zero. It takes the observed difference and scatter for the true ones: a rough number.
    """
    if len(apart) < 2:
        return None
    mean, scatter = statistics.fmean(apart), statistics.stdev(apart)
    if mean == 0 or scatter <= ROUNDING * abs(mean):
        return None
    import numpy as np
    from scipy.special import nctdtr, stdtrit

    n = np.arange(2, MOST_SEEDS + 1)
    effect = min(abs(mean) / scatter, 1000.0)  # two pairs find a larger one as surely, and scipy has no number for it
    found = 1 - nctdtr(n - 1, effect * n**0.5, stdtrit(n - 1, 0.975)) >= power  # on the right side
    return int(n[found.argmax()]) if found.any() else MOST_SEEDS + 1


def over_units(runs: Sequence[Sequence[Item]]) -> Interval:
    """`ci95_tasks`: the mean over the items of one test, scored by one or several seeds; over their independent units.

    Wilson's where every unit is one item of 0 or 1 (with n units, however many seeds), else normal with the units' sums
    as clusters, which for one item a unit is 1.96 s / sqrt(n). Raises ValueError where the seeds scored other items.
    """
    units, scores = _item_means(runs)
    if _are_shares(units, runs):
        return _wilson(statistics.fmean(scores), len(units))
    return _clustered(units, scores)


def over_items(runs: Sequence[Sequence[Item]], others: Sequence[Sequence[Item]] = ()) -> Interval | None:
    """Take the mean of a test over the items that runs scored, or with `others` the difference to theirs; its interval.

    None where a run scored no items, and where the runs scored other items: then nothing can be said over them.
    """
    if not runs or not all([*runs, *others]):
        return None
    try:
        return paired_units(runs, others) if others else over_units(runs)
    except ValueError:
        return None


def paired_units(one: Sequence[Sequence[Item]], other: Sequence[Sequence[Item]]) -> Interval:
    """The difference one - other of two over the items of one test, each item at its mean over the seeds (runs).

    Items pair by unit and position. Normal over the units' sums, as `over_units`; Agresti and Min's where every unit is
    one item of 0 or 1. Raises ValueError where the runs scored other items.
    """
    units, scores = _item_means(one)
    other_units, other_scores = _item_means(other)
    if units != other_units:
        raise ValueError("the two scored other items")
    apart = [a - b for a, b in zip(scores, other_scores, strict=True)]
    if _are_shares(units, [*one, *other]):
        return _agresti_min(apart)
    return _clustered(units, apart)


def _item_means(runs: Sequence[Sequence[Item]]) -> tuple[list[str], list[float]]:
    """The unit of each item, and its mean score over the runs."""
    units = [item.unit for item in runs[0]]
    if any([item.unit for item in run] != units for run in runs):
        raise ValueError(OTHER_ITEMS)
    scores = [statistics.fmean(values) for values in zip(*([item.score for item in run] for run in runs), strict=True)]
    return units, scores


def _are_shares(units: Sequence[str], runs: Sequence[Sequence[Item]]) -> bool:
    """Whether every unit is one item, and each item 0 or 1."""
    return len(set(units)) == len(units) and all(item.score in (0.0, 1.0) for run in runs for item in run)


def _clustered(units: Sequence[str], scores: Sequence[float]) -> Interval:
    """The mean of the scores; the normal's interval, over the sums of the units' deviations."""
    mean = statistics.fmean(scores)
    by_unit: dict[str, list[float]] = defaultdict(list)
    for unit, score in zip(units, scores, strict=True):
        by_unit[unit].append(score - mean)
    n = len(by_unit)
    scatter = sum(sum(found) ** 2 for found in by_unit.values())
    half = Z95 * (scatter * n / (n - 1)) ** 0.5 / len(scores) if n > 1 else 0.0
    return Interval(mean, mean - half, mean + half, n)


def _agresti_min(apart: Sequence[float]) -> Interval:
    """Agresti and Min 2005, of differences of 0/1 pairs: half a pair more in each of the four cells.

    So two alternatives that agree on every item are not taken to be certainly equal.
    """
    n, total = len(apart), math.fsum(apart)
    centre = total / (n + 2)
    half = Z95 * (((math.fsum(value**2 for value in apart) + 1) / (n + 2) - centre**2) / (n + 2)) ** 0.5
    return Interval(total / n, max(-1.0, centre - half), min(1.0, centre + half), n)


def _wilson(share: float, n: int) -> Interval:
    """Wilson 1927: the shares that a test would not reject."""
    scale = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / scale
    half = Z95 * (share * (1 - share) / n + Z95**2 / (4 * n**2)) ** 0.5 / scale
    return Interval(share, centre - half, centre + half, n)


def _t975(freedom: int) -> float:
    from scipy.special import stdtrit  # here, so that a table without intervals does not wait for it

    return float(stdtrit(freedom, 0.975))
