"""What a study would do and cost, without starting it."""

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Iterator

from cs330ray.service.search import samplers
from cs330ray.spec.study import Cell, Study, first_values
from cs330ray.trial import named
from cs330ray.trial.contract import Trainable
from cs330ray.trial.environment import settle
from cs330ray.words import duration, plural

EVERY = 4


def plan(study: Study, slots: int, gpus: float) -> Iterator[str]:
    """What would run, line by line, and what it may cost, from a dozen steps timed in this process."""
    budget, per_trial = study.budget, f"{study.resources.cpus:g} CPU and {gpus:g} GPU"
    cells, trials = plural(len(study.compared), "cell"), plural(budget.trials, "trial")
    searches = study.repeat.searches
    again = f"{searches} replicates of " if searches > 1 else ""
    yield f"{study.name}: {cells} of {again}{trials}, {plural(budget.steps, 'step')} each"
    yield f"  {study.sampler.kind} asks, {study.prune.kind} prunes; {slots} at once on {per_trial} each"
    yield from (f"  {line}" for line in samplers.said(study))
    total_s = 0.0
    for cell in study.compared:
        trainable, searched = named.of(cell), ", ".join(cell.space) or "nothing"
        if cell.command is not None:
            named.prepared(trainable, cell.trainable, named.configuration(trainable, cell, first_values(cell)))
            yield f"  {cell.title}: {cell.trainable}, searches {searched}; a process of its own, which is not timed"
            continue
        named.configuration(trainable, cell, first_values(cell))
        step_s, eval_s = _timed(trainable, cell, study.resources.cpus)
        every = getattr(named.configuration(trainable, cell, first_values(cell)), "eval_every_steps", 1)
        trial_s = study.budget.steps * step_s + study.budget.steps / every * eval_s
        total_s += searches * trial_s * (study.budget.trials + _confirmations(study))
        yield (
            f"  {cell.title}: {cell.trainable}, searches {searched}; {_said(step_s)} a step and "
            f"{_said(eval_s)} an evaluation, {_said(trial_s)} a trial"
        )
    if study.confirm is not None:
        front = " (or more: the front)" if study.confirm.most(len(study.objective)) is None else ""
        runs = plural(_confirmations(study), "run")
        search = "cell and replicate" if searches > 1 else "cell"
        yield f"  then {runs} of confirmation a {search}{front}, whose tests are not in the estimate"
    most = f"at most {_said(total_s / slots)} in all, if nothing is pruned; " if total_s else ""
    yield f"{most}nothing was started"


def _said(seconds: float) -> str:
    """Say a time that was estimated: under 1ms, about 23ms, about 1.5s, about 4m 10s."""
    if seconds < 0.001:
        return "under 1ms"
    if seconds < 1:
        return f"about {seconds * 1000:.0f}ms"
    return f"about {f'{seconds:.2g}s' if seconds < 10 else duration(seconds)}"


def _confirmations(study: Study) -> int:
    """How many runs confirm a cell at most; of a front of unknown size, as if it were three."""
    if study.confirm is None:
        return 0
    candidates = (study.confirm.most(len(study.objective)) or 3) + len(study.start)
    return min(candidates, study.budget.trials) * study.confirm.seeds


def _timed(trainable: Trainable, cell: Cell, cpus: float) -> tuple[float, float]:
    """Seconds of one step and of one evaluation, told apart by two spacings of rows."""
    named.prepared(trainable, cell.trainable, named.configuration(trainable, cell, first_values(cell)))
    settle(seed=0, cpus=cpus)
    if "eval_every_steps" not in trainable.Config.model_fields:
        return _row_s(trainable, cell, steps=3), 0.0
    spacing_one = _row_s(trainable, cell, steps=3, eval_every_steps=1)
    spacing_many = _row_s(trainable, cell, steps=2 * EVERY, eval_every_steps=EVERY)
    step_s = max((spacing_many - spacing_one) / (EVERY - 1), 0.0)
    return step_s, max(spacing_one - step_s, 0.0)


def _row_s(trainable: Trainable, cell: Cell, steps: int, **spacing: int) -> float:
    config = named.configuration(trainable, cell, {**first_values(cell), **spacing})
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        times = [time.perf_counter() for _ in trainable.train(config, 0, steps, None)]
    if len(times) == 1:  # it ended at its first row by a rule of its own
        return times[0] - began
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))
