"""Confirmation: the best of a search, trained again on fresh seeds and scored on validation and on test.

Who is confirmed, on which seeds and who is chosen are pure functions of what the ledger holds, of each replicate by
itself. A cell's choice has the best mean validation score over the fresh seeds; test is reported and chooses nothing.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.lines import finished, standing
from cs330ray.ledger.records import Trial
from cs330ray.ledger.trials.fronts import by_crowding, losses, pareto_front
from cs330ray.spec.study import Cell, Study, canonical
from cs330ray.words import plural


@dataclass(frozen=True)
class Run:
    """A candidate trained again on one fresh seed."""

    trial: Trial  # its cell is the searched one under that seed
    test: Mapping[str, float]  # what it reached on test; empty until it is COMPLETE, and where the test failed
    untested: str = ""  # why the test failed


@dataclass(frozen=True)
class Confirmed:
    """A candidate, and what its fresh seeds gave so far."""

    searched: Trial
    runs: Sequence[Run]  # by seed, those that were taken up
    seeds: int  # how many there will be
    current: bool = True  # False where a grown study has other candidates: it is shown, and not chosen

    @property
    def whole(self) -> bool:
        """Whether every fresh seed is COMPLETE: only then can the candidate be chosen."""
        return len(self.runs) == self.seeds and all(run.trial.state == "COMPLETE" for run in self.runs)

    @property
    def complete(self) -> list[Run]:
        """The runs that are COMPLETE."""
        return [run for run in self.runs if run.trial.state == "COMPLETE"]

    @property
    def values(self) -> list[tuple[float, ...]]:
        """The objectives on validation, one tuple a COMPLETE fresh seed."""
        return [run.trial.values for run in self.complete if run.trial.values]

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each objective over the COMPLETE fresh seeds."""
        return tuple(statistics.fmean(column) for column in zip(*self.values, strict=True))


def fresh_cells(study: Study) -> list[Cell]:
    """Every cell under every fresh seed, replicate by replicate, and in each seed by seed."""
    return [cell for replicate in range(study.repeat.searches) for cell in fresh_cells_of(study, replicate)]


def fresh_cells_of(study: Study, replicate: int) -> list[Cell]:
    """The cells of one replicate under every fresh seed, seed by seed."""
    seeds, cells = study.confirm.seeds if study.confirm else 0, study.replicate(replicate)
    return [cell.under(index) for index in range(seeds) for cell in cells]


def candidates(study: Study, goals: Sequence[str], found: Mapping[str, Sequence[Trial]]) -> dict[str, list[Trial]]:
    """Who is confirmed, by cell key, given each cell's trials: the best by their search validation, or the front.

    Beside them stand the configurations of [start]. A configuration is a candidate once, by its best trial.
    """
    if study.confirm is None:
        return {}
    most = study.confirm.most(len(goals))
    chosen = {}
    for key, trials in compared(study, found).items():
        held = [trial for trial in trials if trial.state == "COMPLETE" and trial.values]
        complete = _distinct(held, goals)
        ranked = _ranked_front(study, goals, complete) if len(goals) > 1 else complete
        starts = {canonical(dict(trial.params)) for trial in held if trial.is_start}
        beside = [trial for trial in complete if canonical(dict(trial.params)) in starts]
        chosen[key] = ranked[:most] + [trial for trial in beside if trial not in ranked[:most]]
    return chosen


def compared(study: Study, found: Mapping[str, Sequence[Trial]]) -> dict[str, list[Trial]]:
    """The trials of each cell that may be candidates, by cell key: the first n that have ended.

    n is the same for every cell of a replicate that has any: the most that all of them have. A trial that has not
    ended, as where budget.time has overtaken it, hides none of those behind it. Of several replicates those that are
    not searched whole have no candidates.
    """
    among: dict[str, list[Trial]] = {}
    for replicate in range(study.repeat.searches):
        ended = {cell.key: _ended(study, found[cell.key]) for cell in study.replicate(replicate)}
        n = min(filter(None, map(len, ended.values())), default=0)
        if study.repeat.searches > 1 and any(len(trials) < study.budget.trials for trials in ended.values()):
            n = 0
        among |= {key: trials[:n] for key, trials in ended.items()}
    return among


def _ended(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have ended for good, in the order in which they began."""
    over = {trial.number for trial in finished(study, trials)}
    return [trial for trial in standing(trials) if trial.number in over]


def _distinct(trials: Sequence[Trial], goals: Sequence[str]) -> list[Trial]:
    """The best trial of each configuration, the best first."""
    best: dict[str, Trial] = {}
    for trial in sorted(trials, key=lambda trial: (losses(trial.values or (), goals), trial.number)):
        best.setdefault(canonical(dict(trial.params)), trial)
    return list(best.values())


def _ranked_front(study: Study, goals: Sequence[str], trials: Sequence[Trial]) -> list[Trial]:
    """The front: first who keeps the bounds on the search's validation, the best first, then by crowding distance."""
    front = pareto_front(trials, goals)
    kept = [
        trial
        for trial in front
        if study.confirm and study.confirm.bounds and not broken_bounds(study, goals, trial.values or ())
    ]
    kept.sort(key=lambda trial: losses(trial.values or (), goals))
    return kept + [trial for trial in by_crowding(front, goals) if trial not in kept]


def limits(ledger: Ledger, study: Study, replicate: int) -> list[str]:
    """What limits who is confirmed in a replicate, in words: trials that have not ended, and cells with too few."""
    found, goals = _trials(ledger, study), ledger.goals(study)
    among, chosen = compared(study, found), candidates(study, goals, found)
    most = study.confirm.most(len(goals)) if study.confirm else None
    where = "COMPLETE" if len(goals) == 1 else "on the front"
    lines = []
    for cell in study.replicate(replicate):
        if left_out := [str(trial.number) for trial in standing(found[cell.key]) if trial.state == "RUNNING"]:
            which = f"trial {left_out[0]} has" if len(left_out) == 1 else f"trials {', '.join(left_out)} have"
            lines.append(f"{cell.label}: {which} not ended; it is confirmed without")
        number = len(chosen[cell.key])
        if most is not None and number < most:
            lines.append(
                f"{cell.label}: {number} of at most {most} to confirm: no more configurations are {where} among the "
                f"first {plural(len(among[cell.key]), 'trial')} that ended"
            )
    return lines


def pending(ledger: Ledger, study: Study, replicate: int) -> list[tuple[Cell, int]]:
    """The runs of a replicate's confirmation that have not ended, seed by seed: (cell under the seed, trial)."""
    chosen = candidates(study, ledger.goals(study), _trials(ledger, study))
    waiting = []
    for cell in fresh_cells_of(study, replicate):
        ended = {trial.number for trial in ledger.trials(study, cell) if trial.state != "RUNNING"}
        waiting += [(cell, trial.number) for trial in chosen[cell.searched.key] if trial.number not in ended]
    return waiting


def confirmed(ledger: Ledger, study: Study) -> dict[str, list[Confirmed]]:
    """The candidates of each cell with what is known of them, by cell key, in the order of the search's validation.

    Behind them are those that were confirmed before the study had grown.
    """
    if study.confirm is None:
        return {}
    chosen = candidates(study, ledger.goals(study), _trials(ledger, study))
    runs: dict[tuple[str, int], list[Run]] = {}
    for cell in fresh_cells(study):
        for trial in ledger.trials(study, cell):
            runs.setdefault((cell.searched.key, trial.number), []).append(_run(ledger, study, trial))
    found: dict[str, list[Confirmed]] = {}
    for cell in study.cells:
        current = {trial.number: trial for trial in chosen[cell.key]}
        former = {
            trial.number: trial
            for trial in ledger.trials(study, cell)
            if trial.number not in current and (cell.key, trial.number) in runs
        }
        found[cell.key] = [
            Confirmed(trial, runs.get((cell.key, number), []), study.confirm.seeds, number in current)
            for number, trial in {**current, **former}.items()
        ]
    return found


def _run(ledger: Ledger, study: Study, trial: Trial) -> Run:
    if trial.state != "COMPLETE":
        return Run(trial, {})
    untested = ledger.untested(study, trial.cell, trial.number)
    return Run(trial, ledger.test_metrics(study, trial.cell, trial.number), untested[0] if untested else "")


def choice(study: Study, goals: Sequence[str], found: Sequence[Confirmed]) -> Confirmed | None:
    """The best of `found` by the mean validation over the fresh seeds, of its first objective and within the bounds.

    None while a candidate's runs are not over, and where none is whole or keeps the bounds.
    """
    if runs_to_come(found):
        return None
    kept = [one for one in found if one.current and one.whole and not broken_bounds(study, goals, one.means)]
    return min(kept, key=lambda one: losses(one.means, goals)[0], default=None)  # of equals the search's first


def runs_to_come(found: Sequence[Confirmed]) -> int:
    """How many runs of the candidates have not ended."""
    over = [sum(run.trial.state != "RUNNING" for run in one.runs) for one in found if one.current]
    return sum(one.seeds for one in found if one.current) - sum(over)


def broken_bounds(study: Study, goals: Sequence[str], values: Sequence[float]) -> list[str]:
    """The bounds that objectives break, in words."""
    bounds = study.confirm.bounds if study.confirm else {}
    return [
        f"{name} {'>=' if goal == 'max' else '<='} {bounds[name]:g}"
        for name, goal, value in zip(study.objective, goals, values, strict=True)
        if name in bounds and optimism(goal, bounds[name], value) > 0
    ]


def on_test(name: str) -> str:
    """Name the test metric beside a validation metric: `test_mse` for `val_mse`."""
    return f"test_{name.removeprefix('val_')}"


def optimism(goal: str, promised: float, reached: float) -> float:
    """By how much a promise was better than what was reached: the winner's curse where it is positive."""
    return promised - reached if goal == "max" else reached - promised


def _trials(ledger: Ledger, study: Study) -> dict[str, list[Trial]]:
    return {cell.key: ledger.trials(study, cell) for cell in study.cells}
