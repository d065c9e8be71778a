"""Who hears what happens to a study: a console, for one."""

from collections.abc import Mapping, Sequence
from typing import Any

from cs330ray.ledger.records import Ending, Row, Trial
from cs330ray.spec.study import Cell


class Listener:
    """Hears what happens; this one keeps silent."""

    def says(self, line: str) -> None:
        """Hear a line that a person should read."""

    def had_ended(self, trials: Sequence[Trial]) -> None:
        """Hear which trials of the search ended in earlier sessions."""

    def took_up(self, cell: Cell, number: int, params: Mapping[str, Any], resumed_from_step: int | None) -> None:
        """Hear that a trial has begun, or goes on from a checkpoint."""

    def reached(self, cell: Cell, number: int, row: Row) -> None:
        """Hear of a row."""

    def ended(self, cell: Cell, number: int, ending: Ending, values: tuple[float, ...] | None) -> None:
        """Hear of the end of a trial."""

    def lost(self, cell: Cell, number: int, times: int) -> None:
        """Hear that a trial's worker was lost."""

    def confirms(self, runs: int) -> None:
        """Hear that the search is over, and how many runs of confirmation are still to come."""

    def ticked(self) -> None:
        """Hear that time has passed."""
