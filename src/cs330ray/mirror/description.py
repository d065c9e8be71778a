"""What MLflow shows of a study at a glance: the name of its run, figures to sort by, and the description.

Pure functions of what the ledger holds, so that to say it again changes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cs330ray.analysis.replicates import Replicates
from cs330ray.analysis.standing import Standing, comparable, first_searched
from cs330ray.ledger import confirm
from cs330ray.ledger.confirm import on_test
from cs330ray.ledger.records import Trial
from cs330ray.ledger.trials.fronts import losses
from cs330ray.mirror.captions import STAR, TOP, caption, figures, mean, reached, test_values
from cs330ray.spec.study import Study
from cs330ray.words import params, plural, shown

NOTE_LIMIT = 7_500  # MLflow takes 8,000

Link = Callable[[Trial], str]  # the address of a trial's run, as seen from MLflow's own pages


@dataclass(frozen=True)
class Answer:
    """What a study has come to by now, over all its cells."""

    study: Study
    cells: Sequence[Standing]
    claim: str = ""  # what is said of the cells, where there are several and all is over

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return all(cell.over for cell in self.cells)

    @property
    def confirmed(self) -> bool:
        """Whether the candidates of all cells have had their runs: a search that a limit of time ended is not over."""
        return not any(confirm.runs_to_come(cell.candidates) for cell in self.cells)

    @property
    def first(self) -> Standing | None:
        """The best cell: by the confirmed choices once no candidate waits for its runs, else by the search."""
        return (Replicates(self.study, self.cells).use if self.confirmed else None) or first_searched(self.cells)

    def figures(self) -> dict[str, float]:
        """What the study's run can be sorted by: those of its best cell, and the best of each objective in any."""
        if self.first is None:
            return {}
        said, all_said = figures(self.first), [figures(cell) for cell in comparable(self.cells)]
        for name, goal in zip(self.study.objective, self.first.goals, strict=True):
            values = [one[f"best_{name}"] for one in all_said if f"best_{name}" in one]
            said[f"best_{name}"] = max(values) if goal == "max" else min(values)
        return said

    @property
    def title(self) -> str:
        """The name of the study's run: the answer first, since MLflow's tables cut names short."""
        if self.first is None:
            return self.study.name
        best = self.first.starred[0]
        answered = self.first.chosen and (self.over if self.study.repeat.searches > 1 else self.confirmed)
        word = "Answer" if answered else "Best" if self.over else "So far"
        cell = self.first.cell.label if self.first.cell.values or self.first.cell.replicate else ""
        return caption(f"{word}: trial {best.number}, {self._reached(best)}", cell, self.study.name)

    @property
    def short(self) -> str:
        """The best in a few words, for the list of experiments."""
        return (
            ""
            if self.first is None
            else f"trial {self.first.starred[0].number}, {self._reached(self.first.starred[0])}"
        )

    def _reached(self, best: Trial) -> str:
        assert self.first is not None
        said = reached(self.first, best)
        if self.first.chosen is not None:
            tested = [(name, test_values(self.first.chosen.complete, name)) for name in self.study.objective]
            said += "".join(f", {mean(values)} {on_test(name)}" for name, values in tested if values)
        return said

    def note(self, link: Link, report: str | None = None) -> str:
        """The description, as Markdown: the answer, and the best trials with links to their runs."""
        if self.first is None:
            return f"No trial of {self.study.name} is COMPLETE."
        rows = self._rows(link)
        table = ["| " + " | ".join(row) + " |" for row in (self._columns, ["---"] * len(self._columns), *rows)]
        more = [f"[The report]({report})"] if report else []
        while len(text := "\n".join([*self._sentences(link), "", *table, "", *more])) > NOTE_LIMIT and table:
            table.pop()
        return text[:NOTE_LIMIT]

    def _sentences(self, link: Link) -> list[str]:
        assert self.first is not None
        starred, objective = self.first.starred, self.study.objective[0]
        best = starred[0]
        cell = f" of {self.first.cell.label}" if self.first.cell.values or self.first.cell.replicate else ""
        at = f" at {params(best.params)}" if best.params else ""
        by = (
            f", the best by {objective} of {len(self.first.starred)} on the front"
            if len(self.first.starred) > 1
            else ""
        )
        if self.claim:
            return [f"The configuration to use is [trial {best.number}]({link(best)}){cell}{at}.", self.claim]
        first = f"{self._reached(best)}: [trial {best.number}]({link(best)}){cell}{at}{by}."
        if self.first.chosen is None and not self.over:
            return [first, self._unfinished]
        if self.first.chosen is None:
            why = f"no trial is the confirmed choice, see `cs330ray show {self.study.name}`"
            why = why if self.study.confirm else "on no fresh seeds, it was in part the luckiest"
            return [first, f"It is the best of the search; {why}."]
        lucky = self.first.placed[0] if self.first.placed else best
        promised = shown((lucky.values or ())[0])
        seeds = plural(self.first.chosen.seeds, "fresh seed")
        second = f"It is chosen by the mean {objective} over {seeds}; "
        second = f"{second}the best of the search, trial {lucky.number}, had promised {promised}."
        return [first, second if self.over else f"{second} {self._unfinished}"]

    @property
    def _unfinished(self) -> str:
        """What is not over; whether anything is still at work on it is not known here."""
        trials = self.study.budget.trials
        ended = sum(min(cell.ended, trials) for cell in self.cells)
        if ended < (of := trials * len(self.cells)):
            return f"The search is not over: {ended} of {of} trials have ended."
        waiting = sum(confirm.runs_to_come(cell.candidates) for cell in self.cells)
        return f"The confirmation is not over: {waiting} of its runs have not ended."

    @property
    def _columns(self) -> list[str]:
        names, cell = self.study.objective, ["cell"] if len(self.cells) > 1 else []
        fresh = [*(f"{name}, fresh seeds" for name in names), *map(on_test, names)] if self.study.confirm else []
        return ["trial", *cell, *(f"{name}, search" for name in names), *fresh, "parameters"]

    def _rows(self, link: Link) -> list[list[str]]:
        """The best of each cell, then who is next: those confirmed before those that are not."""
        places = []
        for cell in self.cells:
            numbers = [trial.number for trial in cell.starred]
            shown = [*cell.starred, *(one.searched for one in cell.candidates), *cell.placed[:TOP]]
            for trial in {trial.number: trial for trial in shown}.values():
                if trial.state == "COMPLETE" and trial.values:
                    one = cell.confirmed(trial.number)
                    worth = losses(one.means if one else trial.values, cell.goals)[0]
                    starred = trial.number in numbers
                    places.append(((not starred, one is None, worth), cell, trial))
        places.sort(key=lambda place: place[0])
        return [self._row(cell, trial, link) for _, cell, trial in places[: max(TOP, len(self.cells))]]

    def _row(self, cell: Standing, trial: Trial, link: Link) -> list[str]:
        star = f"{STAR} " if trial.number in {one.number for one in cell.starred} else ""
        one = cell.confirmed(trial.number)
        fresh, tested = [], []
        if self.study.confirm:
            fresh = [mean(values) for values in zip(*one.values, strict=True)] if one else [""] * len(cell.goals)
            on_fresh = [test_values(one.complete, name) if one else [] for name in self.study.objective]
            tested = [mean(values) if values else "" for values in on_fresh]
        return [
            f"{star}[trial {trial.number}]({link(trial)})", *([cell.cell.label] if len(self.cells) > 1 else []),
            *(shown(value) for value in trial.values or ()), *fresh, *tested, params(trial.params),
        ]  # fmt: skip
