"""Points of a search that no model chooses: their quantiles, which all cells share, and the values at those.

A point is a pure function of the study's seed, the replicate, the trial's number and the names of the parameters. So
two cells that search the same parameters draw the same values, whatever has finished meanwhile: they differ by what is
compared, and not by the luck of the draw.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from cs330ray.spec.study import SEED_BITS, Cell, Study, hashed
from cs330ray.spec.tables import Choice, Domain, applies


def common(study: Study, cell: Cell, number: int, starts: int = 0) -> dict[str, Any]:
    """Draw the point of trial `number`, the same in all cells of a replicate as far as their domains are the same.

    `starts` trials of the cell came before its first point. A parameter that does not apply is not drawn, and the
    others do not shift.
    """
    if not cell.space:
        return {}
    share = _sobol(study, cell.replicate, number - starts) if _is_sobol(study) else _independent(study, cell, number)
    params: dict[str, Any] = {}
    for name, domain in in_order(cell.space).items():
        if applies(domain, {**cell.fixed, **params}):
            params[name] = at_quantile(distribution(domain), share[name])
    return params


def prepare(study: Study) -> None:
    """Import what the first point of a study will need, at a moment when there is time."""
    if _is_sobol(study):
        import scipy.stats  # noqa: F401


def _is_sobol(study: Study) -> bool:
    """Whether points are those of a Sobol sequence: it needs one space, which conditions would cut up."""
    if study.sampler.kind not in ("qmc", "tpe", "gp"):
        return False
    return not any(domain.when for cell in study.compared for domain in cell.space.values())


def _sobol(study: Study, replicate: int, index: int) -> dict[str, float]:
    """Find point `index` of a replicate's one scrambled Sobol sequence; a quantile by name, for every cell.

    Two sequences, one a cell, would each be balanced, but not a cell's parameters beside those of another.
    """
    from scipy.stats import qmc  # here: it takes two seconds, and most searches draw no such point

    seed = hashed("points", study.seed, "replicate", replicate)
    sequence = qmc.Sobol(len(study.searched), scramble=True, rng=np.random.default_rng(seed))
    point = sequence.fast_forward(index).random(1)[0] if index else sequence.random(1)[0]
    return dict(zip(study.searched, point.tolist(), strict=True))


def _independent(study: Study, cell: Cell, number: int) -> dict[str, float]:
    """Draw the quantiles of a trial, each uniform in [0, 1) and by its parameter's name alone."""
    drawn = ("points", study.seed, "replicate", cell.replicate, number)
    return {name: hashed(*drawn, name) / 2**SEED_BITS for name in cell.space}


def distribution(domain: Domain) -> BaseDistribution:
    """A domain of the study file as Optuna's distribution."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(tuple(domain.choices))
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    step = None if domain.step is None else float(domain.step)
    return FloatDistribution(float(domain.low), float(domain.high), log=domain.log, step=step)


def in_order(space: Mapping[str, Domain]) -> dict[str, Domain]:
    """A space by name, each parameter after those of its condition: the order of a file changes no ask."""
    order: dict[str, Domain] = {}
    while rest := [name for name in space if name not in order]:
        waits = {name: [key for key in space[name].when or {} if key in rest] for name in rest}
        first = min(name for name in rest if not waits[name])  # there is one: the spec wants conditions stated before
        order[first] = space[first]
    return order


def at_quantile(wanted: BaseDistribution, u: float) -> Any:
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


def placed(cell: Cell, params: Mapping[str, Any], system_attrs: Mapping[str, Any] | None = None) -> FrozenTrial:
    """A trial at a point of a cell's space."""
    return optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=dict(params),
        distributions={name: distribution(cell.space[name]) for name in params},
        system_attrs=dict(system_attrs or {}),
    )
