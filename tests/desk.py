"""A study of the toy on a desk: its queue and its recorder, driven without Ray."""

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from cs330ray.ledger.records import Row
from cs330ray.ledger.writer import Writer
from cs330ray.service.listener import Silent
from cs330ray.service.messages import Assignment, Circumstances, News, Start
from cs330ray.service.queue import Queue
from cs330ray.service.recorder import Recorder
from cs330ray.spec.study import Study
from cs330ray.trial.starts import starts
from tests import toy as toy_trainable
from tests.assignments import terms


class Ear(Silent):
    """Keeps what it is told of confirmation, and the lines for people."""

    def __init__(self) -> None:
        self.confirmations: list[int] = []
        self.said: list[str] = []

    def says(self, line: str) -> None:
        self.said.append(line)

    def confirms(self, runs: int, replicate: int) -> None:
        self.confirmations.append(runs)


class OwnLease:
    """A lease that nobody takes; it counts how often that was looked at."""

    def __init__(self) -> None:
        self.fences = 0

    def fence(self) -> None:
        self.fences += 1

    def check(self) -> None:
        """Nobody takes it."""

    def asked(self) -> list[tuple[str, int]]:
        return []


class Desk:
    """A study opened in a ledger, with its queue and its recorder; `play` is a worker's message."""

    def __init__(self, home: Path, study: Study, interrupted: list[int] | None = None) -> None:
        self.home, self.ledger, self.study, self.cell = home, Writer.at(home), study, study.cells[0]
        self.ledger.open(study, {"tests.toy": toy_trainable.METRICS})
        self.ear, self.lease = Ear(), OwnLease()
        self.queue = Queue(
            self.ledger,
            study,
            lambda *_: terms(home),
            lease=self.lease,
            listener=self.ear,
            interrupted=[(self.cell, number) for number in interrupted or []],
            starts={cell.key: starts(study, cell) for cell in study.cells},
        )
        self.recorder = Recorder(self.ledger, study, self.ear)
        self._messages = 0

    def ask(self) -> Assignment:
        """The next trial, which must be there."""
        trial = self.queue.next()
        assert trial is not None
        return trial

    def play(self, told: Assignment, *rows: tuple[int, float], **news: Any) -> bool:
        """News with rows, each a step and a value of every metric; whether the trial stops."""
        return self.say(told, *((step, {"val_loss": value, "val_speed": value}) for step, value in rows), **news)

    def say(self, told: Assignment, *rows: tuple[int, dict[str, float]], **news: Any) -> bool:
        """News with rows, each a step and its metrics; whether the trial stops."""
        self._messages += 1
        sent = [Row(step, metrics, 0.0) for step, metrics in rows]
        return self.recorder.take(f"tune-{told.cell}-{told.trial}", self._messages, told, News(rows=sent, **news))

    def losses(self) -> list[tuple[str, list[str]]]:
        """The reason and the nodes of each loss in the ledger's own table."""
        with contextlib.closing(sqlite3.connect(self.home / "ledger.db")) as ledger:
            query = "select reason, nodes from cs330ray_losses order by attempt"
            return [(reason, json.loads(nodes)) for reason, nodes in ledger.execute(query)]


def begun(*nodes: str, resumed_from_step: int | None = None) -> Start:
    """A start on these nodes."""
    on = Circumstances("host", "cpu", 1, "3.12", {}, nodes, pid=1, seed=7, code="c", data="d", config={})
    return Start(resumed_from_step, 0.0, on)
