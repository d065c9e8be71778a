"""The answer of a study in two sentences, and what a reader must mind."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cs330ray.report import confirmation
from cs330ray.report.comparison import Comparison, Difference, in_words
from cs330ray.report.confirmation import on_test
from cs330ray.report.statistics import Interval
from cs330ray.service import confirm
from cs330ray.spec import Cell, Range, Study, applies

if TYPE_CHECKING:
    from cs330ray.report.opened import Opened

EDGE = 0.02  # of a range: as near to its end as that is at the end


def answer(study: "Opened") -> str:
    """What was found, and how sure that is: two sentences."""
    best = study.best
    if best is None:
        return "No trial is COMPLETE yet. There is nothing to compare."
    at = _at(study)
    if not best.confirmed:
        promised = _all([f"{name} {value:.4g}" for name, value in best.searched.items()])
        return f"The best of the search is {at}, with {promised}. It is not confirmed, so that is too good."
    reached = [f"{name} {short(interval)}" for name, interval in best.confirmed.items()]
    tests = [on_test(name) for name in best.confirmed if on_test(name) in best.test]
    reached += [f"{name} {short(best.test[name])}" for name in tests]
    n = next(iter(best.confirmed.values())).n
    first = f"On {n} fresh seed{'s' * (n > 1)} {at} reaches {_all(reached)}"
    if study.comparison is None:
        return f"{first}. It was confirmed alone, so nothing is said of others."
    return f"{first}. {how_sure(study.comparison, study.study.objective[0])}"


def short(interval: Interval) -> str:
    """A mean with its interval, without its n, which is said once."""
    return f"{interval.mean:.4g}" + (f" {interval}".rsplit(" (n ", 1)[0] if interval.n > 1 else "")


def _all(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _at(study: "Opened") -> str:
    """The best configuration in words: its cell, and what was searched."""
    best = study.best
    assert best is not None
    searched = {name: best.config[name] for name in best.config if name in best.cell.space}
    parts = [best.cell.title] if best.cell.values else []
    parts += [", ".join(f"{name}={value_said(value)}" for name, value in searched.items())] if searched else []
    return " with ".join(parts) or f"trial {best.trial}"


def how_sure(comparison: Comparison, metric: str) -> str:
    """Whether the best is told from the others: one sentence."""
    second, unit = comparison.differences[0], comparison.unit
    if second.validation.n < 2:
        return f"It is not distinguished from {second.name}, nor from any other: one {unit} has no interval."
    apart = f"{abs(second.validation.mean):.2g} [{_ends(second)}] of {metric}, paired over {comparison.n} {unit}s"
    if not second.holds_zero and comparison.distinguished:
        return f"It is better than the second, {second.name}, by {apart}, and than every other."
    if not second.holds_zero:
        but = f"but not distinguished from {_listed(comparison)}"
        return f"It is better than the second, {second.name}, by {apart}, {but}."
    needed = in_words(comparison.seeds_needed, unit)
    return (
        f"It is not distinguished from {_listed(comparison)}: {second.name} is behind by {apart}, and to tell a "
        f"difference of that size would take {needed}."
    )


def _ends(apart: Difference) -> str:
    """The interval of a difference, turned so that positive is better."""
    ends = sorted((apart.validation.low, apart.validation.high))
    if apart.validation.mean < 0:
        ends = [-ends[1], -ends[0]]
    return f"{ends[0]:.2g}, {ends[1]:.2g}"


def _listed(comparison: Comparison) -> str:
    names, most = list(comparison.rivals), 3
    return _all([*names[:most], f"{len(names) - most} more"] if len(names) > most else names)


def value_said(value: Any) -> str:
    """A value of a configuration, in words."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# What a reader must mind --------------------------------------------------------------------------------------------


def notes(study: "Opened") -> list[str]:
    """What weakens the answer: edges of ranges, failures, what is missing, other code or data."""
    return [*_missing(study), *_edges(study), *_failures(study), *startup(study.study), *_circumstances(study)]


def _missing(study: "Opened") -> Iterator[str]:
    spec, ledger = study.study, study.ledger
    ended = study.trials[~study.trials["superseded"] & (study.trials["state"] != "RUNNING")]
    wanted = spec.budget.trials * len(spec.cells)
    if len(ended) < wanted:
        yield f"The search is not over: {len(ended)} of {wanted} trials have ended."
    if spec.confirm is None:
        yield "Nothing is confirmed, since the study has no [confirm]: the best of many trials is partly the luckiest."
        return
    goals = ledger.goals(spec)
    chosen = confirmation.choices(ledger, spec)
    for cell in spec.cells:
        if cell.key not in chosen:
            why = confirmation.why_none(spec, goals, confirm.confirmed(ledger, spec)[cell.key])
            yield f"{cell.title}: not confirmed: {why}."
    if spec.confirm.seeds == 1:
        yield "Each candidate was confirmed on one fresh seed, which gives no interval over seeds."


def _edges(study: "Opened") -> Iterator[str]:
    """The confirmed choice of each cell, or else the best of its search, where it lies at the edge of a range."""
    spec, ledger = study.study, study.ledger
    chosen = confirmation.choices(ledger, spec)
    goals = ledger.goals(spec)
    for cell in spec.cells:
        if cell.key in chosen:
            params = chosen[cell.key].searched.params
        else:
            found = confirm.rankable(ledger.trials(spec, cell))
            if not found:
                continue
            params = min(found, key=lambda trial: confirm.losses(trial.values or (), goals)).params
        for name, end in edges(cell, params).items():
            domain = cell.space[name]
            assert isinstance(domain, Range)
            of = f"{cell.title}: the best" if cell.values else "The best"
            yield (
                f"{of} {name}, {value_said(params[name])}, lies at the {end} end of its range "
                f"[{domain.low:g}, {domain.high:g}]: widen it."
            )


def edges(cell: Cell, params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that lie at the `lower` or `upper` end of their range: in its outer hundredths, by its scale."""
    found = {}
    for name, domain in cell.space.items():
        if not isinstance(domain, Range) or name not in params or not applies(domain, {**cell.fixed, **params}):
            continue
        place = _share(domain, params[name])
        if place <= EDGE or place >= 1 - EDGE:
            found[name] = "lower" if place <= EDGE else "upper"
    return found


def _share(domain: Range, value: float) -> float:
    """How far a value lies along a range, from 0 to 1."""
    scale = math.log if domain.log else float
    low, high = scale(domain.low), scale(domain.high)
    return float((scale(value) - low) / (high - low))


def _failures(study: "Opened") -> Iterator[str]:
    failed = study.trials[study.trials["state"] == "FAIL"]
    if len(failed):
        reason, times = Counter(failed["reason"]).most_common(1)[0]
        most = f", {times} of them" if times < len(failed) else ""
        yield f"{len(failed)} of {len(study.trials)} trials failed{most} with: {reason}."
    runs = study.runs
    if not len(runs):
        return
    ended = runs[runs["state"] == "FAIL"]
    if len(ended):
        yield f"{len(ended)} of {len(runs)} runs of confirmation failed: {ended['reason'].iloc[0]}."
    untested = runs[(runs["state"] == "COMPLETE") & (runs["reason"] != "")]
    if len(untested):
        yield f"The test of {len(untested)} of {len(runs)} runs of confirmation failed: {untested['reason'].iloc[0]}."


def startup(spec: Study) -> Iterator[str]:
    """What to say of a search that was over before its sampler had learned."""
    if not spec.search or spec.budget.trials == 1:
        return
    drawn = {"tpe": spec.sampler.startup, "nsga2": spec.sampler.population}.get(spec.sampler.kind, 0)
    if spec.budget.trials <= drawn:
        had = f"{spec.budget.trials} trial{'s' * (spec.budget.trials > 1)}"
        yield f"The search was random: {spec.sampler.kind} begins to learn after {drawn} trials, and a cell has {had}."
    elif spec.budget.trials < 2 * drawn:
        yield (
            f"The search was mostly random: {drawn} of {spec.budget.trials} trials of each cell were drawn before "
            f"{spec.sampler.kind} had anything to go by."
        )


def _circumstances(study: "Opened") -> Iterator[str]:
    starts = study.starts
    if starts["code"].nunique() > 1:
        yield (
            f"The trials ran under {starts['code'].nunique()} versions of the code: what they reached may differ for "
            "that alone."
        )
    if len(starts) and (starts.groupby("cell")["data"].nunique() > 1).any():
        yield "Trials of one cell ran on different data: what they reached may differ for that alone."
    if starts["device"].nunique() > 1:
        yield f"The trials ran on {' and '.join(sorted(set(starts['device'])))}: their seeds are not quite paired."
