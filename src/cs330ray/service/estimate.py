"""What a study would do and cost, without starting it."""

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cs330ray.analysis.cost import forecast as foreseen
from cs330ray.errors import SpecError
from cs330ray.ledger.ledger import Ledger
from cs330ray.service.search import samplers
from cs330ray.spec.study import Cell, Study, first_values
from cs330ray.spec.tables import Choice
from cs330ray.trial import named
from cs330ray.trial.contract import Trainable
from cs330ray.trial.environment import settle
from cs330ray.words import duration, plural

ROWS = 3  # of each training that is timed
WIDER = 4  # times as far apart are the rows of the next one
LONG_S = 5.0  # beyond which they are no further apart
NEAR = 1.3  # times as long: trials that take no longer are said to take the same


def plan(study: Study, slots: int, gpus: float, ledger: Ledger | None = None) -> Iterator[str]:
    """What would run, line by line, and what it may cost.

    That goes by the record where `ledger` has one, else by a short training, timed in this process.
    """
    budget, per_trial = study.budget, f"{study.resources.cpus:g} CPU and {gpus:g} GPU"
    cells, trials = plural(len(study.compared), "cell"), plural(budget.trials, "trial")
    searches = study.repeat.searches
    again = f"{searches} replicates of " if searches > 1 else ""
    yield f"{study.name}: {cells} of {again}{trials}, {plural(budget.steps, 'step')} each"
    yield f"  {study.sampler.kind} asks, {study.prune.kind} prunes; {slots} at once on {per_trial} each"
    yield from (f"  {line}" for line in samplers.said(study))
    known, timed = foreseen.forecast(ledger, study).step_s, dict[str, float]()
    for cell in study.compared:
        said = f"  {cell.title}: {cell.trainable}, searches {', '.join(cell.space) or 'nothing'}; "
        trainable = named.of(cell)
        config = named.configuration(trainable, cell, first_values(cell))
        if cell.title in known:
            step_s = known[cell.title]
            yield f"{said}{_said(step_s)} a step by its trials so far, {_said(step_s * budget.steps)} a whole one"
        elif cell.command is not None:
            named.prepared(trainable, cell.trainable, config)
            yield f"{said}a process of its own, which is not timed"
        else:
            named.prepared(trainable, cell.trainable, config)
            settle(seed=0, cpus=study.resources.cpus)
            trials_s = [_timed(trainable, cell, values, budget.steps) for values in _ends(trainable, cell)]
            timed[cell.title] = statistics.fmean(trials_s) / budget.steps
            yield said + _range(trials_s, budget.steps)
    if study.confirm is not None:
        front = " (or more: the front)" if study.confirm.most(len(study.objective)) is None else ""
        runs = plural(foreseen.most_confirmed(study), "run")
        search = "cell and replicate" if searches > 1 else "cell"
        yield f"  then {runs} of confirmation a {search}{front}, whose tests are not in the estimate"
    yield from _in_all(foreseen.forecast(ledger, study, timed), slots)


def _in_all(forecast: foreseen.Forecast, slots: int) -> Iterator[str]:
    """Say what is to come, in cost and in time."""
    if forecast.total_s is None:
        yield "nothing was started"
        return
    yield f"  {forecast.said}"
    left = _said(forecast.left_s / slots)
    if not forecast.step_s:
        yield f"at most {left} in all, if nothing is pruned; nothing was started"
    else:
        yield f"{left} more, by its trials so far; nothing was started" if forecast.left_s else "nothing is left to do"


def _said(seconds: float) -> str:
    """Say a time that was estimated: under 1ms, about 23ms, about 1.5s, about 4m 10s."""
    return f"about {_time(seconds)}" if seconds >= 0.001 else "under 1ms"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{max(seconds * 1000, 1):.0f}ms"
    return f"{seconds:.2g}s" if seconds < 10 else duration(seconds)


def _range(trials_s: Sequence[float], steps: int) -> str:
    """Say what a step and a trial take, from one end of the space to the other."""
    least, most = min(trials_s), max(trials_s)
    line = f"{_said(least / steps)} a step, evaluations included, {_said(least)} a trial"
    return line if most < NEAR * least else f"{line}, up to {_time(most)} elsewhere in its space"


def _ends(trainable: Trainable, cell: Cell) -> Iterator[Mapping[str, object]]:
    """Yield the first point of a cell's space and, where it is another that Config takes, the last."""
    first = first_values(cell)
    last = {
        name: domain.choices[-1] if isinstance(domain, Choice) else domain.high
        for name, domain in cell.space.items()
        if not domain.when
    }
    yield first
    if last != first:
        with contextlib.suppress(SpecError):
            named.configuration(trainable, cell, last)
            yield last


def _timed(trainable: Trainable, cell: Cell, values: Mapping[str, object], steps: int) -> float:
    """Time trainings at a point, with rows ever further apart; seconds of a trial of so many steps.

    Where rows as far apart as in a trial take too long, a step and an evaluation are told apart by two spacings.
    """
    config = named.configuration(trainable, cell, values)
    if "eval_every_steps" not in trainable.Config.model_fields:
        start_s, step_s = _rows_s(trainable, config, 1)
        return start_s + steps * step_s

    def spaced(every: int) -> tuple[float, float]:
        return _rows_s(trainable, named.configuration(trainable, cell, {**values, "eval_every_steps": every}), every)

    every, wanted = 1, min(int(config.eval_every_steps), steps)
    start_s, one_s = start_s, row_s = spaced(every)
    while every < wanted:
        wider = min(WIDER * every, wanted)
        if every > 1 and row_s * wider / every > LONG_S:
            break
        every, (start_s, row_s) = wider, spaced(wider)
    if every == wanted:
        return start_s + steps / wanted * row_s
    step_s = min((row_s - one_s) / (every - 1), one_s) if row_s > one_s else row_s / every
    return start_s + steps * step_s + steps / wanted * (one_s - step_s)


def _rows_s(trainable: Trainable, config: Any, every: int) -> tuple[float, float]:
    """Seconds by which the first row of a training is later than others, and the usual seconds from row to row."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        times = [began, *(time.perf_counter() for _ in trainable.train(config, 0, ROWS * every, None))]
    first, *others = (later - earlier for earlier, later in itertools.pairwise(times))
    if not others:  # it ended at its first row by a rule of its own
        return 0.0, first
    usual = statistics.median(others)
    return max(first - usual, 0.0), usual
