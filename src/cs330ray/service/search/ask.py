"""Asking: the configuration of a cell's next trial, a pure function of study, cell and history.

First come the configurations that the study file gives, then points that all cells share, then what the sampler
chooses. A trial is asked in memory and then entered into the ledger whole, so that a study asks the same after a crash
as without one.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from cs330ray.ledger.records import Asking
from cs330ray.service.search import before, points, samplers
from cs330ray.spec.study import Cell, Study


def ask(
    study: Study,
    cell: Cell,
    goals: Sequence[str],
    history: Sequence[FrozenTrial],
    lost: Collection[int] = (),
    *,
    starts: Sequence[Mapping[str, Any]] = (),
    asking: Asking = "common",
) -> FrozenTrial:
    """Draw the next trial of a cell; the trial with `params`, `distributions` and `system_attrs`.

    `history` holds the trials so far that none continues, see `standing`; `lost` the numbers of those that ended since
    their workers were lost; `starts` the configurations that the cell tries first, which it marks as `start`. `asking`
    is how the study has asked from its first trial on: with points in common, or each cell with draws of its own.
    """
    if asking == "own":
        assert not starts  # a study of before has none
        return before.ask(study, cell, goals, history, lost)
    number = len(history)
    is_start = number < len(starts)
    learns = study.sampler.kind in samplers.LEARNS_FROM
    seen = samplers.as_seen_by_sampler(history, goals, lost) if learns else []
    if not is_start and samplers.has_enough(study.sampler, seen):
        return samplers.chosen(study, cell, goals, seen)
    params = draw(study, cell, number, starts)
    marks = samplers.generation(study, cell, goals, seen) if study.sampler.kind == "nsga2" else {}
    trial = points.placed(cell, params, marks)
    if is_start:
        trial.set_user_attr("start", number)
    return trial


def draw(study: Study, cell: Cell, number: int, starts: Sequence[Mapping[str, Any]] = ()) -> Mapping[str, Any]:
    """The point of a trial that no model chooses: the next that the study file gives, or one that all cells share."""
    return starts[number] if number < len(starts) else points.common(study, cell, number, len(starts))


def is_drawn(study: Study, number: int, starts: int = 0) -> bool:
    """Whether no model chooses trial `number` of a cell, whatever becomes of those before it."""
    return number < starts or number < samplers.drawn(study.sampler)
