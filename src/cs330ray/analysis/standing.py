"""Who is best: how each cell of a study stands, by its search and by its confirmation.

Everything that ranks trials, stars one, names the best or keeps its checkpoint asks here. Pure functions of what the
ledger holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cs330ray.errors import SpecError
from cs330ray.ledger import confirm
from cs330ray.ledger.confirm import Confirmed
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.lines import finished, rankable, to_continue
from cs330ray.ledger.records import Trial
from cs330ray.ledger.trials.fronts import by_crowding, losses, pareto_front
from cs330ray.spec.study import Cell, Study


@dataclass(frozen=True)
class Standing:
    """How a cell stands: its trials, ranked by the search, and its candidates, of which one may be chosen."""

    study: Study
    goals: Sequence[str]
    cell: Cell
    trials: Sequence[Trial]  # all of the search, by number
    candidates: Sequence[Confirmed] = ()

    @cached_property
    def ranked(self) -> Sequence[Trial]:
        """The trials that may be ranked with one another, the best by the first objective first."""
        return sorted(rankable(self.trials), key=lambda trial: (self.loss(trial), trial.number))

    @cached_property
    def front(self) -> Sequence[Trial]:
        """The ranked trials that none dominates, in their order."""
        return pareto_front(self.ranked, self.goals)

    @property
    def placed(self) -> Sequence[Trial]:
        """The trials that have a place among the best, in order: all ranked or, of several objectives, the front."""
        return self.ranked if len(self.goals) == 1 else self.front

    @cached_property
    def chosen(self) -> Confirmed | None:
        """The confirmed choice, if there is one."""
        return confirm.choice(self.study, self.goals, self.candidates) if self.candidates else None

    @property
    def best(self) -> Trial | None:
        """The trial to use: the confirmed choice, else the best of the search; None before one is COMPLETE."""
        return self.chosen.searched if self.chosen is not None else self.best_of_search

    @property
    def best_of_search(self) -> Trial | None:
        """The best by the first objective, None before a trial is COMPLETE."""
        return self.ranked[0] if self.ranked else None

    @property
    def starred(self) -> Sequence[Trial]:
        """The trials that a star marks: the confirmed choice, else the best of the search, or its whole front."""
        if self.chosen is not None:
            return [self.chosen.searched]
        return self.front if len(self.goals) > 1 else self.ranked[:1]

    @property
    def ended(self) -> int:
        """How many trials have ended, of those that the budget has."""
        return len(finished(self.study, self.trials))

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.ended >= self.study.budget.trials and not confirm.runs_to_come(self.candidates)

    @property
    def of_fewer_steps(self) -> int:
        """How many COMPLETE trials are not ranked, since others have had more steps; those superseded do not count."""
        ranked = {trial.number for trial in self.ranked}
        complete = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.continued_as is None]
        return sum(trial.number not in ranked for trial in complete)

    def loss(self, trial: Trial) -> float:
        """Give the first objective of a trial as a loss: less is better."""
        return losses(trial.values or (), self.goals)[0]

    def confirmed(self, number: int) -> Confirmed | None:
        """Find a candidate whose fresh seeds are all COMPLETE; what is known of it, or None."""
        return next((one for one in self.candidates if one.searched.number == number and one.whole), None)

    def to_keep(self, most: int) -> set[int]:
        """Choose whose checkpoints stay: the best `most` that are COMPLETE, and all that have not ended for good.

        Of several objectives the front comes first, by crowding. Trials that wait for more steps stay, and those that
        a running one began at.
        """
        complete = [trial for trial in finished(self.study, self.trials) if trial.state == "COMPLETE" and trial.values]
        if len(self.goals) > 1:
            front = by_crowding(pareto_front(complete, self.goals), self.goals)
            complete = front + [trial for trial in complete if trial not in front]
        else:
            complete.sort(key=lambda trial: (losses(trial.values or (), self.goals), trial.number))
        running = [trial for trial in self.trials if trial.state == "RUNNING"]
        return {
            *(trial.number for trial in complete[:most]),
            *(trial.number for trial in to_continue(self.study, self.trials)),
            *(trial.number for trial in running),
            *(trial.continues for trial in running if trial.continues is not None),
        } & {trial.number for trial in self.trials}


def standings(ledger: Ledger, study: Study) -> list[Standing]:
    """Read how every cell of a study stands, in the order of the file."""
    goals, candidates = ledger.goals(study), confirm.confirmed(ledger, study)
    return [
        Standing(study, goals, cell, ledger.trials(study, cell), candidates.get(cell.key, [])) for cell in study.cells
    ]


# Between cells -----------------------------------------------------------------------------------------------------


def choices(cells: Sequence[Standing]) -> dict[str, Confirmed]:
    """Collect the confirmed choice of each cell that has one, by cell key."""
    return {cell.cell.key: cell.chosen for cell in cells if cell.chosen is not None}


def by_search(cells: Sequence[Standing]) -> list[Standing]:
    """Order the cells that have a ranked trial by their best: after the most steps first, then by its value."""
    ranked = [cell for cell in cells if cell.ranked]
    return sorted(ranked, key=lambda cell: (-cell.ranked[0].steps, cell.loss(cell.ranked[0])))


def comparable(cells: Sequence[Standing]) -> list[Standing]:
    """Leave the cells whose values in the search may be ranked with one another: those after the most steps."""
    most = max((cell.ranked[0].steps for cell in cells if cell.ranked), default=0)
    return [cell for cell in cells if cell.ranked and cell.ranked[0].steps == most]


def first_searched(cells: Sequence[Standing]) -> Standing | None:
    """Pick the cell whose search has the best value, of those after the most steps; None where none is COMPLETE."""
    return next(iter(by_search(cells)), None)


# By another metric -------------------------------------------------------------------------------------------------


def best_by(ledger: Ledger, cell: Standing, metric: str | None) -> Trial | None:
    """Find the best ranked trial of a cell by its first objective, or by any metric of its last row; None without one.

    Raises SpecError for a metric that trials do not report.
    """
    if metric is None:
        return cell.best_of_search
    known = ledger.metrics(cell.study, cell.cell.trainable)
    if metric not in known:
        raise SpecError(f"--by {metric}: one of {', '.join(known)} is needed, but got {metric!r}")
    goal = [known[metric].goal]
    by_number = sorted(cell.ranked, key=lambda trial: trial.number)
    return min(by_number, key=lambda trial: losses([_last(ledger, cell.study, trial, metric)], goal), default=None)


def _last(ledger: Ledger, study: Study, trial: Trial, metric: str) -> float:
    line = ledger.lineage(study, trial.cell, trial.number)
    rows = [row for each in line for row in ledger.rows(study, trial.cell, each) if metric in row.metrics]
    if not rows:
        raise SpecError(
            f"--by {metric}: a metric that trials report is needed, but trial {trial.number} has no such row"
        )
    return rows[-1].metrics[metric]
