"""The session: one call of `run`, from its first trial to its end or to a signal."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cs330ray.clock import wall_s
from cs330ray.ledger import confirm
from cs330ray.ledger.lease import WHOLE, Lease
from cs330ray.ledger.records import Ending, Row, Trial
from cs330ray.ledger.writer import Writer
from cs330ray.service.listener import Listener
from cs330ray.spec.study import Cell, Study

ASKED_EVERY_S = 1.0
STARTS_S = 30.0  # so long may the first trial take until its first news


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C, SIGTERM, SIGHUP or `cs330ray stop`; the ledger is consistent and the same command goes on."""


def leave_if(interrupted: Callable[[], bool]) -> None:
    """Raise Interrupted where a signal came."""
    if interrupted():
        raise Interrupted


class Session:
    """A listener that passes on what it hears, keeps time, and stops the loop when a signal came."""

    def __init__(
        self, ledger: Writer, study: Study, lease: Lease, listener: Listener, interrupted: Callable[[], bool]
    ) -> None:
        self.name = uuid.uuid4().hex
        self.ledger, self.study, self.lease, self.listener = ledger, study, lease, listener
        self.tends: Sequence[Callable[[], None]] = ()  # what is looked after as time passes
        self.stops: Callable[[], None] = lambda: None  # told that the study stops, before Ray ends
        self.is_interrupted = interrupted
        self._began_s = time.monotonic()
        self._seen_s = 0.0
        self._asked_s = 0.0  # when this driver last looked what it is asked
        self._given_up: list[tuple[str, int]] = []
        self.to_end: set[tuple[str, int]] = set()  # given up, with a worker: kept here since a Ray may die meanwhile
        self._searches = True
        self._first: float | None = None

    def start_s(self, began: float) -> float:
        """Seconds from `began` to the first sign of a trial."""
        return (self._first or time.monotonic()) - began

    @property
    def is_under_way(self) -> bool:
        """Whether a trial has shown itself, or ought to have: what is not needed for its start waits so long."""
        return self._first is not None or time.monotonic() - self._began_s > STARTS_S

    def tick(self) -> None:
        """Note the time now and then. Raises Interrupted after a signal, LedgerError where the lease is lost."""
        leave_if(self.is_interrupted)
        self.lease.check()
        if time.monotonic() - self._asked_s > ASKED_EVERY_S:
            self._asked_s = time.monotonic()
            self._hear_requests()
        if time.monotonic() - self._seen_s > 5:
            self._seen_s = time.monotonic()
            self.seen()
        for tend in self.tends:
            tend()
        self.ticked()

    def _hear_requests(self) -> None:
        """Take what `cs330ray stop` asks. Raises Interrupted where that is the whole study."""
        asked = self.lease.asked()
        if WHOLE in asked:
            self.says(f"{self.study.name}: `cs330ray stop` asks this run to end")
            raise Interrupted
        self._given_up += asked

    def given_up(self) -> list[tuple[str, int]]:
        """Take the trials that a person has given up since the last call: key of the cell, and number."""
        taken, self._given_up = self._given_up, []
        return taken

    def seen(self) -> None:
        """Count the time from the first trial until now as the search's; confirmation's is nobody's."""
        if self._searches and self._first is not None:
            self.ledger.seen(self.study, self.name, time.monotonic() - self._first)

    # The listener -------------------------------------------------------------------------------------------------

    def says(self, line: str) -> None:
        """Pass on a line."""
        self.listener.says(line)

    def had_ended(self, trials: Sequence[Trial]) -> None:
        """Pass on which trials ended in earlier sessions."""
        self.listener.had_ended(trials)

    def took_up(self, cell: Cell, number: int, params: Mapping[str, Any], resumed_from_step: int | None) -> None:
        """Note when the first trial began, and pass it on."""
        if self._first is None:  # its first rows may have taken a while
            ago_s = wall_s() - self.ledger.attempts(self.study, cell, number)[-1]["began_s"]
            self._first = time.monotonic() - min(max(ago_s, 0.0), time.monotonic() - self._began_s)
        self.listener.took_up(cell, number, params, resumed_from_step)

    def reached(self, cell: Cell, number: int, row: Row) -> None:
        """Pass on a row."""
        self.listener.reached(cell, number, row)

    def ended(
        self,
        cell: Cell,
        number: int,
        params: Mapping[str, Any],
        ending: Ending,
        values: tuple[float, ...] | None,
    ) -> None:
        """Pass on the end of a trial."""
        self.listener.ended(cell, number, params, ending, values)

    def lost(self, cell: Cell, number: int, times: int) -> None:
        """Pass on the loss of a worker."""
        self.listener.lost(cell, number, times)

    def confirms(self, runs: int, replicate: int) -> None:
        """Say what limits who is confirmed; of a single search, count no more time as the search's."""
        self.seen()
        self._searches = self.study.repeat.searches > 1
        self.listener.confirms(runs, replicate)
        for line in confirm.limits(self.ledger, self.study, replicate):
            self.says(line)

    def foresees(self, cost: str) -> None:
        """Pass on what the study has cost and will cost."""
        self.listener.foresees(cost)

    def ticked(self) -> None:
        """Pass on that time has passed."""
        self.listener.ticked()
