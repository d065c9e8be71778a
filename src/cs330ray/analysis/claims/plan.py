"""How much to do again: which differences so many replicates and seeds tell, at what price."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cs330ray.analysis.claims import rule
from cs330ray.analysis.claims.look import Unit
from cs330ray.analysis.variance import Layout

STUDIES = 4_000  # simulated for a power, in parts, so that many cells fit into memory
PARTS = 10
POWER = 0.8
UNITS = (3, 4, 5, 6, 8, 10, 15, 20)
SEEDS = (1, 2, 3, 5, 10)
ADVISED, ADVISED_OF_MANY, MANY_CELLS = 5, 8, 8  # searches that find a lead of 3 sd in most studies


@dataclass(frozen=True)
class Cost:
    """What a study spends, in hours of whatever is scarce."""

    trial_h: float  # a trial of the search, on average: pruned ones too
    run_h: float  # one candidate on one fresh seed, its test included
    top: float = 1.0  # candidates that are confirmed in each search, on average
    spent_h: float = 0.0  # on what is done already and need not be done again


@dataclass(frozen=True)
class Option:
    """So many units and seeds, and the lead over every other cell that they tell from all of these."""

    units: int  # whole replicates or splits; or seeds, where these are the unit
    seeds: int | None  # fresh ones in each replicate or split; None where they are the unit
    lead: float  # in the metric's unit, or in standard deviations of a replicate's value beside its rivals
    low: float | None  # the lead by the ends of the variance's 95 % interval; None without data
    high: float | None
    hours: float | None  # still to be spent


@dataclass(frozen=True)
class Plan:
    """The options that can tell something and that the hours allow, fewest units first."""

    cells: int
    power: float
    measured: bool  # whether leads are in the metric's unit
    options: tuple[Option, ...]

    @property
    def finest(self) -> Option | None:
        """The option that tells the smallest lead, of equal ones the cheapest; None where the hours allow none."""
        return min(self.options, key=lambda one: (one.lead, one.hours or 0.0, one.units), default=None)

    @property
    def efficient(self) -> tuple[Option, ...]:
        """The options that no other one beats in both lead and hours; all of them where the cost is not known."""
        if any(one.hours is None for one in self.options):
            return self.options
        return tuple(one for one in self.options if not any(_beats(other, one) for other in self.options))


def plan(
    cells: int,
    trials: int,
    seeds: int,
    *,
    unit: Unit = "replicate",
    units: Sequence[int] = UNITS,
    known: Layout | None = None,
    cost: Cost | None = None,
    hours: float | None = None,
    look: int = 1,
    power: float = POWER,
) -> Plan:
    """Plan a study of so many cells, trials a search and fresh seeds: what its next `look` would tell with `power`.

    `known` is how the values of a study like it scatter: leads are then in the metric's unit, and for more seeds too,
    since seeds may grow and never fall. Without it, and where it has no second unit to go by or nothing that scatters,
    they are in standard deviations of the residual of one value, at the study's seeds. Searches of one trial tell
    nothing, and have no options. Raises ValueError for fewer than two cells, and for hours without a cost.
    """
    if cells < 2:
        raise ValueError(f"expected two cells or more to be told apart, got {cells}")
    if hours is not None and cost is None:
        raise ValueError("expected a cost to count hours by, got none")
    units_seen = 0 if known is None else known.seeds if unit == "seed" else known.replicates
    measured = known is not None and units_seen > 1 and not known.is_flat
    options = []
    for count, each in itertools.product(units, _seeds(unit, seeds, known if measured else None)):
        spent = None if cost is None else _hours(cost, cells, trials, count, each)
        too_dear = hours is not None and spent is not None and spent > hours
        if too_dear or not rule.may_claim(count, trials if unit == "replicate" else None):
            continue
        lead, low, high = lead_told(cells, count, power, look), None, None
        if known is not None and measured:
            lead, low, high = (lead * variance**0.5 for variance in known.residual(each or 1))
        options.append(Option(count, each, lead, low, high, spent))
    return Plan(cells, power, measured, tuple(options))


def _seeds(unit: Unit, seeds: int, known: Layout | None) -> Sequence[int | None]:
    """The numbers of fresh seeds to try in each replicate or split; None where seeds are the unit."""
    if unit == "seed":
        return [None]
    if known is None:
        return [seeds]
    return sorted({seeds, *(more for more in SEEDS if more > seeds)}) if known.seeds > 1 else [1]


def _hours(cost: Cost, cells: int, trials: int, units: int, seeds: int | None) -> float:
    """What so many units still cost: each a search and its confirmation; there is one search where seeds are units."""
    searches, runs = (1, units) if seeds is None else (units, units * seeds)
    return max(0.0, cells * (searches * trials * cost.trial_h + runs * cost.top * cost.run_h) - cost.spent_h)


def advised_units(cells: int) -> int:
    """How many searches, splits or seeds of each cell are the sensible number: five, and of eight cells or more eight.

    They find a lead of three standard deviations in .91 of studies of two cells, .75 of four, .94 of eight.
    """
    return ADVISED_OF_MANY if cells >= MANY_CELLS else ADVISED


@functools.cache
def lead_told(cells: int, units: int, power: float = POWER, look: int = 1) -> float:
    """The lead of one cell over all others that is told from every one of them with `power`, at a look.

    In standard deviations of one value's residual, normal. By simulation of the rule itself: a lead moves differences
    and leaves their scatter as it is, so that each simulated study has the least lead that it tells, and the quantile
    of these at `power` is the answer.
    """
    import numpy as np

    rng, needed = np.random.default_rng(0), []
    with_first = [(0, other) for other in range(1, cells)]
    for _ in range(PARTS):
        found = rule.differences(rng.standard_normal((STUDIES // PARTS, cells, units)), pairs=with_first)
        needed.append((found.half(rule.level_of(look)) - found.mean).max(axis=1))
    return float(np.quantile(np.concatenate(needed), power))


def _beats(one: Option, other: Option) -> bool:
    """Whether `one` is no worse in lead and hours, and better in one of them."""
    mine, theirs = (one.lead, one.hours or 0.0), (other.lead, other.hours or 0.0)
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]
