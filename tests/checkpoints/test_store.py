"""Checkpoints that outlive their machine: copies in a store, torn and cut at every call, taken up elsewhere."""

import contextlib
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import ray
from pyarrow import fs

from cs330ray import files
from cs330ray.checkpoints import copies, local
from cs330ray.checkpoints import store as stores
from cs330ray.checkpoints.copies import Copies, fetched
from cs330ray.checkpoints.store import Store, StoreFault
from cs330ray.cli import app, upkeep
from cs330ray.cli import run as run_
from cs330ray.errors import CheckpointError, SpecError, StudyError
from cs330ray.ledger import backup, confirm
from cs330ray.ledger.lines import standing
from cs330ray.ledger.records import Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.report import tables
from cs330ray.service import recorder as record
from cs330ray.service import run as run_module
from cs330ray.service.machines.machine import Machine as Hardware
from cs330ray.service.machines.setup import Ground
from cs330ray.service.messages import Continuation, News
from cs330ray.service.recorder import Recorder
from cs330ray.service.run import run
from cs330ray.service.search.ask import ask
from cs330ray.service.thin import thin
from cs330ray.service.workers import trial_run
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.spec.places import checkpoints_of, copies_of
from cs330ray.spec.study import Study
from tests import in_process
from tests import toy as toy_trainable
from tests.assignments import assignment
from tests.service.test_run import Ear
from tests.studies_of_tests import toy, whole

PLACE = "toy-1/cell/trial-00000"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_run, "SAVE_AGAIN_S", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that several machines see, as the driver left it."""
    url = f"file://{tmp_path}/shared"
    copies.mark(stores.at(url), "toy-1")
    return tmp_path / "shared"


def run_at(folder: Path, home: Path, **changes: Any) -> TrialRun:
    """A trial whose checkpoints are copied to a folder; each row is a batch, and has its checkpoint."""
    often = assignment(home, **{"batch_s": 0.0, "checkpoint_s": 0.0, "place": PLACE, **changes})
    return TrialRun(often, store_url=f"file://{folder}")


def whole_there(folder: Path) -> list[int]:
    """The steps of the copies in a folder that have a manifest, itself written to its end: each must be whole."""
    found = sorted((folder / PLACE).glob("step-*/MANIFEST.json"))
    return [local.read(path.parent).step for path in found if path.read_text().endswith("}")]


class Machine:
    """One machine after another runs a trial; what each hands over is recorded."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.named: dict[int, str] = {}
        self.began: list[int | None] = []
        self.unsaved: list[str] = []
        self.end: Ending | None = None

    @property
    def recorded_step(self) -> int:
        return max(self.rows, default=0)

    def runs(self, trial: TrialRun, batches: int = 1000) -> None:
        for _ in range(batches):
            batch = trial.next_batch()
            self.rows |= {row.step: dict(row.metrics) for row in batch.rows}
            if batch.checkpoint is not None:
                self.named[batch.checkpoint.step] = batch.checkpoint.path
            if batch.start is not None:
                self.began.append(batch.start.resumed_from_step)
            if batch.unsaved is not None:
                self.unsaved.append(batch.unsaved)
            self.end = batch.end
            if self.end is not None:
                return


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    machine = Machine()
    machine.runs(TrialRun(assignment(tmp_path_factory.mktemp("unbroken"))))
    return machine.rows


# Two machines -------------------------------------------------------------------------------------------------------


def test_another_machine_goes_on_from_the_store_and_yields_the_same_rows(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]]
) -> None:
    record_ = Machine()
    record_.runs(run_at(folder, tmp_path / "first"), batches=3)
    shutil.rmtree(tmp_path / "first")
    record_.runs(run_at(folder, tmp_path / "second", recorded_step=record_.recorded_step))
    assert record_.began == [None, 10]
    assert record_.rows == unbroken
    assert record_.end == Ending("COMPLETE")
    assert record_.named[20] == f"file://{folder}/{PLACE}/step-00000020"
    assert whole_there(folder) == [20]


def test_three_machines_in_a_row_may_vanish(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]]
) -> None:
    record_ = Machine()
    for name in ("first", "second", "third"):
        record_.runs(run_at(folder, tmp_path / name, recorded_step=record_.recorded_step), batches=2)
        shutil.rmtree(tmp_path / name)
    record_.runs(run_at(folder, tmp_path / "last", recorded_step=record_.recorded_step))
    assert record_.began == [None, 5, 10, 15]
    assert record_.rows == unbroken


def test_what_the_record_hears_of_is_in_the_store_by_then(folder: Path, tmp_path: Path) -> None:
    trial, named = run_at(folder, tmp_path / "home"), 0
    while True:
        batch = trial.next_batch()
        if batch.checkpoint is not None:
            held = fetched(batch.checkpoint.path, tmp_path / "elsewhere")
            assert (held.step, held.digest) == (batch.checkpoint.step, batch.checkpoint.digest)
            named += 1
        if batch.end is not None:
            break
    assert named == 4


def test_a_copy_is_the_checkpoint_to_the_byte(folder: Path, tmp_path: Path) -> None:
    run_at(folder, tmp_path).next_batch()
    trial = run_at(folder, tmp_path)
    Machine().runs(trial, batches=3)
    for here in tmp_path.glob("step-*"):
        there = folder / PLACE / here.name
        assert {path.name: path.read_bytes() for path in here.iterdir()} == {
            path.name: path.read_bytes() for path in there.iterdir()
        }


def test_files_in_folders_and_large_ones_are_copied_as_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "CHUNK_BYTES", 1000)
    content = os.urandom(10_500)

    def save(into: Path) -> None:
        (into / "layers").mkdir()
        (into / "layers" / "first.gz").write_bytes(content)  # which is none: nothing is unpacked
        (into / "empty").write_bytes(b"")

    mine = Copies(stores.at(f"file://{folder}"), PLACE)
    written = local.write(tmp_path / "here", 3, save)
    mine.push(written, keep=1)
    again = mine.fetch(3, tmp_path / "there")
    assert again.digest == written.digest
    assert (again.path / "layers" / "first.gz").read_bytes() == content


def test_a_machine_whose_disk_is_ahead_of_the_store_brings_the_store_up_to_it(folder: Path, tmp_path: Path) -> None:
    Machine().runs(run_at(folder, tmp_path, place=None), batches=4)
    assert whole_there(folder) == []
    batch = run_at(folder, tmp_path).next_batch()
    assert batch.start.resumed_from_step == 15
    assert batch.checkpoint.path.startswith("file://")
    assert whole_there(folder) == [15]


def test_what_is_ahead_of_the_record_is_removed_from_the_store_too(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]]
) -> None:
    Machine().runs(run_at(folder, tmp_path / "first"), batches=4)
    assert whole_there(folder) == [10, 15]
    record_ = Machine()
    record_.runs(run_at(folder, tmp_path / "second", recorded_step=10), batches=1)
    assert record_.began == [10]
    assert whole_there(folder) == [10]
    record_.runs(run_at(folder, tmp_path / "third", recorded_step=0))
    assert record_.began == [10, None]
    assert record_.rows == unbroken


def test_a_trial_that_has_left_leaves_no_checkpoint_on_the_disk(folder: Path, tmp_path: Path) -> None:
    trial = run_at(folder, tmp_path)
    Machine().runs(trial)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000020"]
    trial.close()
    assert list(tmp_path.glob("step-*")) == []
    assert whole_there(folder) == [20]


def test_a_trial_that_leaves_what_the_store_does_not_have_keeps_it_on_the_disk(folder: Path, tmp_path: Path) -> None:
    trial = run_at(folder, tmp_path)
    Machine().runs(trial, batches=3)
    folder.rename(folder.with_name("away"))
    folder.write_text("no folder")
    Machine().runs(trial, batches=1)
    trial.close()
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000010", "step-00000015"]


def test_without_an_address_no_store_is_opened_and_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "at", lambda url: pytest.fail("a store was opened"))
    monkeypatch.delenv(stores.VARIABLE, raising=False)
    record_, trial = Machine(), TrialRun(assignment(tmp_path))
    record_.runs(trial)
    trial.close()
    assert record_.named == {20: str(tmp_path / "step-00000020")}
    assert local.read(Path(record_.named[20])).step == 20
    assert stores.wanted() is None


def test_a_continuation_begins_at_the_copy_of_the_trial_before(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]]
) -> None:
    before = Machine()
    before.runs(run_at(folder, tmp_path / "first", steps=10))
    goes_on = Continuation(after_step=10, begin_at=before.named[10])
    place = "toy-1/cell/trial-00001"
    after, trial = Machine(), run_at(folder, tmp_path / "second", place=place, recorded_step=10, continues=goes_on)
    after.runs(trial)
    assert after.began == [10]
    assert before.rows | after.rows == unbroken
    assert after.named[20] == f"file://{folder}/toy-1/cell/trial-00001/step-00000020"
    trial.close()
    assert [path.name for path in (tmp_path / "second").iterdir()] == []


def test_a_continuation_whose_beginning_is_in_another_store_finds_it_or_begins_anew(
    folder: Path, tmp_path: Path
) -> None:
    before = Machine()
    before.runs(run_at(folder, tmp_path / "first", steps=10))
    for name, begin_at, began in (("found", before.named[10], 10), ("gone", "file:///nowhere/step-00000010", None)):
        after = Machine()
        goes_on = Continuation(after_step=10, begin_at=begin_at)
        after.runs(TrialRun(assignment(tmp_path / name, recorded_step=10, continues=goes_on)))
        assert after.began == [began]
        assert sorted(after.rows) == [15, 20]


# What is not whole --------------------------------------------------------------------------------------------------


def lose(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(content)


def alter(path: Path) -> None:
    content = bytearray((path / "state.json").read_bytes())
    content[3] ^= 1
    (path / "state.json").write_bytes(content)


def names(*pairs: tuple[str, Any], step: Any = 15) -> Callable[[Path], None]:
    return put("MANIFEST.json", json.dumps({"step": step, "files": dict(pairs)}).encode())


OUTSIDE = hashlib.sha256(b"outside").hexdigest()
DAMAGES = {
    "an altered file": alter,
    "a cut file": lambda path: os.truncate(path / "state.json", 3),
    "an empty file": put("state.json", b""),
    "a lost file": lose("state.json"),
    "no manifest": lose("MANIFEST.json"),
    "an empty manifest": put("MANIFEST.json", b""),
    "a cut manifest": put("MANIFEST.json", b'{"step": 15, "fi'),
    "no JSON": put("MANIFEST.json", b"\xff"),
    "a list": put("MANIFEST.json", b"[]"),
    "too deep": put("MANIFEST.json", b"[" * 100_000),
    "no files": put("MANIFEST.json", b'{"step": 15}'),
    "files that are a number": put("MANIFEST.json", b'{"step": 15, "files": 3}'),
    "files without digests": put("MANIFEST.json", b'{"step": 15, "files": ["state.json"]}'),
    "the step of another": names(step=10),
    "a digest that is none": names(("state.json", None)),
    "a file above": names(("../../../outside", OUTSIDE)),
    "a file of the machine": names(("/etc/hostname", OUTSIDE)),
    "a file without a name": names(("", OUTSIDE)),
    "a name that no disk takes": names(("a\0b", OUTSIDE)),
    "a name that is too long": names(("x" * 5000, OUTSIDE)),
    "a name that is no text": names(("\ud800", OUTSIDE)),
    "a file in a file": names(("MANIFEST.json", OUTSIDE), ("MANIFEST.json/x", OUTSIDE)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_torn_copy_is_refused_and_the_one_before_is_taken(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]], damage: Callable[[Path], None]
) -> None:
    (folder / "outside").write_bytes(b"outside")
    record_ = Machine()
    record_.runs(run_at(folder, tmp_path / "first"), batches=4)
    damage(folder / PLACE / "step-00000015")
    record_.runs(run_at(folder, tmp_path / "second", recorded_step=15), batches=2)
    assert record_.began == [None, 10]
    assert whole_there(folder) == [10, 15]  # written anew when its step came again
    record_.runs(run_at(folder, tmp_path / "third", recorded_step=15))
    assert record_.began == [None, 10, 15]
    assert record_.rows == unbroken


def test_where_every_copy_is_torn_the_trial_begins_anew(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]]
) -> None:
    Machine().runs(run_at(folder, tmp_path / "first"), batches=4)
    for path in (folder / PLACE).glob("step-*"):
        alter(path)
    record_ = Machine()
    record_.runs(run_at(folder, tmp_path / "second", recorded_step=15))
    assert record_.began == [None]
    assert record_.rows == unbroken


def test_an_address_that_names_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^file:///tmp/x: the address of a checkpoint ends in its step; see"):
        fetched("file:///tmp/x", tmp_path)
    with pytest.raises(CheckpointError, match="use another"):
        fetched(f"file://{tmp_path}/step-00000005", tmp_path / "here")


# A store that fails at any call -------------------------------------------------------------------------------------


class Fragile(fs.FileSystemHandler):
    """The local disk, where event number `at` fails: a call before or after it is done, or half of a write.

    From then on nothing answers, as where the process was killed; or, where it is `once`, all goes on.
    """

    def __init__(self, at: int = -1, *, once: bool = False) -> None:
        self._disk, self._at, self._once = fs.LocalFileSystem(), at, once
        self.events = 0
        self.failed = False

    def event(self) -> None:
        self.events += 1
        if self.events - 1 == self._at or (self.failed and not self._once):
            self.failed = True
            raise OSError(f"event {self._at} failed")

    def _do(self, work: Callable[[], Any]) -> Any:
        self.event()
        result = work()
        self.event()
        return result

    def get_type_name(self) -> str:
        return "fragile"

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self._do(lambda: self._disk.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self._do(lambda: self._disk.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._do(lambda: self._disk.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self.event()
        for file in sorted(Path(path).rglob("*")):
            if file.is_file():
                self._do(file.unlink)
        self._do(lambda: self._disk.delete_dir(path))

    def delete_file(self, path: str) -> None:
        self._do(lambda: self._disk.delete_file(path))

    def open_input_stream(self, path: str) -> Any:
        return self._do(lambda: self._disk.open_input_stream(path))

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pyarrow.PythonFile(self._do(lambda: FragileFile(Path(path), self)), mode="w")

    def _never(self, *args: Any) -> None:
        raise NotImplementedError

    delete_dir_contents = delete_root_dir_contents = move = copy_file = _never
    open_input_file = open_append_stream = _never


class FragileFile:
    """A file of such a store."""

    def __init__(self, path: Path, store: Fragile) -> None:
        self._file, self._store = path.open("wb", buffering=0), store

    def write(self, content: bytes) -> int:
        self._store.event()
        self._file.write(bytes(content)[: len(content) // 2])
        self._store.event()
        self._file.write(bytes(content)[len(content) // 2 :])
        return len(content)

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._store.event()

    def flush(self) -> None:
        self._file.flush()

    def __del__(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)


@contextlib.contextmanager
def fragile(folder: Path, handler: fs.FileSystemHandler) -> Iterator[None]:
    """Put a failing store in the place of a folder."""
    store = Store(f"file://{folder}", fs.PyFileSystem(handler), str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "at", lambda url: store)
        yield


def events_of_a_trial(folder: Path, tmp_path: Path) -> int:
    counting = Fragile()
    with fragile(folder, counting):
        Machine().runs(run_at(folder, tmp_path / "counted", steps=15))
    shutil.rmtree(folder / PLACE)
    return counting.events


@pytest.mark.slow
def test_a_trial_cut_at_any_event_of_the_store_twice_in_a_row_ends_as_an_unbroken_one(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]]
) -> None:
    """A machine dies at an event, the next at the same event of its own, a third one has a sound store."""
    events = events_of_a_trial(folder, tmp_path)
    assert events > 60
    short = {step: row for step, row in unbroken.items() if step <= 15}
    resumed = 0
    for event in range(events):
        record_ = Machine()
        for machine in ("first", "second"):
            home = tmp_path / f"{machine}-{event}"
            with fragile(folder, Fragile(event)):
                recorded = record_.recorded_step
                record_.runs(run_at(folder, home, steps=15, recorded_step=recorded), batches=8)
            there = whole_there(folder)  # raises where one with a manifest is torn
            assert max(there, default=0) <= record_.recorded_step
            if record_.named:
                assert max(record_.named) in there, (event, machine)
            shutil.rmtree(home, ignore_errors=True)
        newest = max(record_.named, default=None)
        last = run_at(folder, tmp_path / f"last-{event}", steps=15, recorded_step=record_.recorded_step)
        record_.runs(last)
        began = record_.began[-1]
        assert newest is None or (began is not None and began >= newest), (event, newest, began)
        assert record_.end == Ending("COMPLETE")
        assert record_.rows == short, event
        assert whole_there(folder) == [15]
        resumed += began is not None
        shutil.rmtree(folder / PLACE)
    assert resumed > events / 2


def test_a_store_that_refuses_any_one_call_costs_the_trial_nothing(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]]
) -> None:
    events = events_of_a_trial(folder, tmp_path)
    for event in range(events):
        record_, home = Machine(), tmp_path / f"home-{event}"
        with fragile(folder, Fragile(event, once=True)):
            record_.runs(run_at(folder, home, steps=15))
        assert record_.end == Ending("COMPLETE"), event
        assert record_.rows == {step: row for step, row in unbroken.items() if step <= 15}
        assert len(record_.unsaved) <= 1
        assert whole_there(folder)[-1] == 15
        shutil.rmtree(folder / PLACE)
        shutil.rmtree(home)


def test_a_copy_is_removed_manifest_first(folder: Path, tmp_path: Path) -> None:
    """Cut in the midst of a removal, what is left is no checkpoint."""
    Machine().runs(run_at(folder, tmp_path / "home"), batches=4)
    event = 0
    while whole_there(folder):
        with fragile(folder, Fragile(event)), contextlib.suppress(StoreFault):
            Copies(stores.at(""), PLACE).remove()
        whole_there(folder)  # raises where one with a manifest is torn
        event += 1
    assert event > 5


class Silent(Fragile):
    """A store that answers nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.answers.set()

    def event(self) -> None:
        self.answers.wait(60)


def test_a_store_that_does_not_answer_holds_no_trial_up_and_takes_its_checkpoints_later(
    folder: Path, tmp_path: Path, unbroken: dict[int, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "ANSWER_S", 0.3)
    store, record_ = Silent(), Machine()
    with fragile(folder, store):
        trial = run_at(folder, tmp_path)
        record_.runs(trial, batches=2)
        store.answers.clear()
        began = time.monotonic()
        record_.runs(trial, batches=4)
        assert time.monotonic() - began < 5
        assert sorted(record_.rows) == [5, 10, 15, 20]
        assert record_.end is None
        assert record_.unsaved == [
            f"file://{folder} does not answer within 0.3s",
            *[f"file://{folder} has not answered yet"] * 3,
        ]
        store.answers.set()
        until = time.monotonic() + 10
        while record_.end is None and time.monotonic() < until:
            record_.runs(trial, batches=1)
    assert record_.end == Ending("COMPLETE")
    assert record_.rows == unbroken
    assert whole_there(folder) == [20]


def test_a_trial_does_not_begin_before_the_store_says_where_it_stands(folder: Path, tmp_path: Path) -> None:
    record_ = Machine()
    record_.runs(run_at(folder, tmp_path / "first"), batches=3)
    with fragile(folder, broken := Fragile(0)):
        trial = run_at(folder, tmp_path / "second", recorded_step=15)
        for _ in range(3):
            assert trial.next_batch() == News(unsaved=f"file://{folder}: event 0 failed", waits="begin")
        broken._once = True
        assert trial.next_batch().start.resumed_from_step == 10


def test_a_machine_that_does_not_see_what_the_driver_wrote_begins_nothing(tmp_path: Path) -> None:
    """Each machine with a disk of its own at the same path would keep its checkpoints to itself."""
    waiting = run_at(tmp_path / "not-shared", tmp_path / "home").next_batch()
    assert waiting.waits == "begin"
    assert waiting.unsaved.endswith("what the driver wrote is not seen here: there is no toy-1/STUDY")


def test_a_disk_that_is_full_when_a_copy_is_fetched_keeps_the_trial_waiting(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine().runs(run_at(folder, tmp_path / "first"), batches=3)
    full = OSError(28, "No space left on device")

    def refuse(*args: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync", refuse)
        waiting = run_at(folder, tmp_path / "second").next_batch()
    assert (waiting.waits, waiting.unsaved) == ("begin", f"{tmp_path / 'second'}: No space left on device")


def opened(home: Path, study: Study) -> Writer:
    ledger = Writer.at(home)
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    ledger.enter(study, study.cells[0], ask(study, study.cells[0], ["min"], []), seed=1)
    return ledger


def test_a_store_that_stays_away_stops_the_study_with_one_line_and_a_recovery_starts_the_patience_anew(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = toy()
    ledger, ear = opened(home, study), Ear()
    recorder = Recorder(ledger, study, ear)
    now = 0.0
    monkeypatch.setattr(record.time, "monotonic", lambda: now)
    away = News(unsaved="s3://b/x does not answer within 30s", waits="begin")
    for iteration, (now, news) in enumerate(
        [(0.0, away), (50.0, away), (55.0, News()), (1000.0, away), (1059.0, away), (1061.0, away)]
    ):
        assert recorder.failure is None, now
        recorder.take("tune", iteration, assignment(home, cell=study.cells[0].key), news)
    assert isinstance(recorder.failure, StudyError)
    assert str(recorder.failure) == (
        "toy: trial 0 needs its checkpoint to begin, but s3://b/x does not answer within 30s for 60s; mend the store, "
        "and the same command goes on"
    )
    assert ear.lines == ["trial 0: no checkpoint can be read (s3://b/x does not answer within 30s); it is tried again"]
    assert ledger.trials(study, study.cells[0])[0].state == "RUNNING"


# Addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("runs/shared", r"an address such as s3://bucket/folder, or a path such as /shared/folder, .* got 'runs/"),
        ("/proc/nowhere/x", r"file:///proc/nowhere/x: .*Cannot create directory.*; mend it, or unset it"),
        ("nonsense://bucket/x", r"nonsense://bucket/x: Protocol not known: nonsense; mend it, or unset it"),
        ("file:///proc/nowhere/x", r"file:///proc/nowhere/x: .*Cannot create directory.*; mend it, or unset it"),
        ("file:///etc/hostname/x", r"file:///etc/hostname/x: .*Not a directory.*; mend it, or unset it"),
        ("s3://KEY:SEK/RET@bucket/x", r"in 's3://\*\*\*@bucket/x' a / or @ .* must be written %2F or %40; mend it"),
        ("s3://KEY:SEK%2FRET@bucket/x?nonsense=1", r"s3://bucket/x: Unexpected query parameter in S3 URI: 'nonsense'"),
        ("s3://bucket/a b", "in 's3://bucket/a b' a ' ' must be written %20"),
        ("s3://KEY:SEK#RET KEY@bucket/x", r"in 's3://\*\*\*@bucket/x' a '#' must be written %23"),
        ("file:///tmp/a#b", "in 'file:///tmp/a#b' a '#' must be written %23; or, for a folder, give its path alone"),
        ("file:///tmp/a?b", r"a '\?' must be written %3F"),
        ("file:///tmp/100%/x", "a '%' must be written %25"),
    ],
)
def test_an_address_that_cannot_be_meant_is_one_line_before_anything_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str, problem: str
) -> None:
    monkeypatch.setenv(stores.VARIABLE, url)
    with pytest.raises(SpecError, match=f"^CS330RAY_CHECKPOINTS: .*{problem}") as raised:
        run(toy(), home, mirror=False)
    assert "RET" not in str(raised.value)
    assert "KEY" not in str(raised.value)
    assert not home.exists()


ODD = "a ?#%41&'\"ü"


@pytest.mark.parametrize("by", ["path", "address"])
def test_a_folder_of_any_name_is_given_as_a_path_or_as_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    folder = tmp_path / ODD
    monkeypatch.setenv(stores.VARIABLE, str(folder) if by == "path" else folder.as_uri())
    store = stores.tried(str(stores.wanted()))
    trial = tmp_path / "trial"
    written = local.write(trial, 3, lambda into: (into / "state").write_text("x") and None)
    copies_ = Copies(store, PLACE)
    copies.mark(store, "toy-1")
    copies_.push(written, keep=1)
    assert (folder / PLACE / "step-00000003" / "state").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir() if path != trial] == [ODD]
    assert fetched(copies_.address(3), tmp_path / "back").digest == written.digest


def test_the_command_line_ends_with_exit_code_2_and_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(stores.VARIABLE, "nonsense://KEY:SECRET@bucket/x")
    with pytest.raises(SystemExit) as raised:
        app.guarded(run_.run_study, toy(), "toy.toml", "cs330ray run toy.toml")
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("CS330RAY_CHECKPOINTS: a place to write, read and remove in is needed, but nonsense://buck")
    assert "SECRET" not in said


def test_a_bucket_that_nobody_serves_is_one_line_without_credentials(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"s3://KEYID:SE%2FKRET@bucket/x?scheme=http&region=here&endpoint_override=127.0.0.1:{port}"
    monkeypatch.setenv(stores.VARIABLE, url)
    began = time.monotonic()
    with pytest.raises(SpecError, match=r"but s3://bucket/x: .*; mend it, or unset it$") as raised:
        run(toy(), home, mirror=False)
    assert time.monotonic() - began < stores.ANSWER_S
    assert not any(secret in str(raised.value) for secret in ("KEYID", "SE%2FKRET", "SE/KRET", "endpoint_override"))


def test_what_tune_keeps_of_a_trial_says_nothing_of_what_opens_the_store(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(stores.VARIABLE, "s3://KEY:SECRET@bucket/x")
    study = toy()
    (cell,) = study.cells
    ground = Ground(Hardware.here(), 1, {cell.key: "data"}, nodes=None, store=None)
    said = run_module._terms(study, home, ground, "toy-1")(cell, 3)
    assert said.place == copies_of("toy-1", cell, 3)
    assert b"bucket" not in ray.cloudpickle.dumps(assignment(home, terms=said))


def test_a_bucket_whose_server_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "ANSWER_S", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(SpecError, match=r"s3://bucket/x does not answer within 0\.5s"):
            stores.tried(f"s3://k:s@bucket/x?scheme=http&region=here&endpoint_override=127.0.0.1:{port}")
        assert time.monotonic() - began < 5


def test_fsspec_opens_what_pyarrow_does_not_know(tmp_path: Path) -> None:
    store = stores.tried("memory://shelf/checkpoints")
    copies.mark(store, "toy-1")
    written = local.write(tmp_path / "here", 3, lambda path: (path / "state").write_text("s") and None)
    mine = Copies(store, PLACE)
    mine.push(written, keep=2)
    assert mine.address(3) == f"memory://shelf/checkpoints/{PLACE}/step-00000003"
    assert mine.fetch(3, tmp_path / "there").digest == written.digest
    mine.remove()
    with pytest.raises(CheckpointError):
        mine.fetch(3, tmp_path / "there again")


# Whole studies ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store for every study of the test, and a ledger that does not lie under its home."""
    monkeypatch.setenv(stores.VARIABLE, f"file://{tmp_path}/shared")
    monkeypatch.setenv("CS330RAY_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    return tmp_path / "shared"


def small(**changes: Any) -> Study:
    resources = {"slots": 1, "checkpoint": 0.1, **changes.pop("resources", {})}
    fixed = {"sleep_s": 0.05, **changes.pop("fixed", {})}
    return toy(resources=resources, fixed=fixed, **changes)


class Vanishes(Ear):
    """Interrupts the study when a trial has reached a step."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__()
        self._when = (number, step)

    def reached(self, cell: Any, number: int, row: Row) -> None:
        if (number, row.step) == self._when:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_study_whose_disk_is_lost_between_two_calls_ends_as_an_undisturbed_one(
    home: Path, store: Path, tmp_path: Path, ray_here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small(budget={"trials": 2, "steps": 40}, fixed={"sleep_s": 0.1}, confirm={"top": 1, "seeds": 1})
    ear = Vanishes(1, 10)
    assert run(study, home, ear, mirror=False).interrupted
    assert ear.lines[0] == f"toy: checkpoints are kept at file://{store}"
    shutil.rmtree(home)
    assert not run(study, home, mirror=False).interrupted
    ledger = Writer.at(home)
    (cell,) = study.cells
    first, second = ledger.attempts(study, cell, 1)
    assert first["resumed_from_step"] is None
    assert second["resumed_from_step"] in range(5, 40)
    found = (whole(home), fresh_runs(home))
    monkeypatch.delenv(stores.VARIABLE)
    monkeypatch.setenv("CS330RAY_LEDGER", f"sqlite:///{tmp_path}/undisturbed.db")
    run(study, tmp_path / "undisturbed", mirror=False)
    assert found == (whole(tmp_path / "undisturbed"), fresh_runs(tmp_path / "undisturbed"))


def fresh_runs(home: Path) -> list[Any]:
    ledger = Writer.at(home)
    study = ledger.study("toy")
    found = confirm.confirmed(ledger, study)
    return [(run.trial.state, run.trial.values, run.test) for one in found[study.cells[0].key] for run in one.runs]


@pytest.mark.slow
def test_of_the_finished_trials_the_best_keep_their_copy_and_a_deleted_study_leaves_none(
    home: Path, store: Path, ray_here: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home.parent}/mlflow.db")
    study = toy(budget={"trials": 4}, resources={"slots": 1, "keep": 2}, confirm={"top": 1, "seeds": 1})
    run(study, home, mirror=False)
    ledger = Writer.at(home)
    (cell,) = study.cells
    (folder,) = store.iterdir()
    assert folder.name == ledger.folder(study)
    trials = ledger.trials(study, cell)
    best = sorted(trials, key=lambda trial: trial.values or ())[:2]
    there = {trial.number: f"{store.as_uri()}/{copies_of(folder.name, cell, trial.number)}" for trial in best}
    assert ledger.checkpoints(study, cell) == {number: f"{place}/step-00000020" for number, place in there.items()}
    (confirmed,) = confirm.confirmed(ledger, study)[cell.key]
    number = confirmed.searched.number
    fresh = ledger.checkpoint(study, cell.under(0), number)
    assert fresh == f"{store.as_uri()}/{copies_of(folder.name, cell.under(0), number)}/step-00000020"
    held = {path.parent.relative_to(store).as_posix() for path in folder.rglob("MANIFEST.json")}
    assert held == {
        place.removeprefix(f"{store.as_uri()}/") for place in [*ledger.checkpoints(study, cell).values(), fresh]
    }
    assert not list(home.rglob("step-*"))
    for said in (tables.best_toml(ledger, study), *tables.answer(ledger, study, lambda *_: {})):
        capsys.readouterr()
        if "checkpoint:" in said:
            assert any(f"checkpoint: {place}/step-00000020" in said for place in there.values())
    one = tables.trial(ledger, study, best[0])[0]
    assert ["checkpoint", f"{there[best[0].number]}/step-00000020"] in one.rows
    (store / "another-study").mkdir()
    upkeep.delete("toy", yes=True)
    assert [path.name for path in store.iterdir()] == ["another-study"]
    assert "checkpoints stay" not in capsys.readouterr().err


def test_a_study_is_deleted_without_its_store_only_where_that_is_meant(
    home: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home.parent}/mlflow.db")
    in_process.run(toy(budget={"trials": 1}, resources={"slots": 1}), home, mirror=False)
    ledger = Writer.at(home)
    store.rename(store.with_name("away"))
    store.write_text("no folder")
    with pytest.raises(
        StudyError, match=r"its checkpoints must be removed first, but file:.*unset CS330RAY_CHECKPOINTS"
    ):
        upkeep.delete("toy", yes=True)
    store.unlink()
    with pytest.raises(StudyError, match=r"its checkpoints must be removed first, but file:.*not seen here"):
        upkeep.delete("toy", yes=True)  # as where nothing is mounted
    assert ledger.names() == ["toy"]
    monkeypatch.delenv(stores.VARIABLE)
    upkeep.delete("toy", yes=True)
    assert ledger.names() == []
    assert re.search(
        r"^toy: 1 checkpoints stay, file:///.*/step-00000020 for one", capsys.readouterr().err, re.MULTILINE
    )


def test_a_study_does_not_begin_anew_where_the_store_that_it_had_is_not_mounted(
    home: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.run(toy(budget={"trials": 1}, resources={"slots": 1}), home, mirror=False)
    store.rename(store.with_name("away"))
    more = toy(budget={"trials": 2}, resources={"slots": 1})
    with pytest.raises(
        StudyError, match=r"toy: checkpoints must be kept, but file:.* is not seen here: .*; mend the st"
    ):
        in_process.run(more, home, mirror=False)
    monkeypatch.setenv(stores.VARIABLE, f"file://{store}-2")
    in_process.run(more, home, mirror=False)
    assert len(whole(home)) == 2


def test_what_a_store_does_not_let_go_stays_recorded_until_the_next_call(home: Path, store: Path) -> None:
    study = toy(budget={"trials": 2}, resources={"slots": 1})
    in_process.run(study, home, mirror=False)
    ledger, less = Writer.at(home), toy(budget={"trials": 2}, resources={"slots": 1, "keep": 0})
    (cell,) = study.cells
    held = ledger.checkpoints(study, cell)
    where = {"store": Store(f"file://{store}", fs.PyFileSystem(Fragile(0)), str(store))}

    def there(cell: Any, number: int) -> Copies:
        return Copies(where["store"], copies_of(str(ledger.folder(study)), cell, number))

    def place(cell: Any, number: int) -> Path:
        return checkpoints_of(home, "toy", cell, number)

    assert thin(ledger, less, cell, place, copies=there) == []
    assert thin(ledger, less, cell, place) == []  # nor without a store
    assert ledger.checkpoints(study, cell) == held
    where["store"] = stores.at(f"file://{store}")
    assert thin(ledger, less, cell, place, copies=there) == [0, 1]
    assert ledger.checkpoints(study, cell) == {}
    assert list(store.rglob("step-*")) == []


def test_grown_steps_go_on_from_the_store_on_another_disk(
    home: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.run(toy(budget={"trials": 2}, resources={"slots": 1}), home, mirror=False)
    shutil.rmtree(home)
    grown = toy(budget={"trials": 2, "steps": 40}, resources={"slots": 1})
    in_process.run(grown, home, mirror=False)
    ledger = Writer.at(home)
    (cell,) = grown.cells
    values = [trial.values for trial in standing(ledger.trials(grown, cell))]
    assert [ledger.attempts(grown, cell, number)[0]["resumed_from_step"] for number in (2, 3)] == [20, 20]
    monkeypatch.delenv(stores.VARIABLE)
    monkeypatch.setenv("CS330RAY_LEDGER", f"sqlite:///{tmp_path}/undisturbed.db")
    in_process.run(grown, tmp_path / "undisturbed", mirror=False)
    assert values == [trial.values for trial in Writer.at(home).trials(grown, cell)]


def test_two_ledgers_have_studies_of_one_name_in_one_store_and_a_deleted_one_is_not_its_successor(
    tmp_path: Path,
) -> None:
    study, folders = toy(), []
    for name in ("one", "another"):
        ledger = Writer(f"sqlite:///{tmp_path}/{name}.db")
        ledger.open(study, {"tests.toy": toy_trainable.METRICS})
        assert ledger.folder(study) is None
        folders.append(ledger.make_folder(study))
        assert ledger.make_folder(study) == ledger.folder(study) == folders[-1]
    ledger.delete("toy")
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    folders.append(ledger.make_folder(study))
    assert len(set(folders)) == 3


def test_a_restored_ledger_finds_its_copies(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CS330RAY_LEDGER", raising=False)
    ledger = opened(home, toy())
    folder, uid = ledger.make_folder(toy()), ledger.uid("toy")
    backup.keep(home)
    del ledger
    gc.collect()
    backup.restore(home)
    restored = Writer.at(home)
    assert restored.uid("toy") != uid
    assert restored.folder(toy()) == folder
