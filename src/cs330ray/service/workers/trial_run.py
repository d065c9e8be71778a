"""One trial in its worker: begun or resumed, trained batch by batch, saved, tested, ended."""

import contextlib
import math
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cs330ray.checkpoints import local, store
from cs330ray.checkpoints.copies import BEGUN, Copies, fetched
from cs330ray.checkpoints.store import StoreFault
from cs330ray.clock import wall_s
from cs330ray.errors import CheckpointError, WorkerLost
from cs330ray.ledger.records import Ending, Kept, Row
from cs330ray.service.machines import fitness
from cs330ray.service.messages import Assignment, News, Start, Untested
from cs330ray.service.workers import memory
from cs330ray.service.workers.alone import Alone, Runs
from cs330ray.trial.contract import Item, Progress, Scores
from cs330ray.trial.environment import cause_of, plain, reason_of

SAVE_AGAIN_S = 1.0


TESTING = "TESTING"  # how often a test of this trial was begun


TESTS_ALLOWED = 3


PROBE_BYTES = 1024**2


class _OutOfMemory(Exception):  # noqa: N818 - the end of a trial
    """An earlier worker of the trial was ended because it held more memory than a trial may."""


class TrialRun:
    """One trial between two batches; `store_url`, which may hold a password, is where its checkpoints are copied."""

    def __init__(self, assignment: Assignment, runs: Runs | None = None, store_url: str | None = None) -> None:
        self._assignment = assignment
        self._terms = assignment.terms
        self._store_url = store_url
        self._runs = runs or Alone()
        self._home = assignment.terms.home
        self._copies: Copies | None = None
        self._rows: Iterator[Progress] | None = None
        self._source: local.Checkpoint | None = None  # where the generator began
        self._latest: Progress | None = None  # the generator stands at this moment
        self._last = False  # the generator has nothing more
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
        except StoreFault as fault:  # without what lies there nobody knows where the trial stands
            self._note(unsaved=str(fault), waits="begin")
            time.sleep(SAVE_AGAIN_S)
        except _OutOfMemory as error:
            self._note(end=Ending("FAIL", f"out of memory: {error}", cause="memory"))
        except WorkerLost:
            raise
        except Exception as error:  # noqa: BLE001 - the trial boundary: what a trainable raises is a result
            self._note(end=_failure(error))
        return replace(self._news, rows=tuple(self._unsent))

    def _advance(self) -> None:
        if self._rows is None:
            self._start()
        self._save_if_due()
        if not self._last:
            self._train()
        elif self._news.unsaved is not None:
            self._note(waits="end")
            time.sleep(SAVE_AGAIN_S)
        else:
            if self._assignment.test:
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
        close = getattr(self._rows, "close", None)
        if close is not None:
            close()
        self._rows = self._latest = None
        self._runs.leave()

    def _start(self) -> None:
        began_s, recorded_step = wall_s(), self._assignment.recorded_step
        fitness.gate(self._assignment)
        self._runs.take_up(self._assignment)
        local.sweep(self._home)
        local.forget_after(self._home, recorded_step)
        self._copies = self._of_store()
        copies = self._copies
        newest = local.newest(self._home) if copies is None else copies.take_up(self._home, recorded_step)
        self._source = newest or self._begun_by_another()
        self._note(start=Start(self._source.step if self._source else None, began_s, self._runs.circumstances()))
        self._refuse_where_memory_was_short()
        self._rows = self._runs.train(self._source.path if self._source else None)
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
        if not self._assignment.begun:  # what lies here is of a trial that the record does not know
            memory.forget(self._home)
            (self._home / TESTING).unlink(missing_ok=True)
        mark = memory.mark_of(self._home)
        if mark is not None and not (self._home / TESTING).exists():
            raise _OutOfMemory(mark)

    def _save_if_due(self) -> None:
        overdue = time.monotonic() - self._saved_s >= self._terms.checkpoint_s
        if self._last or (self._latest is not None and overdue):
            self._saved_s = time.monotonic()
            try:
                self._save()
            except WorkerLost:
                raise
            except Exception as error:
                fault = _fault_of_storage(error, self._home)
                if not fault:
                    raise
                self._note(unsaved=fault)

    def _save(self) -> None:
        """Write the moment at which the generator stands; at the end the checkpoints before it go."""
        keep = 1 if self._last else 2
        if self._latest is not None:
            written = local.write(self._home, self._latest.step, self._latest.save, keep)
        elif self._source is not None:  # nothing was left to do: a trial that another continues had ended by itself
            begun_at = self._source
            written = local.write(self._home, begun_at.step, lambda path: local.copy(begun_at, path), keep)
        else:
            return
        if self._copies is not None:
            self._copies.push(written, keep)
        self._note(checkpoint=self._named(written))

    def _test(self) -> None:
        """Note what the weights of the last checkpoint reach on the test split, or why that is not known.

        A test that fails takes nothing from the training, which is COMPLETE by now: test chooses nothing.
        """
        last = local.newest(self._home)
        if last is None:
            return  # there was no row
        if (why := self._ended_testing()) is not None:
            self._note(untested=Untested(why, ""))
            return
        self._free()  # for the test
        try:
            self._note(scores=_scores(self._runs.test(last.path)))
        except WorkerLost:
            raise
        except Exception as error:  # noqa: BLE001 - the trial boundary
            failure = _failure(error)
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
        assignment, prune_every = self._assignment, self._terms.prune_every
        after_step = assignment.continues.after_step if assignment.continues else 0
        until = time.monotonic() + self._terms.batch_s
        while True:
            progress = next(self._rows, None)
            if progress is None:
                self._last = True
                return
            self._latest = progress
            if progress.step <= after_step:  # the trial that it continues has this row
                if time.monotonic() >= until:
                    return
                continue
            metrics = {str(name): float(value) for name, value in progress.metrics.items()}
            self._unsent.append(Row(int(progress.step), metrics, wall_s()))
            if progress.step >= assignment.steps:
                self._last = True
                return
            at_rung = prune_every and progress.step % prune_every == 0
            if at_rung or time.monotonic() >= until:
                return


def _fault_of_storage(error: Exception, home: Path) -> str:
    """What is wrong with the disk, where that is why a checkpoint could not be written; else nothing."""
    text = str(error)
    if isinstance(error, OSError) or "os error" in text or "file write failed" in text:
        return error.strerror or text if isinstance(error, OSError) else text
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".partial-probe-") as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except OSError as fault:
        return fault.strerror or str(fault)
    return ""


def _scores(found: Scores) -> Scores:
    """Scores as plain numbers. Raises ValueError where one is not finite."""
    metrics = {str(name): float(value) for name, value in found.metrics.items()}
    items = {
        str(name): [Item(str(item.unit), float(item.score)) for item in scored] for name, scored in found.items.items()
    }
    named = list(metrics.items())
    named += [(name, item.score) for name, scored in items.items() for item in scored]
    for name, value in named:
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, but got {value}")
    return Scores(metrics, items)


def _failure(error: Exception) -> Ending:
    """End a trial by the exception that is being handled."""
    return Ending("FAIL", reason_of(error), plain(traceback.format_exc()), cause_of(error))
