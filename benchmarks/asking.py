"""What an ask costs: the next trial of a cell, by sampler and by the number of trials that it has had.

    python benchmarks/asking.py [--smallest]

The history is made: four parameters at points of the samplers' own, half of the trials COMPLETE by some truth, a
quarter failed and a quarter pruned. The last trial runs on, as on two slots: gp then has a harder problem to solve.
Times are medians of CPU time, so that other work on the machine does not count; the first ask of each is left out,
since it imports what the sampler needs.
"""

import argparse
import json
import math
import statistics
import time
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from cs330ray.service.search import points
from cs330ray.service.search.ask import ask
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study

SIZES = {"random": (50, 250), "qmc": (50, 250), "tpe": (50, 250, 2000), "nsga2": (50, 250), "gp": (50, 250)}
ASKS = 5
STATES = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SPACE: dict[str, Any] = {
    "inner_lr": {"low": 1e-3, "high": 1.0, "log": True},
    "outer_lr": {"low": 1e-5, "high": 1e-1, "log": True},
    "inner_steps": {"low": 1, "high": 8},
    "body": ["course", "pooled"],
}


def study(kind: str) -> Study:
    objectives = ["val_loss", "val_speed"] if kind == "nsga2" else ["val_loss"]
    raw = {"name": "asked", "trainable": "toy", "objective": objectives, "search": SPACE, "sampler": {"kind": kind}}
    return parse(raw | {"budget": {"trials": 2 if kind == "gp" else 10_000, "steps": 1}}, "here")


def history(asked: Study, trials: int) -> list[FrozenTrial]:
    """Trials that have ended, but for the last."""
    (cell,), made = asked.cells, list[FrozenTrial]()
    for number in range(trials):
        point = points.common(asked, cell, number)
        worth = abs(math.log10(point["inner_lr"]) + 2) + abs(math.log10(point["outer_lr"]) + 3)
        state = STATES[number % 4] if number < trials - 1 else TrialState.RUNNING
        if len(asked.objective) > 1 and state == TrialState.PRUNED:  # of several objectives none is pruned
            state = TrialState.COMPLETE
        marks = {"NSGAIISampler:generation": number // asked.sampler.population}
        trial = points.placed(cell, point, marks if asked.sampler.kind == "nsga2" else None)
        trial = create_trial(
            state=state,
            values=[worth, float(point["inner_steps"])][: len(asked.objective)]
            if state == TrialState.COMPLETE
            else None,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs=trial.system_attrs,
            intermediate_values={1: worth} if state == TrialState.PRUNED else {},
        )
        trial.number = number
        made.append(trial)
    return made


def ask_ms(kind: str, trials: int) -> float:
    """The median CPU time of an ask after so many trials, in milliseconds."""
    asked = study(kind)
    (cell,), goals, made, times_s = asked.cells, ["min", "max"][: len(asked.objective)], history(asked, trials), []
    for _ in range(ASKS + 1):
        began = time.process_time()
        ask(asked, cell, goals, made)
        times_s.append(time.process_time() - began)
    return round(1000 * statistics.median(times_s[1:]), 1)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--smallest", action="store_true", help="eight trials: shows only that it runs")
    smallest = given.parse_args().smallest
    figures: dict[str, dict[str, float]] = {}
    for kind, sizes in SIZES.items():
        figures[kind] = {str(trials): ask_ms(kind, trials) for trials in ((8,) if smallest else sizes)}
        print(f"{kind:<8}", "   ".join(f"after {trials:>4}: {ms:>8} ms" for trials, ms in figures[kind].items()))
    print(json.dumps({"ask_ms": figures}))


if __name__ == "__main__":
    main()
