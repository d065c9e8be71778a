"""Best so far against budget: the plain curve of any search, and a curve with its exact band for random search.

Random search without pruning draws its values independently, so the distribution F of one value says all about the best
of k: its median is F's quantile 0.5^(1/k), the median tuning curve. A band that holds F everywhere at once therefore
gives one that holds the whole curve at once (Lourie, Cho and He 2023, arXiv 2311.09480). It assumes nothing of F.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Goal = Literal["max", "min"]


@dataclass(frozen=True)
class Band:
    """The median tuning curve of random search, with a band that holds the true curve as a whole in 95 of 100 studies.

    All are by budget: index k - 1 is the best of k trials, k from 1 to the number of values. Where the values say
    nothing, an end of the band is the metric's range end, infinite where it has none: the better end from about a tenth
    of all trials on, since no sample shows how good the best of many can be; the worse one at k = 1 or 2 of few values.
    """

    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    confidence: float


def best_so_far(values: Sequence[float], goal: Goal) -> list[float]:
    """The best of the first k values, k from 1 on; values in the order of the trials' numbers, a failed one NaN.

    NaN stands at the head, until there is a value.
    """
    better = max if goal == "max" else min
    curve, best = [], math.nan
    for value in values:
        best = value if math.isnan(best) else best if math.isnan(value) else better(best, value)
        curve.append(best)
    return curve


def tuning_band(
    values: Sequence[float], goal: Goal, low: float = -math.inf, high: float = math.inf, confidence: float = 0.95
) -> Band:
    """The band of the values that random search found without pruning, in any order; [low, high] is the metric's range.

    A failed trial is a draw too: give it as the worst value there is (the range's worse end, or an infinity). A range's
    end that a value breaks bounds nothing, and counts as infinite. Where values tie the band is conservative. Raises
    ValueError for no value, and for NaN.
    """
    import numpy as np

    found = np.sort(np.asarray(values, dtype=float))
    if len(found) == 0 or np.isnan(found).any():
        raise ValueError("a band takes one value or more, and none that is NaN")
    low, high = low if low <= found[0] else -math.inf, high if high >= found[-1] else math.inf
    if goal == "min":  # the least of k is the largest of their negatives
        median, lower, upper = (-curve for curve in _curves(-found[::-1], -high, -low, confidence))
        lower, upper = upper, lower
    else:
        median, lower, upper = _curves(found, low, high, confidence)
    return Band(tuple(median.tolist()), tuple(lower.tolist()), tuple(upper.tolist()), confidence)


def _curves(found: "np.ndarray", low: float, high: float, confidence: float) -> "tuple[np.ndarray, ...]":
    """Median, lower and upper curve for the largest of k sorted values; the upper CDF gives the lower curve."""
    import numpy as np

    n = len(found)
    quantiles = 0.5 ** (1 / np.arange(1, n + 1))
    lower_cdf, upper_cdf = cdf_band(n, confidence)
    padded = np.concatenate([[low], found, [high]])
    median = found[np.searchsorted(np.arange(1, n + 1) / n, quantiles)]
    # The lower CDF is lower_cdf[j - 1] from the j-th value on, and 1 at the range's end; the upper CDF is upper_cdf[0]
    # from the range's low end on, upper_cdf[j] from the j-th value on, and 1 from the last.
    return median, padded[np.searchsorted(upper_cdf, quantiles)], padded[1 + np.searchsorted(lower_cdf, quantiles)]


@functools.cache
def cdf_band(n: int, confidence: float) -> "tuple[np.ndarray, np.ndarray]":
    """Bounds (n each) that hold F at the 1st to n-th smallest of n values, all at once with exactly this confidence.

    The `ld_equal_tailed` band of Learned-Miller and DeStefano 2008 (and of opda): F at the i-th smallest is
    Beta(i, n + 1 - i), and its equal-tailed intervals are widened, all to one level, until all hold together. The level
    is found from the exact probability, for every n; opda draws it.
    """
    from scipy.optimize import brentq

    miss = 1 - confidence

    def excess(log_level: float) -> float:
        return probability_within(*_beta_intervals(n, math.exp(log_level))) - confidence

    if n == 1:
        return _beta_intervals(1, miss)
    # All miss together no more often than in sum, and no less often than one alone: the level lies between.
    return _beta_intervals(n, math.exp(brentq(excess, math.log(miss / n), math.log(miss), xtol=1e-7)))


def _beta_intervals(n: int, miss: float) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np
    from scipy.special import betaincinv

    i = np.arange(1, n + 1)
    lower = betaincinv(i, n + 1 - i, miss / 2)
    return lower, 1 - lower[::-1]


def probability_within(lower: "np.ndarray", upper: "np.ndarray") -> float:
    """The probability that lower_i <= U_(i) <= upper_i for all i, U_(i) the order statistics of n uniform draws.

    Exact, up to rounding. The count of draws up to t is a Poisson process of rate n, given that it ends at n: it is
    carried from bound to bound, and cut at each to the counts that the bounds allow (Khmaladze and Shinjikashvili 2001;
    Moscovich and Nadler 2017). Both must ascend, as those of every band do.
    """
    import numpy as np

    n = len(lower)
    times = np.sort(np.concatenate([lower, upper, [1.0]]))
    fewest = np.searchsorted(upper, times, side="right").tolist()  # at t, all i with upper_i <= t have come
    most = np.searchsorted(lower, times, side="left").tolist()  # and none with lower_i >= t
    steps = np.diff(times, prepend=0.0) * n
    first, chances = 0, np.ones(1)  # chances[j]: that first + j have come, and no bound was broken
    for expected, least, top in zip(steps.tolist(), fewest, most, strict=True):
        if least > top:
            return 0.0
        if expected > 0:
            chances = np.convolve(chances, _poisson(expected, top - first))
        chances = chances[least - first : top - first + 1]
        first = least
    return float(chances[n - first] / _poisson(float(n), n)[n])


def _poisson(expected: float, most: int) -> "np.ndarray":
    """The Poisson chances of 0 to `most`, without those too small to count (under 1e-20)."""
    import numpy as np
    from scipy.special import gammaln

    counts = np.arange(min(most, int(expected + 12 * expected**0.5 + 20)) + 1)
    chances: np.ndarray = np.exp(counts * math.log(expected) - expected - gammaln(counts + 1))
    return chances
