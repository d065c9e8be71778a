"""A claim about cells in words: the one place where they are made, for every page and line that shows them.

They never say more than the replicates carry. "Use" stands only where the cell to use is told from all the others; else
it is the one that validation picks. Where nothing can be told, the first sentence says so; the next says what the cell
scores, then what is known of the others, and the last what to do or to bear in mind.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cs330ray.analysis.claims.claim import Claim, Pair, claim
from cs330ray.analysis.claims.look import Look
from cs330ray.analysis.claims.plan import advised_units
from cs330ray.analysis.claims.rule import LEAST_TRIALS, LEAST_UNITS
from cs330ray.analysis.statistics import over_seeds, with_interval
from cs330ray.words import number, params, plural

TRIALS = 8  # advised where there are too few
MOST_NAMED = 3
COUNTS = ("no", "one", "two")  # units that are too few
KEYS = {"replicate": "repeat.searches", "split": "repeat.searches", "seed": "confirm.seeds"}  # that say how many
UNITS = {"replicate": ("search", "searches"), "split": ("split", "splits"), "seed": ("fresh seed", "fresh seeds")}

Configurations = Mapping[str, Mapping[str, Any]]


def claim_said(look: Look, *, file: str, since: int = 0, chosen: Configurations | None = None) -> str:
    """Say what a look claims, in at most three sentences.

    `file` is what `cs330ray run` is given. `since` counts the units that are whole in each cell and came after the
    look. `chosen` has by cell a configuration: what its one search chose or, of several, the choice to use.
    """
    if not look.cells:
        return _nothing(look)
    made, caveats = claim(look), _caveats(look, file, since)
    picked = _picked(made, chosen or {})
    if len(look.cells) == 1:
        return _joined(picked, "; ".join(caveats))
    if made.silent:
        return _joined(_not_known(look), picked, "; ".join([_lacking(look, file), *caveats]))
    return _joined(picked, _verdict(made), "; ".join(caveats))


def _nothing(look: Look) -> str:
    if len(look.left_out) == 1:
        return f"There is no result: {next(iter(look.left_out.values()))}."
    return f"No cell can be compared: {_left_out(look)}."


def _joined(*sentences: str) -> str:
    return " ".join(f"{each[0].upper()}{each[1:]}." for each in sentences if each)


# What the cell to use scores ------------------------------------------------------------------------------------------


def _picked(made: Claim, chosen: Configurations) -> str:
    """Which cell it is and what it averages: the estimand in words."""
    look, head, config = made.look, _head(made), params(chosen.get(str(made.use), {}))
    score = _score(made, chosen)
    if look.unit != "replicate":
        return f"{head}{_held(look)}{_fresh(look)} {score}"
    by = f" by {look.sampler}" if look.sampler else ""
    search = f"search of {plural(look.trials, 'trial')}{by} over {_all(look.searched)}"
    if look.units == 1:
        whose = "its" if head else "the"
        return f"{head}{whose} {search} chose {config or 'a configuration'}, with which {_fresh(look)} {score}"
    there, seeds = " there" if head else "", plural(look.seeds, "fresh seed")
    which = "the choice on the first split" if look.split else "the best choice on validation so far"
    example = f"; {which} is {config}" if config else ""
    return f"{head}what a {search} chooses{there}, trained again on {seeds}, averages {score}{example}"


def _head(made: Claim) -> str:
    """Which cell the sentence is about; nothing where the study has one cell."""
    look = made.look
    if len(look.cells) == 1:
        return f"only {made.use} is complete: " if look.left_out else ""
    told_from_all = not made.silent and len(made.below) == len(made.rivals)
    use = told_from_all and not look.left_out and not _untuned(look)
    return f"use {made.use}: " if use else f"validation picks {made.use}: "


def _fresh(look: Look) -> str:
    """Which fresh seeds average the score."""
    count = look.units if look.unit == "seed" else look.seeds
    seeds = "fresh seeds" if look.unit == "seed" and count > 1 else plural(count, "fresh seed")
    where = f" on {'one' if look.units == 1 else 'each'} split of the data" if look.unit == "split" else ""
    return f"{seeds}{where} {'average' if count > 1 else 'averages' if look.units > 1 else 'scores'}"


def _score(made: Claim, chosen: Configurations) -> str:
    """The mean over the units with its interval and, where nothing is told of the cells, the scores of the others."""
    look = made.look
    notes = [f"95 % for the mean of {_units(look)}"] if look.units > 1 else []
    if made.silent and made.rivals:
        notes.append(_all([_other(look, pair.second, chosen) for pair in made.rivals]))
    beside = f" ({'; '.join(notes)})" if notes else ""
    also = "" if look.tested else " on validation, which also chose it"
    return f"{look.about} {with_interval(over_seeds(look.values[str(made.use)]))}{beside}{also}"


def _other(look: Look, cell: str, chosen: Configurations) -> str:
    """Another cell's score, and of one search what it chose."""
    its = f" with {params(chosen[cell])}" if look.units == 1 and chosen.get(cell) else ""
    return f"{_mean(look, cell)} for {cell}{its}"


def _untuned(look: Look) -> list[str]:
    """The values at which all holds where nothing is searched; each split is another, so its field is none of them."""
    return [params({name: value}) for name, value in look.held.items() if name != look.split]


def _held(look: Look) -> str:
    return f"at {_all(_untuned(look))}, which nobody tuned, " if _untuned(look) else ""


# What is known of the others ------------------------------------------------------------------------------------------


def _not_known(look: Look) -> str:
    """Why nothing is known of the cells: too few units, too few trials, or units that are still to come."""
    (one, many), few, asked = UNITS[look.unit], look.units < LEAST_UNITS, _asked(look)
    if not few and not _short(look):
        return f"{look.units} of {asked} {many} of each cell are done, so whether the cells differ is not known yet"
    had = f"{COUNTS[look.units]} {one if look.units == 1 else many}" if few else many
    had += f" of {plural(look.trials, 'trial')}" if _short(look) else ""
    so_far = " so far" if look.units < asked else ""
    return f"{had} each{so_far}, so whether the cells differ is not known"


def _verdict(made: Claim) -> str:
    """Which cells the one to use is told from, and how far the strongest of them is from it."""
    look, above, below, open_ = made.look, made.above, made.below, made.not_told
    here = "at these values " if _untuned(look) else ""
    better = f"better than {_scored(look, below)}"
    if above:
        by = "beats it by" if len(above) == 1 else "beat it, the first by"
        known = [better] * bool(below) + [f"not told apart from {_scored(look, open_, 'or')}"] * bool(open_)
        others = f"; {made.use} is {' and '.join(known)}" if known else ""
        return (
            f"{here}on test {_scored(look, above)} {by} {_apart(made, above[0].turned)}, but to switch now would be to "
            f"choose on test{others}"
        )
    if open_:
        return f"{here}it is {f'{better}, but ' if below else ''}not told apart from {_lead(made)}"
    return f"{here}it is better than {_behind(made)}"


def _behind(made: Claim) -> str:
    """The rivals that are all told below the cell to use, and how far the strongest is behind."""
    look, below = made.look, made.below
    if len(below) == 1:
        return f"{_scored(look, below)} by {_apart(made, below[0])}"
    every = f"both {_others(look)}, {_scored(look, below)}; the closest"
    if len(below) > 2:
        every = f"all {len(below)} {_others(look)}; the closest, {_scored(look, below[:1])},"
    return f"{every} is behind by {_apart(made, below[0])}"


def _lead(made: Claim) -> str:
    """The rivals that are not told from the cell to use, and its lead over the strongest, which may be negative."""
    look, open_ = made.look, made.not_told
    who, over = _scored(look, open_, "or"), " over the best of them" if len(open_) > 1 else ""
    if not made.below and len(open_) > 2:
        who, over = f"any of the {len(open_)} {_others(look)}", f" over the best of them, {_scored(look, open_[:1])},"
    on_test = " on test" if look.tested else ""
    return f"{who}: its lead{on_test}{over} is {_apart(made, open_[0])}"


def _apart(made: Claim, pair: Pair) -> str:
    """A difference with the interval that the claim rests on."""
    look = made.look
    if pair.constant:
        return f"{pair.difference:.2g} in each of the {_units(look)}, so that chance cannot be judged"
    sure = f"{100 * made.confidence:.6g} %" + (" jointly" if len(look.cells) > 2 else "")
    sure += f", stricter as this is look {look.number}" if look.number > 1 else ""
    return f"{pair.difference:.2g} [{pair.together.low:.2g}, {pair.together.high:.2g}] ({sure})"


# What to do, and what to bear in mind ---------------------------------------------------------------------------------


def _lacking(look: Look, file: str) -> str:
    """What a claim lacks, and the command that brings it."""
    many, run = UNITS[look.unit][1], f"cs330ray run {shlex.quote(file)}"
    least, advised = [], []
    if _asked(look) < LEAST_UNITS:
        least.append(f"{LEAST_UNITS} {many} of each cell")
        count = advised_units(len(look.cells) + len(look.left_out))
        advised.append(str(count))
        run += f" --set {KEYS[look.unit]}={count}"
    if _short(look):
        least.append(f"{LEAST_TRIALS} trials a search")
        advised.append(str(TRIALS))
        run += f" --set budget.trials={TRIALS}"
    if not least:
        return f"`{run}` completes the {_asked(look)} {many} of each cell that were asked for"
    return f"a claim takes {_all(least)}, and {_all(advised)} are advised: `{run}`"


def _caveats(look: Look, file: str, since: int) -> list[str]:
    caveats = []
    if look.left_out:
        caveats.append(f"not compared: {_left_out(look)}")
    if look.split and look.units > 1:
        caveats.append(
            "random splits of one data set overlap, so that new data would scatter more than the intervals say"
        )
    if look.objectives:
        caveats.append(f"nothing is claimed by {_all(list(look.objectives))}")
    if since:
        (one, many), them = UNITS[look.unit], "it" if since == 1 else "them"
        newer = f"not counted yet: {plural(since, f'newer {one}', f'newer {many}')} of each cell"
        caveats.append(f"{newer} (`cs330ray run {shlex.quote(file)}` counts {them}, as look {look.number + 1})")
    return caveats


# Words ----------------------------------------------------------------------------------------------------------------


def _asked(look: Look) -> int:
    """How many units were asked for."""
    return look.seeds if look.unit == "seed" else look.searches


def _short(look: Look) -> bool:
    """Whether the trials of each search are too few for a claim."""
    return look.trials_of_search is not None and look.trials_of_search < LEAST_TRIALS


def _units(look: Look) -> str:
    """The units of a cell: `5 searches`."""
    return plural(look.units, *UNITS[look.unit])


def _mean(look: Look, cell: str) -> str:
    return number(over_seeds(look.values[cell]).mean)


def _left_out(look: Look) -> str:
    return _all([f"{cell} ({why})" for cell, why in look.left_out.items()])


def _others(look: Look) -> str:
    """What the rivals are: those that are left out are none of them."""
    return "others compared" if look.left_out else "others"


def _scored(look: Look, pairs: Sequence[Pair], last: str = "and") -> str:
    """Name some rivals, each with its mean score."""
    return _all([f"{pair.second} ({_mean(look, pair.second)})" for pair in pairs], last)


def _all(names: Sequence[str], last: str = "and") -> str:
    """Name a few, and count the rest: `a, b, c and 2 more`."""
    shown = [*names[:MOST_NAMED], f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED + 1 else list(names)
    return f" {last} ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)
