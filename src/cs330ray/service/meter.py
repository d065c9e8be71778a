"""The meter: how long each trial has been under way, which the record keeps, and when that reaches the study's cap.

It goes by a clock that never jumps. A driver that is killed loses what came after the last note.
"""

import math
import time
from dataclasses import dataclass

from cs330ray.analysis.cost import forecast as foreseen
from cs330ray.ledger import confirm
from cs330ray.ledger.writer import Writer
from cs330ray.service.listener import Listener
from cs330ray.service.messages import Assignment
from cs330ray.spec.study import Study

RECORD_S = 5.0  # between two notes, and two readings, at least
REST = 100  # times as long as one took it rests at least: a hundredth of a core


@dataclass(frozen=True)
class _Attempt:
    """A trial under way: since when, by the monotonic clock, how many attempts it had before, and what it takes."""

    began_s: float
    before: int
    taken: float  # GPUs or CPUs, whichever the cap counts


class Meter:
    """Notes how long trials are under way, and says what may not run any more."""

    def __init__(self, ledger: Writer, study: Study, listener: Listener) -> None:
        self._ledger, self._study, self._listener = ledger, study, listener
        self._cells = {cell.key: cell for cell in [*study.cells, *confirm.fresh_cells(study)]}
        self._live: dict[tuple[str, int], _Attempt] = {}  # by key of the cell and number
        self._cap = study.budget.cap
        self._note_s = self._read_s = 0.0  # when the next note is due, and the next reading
        self._looked_s = math.inf
        self._spent_s = self._reserve_s = 0.0  # of what the cap counts: by now, and set aside for confirmation
        self.ends_search = False  # whether cap and what confirmation needs leave nothing; once so, so for this session
        self.ends_all = False  # whether the cap is spent
        self.said = ""  # what has been spent, and what is foreseen

    def started(self, trial: Assignment, among: int = 1) -> None:
        """Hear that a trial has a worker to itself, or is one `among` several that share it."""
        before = len(self._ledger.attempts(self._study, self._cells[trial.cell], trial.trial))
        taken = 0.0 if self._cap is None else trial.taken(among)[f"{self._cap.of}s"]
        self._live[trial.cell, trial.trial] = _Attempt(time.monotonic(), before, taken)

    def left(self, trial: Assignment) -> None:
        """Hear that a trial has left its worker, and note how long it had it."""
        key = (trial.cell, trial.trial)
        if key in self._live:
            self._note(key, self._live.pop(key))

    def look(self) -> None:
        """Count what has been spent since the last look; note and read, where that is due. Raises LedgerError."""
        now = time.monotonic()
        if self._cap is not None:
            self._spent_s += max(now - self._looked_s, 0.0) * sum(attempt.taken for attempt in self._live.values())
            self._end()
        self._looked_s = now
        if (began_s := time.monotonic()) >= self._note_s:
            self.record()
            self._note_s = began_s + max(RECORD_S, REST * (time.monotonic() - began_s))
        if time.monotonic() >= self._read_s:
            self.read()

    def record(self) -> None:
        """Note how long each trial under way has been so by now."""
        with self._ledger.at_once():
            for key, attempt in self._live.items():
                self._note(key, attempt)

    def read(self) -> None:
        """Read what all sessions have spent, say what is foreseen, and see what that ends."""
        began_s = time.monotonic()
        forecast = foreseen.forecast(self._ledger, self._study)
        self._spent_s, self._reserve_s = forecast.spent_s, forecast.reserve_s
        self._end()
        self.said = forecast.said
        self._listener.foresees(self.said)
        ended_s = time.monotonic()
        self._read_s = ended_s + max(RECORD_S, REST * (ended_s - began_s))

    def _end(self) -> None:
        """See what the cap has no room for."""
        if self._cap is not None:
            self.ends_search |= self._spent_s + self._reserve_s >= self._cap.seconds
            self.ends_all |= self._spent_s >= self._cap.seconds

    def _note(self, key: tuple[str, int], attempt: _Attempt) -> None:
        seconds = time.monotonic() - attempt.began_s
        self._ledger.write_under_way(self._study, self._cells[key[0]], key[1], seconds, since=attempt.before)
