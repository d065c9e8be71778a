"""Optuna's samplers: what each sees of a history, when it has too little to learn from, and what it then chooses.

A sampler is made for one ask, in memory, and seeded by (study seed, cell, number): it keeps nothing between asks.
"""

import copy
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cs330ray.ledger.ledger import directions
from cs330ray.service.search.points import distribution, in_order
from cs330ray.spec.study import Cell, Study, hashed
from cs330ray.spec.tables import Sampler, applies

LEARNS_FROM = {  # which trials count for a sampler; `random` and `qmc` learn from none
    "tpe": (TrialState.COMPLETE, TrialState.PRUNED),
    "gp": (TrialState.COMPLETE,),
    "nsga2": (TrialState.COMPLETE,),
}


def has_enough(settings: Sampler, seen: Sequence[FrozenTrial]) -> bool:
    """Whether a sampler has learned enough to choose; the first population of nsga2 is drawn."""
    if settings.kind not in LEARNS_FROM:
        return False
    learned = sum(trial.state in LEARNS_FROM[settings.kind] for trial in seen)
    return learned >= drawn(settings)


def drawn(settings: Sampler) -> float:
    """How many trials are drawn, and not chosen, at least."""
    if settings.kind not in LEARNS_FROM:
        return math.inf
    return settings.population if settings.kind == "nsga2" else settings.startup


def said(study: Study) -> Iterator[str]:
    """What a study's sampler can learn too little of, in words, before anything starts."""
    settings, trials = study.sampler, study.budget.trials
    if settings.kind not in LEARNS_FROM or not study.searched:
        return
    if 2 * (first := drawn(settings)) > trials:
        yield (
            f"the first {first} trials of a cell are drawn before {settings.kind} has learned anything, so that with "
            f"{trials} the search is mostly random"
        )
    if settings.kind != "gp":
        return
    conditional = {name for cell in study.compared for name, domain in cell.space.items() if domain.when}
    if conditional:
        yield f"gp draws what has a condition at random ({', '.join(sorted(conditional))}); tpe learns that too"
    if study.prune.kind != "none":
        yield "gp learns from COMPLETE trials alone, and from no pruned one; tpe learns from both"


def chosen(study: Study, cell: Cell, goals: Sequence[str], seen: Sequence[FrozenTrial]) -> FrozenTrial:
    """Ask the sampler for the next trial of a cell, given what it `seen`; the trial."""
    memory = _in_memory(study, cell, goals, seen)
    return suggested(memory, cell)


def generation(study: Study, cell: Cell, goals: Sequence[str], seen: Sequence[FrozenTrial]) -> dict[str, object]:
    """The attributes by which nsga2 knows the generation of a trial that it does not choose itself."""
    memory = _in_memory(study, cell, goals, seen)
    memory.ask()
    sampler = memory.sampler
    assert isinstance(sampler, NSGAIISampler)
    sampler.get_trial_generation(memory, memory.get_trials(deepcopy=False)[-1])
    return dict(memory.get_trials(deepcopy=False)[-1].system_attrs)


def _in_memory(study: Study, cell: Cell, goals: Sequence[str], seen: Sequence[FrozenTrial]) -> optuna.Study:
    sampler = _sampler(study.sampler, hashed(study.seed, cell.key, len(seen)))
    return optuna.create_study(storage=Seen(seen), sampler=sampler, directions=directions(goals))


class Seen(InMemoryStorage):
    """What a sampler has seen, in memory, numbered in order: the trials themselves, where Optuna would check and copy.

    They are the ledger's, and nobody changes them: Optuna writes to the trial that is asked alone.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._seen = [_numbered(trial, number) for number, trial in enumerate(trials)]

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Make the study of those trials; its id."""
        study_id: int = super().create_new_study(directions, study_name)
        self._studies[study_id].trials = self._seen
        self._trial_id_to_study_id_and_number = {number: (study_id, number) for number in range(len(self._seen))}
        self._max_trial_id = len(self._seen) - 1
        return study_id


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    """A trial under another number, which is its id too."""
    if trial.number == trial._trial_id == number:
        return trial
    numbered = copy.copy(trial)
    numbered.number = numbered._trial_id = number
    return numbered


def _sampler(settings: Sampler, seed: int) -> BaseSampler:
    """A sampler that chooses whatever the number of trials: when it may is said by `has_enough` alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.kind == "nsga2":
            return NSGAIISampler(population_size=settings.population, seed=seed)
        if settings.kind == "gp":  # imports torch when it chooses, and not before
            wants_greenlet = logging.getLogger("optuna._gp.batched_lbfgsb")  # which was measured to gain nothing here
            wants_greenlet.setLevel(logging.ERROR)
            return GPSampler(n_startup_trials=0, warn_independent_sampling=False, seed=seed)
        assert settings.kind == "tpe"
        return TPESampler(n_startup_trials=0, multivariate=True, group=True, constant_liar=True, seed=seed)


def suggested(memory: optuna.Study, cell: Cell) -> FrozenTrial:
    """Let a study in memory suggest what a cell searches, each parameter where its condition holds; the trial."""
    trial = memory.ask()
    for name, domain in in_order(cell.space).items():
        if applies(domain, {**cell.fixed, **trial.params}):
            _suggest(trial, name, distribution(domain))
    return memory.get_trials(deepcopy=False)[-1]


def _suggest(trial: optuna.Trial, name: str, wanted: BaseDistribution) -> None:
    if isinstance(wanted, CategoricalDistribution):
        trial.suggest_categorical(name, wanted.choices)
    elif isinstance(wanted, IntDistribution):
        trial.suggest_int(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step)
    elif isinstance(wanted, FloatDistribution):
        trial.suggest_float(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step)


def as_seen_by_sampler(
    history: Sequence[FrozenTrial], goals: Sequence[str], lost: Collection[int]
) -> list[FrozenTrial]:
    """The history with each failed trial at the cell's worst value; one that was lost says nothing and stays FAIL."""
    complete = [trial.values for trial in history if trial.state == TrialState.COMPLETE]
    if not complete:
        return list(history)
    worst = [(min if goal == "max" else max)(values[index] for values in complete) for index, goal in enumerate(goals)]
    return [
        _at(trial, worst) if trial.state == TrialState.FAIL and trial.number not in lost else trial for trial in history
    ]


def _at(trial: FrozenTrial, values: list[float]) -> FrozenTrial:
    complete = copy.copy(trial)
    complete.state, complete.values = TrialState.COMPLETE, values
    return complete
