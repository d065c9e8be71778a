"""A study to ask, and histories of it, for the tests of samplers."""

import functools
import math
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from cs330ray.service.search.ask import ask
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study

SPACE: dict[str, Any] = {
    "inner_lr": {"low": 1e-3, "high": 1.0, "log": True},
    "momentum": {"low": -1.0, "high": 1.0},
    "dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
    "ways": {"low": 2, "high": 7},
    "hidden": {"low": 1, "high": 100, "log": True},
    "body": ["course", "pooled"],
    "first_order": [True, False],
    "filters": {"low": 16, "high": 64, "step": 16, "when": {"body": "pooled"}},
}
UNCONDITIONAL = {name: domain for name, domain in SPACE.items() if name != "filters"}
KINDS = ["random", "tpe", "gp", "qmc", "nsga2"]
LEARNING = ["tpe", "gp", "nsga2"]
STARTUP = 4
TRIALS = 10  # with four of them at the start, six are chosen by the model


def study(kind: str = "tpe", space: dict[str, Any] | None = None, **changes: Any) -> Study:
    raw = {
        "name": "asked",
        "trainable": "toy",
        "objective": ["val_loss", "val_speed"] if kind == "nsga2" else ["val_loss"],
        "search": (UNCONDITIONAL if kind == "qmc" else SPACE) if space is None else space,
        "sampler": {"kind": kind, "startup": STARTUP, "population": STARTUP},
        "budget": {"trials": 16, "steps": 10},
    }
    return parse(raw | changes, "here")


def goals(asked: Study) -> list[str]:
    return ["min", "max"][: len(asked.objective)]


def ended(
    trial: FrozenTrial, values: Sequence[float] | None = None, state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    return create_trial(
        state=state,
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
        user_attrs=trial.user_attrs,
    )


def worth(trial: FrozenTrial, objectives: int) -> list[float]:
    """Small steps are good, and many classes are fast: a truth for the samplers to find."""
    return [abs(math.log10(trial.params["inner_lr"]) + 2), float(trial.params["ways"])][:objectives]


def next_of(asked: Study, history: Sequence[FrozenTrial], cell: Cell | None = None, **more: Any) -> FrozenTrial:
    return ask(asked, cell or asked.cells[0], goals(asked), history, **more)


def asked_in_turn(asked: Study, trials: int, cell: Cell | None = None, **more: Any) -> list[FrozenTrial]:
    """The history of a cell whose trials all complete, one after another."""
    history: list[FrozenTrial] = []
    for _ in range(trials):
        trial = next_of(asked, history, cell, **more)
        history.append(ended(trial, worth(trial, len(asked.objective))))
    return history


@functools.cache
def history_of(kind: str) -> tuple[FrozenTrial, ...]:
    """The first trials of the study, asked once for all tests: gp takes its time."""
    return tuple(asked_in_turn(study(kind), TRIALS))


def params(history: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in history]
