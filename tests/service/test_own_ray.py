"""A Ray that starts beside its driver, here one that is made up: tests/service/test_run.py starts real ones."""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray

from cs330ray.service.machines import own_ray
from cs330ray.service.machines.machine import Machine
from cs330ray.service.machines.own_ray import OwnRay, RayDied
from cs330ray.service.session import Interrupted

MACHINE = Machine(((2.0, 0.0),))


class Made:
    """What stands for Ray: when it is up, and what it was asked."""

    def __init__(self) -> None:
        self.may_be_up, self.asked, self.ended = threading.Event(), [], 0
        self.by: threading.Thread | None = None

    def init(self, **given: object) -> None:
        self.asked.append(given)
        self.by = threading.current_thread()
        assert self.may_be_up.wait(20)

    def shutdown(self) -> None:
        assert self.by is not None
        assert self.by.is_alive()  # or its processes would be gone, before what they leave is known
        self.ended += 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    found = Made()
    monkeypatch.setattr(ray, "init", found.init)
    monkeypatch.setattr(ray, "shutdown", found.shutdown)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(own_ray, "_raylet", psutil.Process)
    return found


def test_it_starts_while_its_driver_does_something_else_and_its_thread_lives_as_long(made: Made) -> None:
    with OwnRay(MACHINE) as own:
        threading.Timer(0.2, made.may_be_up.set).start()
        ticks: list[float] = []
        assert own.raylet(lambda: ticks.append(time.monotonic())) == psutil.Process()
        assert ticks  # a signal is heard meanwhile
        assert made.by is not None
        assert made.by.is_alive()
        assert made.by is not threading.current_thread()
    assert not made.by.is_alive()
    assert made.ended == 1
    (asked,) = made.asked
    assert (asked["num_cpus"], asked["num_gpus"], asked["address"]) == (2, 0, "local")


def test_a_signal_stays_its_drivers_though_ray_takes_it_for_itself(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        monkeypatch.setattr(ray, "init", lambda **_: ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1)))
        with OwnRay(MACHINE) as own:
            own.raylet(lambda: None)
            os.kill(os.getpid(), signal.SIGTERM)  # which is ignored, had the system kept what Ray told it
            time.sleep(0)
            assert heard == [signal.SIGTERM]
            made.by = threading.current_thread()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_signal_ends_the_process_though_ray_was_starting_at_the_first(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one has given the signal back to the system, as `run` does; that is what counts."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with OwnRay(MACHINE) as own:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            made.may_be_up.set()
            own.raylet(lambda: None)
            os.kill(os.getpid(), signal.SIGTERM)
            assert ignored_by_the_system(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def ignored_by_the_system(number: int) -> bool:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigIgn:")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_a_raylet_that_died_at_once_is_a_ray_that_died(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_ray, "_raylet", lambda: None)
    made.may_be_up.set()
    with pytest.raises(RayDied), OwnRay(MACHINE) as own:
        own.raylet(lambda: None)
    assert made.ended == 1


def test_one_that_is_left_before_it_is_up_is_ended_once_it_is(made: Made) -> None:
    def interrupted() -> None:
        threading.Timer(0.2, made.may_be_up.set).start()
        raise Interrupted

    with pytest.raises(Interrupted), OwnRay(MACHINE) as own:
        own.raylet(interrupted)
    assert made.ended == 1
    assert made.by is not None
    assert not made.by.is_alive()


def test_what_ray_raised_is_raised_where_it_is_waited_for(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**given: object) -> None:
        raise ConnectionError("no port is free")

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(ConnectionError, match="no port is free"), OwnRay(MACHINE) as own:
        own.raylet(lambda: None)
    assert made.ended == 0


def test_a_ray_that_is_there_already_is_left_as_it_is(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with OwnRay(MACHINE) as own:
        assert own.raylet(lambda: None) is None
        assert own.left == []
    assert (made.asked, made.ended) == ([], 0)
