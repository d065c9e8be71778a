"""A study with a made history, in a ledger of its own: for what reads studies, without training one."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cs330ray.ledger import confirm
from cs330ray.ledger.records import Ended, Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.service.search.ask import ask
from cs330ray.spec.study import Cell, Study, fresh_seed, trial_seed
from cs330ray.trial.contract import Item, Metric, Scores

METRICS: Mapping[str, Metric] = {
    "val_accuracy": Metric("max", 0.0, 1.0),
    "val_loss": Metric("min", 0.0, unit="nats"),
    "test_accuracy": Metric("max", 0.0, 1.0),
    "test_loss": Metric("min", 0.0, unit="nats"),
}
ON = {
    "resumed_from_step": None, "began_s": 0.0, "host": "here", "nodes": ["node"], "pid": 1, "device": "cpu",
    "threads": 1, "python": "3.11.7", "versions": {"torch": "2.13.0"}, "seed": 0, "code": "c0de", "data": "da7a",
}  # fmt: skip
SHOTS = (1, 2, 4, 8)
Quality = Callable[[Cell, Mapping[str, Any]], float]  # of a configuration, the accuracy that it comes to, in (0, 1)
Ends = Callable[[Cell, int], Ended]
ENDINGS: dict[Ended, Ending] = {
    "COMPLETE": Ending("COMPLETE"),
    "PRUNED": Ending("PRUNED", "asha at step 1, 4 rivals", cause="pruned"),
    "FAIL": Ending("FAIL", "diverged: the loss is inf", cause="diverged"),
}


def by_rate(cell: Cell, params: Mapping[str, Any]) -> float:
    """Best at a rate of .1; a compared value `ways` costs a tenth each."""
    off = abs(math.log10(float(params.get("lr", 0.1))) + 1)
    return 0.9 - 0.15 * off - 0.05 * (float(cell.values.get("ways", 2)) - 2)


def as_usual(cell: Cell, number: int) -> Ended:
    """Every fifth is pruned, every seventh fails."""
    return "FAIL" if number % 7 == 6 else "PRUNED" if number % 5 == 4 else "COMPLETE"


def fill(
    home: Path,
    study: Study,
    quality: Quality = by_rate,
    ends: Ends = as_usual,
    *,
    rows: int = 8,
    luck: float = 0.02,
    but: str = "",
) -> Writer:
    """Enter `study` with all its trials and confirmations; each comes to its quality and some luck of its seed.

    The cell with the title `but` is not confirmed.
    """
    ledger = Writer.at(home)
    ledger.open(study, dict.fromkeys(study.trainables(), METRICS))
    goals = ledger.goals(study)
    for cell in study.cells:
        history: list[Any] = []
        for number in range(study.budget.trials):
            asked = ask(study, cell, goals, history if study.sampler.kind != "random" else [None] * number)
            ledger.enter(study, cell, asked, trial_seed(study.seed, number))
            reached = quality(cell, asked.params)
            _train(ledger, study, cell, number, trial_seed(study.seed, number), reached, luck, rows, ends(cell, number))
            if study.sampler.kind != "random":
                history = ledger.history(study, cell)
    for cell, number in confirm.pending(ledger, study, 0):
        if cell.title == but:
            continue
        params = ledger.trials(study, cell.searched)[number].params
        seed = fresh_seed(study.seed, cell.fresh or 0)
        reached = quality(cell, params)
        _train(ledger, study, cell, number, seed, reached, luck, rows, "COMPLETE")
    return ledger


def _train(
    ledger: Writer, study: Study, cell: Cell, number: int, seed: int, quality: float, luck: float, rows: int, end: Ended
) -> None:
    drawn = np.random.default_rng([seed, number])
    best = min(max(quality + luck * float(drawn.normal()), 0.01), 0.999)
    ledger.write_attempt(study, cell, number, ON | {"seed": seed})
    began_s = 1.8e9 + 10.0 * number
    steps = [study.budget.steps * (index + 1) // rows for index in range(rows)]
    steps = steps[: max(rows // 4, 1)] if end != "COMPLETE" else steps
    curve = [
        Row(step, _metrics(best * (1 - math.exp(-4 * step / study.budget.steps))), began_s + index)
        for index, step in enumerate(steps)
    ]
    if end != "FAIL":
        ledger.write_rows(study, cell, number, curve)
    if cell.fresh is not None:
        scored = (drawn.random(200) < best).astype(float)
        items = [Item(str(index), float(score)) for index, score in enumerate(scored)]
        mean = float(scored.mean())
        swept = {f"test_accuracy/shots/{shots}": min(mean + 0.02 * math.log2(shots), 1.0) for shots in SHOTS}
        scores = Scores({"test_accuracy": mean, "test_loss": -math.log(mean), **swept}, {"test_accuracy": items})
        ledger.write_scores(study, cell, number, scores)
    ledger.end(study, cell, number, ENDINGS[end])


def _metrics(accuracy: float) -> dict[str, float]:
    return {"val_accuracy": accuracy, "val_loss": -math.log(accuracy)}
