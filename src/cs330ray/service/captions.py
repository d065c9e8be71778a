"""What MLflow shows of cells and trials at a glance: names of runs, marks, and figures to sort by.

Pure functions of what the ledger holds, so that to say it again changes nothing.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cs330ray.report.statistics import over_seeds, with_interval
from cs330ray.service import confirm
from cs330ray.service.confirm import Confirmed, Run
from cs330ray.service.fronts import losses, pareto_front
from cs330ray.service.lines import finished, rankable
from cs330ray.service.records import Trial
from cs330ray.spec import Cell, Study
from cs330ray.words import params, shown

STAR = "★"
TOP = 10  # that many trials of a cell say their rank, and that many rows has the description's table
NAME_LIMIT = 200  # MLflow's tables hold 250

UNMARKED = "none"  # what a trial says of itself only where it was marked before


@dataclass(frozen=True)
class Standing:
    """How a cell stands: its trials, the best first where they can be ranked, and who is chosen."""

    study: Study
    goals: Sequence[str]
    cell: Cell
    trials: Sequence[Trial]
    found: Sequence[Confirmed]
    ranked: Sequence[Trial]  # the COMPLETE trials by their value; of several objectives the front, by its first
    chosen: Confirmed | None

    @classmethod
    def of(
        cls, study: Study, goals: Sequence[str], cell: Cell, trials: Sequence[Trial], found: Sequence[Confirmed]
    ) -> "Standing":
        """The standing of a cell by what the ledger holds of it."""
        held = rankable(trials)
        front = held if len(goals) == 1 else pareto_front(held, goals)
        ranked = sorted(front, key=lambda trial: (losses(trial.values or (), goals)[0], trial.number))
        return cls(study, goals, cell, trials, found, ranked, confirm.choice(study, goals, found) if found else None)

    @property
    def ended(self) -> int:
        """How many trials have ended of those that the budget has."""
        return len(finished(self.study, self.trials))

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.ended >= self.study.budget.trials and not confirm.runs_to_come(self.found)

    @property
    def best(self) -> Sequence[Trial]:
        """Whom the star marks: the confirmed choice, else the best of the search, or its front."""
        if self.chosen is not None:
            return [self.chosen.searched]
        return self.ranked if len(self.goals) > 1 else self.ranked[:1]

    def confirmed(self, number: int) -> Confirmed | None:
        """What is known of a candidate whose fresh seeds are all COMPLETE."""
        return next((one for one in self.found if one.searched.number == number and one.whole), None)

    def figures(self) -> dict[str, float]:
        """What the cell's run can be sorted by: the best of each objective, and what confirmation gave."""
        said = {}
        for index, (name, goal) in enumerate(zip(self.study.objective, self.goals, strict=True)):
            values = [(trial.values or ())[index] for trial in self.ranked]
            if values:
                said[f"best_{name}"] = max(values) if goal == "max" else min(values)
            if self.chosen is not None:
                said[f"confirmed_{name}"] = self.chosen.means[index]
                values = test_values(self.chosen.complete, name)
                said |= {f"confirmed_{on_test(name)}": statistics.fmean(values)} if values else {}
        return said

    def best_tags(self) -> dict[str, str]:
        """What the cell's run says of its best trial, and of the choice: "none" where there is none any more."""
        said = {}
        if len(self.goals) == 1 and self.ranked:
            best = self.ranked[0]
            said = {"best_trial": str(best.number), f"best_{self.study.objective[0]}": repr((best.values or ())[0])}
        if self.chosen is not None:
            said |= {"confirmed_trial": str(self.chosen.searched.number)} | means(self.study, self.chosen)
        elif self.found:
            said |= dict.fromkeys(["confirmed_trial", *(f"confirmed_{name}" for name in self.study.objective)], "none")
        return said

    def marks(self, trial: Trial) -> dict[str, str]:
        """A trial's rank among the first of its cell, and whether it is its best; of several objectives, the front."""
        place = next((place for place, one in enumerate(self.ranked[:TOP], 1) if one.number == trial.number), None)
        starred = trial.number in {one.number for one in self.best}
        best = ("search" if self.chosen is None else "confirmed") if starred else UNMARKED
        front = {}
        if len(self.goals) > 1 and trial.state == "COMPLETE":
            front = {"front": str(trial.number in {one.number for one in self.ranked}).lower()}
        return {"rank": UNMARKED if place is None else str(place), "best": best, **front}

    def title(self, *, star: bool) -> str:
        """The name of the cell's run: what is compared, and how well it did."""
        title = self.cell.title if self.cell.values else "all trials"
        return caption(f"{STAR} " * star + title, *self._reached())

    def _reached(self) -> list[str]:
        if len(self.best) > 1:
            return [f"{len(self.best)} trials on the front"]
        if not self.best:
            return []
        return [f"{reached(self, self.best[0])} by trial {self.best[0].number}"]

    def name(self, trial: Trial) -> str:
        """The name of a trial's run: the star of the best, number, what it reached, parameters."""
        star = f"{STAR} " * (trial.number in {one.number for one in self.best})
        return caption(f"{star}trial {trial.number}", reached(self, trial), params(trial.params))


def means(study: Study, one: Confirmed) -> dict[str, str]:
    """A candidate's mean of each objective over its fresh seeds, as tags."""
    return {f"confirmed_{name}": repr(value) for name, value in zip(study.objective, one.means, strict=True)}


def fresh_name(study: Study, run: Run) -> str:
    """The name of a run of confirmation."""
    tested = [
        f"{shown(run.test[on_test(name)])} {on_test(name)}" for name in study.objective if on_test(name) in run.test
    ]
    return caption(
        f"fresh seed {run.trial.cell.fresh} of trial {run.trial.number}",
        ", ".join(filter(None, [_outcome(study, run.trial), *tested])),
    )


def reached(standing: Standing, trial: Trial) -> str:
    """What a trial came to: its mean over the fresh seeds, else its value in the search, or why it has none."""
    one = standing.confirmed(trial.number)
    if one is None:
        return _outcome(standing.study, trial)
    columns = zip(standing.study.objective, zip(*one.values, strict=True), strict=True)
    return ", ".join(f"{mean(values)} {name}" for name, values in columns) + " confirmed"


def _outcome(study: Study, trial: Trial) -> str:
    held = zip(study.objective, trial.values, strict=True) if trial.values else ()
    values = ", ".join(f"{shown(value)} {name}" for name, value in held)
    going_on = "" if trial.continued_as is None else f" (continued as trial {trial.continued_as})"
    words = {"COMPLETE": values, "PRUNED": f"pruned at {values}" if values else "pruned", "FAIL": "failed"}
    return words.get(trial.state, "") + going_on


def on_test(name: str) -> str:
    """The test metric beside a validation metric: `test_mse` for `val_mse`."""
    return f"test_{name.removeprefix('val_')}"


def test_values(runs: Sequence[Run], name: str) -> list[float]:
    """What runs of confirmation reached on test, beside an objective; without those whose test failed."""
    return [run.test[on_test(name)] for run in runs if on_test(name) in run.test]


def mean(values: Sequence[float]) -> str:
    """The mean over seeds with its 95 % interval, Student's t: `0.8402 ±0.043`; alone for one seed."""
    return with_interval(over_seeds(values))


def caption(*parts: str) -> str:
    """Parts of a run's name as one, cut where MLflow's tables end."""
    name = " · ".join(filter(None, parts))
    return name if len(name) <= NAME_LIMIT else f"{name[: NAME_LIMIT - 1]}…"
