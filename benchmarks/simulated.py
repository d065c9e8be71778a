"""Studies whose truth is known, simulated by the service's own functions, without Ray and without a database.

What asks, prunes, seeds, picks candidates, chooses, values a replicate, looks and claims is the service: `ask`,
`last_rung` and `asha_stops`, `trial_seed` and `fresh_seed`, `candidates`, `Standing.chosen`, `Replicates`, `due` and
`claim`. What is simulated is the trainable, and the loop in which the queue and the recorder run it.

The trainable searches one learning rate. At u, the quantile of the rate in its range, it reaches .95 - .6 (u - best)^2,
and luck on top, which is a pure function of its seed: of the seed alone (cells share it), of the cell, and of what was
trained; validation and test then each measure it with an error of their own.
"""

import functools
import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from cs330ray.analysis.claims import seen
from cs330ray.analysis.claims.claim import Claim, claim
from cs330ray.analysis.claims.look import Look
from cs330ray.analysis.replicates import Replicates
from cs330ray.analysis.standing import Standing
from cs330ray.ledger.confirm import Confirmed, Run, candidates
from cs330ray.ledger.records import Asking, Trial
from cs330ray.service.search.ask import ask
from cs330ray.service.search.prune import asha_stops, last_rung
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study, fresh_seed, trial_seed

LOW, HIGH = 1e-4, 1.0  # of the learning rate, on a log scale
SD = 0.005  # of a value beside its rivals: of the cell's luck, of that of what was trained, and of the measurement
PART = SD / 3**0.5  # of each of the three
CHANCE = 0.2  # where training begins, and where one that collapses stays
COLLAPSES = 0.1  # of trainings, where some do
ITEMS = 50  # of an accuracy, where it is quantised
STEPS, RUNGS = 27, (3, 9)  # asha decides at these rungs: min_steps 3, and one in three goes on
GOALS = ("max",)

Optima = Literal["same", "half", "one", "flat"]
Luck = Literal["normal", "skewed", "quantised", "collapses", "fails", "uneven", "wild"]


@dataclass(frozen=True)
class Setting:
    """One kind of study, and what is true of it."""

    optima: Optima = "same"  # of all cells; mirrored in half of them, or in one; "flat": the rate changes nothing
    luck: Luck = "normal"
    cells: int = 4
    trials: int = 8
    seeds: int = 3
    searches: tuple[int, ...] = (5,)  # that are asked for: more than one number for a study that grows
    lead: float = 0.0  # of the first cell, in units of `sd`
    sampler: str = "random"
    prune: str = "none"
    top: int = 3
    asking: Asking = "common"

    @property
    def sd(self) -> float:
        """The standard deviation that luck gives to a replicate's value, beside what cells share."""
        return float(SD / self.seeds**0.5)

    def study(self) -> Study:
        """The study file of it."""
        raw = {
            "name": "simulated",
            "trainable": "simulated",
            "objective": ["val_accuracy"],
            "compare": {"cell": list(range(self.cells))},
            "search": {"lr": {"low": LOW, "high": HIGH, "log": True}},
            "sampler": {"kind": self.sampler},
            "prune": {"kind": self.prune, "min_steps": RUNGS[0]},
            "budget": {"trials": self.trials, "steps": STEPS},
            "confirm": {"top": self.top, "seeds": self.seeds},
            "repeat": {"searches": max(self.searches)},
        }
        return parse(raw, "simulated")


# The trainable --------------------------------------------------------------------------------------------------------


def reached(setting: Setting, place: int, lr: float, seed: int, *, test: bool = False, step: int = STEPS) -> float:
    """Train the cell at `place` and score it; the accuracy on validation or test, NaN where the training failed.

    Before the last step it is on its way from chance to the end: by 1 - exp(-5 step / steps).
    """
    u = math.log(lr / LOW) / math.log(HIGH / LOW)
    if setting.optima == "flat":
        u, quality = 0.0, 0.8
    else:
        mirrored = place < {"same": 0, "half": setting.cells // 2, "one": 1}[setting.optima]
        quality = 0.95 - 0.6 * (u - (0.35 if mirrored else 0.65)) ** 2
    quality += setting.lead * setting.sd if place == 0 else 0.0
    collapses, of_training, *errors = _shares(seed, place, u)
    if setting.luck in ("collapses", "fails") and collapses < COLLAPSES:
        if setting.luck == "fails":
            return math.nan
        quality = CHANCE
    error = _shares(seed, place, u, step)[0] if step < STEPS else errors[test]
    draw = _skewed if setting.luck == "skewed" else NormalDist().inv_cdf
    luck = 0.5 * draw(_shares(seed)[0]) + draw(_shares(seed, place)[0]) + draw(of_training)
    quality = CHANCE + (quality + PART * luck - CHANCE) * (1.0 if step == STEPS else 1 - math.exp(-5 * step / STEPS))
    if setting.luck == "quantised":
        share = min(max(quality, 0.0), 1.0)
        return float(np.random.default_rng(int(error * 2**53)).binomial(ITEMS, share)) / ITEMS
    return quality + PART * _spread(setting, place, test=test) * draw(error)


def _spread(setting: Setting, place: int, *, test: bool) -> float:
    """How large a cell's error of measurement is: on test alone it may differ, so that no cell is chosen worse.

    Three times as large as another's, it makes the cell's values scatter 2.75 times as much.
    """
    if not test or setting.luck not in ("uneven", "wild"):
        return 1.0
    if setting.luck == "wild":
        return 9.0 if place == 0 else 3.0
    return 3.0 * 3.0 ** (place / (setting.cells - 1))


def _skewed(share: float) -> float:
    """The quantile of a distribution of mean 0 and standard deviation 1 with a long tail below."""
    return 1 + math.log(share)


@functools.lru_cache(4096)  # of a seed, and of a cell on it, every candidate asks
def _shares(*parts: float) -> list[float]:
    """Four independent draws between 0 and 1, a pure function of `parts`."""
    words = struct.unpack("<4Q", hashlib.sha256(repr(parts).encode()).digest())
    return [((word >> 11) + 0.5) / 2**53 for word in words]


# A study of it --------------------------------------------------------------------------------------------------------


def studied(setting: Setting, study: Study) -> list[Standing]:
    """Search every cell of every replicate, and confirm; how the cells stand, replicate by replicate."""
    found = {cell.key: list(_searched(setting, study, cell)) for cell in study.cells}
    among, standings = candidates(study, GOALS, found), []
    for cell in study.cells:
        fresh = [(cell.under(each), fresh_seed(study.seed, each, cell.replicate)) for each in range(setting.seeds)]
        confirmed = [_confirmed(setting, study, searched, fresh) for searched in among[cell.key]]
        standings.append(Standing(study, GOALS, cell, found[cell.key], confirmed))
    return standings


def _searched(setting: Setting, study: Study, cell: Cell) -> Iterator[Trial]:
    """The search of a cell, on one slot: ask, train up to each rung, and end."""
    history: list[FrozenTrial] = []
    at_rungs: dict[int, list[float]] = {rung: [] for rung in RUNGS}  # losses of the trials so far
    for number in range(study.budget.trials):
        asked = ask(study, cell, GOALS, history, asking=setting.asking)
        seed, asked.number = trial_seed(study.seed, number, cell.replicate), number
        trial = _trained(setting, study, cell, asked, seed, at_rungs)
        asked.state, asked.datetime_complete = TrialState[trial.state], asked.datetime_start
        asked.values = trial.values if trial.state == "COMPLETE" else None
        history.append(asked)
        yield trial


def _trained(
    setting: Setting, study: Study, cell: Cell, asked: FrozenTrial, seed: int, at_rungs: Mapping[int, list[float]]
) -> Trial:
    """One trial, which asha may stop at a rung; what Optuna is told of a rung is noted in `asked`."""
    place, lr = _place(cell), float(asked.params["lr"])
    value = reached(setting, place, lr, seed)
    state = "FAIL" if math.isnan(value) else "COMPLETE"
    for step in RUNGS if study.prune.kind == "asha" and state == "COMPLETE" else ():
        assert last_rung(study.prune, step) == step
        at_rung = reached(setting, place, lr, seed, step=step)
        asked.intermediate_values[step] = at_rung
        stops = asha_stops(-at_rung, at_rungs[step], study.prune.reduction)
        at_rungs[step].append(-at_rung)
        if stops:
            value, state = at_rung, "PRUNED"
            break
    return _trial(study, cell, asked.number, state, {"lr": lr}, seed, value)


def _confirmed(setting: Setting, study: Study, searched: Trial, fresh: Sequence[tuple[Cell, int]]) -> Confirmed:
    """A candidate, trained again on every fresh seed and tested."""
    lr, runs = searched.params["lr"], []
    for cell, seed in fresh:
        value = reached(setting, _place(cell), lr, seed)
        state = "FAIL" if math.isnan(value) else "COMPLETE"
        trial = _trial(study, cell, searched.number, state, searched.params, seed, value)
        test = {} if state == "FAIL" else {"test_accuracy": reached(setting, _place(cell), lr, seed, test=True)}
        runs.append(Run(trial, test))
    return Confirmed(searched, runs, len(fresh))


def _place(cell: Cell) -> int:
    return int(str(cell.values["cell"]))


def _trial(
    study: Study, cell: Cell, number: int, state: str, params: Mapping[str, float], seed: int, value: float
) -> Trial:
    """A trial as the ledger would hold it."""
    values = None if math.isnan(value) else (value,)
    cause = {"COMPLETE": None, "PRUNED": "pruned", "FAIL": "diverged"}[state]
    return Trial(cell, number, state, params, seed, values, "", cause, "", 0.0, 0.0, study.budget.steps)  # type: ignore[arg-type]


def looks(setting: Setting, study: Study) -> list[Claim]:
    """Simulate a study that grows to each of its numbers of searches; the claim that its reader sees at each.

    Growing trains nothing again, so the replicates of the smaller study are the first ones of the largest.
    """
    standings, recorded, claims = studied(setting, study), list[Look](), list[Claim]()
    for searches in setting.searches:
        asked = study.model_copy(update={"repeat": study.repeat.model_copy(update={"searches": searches})})
        cells = Replicates(asked, standings[: searches * setting.cells])
        due = seen.due(cells, recorded)
        recorded += [due] if due is not None else []
        shown = recorded[-1] if recorded else seen.look_at(cells, 1)
        assert shown is not None
        claims.append(claim(shown))
    return claims
