"""What MLflow shows of a study at a glance: names of runs, marks, figures to sort by, and the description.

Pure functions of what the ledger holds, so that to say it again changes nothing.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cs330ray.service import confirm
from cs330ray.service.confirm import Confirmed, Run
from cs330ray.service.ledger import Trial
from cs330ray.spec import Cell, Study

STAR = "★"
TOP = 10  # that many trials of a cell say their rank, and that many rows has the description's table
NAME_LIMIT = 200  # MLflow's tables hold 250
NOTE_LIMIT = 7_500  # MLflow takes 8,000

UNMARKED = ("none", "no")  # what only a trial says that was marked before
Link = Callable[[Trial], str]  # the address of a trial's run, as seen from MLflow's own pages


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
        held = confirm.rankable(trials)
        front = held if len(goals) == 1 else confirm.pareto_front(held, goals)
        ranked = sorted(front, key=lambda trial: (confirm.losses(trial.values or (), goals)[0], trial.number))
        return cls(study, goals, cell, trials, found, ranked, confirm.choice(study, goals, found) if found else None)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        ended = len(confirm.finished(self.study, self.trials)) >= self.study.budget.trials
        return ended and not confirm.runs_to_come(self.found)

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
                tested = _tested(self.chosen.complete, name)
                said |= {f"confirmed_{on_test(name)}": statistics.fmean(tested)} if tested else {}
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
        best = ("search" if self.chosen is None else "confirmed") if starred else "no"
        front = {}
        if len(self.goals) > 1 and trial.state == "COMPLETE":
            front = {"front": str(trial.number in {one.number for one in self.ranked}).lower()}
        return {"rank": "none" if place is None else str(place), "best": best, **front}

    def title(self, *, star: bool) -> str:
        """The name of the cell's run: what is compared, and how well it did."""
        title = self.cell.title if self.cell.values else f"all {len(confirm.standing(self.trials))} trials"
        return _name(f"{STAR} " * star + title, *self._reached())

    def _reached(self) -> list[str]:
        if len(self.best) > 1:
            return [f"{len(self.best)} trials on the front"]
        if not self.best:
            return []
        return [f"{reached(self, self.best[0])} by trial {self.best[0].number}"]

    def name(self, trial: Trial) -> str:
        """The name of a trial's run: the star of the best, number, what it reached, parameters."""
        star = f"{STAR} " * (trial.number in {one.number for one in self.best})
        return _name(f"{star}trial {trial.number}", reached(self, trial), parameters(trial))


def means(study: Study, one: Confirmed) -> dict[str, str]:
    """A candidate's mean of each objective over its fresh seeds, as tags."""
    return {f"confirmed_{name}": repr(mean) for name, mean in zip(study.objective, one.means, strict=True)}


def fresh_name(study: Study, run: Run) -> str:
    """The name of a run of confirmation."""
    tested = [
        f"{_short(run.test[on_test(name)])} {on_test(name)}" for name in study.objective if on_test(name) in run.test
    ]
    return _name(
        f"fresh seed {run.trial.cell.fresh} of trial {run.trial.number}",
        ", ".join(filter(None, [_outcome(study, run.trial), *tested])),
    )


def reached(standing: Standing, trial: Trial) -> str:
    """What a trial came to: its mean over the fresh seeds, else its value in the search, or why it has none."""
    one = standing.confirmed(trial.number)
    if one is None:
        return _outcome(standing.study, trial)
    columns = zip(standing.study.objective, zip(*one.values, strict=True), strict=True)
    return ", ".join(f"{_mean(values)} {name}" for name, values in columns) + " confirmed"


def _outcome(study: Study, trial: Trial) -> str:
    values = ", ".join(
        f"{_short(value)} {name}" for name, value in zip(study.objective, trial.values or (), strict=bool(trial.values))
    )
    if trial.continued_as is not None:
        return f"continued as trial {trial.continued_as}"
    return {"COMPLETE": values, "PRUNED": f"pruned at {values}", "FAIL": "failed"}.get(trial.state, "")


def on_test(name: str) -> str:
    """The test metric beside a validation metric: `test_mse` for `val_mse`."""
    return f"test_{name.removeprefix('val_')}"


def parameters(trial: Trial) -> str:
    """A trial's parameters in words: `inner_lr=0.35 body=pooled`."""
    return " ".join(f"{name}={_short(value)}" for name, value in trial.params.items())


def _tested(runs: Sequence[Run], name: str) -> list[float]:
    return [run.test[on_test(name)] for run in runs if on_test(name) in run.test]


def _mean(values: Sequence[float]) -> str:
    """The mean over seeds with its 95 % interval, Student's t: `0.8402 ±0.043`; alone for one seed."""
    from scipy.special import stdtrit  # here: most passes of the mirror need none

    if len(values) < 2:
        return _short(statistics.fmean(values))
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{_short(statistics.fmean(values))} ±{half:.2g}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _name(*parts: str) -> str:
    name = " · ".join(filter(None, parts))
    return name if len(name) <= NAME_LIMIT else f"{name[: NAME_LIMIT - 1]}…"


# The study ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a study has come to by now, over all its cells."""

    study: Study
    cells: Sequence[Standing]

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return all(cell.over for cell in self.cells)

    @property
    def first(self) -> Standing | None:
        """The best cell: by the confirmed choices once all is over, else by the search."""
        chosen = [cell for cell in self.cells if cell.chosen is not None] if self.over else []
        if chosen:
            return min(chosen, key=lambda cell: confirm.losses(cell.chosen.means, cell.goals)[0])  # type: ignore[union-attr]
        ranked = [cell for cell in self.cells if cell.ranked]
        return min(ranked, key=lambda cell: confirm.losses(cell.ranked[0].values or (), cell.goals)[0], default=None)

    def figures(self) -> dict[str, float]:
        """What the study's run can be sorted by: those of its best cell, and the best of each objective in any."""
        if self.first is None:
            return {}
        said, all_said = self.first.figures(), [cell.figures() for cell in self.cells]
        for name, goal in zip(self.study.objective, self.first.goals, strict=True):
            values = [figures[f"best_{name}"] for figures in all_said if f"best_{name}" in figures]
            said[f"best_{name}"] = max(values) if goal == "max" else min(values)
        return said

    @property
    def title(self) -> str:
        """The name of the study's run: the answer first, since MLflow's tables cut names short."""
        if self.first is None:
            return self.study.name
        best = self.first.best[0]
        word = "Answer" if self.over and self.first.chosen else "Best" if self.over else "So far"
        cell = self.first.cell.title if self.first.cell.values else ""
        return _name(f"{word}: trial {best.number}, {self._reached(best)}", cell, self.study.name)

    @property
    def short(self) -> str:
        """The best in a few words, for the list of experiments."""
        return "" if self.first is None else f"trial {self.first.best[0].number}, {self._reached(self.first.best[0])}"

    def _reached(self, best: Trial) -> str:
        assert self.first is not None
        said = reached(self.first, best)
        if self.first.chosen is not None:
            tested = [(name, _tested(self.first.chosen.complete, name)) for name in self.study.objective]
            said += "".join(f", {_mean(values)} {on_test(name)}" for name, values in tested if values)
        return said

    def note(self, link: Link, report: str | None = None) -> str:
        """The description, as Markdown: the answer in two sentences, and the best trials with links to their runs."""
        if self.first is None:
            return f"No trial of {self.study.name} is COMPLETE yet."
        rows = self._rows(link)
        table = ["| " + " | ".join(row) + " |" for row in (self._columns, ["---"] * len(self._columns), *rows)]
        more = [f"[The report]({report})"] if report else []
        while len(text := "\n".join([*self._sentences(link), "", *table, "", *more])) > NOTE_LIMIT:
            table.pop()
        return text

    def _sentences(self, link: Link) -> list[str]:
        assert self.first is not None
        best, objective = self.first.best[0], self.study.objective[0]
        cell = f" of {self.first.cell.title}" if self.first.cell.values else ""
        at = f" at {parameters(best)}" if best.params else ""
        by = f", the best by {objective} of {len(self.first.best)} on the front" if len(self.first.best) > 1 else ""
        first = f"{self._reached(best)}: [trial {best.number}]({link(best)}){cell}{at}{by}."
        if not self.over:
            return [first, "The study is still at work: this is the best of its search so far."]
        if self.first.chosen is None:
            return [first, "It is the best of the search, on no fresh seeds: in part it was the luckiest."]
        lucky = self.first.ranked[0] if self.first.ranked else best
        promised = _short((lucky.values or ())[0])
        seeds = f"{self.first.chosen.seeds} fresh seed{'s' * (self.first.chosen.seeds > 1)}"
        second = f"It is chosen by the mean {objective} over {seeds}; "
        return [first, f"{second}the best of the search, trial {lucky.number}, had promised {promised}."]

    @property
    def _columns(self) -> list[str]:
        cell = ["cell"] if len(self.cells) > 1 else []
        confirmed = [f"{name}, fresh seeds" for name in self.study.objective] if self.study.confirm else []
        tested = [on_test(name) for name in self.study.objective] if self.study.confirm else []
        return [
            "trial",
            *cell,
            *(f"{name}, search" for name in self.study.objective),
            *confirmed,
            *tested,
            "parameters",
        ]

    def _rows(self, link: Link) -> list[list[str]]:
        """The best of each cell, then who is next: those confirmed before those that are not."""
        places = []
        for cell in self.cells:
            numbers = [trial.number for trial in cell.best]
            shown = [*cell.best, *(one.searched for one in cell.found), *cell.ranked[:TOP]]
            for trial in {trial.number: trial for trial in shown}.values():
                if trial.state == "COMPLETE" and trial.values:
                    one = cell.confirmed(trial.number)
                    worth = confirm.losses(one.means if one else trial.values, cell.goals)[0]
                    starred = trial.number in numbers
                    places.append(((not starred, one is None, worth), cell, trial))
        places.sort(key=lambda place: place[0])
        most = max(TOP, sum(len(cell.best) for cell in self.cells[:TOP]))
        return [self._row(cell, trial, link) for _, cell, trial in places[:most]]

    def _row(self, cell: Standing, trial: Trial, link: Link) -> list[str]:
        star = f"{STAR} " if trial.number in {one.number for one in cell.best} else ""
        one = cell.confirmed(trial.number)
        fresh, tested = [], []
        if self.study.confirm:
            fresh = [_mean(values) for values in zip(*one.values, strict=True)] if one else [""] * len(cell.goals)
            reached = [_tested(one.complete, name) if one else [] for name in self.study.objective]
            tested = [_mean(values) if values else "" for values in reached]
        return [
            f"{star}[trial {trial.number}]({link(trial)})", *([cell.cell.title] if len(self.cells) > 1 else []),
            *(_short(value) for value in trial.values or ()), *fresh, *tested, parameters(trial),
        ]  # fmt: skip
