"""Studies without Ray: trials take turns in this process, as many as there are slots; all else is the service's own.

For what a study asks, records, keeps and confirms. Tune, actors and what becomes of processes are for tests on Ray.
"""

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from cs330ray.checkpoints import store as stores
from cs330ray.service import run as service
from cs330ray.service import tune
from cs330ray.service.listener import Listener
from cs330ray.service.machines import own_ray
from cs330ray.service.machines.machine import Machine
from cs330ray.service.machines.setup import Ground
from cs330ray.service.messages import Assignment, as_config, as_result, assigned, news_of
from cs330ray.service.queue import Queue
from cs330ray.service.recorder import Recorder
from cs330ray.service.run import Outcome
from cs330ray.service.session import Session
from cs330ray.service.workers import memory
from cs330ray.service.workers.alone import Alone
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.spec.study import Study

CPUS = 2.0


def run(study: Study, home: Path, listener: Listener | None = None, *, mirror: bool = True) -> Outcome:
    """Run, resume or extend a study as the service does, without Ray."""
    with without_ray():
        return service.run(study, home, listener, mirror=mirror)


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Have the service run trials in this process, on a machine of two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "here", classmethod(lambda cls, without=(): cls(((CPUS, 0.0),))))
        patch.setattr(own_ray, "OwnRay", NoRay)
        patch.setattr(tune, "hand_over", in_turns)
        patch.setattr(Alone, "leave", lambda self: memory.leave())  # not a search of all that the tests have imported
        yield


class NoRay:
    """In the place of a Ray of our own: nothing is started, and nothing is left."""

    left = ()

    def __init__(self, machine: Machine) -> None:
        """Take what a Ray of our own takes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End nothing."""


class Turn:
    """A trial under way; what it is told and what it says are pickled, as they are for Ray."""

    def __init__(self, told: Assignment, store_url: str | None) -> None:
        assert not told.beside  # nobody trains together here
        self.told = assigned(carried(as_config(told)))
        self._run = TrialRun(self.told, store_url=store_url)
        self._messages = 0

    def plays(self, queue: Queue, recorder: Recorder) -> bool:
        """Train until there is news, and have it recorded; whether the trial goes on."""
        self._messages += 1
        news = news_of(carried(as_result(self._run.next_batch())))
        if news.start is not None:
            queue.began(self.told)
        name = f"{self.told.cell}-{self.told.trial}"
        return not recorder.take(name, self._messages, self.told, news) and news.end is None

    def leave(self) -> None:
        """End the training where it stands."""
        self._run.close()


def carried(message: dict[str, Any]) -> dict[str, Any]:
    return dict(pickle.loads(pickle.dumps(message)))


def in_turns(session: Session, ground: Ground, own: NoRay, recorder: Recorder, queue: Queue) -> bool:
    """Run what the queue names until all is over, in the place of Tune. Raises what stops the study."""
    queue.start_clock()
    store_url = stores.wanted() if ground.store else None
    live: list[Turn] = []
    try:
        while True:
            while len(live) < ground.slots and (told := queue.next()) is not None:
                live.append(Turn(told, store_url))
            if recorder.failure is not None:
                raise recorder.failure
            session.tick()
            if queue.is_over:
                return True
            for turn in [*live]:
                if not turn.plays(queue, recorder):
                    turn.leave()
                    live.remove(turn)
                    queue.left(turn.told)
    finally:
        for turn in live:
            turn.leave()
