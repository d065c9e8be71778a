"""A study that has ended, written straight into a ledger, with an answer that is known by hand.

In `cost=1.0` trial 1 is the best of the search, with .90, and has .70, .72, .74 on fresh seeds, where trial 2 has .81,
.83, .85: with s = .02 and t(.975, 2) = 4.302653 its mean is .83 +- .0497. In `cost=2.0` trial 1 is the first in both.
"""

from collections.abc import Sequence

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from cs330ray.ledger.records import Ended, Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study
from cs330ray.trial.contract import Item, Scores
from tests import noisy

AT_S = 1_700_000_000.0
ENDINGS: dict[Ended, Ending] = {
    "COMPLETE": Ending("COMPLETE"),
    "PRUNED": Ending("PRUNED", "planted", cause="pruned"),
    "FAIL": Ending("FAIL", "planted", cause="raised"),
}
ON = {"host": "here", "device": "cpu", "code": "c0de", "data": "da7a"}


def letters(name: str = "letters", trials: int = 4) -> Study:
    return parse(
        {
            "name": name, "trainable": "tests.noisy", "objective": ["val_accuracy"], "prune": {"kind": "none"},
            "compare": {"cost": [1.0, 2.0]}, "search": {"quality": {"low": 0.0, "high": 1.0}},
            "budget": {"trials": trials, "steps": 20}, "confirm": {"top": 2, "seeds": 3},
        },
        name,
    )  # fmt: skip


def opened(ledger: Writer, study: Study) -> Study:
    ledger.open(study, {"tests.noisy": noisy.METRICS})
    return study


def enter(ledger: Writer, study: Study, cell: Cell, quality: float) -> int:
    """Enter a trial that runs; its number."""
    asked = optuna.trial.create_trial(
        state=TrialState.RUNNING, params={"quality": quality}, distributions={"quality": FloatDistribution(0.0, 1.0)}
    )
    return ledger.enter(study, cell, asked, seed=7)


def end(ledger: Writer, study: Study, cell: Cell, number: int, reached: float, state: Ended = "COMPLETE") -> None:
    """Write a trial's two rows, and end it; a failed one has no second."""
    rows = [Row(10, {"val_accuracy": reached / 2}, AT_S), Row(20, {"val_accuracy": reached}, AT_S + 1)]
    ledger.write_rows(study, cell, number, rows[: 1 if state == "FAIL" else 2])
    ledger.end(study, cell, number, ENDINGS[state])


def search(ledger: Writer, study: Study, cell: Cell, reached: float, state: Ended = "COMPLETE") -> int:
    number = enter(ledger, study, cell, round(reached / 2, 3))
    end(ledger, study, cell, number, reached, state)
    return number


def confirm(
    ledger: Writer, study: Study, cell: Cell, number: int, reached: list[float], items: Sequence[Sequence[Item]] = ()
) -> None:
    """End a candidate's runs on fresh seeds, each .01 worse on test, with the items that its seeds scored."""
    for index, value in enumerate(reached):
        ledger.write_attempt(study, cell.under(index), number, ON)
        end(ledger, study, cell.under(index), number, value)
        scored = {"test_accuracy": items[index]} if items else {}
        ledger.write_scores(study, cell.under(index), number, Scores({"test_accuracy": value - 0.01}, scored))


def unsearched(ledger: Writer, study: Study, fresh: Sequence[list[float]]) -> None:
    """Open a study that searches nothing, with one trial of each cell, confirmed with these values."""
    opened(ledger, study)
    for cell, values in zip(study.cells, fresh, strict=True):
        number = ledger.enter(study, cell, optuna.trial.create_trial(state=TrialState.RUNNING), seed=7)
        end(ledger, study, cell, number, 0.9)
        confirm(ledger, study, cell, number, values)


def fill(ledger: Writer, name: str = "letters", trials: int = 4) -> Study:
    study = opened(ledger, letters(name, trials))
    one, other = study.cells
    for reached in (0.6, 0.9, 0.8):
        search(ledger, study, one, reached)
    search(ledger, study, one, 0.5, "PRUNED")
    for reached in (0.7, 0.75):
        search(ledger, study, other, reached)
    search(ledger, study, other, 0.0, "FAIL")
    search(ledger, study, other, 0.65)
    confirm(ledger, study, one, 1, [0.70, 0.72, 0.74])
    confirm(ledger, study, one, 2, [0.81, 0.83, 0.85])
    confirm(ledger, study, other, 1, [0.74, 0.74, 0.74])
    confirm(ledger, study, other, 0, [0.7, 0.7, 0.7])
    return study
