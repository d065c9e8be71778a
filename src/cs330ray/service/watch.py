"""The watch: ends trials from outside. One that is silent fails, one that a person gave up too, and one that the
study's time or cost has overtaken leaves its worker at a checkpoint, to be resumed when there is more.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import ray

from cs330ray.errors import LedgerError
from cs330ray.service.messages import Assignment, News, assigned
from cs330ray.service.queue import Queue
from cs330ray.service.recorder import Recorder
from cs330ray.spec.study import Study
from cs330ray.words import duration

GRACE_S = 60.0  # beyond the time between two checkpoints: so long may a trial take to stop when the budget is spent
STOP_S = 5.0  # so long may a trial take that a person gave up
STANDSTILL_S = 2.0  # between two looks at most, while nothing stops this process
REST = 100  # times as long as a look took the next one waits, since of a thousand trials it takes milliseconds
REST_S = 1.0  # but no longer
LEAVE_S = 3.0  # and so long all of them when the study stops; after it their workers are killed


@dataclass
class _Live:
    """A trial that Tune has."""

    trial: Any  # Tune's
    told: Assignment
    heard_s: float  # when its worker last said something
    started: bool = False  # whether its worker has left the trial before
    leaves_by_s: float | None = None  # when its worker is killed, if it has not left before
    ended: bool = False  # its worker ended, and that is no loss: it was killed from here, or never began with the trial
    again: bool = False  # and it is taken up again

    @property
    def worker(self) -> Any:
        """Its actor; None while it waits for room."""
        return self.trial.temporary_state.ray_actor


class Watch:
    """Looks after the trials that Tune has."""

    def __init__(self, study: Study, queue: Queue, recorder: Recorder) -> None:
        self._study, self._queue, self._recorder = study, queue, recorder
        self._live: dict[str, _Live] = {}  # by Tune's names
        self._looked_s = time.monotonic()
        self._look_s = 0.0  # when the next look is due

    def added(self, trial: Any) -> None:
        """Hear of a trial that Tune has taken; one that was given up before Ray died has little time."""
        live = self._live[trial.trial_id] = _Live(trial, assigned(trial.config), time.monotonic())
        if any(map(self._recorder.is_given_up, live.told.members)):
            live.leaves_by_s = time.monotonic() + STOP_S

    def started(self, trial: Any) -> None:
        """Hear that a trial has a worker to itself."""
        live = self._live[trial.trial_id]
        live.started, live.heard_s = True, time.monotonic()
        for each in live.told.members:
            self._queue.meter.started(each, len(live.told.members))

    def heard(self, trial: Any, news: News, *, ends: bool) -> bool:
        """Hear recorded news of a trial, with which it `ends` or not; whether it leaves its worker, to be resumed."""
        live = self._live[trial.trial_id]
        live.heard_s = time.monotonic()
        saved = any(each.checkpoint is not None for each in news.members)
        leaves = live.leaves_by_s is not None and saved and not ends and not news.saves  # those checkpoints come next
        if leaves:
            self._overtaken(live)
        return leaves

    def failed(self, trial: Any) -> None:
        """Hear that the worker of a trial failed: one that had not yet left another trial is no loss of this one."""
        live = self._live.get(trial.trial_id)
        if live is not None and not live.ended and live.worker is not None and not live.started:
            live.ended = live.again = True

    def has_ended(self, trial: Any) -> bool:
        """Whether the worker of a trial was ended from here."""
        live = self._live.get(trial.trial_id)
        return live is not None and live.ended

    def left(self, trial: Any) -> tuple[bool, bool]:
        """Hear that a trial has left its worker: whether that was ended from here, and the trial is taken up again."""
        live = self._live.pop(trial.trial_id, None)
        for each in live.told.members if live is not None else ():
            self._queue.meter.left(each)
        return (False, False) if live is None else (live.ended, live.again)

    def look(self) -> None:
        """End what has to end, where a look is due."""
        now, silence = time.monotonic(), self._study.resources.silence
        if now < self._look_s:
            return
        stood_still_s = max(now - self._looked_s - STANDSTILL_S, 0.0)  # so long this process could not hear
        self._looked_s = now
        for live in self._live.values():
            live.heard_s = now if live.worker is None else live.heard_s + stood_still_s
            if live.worker is None or live.ended:
                continue
            if live.leaves_by_s is None and self._queue.overtakes(self._recorder.cell(live.told)):
                live.leaves_by_s = now + self._study.resources.checkpoint + GRACE_S
            if live.leaves_by_s is not None and now > live.leaves_by_s:
                given_up = [each for each in live.told.members if self._recorder.end_given_up(each)]
                if not given_up:
                    self._overtaken(live)
                self._kill(live)
            elif silence is not None and now - live.heard_s > silence:
                live.again = self._silent(live, f"no row for {duration(silence)}")
                self._kill(live)
        self._look_s = now + min(REST * (time.monotonic() - now), REST_S)

    def give_up(self, cell_key: str, number: int) -> None:
        """End a trial, or the runs that confirm it, for good: with the next news, or where it stands."""
        running = [
            (live, each)
            for live in self._live.values()
            for each in live.told.members
            if each.trial == number and self._recorder.cell(each).searched.key == cell_key
        ]
        for live, each in running:
            self._recorder.give_up(each)
            live.leaves_by_s = time.monotonic() + STOP_S
        dropped = self._queue.drop(cell_key, number)
        self._recorder.end_waiting(cell_key, number, dropped, [each.cell for _, each in running])

    def let_go(self) -> None:
        """Have every trial leave its worker, which is killed where that takes too long: the study stops."""
        workers = [live.worker for live in self._live.values() if live.worker is not None and not live.ended]
        if workers:
            leaving = [worker.stop.remote() for worker in workers]
            ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_S)
        for worker in workers:
            ray.kill(worker)
        with contextlib.suppress(LedgerError):  # which may be why it stops, and is said by whoever stops it
            self._queue.meter.record()

    def _silent(self, live: _Live, how: str) -> bool:
        """Say of a trial that it is silent; whether it is taken up again. Of several together nobody knows which is."""
        if live.told.beside and live.started:
            self._recorder.parted(live.told, how)
            return False
        return not live.started or self._recorder.silent(live.told, how)

    def _overtaken(self, live: _Live) -> None:
        """Leave a trial as it stands, to be resumed when there is more to spend."""
        for each in live.told.members:
            self._recorder.overtaken(each, self._queue.runs_out())

    @staticmethod
    def _kill(live: _Live) -> None:
        live.ended = True
        ray.kill(live.worker)
