"""What a study would do and cost, without starting it."""

import itertools
import statistics
import time
from collections.abc import Iterator

from cs330ray.spec.study import Cell, Study, first_values
from cs330ray.trial import named
from cs330ray.trial.contract import Trainable
from cs330ray.trial.environment import settle

EVERY = 4


def plan(study: Study, slots: int, gpus: float) -> Iterator[str]:
    """What would run, line by line, and what it may cost, from a dozen steps timed in this process."""
    budget, per_trial = study.budget, f"{study.resources.cpus:g} CPU and {gpus:g} GPU"
    yield f"{study.name}: {len(study.cells)} cells x {budget.trials} trials of {budget.steps} steps"
    yield f"  {study.sampler.kind} asks, {study.prune.kind} prunes; {slots} at once on {per_trial} each"
    total_s = 0.0
    for cell in study.cells:
        trainable = named.load(cell.trainable)
        named.configuration(trainable, cell, first_values(cell))
        step_s, eval_s = _timed(trainable, cell, study.resources.cpus)
        every = getattr(named.configuration(trainable, cell, first_values(cell)), "eval_every_steps", 1)
        trial_s = study.budget.steps * step_s + study.budget.steps / every * eval_s
        total_s += trial_s * (study.budget.trials + _confirmations(study))
        searched = ", ".join(cell.space) or "nothing"
        yield (
            f"  {cell.title}: {cell.trainable}, searches {searched}; about {step_s:.3g}s a step and "
            f"{eval_s:.3g}s an evaluation, {trial_s:.0f}s a trial"
        )
    if study.confirm is not None:
        front = " (or more: the front)" if study.confirm.most(len(study.objective)) is None else ""
        yield f"  then {_confirmations(study)} runs of confirmation a cell{front}, whose tests are not in the estimate"
    yield f"at most about {total_s / slots / 60:.1f} minutes in all, if nothing is pruned; nothing was started"


def _confirmations(study: Study) -> int:
    """How many runs confirm a cell; of a front of unknown size, as if it were three."""
    if study.confirm is None:
        return 0
    return min(study.confirm.most(len(study.objective)) or 3, study.budget.trials) * study.confirm.seeds


def _timed(trainable: Trainable, cell: Cell, cpus: float) -> tuple[float, float]:
    """Seconds of one step and of one evaluation, told apart by two spacings of rows."""
    trainable.prepare(named.configuration(trainable, cell, first_values(cell)))
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
    times = [time.perf_counter() for _ in trainable.train(config, 0, steps)]
    if len(times) == 1:  # it ended at its first row by a rule of its own
        return times[0] - began
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))
