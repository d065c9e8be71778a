"""Small systems measured at every point of a grid: what `samplers.py` searches, and how it is measured.

A table in `measured/` holds what a system reached on validation at the end of a short training, by point and by seed.
Between points the surface is multilinear in the sampler's scale, the logarithm where the range is a log one; a choice
is exact. Its mean is that of the seeds, and its noise has their variance, interpolated in the same way. So the
best of the surface is the best of the grid.
"""

import csv
import datetime
import itertools
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study
from cs330ray.spec.tables import Choice, Domain

MEASURED = Path(__file__).parent / "measured"
SEEDS = 2
DIGITS = 4  # of what is written


@dataclass(frozen=True)
class System:
    """A system with a space of hyperparameters, and the grid over it; all its objectives are maximised."""

    objective: str
    steps: int
    fixed: Mapping[str, Any]
    search: Mapping[str, Any]  # as a study file has it
    points: Mapping[str, int]  # of each range: how many, evenly spread in the sampler's scale, both ends included


SYSTEMS = {
    "maml": System(
        objective="val_accuracy",
        steps=60,
        fixed={
            "dataset": "glyphs", "body": "pooled", "filters": 8, "ways": 5, "shots": 1, "queries": 5, "tasks": 2,
            "val_tasks": 60,
        },
        search={
            "inner_lr": {"low": 0.01, "high": 1.0, "log": True},
            "outer_lr": {"low": 1e-3, "high": 0.1, "log": True},
            "inner_steps": [1, 2],
        },
        points={"inner_lr": 4, "outer_lr": 5},
    ),
    "multitask": System(
        objective="val_mrr",
        steps=8,
        fixed={
            "dataset": "planted", "regression_bias": True, "factorization_weight": 1.0, "batch": 1024,
            "eval_every_steps": 4, "keep_best_by": "val_mrr",
        },
        search={
            "lr": {"low": 1e-3, "high": 0.1, "log": True},
            "regression_weight": {"low": 1e-3, "high": 1.0, "log": True},
            "candidates": [1, 4],
            "sharing": ["shared", "separate"],
        },
        points={"lr": 4, "regression_weight": 3},
    ),
    "protonet": System(
        objective="val_accuracy",
        steps=50,
        fixed={"dataset": "glyphs", "filters": 8, "queries": 5, "tasks": 1, "val_tasks": 60, "eval_queries": 5},
        search={
            "lr": {"low": 3e-4, "high": 0.1, "log": True},
            "ways": [5, 10, 20],
            "shots": [1, 2, 5],
        },
        points={"lr": 5},
    ),
}  # fmt: skip


def study(name: str, kind: str = "random", seed: int = 0, trials: int = 1) -> Study:
    """Make the study that searches a system's space with a sampler of this kind."""
    system = SYSTEMS[name]
    raw: dict[str, Any] = {
        "name": name, "trainable": name, "objective": system.objective, "seed": seed, "fixed": system.fixed,
        "search": system.search, "sampler": {"kind": kind}, "budget": {"trials": trials, "steps": system.steps},
    }  # fmt: skip
    return parse(raw, "benchmarks/grids.py")


def axes(name: str) -> dict[str, list[Any]]:
    """The values of each parameter that the grid of a system has, in the order of its space."""
    (cell,) = study(name).cells
    return {
        parameter: list(domain.choices)
        if isinstance(domain, Choice)
        else _spread(domain, SYSTEMS[name].points[parameter])
        for parameter, domain in cell.space.items()
    }


def _spread(domain: Domain, points: int) -> list[float]:
    assert not isinstance(domain, Choice)
    low, high = float(domain.low), float(domain.high)
    inner = (np.geomspace if domain.log else np.linspace)(low, high, points)[1:-1]
    return [low, *(float(f"{value:.{DIGITS}g}") for value in inner), high]


def _position(domain: Domain, value: Any) -> float:
    """Where a value lies on its axis, in the sampler's scale; a choice at its index."""
    if isinstance(domain, Choice):
        return float(domain.choices.index(value))
    return math.log(value) if domain.log else float(value)


class Surface:
    """What a system reaches anywhere in its space, without noise, and how far a seed scatters there."""

    def __init__(self, cell: Cell, values: Mapping[str, Sequence[Any]], reached: "np.ndarray[Any, Any]") -> None:
        """Span the surface over `reached`, whose last axis is the seeds and the others those of `values`."""
        self.space = dict(cell.space)
        positions = [[_position(self.space[name], value) for value in axis] for name, axis in values.items()]
        means, variances = reached.mean(axis=-1), reached.var(axis=-1, ddof=1)
        self._interpolated = RegularGridInterpolator(positions, np.stack([means, variances], axis=-1))
        self.best, self.worst = float(means.max()), float(means.min())
        self.noise = float(np.sqrt(variances.mean()))  # of one seed, over the grid

    def at(self, params: Mapping[str, Any]) -> tuple[float, float]:
        """The mean at a configuration, and the standard deviation of a seed."""
        position = [_position(domain, params[name]) for name, domain in self.space.items()]
        mean, variance = self._interpolated(position)[0]
        return float(mean), math.sqrt(variance)


def surface(name: str) -> Surface:
    """Read the table of a system. Raises SystemExit where it is not that of the grid as it stands here."""
    (cell,), values = study(name).cells, axes(name)
    with (MEASURED / f"{name}.csv").open() as file:
        header, *rows = csv.reader(line for line in file if not line.startswith("#"))
    expected = [[str(value) for value in point] for point in itertools.product(*values.values())]
    if header != _header(values) or [row[: len(values)] for row in rows] != expected:
        raise SystemExit(
            f"benchmarks/measured/{name}.csv: expected the grid of SYSTEMS, got another; write it again with "
            f"`python benchmarks/samplers.py --measure {name}`"
        )
    reached = np.array([[float(value) for value in row[len(values) :]] for row in rows])
    return Surface(cell, values, reached.reshape(*map(len, values.values()), SEEDS))


def _header(values: Mapping[str, Sequence[Any]]) -> list[str]:
    return [*values, *(f"seed {seed}" for seed in range(SEEDS))]


def measure(name: str) -> None:
    """Train a system at every point of its grid with every seed, on one thread, and write its table."""
    began_s, values = time.process_time(), axes(name)
    rows = list(_trained(name, values))
    cost_s, system = time.process_time() - began_s, SYSTEMS[name]
    head = [
        f"{system.objective} of {name} after {system.steps} outer steps, by point and by seed of the training",
        f"fixed: {' '.join(f'{key}={value}' for key, value in system.fixed.items())}",
        f"python benchmarks/samplers.py --measure {name}",
        f"{datetime.datetime.now(datetime.UTC):%d %B %Y}, {cost_s:.0f} s of one core, {platform.machine()} with "
        f"{os.cpu_count()} cores, no GPU",
    ]
    MEASURED.mkdir(exist_ok=True)
    with (MEASURED / f"{name}.csv").open("w", newline="") as file:
        file.writelines(f"# {line}\n" for line in head)
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_header(values))
        table.writerows(rows)


def _trained(name: str, values: Mapping[str, Sequence[Any]]) -> Iterator[list[Any]]:
    """Yield a row of the table for each point, said as it is measured."""
    import torch

    from cs330ray.trial import named

    torch.set_num_threads(1)
    (cell,), system, trainable = study(name).cells, SYSTEMS[name], named.load(name)
    for point in itertools.product(*values.values()):
        config = named.configuration(trainable, cell, dict(zip(values, point, strict=True)))
        named.prepared(trainable, name, config)
        reached = []
        for seed in range(SEEDS):
            *_, last = trainable.train(config, seed, system.steps)
            reached.append(round(last.metrics[system.objective], DIGITS))
        print(*point, *reached, flush=True)
        yield [*point, *reached]
