"""A ledger that is read once."""

from collections.abc import Collection
from pathlib import Path

from cs330ray.ledger.database import Access
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Row, Trial
from cs330ray.ledger.trials.held import Held
from cs330ray.spec.study import Cell, Study


class LedgerOnce(Ledger):
    """A ledger read once: what was asked of a cell before is answered as it was then."""

    def __init__(self, url: str, home: Path | None = None, *, access: Access = "read") -> None:
        super().__init__(url, home, access=access)
        self.forget()

    def forget(self) -> None:
        """Forget what was read: what is asked from now on is read again."""
        self._read_once: dict[tuple[str, str], Held] = {}
        self._all: dict[tuple[str, str], list[Trial]] = {}
        self._rows: dict[tuple[str, str], dict[int, list[Row]]] = {}

    def held(self, study: Study, cell: Cell) -> Held:
        """The trials of a cell as Optuna holds them, as they were when they were first read."""
        key = (study.name, cell.key)
        if key not in self._read_once:
            self._read_once[key] = super().held(study, cell)
        return self._read_once[key]

    def trials(self, study: Study, cell: Cell, some: Collection[int] | None = None) -> list[Trial]:
        """A cell's trials, as they were when they were first read."""
        key = (study.name, cell.key)
        if some is not None:
            return super().trials(study, cell, some)
        if key not in self._all:
            self._all[key] = super().trials(study, cell)
        return self._all[key]

    def rows_by_trial(self, study: Study, cell: Cell) -> dict[int, list[Row]]:
        """The rows of all trials of a cell, as they were when they were first read."""
        key = (study.name, cell.key)
        if key not in self._rows:
            self._rows[key] = super().rows_by_trial(study, cell)
        return self._rows[key]
