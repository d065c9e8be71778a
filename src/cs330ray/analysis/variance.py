"""Where a cell's result gets its scatter from: the luck of the replicate, of the seed and of the test's items.

A value is that of one cell in one replicate (a whole search, on its own split where the study moves it) on one fresh
seed. Cells share replicates and seeds, so a value is

    y[c, r, s] = mean[c] + replicate[r] + cell x replicate[c, r] + seed[r, s] + cell x seed[c, r, s]

and the mean squares of this layout say what each part is worth (Searle, Casella and McCulloch 1992, chapter 4). What
the cells share is gone from a difference between them; what is a cell's own is what a claim must overcome.

Intervals are generalized ones (Weerahandi 1993): every mean square is divided by draws of its chi-square / df, and the
2.5 and 97.5 % points of what comes out are the ends. They take the effects for normal and hold about 95 % of small
samples too, by being wide: of one mean square on two degrees of freedom the standard deviation may be half or six times
the one found. Where more seeds are asked for than were seen and replicates hardly differ, the residual errs upwards.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cs330ray.analysis.statistics import ROUNDING
from cs330ray.trial.contract import Item

if TYPE_CHECKING:
    import numpy as np

DRAWS = 20_000  # of the generalized intervals

Source = Literal["replicate", "seed", "test items"]
Values = Mapping[str, Sequence[Sequence[float]]]  # by cell, replicate and seed
Scored = Mapping[str, Sequence[Sequence[Sequence[Item]]]]  # by cell, replicate and seed: the items of the test


@dataclass(frozen=True)
class Component:
    """What one source adds to the variance of a result, with its 95 % interval; an estimate below zero is zero."""

    source: Source
    variance: float
    low: float
    high: float
    n: int  # independent units behind it: replicates, seeds of all replicates, or units of the test's items


@dataclass(frozen=True, eq=False)
class MeanSquare:
    """A mean square with its degrees of freedom; zero on none where the layout has no such part.

    Each is a random variable of its own, so two of one value are not equal.
    """

    value: float
    freedom: int


Terms = Sequence[tuple[float, MeanSquare]]  # weighted


@dataclass(frozen=True)
class Layout:
    """The mean squares of cells x replicates x seeds, balanced. Of one cell there is nothing of a cell's own."""

    cells: int
    replicates: int
    seeds: int
    replicate: MeanSquare  # E = CS replicate + S cell x replicate + C seed + cell x seed
    own_replicate: MeanSquare  # E = S cell x replicate + cell x seed
    seed: MeanSquare  # E = C seed + cell x seed
    own_seed: MeanSquare  # E = cell x seed

    @property
    def components(self) -> list[Component]:
        """Replicate and seed, of one cell's result: what cells share and what is a cell's own, together.

        Without a second replicate there is no component of it. On one seed each its luck cannot be told from that of
        the replicate, which then holds both.
        """
        found = []
        of_seeds = [(1 / self.cells, self.seed), ((self.cells - 1) / self.cells, self.own_seed)]
        if self.replicates > 1:
            per = self.cells * self.seeds
            terms = [(1 / per, self.replicate), ((self.cells - 1) / per, self.own_replicate)]
            terms += [(-weight / self.seeds, square) for weight, square in of_seeds]
            found.append(Component("replicate", *_sum(terms), self.replicates))
        if self.seeds > 1:
            found.append(Component("seed", *_sum(of_seeds), self.replicates * self.seeds))
        return found

    @property
    def is_flat(self) -> bool:
        """Whether nothing scatters of what a claim must overcome: cells differ by the same in each unit.

        That says nothing of chance. Raises ValueError where one seed of one replicate is all there is.
        """
        return self.residual(self.seeds if self.replicates > 1 else 1)[0] == 0

    def residual(self, seeds: int) -> tuple[float, float, float]:
        """The variance that a claim must overcome, of a cell's mean over `seeds` in one replicate; its 95 % interval.

        Of one cell nothing is known of what cells share, and all of its variance is taken. Where there is one replicate
        the seed is the unit: the variance is that of one seed. Raises ValueError for other seeds than one where there
        is one seed a replicate, and where one seed of one replicate is all there is.
        """
        own, own_seed = (self.own_replicate, self.own_seed) if self.cells > 1 else (self.replicate, self.seed)
        if self.replicates == 1:
            if self.seeds == 1:
                raise ValueError("expected two replicates or two seeds, got one of each")
            return _sum([(1.0, own_seed)])
        if self.seeds == 1:
            if seeds != 1:
                raise ValueError(f"expected one seed, as the study has in each replicate, got {seeds}")
            return _sum([(1.0, own)])
        return _sum(
            [(1 / self.seeds, own), (1 / seeds - 1 / self.seeds, own_seed)],
            [(1 / seeds, own_seed)] if seeds > self.seeds else [],  # what its seeds alone leave: no less can be
        )


def layout(values: Values) -> Layout:
    """Sort the values of cells, replicates and seeds into mean squares.

    Raises ValueError where they are not finite, or not as many in every cell and replicate.
    """
    import numpy as np

    shapes = {(len(replicates), len(seeds)) for replicates in values.values() for seeds in replicates}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(f"expected as many replicates and seeds in every cell, got {sorted(shapes)}")
    y_CRS = np.array(list(values.values()), dtype=float)
    if not np.isfinite(y_CRS).all():
        raise ValueError("expected finite values")
    cells, replicates, seeds = y_CRS.shape
    y_CR1, y_1RS = y_CRS.mean(axis=2, keepdims=True), y_CRS.mean(axis=0, keepdims=True)
    rounding = ROUNDING * float(abs(y_CRS).max())
    y_1R1, y_C11 = y_1RS.mean(axis=2, keepdims=True), y_CR1.mean(axis=1, keepdims=True)
    return Layout(
        cells, replicates, seeds,
        _square(y_1R1 - y_1R1.mean(), cells * seeds, replicates - 1, rounding),
        _square(y_CR1 - y_1R1 - y_C11 + y_C11.mean(), seeds, (cells - 1) * (replicates - 1), rounding),
        _square(y_1RS - y_1R1, cells, replicates * (seeds - 1), rounding),
        _square(y_CRS - y_1RS - y_CR1 + y_1R1, 1, (cells - 1) * replicates * (seeds - 1), rounding),
    )  # fmt: skip


def _square(effects: "np.ndarray", repeated: int, freedom: int, rounding: float) -> MeanSquare:
    effects = effects * (abs(effects) > rounding)
    return MeanSquare(float((effects**2).sum()) * repeated / freedom if freedom else 0.0, freedom)


def _sum(terms: Terms, least: Terms = ()) -> tuple[float, float, float]:
    """A weighted sum of mean squares, no less than zero and than another such sum; its generalized 95 % interval."""
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = {square: rng.chisquare(square.freedom, DRAWS) / square.freedom for _, square in terms if square.freedom}
    sums = []
    for part in (terms, least):
        known = [(weight, square) for weight, square in part if square.freedom]
        estimate = np.array(sum(weight * square.value for weight, square in known))
        sums.append([estimate, sum((weight * square.value / drawn[square] for weight, square in known), np.zeros(1))])
    value, draws_D = (np.maximum(0.0, np.maximum(*both)) for both in zip(*sums, strict=True))
    low, high = np.quantile(draws_D, (0.025, 0.975))
    return float(value), float(low), float(high)


# The items of the test -----------------------------------------------------------------------------------------------


def of_items(scored: Scored) -> Component:
    """What the finite test adds: the variance of a result if other items were drawn, with its 95 % interval.

    Seeds and items are crossed, so what a seed does to single items is taken out; with one seed it cannot be, and stays
    in. Items count by their independent units; a unit that several replicates scored is one. The variance is a sum over
    units, whose own scatter gives the interval, to first order the jackknife's (Arvesen 1969), which asks for no normal
    scores: Student's t about the variance for the lower end and, since it is skewed, about its root for the upper one.
    Raises ValueError where the seeds of a replicate scored other items, and for fewer than two units.
    """
    runs = [replicate for replicates in scored.values() for replicate in replicates]
    shares: dict[str, float] = defaultdict(float)
    for replicate in runs:
        for unit, share in _shares(replicate):
            shares[unit] += share / len(runs)
    if len(shares) < 2:
        raise ValueError(f"expected items of two units or more, got {len(shares)}")
    from scipy.special import stdtrit

    n, total = len(shares), sum(shares.values())
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(shares.values()) * n**0.5
    high = (total**0.5 + half / (2 * total**0.5)) ** 2 if total > 0 else max(0.0, total + half)
    return Component("test items", max(0.0, total), max(0.0, total - half), high, n)


def _shares(seeds: Sequence[Sequence[Item]]) -> Iterator[tuple[str, float]]:
    """What each unit adds to the variance that the items give to one cell's mean over items, in one replicate."""
    import numpy as np

    units = [item.unit for item in seeds[0]]
    if any([item.unit for item in seed] != units for seed in seeds):
        raise ValueError("expected the same items on every seed of a replicate")
    names, of_item = np.unique(np.array(units), return_inverse=True)
    count = len(names)
    scores_SI = np.array([[item.score for item in seed] for seed in seeds])
    rest_SI = scores_SI - scores_SI.mean(axis=1, keepdims=True)
    rest_SU = np.array([np.bincount(of_item, rest_I, count) for rest_I in rest_SI]) / len(units)
    mean_U = rest_SU.mean(axis=0)
    shares_U = mean_U**2
    if len(seeds) > 1:  # take out the noise of the mean over seeds
        shares_U = shares_U - ((rest_SU - mean_U) ** 2).sum(axis=0) / (len(seeds) * (len(seeds) - 1))
    yield from zip(names.tolist(), (shares_U * count / max(1, count - 1)).tolist(), strict=True)
