"""The answer of a study in at most three sentences."""

from collections.abc import Sequence

from cs330ray.analysis import confirmed, replicates
from cs330ray.analysis.claims import seen
from cs330ray.analysis.claims.sentence import claim_said
from cs330ray.analysis.comparison import Comparison, Difference, in_words
from cs330ray.analysis.confirmed import said
from cs330ray.analysis.replicates import Replicates
from cs330ray.analysis.statistics import Interval, with_interval
from cs330ray.analysis.study import Snapshot
from cs330ray.ledger.confirm import on_test
from cs330ray.ledger.ledger import Ledger
from cs330ray.spec.places import study_file
from cs330ray.spec.study import Study
from cs330ray.words import first_line_of, number, params, plural

LONGEST_REASON = 160  # characters of what an error said


def answer(study: Snapshot) -> str:
    """What was found, and how sure that is: at most three sentences."""
    if study.best is None:
        return "No trial is COMPLETE yet. There is nothing to compare."
    return of_cells(study.ledger, study.replicates) or (_confirmed(study) if study.best.confirmed else _searched(study))


def lines(ledger: Ledger, study: Study) -> list[str]:
    """How confirmation ended, line by line: the choice of each cell, and what is claimed of the cells."""
    return [*confirmed.lines(ledger, study), *filter(None, [of_cells(ledger, replicates.read(ledger, study))])]


def of_cells(ledger: Ledger, cells: Replicates) -> str:
    """What is claimed of the cells; nothing where a study is one search of one cell, or before a replicate is whole."""
    asked, found = cells.study, seen.seen(ledger, cells)
    if found is None or (len(asked.compared) == 1 and asked.repeat.searches == 1):
        return ""
    chosen = {title: one.chosen.searched.params for title, one in cells.used.items() if one.chosen is not None}
    return claim_said(found.look, file=file_of(asked), since=found.since, chosen=chosen)


def file_of(study: Study) -> str:
    """What `cs330ray run` is given for a recorded study, as far as that is known."""
    return study.name if study_file(study.name).is_file() else "FILE"


def _confirmed(study: Snapshot) -> str:
    best = study.best
    assert best is not None
    reached = [f"{name} {with_interval(interval)}" for name, interval in best.confirmed.items()]
    n = next(iter(best.confirmed.values())).n
    tests = {name: best.test[name] for name in map(on_test, best.confirmed) if name in best.test}
    reached += [f"{name} {with_interval(test) if test.n == n else said(test)}" for name, test in tests.items()]
    left = unconfirmed(study)
    so_far = f"So far, with {_all(_few(left))} not confirmed, on" if left else "On"
    first = f"{so_far} {plural(n, 'fresh seed')} {_at(study)} reaches {_all(reached)}"
    if len(study.study.compared) > 1:
        return f"{first}. Nothing is said of the others before every cell has all its trials and is confirmed."
    if study.comparison is None:
        return f"{first}. It was confirmed alone, so nothing is said of others."
    return f"{first}. {how_sure(study.comparison, study.study.objective[0])}"


def _searched(study: Snapshot) -> str:
    best, spec = study.best, study.study
    assert best is not None
    promised = _all([f"{name} {number(value)}" for name, value in best.searched.items()])
    by = f" by {spec.objective[0]}" if len(spec.objective) > 1 else ""
    first = f"The best of the search{by} is {_at(study)}, with {promised}"
    held = [one for found in study.candidates.values() for one in found]
    if any(one.whole and one.current for one in held):
        return f"{first}. No candidate is the confirmed choice: see what is to be minded."
    one_alone = int((study.trials["state"] == "COMPLETE").sum()) == 1
    return f"{first}. It is not confirmed{', and stands alone' if one_alone else ', so that may be too good'}."


def unconfirmed(study: Snapshot) -> list[str]:
    """The titles of the cells that have no confirmed choice."""
    return [cell.label for cell in study.cells if cell.key not in study.choices]


def reason_said(reason: str) -> str:
    """What an error said, in its first line and not at length."""
    line = first_line_of(reason)
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}..."


def _all(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _few(names: Sequence[str], most: int = 3) -> list[str]:
    return [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)


def _at(study: Snapshot) -> str:
    """The best configuration in words: its cell or its number, and what was searched."""
    best = study.best
    assert best is not None
    searched = {name: best.config[name] for name in best.config if name in best.cell.space}
    parts = [best.cell.label if best.cell.values else f"trial {best.trial}"]
    parts += [params(searched, ", ")] if searched else []
    return " with ".join(parts)


def how_sure(comparison: Comparison, metric: str, who: str = "It") -> str:
    """Whether the best is told from the others: one sentence about `who`."""
    second, unit = comparison.differences[0], comparison.unit
    if second.validation.n < 2:
        return f"{who} is not distinguished from {second.name}, nor from any other: one {unit} has no interval."
    if second.without_scatter:
        return _without_scatter(comparison, metric, who)
    apart = f"{abs(second.validation.mean):.2g} [{_ends(second)}] of {metric}, paired over {comparison.n} {unit}s"
    if not second.holds_zero:
        if comparison.distinguished:
            others = f", and than each of the {len(comparison.order) - 2} others" if len(comparison.order) > 2 else ""
        else:
            others = f", but not distinguished from {_all(_few(comparison.rivals))}"
        return f"{who} is better than {second.name} by {apart}{others}."
    if second.validation.mean == 0:
        between = f"their means are equal, [{_ends(second)}] over {comparison.n} paired {unit}s"
        return f"{who} is not distinguished from {_all(_few(comparison.rivals))}: {between}."
    needed = in_words(comparison.seeds_needed, unit)
    return (
        f"{who} is not distinguished from {_all(_few(comparison.rivals))}: {second.name} is behind by {apart}, and to "
        f"tell a difference of that size would take {needed}."
    )


def _without_scatter(comparison: Comparison, metric: str, who: str) -> str:
    """Of a second whose distance is the same on every seed, which says nothing of chance."""
    second, unit = comparison.differences[0], comparison.unit
    if second.validation.mean == 0:
        return f"{who} is not distinguished from {second.name}: they are equal on each of the {comparison.n} {unit}s."
    items, by = second.test_items, f"{abs(second.validation.mean):.2g} of {metric}"
    on_items = f"; over the items of the test the difference is {_with_ends(items)}" if items else ""
    return (
        f"{who} is not distinguished from {_all(_few(comparison.rivals))}: {second.name} is behind by {by} on each of "
        f"the {comparison.n} {unit}s, so that they tell nothing of chance{on_items}."
    )


def _with_ends(interval: Interval) -> str:
    return f"{interval.mean:+.2g} [{interval.low:.2g}, {interval.high:.2g}]"


def _ends(apart: Difference) -> str:
    """The interval of a difference, turned so that positive is better."""
    ends = sorted((apart.validation.low, apart.validation.high))
    if apart.validation.mean < 0:
        ends = [-ends[1], -ends[0]]
    return f"{ends[0]:.2g}, {ends[1]:.2g}"
