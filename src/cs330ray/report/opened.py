"""A study opened for reading: its trials, rows and confirmation as pandas frames, its best, its figures, its answer."""

import os
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cs330ray.errors import SpecError
from cs330ray.report import confirmation, frames
from cs330ray.report.frames import Best
from cs330ray.service import confirm
from cs330ray.service.confirm import Confirmed
from cs330ray.service.ledger import Ledger, Trial
from cs330ray.service.records import Row
from cs330ray.spec import Cell, Study

if TYPE_CHECKING:
    import altair as alt

    from cs330ray.report.comparison import Comparison
    from cs330ray.report.figures import Figure


class Snapshot(Ledger):
    """A ledger read once: what was asked of a cell before is answered as it was then."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.forget()

    def forget(self) -> None:
        """Forget what was read: what is asked from now on is read again."""
        self._held: dict[tuple[str, str], list[Trial]] = {}
        self._held_rows: dict[tuple[str, str], dict[int, list[Row]]] = {}

    def trials(self, study: Study, cell: Cell, some: Collection[int] | None = None) -> list[Trial]:
        """A cell's trials, as they were when they were first read."""
        if some is not None:
            return super().trials(study, cell, some)
        if (study.name, cell.key) not in self._held:
            self._held[study.name, cell.key] = super().trials(study, cell)
        return self._held[study.name, cell.key]

    def rows_by_trial(self, study: Study, cell: Cell) -> dict[int, list[Row]]:
        """The rows of all trials of a cell, as they were when they were first read."""
        if (study.name, cell.key) not in self._held_rows:
            self._held_rows[study.name, cell.key] = super().rows_by_trial(study, cell)
        return self._held_rows[study.name, cell.key]


class Opened:
    """A study as the ledger held it when each part was first asked for; it only reads.

    `trials`, `rows`, `confirmed` and `runs` are frames, `best` the configuration to use, `comparison` how sure the
    answer is, `answer` that in two sentences. `figure(name)` draws one of `figures`.
    """

    def __init__(self, ledger: Ledger, study: Study) -> None:
        self.ledger = ledger
        self.study = study
        self.name = study.name

    def __repr__(self) -> str:
        return f"<study {self.name}: {len(self.trials)} trials in {len(self.study.cells)} cells>"

    @cached_property
    def goals(self) -> dict[str, str]:
        """Each objective's goal, `max` or `min`."""
        return dict(zip(self.study.objective, self.ledger.goals(self.study), strict=True))

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a trial of the search: see `frames.trials`."""
        return frames.trials(self.ledger, self.study)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """A row a row of a trial of the search: see `frames.rows`."""
        return frames.rows(self.ledger, self.study)

    @cached_property
    def confirmed(self) -> pd.DataFrame:
        """A row a candidate and objective: see `frames.confirmed`."""
        return frames.confirmed(self.ledger, self.study)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a run of confirmation: see `frames.runs`."""
        return frames.runs(self.ledger, self.study)

    @cached_property
    def candidates(self) -> dict[str, list[Confirmed]]:
        """The candidates of each cell with what is known of them, by cell key; see `service.confirm`."""
        held = confirm.confirmed(self.ledger, self.study)
        return {cell.key: held.get(cell.key, []) for cell in self.study.cells}

    @cached_property
    def choices(self) -> dict[str, Confirmed]:
        """The confirmed choice of each cell that has one, by cell key."""
        return confirmation.choices(self.ledger, self.study)

    @cached_property
    def starts(self) -> pd.DataFrame:
        """A row a start of a trial or of a run of confirmation: see `frames.starts`."""
        return frames.starts(self.ledger, self.study)

    @cached_property
    def best(self) -> Best | None:
        """The configuration to use, by confirmation where it is over; None before a trial is COMPLETE."""
        return frames.best(self.ledger, self.study)

    @cached_property
    def comparison(self) -> "Comparison | None":
        """The confirmed choices of the cells, or the candidates of the one cell, compared; None below two."""
        from cs330ray.report.alternatives import compared

        return compared(self.ledger, self.study)

    @cached_property
    def answer(self) -> str:
        """What was found, and how sure that is, in two sentences."""
        from cs330ray.report.words import answer

        return answer(self)

    @cached_property
    def figures(self) -> "dict[str, Figure]":
        """All figures that this study has, by name."""
        from cs330ray.report.figures import figures

        return {figure.name: figure for figure in figures(self)}

    def figure(self, name: str) -> "alt.TopLevelMixin":
        """One figure, an Altair chart. Raises SpecError where the study has none of that name."""
        return self._figure(name).chart

    def table(self, name: str) -> pd.DataFrame:
        """The numbers of one figure. Raises SpecError where the study has none of that name."""
        return self._figure(name).table

    def _figure(self, name: str) -> "Figure":
        if name not in self.figures:
            raise SpecError(f"{self.name}: one of the figures {', '.join(self.figures)} is needed, but got {name!r}")
        return self.figures[name]


def snapshot(home: Path) -> Snapshot:
    """Open the ledger at `home` for reading. Raises SpecError where there is none; makes nothing."""
    if not (home / "ledger.db").exists() and not os.environ.get("CS330RAY_LEDGER"):
        raise SpecError(f"{home}: a ledger is needed, but there is none; run a study, or set CS330RAY_HOME")
    return Snapshot.at(home)


def opened(name: str, home: Path) -> Opened:
    """Open the study `name` of the ledger at `home`. Raises SpecError where there is none; makes nothing."""
    ledger = snapshot(home)
    return Opened(ledger, ledger.study(name))
