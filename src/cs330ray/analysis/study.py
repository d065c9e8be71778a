"""A study read for what it says, without drawing: its trials, rows and confirmation as frames, and who is best."""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import pandas as pd

from cs330ray.analysis import confirmed, frames, standing
from cs330ray.analysis.comparison import Comparison
from cs330ray.analysis.frames import Best
from cs330ray.analysis.standing import Standing
from cs330ray.ledger.confirm import Confirmed
from cs330ray.ledger.database import Access
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Row, Trial
from cs330ray.spec.study import Cell, Study


class LedgerOnce(Ledger):
    """A ledger read once: what was asked of a cell before is answered as it was then."""

    def __init__(self, url: str, home: Path | None = None, *, access: Access = "read") -> None:
        super().__init__(url, home, access=access)
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


class Snapshot:
    """A study as the ledger held it when each part was first asked for; it only reads.

    `trials`, `rows`, `confirmed` and `runs` are frames, `best` the configuration to use, `comparison` how sure the
    answer is.
    """

    def __init__(self, ledger: Ledger, study: Study) -> None:
        self.ledger = ledger
        self.study = study
        self.name = study.name

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
        return frames.confirmed(self.ledger, self.standings)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a run of confirmation: see `frames.runs`."""
        return frames.runs(self.standings)

    @cached_property
    def standings(self) -> list[Standing]:
        """How each cell stands, in the order of the file: who is best in it, ranked, on the front and chosen."""
        return standing.standings(self.ledger, self.study)

    @cached_property
    def candidates(self) -> dict[str, list[Confirmed]]:
        """The candidates of each cell with what is known of them, by cell key; see `service.confirm`."""
        return {cell.cell.key: list(cell.candidates) for cell in self.standings}

    @cached_property
    def choices(self) -> dict[str, Confirmed]:
        """The confirmed choice of each cell that has one, by cell key."""
        return standing.choices(self.standings)

    @cached_property
    def starts(self) -> pd.DataFrame:
        """A row a start of a trial or of a run of confirmation: see `frames.starts`."""
        return frames.starts(self.ledger, self.study)

    @cached_property
    def best(self) -> Best | None:
        """The configuration to use, by confirmation where it is over; None before a trial is COMPLETE."""
        return frames.best(self.ledger, self.standings)

    @cached_property
    def comparison(self) -> Comparison | None:
        """The confirmed choices of the cells, or the candidates of the one cell, compared; None below two."""
        return confirmed.compared(self.ledger, self.study)
