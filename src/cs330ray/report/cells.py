"""The cells of a study side by side: what each scores over its units, and how far the one to use is from it."""

from collections.abc import Mapping, Sequence

from cs330ray.analysis.claims.claim import Claim, Pair, further
from cs330ray.analysis.claims.sentence import UNITS
from cs330ray.analysis.confirmed import said
from cs330ray.analysis.statistics import Interval, over_seeds
from cs330ray.analysis.table import Sheet

WORDS = (
    "Each cell over its {units}, and the one to use against it, paired. A pair is told apart where Tukey's test over "
    "all cells and the pair's own paired t-test both reject at the level of look {look}, {level:.3g}; the differences "
    "of all pairs lie within their intervals together in {confidence:.4g} % of cases. The interval of a pair alone is "
    "the plain 95 % one. The chance to be best is that of the cell's mean, given all values, without a prior."
)


def words(made: Claim) -> str:
    """What the table of cells says, and by which rule."""
    if made.silent:
        return "Each cell over its units so far. How far apart they are is not said before there is a look at all."
    units, look = UNITS[made.look.unit][1], made.look.number
    return WORDS.format(units=units, look=look, level=1 - made.confidence, confidence=100 * made.confidence)


def sheet(made: Claim) -> Sheet:
    """The cells that are compared, in the order of what they score, and then those that are not, with why."""
    look, apart = made.look, {pair.second: pair for pair in made.rivals}
    sign = 1 if look.goal == "max" else -1
    order = sorted(look.cells, key=lambda cell: -sign * over_seeds(look.values[cell]).mean)
    others = further(look)
    rows = [_row(made, cell, apart.get(cell), [each[cell] for each in others.values()]) for cell in order]
    width = len(_columns(made, others))
    rows += [[cell, f"not compared: {why}", *[""] * (width - 2)] for cell, why in look.left_out.items()]
    return Sheet(None, _columns(made, others), rows)


def _columns(made: Claim, others: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    look = made.look
    names = ["cell", look.about, *([look.metric] if look.tested else []), *others]
    if made.silent:
        return names
    names.append("chance to be best")
    together = f"the one to use minus it, {100 * made.confidence:.4g} % together"
    return [*names, together, "alone, 95 %", "least level", "told apart"]


def _row(made: Claim, cell: str, pair: Pair | None, others: Sequence[Interval]) -> list[str]:
    look, chance = made.look, made.chances[cell]
    scores = [said(over_seeds(look.values[cell]))]
    scores += [said(over_seeds(look.validation[cell]))] if look.tested else []
    row = [cell, *scores, *map(said, others)]
    if made.silent:
        return row
    row.append("" if chance is None else f"{chance:.3f}")
    if pair is None:
        return [*row, "to use", "", "", ""]
    told = "yes" if pair.told else "no"
    level = "" if pair.p is None else f"{pair.p:.2g}"
    return [*row, f"{pair.difference:+.3g} {pair.together}", str(pair.alone), level, told]
