"""The worker's side: drive a trial's generator in batches, checkpoint what the record already holds, report the end."""

import contextlib
import math
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from cs330ray import checkpoint
from cs330ray.clock import wall_s
from cs330ray.errors import CheckpointError, WorkerLost
from cs330ray.service import memory, preflight
from cs330ray.service.copies import BEGUN, Copies, fetched
from cs330ray.service.objects import StoreFault
from cs330ray.service.process import Alone, Runs, log_into, plain, reason_of, see_no_more_gpus_than_asked
from cs330ray.service.workers import Team
from cs330ray.trial import Item, Progress, Scores

SAVE_AGAIN_S = 1.0
TESTING = "TESTING"  # how often a test of this trial was begun
TESTS_ALLOWED = 3
PROBE_BYTES = 1024**2


class _OutOfMemory(Exception):  # noqa: N818 - the end of a trial
    """An earlier worker of the trial was ended because it held more memory than a trial may."""


class TrialRun:
    """One trial between two batches.

    `told` is what the searcher says: trainable, config, seed, steps, home (of the checkpoints), recorded_step (the last
    row that the ledger holds), begun (whether the ledger knows of a start), checkpoint_s, batch_s, prune_every (0:
    never), memory (GiB or None), cpus, code and data digests; on a cluster `node`, what every node must have, and
    `prepares`, for what its data are prepared; `test` where the trial is to be scored on the test split;
    where it continues another, `after_step`, the last row of that one, and `begin_at`, its last checkpoint or None;
    where checkpoints are copied to a store, `copies` with its url, which the actor adds, and the trial's place there.
    """

    def __init__(self, told: Mapping[str, Any], runs: Runs | None = None) -> None:
        self._told = told
        self._runs = runs or Alone()
        self._home = Path(told["home"])
        self._copies: Copies | None = None
        self._rows: Iterator[Progress] | None = None
        self._source: checkpoint.Checkpoint | None = None  # where the generator began
        self._latest: Progress | None = None  # the generator stands at this moment
        self._last = False  # the generator has nothing more
        self._saved_s = time.monotonic()

    def next_batch(self) -> dict[str, Any]:
        """Train until a batch of rows is worth a message.

        It holds "rows" and maybe "checkpoint", "unsaved" (why there is none) and with that "waits" (what the trial can
        not do without: "begin" or "end"), "circumstances", "end" and, with that, "scores" or "untested".

        A checkpoint is written here, at the start: all rows up to its step are in the ledger by now.
        """
        batch: dict[str, Any] = {"rows": []}
        try:
            if self._rows is None:
                self._start(batch)
            self._save_if_due(batch)
            if self._last and "unsaved" in batch:
                batch["waits"] = "end"
                time.sleep(SAVE_AGAIN_S)
            elif self._last:
                if self._told.get("test"):
                    batch |= self._tested()
                batch["end"] = {"state": "COMPLETE"}
            else:
                self._train(batch)
        except StoreFault as fault:  # without what lies there nobody knows where the trial stands
            batch |= {"unsaved": str(fault), "waits": "begin"}
            time.sleep(SAVE_AGAIN_S)
        except _OutOfMemory as error:
            batch["end"] = {"state": "FAIL", "reason": f"out of memory: {error}"}
        except WorkerLost:
            raise
        except Exception as error:  # noqa: BLE001 - the trial boundary: what a trainable raises is a result
            batch["end"] = _failure(reason_of(error))
        return batch

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

    def _start(self, batch: dict[str, Any]) -> None:
        began_s = wall_s()
        preflight.gate(self._told)
        self._runs.take_up(self._told)
        checkpoint.sweep(self._home)
        checkpoint.forget_after(self._home, self._told["recorded_step"])
        self._copies = Copies.told(self._told)
        if self._copies is None:
            newest = checkpoint.newest(self._home)
        else:
            newest = self._copies.take_up(self._home, self._told["recorded_step"])
        self._source = newest or self._begun_by_another()
        begin = {"resumed_from_step": self._source.step if self._source else None, "began_s": began_s}
        batch["circumstances"] = begin | self._runs.circumstances()
        self._refuse_where_memory_was_short()
        self._rows = self._runs.train(self._source.path if self._source else None)
        if newest is not None:
            batch["checkpoint"] = self._named(newest)

    def _begun_by_another(self) -> checkpoint.Checkpoint | None:
        """The checkpoint that a continuation begins at; None where it is gone, and the trial begins anew."""
        begin_at = self._told.get("begin_at")
        try:
            if begin_at and "://" in begin_at:
                return fetched(begin_at, self._home / BEGUN, self._copies.store if self._copies else None)
            return checkpoint.read(Path(begin_at)) if begin_at else None
        except CheckpointError:
            return None

    def _named(self, written: checkpoint.Checkpoint) -> dict[str, Any]:
        """A checkpoint for the record, by the place where it will be found."""
        path = str(written.path) if self._copies is None else self._copies.address(written.step)
        return {"step": written.step, "path": path, "digest": written.digest}

    def _refuse_where_memory_was_short(self) -> None:
        """Raise _OutOfMemory where an earlier worker exceeded the bound."""
        if not self._told["begun"]:  # what lies here is of a trial that the record does not know
            memory.forget(self._home)
            (self._home / TESTING).unlink(missing_ok=True)
        mark = memory.mark_of(self._home)
        if mark is not None and not (self._home / TESTING).exists():
            raise _OutOfMemory(mark)

    def _save_if_due(self, batch: dict[str, Any]) -> None:
        overdue = time.monotonic() - self._saved_s >= self._told["checkpoint_s"]
        if self._last or (self._latest is not None and overdue):
            self._saved_s = time.monotonic()
            try:
                self._save(batch)
            except WorkerLost:
                raise
            except Exception as error:
                batch["unsaved"] = _fault_of_storage(error, self._home)
                if not batch["unsaved"]:
                    raise

    def _save(self, batch: dict[str, Any]) -> None:
        """Write the moment at which the generator stands; at the end the checkpoints before it go."""
        keep = 1 if self._last else 2
        if self._latest is not None:
            written = checkpoint.write(self._home, self._latest.step, self._latest.save, keep)
        elif self._source is not None:  # nothing was left to do: a trial that another continues had ended by itself
            begun_at = self._source
            written = checkpoint.write(self._home, begun_at.step, lambda path: checkpoint.copy(begun_at, path), keep)
        else:
            return
        if self._copies is not None:
            self._copies.push(written, keep)
        batch["checkpoint"] = self._named(written)

    def _tested(self) -> dict[str, Any]:
        """What the weights of the last checkpoint reach on the test split, or why that is not known.

        A test that fails takes nothing from the training, which is COMPLETE by now: test chooses nothing.
        """
        last = checkpoint.newest(self._home)
        if last is None:
            return {}  # there was no row
        if (why := self._ended_testing()) is not None:
            return {"untested": {"reason": why, "traceback": ""}}
        self._free()  # for the test
        try:
            return {"scores": _scores(self._runs.test(last.path))}
        except WorkerLost:
            raise
        except Exception as error:  # noqa: BLE001 - the trial boundary
            return {"untested": {name: text for name, text in _failure(reason_of(error)).items() if name != "state"}}

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

    def _train(self, batch: dict[str, Any]) -> None:
        assert self._rows is not None
        until = time.monotonic() + self._told["batch_s"]
        while True:
            progress = next(self._rows, None)
            if progress is None:
                self._last = True
                return
            self._latest = progress
            if progress.step <= self._told.get("after_step", 0):  # the trial that it continues has this row
                if time.monotonic() >= until:
                    return
                continue
            metrics = {str(name): float(value) for name, value in progress.metrics.items()}
            row = {"step": int(progress.step), "metrics": metrics, "wall_s": wall_s()}
            batch["rows"].append(row)
            if progress.step >= self._told["steps"]:
                self._last = True
                return
            at_rung = self._told["prune_every"] and progress.step % self._told["prune_every"] == 0
            if at_rung or time.monotonic() >= until:
                return


class TrialActor(tune.Trainable):
    """Tune's actor: one process that runs one trial after another. What leaves it as an exception is a lost worker."""

    def setup(self, config: dict[str, Any], store_url: str | None = None) -> None:
        """Take up the first trial. `store_url` may hold a password: Tune writes what trials are told to the disk."""
        self._store_url = store_url
        see_no_more_gpus_than_asked(config["gpus"])
        workers = config["workers"]
        self._runs: Runs = Team(workers, config["cpus"], config["gpus"]) if workers > 1 else Alone()
        self._take_up(config)

    def _take_up(self, config: dict[str, Any]) -> None:
        log_into(Path(config["home"]))
        if (copies := config.get("copies")) is not None:
            config = {**config, "copies": {**copies, "url": self._store_url}}
        self._run = TrialRun(config, self._runs)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the old trial and take up another."""
        self._run.close()
        self._take_up(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One batch of the trial."""
        batch = self._run.next_batch()
        return {"batch": [batch], "done": "end" in batch}  # a list, since Tune flattens dictionaries

    def cleanup(self) -> None:
        """Leave the trial, and end what ran it."""
        self._run.close()
        self._runs.end()


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


def _failure(reason: str) -> dict[str, str]:
    """The end of a trial by the exception that is being handled."""
    return {"state": "FAIL", "reason": reason, "traceback": plain(traceback.format_exc())}
