"""Whether claims about cells are true: how often they are false, what they find, and how often intervals hold.

    python benchmarks/answers.py [--repetitions 4000] [--processes 2] [--smallest]

Studies whose truth is known are simulated many times by the service's own functions (see `benchmarks/simulated.py`,
which says what is the service and what is simulated). About 40 minutes on two idle cores.

A row is a kind of study; what differs from the base (4 equal cells, 8 random trials, 3 fresh seeds, 5 searches) is
named. `false` is the share of studies with any claim, at any of their looks, that is not true, with its exact 95 %
interval; `found` the share whose first look tells the cell that leads from every other; `alone` how often the plain
paired interval of the first two cells, named beforehand, holds their true difference, and `together` how often those of
all pairs do at once, both at the last look; `drift` how far the cells' means over all studies lie apart beyond the
truth, in standard deviations of a study's: about zero, or the truth is not what the row says.

Rows of tpe, whose asks take long, rest on a tenth of the repetitions: the interval is their bound, and its lower end
counts for `false_worst`. Rows above .06 are simulated again, five times as often and with other seeds, and this counts.
Below stands the table for the code of before: how often `comparison.compare` distinguished two equal cells of one
search each. The last line is a JSON object; the exit status is 1 where a bar does not hold.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import simulated
from benchmarks.simulated import Setting
from cs330ray.analysis.claims.claim import Claim, Pair
from cs330ray.analysis.claims.rule import level_of
from cs330ray.analysis.comparison import Alternative, compare
from cs330ray.analysis.standing import choices
from cs330ray.spec.study import hashed

REPETITIONS = 4000
CHUNK = 50  # studies that a process simulates at a time
AGAIN_ABOVE, AGAIN = 0.06, 5  # rows above that share are simulated again, so many times as often
MOST_FALSE, COVERAGE, LEAST_FOUND = 0.07, (0.93, 0.97), 0.65
LEAD = 3.0
WIDTH = 55  # of the names of rows

BASE = Setting()
FACTORS = [
    BASE, replace(BASE, trials=2), replace(BASE, trials=4), replace(BASE, trials=16), replace(BASE, cells=2),
    replace(BASE, cells=8), replace(BASE, seeds=1), replace(BASE, searches=(3,)),
    replace(BASE, cells=8, searches=(3,)),
]  # fmt: skip
NULLS = [
    *FACTORS,
    *(replace(each, optima="half") for each in FACTORS),
    *(replace(each, optima="one") for each in FACTORS if each.cells > 2),
    *(
        replace(each, luck=luck)
        for luck in ("skewed", "quantised", "collapses", "fails", "uneven", "wild")
        for each in (BASE, replace(BASE, cells=8, searches=(3,)))
    ),
    *(
        replace(BASE, luck=luck, cells=8, trials=2, searches=(searches,))
        for luck in ("uneven", "wild")
        for searches in (5, 8)
    ),
    replace(BASE, searches=(3, 5, 10)),
    replace(BASE, searches=(3, 5, 10), optima="half"),
    replace(BASE, searches=(3, 5, 10), luck="skewed"),
    replace(BASE, prune="asha"),
    replace(BASE, prune="asha", optima="half"),
]
SMALL_GRID = [  # a tenth of the repetitions
    replace(BASE, sampler="tpe"),
    replace(BASE, sampler="tpe", optima="half"),
    replace(BASE, sampler="tpe", optima="half", trials=16),
    replace(BASE, sampler="tpe", optima="half", prune="asha"),
]
SILENT = [  # nothing may be claimed, though the first cell leads and by far
    replace(BASE, searches=(1,), lead=10 * LEAD),
    replace(BASE, searches=(1,), trials=16, seeds=10, lead=10 * LEAD),
    replace(BASE, searches=(2,), lead=10 * LEAD),
    replace(BASE, trials=1, lead=10 * LEAD),
    replace(BASE, trials=1, searches=(3, 5, 10), optima="half", lead=10 * LEAD),
]
BAR = Setting("flat", lead=LEAD, trials=2, top=1)  # the search changes nothing: values of replicates are normal
NORMAL = [
    *(replace(BAR, cells=cells, searches=(searches,)) for cells in (2, 4, 8) for searches in (3, 5, 8)),
    replace(BAR, lead=0.0),
]
POWER = [  # where the search matters: its luck is common to the cells, or each has its own
    replace(BASE, lead=LEAD), replace(BASE, lead=LEAD, trials=4), replace(BASE, lead=LEAD, trials=4, asking="own"),
]  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """What a number of simulated studies gave; each array has an entry for each of the M studies."""

    setting: Setting
    false: np.ndarray  # whether any claim was not true
    found: np.ndarray  # whether the cell that leads was told from every other at the first look
    alone: np.ndarray  # whether the plain interval of the first two cells holds their difference
    together: np.ndarray  # whether those of all pairs do
    claims: np.ndarray  # pairs that were told apart, over all looks
    means: np.ndarray  # (M, C): of the cells' values at the last look, beyond the truth; NaN where one is left out

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the share of false claims."""
        found = binomtest(int(self.false.sum()), len(self.false)).proportion_ci(0.95)
        return float(found.low), float(found.high)

    @property
    def drift(self) -> float:
        """How far the means of the cells lie apart, beyond the truth, in standard deviations of one study's."""
        apart = self.means - np.nanmean(self.means, axis=1, keepdims=True)
        return float(np.ptp(np.nanmean(apart, axis=0)) / np.nanstd(apart))

    def line(self) -> str:
        """A row of the table."""
        found = f"{self.found.mean():.3f}" if self.setting.lead else "-"
        low, high = self.interval
        held = [f"{held.mean():.3f}" if max(self.setting.searches) > 1 else "-" for held in (self.alone, self.together)]
        return (
            f"{named(self.setting):<{WIDTH}} {len(self.false):>6}  {self.false.mean():.4f} [{low:.4f}, {high:.4f}]  "
            f"{found:>5}  {held[0]:>5}  {held[1]:>8}  {self.drift:>5.2f}"
        )


def named(setting: Setting) -> str:
    """What differs from the base, in words."""
    different = {one.name: getattr(setting, one.name) for one in fields(Setting)}
    different = {name: value for name, value in different.items() if value != getattr(BASE, name)}
    if "searches" in different:
        different["searches"] = ",".join(map(str, setting.searches))
    return " ".join(f"{name}={value}" for name, value in different.items()) or "base"


def counted(setting: Setting, numbers: range) -> Counted:
    """Simulate a study of each number, and hold what it claims against the truth."""
    asked, rows, means = setting.study(), [], []
    truth = {cell.title: setting.lead * setting.sd if place == 0 else 0.0 for place, cell in enumerate(asked.compared)}
    first = next(iter(truth))
    for number in numbers:
        study = asked.model_copy(update={"seed": hashed("answers", setting, number)})
        claims = simulated.looks(setting, study)
        told = [pair for claim in claims for pair in claim.pairs if pair.told]
        last = claims[-1].pairs
        rows.append([
            any(pair.difference * _true(pair, truth) <= 0 for pair in told),
            _leads(first, claims[0], len(truth)),
            all(pair.alone.low <= _true(pair, truth) <= pair.alone.high for pair in last[:1]),
            all(pair.together.low <= _true(pair, truth) <= pair.together.high for pair in last),
            len(told),
        ])  # fmt: skip
        values = claims[-1].look.values
        means.append([np.mean(values[title]) - truth[title] if title in values else np.nan for title in truth])
    return Counted(setting, *np.array(rows).T, np.array(means))


def _true(pair: Pair, truth: dict[str, float]) -> float:
    return truth[pair.first] - truth[pair.second]


def _leads(first: str, claim: Claim, cells: int) -> bool:
    """Whether a claim tells that the first cell is better than every other."""
    told = [pair for pair in claim.pairs if pair.first == first and pair.told and pair.difference > 0]
    return len(told) == cells - 1


def simulate(setting: Setting, repetitions: int, pool: Executor, first: int = 0) -> Counted:
    """Simulate so many studies of a setting, numbered from `first`, on all processes."""
    chunks = [
        range(start, min(start + CHUNK, first + repetitions)) for start in range(first, first + repetitions, CHUNK)
    ]
    parts = list(pool.map(partial(counted, setting), chunks))
    arrays = [one.name for one in fields(Counted)][1:]
    return Counted(setting, *(np.concatenate([getattr(part, name) for part in parts]) for name in arrays))


def table(settings: list[Setting], repetitions: int, pool: Executor, *, again: bool = False) -> Iterator[Counted]:
    """Print a row a setting as it comes; where `again`, those above .06 on fresh studies, which count."""
    for setting in settings:
        found = simulate(setting, repetitions, pool)
        print(found.line(), flush=True)
        if again and found.false.mean() > AGAIN_ABOVE:
            found = simulate(setting, AGAIN * repetitions, pool, first=repetitions)
            print(f"{'  again, on fresh studies:':<{WIDTH}}{found.line()[WIDTH:]}", flush=True)
        yield found


# The code of before ---------------------------------------------------------------------------------------------------


def distinguished_before(trials: int, seeds: int, numbers: range) -> int:
    """Of so many pairs of equal cells, each searched once by draws of its own, those that `compare` tells apart."""
    setting = Setting(cells=2, trials=trials, seeds=seeds, searches=(1,), top=1, asking="own")
    asked, count = setting.study(), 0
    for number in numbers:
        study = asked.model_copy(update={"seed": hashed("before", setting, number)})
        found = choices(simulated.studied(setting, study))
        alternatives = [
            Alternative(key, {index: values[0] for index, values in enumerate(choice.values)})
            for key, choice in found.items()
        ]
        count += compare(alternatives, "max").distinguished
    return count


def before(repetitions: int, pool: Executor) -> None:
    """Print the table of the code of before."""
    print(f"\nthe code of before: share of {repetitions} pairs of equal cells, one search each, that it distinguished")
    print("trials   3 seeds  5 seeds  10 seeds")
    chunks = [range(start, min(start + CHUNK, repetitions)) for start in range(0, repetitions, CHUNK)]
    for trials in (1, 2, 4, 8, 16):
        shares = []
        for seeds in (3, 5, 10):
            count: Callable[[range], int] = partial(distinguished_before, trials, seeds)
            shares.append(sum(pool.map(count, chunks)) / repetitions)
        print(f"{trials:>6}  " + "  ".join(f"{share:>7.3f}" for share in shares), flush=True)


# The bars -------------------------------------------------------------------------------------------------------------


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--repetitions", type=int, default=REPETITIONS, help="studies a row")
    given.add_argument("--processes", type=int, default=os.cpu_count())
    given.add_argument("--smallest", action="store_true", help="one study a row: shows only that it runs")
    args = given.parse_args()
    repetitions = 1 if args.smallest else args.repetitions
    few = max(1, repetitions // 10)
    print(f"{'':<{WIDTH}} {'n':>6}  {'false':<23}  found  alone  together  drift")
    with ProcessPoolExecutor(args.processes) as pool:
        nulls = list(table(NULLS, repetitions, pool, again=not args.smallest))
        small = list(table(SMALL_GRID, few, pool))
        silent = list(table(SILENT, few, pool))
        normal = list(table(NORMAL, repetitions, pool))
        power = list(table(POWER, repetitions, pool))
        before(few, pool)
    shares = [one.false.mean() for one in (*nulls, *normal, *power)] + [one.interval[0] for one in small]
    alone = [one.alone.mean() for one in normal]
    (bar,) = (one for one in normal if one.setting == BAR)
    figures = {
        "false_worst": max(shares), "coverage_low": min(alone), "coverage_high": max(alone), "found": bar.found.mean(),
    }  # fmt: skip
    low, high = COVERAGE
    holds = {
        f"false_worst at most {MOST_FALSE}": figures["false_worst"] <= MOST_FALSE,
        f"coverage within {COVERAGE}": low <= figures["coverage_low"] and figures["coverage_high"] <= high,
        f"found at least {LEAST_FOUND}": figures["found"] >= LEAST_FOUND,
        "no claim of two searches or fewer, nor of one trial": not any(one.claims.any() for one in silent),
        f"all intervals together at least {1 - level_of(1)}": all(_covers(one) for one in normal),
    }
    print()
    for bar_said, held in holds.items():
        print(f"{'holds' if held else 'DOES NOT HOLD'}: {bar_said}")
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))
    sys.exit(not args.smallest and not all(holds.values()))


def _covers(one: Counted) -> bool:
    """Whether all intervals together hold as often as they state, as far as the repetitions can tell."""
    stated = 1 - level_of(1)
    return bool(binomtest(int(one.together.sum()), len(one.together), stated, "less").pvalue > 0.001)


if __name__ == "__main__":
    main()
