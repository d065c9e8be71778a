"""What the results of the cells owe to chance: replicates, seeds and the items of the test, side by side."""

from collections.abc import Iterator

from cs330ray.analysis.claims.sentence import UNITS
from cs330ray.analysis.replicates import Sources
from cs330ray.analysis.table import Sheet
from cs330ray.analysis.variance import Component
from cs330ray.spec.study import Study
from cs330ray.words import number, plural

WORDS = "What one cell's result owes to chance, as standard deviations of {metric} with their 95 % intervals."
CROSSED = "Seeds and items are crossed: every seed of a choice is scored on the same items, and each has its own part."
CLAIM = (
    "What cells share in a {unit} cancels where they are compared: beside its rivals {value} scatters by {sd} "
    "[{low}, {high}] between {units}, and a claim has to overcome that. `cs330ray plan {name}` says how much has to be "
    "done again."
)


def words(found: Sources, study: Study) -> str:
    """What the table of sources says, what it cannot say, and what it means for a claim."""
    return " ".join(_words(found, study))


def _words(found: Sources, study: Study) -> Iterator[str]:
    yield WORDS.format(metric=found.metric)
    yield f"Nothing is said of the items of the test: {found.without_items}." if found.without_items else CROSSED
    layout, (unit, units) = found.layout, UNITS[study.unit]
    if layout.replicates == 1 and study.unit != "seed":
        yield f"There is one whole {unit} of each cell: how much another one would change is not known."
    elif layout.cells > 1 and layout.is_flat:
        yield f"The cells differ by the same in each {unit}: that says nothing of chance, and no claim can rest on it."
    elif layout.cells > 1:
        value = "its score" if study.unit == "seed" else f"a cell's mean over {plural(layout.seeds, 'seed')}"
        sd, low, high = (number(variance**0.5, 2) for variance in layout.residual(layout.seeds))
        yield CLAIM.format(unit=unit, units=units, value=value, sd=sd, low=low, high=high, name=study.name)


def sheet(found: Sources, study: Study) -> Sheet:
    """Each source with its standard deviation, its interval, how much it was seen in, and what it is."""
    rows = [
        [
            one.source, number(one.variance**0.5, 3),
            f"[{number(one.low**0.5, 3)}, {number(one.high**0.5, 3)}]", _seen(study, one),
            _meaning(found, study, one),
        ]
        for one in found.components
    ]  # fmt: skip
    return Sheet(None, ["source", f"sd of {found.metric}", "95 %", "seen in", "what is drawn again"], rows)


def _seen(study: Study, one: Component) -> str:
    if one.source == "replicate":
        return plural(one.n, *UNITS[study.unit])
    return plural(one.n, *(("seed",) if one.source == "seed" else ("unit of items", "units of items")))


def _meaning(found: Sources, study: Study, one: Component) -> str:
    """What changes when a source is drawn again, in one sentence."""
    seeds = found.layout.seeds
    if one.source == "replicate":
        where = " on another split of the data" if study.repeat.split else ""
        again = f"The whole search is done again{where}, and makes another choice"
        again = again if study.searched else f"Every cell is trained again{where}"
        return f"{again}; the luck of its one seed is in it." if seeds == 1 else f"{again}."
    if one.source == "seed":
        mean = f"; for a mean over {seeds} seeds it is {number((one.variance / seeds) ** 0.5, 3)}" if seeds > 1 else ""
        return f"The same configuration is trained again on another seed{mean}."
    rest = "; what its one seed does to each is in it" if seeds == 1 else ""
    more = "More splits lessen it, more seeds do not" if study.repeat.split else "No more searches or seeds lessen it"
    return f"The same models are tested on other items of the same kind{rest}. {more}."
