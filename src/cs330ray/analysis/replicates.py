"""The cells of a study over its replicates: which of these are whole, what each cell gave in them, and what to use.

The value of a cell in a replicate is that of its confirmed choice: the mean over its fresh seeds, on validation and on
test. Where nothing is searched and no split is named, there is one replicate, and its fresh seeds are the units.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cs330ray.analysis import standing
from cs330ray.analysis.standing import Standing
from cs330ray.analysis.variance import Component, Layout, Scored, Values, layout, of_items
from cs330ray.ledger.confirm import Confirmed, on_test
from cs330ray.ledger.ledger import Ledger
from cs330ray.spec.study import Study
from cs330ray.words import plural

Columns = Mapping[str, Sequence[float]]  # by the cell's title, a value a unit


def read(ledger: Ledger, study: Study, replicate: int | None = None) -> "Replicates":
    """Read how the cells of a study stand, in all replicates together or in one alone."""
    return Replicates(
        study, [one for one in standing.standings(ledger, study) if replicate in (None, one.cell.replicate)]
    )


@dataclass(frozen=True)
class Sources:
    """Where the results of the compared cells get their scatter from."""

    metric: str  # on test, or on validation where test has no such metric
    layout: Layout
    components: Sequence[Component]
    without_items: str  # why nothing is said of the items of the test; empty where something is


@dataclass(frozen=True)
class Replicates:
    """How the cells of a study stand, in several replicates together."""

    study: Study
    standings: Sequence[Standing]

    @cached_property
    def of(self) -> dict[str, list[Standing]]:
        """Each cell's standings by its title, a replicate each."""
        found: dict[str, list[Standing]] = {}
        for one in self.standings:
            found.setdefault(one.cell.title, []).append(one)
        return found

    @cached_property
    def whole(self) -> list[int]:
        """The replicates in which every cell has all its trials, and whose confirmation has ended."""
        return [
            number for number, cells in enumerate(zip(*self.of.values(), strict=True)) if all(one.over for one in cells)
        ]

    @cached_property
    def tests(self) -> bool:
        """Whether test has a metric for the first objective: a trainable without one says nothing on test."""
        metric = on_test(self.study.objective[0])
        return any(metric in run.test or run.untested for one in self._choices for run in one.runs)

    @cached_property
    def left_out(self) -> dict[str, str]:
        """The cells that cannot be compared, by title, each with why."""
        found = {}
        for title, held in self.of.items():
            chosen = [held[number].chosen for number in self.whole]
            without = sum(choice is None for choice in chosen)
            untested = sum(choice is not None and not self._is_tested(choice) for choice in chosen)
            if without:
                what = ("search", "searches") if self.study.searched else ("training", "trainings")
                found[title] = f"{without} of {plural(len(chosen), *what)} found nothing"
            elif untested:
                found[title] = f"{untested} of {plural(len(chosen), 'choice')} could not be tested"
        return found

    @cached_property
    def compared(self) -> list[str]:
        """The titles of the cells that can be compared, in the order of the file."""
        return [title for title in self.of if title not in self.left_out] if self.whole else []

    def validation(self, objective: int = 0) -> Columns:
        """Each compared cell's values on validation, one a unit."""
        if self.by_seed:
            return {title: _by_seed(choice, objective) for title, (choice,) in self._compared_choices.items()}
        return {
            title: [choice.means[objective] for choice in choices] for title, choices in self._compared_choices.items()
        }

    def test(self, objective: int = 0) -> Columns:
        """Each compared cell's values on test, one a unit; nothing where test has no such metric."""
        metric = on_test(self.study.objective[objective])
        by_unit = {
            title: [[run.test[metric] for run in choice.complete if metric in run.test] for choice in choices]
            for title, choices in self._compared_choices.items()
        }
        if not all(len(found) == self.seeds for units in by_unit.values() for found in units):
            return {}
        if self.by_seed:
            return {title: found for title, (found,) in by_unit.items()}
        return {title: list(map(statistics.fmean, units)) for title, units in by_unit.items()}

    def scores(self) -> Values:
        """Each compared cell's scores on test by replicate and seed; on validation where test has no such metric."""
        metric = on_test(self.study.objective[0])
        return {
            title: [
                [run.test[metric] for run in choice.complete] if self.tests else _by_seed(choice, 0)
                for choice in choices
            ]
            for title, choices in self._compared_choices.items()
        }

    def sources(self, ledger: Ledger) -> Sources | None:
        """Tell apart what replicates, seeds and items add to the scatter of the scores; None without two of either."""
        scores = self.scores()
        found = layout(scores) if scores else None
        if found is None or not found.components:
            return None
        metric = on_test(self.study.objective[0])
        if not self.tests:
            return Sources(self.study.objective[0], found, found.components, f"there is no {metric}")
        try:
            items = [of_items(self._scored(ledger, metric))]
        except ValueError as error:
            return Sources(metric, found, found.components, str(error))
        return Sources(metric, found, [*found.components, *items], "")

    def _scored(self, ledger: Ledger, metric: str) -> Scored:
        """The items behind the scores. Raises ValueError where a run has none, or the seeds scored others."""
        scored = {
            title: [
                [
                    ledger.test_items(self.study, run.trial.cell, run.trial.number).get(metric, [])
                    for run in choice.complete
                ]
                for choice in choices
            ]
            for title, choices in self._compared_choices.items()
        }
        runs = [run for replicates in scored.values() for replicate in replicates for run in replicate]
        if not all(runs):
            raise ValueError(f"{metric} was recorded without its items")
        return scored

    @property
    def seeds(self) -> int:
        """How many fresh seeds confirm a choice."""
        return self.study.confirm.seeds if self.study.confirm else 0

    @property
    def by_seed(self) -> bool:
        """Whether fresh seeds are the units, and not replicates: nothing is searched, and no split is named."""
        return self.study.unit == "seed"

    @cached_property
    def use(self) -> Standing | None:
        """The choice to use: of the cell with the best mean validation over the whole replicates; None without one."""
        candidates = self._compared_choices or {
            title: [one.chosen for one in held if one.chosen is not None] for title, held in self.of.items()
        }
        means = {
            title: statistics.fmean(choice.means[0] for choice in found) for title, found in candidates.items() if found
        }
        if not means:
            return None
        sign = -1 if self.standings[0].goals[0] == "max" else 1
        return self.used[min(means, key=lambda title: sign * means[title])]  # of equals the file's first

    @cached_property
    def used(self) -> dict[str, Standing]:
        """Of each cell the replicate whose choice is to be used, by title.

        It is the one with the best mean validation. Validation scores of different splits cannot be compared: there,
        it is the first that has a choice. Where none has one, it is replicate 0.
        """
        found = {}
        for title, held in self.of.items():
            chosen = [one for one in held if one.chosen is not None]
            whole = [one for one in chosen if one.cell.replicate in self.whole]
            chosen = whole or chosen or held[:1]
            split = self.study.repeat.split is not None
            found[title] = chosen[0] if split or chosen[0].chosen is None else min(chosen, key=_loss)
        return found

    @property
    def _choices(self) -> list[Confirmed]:
        return [one.chosen for one in self.standings if one.chosen is not None]

    @cached_property
    def _compared_choices(self) -> dict[str, list[Confirmed]]:
        """The choices of each compared cell in the whole replicates."""
        return {
            title: [choice for number in self.whole if (choice := self.of[title][number].chosen) is not None]
            for title in self.compared
        }

    def _is_tested(self, choice: Confirmed) -> bool:
        metric = on_test(self.study.objective[0])
        return not self.tests or sum(metric in run.test for run in choice.complete) == self.seeds


def _by_seed(choice: Confirmed, objective: int) -> list[float]:
    return [values[objective] for values in choice.values]


def _loss(cell: Standing) -> float:
    assert cell.chosen is not None
    mean = cell.chosen.means[0]
    return -mean if cell.goals[0] == "max" else mean
