"""Asking as studies of before have it, each cell with draws of its own: they end as they began.

Nothing here changes any more: what such a study asks must stay the same to its end.
"""

import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from cs330ray.ledger.ledger import directions
from cs330ray.service.search.points import at_quantile, distribution, in_order, placed
from cs330ray.service.search.samplers import as_seen_by_sampler, suggested
from cs330ray.spec.study import Cell, Study, hashed


def ask(
    study: Study, cell: Cell, goals: Sequence[str], history: Sequence[FrozenTrial], lost: Collection[int] = ()
) -> FrozenTrial:
    """Draw the next trial of a cell; the trial with `params`, `distributions` and `system_attrs`."""
    number = len(history)
    if study.sampler.kind == "qmc":
        return _sobol_point(study, cell, number)
    sampler = _sampler(study, hashed(study.seed, cell.key, number))
    memory = optuna.create_study(sampler=sampler, directions=directions(goals))
    if study.sampler.kind != "random":
        memory.add_trials(as_seen_by_sampler(history, goals, lost))
    return suggested(memory, cell)


def _sampler(study: Study, seed: int) -> BaseSampler:
    settings = study.sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.kind == "random":
            return RandomSampler(seed=seed)
        if settings.kind == "nsga2":
            return NSGAIISampler(population_size=settings.population, seed=seed)
        assert settings.kind == "tpe"  # there was no other then
        return TPESampler(
            n_startup_trials=settings.startup, multivariate=True, group=True, constant_liar=True, seed=seed
        )


def _sobol_point(study: Study, cell: Cell, number: int) -> FrozenTrial:
    """Point `number` of the cell's own scrambled Sobol sequence."""
    from scipy.stats import qmc

    names = list(in_order(cell.space))
    params: dict[str, Any] = {}
    if names:
        sequence = qmc.Sobol(len(names), scramble=True, rng=np.random.default_rng(hashed(study.seed, cell.key)))
        point = sequence.fast_forward(number).random(1)[0] if number else sequence.random(1)[0]
        params = {name: at_quantile(distribution(cell.space[name]), u) for name, u in zip(names, point, strict=True)}
    return placed(cell, params)
