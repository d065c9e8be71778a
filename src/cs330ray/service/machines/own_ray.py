"""A Ray of our own on this machine: it starts beside what its driver does meanwhile, and leaves with it."""

import contextlib
import ctypes
import logging
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psutil
import ray

from cs330ray.service.machines import ray_here
from cs330ray.service.machines.machine import Machine

OBJECT_STORE_BYTES = 128 * 1024**2  # results are small; nothing is put into the store
LOOKS_EVERY_S = 0.05  # whether it is up
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ACTION_BYTES = 1024  # more than any system's `struct sigaction`


class RayDied(Exception):  # noqa: N818 - not an error: another is started
    """The Ray that this process had started is gone."""


class OwnRay:
    """Starts Ray when it is entered, unless this process has one already, and ends the one that it started.

    A thread starts it. That thread stays: the kernel ends Ray's processes with the thread that began them.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._up, self._over = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.left: list[psutil.Process] = []  # what its raylet had started when it was ended: some of it may live on

    def __enter__(self) -> Self:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        if not ray.is_initialized():
            ray_here.hush()
            self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._up.wait()  # a Ray that is half up cannot be shut down
        _hear_signals()
        try:
            if self._failure is None:
                with contextlib.suppress(psutil.Error):
                    self.left = found.children(recursive=True) if (found := _raylet()) is not None else []
                ray.shutdown()
        finally:
            self._over.set()
            self._thread.join()

    def raylet(self, tick: Callable[[], None]) -> psutil.Process | None:
        """Wait until it is up; its raylet, without which no worker starts, or None where it is not our own.

        `tick` is called meanwhile. Raises what it raises, what Ray raised, or RayDied.
        """
        if self._thread is None:
            return None
        while not self._up.wait(LOOKS_EVERY_S):
            tick()
        _hear_signals()
        if self._failure is not None:
            raise self._failure
        if (found := _raylet()) is None:
            raise RayDied
        return found

    def _live(self) -> None:
        try:
            actions = {number: _action(number) for number in SIGNALS}
            ray.init(
                address="local",
                _temp_dir=ray_here.folder(),
                num_cpus=int(self._machine.cpus),
                num_gpus=int(self._machine.gpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=OBJECT_STORE_BYTES,
            )
            for number, action in actions.items():  # Ray takes SIGTERM for itself, and would abort on it
                ctypes.CDLL(None).sigaction(number, action, None)
        except BaseException as failure:  # noqa: BLE001 - raised where it is waited for
            self._failure = failure
        self._up.set()
        self._over.wait()


def _hear_signals() -> None:
    """Have the system do again what Python's handlers say, which may have changed while Ray started."""
    for number in SIGNALS:
        with contextlib.suppress(ValueError, TypeError):  # not the main thread, or a handler that is not Python's
            signal.signal(number, signal.getsignal(number))


def _action(number: signal.Signals) -> "ctypes.Array[ctypes.c_char]":
    """What this process does at a signal, as the system has it: Python's own word for it is the main thread's alone."""
    action = ctypes.create_string_buffer(ACTION_BYTES)
    ctypes.CDLL(None).sigaction(number, None, action)
    return action


def _raylet() -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return next((child for child in psutil.Process().children() if child.name() == "raylet"), None)
    return None
