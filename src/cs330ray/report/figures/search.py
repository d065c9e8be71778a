"""A search as its figures need it: what may be ranked, what stands, where the axis of its objective ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from cs330ray.analysis.standing import by_search
from cs330ray.analysis.study import Snapshot
from cs330ray.ledger.records import Trial
from cs330ray.report.figures import marks
from cs330ray.report.figures.marks import MOST_CELLS, Cells, Window
from cs330ray.spec.study import Cell
from cs330ray.spec.tables import Domain
from cs330ray.trial.contract import Metric

MOST_DRAWN = 12_000  # trials of all figures together
LEAST_DRAWN = 200  # of each
WORTH_A_RING = 4  # trials of a cell
LONGEST_REASON = 40


@dataclass(frozen=True)
class Search:
    """A study's search."""

    opened: Snapshot

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells in the order of the file."""
        return self.opened.cells

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """What the metrics of all trainables mean; of a name that several have, the first one's."""
        study = self.opened.study
        known = [self.opened.ledger.metrics(study, trainable) for trainable in study.trainables()]
        return {name: metric for metrics in reversed(known) for name, metric in metrics.items()}

    @property
    def objective(self) -> str:
        """The first objective."""
        return self.opened.study.objective[0]

    @property
    def metric(self) -> Metric:
        """What the first objective means."""
        return self.metrics[self.objective]

    @cached_property
    def goals(self) -> list[str]:
        """Which way is better, for each objective."""
        return list(self.opened.goals.values())

    @cached_property
    def held(self) -> Mapping[str, Sequence[Trial]]:
        """The trials of each cell, by its title."""
        return {cell.cell.title: cell.trials for cell in self.opened.standings}

    @cached_property
    def ranked(self) -> Mapping[str, Sequence[Trial]]:
        """The trials of each cell that may be ranked with one another, the best first."""
        return {cell.cell.title: cell.ranked for cell in self.opened.standings}

    @cached_property
    def best(self) -> Mapping[str, Trial]:
        """The best trial of each cell that has one, by the cell's title; the best cell of the most steps first."""
        return {cell.cell.title: cell.ranked[0] for cell in by_search(self.opened.standings)}

    @cached_property
    def ringed(self) -> Mapping[str, Trial]:
        """The trials that figures mark: the best of each cell, or of all where rings would be most of what is drawn."""
        each = len(self.cells) <= MOST_CELLS and sum(map(len, self.ranked.values())) >= WORTH_A_RING * len(self.best)
        return self.best if each else dict(list(self.best.items())[:1])

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The trials that may be drawn together, with `best`: whether one is ringed.

        They are those that have been PRUNED or have failed, and of the COMPLETE ones those that may be ranked.
        """
        frame = self.opened.trials
        ranked = {(title, trial.number) for title, found in self.ranked.items() for trial in found}
        best = {(title, trial.number) for title, trial in self.ringed.items()}
        keys = list(zip(frame["cell"], frame["trial"], strict=True))
        shown = [key in ranked or state in ("PRUNED", "FAIL") for key, state in zip(keys, frame["state"], strict=True)]
        reasons = [str(reason)[:LONGEST_REASON] for reason in frame["reason"]]
        frame = frame.assign(
            best=pd.Series([key in best for key in keys], frame.index, dtype=bool),
            reason=pd.Series(reasons, frame.index, dtype=str),
        )
        return frame[pd.Series(shown, frame.index, dtype=bool)]

    @cached_property
    def of_fewer_steps(self) -> str:
        """How many COMPLETE trials have had fewer steps than others, in words."""
        fewer = sum(cell.of_fewer_steps for cell in self.opened.standings)
        return f" {fewer} of fewer steps {'are' if fewer > 1 else 'is'} left out." if fewer else ""

    @cached_property
    def window(self) -> Window:
        """The axis of the first objective in all figures of trials."""
        return marks.window(self.trials[self.objective].tolist(), self.metric)

    @cached_property
    def space(self) -> Mapping[str, Sequence[Domain]]:
        """The parameters that were searched, each with its domains in the cells."""
        found: dict[str, list[Domain]] = {}
        for cell in self.cells:
            for name, domain in cell.space.items():
                found.setdefault(name, []).append(domain)
        return found

    def columns(self, frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
        """Columns of a frame: the cell where there are several, the reason where trials failed."""
        cell = ["cell"] if len(self.cells) > 1 else []
        reason = ["reason"] if "state" in names and (frame["state"] == "FAIL").any() else []
        return frame[[*cell, *names, *reason]].copy()

    def cells_of(self, table: pd.DataFrame) -> Cells:
        """The cells that a table holds, in the order of the file."""
        titles = [cell.title for cell in self.cells]
        held = set(table["cell"]) if "cell" in table else set(titles)
        return Cells([title for title in titles if title in held], titles)

    def thinned(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
        """As many trials as a figure of a large study has room for, the best half of them; what to say of it."""
        most = max(LEAST_DRAWN, MOST_DRAWN // (len(self.space) + 2))
        if len(frame) <= most:
            return frame, ""
        ascending = self.metric.goal == "min"
        order = frame.sort_values(self.objective, ascending=ascending, kind="stable", na_position="last")
        top, rest = order.iloc[: most // 2], order.iloc[most // 2 :].sort_index()
        said = f" {most} of {len(frame)} trials are drawn: the best {len(top)}, and of the others evenly many."
        return pd.concat([top, evenly(rest, most - len(top))]).sort_index(), said


def evenly(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows of a frame, evenly chosen, the first and the last among them."""
    if len(frame) <= most:
        return frame
    return frame.iloc[[round(index * (len(frame) - 1) / (most - 1)) for index in range(most)]]
