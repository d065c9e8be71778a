"""The rule that tells cells apart, over many repetitions of a study at once: a simulation tests what a study gets.

Cells are paired by their units: replicates, splits or seeds, whatever is done again for every cell. A pair is told
apart where two tests both reject at the level of the look: Tukey's over all cells, with the pooled residual of the
two-way layout of cells and units (it keeps the chance of any false claim down, however many cells there are), and the
pair's own paired t (which a noisy cell elsewhere cannot help or harm).

Shapes: M repetitions, C cells, N units, P pairs of cells in the order of `pairs_of`.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cs330ray.analysis.statistics import ROUNDING

if TYPE_CHECKING:
    import numpy as np

LEVEL_OF_FIRST = 0.04
LEVEL_OF_LATER = 0.01  # that all looks after the first share: half for the second, a quarter for the third, and so on
LEAST_UNITS = 3  # two find a lead of 3 sd in .15 of cases, and of eight cells with a noisy one claim falsely in .09
MANY_CELLS = 4  # up to which the paired t-tests are asked at the level itself
LEAST_TRIALS = 2  # of a search: one trial is no search, and its luck is far from normal


def level_of(look: int) -> float:
    """How often look number `look`, from 1 on, may claim a difference that is not there: .04, then .01 / 2^(k - 1).

    All looks together stay within .05. Raises ValueError for a number below 1.
    """
    if look < 1:
        raise ValueError(f"expected the number of a look, 1 or more, got {look}")
    return LEVEL_OF_FIRST if look == 1 else LEVEL_OF_LATER / 2 ** (look - 1)


def may_claim(units: int, trials: int | None = None) -> bool:
    """Whether so many units can tell any cells apart; `trials` of each search, None where nothing is searched."""
    return units >= LEAST_UNITS and (trials is None or trials >= LEAST_TRIALS)


def pairs_of(cells: int) -> list[tuple[int, int]]:
    """Every pair of cells by their places, the earlier one first."""
    return list(itertools.combinations(range(cells), 2))


def told_apart(values_MCN: "np.ndarray", level: float, trials: int | None = None) -> "np.ndarray":
    """Which pairs the rule tells apart at `level`: booleans (M, P).

    Values are finite. `trials` of each search, None where nothing is searched: see `may_claim`.
    """
    return differences(values_MCN, trials).told(level)


@dataclass(frozen=True)
class Differences:
    """The difference of each pair, first minus second, with its two standard errors. Arrays are (M, P)."""

    mean: "np.ndarray"
    pooled: "np.ndarray"  # standard error of one cell's mean, by the residual of all cells: Tukey's
    own: "np.ndarray"  # standard error of the difference, by its own scatter: the paired t's
    constant: "np.ndarray"  # the same difference in every unit, up to rounding: it says nothing of chance
    cells: int
    units: int
    trials: int | None  # of each search; None where nothing is searched

    def half(self, level: float) -> "np.ndarray":
        """Half the interval that the rule comes to at `level`: it leaves zero out exactly where both tests reject.

        The wider one of Tukey's and the pair's own, so that all pairs of a repetition are within theirs together in at
        least 1 - level of cases. Infinite for one unit.
        """
        import numpy as np

        if self.units < 2:
            return np.full_like(self.mean, np.inf)
        tukey = critical_tukey(level, self.cells, self.units) * self.pooled
        return np.maximum(tukey, critical_t(level / _stricter(self.cells), self.units) * self.own)

    def told(self, level: float) -> "np.ndarray":
        """Where the rule tells a pair apart at `level`."""
        told: np.ndarray = (abs(self.mean) > self.half(level)) & ~self.constant & may_claim(self.units, self.trials)
        return told

    def p(self, repetition: int, pair: int) -> float | None:
        """The least level at which the rule tells a pair apart; None where it never does."""
        if not may_claim(self.units, self.trials) or self.constant[repetition, pair]:
            return None
        from scipy.special import stdtr
        from scipy.stats import studentized_range

        apart = abs(float(self.mean[repetition, pair]))
        own = 2 * stdtr(self.units - 1, -apart / float(self.own[repetition, pair])) * _stricter(self.cells)
        freedom = (self.cells - 1) * (self.units - 1)
        tukey = studentized_range.sf(apart / float(self.pooled[repetition, pair]), self.cells, freedom)
        return min(1.0, max(float(own), float(tukey)))


def differences(
    values_MCN: "np.ndarray", trials: int | None = None, pairs: Sequence[tuple[int, int]] | None = None
) -> Differences:
    """The differences of `pairs`, by default of all; `trials` of each search, None where nothing is searched."""
    import numpy as np

    _, cells, units = values_MCN.shape
    _, exponent_M11 = np.frexp(abs(values_MCN).max(axis=(1, 2), keepdims=True))
    scale_M11 = np.ldexp(1.0, exponent_M11 - 1)  # exact, and no square overflows or vanishes
    values_MCN, scale_M1 = values_MCN / scale_M11, scale_M11[..., 0]
    first, second = np.array(pairs_of(cells) if pairs is None else pairs, dtype=int).reshape(-1, 2).T
    apart_MPN = values_MCN[:, first] - values_MCN[:, second]
    largest_MC = abs(values_MCN).max(axis=-1)
    rounding_MP = ROUNDING * np.maximum(largest_MC[:, first], largest_MC[:, second])
    mean_MP = apart_MPN.mean(axis=-1)
    mean_MP[abs(mean_MP) <= rounding_MP] = 0.0
    own_MP, pooled_M1 = np.zeros_like(mean_MP), np.zeros_like(scale_M1)
    if units > 1 and cells > 1:
        own_MP = apart_MPN.std(axis=-1, ddof=1) / units**0.5
        pooled_M1 = (residual_variance(values_MCN)[:, None] / units) ** 0.5
    pooled_MP = np.broadcast_to(pooled_M1 * scale_M1, mean_MP.shape)
    constant_MP = np.ptp(apart_MPN, axis=-1) <= rounding_MP
    return Differences(mean_MP * scale_M1, pooled_MP, own_MP * scale_M1, constant_MP, cells, units, trials)


def residual_variance(values_MCN: "np.ndarray") -> "np.ndarray":
    """The variance that is left of one value when its cell's and its unit's mean are taken out: (M,).

    Of two cells or more and two units or more, on (C - 1)(N - 1) degrees of freedom.
    """
    _, cells, units = values_MCN.shape
    rest_MCN = values_MCN - values_MCN.mean(axis=2, keepdims=True) - values_MCN.mean(axis=1, keepdims=True)
    rest_MCN = rest_MCN + values_MCN.mean(axis=(1, 2), keepdims=True)
    variance: np.ndarray = (rest_MCN**2).sum(axis=(1, 2)) / ((cells - 1) * (units - 1))
    return variance


def _stricter(cells: int) -> float:
    """By how much the paired t-tests must be stricter for being many.

    Tukey's test pools the scatter of all cells, so that a pair with a noisy cell is held by its own t alone. With one
    of eight cells three times as noisy, an unadjusted t claims falsely in .079 of studies of eight searches, this .050.
    """
    return max(1.0, cells / MANY_CELLS)


@functools.cache  # scipy takes a tenth of a second
def critical_tukey(level: float, cells: int, units: int) -> float:
    """How many standard errors of a cell's mean, by the residual, Tukey's test asks of a difference at `level`."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - level, cells, (cells - 1) * (units - 1)))


def critical_t(level: float, units: int) -> float:
    """How many of its own standard errors the paired t-test asks of a difference at `level`."""
    from scipy.special import stdtrit

    return float(stdtrit(units - 1, 1 - level / 2))
