"""Which sampler is best at few trials: the regret of what a search chooses, on small systems that were measured.

    python benchmarks/samplers.py [--repetitions 50] [--trials 8 16] [--samplers tpe gp] [--processes 1] [--smallest]

Each search asks as the service does, with the defaults of a new study, one trial after another. A trial scores what the
surface of `grids.py` has at its configuration, and the noise of a seed: normal, and the same for all samplers by
repetition and number of the trial. What a search chooses after n trials is the best by these noisy values. Its regret
is what the surface, without noise, has at its best point, less what it has at the choice: by system in units of the
metric, and over the systems together as a share of the way from the worst point of a grid to the best, their mean.
Standard errors are over repetitions. `over_tpe` is the difference of the shares to those of tpe, repetition by
repetition: below 0 where a sampler is better. `ask_ms` is CPU time, the mean over all asks.

`--measure SYSTEM` instead trains a system at every point of its grid, and writes its table.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState, create_trial

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import grids
from benchmarks.grids import Surface
from cs330ray.service.search.ask import ask

KINDS = ("random", "qmc", "tpe", "gp")
SIZES = (8, 16, 32)  # trials
SMALLEST = (5,)  # one more than are drawn before a sampler chooses
Array = np.ndarray[Any, Any]
Regrets = Mapping[str, Array]  # by sampler: (repetitions, sizes)
Found = dict[str, dict[str, float]]  # by sampler and number of trials


@dataclass(frozen=True)
class Searched:
    """What one search came to."""

    regrets: tuple[float, ...]  # after each of the sizes, in units of the metric
    ask_s: float  # CPU time of an ask, the mean


def search(name: str, kind: str, repetition: int, sizes: Sequence[int]) -> Searched:
    """Search a system once with a sampler."""
    surface, study, trials = grids.surface(name), grids.study(name, kind, repetition, max(sizes)), max(sizes)
    (cell,), history, ask_s = study.cells, list[FrozenTrial](), 0.0
    truths, noisy = list[float](), list[float]()
    for number in range(trials):
        began_s = time.process_time()
        trial = ask(study, cell, ["max"], history)
        ask_s += time.process_time() - began_s
        truth, sd = surface.at(trial.params)
        truths.append(truth)
        noisy.append(truth + sd * float(np.random.default_rng([repetition, number]).normal()))
        history.append(complete(trial, noisy[-1]))
    return Searched(tuple(surface.best - value for value in chosen(truths, noisy, sizes)), ask_s / trials)


def complete(trial: FrozenTrial, value: float) -> FrozenTrial:
    """Make the trial that has ended with this value."""
    return create_trial(
        state=TrialState.COMPLETE,
        values=[value],
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


def chosen(truths: Sequence[float], noisy: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Find the truth of the trial that is best by its noisy value, after each number of trials."""
    return [truths[int(np.argmax(noisy[:size]))] for size in sizes]


# Figures ---------------------------------------------------------------------------------------------------------


def means(regrets: Regrets, sizes: Sequence[int]) -> tuple[Found, Found]:
    """The means over repetitions, and their standard errors."""
    mean: Found = {}
    error: Found = {}
    for kind, values in regrets.items():
        errors = values.std(axis=0, ddof=1) / len(values) ** 0.5
        mean[kind], error[kind] = (
            {str(size): round(float(value), 4) for size, value in zip(sizes, row, strict=True)}
            for row in (values.mean(axis=0), errors)
        )
    return mean, error


def shares(by_system: Mapping[str, Regrets], surfaces: Mapping[str, Surface]) -> dict[str, Array]:
    """The regrets as shares of each grid's spread, the mean over the systems."""
    spreads = {name: surface.best - surface.worst for name, surface in surfaces.items()}
    kinds = next(iter(by_system.values()))
    return {kind: np.mean([found[kind] / spreads[name] for name, found in by_system.items()], axis=0) for kind in kinds}


def figures(by_system: Mapping[str, Regrets], surfaces: Mapping[str, Surface], sizes: Sequence[int]) -> dict[str, Any]:
    """The regrets of the systems together, each sampler's difference to tpe, and the systems one by one."""
    together = shares(by_system, surfaces)
    regret, se = means(together, sizes)
    over, over_se = means({kind: found - together["tpe"] for kind, found in together.items() if kind != "tpe"}, sizes)
    systems = {name: dict(zip(("regret", "se"), means(found, sizes), strict=True)) for name, found in by_system.items()}
    return {"regret": regret, "se": se, "over_tpe": over, "over_tpe_se": over_se, "systems": systems}


def print_table(title: str, mean: Found, error: Found) -> None:
    print(title)
    for kind, values in mean.items():
        cells = (f"{size:>3}: {value:8.4f} ({error[kind][size]:.4f})" for size, value in values.items())
        print(f"  {kind:<7}", "   ".join(cells), flush=True)


# The command -----------------------------------------------------------------------------------------------------


def searched(
    kinds: Sequence[str], repetitions: int, sizes: Sequence[int], processes: int
) -> dict[tuple[str, str], list[Searched]]:
    """Search every system with each sampler, again and again; by both."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that begin here: more threads only spin
    runs = list(itertools.product(grids.SYSTEMS, kinds, range(repetitions), [sizes]))
    found: dict[tuple[str, str], list[Searched]] = {}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for (name, kind, *_), one in zip(runs, pool.map(search, *zip(*runs, strict=True)), strict=True):
            found.setdefault((name, kind), []).append(one)
    return found


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--repetitions", type=int, default=50, help="searches of each sampler on each system, from 2 up")
    given.add_argument("--trials", type=int, nargs="+", default=SIZES, help="after so many a search chooses")
    given.add_argument("--samplers", choices=KINDS, nargs="+", default=KINDS, help="those that search, beside tpe")
    given.add_argument("--processes", type=int, default=1, help="of one thread each")
    given.add_argument("--measure", choices=sorted(grids.SYSTEMS), help="train this system and write its table")
    given.add_argument("--smallest", action="store_true", help="5 trials, twice: shows only that it runs")
    arguments = given.parse_args()
    if arguments.measure:
        grids.measure(arguments.measure)
        return
    repetitions, sizes = (2, SMALLEST) if arguments.smallest else (arguments.repetitions, sorted(arguments.trials))
    kinds = [kind for kind in KINDS if kind == "tpe" or kind in arguments.samplers]
    surfaces = {name: grids.surface(name) for name in grids.SYSTEMS}
    found = searched(kinds, repetitions, sizes, arguments.processes)
    by_system = {
        name: {kind: np.array([one.regrets for one in found[name, kind]]) for kind in kinds} for name in surfaces
    }
    told = figures(by_system, surfaces, sizes)
    told["ask_ms"] = {
        kind: round(1000 * statistics.fmean(one.ask_s for name in surfaces for one in found[name, kind]), 1)
        for kind in kinds
    }
    for name, surface in surfaces.items():
        spread = f"best {surface.best:.4f}, worst {surface.worst:.4f}, noise of a seed {surface.noise:.4f}"
        print_table(f"{name}: regret in {grids.SYSTEMS[name].objective} ({spread})", *told["systems"][name].values())
    print_table("together: shares of a grid's spread", told["regret"], told["se"])
    print_table("together: the difference to tpe", told["over_tpe"], told["over_tpe_se"])
    print("CPU time of an ask:", "   ".join(f"{kind} {ms} ms" for kind, ms in told["ask_ms"].items()))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
