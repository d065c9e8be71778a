"""What one look at a study claims: which cell to use, which pairs of cells are told apart, and who may be the best."""

import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cs330ray.analysis.claims import rule
from cs330ray.analysis.claims.look import Look
from cs330ray.analysis.statistics import ROUNDING, Interval, over_seeds

DRAWS = 10_000  # of the chance to be best
ALONE = 0.05  # level of the plain paired interval


@dataclass(frozen=True)
class Pair:
    """Two cells and their difference, first minus second, turned so that positive is better for the first.

    Intervals have no width for one unit (n says so).
    """

    first: str
    second: str
    together: Interval  # all pairs at once hold their differences in at least the claim's `confidence` of cases
    alone: Interval  # the plain paired one: 95 % for a pair that was named beforehand
    told: bool  # whether the rule tells them apart
    constant: bool  # whether it is the same in every unit: then it says nothing of chance, and is never told
    silent: bool  # whether the look can tell no cells apart, whatever their values are
    found: rule.Differences = field(repr=False, compare=False)
    place: int = field(repr=False, compare=False)  # of the pair in `found`

    @property
    def difference(self) -> float:
        """How far the first is ahead; negative where it is behind."""
        return self.together.mean

    @property
    def turned(self) -> "Pair":
        """The same pair, second minus first."""
        together, alone = (
            replace(one, mean=-one.mean, low=-one.high, high=-one.low) for one in (self.together, self.alone)
        )
        return replace(self, first=self.second, second=self.first, together=together, alone=alone)

    @functools.cached_property
    def p(self) -> float | None:
        """The least level at which the rule tells them apart; None where it never does."""
        return None if self.silent else self.found.p(0, self.place)


@dataclass(frozen=True)
class Claim:
    """A look's claim."""

    look: Look
    use: str | None  # the cell to use; None where no cell is compared

    @property
    def confidence(self) -> float:
        """How sure the intervals of all pairs are together: 1 minus the level of the look, or of the first to come."""
        return 1 - _level(self.look)

    @property
    def silent(self) -> bool:
        """Whether the look can tell no cells apart, whatever their values are."""
        return not may_claim(self.look)

    @functools.cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair of cells, in the order of the file."""
        return tuple(_pairs(self.look, rule.pairs_of(len(self.look.cells))))

    @functools.cached_property
    def rivals(self) -> tuple[Pair, ...]:
        """The cell to use against each other one, the strongest of these first."""
        cells = self.look.cells
        used = [place for place, cell in enumerate(cells) if cell == self.use]
        against = [(place, other) for place in used for other in range(len(cells)) if other != place]
        return tuple(sorted(_pairs(self.look, against), key=lambda pair: pair.difference))

    @functools.cached_property
    def chances(self) -> Mapping[str, float | None]:
        """The chance of each cell to be the best; None where the units say nothing of it."""
        return chances_of_best(self.look)

    @property
    def below(self) -> tuple[Pair, ...]:
        """The rivals that the cell to use is better than."""
        return tuple(pair for pair in self.rivals if pair.told and pair.difference > 0)

    @property
    def above(self) -> tuple[Pair, ...]:
        """The rivals that are better than the cell to use: what chose it, validation, and test disagree."""
        return tuple(pair for pair in self.rivals if pair.told and pair.difference < 0)

    @property
    def not_told(self) -> tuple[Pair, ...]:
        """The rivals that it is not told apart from."""
        return tuple(pair for pair in self.rivals if not pair.told)


def may_claim(look: Look) -> bool:
    """Whether a look can tell any cells apart: it was taken, of two cells or more and enough units and trials.

    One that cannot need not be taken: it spends nothing.
    """
    return look.number > 0 and len(look.cells) > 1 and rule.may_claim(look.units, look.trials_of_search)


def claim(look: Look, use: str | None = None) -> Claim:
    """Make the claim of a look; `use` is the cell to use, by default the best by its mean validation.

    Raises ValueError for a `use` that is not compared.
    """
    if use is not None and use not in look.cells:
        raise ValueError(f"expected the cell to use among {', '.join(look.cells)}, got {use}")
    return Claim(look, best_on_validation(look) if use is None else use)


def best_on_validation(look: Look) -> str | None:
    """Find the cell with the best mean validation, of equal ones the first; None where no cell is compared."""
    sign = 1 if look.goal == "max" else -1
    return max(look.cells, key=lambda cell: sign * statistics.fmean(look.validation[cell]), default=None)


def further(look: Look) -> dict[str, dict[str, Interval]]:
    """The mean of each further objective in each cell, with its 95 % interval over the units, and without a verdict."""
    return {
        name: {cell: over_seeds(column) for cell, column in values.items()} for name, values in look.objectives.items()
    }


def chances_of_best(look: Look) -> dict[str, float | None]:
    """The chance of each cell to be the best, by draws of what the cells' means may be, given the values.

    A cell's mean is drawn about the one found, with the pooled residual of the rule: the posterior of the two-way
    layout without a prior, a multivariate t. None for all where the look can tell nothing, and where no value scatters.
    """
    import numpy as np

    values_CN = np.array(list(look.values.values())) * (1 if look.goal == "max" else -1)
    if not may_claim(look):
        return dict.fromkeys(look.cells)
    values_CN = values_CN / (abs(values_CN).max() or 1.0)
    cells, units = values_CN.shape
    residual = float(rule.residual_variance(values_CN[None])[0]) ** 0.5
    if residual <= ROUNDING:
        return dict.fromkeys(look.cells)
    rng, freedom = np.random.default_rng(0), (cells - 1) * (units - 1)
    scatter_D = residual * np.sqrt(freedom / rng.chisquare(freedom, DRAWS) / units)
    best = np.zeros(cells)
    for part in np.array_split(scatter_D, 10):  # many cells fit into memory
        means_DC = values_CN.mean(axis=1) + part[:, None] * rng.standard_normal((len(part), cells))
        best += np.bincount(means_DC.argmax(axis=1), minlength=cells)
    return dict(zip(look.cells, (best / DRAWS).tolist(), strict=True))


def _pairs(look: Look, places: Sequence[tuple[int, int]]) -> Iterator[Pair]:
    """The pairs of cells at these places by the rule, as `rule.told_apart` tells them."""
    import numpy as np

    if not places:
        return
    sign, units, level, silent = (1 if look.goal == "max" else -1), look.units, _level(look), not may_claim(look)
    values_1CN = sign * np.array([list(look.values.values())])
    found = rule.differences(values_1CN, look.trials_of_search, places)
    means_P, told_P, constant_P = found.mean[0], found.told(level)[0] & (not silent), found.constant[0]
    halves_2P = np.zeros((2, len(means_P)))
    if units > 1:
        halves_2P[:] = found.half(level)[0], rule.critical_t(ALONE, units) * found.own[0]
    for place, (one, other) in enumerate(places):
        mean = float(means_P[place])
        together, alone = (Interval(mean, mean - half, mean + half, units) for half in halves_2P[:, place].tolist())
        told, constant = bool(told_P[place]), bool(constant_P[place])
        yield Pair(look.cells[one], look.cells[other], together, alone, told, constant, silent, found, place)


def _level(look: Look) -> float:
    return rule.level_of(max(1, look.number))
