"""A team without Ray: what its workers answer, and what they must agree on."""

import errno
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cs330ray.checkpoints import local
from cs330ray.errors import ContractError, Diverged, WorkerLost
from cs330ray.service.workers.team import Answer, Team, Worker
from tests import toy
from tests.assignments import assignment


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """A worker that has taken up a trial, with the signals of this process as they are when it has ended."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = os.environ.get("CUDA_VISIBLE_DEVICES")
    one = Worker(gpus=1)
    one._runs.take_up(assignment(tmp_path))
    yield one
    for number, handler in before.items():
        signal.signal(number, handler)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == held


class LocalError(Exception):
    """One that no other process can read."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.kept = lambda: one


def answered(worker: Worker, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Answer:
    def train(*_: Any) -> Iterator[Any]:
        raise error
        yield

    monkeypatch.setattr(toy, "train", train)
    worker.train(None, None, 0)
    return pickle.loads(pickle.dumps(worker.next()))


@pytest.mark.parametrize(
    ("error", "cause", "reason", "kind"),
    [
        (SystemExit("no data"), "raised", "raised: SystemExit: no data", "SystemExit"),
        (KeyboardInterrupt(), "raised", "raised: KeyboardInterrupt", "KeyboardInterrupt"),
        (Diverged("the sum is inf"), "diverged", "diverged: the sum is inf", "Diverged"),
        (MemoryError("9 GiB"), "memory", "out of memory: MemoryError: 9 GiB", "MemoryError"),
        (LocalError(1, 2), "raised", f"raised: {__name__}.LocalError: 1 and 2", "LocalError"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_whatever_is_raised_in_a_worker_is_answered_as_the_end_that_a_lone_process_gives(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, error: BaseException, cause: str, reason: str, kind: str
) -> None:
    answer = answered(worker, monkeypatch, error)
    assert (answer.error.ending.cause, answer.error.ending.reason, answer.kind) == (cause, reason, kind)
    assert "test_team.py" in answer.error.ending.traceback


def test_a_lost_partner_is_answered_as_such(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(answered(worker, monkeypatch, WorkerLost("silent")).error, WorkerLost)


def test_what_is_raised_in_a_worker_that_a_signal_told_to_end_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(number: int, frame: object) -> None:
        raise SystemExit(1)

    def train(*_: Any) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    before = signal.signal(signal.SIGTERM, handler)
    try:
        one = Worker(gpus=1)
        one._runs.take_up(assignment(tmp_path))
        monkeypatch.setattr(toy, "train", train)
        one.train(None, None, 0)
        with one.told, pytest.raises(SystemExit):
            one.next()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_worker_resumes_where_it_is_told_and_finds_out_a_trainable_that_does_not(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = next(toy.train(toy.Config(lr=0.5, eval_every_steps=5), 7, 20))
    begun = local.write(tmp_path, progress.step, progress.save)
    worker.train(str(begun.path), None, 5)
    assert worker.next().value[0] == 10
    train = toy.train
    monkeypatch.setattr(toy, "train", lambda config, seed, steps, resume: train(config, seed, steps))
    worker.train(str(begun.path), None, 5)
    assert worker.next().error.ending.reason.startswith("yielded step 5 after resuming from 5; ")


def test_a_disk_that_is_full_where_a_worker_saves_is_answered_as_the_disk_s_fault(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(toy, "_save", full)
    worker.train(None, None, 0)
    worker.next()
    answer = pickle.loads(pickle.dumps(worker.save(str(tmp_path))))
    assert isinstance(answer.error, local.DiskFault)
    assert str(answer.error) == "No space left on device"


class Said(Team):
    """A team of two whose workers have said what they say."""

    def __init__(self, *moments: list[Any]) -> None:
        super().__init__(2, 1.0, 0.0)
        self._said = list(moments)

    def _all(self, call: str, *_: Any) -> list[Any]:
        return self._said.pop(0) if call == "next" else [None, None]


def test_workers_that_yield_at_other_steps_than_one_another_are_one_line() -> None:
    team = Said([(1, {}), (1, {})], [(2, {}), None])
    rows = team.train(None, 0)
    assert next(rows).step == 1
    with pytest.raises(ContractError, match=r"^all workers must yield at the same steps, got 2, the end$"):
        next(rows)
