"""Who hears what happens to a study: a console, for one."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cs330ray.ledger.records import Ending, Row, Trial
from cs330ray.spec.study import Cell


class Listener(Protocol):
    """Hears what happens to a study."""

    def says(self, line: str) -> None:
        """Hear a line that a person should read."""

    def had_ended(self, trials: Sequence[Trial]) -> None:
        """Hear which trials of the search ended in earlier sessions."""

    def took_up(self, cell: Cell, number: int, params: Mapping[str, Any], resumed_from_step: int | None) -> None:
        """Hear that a trial has begun, or goes on from a checkpoint."""

    def reached(self, cell: Cell, number: int, row: Row) -> None:
        """Hear of a row."""

    def ended(
        self,
        cell: Cell,
        number: int,
        params: Mapping[str, Any],
        ending: Ending,
        values: tuple[float, ...] | None,
    ) -> None:
        """Hear of the end of a trial, with what was searched of its parameters."""

    def lost(self, cell: Cell, number: int, times: int) -> None:
        """Hear that a trial's worker was lost, and that the trial is taken up again."""

    def confirms(self, runs: int, replicate: int) -> None:
        """Hear that the search is over, and how many runs of confirmation are still to come."""

    def foresees(self, cost: str) -> None:
        """Hear what the study has cost, and what it will cost by what its trials took."""

    def ticked(self) -> None:
        """Hear that time has passed."""


class Silent:
    """Hears what happens, and keeps silent."""

    def says(self, line: str) -> None:
        """Do nothing."""

    def had_ended(self, trials: Sequence[Trial]) -> None:
        """Do nothing."""

    def took_up(self, cell: Cell, number: int, params: Mapping[str, Any], resumed_from_step: int | None) -> None:
        """Do nothing."""

    def reached(self, cell: Cell, number: int, row: Row) -> None:
        """Do nothing."""

    def ended(
        self,
        cell: Cell,
        number: int,
        params: Mapping[str, Any],
        ending: Ending,
        values: tuple[float, ...] | None,
    ) -> None:
        """Do nothing."""

    def lost(self, cell: Cell, number: int, times: int) -> None:
        """Do nothing."""

    def confirms(self, runs: int, replicate: int) -> None:
        """Do nothing."""

    def foresees(self, cost: str) -> None:
        """Do nothing."""

    def ticked(self) -> None:
        """Do nothing."""
