"""Tables and lines of what the ledger holds: studies, trials, one trial, the best."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tomli_w

from cs330ray.analysis import answer as answer_of
from cs330ray.analysis import confirmed as confirmation
from cs330ray.analysis import replicates
from cs330ray.analysis.standing import Standing, best_by, choices, standings
from cs330ray.analysis.table import Sheet
from cs330ray.errors import SpecError
from cs330ray.ledger import confirm
from cs330ray.ledger.confirm import Confirmed
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.lines import standing
from cs330ray.ledger.records import Trial
from cs330ray.ledger.trials.fronts import losses
from cs330ray.spec.columns import ROW, TRIAL, beside
from cs330ray.spec.study import Cell, Study
from cs330ray.trial import bounds
from cs330ray.words import number, params, plural


def studies(ledger: Ledger) -> Sheet:
    """Every study with its cells, trials by state and best value."""
    rows = []
    for name in ledger.names():
        study = ledger.study(name)
        cells = standings(ledger, study)
        found = [trial for cell in cells for trial in standing(cell.trials)]
        counts = {
            state: sum(trial.state == state for trial in found) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
        }
        values = [trial.values[0] for cell in cells if (trial := cell.best_of_search) and trial.values]
        means = [one.means[0] for one in choices(cells).values()]
        wanted = study.budget.trials * len(study.cells)
        rows.append([
            name, ", ".join(study.trainables()), str(len(study.compared)), f"{len(found)}/{wanted}",
            *(str(count) for count in counts.values()), study.objective[0], _best_of(values, cells[0].goals[0]),
            _best_of(means, cells[0].goals[0]),
        ])  # fmt: skip
    columns = [
        "study", "trainable", "cells", "trials", "complete", "pruned", "failed", "running", "objective",
        "best of search", "confirmed",
    ]  # fmt: skip
    return Sheet(None, columns, rows)


def _best_of(values: Sequence[float], goal: str) -> str:
    if not values:
        return ""
    return number(max(values) if goal == "max" else min(values))


def trials(ledger: Ledger, study: Study, *, front: bool = False) -> Sheet:
    """The trials of every cell, the best first; `front` keeps those that no other trial of the cell dominates."""
    goals, rows = ledger.goals(study), []
    for cell in study.cells:
        found, steps = ledger.trials(study, cell), dict(ledger.last_steps(study, cell))
        for trial in found:  # one that continues another may have found nothing left to do
            if trial.continues is not None:
                steps[trial.number] = max(steps.get(trial.number, 0), steps.get(trial.continues, 0))
        chosen = Standing(study, goals, cell, found).front if front else found
        for trial in sorted(chosen, key=lambda trial: _rank(trial, goals)):
            values = ["" if trial.values is None else number(value) for value in trial.values or [0.0] * len(goals)]
            spent = "" if trial.ended_s is None else f"{max(trial.ended_s - trial.started_s, 0):.0f}s"  # clocks jump
            last = str(steps.get(trial.number, 0))
            line = "" if trial.continues is None else f"continues {trial.continues}"
            line = line if trial.continued_as is None else f"continued as {trial.continued_as}"
            said = "; ".join(filter(None, ["of [start]" * trial.is_start, trial.reason, line]))
            rows.append([cell.label, str(trial.number), trial.state, *values, last, spent, params(trial.params), said])
    return Sheet(
        f"{study.name}: {' '.join(study.objective)}",
        ["cell", "trial", "state", *study.objective, "steps", "time", "parameters", "reason"],
        rows,
    )


def outside(ledger: Ledger, study: Study, one: Trial | None = None) -> list[str]:
    """The metrics that have values outside their declared bounds, a line each: objectives, or all rows of one trial."""
    found = []
    for cell in study.cells if one is None else [one.cell]:
        metrics = ledger.metrics(study, cell.trainable)
        if one is None:
            trials = ledger.trials(study, cell)
            reached = [(held.number, dict(zip(study.objective, held.values or (), strict=False))) for held in trials]
        else:
            reached = [(one.number, dict(row.metrics)) for row in ledger.rows(study, cell, one.number)]
        of = f"{cell.label}: " if cell.values or cell.replicate else ""
        found += [of + line for line in bounds.summary(metrics, reached)]
    return found


def trial(ledger: Ledger, study: Study, found: Trial, *, log: bool = False) -> list[Sheet]:
    """One trial: what it is, and its rows; with `log` each start, the reason and the traceback."""
    checkpoint = ledger.checkpoint(study, found.cell, found.number)
    given = {name: str(value) for name, value in {**found.cell.fixed, **found.params}.items()}
    facts = {
        "cell": found.cell.label, "state": found.state, "reason": found.reason, "seed": str(found.seed),
        **beside(given, {*TRIAL, "start", "checkpoint", "continues"}, "param"),
        "steps": str(found.steps),
        **({"start": "of [start] in the study file"} if found.is_start else {}),
        **({} if found.continues is None else {"continues": str(found.continues)}),
        **({} if found.continued_as is None else {"continued as": str(found.continued_as)}),
        "checkpoint": checkpoint if checkpoint and ("://" in checkpoint or os.path.exists(checkpoint)) else "none",  # noqa: PTH110
    }  # fmt: skip
    if superseded := ledger.superseded(study, found.cell, found.number):
        facts["set aside"] = f"{plural(superseded, 'row')} of an earlier start, which it began again"
    sheets = [Sheet(f"{study.name}: trial {found.number}", ["what", "value"], [list(fact) for fact in facts.items()])]
    rows = ledger.rows(study, found.cell, found.number)
    names = sorted({name for row in rows for name in row.metrics})
    lines = [
        [str(row.step), *(number(row.metrics[name]) if name in row.metrics else "" for name in names)] for row in rows
    ]
    sheets.append(Sheet("rows", ["step", *beside(dict.fromkeys(names), ROW, "metric")], lines))
    if (fresh := _fresh_runs(ledger, study, found)) is not None:
        sheets.append(fresh)
    if log:
        attempts = ledger.attempts(study, found.cell, found.number)
        sheets.append(Sheet("starts", ["start", "on"], [[str(i), json.dumps(on)] for i, on in enumerate(attempts)]))
    return sheets


def _fresh_runs(ledger: Ledger, study: Study, found: Trial) -> Sheet | None:
    """The runs of confirmation of a trial, each with its checkpoint."""
    runs = [
        run
        for one in confirm.confirmed(ledger, study).get(found.cell.key, [])
        for run in one.runs
        if one.searched.number == found.number
    ]
    rows = [
        [
            str(run.trial.cell.fresh), str(run.trial.seed), run.trial.state,
            " ".join(number(value) for value in run.trial.values or ()),
            " ".join(f"{name}={number(value)}" for name, value in run.test.items()),
            run.trial.reason or (f"test {run.untested}" if run.untested else ""),
            str(ledger.checkpoint(study, run.trial.cell, found.number)),
        ]
        for run in runs
    ]  # fmt: skip
    columns = ["fresh", "seed", "state", " ".join(study.objective), "test", "reason", "checkpoint"]
    return Sheet("confirmation", columns, rows) if rows else None


def tracebacks(ledger: Ledger, study: Study, found: Trial) -> list[str]:
    """The tracebacks of a trial and of its runs of confirmation and their tests."""
    texts = [found.traceback]
    for cell in confirm.fresh_cells(study):
        if cell.searched.key == found.cell.key:
            texts += [run.traceback for run in ledger.trials(study, cell) if run.number == found.number]
            texts += [text for _, text in [ledger.untested(study, cell, found.number) or ("", "")]]
    return [text for text in texts if text]


def best_toml(
    ledger: Ledger, study: Study, by: str | None = None, title: str | None = None, replicate: int | None = None
) -> str:
    """The best configuration of each cell, or of the one of a title, as TOML, its checkpoint in a comment.

    It is the confirmed choice where there is one, of several replicates the one to use unless one is named; with `by`
    the best of the search by that metric.
    """
    blocks, used = [], replicates.read(ledger, study, replicate).used
    cells = list(used.values()) if title is None else [used[title]]
    for one in cells:
        cell, confirmed = one.cell, one.chosen if by is None else None
        best = confirmed.searched if confirmed else best_by(ledger, one, by)
        if best is None:
            blocks.append(f"# {cell.label}: no trial is COMPLETE yet")
            continue
        not_confirmed = "" if confirmed or by or study.confirm is None else _not_confirmed(one)
        assert best.values is not None
        shown = ", ".join(
            f"{name} = {number(value, 6)}" for name, value in zip(study.objective, best.values, strict=True)
        )
        starts = ledger.attempts(study, cell, best.number)
        config = {**cell.fixed, **best.params} | (starts[-1].get("config", {}) if starts else {})
        blocks.append(
            f"# {study.name}, {cell.label}: trial {best.number}, seed {best.seed}, {shown}\n"
            + not_confirmed
            + _confirmed_comment(study, confirmed)
            + f"# checkpoint: {_checkpoint(ledger, study, best)}\n"
            + f"# searched: {', '.join(best.params) or 'nothing'}\n"
            + _toml(cell.trainable, config, one_of_many=len(cells) > 1)
        )
    return "\n\n".join(blocks)


def _confirmed_comment(study: Study, confirmed: Confirmed | None) -> str:
    if confirmed is None:
        return ""
    means = ", ".join(
        f"{name} = {number(mean, 6)}" for name, mean in zip(study.objective, confirmed.means, strict=True)
    )
    seeds = plural(confirmed.seeds, "fresh seed")
    return f"# confirmed on {seeds}: mean {means}; the checkpoint is that of the search, `show` lists the others\n"


def _not_confirmed(cell: Standing) -> str:
    why = confirmation.why_none(cell.study, cell.goals, cell.candidates)
    return f"# the best of the search; not confirmed: {why}\n"


def answer(ledger: Ledger, study: Study, chance: Callable[[Cell, Mapping[str, Any]], Mapping[str, float]]) -> list[str]:
    """The end of a run in lines: the best trial of each cell, its value against chance, and where it lies."""
    lines = []
    for cell in replicates.read(ledger, study).used.values():
        found = standing(cell.trials)
        counts = {state: sum(trial.state == state for trial in found) for state in ("COMPLETE", "PRUNED", "FAIL")}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no trial ended"
        title = f"{cell.cell.label}: " if cell.cell.values or cell.cell.replicate else ""
        best = cell.best_of_search
        if best is None or best.values is None:
            lines.append(f"{title}{said}; no best trial yet")
            continue
        by_chance = _by_chance(chance, cell.cell, best.params, lines)
        shown = ", ".join(
            f"{name} {number(value)}" + (f" (chance {number(by_chance[name])})" if name in by_chance else "")
            for name, value in zip(study.objective, best.values, strict=True)
        )
        at = f" at {params(best.params)}" if best.params else ""
        lines.append(f"{title}{said}; best is trial {best.number}: {shown}{at}")
        lines.append(f"  checkpoint: {_checkpoint(ledger, study, best)}")
    return lines + answer_of.lines(ledger, study)


def _by_chance(
    chance: Callable[[Cell, Mapping[str, Any]], Mapping[str, float]],
    cell: Cell,
    values: Mapping[str, Any],
    lines: list[str],
) -> Mapping[str, float]:
    """What guessing reaches; where that cannot be said, a line more of `lines` says why, and the answer stands."""
    try:
        return chance(cell, values)
    except SpecError as error:
        lines.append(str(error))
        return {}


def _checkpoint(ledger: Ledger, study: Study, trial: Trial) -> str:
    found = ledger.checkpoint(study, trial.cell, trial.number)
    reported = "it reported none, or " if trial.cell.command is not None else ""
    return (
        str(found)
        if found
        else f"none ({reported}the best {study.resources.keep} of a cell keep theirs: resources.keep)"
    )


def _rank(trial: Trial, goals: Sequence[str]) -> tuple[int, float, int]:
    order = ["COMPLETE", "RUNNING", "PRUNED", "FAIL"].index(trial.state) if trial.continued_as is None else 4
    return order, losses(trial.values, goals)[0] if trial.values else math.inf, trial.number


def _exactly(study: Study, values: Sequence[float]) -> str:
    return ", ".join(f"{name} = {number(value, 6)}" for name, value in zip(study.objective, values, strict=True))


def _toml(trainable: str, config: Mapping[str, Any], *, one_of_many: bool) -> str:
    """A configuration as TOML that a study file takes; what TOML cannot say, which is no value, as a comment."""
    told = {name: value for name, value in config.items() if not _holds_none(value)}
    left = [
        f"# {name} = {json.dumps(value)} cannot be said in TOML\n" for name, value in config.items() if name not in told
    ]
    block = {"trainable": trainable, "fixed": told}
    text = tomli_w.dumps({"best": block} if one_of_many else block).rstrip("\n")
    return "".join(left) + (f"[{text.replace(']', ']]', 1)}" if one_of_many else text)


def _holds_none(value: object) -> bool:
    if isinstance(value, Mapping | list):
        return any(map(_holds_none, value.values() if isinstance(value, Mapping) else value))
    return value is None
