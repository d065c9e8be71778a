"""What the ledger holds of a study, as pandas frames."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cs330ray.analysis.replicates import Replicates
from cs330ray.analysis.standing import Standing, first_searched
from cs330ray.analysis.statistics import Interval, over_items, over_seeds
from cs330ray.ledger import confirm
from cs330ray.ledger.confirm import Confirmed, on_test
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Trial
from cs330ray.spec.columns import DRAWN, ROW, RUN, TRIAL, beside
from cs330ray.spec.study import Cell, Study

STARTED_ON = ("code", "data", "python", "device", "host", "threads", "resumed_from_step")


@dataclass(frozen=True)
class Best:
    """The configuration to use: the confirmed choice, else the best of the search."""

    cell: Cell
    trial: int
    config: Mapping[str, Any]  # what the study fixes, compares and searched
    searched: Mapping[str, float]  # each objective, as the search saw it
    confirmed: Mapping[str, Interval]  # each objective over the fresh seeds; empty where it is not confirmed
    test: Mapping[str, Interval]  # every test metric over the fresh seeds; empty where it is not confirmed
    checkpoint: str | None  # of the search

    @property
    def trainable(self) -> str:
        """The system that it configures."""
        return self.cell.trainable


def trials(ledger: Ledger, study: Study, cells: Sequence[Cell]) -> pd.DataFrame:
    """A row a trial of the search.

    Its `cell`, `replicate`, number `trial`, `state`, `reason`, `seed`, `steps` (of its last row, or of the trial that
    it continues), `seconds` (of wall time, from its start to its end or its last row), `superseded` (a trial of more
    steps continues it), each objective (NaN where it has none), and each compared value and parameter by its name, or
    as `param.NAME` where another column, here or in a figure, has that name; NaN where a trial has none, beside which
    whole numbers stay whole.
    """
    found = []
    for cell in cells:
        rows = ledger.rows_by_trial(study, cell)
        last_steps: dict[int, int] = {}
        for trial in ledger.trials(study, cell):
            own = rows.get(trial.number, [])
            before = last_steps.get(trial.continues, 0) if trial.continues is not None else 0
            last_steps[trial.number] = max(own[-1].step if own else 0, before)
            ended_s = trial.ended_s or (own[-1].wall_s if own else trial.started_s)
            values = trial.values or (math.nan,) * len(study.objective)
            named = {name: _plain(value) for name, value in {**cell.values, **trial.params}.items()}
            found.append({
                "cell": cell.title, "replicate": cell.replicate, "trial": trial.number, "state": trial.state,
                "reason": trial.reason, "seed": trial.seed, "steps": last_steps[trial.number],
                "seconds": max(ended_s - trial.started_s, 0.0), "superseded": trial.continued_as is not None,
                **dict(zip(study.objective, values, strict=True)),
                **beside(named, {*TRIAL, *study.objective, *DRAWN}, "param"),
            })  # fmt: skip
    own_columns = [*TRIAL, *study.objective]
    frame = pd.DataFrame(found, columns=_columns(found, own_columns))
    for name in frame.columns[len(own_columns) :]:
        given = [record.get(name, math.nan) for record in found]
        if pd.api.types.is_float_dtype(frame[name]) and any(isinstance(value, int) for value in given):
            frame[name] = pd.Series(given, frame.index, dtype=object)  # 16 as it was given, where pandas holds 16.0
    return frame


def rows(ledger: Ledger, study: Study, cells: Sequence[Cell]) -> pd.DataFrame:
    """A row a row of a trial of the search: `cell`, `replicate`, `trial`, `step`, `wall_s` and each metric.

    `wall_s` is in seconds since the epoch. A metric that has the name of one of these is `metric.NAME`; those that
    METRICS does not declare are here too.
    """
    found = [
        {
            "cell": cell.title, "replicate": cell.replicate, "trial": number, "step": row.step, "wall_s": row.wall_s,
            **beside(row.metrics, ROW, "metric"),
        }
        for cell in cells
        for number, held in ledger.rows_by_trial(study, cell).items()
        for row in held
    ]  # fmt: skip
    return pd.DataFrame(found, columns=_columns(found, [*ROW, *study.objective]))


def confirmed(ledger: Ledger, cells: Sequence[Standing]) -> pd.DataFrame:
    """A row a candidate and objective, in the order of the cells and of the search's validation.

    `cell`, `replicate`, `trial`, `metric`, `chosen`, `whole` (a candidate still, and COMPLETE on every seed), `n`
    (COMPLETE seeds), `searched` (what the search promised), `validation` over the fresh seeds with `validation_low` and
    `_high` (ci95_seeds), `optimism` of the search (positive where it had promised too much), the same metric on `test`
    with `test_low` and `_high` (ci95_seeds) and `test_tasks_low` and `_high` (ci95_tasks). NaN where there is none; an
    interval of one seed has none.
    """
    found = []
    for cell in cells:
        for one in cell.candidates:
            if not one.values:
                continue
            is_chosen = cell.chosen is not None and cell.chosen.searched.number == one.searched.number
            for index, (name, goal) in enumerate(zip(cell.study.objective, cell.goals, strict=True)):
                promised = (one.searched.values or (math.nan,))[index]
                fresh = over_seeds([values[index] for values in one.values])
                found.append({
                    "cell": cell.cell.title, "replicate": cell.cell.replicate, "trial": one.searched.number,
                    "metric": name, "chosen": is_chosen,
                    "whole": one.whole and one.current, "n": fresh.n, "searched": promised,
                    **_ends("validation", fresh),
                    "optimism": confirm.optimism(goal, promised, fresh.mean),
                    **_tested(ledger, cell.study, one, on_test(name)),
                })  # fmt: skip
    columns = [
        "cell", "replicate", "trial", "metric", "chosen", "whole", "n", "searched", "validation", "validation_low",
        "validation_high", "optimism", "test", "test_low", "test_high", "test_tasks_low", "test_tasks_high",
    ]  # fmt: skip
    return pd.DataFrame(found, columns=columns)


def runs(cells: Sequence[Standing]) -> pd.DataFrame:
    """A row a run of confirmation.

    `cell`, `replicate`, `trial`, `fresh` (which of the seeds), `seed`, `state`, `reason`, each objective, and each test
    metric, or `test.NAME` where another column has that name.
    """
    found, objective = [], list(cells[0].study.objective)
    for cell in cells:
        for one in cell.candidates:
            for run in one.runs:
                values = run.trial.values or (math.nan,) * len(objective)
                found.append({
                    "cell": cell.cell.title, "replicate": cell.cell.replicate, "trial": one.searched.number,
                    "fresh": run.trial.cell.fresh,
                    "seed": run.trial.seed, "state": run.trial.state, "reason": run.trial.reason or run.untested,
                    **dict(zip(objective, values, strict=True)), **beside(run.test, {*RUN, *objective}, "test"),
                })  # fmt: skip
    return pd.DataFrame(found, columns=_columns(found, [*RUN, *objective]))


def starts(ledger: Ledger, study: Study, cells: Sequence[Cell]) -> pd.DataFrame:
    """A row a start of a trial or of a run of confirmation: on what it ran.

    `cell`, `replicate`, `trial`, `fresh` (NaN in the search), `code` and `data` (digests), `python`, `device`, `host`,
    `threads`, `resumed_from_step` (NaN where it began), `versions` in words.
    """
    among = {cell.replicate for cell in cells}
    found = [
        {
            "cell": cell.title, "replicate": cell.replicate, "trial": number, "fresh": cell.fresh,
            **{name: on.get(name) for name in STARTED_ON},
            "versions": " ".join(f"{name} {version}" for name, version in on.get("versions", {}).items()),
        }
        for cell in [*cells, *(fresh for fresh in confirm.fresh_cells(study) if fresh.replicate in among)]
        for number, attempts in ledger.attempts_by_trial(study, cell).items()
        for on in attempts
    ]  # fmt: skip
    return pd.DataFrame(found, columns=["cell", "replicate", "trial", "fresh", *STARTED_ON, "versions"])


def best(ledger: Ledger, cells: Replicates) -> Best | None:
    """The choice to use, by the mean validation over the fresh seeds and replicates; else the best of the search."""
    first = cells.use or first_searched(cells.standings)  # between searches, only of those after as many steps
    if first is None or first.best is None:
        return None
    return _best(ledger, first.study, first.best, first.chosen)


def _best(ledger: Ledger, study: Study, trial: Trial, one: Confirmed | None) -> Best:
    fresh = one.values if one else []
    tests = [run.test for run in one.complete if run.test] if one else []
    return Best(
        cell=trial.cell,
        trial=trial.number,
        config={**trial.cell.fixed, **trial.params},
        searched=dict(zip(study.objective, trial.values or (), strict=True)),
        confirmed={
            name: over_seeds([values[index] for values in fresh]) for index, name in enumerate(study.objective) if fresh
        },
        test={name: over_seeds([test[name] for test in tests if name in test]) for name in (tests[0] if tests else ())},
        checkpoint=ledger.checkpoint(study, trial.cell, trial.number),
    )


def _tested(ledger: Ledger, study: Study, one: Confirmed, metric: str) -> dict[str, float]:
    tested = [run for run in one.complete if metric in run.test]
    if not tested:
        return {}
    found = _ends("test", over_seeds([run.test[metric] for run in tested]))
    over_tasks = over_items(
        [ledger.test_items(study, run.trial.cell, run.trial.number).get(metric, []) for run in tested]
    )
    return found | ({"test_tasks_low": over_tasks.low, "test_tasks_high": over_tasks.high} if over_tasks else {})


def _ends(name: str, interval: Interval) -> dict[str, float]:
    low, high = (interval.low, interval.high) if interval.n > 1 else (math.nan, math.nan)
    return {name: interval.mean, f"{name}_low": low, f"{name}_high": high}


def _columns(found: Sequence[Mapping[str, Any]], first: Sequence[str]) -> list[str]:
    """The columns of records: `first`, then the others as they come."""
    return list(dict.fromkeys([*first, *(name for record in found for name in record)]))


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def axes(names: Sequence[str]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """The families of metrics over an axis, `test_accuracy/shots/4`: (metric, axis, place on the axis by name)."""
    families: dict[tuple[str, str], dict[str, float]] = {}
    for name in names:
        metric, *rest = name.split("/")
        if len(rest) == 2:
            try:
                families.setdefault((metric, rest[0]), {})[name] = float(rest[1])
            except ValueError:
                continue
    for (metric, axis), places in families.items():
        if len(places) > 1:
            yield metric, axis, places
