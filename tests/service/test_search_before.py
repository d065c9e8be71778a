"""A study that began under the asking of before asks to its end what it would have asked then.

`asked_before.json` was written by the version that asked so, of the very histories that are made here.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from cs330ray.service.search.ask import ask
from cs330ray.spec.study import Cell, Study
from tests.asked import SPACE, goals, study, worth

ASKED: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "asked_before.json").read_text())
STATES = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
LOST = {4, 9}


def of_before(kind: str) -> Study:
    space = {name: domain for name, domain in SPACE.items() if kind != "qmc" or name != "filters"}
    sampler = {"kind": kind, "startup": 3, "population": 3}
    return study(kind, space, sampler=sampler, seed=11, compare={"shots": [1, 5]})


def ended(trial: FrozenTrial, number: int, objectives: int) -> FrozenTrial:
    """In turn COMPLETE, pruned, failed and lost; of several objectives none is pruned."""
    state, values = STATES[number % 5], worth(trial, objectives)
    if objectives > 1 and state == TrialState.PRUNED:
        state = TrialState.COMPLETE
    over = create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
        intermediate_values={1: values[0]} if state == TrialState.PRUNED else {},
    )
    over.number = number
    return over


def asked_in_turn(asked: Study, cell: Cell, trials: int) -> list[FrozenTrial]:
    history: list[FrozenTrial] = []
    for number in range(trials):
        trial = ask(asked, cell, goals(asked), history, LOST, asking="own")
        history.append(ended(trial, number, len(asked.objective)))
    return history


@pytest.mark.parametrize("kind", ["random", "tpe", "qmc", "nsga2"])
def test_each_cell_is_asked_what_the_version_of_before_asked(kind: str) -> None:
    asked = of_before(kind)
    for cell in asked.cells:
        recorded = ASKED[f"{kind} {cell.key}"]
        found = [trial.params for trial in asked_in_turn(asked, cell, len(recorded))]
        assert [point.keys() for point in found] == [point.keys() for point in recorded]
        for now, then in zip(found, recorded, strict=True):
            assert now == {name: _close(value) for name, value in then.items()}


def _close(value: Any) -> Any:
    """As it was recorded, but for the last digits, in which processors differ."""
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
