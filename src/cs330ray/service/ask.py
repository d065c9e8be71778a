"""Asking: the configuration of a cell's next trial, a pure function of study, cell and history.

A trial is asked in memory and then entered into the ledger whole. Samplers are made anew for every ask, seeded by
(study seed, cell, number), so that a study asks the same after a crash as without one.
"""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from cs330ray.ledger.ledger import directions
from cs330ray.spec.study import Cell, Study, hashed
from cs330ray.spec.tables import Choice, Domain, applies


def distribution(domain: Domain) -> BaseDistribution:
    """A domain of the study file as Optuna's distribution."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(tuple(domain.choices))
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    step = None if domain.step is None else float(domain.step)
    return FloatDistribution(float(domain.low), float(domain.high), log=domain.log, step=step)


def ask(
    study: Study, cell: Cell, goals: Sequence[str], history: Sequence[FrozenTrial], lost: Collection[int] = ()
) -> FrozenTrial:
    """Draw the next trial of a cell; the trial with `params`, `distributions` and `system_attrs`.

    `history` holds the trials so far that none continues, see `standing`; `lost` the numbers of those that ended since
    their workers were lost.
    """
    number = len(history)
    if study.sampler.kind == "qmc":
        return _sobol_point(study, cell, number)
    sampler = _sampler(study, hashed(study.seed, cell.key, number))
    memory = optuna.create_study(sampler=sampler, directions=directions(goals))
    if study.sampler.kind != "random":
        memory.add_trials(as_seen_by_sampler(history, goals, lost))
    trial = memory.ask()
    for name, domain in _in_order(cell.space).items():
        if applies(domain, {**cell.fixed, **trial.params}):
            _suggest(trial, name, distribution(domain))
    return memory.get_trials(deepcopy=False)[-1]


def _in_order(space: Mapping[str, Domain]) -> dict[str, Domain]:
    """A space by name, each parameter after those of its condition: the order of a file changes no ask."""
    order: dict[str, Domain] = {}
    while rest := [name for name in space if name not in order]:
        waits = {name: [key for key in space[name].when or {} if key in rest] for name in rest}
        first = min(name for name in rest if not waits[name])  # there is one: the spec wants conditions stated before
        order[first] = space[first]
    return order


def as_seen_by_sampler(
    history: Sequence[FrozenTrial], goals: Sequence[str], lost: Collection[int]
) -> list[FrozenTrial]:
    """The history with each failed trial at the cell's worst value; one that was lost says nothing and stays FAIL."""
    complete = [trial.values for trial in history if trial.state == TrialState.COMPLETE]
    if not complete:
        return list(history)
    worst = [(min if goal == "max" else max)(values[index] for values in complete) for index, goal in enumerate(goals)]
    return [
        _at(trial, worst) if trial.state == TrialState.FAIL and trial.number not in lost else trial for trial in history
    ]


def _at(trial: FrozenTrial, values: list[float]) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


def _sampler(study: Study, seed: int) -> BaseSampler:
    settings = study.sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.kind == "random":
            return RandomSampler(seed=seed)
        if settings.kind == "nsga2":
            return NSGAIISampler(population_size=settings.population, seed=seed)
        return TPESampler(
            n_startup_trials=settings.startup, multivariate=True, group=True, constant_liar=True, seed=seed
        )


def _suggest(trial: optuna.Trial, name: str, wanted: BaseDistribution) -> None:
    if isinstance(wanted, CategoricalDistribution):
        trial.suggest_categorical(name, wanted.choices)
    elif isinstance(wanted, IntDistribution):
        trial.suggest_int(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step)
    elif isinstance(wanted, FloatDistribution):
        trial.suggest_float(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step)


def _sobol_point(study: Study, cell: Cell, number: int) -> FrozenTrial:
    """Point `number` of the cell's one scrambled Sobol sequence."""
    space = {name: distribution(domain) for name, domain in _in_order(cell.space).items()}
    params: dict[str, Any] = {}
    if space:
        sequence = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng(hashed(study.seed, cell.key)))
        point = sequence.fast_forward(number).random(1)[0] if number else sequence.random(1)[0]
        params = {name: _at_quantile(wanted, u) for (name, wanted), u in zip(space.items(), point, strict=True)}
    return optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=space)


def _at_quantile(wanted: BaseDistribution, u: float) -> Any:
    """The value below which a share `u` of the distribution lies."""
    if isinstance(wanted, CategoricalDistribution):
        return wanted.choices[min(int(u * len(wanted.choices)), len(wanted.choices) - 1)]
    assert isinstance(wanted, IntDistribution | FloatDistribution)
    half = 0.5 if isinstance(wanted, IntDistribution) and wanted.log else 0.0
    low, high = wanted.low - half, wanted.high + half
    if wanted.log:
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    elif wanted.step is not None:
        count = int((wanted.high - wanted.low) / wanted.step + 1e-9) + 1
        value = wanted.low + min(int(u * count), count - 1) * wanted.step
    else:
        value = low + u * (high - low)
    value = min(max(value, wanted.low), wanted.high)
    return round(value) if isinstance(wanted, IntDistribution) else value
