"""One trial in its worker: begun or resumed, trained batch by batch, saved, tested, ended."""

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cs330ray.checkpoints import local, store
from cs330ray.checkpoints.copies import BEGUN, Copies, fetched
from cs330ray.checkpoints.local import DiskFault
from cs330ray.checkpoints.store import StoreFault
from cs330ray.clock import wall_s
from cs330ray.errors import CheckpointError, WorkerLost
from cs330ray.ledger.records import Ending, Kept, Row
from cs330ray.service.machines import fitness
from cs330ray.service.messages import Assignment, News, Start, Untested
from cs330ray.service.workers import memory
from cs330ray.service.workers.alone import Alone, Runs
from cs330ray.service.workers.failure import ending_of
from cs330ray.trial.contract import Progress

SAVE_AGAIN_S = 1.0


TESTING = "TESTING"  # how often a test of this trial was begun


TESTS_ALLOWED = 3


class _OutOfMemory(Exception):  # noqa: N818 - the end of a trial
    """An earlier worker of the trial was ended because it held more memory than a trial may."""


class TrialRun:
    """One trial between two batches; `store_url`, which may hold a password, is where its checkpoints are copied.

    What its trainable raises, BaseException included, is the trial's end, unless this process was `told` to end.
    """

    def __init__(
        self,
        assignment: Assignment,
        runs: Runs | None = None,
        store_url: str | None = None,
        told: Callable[[], bool] = lambda: False,
    ) -> None:
        self._assignment = assignment
        self._told = told
        self._terms = assignment.terms
        self._store_url = store_url
        self._runs = runs or Alone()
        self._home = assignment.terms.home
        self._copies: Copies | None = None
        self._rows: Generator[Progress] | None = None
        self._source: local.Checkpoint | None = None  # where the generator began
        self._latest: Progress | None = None  # the newest moment that can be saved; but for a process, where it stands
        self._step = 0  # of the newest row
        self._last = False  # the generator has nothing more
        self._tests = False  # its last checkpoint is written, and the driver hears that it is tested
        self._saved_s = time.monotonic()
        self._news = News()  # but for the rows: what the next message will say
        self._unsent: list[Row] = []

    def next_batch(self) -> News:
        """Train until a batch of rows is worth a message; that message.

        A checkpoint is written here, at the start: all rows up to its step are in the ledger by now.
        """
        self._news, self._unsent = News(), []
        try:
            self._advance()
        except (StoreFault, DiskFault) as fault:  # without what lies there nobody knows where the trial stands
            self._note(unsaved=str(fault), waits="begin")
            time.sleep(SAVE_AGAIN_S)
        except _OutOfMemory as error:
            self._note(end=Ending("FAIL", f"out of memory: {error}", cause="memory"))
        except WorkerLost:
            raise
        except BaseException as error:
            if self._told():
                raise
            self._note(end=ending_of(error))
        return replace(self._news, rows=tuple(self._unsent))

    def _advance(self) -> None:
        if self._rows is None:
            self._start()
        if not self._tests:
            self._save_if_due()
        if not self._last:
            self._train()
        elif self._news.unsaved is not None:
            self._note(waits="end")
            time.sleep(SAVE_AGAIN_S)
        elif self._assignment.test and self._runs.tests() and not self._tests:
            self._tests = True
            self._note(tests=True)  # a message of its own, since the test may end this process
        else:
            if self._tests:
                self._test()
            self._note(end=Ending("COMPLETE"))

    def _note(self, **news: Any) -> None:
        """Add to what the next message will say."""
        self._news = replace(self._news, **news)

    def close(self) -> None:
        """End the generator, give its memory back, and the disk where a store has the checkpoints."""
        self._free()
        if self._copies is not None:
            self._copies.clear(self._home)

    def _free(self) -> None:
        try:
            if self._rows is not None:
                self._rows.close()
        except BaseException:
            if self._told():
                raise
            traceback.print_exc()  # after its end: for its log
        self._rows = self._latest = None
        self._runs.leave()

    def _start(self) -> None:
        began_s, recorded_step = wall_s(), self._assignment.recorded_step
        fitness.gate(self._assignment)
        self._runs.take_up(self._assignment)
        if not self._assignment.begun:  # what lies here is of a trial that the record does not know
            _remove(self._home / memory.MARK, self._home / TESTING)
        local.sweep(self._home)
        local.forget_after(self._home, recorded_step)
        self._copies = self._of_store()
        copies = self._copies
        newest = local.newest(self._home) if copies is None else copies.take_up(self._home, recorded_step)
        self._source = newest or self._begun_by_another()
        self._note(start=Start(self._source.step if self._source else None, began_s, self._runs.circumstances()))
        self._refuse_where_memory_was_short()
        begin_at, begin_step = (self._source.path, self._source.step) if self._source else (None, 0)
        self._step = begin_step
        self._rows = self._runs.train(begin_at, begin_step)
        if newest is not None:
            self._note(checkpoint=self._named(newest))

    def _of_store(self) -> Copies | None:
        """The copies of its checkpoints in the store; None where checkpoints stay on the disk."""
        if self._terms.place is None:
            return None
        assert self._store_url is not None
        return Copies(store.at(self._store_url), self._terms.place)

    def _begun_by_another(self) -> local.Checkpoint | None:
        """The checkpoint that a continuation begins at; None where it is gone, and the trial begins anew."""
        begin_at = self._assignment.continues.begin_at if self._assignment.continues else None
        try:
            if begin_at and "://" in begin_at:
                return fetched(begin_at, self._home / BEGUN, self._copies.store if self._copies else None)
            return local.read(Path(begin_at)) if begin_at else None
        except CheckpointError:
            return None

    def _named(self, written: local.Checkpoint) -> Kept:
        """Name a checkpoint for the record by the place where it will be found."""
        path = str(written.path) if self._copies is None else self._copies.address(written.step)
        return Kept(path, written.step, written.digest)

    def _refuse_where_memory_was_short(self) -> None:
        """Raise _OutOfMemory where an earlier worker exceeded the bound."""
        mark = memory.mark_of(self._home)
        if mark is not None and not (self._home / TESTING).exists():
            raise _OutOfMemory(mark)

    def _save_if_due(self) -> None:
        overdue = time.monotonic() - self._saved_s >= self._terms.checkpoint_s
        if self._last or (self._latest is not None and overdue):
            self._saved_s = time.monotonic()
            self._save()

    def _save(self) -> None:
        """Write the moment at which the generator stands; at the end the checkpoints before it go.

        Where disk or store take nothing, which is no fault of the trial, that is noted.
        """
        keep = 1 if self._last else 2
        try:
            written = self._written(keep)
        except DiskFault as fault:
            self._note(unsaved=str(fault))
            return
        if written is None:
            return
        try:
            if self._copies is not None:
                self._copies.push(written, keep)
        except OSError as fault:
            self._note(unsaved=fault.strerror or str(fault))
        else:
            self._note(checkpoint=self._named(written))

    def _written(self, keep: int) -> local.Checkpoint | None:
        """The checkpoint of this moment, on the disk; None where there has been none yet. Raises DiskFault."""
        if self._latest is not None and self._latest.save is not None:
            return local.write(self._home, self._latest.step, self._latest.save, keep)
        if self._source is not None:  # nothing was left to do: a trial that another continues had ended by itself
            begun_at = self._source
            return local.write(self._home, begun_at.step, lambda path: local.copy(begun_at, path), keep)
        return None

    def _test(self) -> None:
        """Note what the weights of the last checkpoint reach on the test split, or why that is not known.

        A test that fails takes nothing from the training, which is COMPLETE by now: test chooses nothing.
        """
        last = local.newest(self._home)
        if last is None:
            if self._assignment.command is not None:
                self._note(untested=Untested("there is no checkpoint to test: none was reported", ""))
            return  # there was no row
        if self._assignment.command is not None and last.step < self._step:
            apart = (
                f"the last checkpoint is of step {last.step}, the last row of step {self._step}; report both together"
            )
            self._note(untested=Untested(apart, ""))
            return
        if (why := self._ended_testing()) is not None:
            self._note(untested=Untested(why, ""))
            return
        self._free()  # for the test
        try:
            self._note(scores=self._runs.test(last.path))
        except WorkerLost:
            raise
        except BaseException as error:
            if self._told():
                raise
            failure = ending_of(error)
            self._note(untested=Untested(failure.reason, failure.traceback))

    def _ended_testing(self) -> str | None:
        """Why the test is not tried again, where earlier workers ended in the midst of it."""
        note = self._home / TESTING
        if note.exists() and (mark := memory.mark_of(self._home)) is not None:
            return f"out of memory: {mark}"
        times = int(note.read_text() or 0) if note.exists() else 0
        if times >= TESTS_ALLOWED:
            return f"its worker ended {times} times while it was tested"
        with contextlib.suppress(OSError):
            note.write_text(str(times + 1))
        return None

    def _train(self) -> None:
        assert self._rows is not None
        assignment = self._assignment
        after_step = assignment.continues.after_step if assignment.continues and assignment.command is None else 0
        until = time.monotonic() + self._terms.batch_s
        while True:
            progress = next(self._rows, None)
            if progress is None:
                self._last = True
                return
            if self._took(progress, until, after_step):
                return

    def _took(self, progress: Progress, until: float, after_step: int = 0) -> bool:
        """Take a moment; whether the batch is worth a message now. Rows up to `after_step` are another trial's."""
        before, prune_every = self._step, self._terms.prune_every
        if progress.save is not None:
            self._latest = progress
        self._step = max(self._step, progress.step)
        if progress.step <= before and progress.save is not None:  # a checkpoint alone, which is kept at once
            self._saved_s = -math.inf
            return True
        if progress.step <= before:  # a process is silent
            return bool(self._unsent) and time.monotonic() >= until
        if progress.step <= after_step:  # the trial that it continues has this row
            return time.monotonic() >= until
        self._unsent.append(Row(progress.step, progress.metrics, wall_s()))
        if progress.step >= self._assignment.steps and progress.save is not None:
            self._last = True
            return True
        past_rung = prune_every and progress.step // prune_every > before // prune_every
        return bool(past_rung) or time.monotonic() >= until


def _remove(*files: Path) -> None:
    """Remove files that may be there. Raises DiskFault, but not for what is not there, as a disk itself would."""
    try:
        for file in files:
            if file.exists():
                file.unlink()
    except OSError as error:
        raise DiskFault(error.strerror or str(error)) from None
