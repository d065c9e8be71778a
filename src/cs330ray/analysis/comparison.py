"""Which alternative is best, and how sure that is: named ones compared by what the same fresh seeds, or splits, gave.

Validation orders and decides; test is shown beside it and chooses nothing.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from cs330ray.analysis.statistics import (
    MOST_SEEDS,
    ROUNDING,
    Interval,
    holm,
    over_items,
    over_seeds,
    p_paired,
    paired,
    seeds_needed,
)
from cs330ray.trial.contract import Item

if TYPE_CHECKING:
    import numpy as np

DRAWS = 10_000  # of the bootstrap
TIE = 1e-12  # relative: two means this near are one, summed in another order

Goal = Literal["max", "min"]
Unit = Literal["seed", "split"]


@dataclass(frozen=True)
class Alternative:
    """What is compared: a cell's confirmed choice, or one candidate of a cell.

    The keys say what pairs: the index of the fresh seed, or of the split. All values are finite and in the metric's own
    sense, larger or smaller being better as the goal says.
    """

    name: str
    validation: Mapping[int, float]
    test: Mapping[int, float] = field(default_factory=dict)  # of those whose test succeeded
    items: Mapping[int, Sequence[Item]] = field(default_factory=dict)  # of the test metric


@dataclass(frozen=True)
class Difference:
    """The best minus another, in the metric's own sign: positive for goal max, negative for goal min."""

    name: str  # of the other
    validation: Interval  # over the shared seeds
    p: float | None  # of the two-sided paired t-test; None for one seed
    p_holm: float | None  # adjusted for every pair of alternatives, since which is the best is read off the same values
    test: Interval | None  # over the seeds on which both have a test value; None where there is none
    test_items: Interval | None  # over the units of the test's items, None where both do not have the same ones
    seeds_needed: int | None  # to find a difference as large: see `statistics.seeds_needed`

    @property
    def holds_zero(self) -> bool:
        """Whether the 95 % interval holds zero; one seed has no interval, and holds every value."""
        return self.validation.n < 2 or self.validation.low <= 0 <= self.validation.high

    @property
    def without_scatter(self) -> bool:
        """Whether it is the same on every seed: neither hangs on the seed then, and seeds tell nothing of chance."""
        width = self.validation.high - self.validation.low
        return self.validation.n > 1 and width <= ROUNDING * abs(self.validation.mean)


@dataclass(frozen=True)
class Comparison:
    """The alternatives in their order, and how far the first can be told from the others."""

    unit: Unit  # what pairs: fresh seeds of one study, or the splits of several
    n: int  # how many every alternative has: only these count, for all that stands here
    order: tuple[str, ...]  # the best first, by the mean on validation; equal ones in the order given
    means: Mapping[str, Interval]  # on validation
    differences: tuple[Difference, ...]  # of the best to each other one, in `order`: the second is `differences[0]`
    probability_best: Mapping[str, float | None]  # share of draws over shared seeds that it wins; None for one seed

    @property
    def best(self) -> str:
        """The first by the mean on validation."""
        return self.order[0]

    @property
    def rivals(self) -> tuple[str, ...]:
        """Those that cannot be told from the best: the interval of best minus it holds zero, or has no width."""
        return tuple(apart.name for apart in self.differences if apart.holds_zero or apart.without_scatter)

    @property
    def distinguished(self) -> bool:
        """Whether the best is told from every other: False where best minus second holds zero, or best minus another.

        Holm's adjustment has no part in it. "Better than all others" falls with any one of the differences, so each may
        be asked at 5 % (Berger 1982) and a wrong best is announced in at most 5 %; the adjusted p-values are for
        statements on single differences ("A is better than C") picked out of several.
        """
        return not self.rivals

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds (or splits) would tell the best from the second, if they lie as far apart as they seem."""
        return self.differences[0].seeds_needed


def compare(alternatives: Sequence[Alternative], goal: Goal, unit: Unit = "seed") -> Comparison:
    """Compare two or more alternatives by their means on validation over the seeds that all of them share.

    One with fewer seeds takes them from all: leave out what is not whole. Raises ValueError for fewer than two, for a
    name that is there twice, for values that are not finite, and where no seed is shared by all.
    """
    shared = _shared(alternatives)
    columns = {one.name: [one.validation[key] for key in shared] for one in alternatives}
    sign = 1 if goal == "max" else -1
    order = sorted(columns, key=lambda name: -sign * statistics.fmean(columns[name]))
    adjusted = holm_of_pairs(columns)
    by_name = {one.name: one for one in alternatives}
    best = by_name[order[0]]
    return Comparison(
        unit,
        len(shared),
        tuple(order),
        {name: over_seeds(columns[name]) for name in order},
        tuple(_difference(best, by_name[name], shared, adjusted) for name in order[1:]),
        probability_best(columns, goal),
    )


def over_splits(studies: Sequence[Sequence[Alternative]]) -> list[Alternative]:
    """The alternatives of several studies, one a split of the data, for `compare(..., unit="split")`.

    The value of an alternative on a split is its mean over the fresh seeds there, on validation and on test; the key is
    the split's place in `studies`. Items are left out: splits share them in part, so they are not independent.
    """
    validation: dict[str, dict[int, float]] = {}
    test: dict[str, dict[int, float]] = {}
    for split, alternatives in enumerate(studies):
        for one in alternatives:
            validation.setdefault(one.name, {})[split] = statistics.fmean(one.validation.values())
            if one.test:
                test.setdefault(one.name, {})[split] = statistics.fmean(one.test.values())
    return [Alternative(name, found, test.get(name, {})) for name, found in validation.items()]


def holm_of_pairs(columns: Mapping[str, Sequence[float]]) -> dict[frozenset[str], float]:
    """Holm's p-value of every pair of alternatives; empty for one seed.

    Of every pair, though only those with the best are shown: adjusted for these alone, the best being whichever came
    out first, eight equal alternatives would give a false difference twice as often as 5 %.
    """
    found = {frozenset(pair): p_paired(columns[pair[0]], columns[pair[1]]) for pair in combinations(columns, 2)}
    known = {pair: p for pair, p in found.items() if p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def probability_best(columns: Mapping[str, Sequence[float]], goal: Goal) -> dict[str, float | None]:
    """The share of bootstrap draws in which each has the best mean; columns of paired values, one a seed.

    A draw takes the seeds with replacement, the same ones for all; equal means share it. With few seeds the bootstrap
    is too sure (of n seeds it sees sqrt((n - 1) / n) of the scatter), and with one it says nothing: None for all.
    """
    import numpy as np

    values = np.array(list(columns.values()), dtype=float).T
    n = len(values)
    if n < 2:
        return dict.fromkeys(columns)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    shares = _shares_of_wins(counts @ values / n * (1 if goal == "max" else -1))
    return dict(zip(columns, shares, strict=True))


def _shares_of_wins(means: "np.ndarray") -> list[float]:
    """How often each column has the largest of its row; equal ones share the row."""
    slack = TIE * abs(means).max()
    wins = means >= means.max(axis=1, keepdims=True) - slack
    return [float(share) for share in (wins / wins.sum(axis=1, keepdims=True)).mean(axis=0)]


def in_words(seeds: int | None, unit: Unit = "seed") -> str:
    """A number of seeds needed, for a sentence: `about 12 seeds`, `more than 1000 splits`, or `not known`."""
    if seeds is None:
        return "not known"
    return f"more than {MOST_SEEDS} {unit}s" if seeds > MOST_SEEDS else f"about {seeds} {unit}s"


def _shared(alternatives: Sequence[Alternative]) -> list[int]:
    """The keys that every alternative has on validation, in order."""
    names = [one.name for one in alternatives]
    if len(names) < 2:
        raise ValueError(f"a comparison takes two alternatives or more, but got {len(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"the names of alternatives must differ, but got {', '.join(names)}")
    for one in alternatives:
        if not all(math.isfinite(value) for value in (*one.validation.values(), *one.test.values())):
            raise ValueError(f"the values of {one.name} must be finite")
    shared = set.intersection(*(set(one.validation) for one in alternatives))
    if not shared:
        raise ValueError(f"no seed is shared by all of {', '.join(names)}")
    return sorted(shared)


def _difference(
    best: Alternative, other: Alternative, shared: Sequence[int], adjusted: Mapping[frozenset[str], float]
) -> Difference:
    one, two = ([alternative.validation[key] for key in shared] for alternative in (best, other))
    tested = [key for key in shared if key in best.test and key in other.test]
    return Difference(
        other.name,
        paired(one, two),
        p_paired(one, two),
        adjusted.get(frozenset((best.name, other.name))),
        paired([best.test[key] for key in tested], [other.test[key] for key in tested]) if tested else None,
        _on_items(best, other, shared),
        seeds_needed([a - b for a, b in zip(one, two, strict=True)]),
    )


def _on_items(best: Alternative, other: Alternative, shared: Sequence[int]) -> Interval | None:
    """Over the items of the seeds that scored both; None where they are not the same: test sets may differ."""
    scored = [key for key in shared if best.items.get(key) and other.items.get(key)]
    return over_items([best.items[key] for key in scored], [other.items[key] for key in scored])
