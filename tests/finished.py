"""Studies that are over, made in this process without Ray: what the service would have left of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from cs330ray.checkpoints import local
from cs330ray.ledger.records import Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.spec.places import checkpoints_of
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study, fresh_seed
from cs330ray.trial import named
from cs330ray.trial.run import run_alone

STARTED = {"host": "a-host", "pid": 7, "device": "cpu", "python": "3.11.1", "versions": {"torch": "2.13"}, "seed": 0}


def study_of(trainable: str, config: Mapping[str, Any], **changes: Any) -> Study:
    """A study of one configuration, or of those that `changes` say, confirmed on two fresh seeds."""
    first = next(name for name in named.load(trainable).METRICS if name.startswith("val_"))
    raw = {
        "name": "done", "trainable": trainable, "objective": [first], "fixed": dict(config), "prune": {"kind": "none"},
        "budget": {"trials": 1, "steps": 2}, "confirm": {"top": 1, "seeds": 2},
    }  # fmt: skip
    return parse(raw | changes, "done")


def finish(home: Path, study: Study, params: Sequence[Mapping[str, Any]] = ({},), *, confirmed: bool = True) -> Writer:
    """Enter a study in the ledger of `home`, with a trial of each of `params` in each cell and the runs after them."""
    ledger = Writer.at(home)
    ledger.open(study, {name: named.load(name).METRICS for name in study.trainables()})
    asked_for = {name: list(dict.fromkeys(values[name] for values in params)) for name in params[0]}
    kinds = {name: optuna.distributions.CategoricalDistribution(values) for name, values in asked_for.items()}
    for cell in study.cells:
        for number, values in enumerate(params):
            asked = optuna.trial.create_trial(params=dict(values), distributions=kinds, value=0.0)
            assert ledger.enter(study, cell, asked, seed=100 + number) == number
            _run(ledger, home, study, cell, number, values, seed=100 + number)
            for index in range(study.confirm.seeds if confirmed and study.confirm else 0):
                _run(ledger, home, study, cell.under(index), number, values, seed=fresh_seed(study.seed, index))
    return ledger


def _run(
    ledger: Writer, home: Path, study: Study, cell: Cell, number: int, values: Mapping[str, Any], seed: int
) -> None:
    trainable = named.load(cell.trainable)
    config = named.configuration(trainable, cell, values)
    place = checkpoints_of(home, study.name, cell, number)
    told = {"data": trainable.prepare(config), "code": named.code_digest(cell.trainable)}
    ledger.write_attempt(study, cell, number, STARTED | told)
    for progress in run_alone(trainable, config, seed, study.budget.steps, place):
        ledger.write_rows(study, cell, number, [Row(progress.step, dict(progress.metrics), 0.0)])
    last = local.newest(place)
    assert last is not None
    ledger.write_checkpoint(study, cell, number, last.step, str(last.path), last.digest)
    ledger.end(study, cell, number, Ending("COMPLETE"))
    if cell.fresh is not None:
        ledger.write_scores(study, cell, number, trainable.test(config, seed, last.path))
