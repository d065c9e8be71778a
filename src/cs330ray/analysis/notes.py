"""What a reader of a report must mind: what is missing, edges of ranges, failures, other code or data."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cs330ray.analysis import confirmed
from cs330ray.analysis.answer import reason_said
from cs330ray.analysis.study import Snapshot
from cs330ray.spec.study import Cell, Study
from cs330ray.spec.tables import Range, applies
from cs330ray.trial import bounds
from cs330ray.words import plural, shown

EDGE = 0.02  # of a range: as near to its end as that is at the end


def notes(study: Snapshot) -> list[str]:
    """What weakens the answer: edges of ranges, failures, values outside bounds, what is missing, other code."""
    return [
        *_missing(study), *_edges(study), *_failures(study), *_outside(study), *startup(study.study),
        *_circumstances(study),
    ]  # fmt: skip


def _missing(study: Snapshot) -> Iterator[str]:
    spec = study.study
    ended = sum(cell.ended for cell in study.standings)
    wanted = spec.budget.trials * len(spec.cells)
    if ended < wanted:
        yield f"The search is not over: {ended} of {wanted} trials have ended."
    if spec.confirm is None:
        yield "Nothing is confirmed, since the study has no [confirm]: the best of many trials is partly the luckiest."
        return
    for cell in study.standings:
        if cell.chosen is None:
            of = f"{cell.cell.label}: not" if cell.cell.values or cell.cell.replicate else "Not"
            yield f"{of} confirmed: {confirmed.why_none(spec, cell.goals, cell.candidates)}."
    if spec.confirm.seeds == 1:
        yield "Each candidate was confirmed on one fresh seed, which gives no interval over seeds."


def _edges(study: Snapshot) -> Iterator[str]:
    """The choice to use of each cell, or else the best of its search, where it lies at the edge of a range."""
    for standing in study.replicates.used.values():
        if standing.best is None:
            continue
        cell, params = standing.cell, standing.best.params
        for name, end in edges(cell, params).items():
            domain = cell.space[name]
            assert isinstance(domain, Range)
            of = f"{cell.title}: the best" if cell.values else "The best"
            yield (
                f"{of} {name}, {shown(params[name])}, lies at the {end} end of its range "
                f"[{shown(domain.low)}, {shown(domain.high)}]: widen it, where it can be."
            )


def edges(cell: Cell, params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that lie at the `lower` or `upper` end of their range: in its outer hundredths, by its scale.

    Of two values, each of which is an end, none is said.
    """
    found = {}
    for name, domain in cell.space.items():
        if not isinstance(domain, Range) or name not in params or not applies(domain, {**cell.fixed, **params}):
            continue
        if domain.whole and domain.high - domain.low <= (domain.step or 1):
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


def _failures(study: Snapshot) -> Iterator[str]:
    failed = study.trials[study.trials["state"] == "FAIL"]
    if len(failed):
        reason, times = Counter(failed["reason"]).most_common(1)[0]
        most = f", {times} of them" if times < len(failed) else ""
        yield f"{len(failed)} of {len(study.trials)} trials failed{most} with: {reason_said(reason)}."
    runs = study.runs
    if not len(runs):
        return
    ended = runs[runs["state"] == "FAIL"]
    if len(ended):
        yield f"{len(ended)} of {len(runs)} runs of confirmation failed: {reason_said(ended['reason'].iloc[0])}."
    untested = runs[(runs["state"] == "COMPLETE") & (runs["reason"] != "")]
    if len(untested):
        why = reason_said(untested["reason"].iloc[0])
        yield f"The test of {len(untested)} of {len(runs)} runs of confirmation failed: {why}."


def _outside(study: Snapshot) -> Iterator[str]:
    """The metrics that have values outside their declared bounds, in rows of the search and in runs of confirmation."""
    for standing in study.standings:
        cell, spec = standing.cell, study.study
        metrics = study.ledger.metrics(spec, cell.trainable)
        held = study.ledger.rows_by_trial(spec, cell)
        reached: list[tuple[int, Mapping[str, float]]] = [(n, row.metrics) for n, rows in held.items() for row in rows]
        for run in (run for one in standing.candidates for run in one.runs):
            validation = dict(zip(spec.objective, run.trial.values or (), strict=False))
            reached += [(run.trial.number, values) for values in (validation, run.test)]
        of = f"{cell.label}: " if cell.values or cell.replicate else ""
        yield from (f"{of}{line}." for line in bounds.summary(metrics, reached))


def startup(spec: Study) -> Iterator[str]:
    """What to say of a search that was over before its sampler had learned."""
    if not spec.search or spec.budget.trials == 1:
        return
    settings = spec.sampler
    drawn = {"tpe": settings.startup, "gp": settings.startup, "nsga2": settings.population}.get(settings.kind, 0)
    if spec.budget.trials <= drawn:
        had = plural(spec.budget.trials, "trial")
        yield f"The search was random: {spec.sampler.kind} begins to learn after {drawn} trials, and a cell has {had}."
    elif spec.budget.trials < 2 * drawn:
        yield (
            f"The search was mostly random: {drawn} of {spec.budget.trials} trials of each cell were drawn before "
            f"{spec.sampler.kind} had anything to go by."
        )


def saved(study: Snapshot) -> str:
    """What the pruner saved, beside what was asked for; nothing where a study is not pruned.

    How well rungs tell the end is not said: only of those that went on is the end known, and they were picked by it.
    """
    kind, steps = study.study.prune.kind, study.study.budget.steps
    stand = study.trials[~study.trials["superseded"].astype(bool)]
    asked = len(stand) * steps
    if kind == "none" or not asked:
        return ""
    pruned = stand[stand["state"] == "PRUNED"]
    spared = int((steps - pruned["steps"]).sum())
    return (
        f"Pruning by {kind} ended {len(pruned)} of {plural(len(stand), 'trial')} early: {spared} of {asked} steps "
        f"that were asked for ({spared / asked:.0%}) were not taken."
    )


def _circumstances(study: Snapshot) -> Iterator[str]:
    starts = study.starts
    if starts["code"].nunique() > 1:
        yield (
            f"The trials ran under {starts['code'].nunique()} versions of the code: what they reached may differ for "
            "that alone."
        )
    if len(starts) and (starts.groupby(["cell", "replicate"])["data"].nunique() > 1).any():
        yield "Trials of one cell ran on different data: what they reached may differ for that alone."
    if starts["device"].nunique() > 1:
        yield f"The trials ran on {' and '.join(sorted(set(starts['device'])))}: their seeds are not quite paired."
