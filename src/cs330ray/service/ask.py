"""Search: what the next trial is. Asking is a pure function of (study, cell, history); Tune's Searcher only forwards.

A trial is asked in memory and then entered into the ledger whole. Samplers are made anew for every ask, seeded by
(study seed, cell, number), so that a study asks the same after a crash as without one.
"""

import math
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from scipy.stats import qmc

from cs330ray.ledger import confirm
from cs330ray.ledger.ledger import directions
from cs330ray.ledger.records import continues, standing
from cs330ray.ledger.writer import Writer
from cs330ray.service.messages import Assignment, Continuation, Terms, as_config
from cs330ray.spec.study import Cell, Study, fresh_seed, hashed, trial_seed
from cs330ray.spec.tables import Choice, Domain, applies


def distribution(domain: Domain) -> BaseDistribution:
    """A domain of the study file as Optuna's distribution."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(tuple(domain.choices))
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    step = None if domain.step is None else float(domain.step)
    return FloatDistribution(float(domain.low), float(domain.high), log=domain.log, step=step)


def ask(
    study: Study, cell: Cell, goals: Sequence[str], history: Sequence[FrozenTrial], lost: Collection[int] = ()
) -> FrozenTrial:
    """Draw the next trial of a cell; the trial with `params`, `distributions` and `system_attrs`.

    `history` holds the trials so far that none continues, see `standing`; `lost` the numbers of those that ended since
    their workers were lost.
    """
    number = len(history)
    if study.sampler.kind == "qmc":
        return _sobol_point(study, cell, number)
    sampler = _sampler(study, hashed(study.seed, cell.key, number))
    memory = optuna.create_study(sampler=sampler, directions=directions(goals))
    if study.sampler.kind != "random":
        memory.add_trials(as_seen_by_sampler(history, goals, lost))
    trial = memory.ask()
    for name, domain in _in_order(cell.space).items():
        if applies(domain, {**cell.fixed, **trial.params}):
            _suggest(trial, name, distribution(domain))
    return memory.get_trials(deepcopy=False)[-1]


def _in_order(space: Mapping[str, Domain]) -> dict[str, Domain]:
    """A space by name, each parameter after those of its condition: the order of a file changes no ask."""
    order: dict[str, Domain] = {}
    while rest := [name for name in space if name not in order]:
        waits = {name: [key for key in space[name].when or {} if key in rest] for name in rest}
        first = min(name for name in rest if not waits[name])  # there is one: the spec wants conditions stated before
        order[first] = space[first]
    return order


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
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


def _sampler(study: Study, seed: int) -> BaseSampler:
    settings = study.sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.kind == "random":
            return RandomSampler(seed=seed)
        if settings.kind == "nsga2":
            return NSGAIISampler(population_size=settings.population, seed=seed)
        return TPESampler(
            n_startup_trials=settings.startup, multivariate=True, group=True, constant_liar=True, seed=seed
        )


def _suggest(trial: optuna.Trial, name: str, wanted: BaseDistribution) -> None:
    if isinstance(wanted, CategoricalDistribution):
        trial.suggest_categorical(name, wanted.choices)
    elif isinstance(wanted, IntDistribution):
        trial.suggest_int(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step)
    elif isinstance(wanted, FloatDistribution):
        trial.suggest_float(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step)


def _sobol_point(study: Study, cell: Cell, number: int) -> FrozenTrial:
    """Point `number` of the cell's one scrambled Sobol sequence."""
    space = {name: distribution(domain) for name, domain in _in_order(cell.space).items()}
    params: dict[str, Any] = {}
    if space:
        sequence = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng(hashed(study.seed, cell.key)))
        point = sequence.fast_forward(number).random(1)[0] if number else sequence.random(1)[0]
        params = {name: _at_quantile(wanted, u) for (name, wanted), u in zip(space.items(), point, strict=True)}
    return optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=space)


def _at_quantile(wanted: BaseDistribution, u: float) -> Any:
    """The value below which a share `u` of the distribution lies."""
    if isinstance(wanted, CategoricalDistribution):
        return wanted.choices[min(int(u * len(wanted.choices)), len(wanted.choices) - 1)]
    assert isinstance(wanted, IntDistribution | FloatDistribution)
    half = 0.5 if isinstance(wanted, IntDistribution) and wanted.log else 0.0
    low, high = wanted.low - half, wanted.high + half
    if wanted.log:
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    elif wanted.step is not None:
        count = int((wanted.high - wanted.low) / wanted.step + 1e-9) + 1
        value = wanted.low + min(int(u * count), count - 1) * wanted.step
    else:
        value = low + u * (high - low)
    value = min(max(value, wanted.low), wanted.high)
    return round(value) if isinstance(wanted, IntDistribution) else value


class LedgerSearcher(tune.search.Searcher):
    """Tune's way to the next trial: first the interrupted ones, then the cells in turn, until the budget is spent."""

    def __init__(
        self,
        ledger: Writer,
        study: Study,
        terms: Callable[[Cell, int], Terms],
        interrupted: Sequence[tuple[Cell, int]],
        confirms: Callable[[int], None] = lambda _: None,
        fence: Callable[[], None] = lambda: None,
        room: Callable[[], float] = lambda: math.inf,
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self._study = study
        self._goals = ledger.goals(study)
        self._terms = terms  # on which a trial of a cell runs
        self._waiting = list(interrupted)
        self._live: dict[str, tuple[str, int]] = {}  # the trials under way, by Tune's names
        self._again: set[tuple[str, int]] = set()  # those taken up again that have not begun: none goes before them
        self._left_s: float | None = None  # of the study's time, when this session began
        self._deadline = math.inf
        self.ran_out_of_time = False
        self.is_over = False
        self._fence = fence  # raises where another driver has the study by now
        self._room = room  # how many trials may be under way
        self._confirms = confirms  # hears, once, how many runs of confirmation there are to come
        self._searches = True

    def start_clock(self) -> None:
        """Count the study's time from the first trial on; what earlier sessions worked is spent."""
        if self._study.budget.time is not None:
            self._left_s = self._study.budget.time - self._ledger.worked_s(self._study)
            self._deadline = math.inf if self._left_s > 0 else time.monotonic()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, as Tune's configuration of it; None while the last ones run, then FINISHED."""
        if self._live and len(self._live) >= self._room():  # where nothing runs, Tune would wait for long and not tick
            return None
        coming = self._next()
        if not isinstance(coming, Assignment):
            return coming
        self._live[trial_id] = coming.cell, coming.trial
        return as_config(coming)

    def _next(self) -> Assignment | str | None:
        while self._waiting:
            cell, number = self._waiting.pop(0)
            if self._is_too_late(cell, number):
                self.ran_out_of_time = True
                continue
            self._again.add((cell.key, number))
            return self._assignment(cell, self._ledger.history(self._study, cell.searched)[number])
        if self._again:
            return None
        histories = {cell.key: standing(self._ledger.history(self._study, cell)) for cell in self._study.cells}
        open_cells = [cell for cell in self._study.cells if len(histories[cell.key]) < self._study.budget.trials]
        late = bool(open_cells) and time.monotonic() >= self._deadline
        self.ran_out_of_time |= late
        if not open_cells or late:
            return self._next_to_confirm()
        cell = min(open_cells, key=lambda candidate: len(histories[candidate.key]))
        history = histories[cell.key]
        asked = ask(self._study, cell, self._goals, history, self._ledger.lost(self._study, cell))
        self._fence()
        number = self._ledger.enter(self._study, cell, asked, trial_seed(self._study.seed, len(history)))
        return self._assignment(cell, self._ledger.history(self._study, cell)[number])

    def _is_too_late(self, cell: Cell, number: int) -> bool:
        """Whether a trial that was entered, as those that continue others are, but never begun waits for more time."""
        never = not self._ledger.begun(self._study, cell, number)
        return cell.fresh is None and never and time.monotonic() >= self._deadline

    def _next_to_confirm(self) -> Assignment | str | None:
        if self._live:  # a worker may yet be lost, and its trial come again; and who is confirmed hangs on every end
            return None
        if self._searches:
            self._searches = False
            self._waiting = confirm.pending(self._ledger, self._study)
            if self._waiting:
                self._confirms(len(self._waiting))
                return self._next()
        self.is_over = True
        return str(self.FINISHED)

    def began(self, cell: Cell, number: int) -> None:
        """Hear that a trial is under way."""
        if self._left_s is not None and self._deadline == math.inf:
            self._deadline = time.monotonic() + self._left_s
        self._again.discard((cell.key, number))

    def again(self, cell: Cell, number: int) -> None:
        """Put a trial whose worker was lost first in the queue."""
        self._waiting.insert(0, (cell, number))

    def _assignment(self, cell: Cell, trial: FrozenTrial) -> Assignment:
        study, ledger, number = self._study, self._ledger, trial.number
        searched = cell.fresh is None
        if searched and trial.user_attrs.get("steps") != study.budget.steps:
            ledger.retarget(study, cell, number)
        continuation = self._continuation(cell, trial)
        after_step = continuation.after_step if continuation else 0
        return Assignment(
            cell=cell.key,
            trial=number,
            trainable=cell.trainable,
            config={**cell.fixed, **trial.params},
            seed=trial.user_attrs["seed"] if searched else fresh_seed(study.seed, cell.fresh or 0),
            steps=study.budget.steps,
            test=not searched,
            recorded_step=max(ledger.last_step(study, cell, number), after_step),
            begun=ledger.begun(study, cell, number),
            continues=continuation,
            terms=self._terms(cell, number),
        )

    def _continuation(self, cell: Cell, trial: FrozenTrial) -> Continuation | None:
        """After which rows of the record a trial continues another, and from which checkpoint."""
        before = continues(trial) if cell.fresh is None else None
        if before is None:
            return None
        ledger, study = self._ledger, self._study
        after = max(ledger.last_step(study, cell, number) for number in ledger.lineage(study, cell, before))
        return Continuation(after, ledger.checkpoint(study, cell, before))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Forget a trial; `record` has told the ledger."""
        self._again.discard(self._live.pop(trial_id, ("", -1)))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds all there is."""
