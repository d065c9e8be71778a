"""Limits: memory, a disk that is full, a study of which every trial fails; and what a trial wrote."""

import errno
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cs330ray import files
from cs330ray.checkpoints import local
from cs330ray.cli import app
from cs330ray.errors import StudyError
from cs330ray.ledger import confirm
from cs330ray.ledger.records import Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.service import recorder as record
from cs330ray.service.messages import News
from cs330ray.service.recorder import Recorder
from cs330ray.service.run import run
from cs330ray.service.search.ask import ask
from cs330ray.service.workers import log, memory, trial_run
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.spec import places
from cs330ray.spec.places import checkpoints_of
from cs330ray.spec.study import fresh_seed
from cs330ray.trial.contract import Progress
from tests import in_process
from tests import toy as toy_trainable
from tests.assignments import assignment
from tests.service.test_actor import noisy
from tests.service.test_run import Ear
from tests.studies_of_tests import toy, whole


def test_a_trial_that_exceeds_its_memory_fails_as_such_and_the_study_goes_on(home: Path, ray_here: str) -> None:
    study = toy(compare={"ends": ["hoards", "well"]}, budget={"trials": 1}, resources={"slots": 1, "memory": 1.5})
    began = time.monotonic()
    run(study, home, mirror=False)
    (hoarding, well) = whole(home)
    assert hoarding[2] == "FAIL"
    assert hoarding[3].startswith("out of memory: ")
    assert hoarding[3].endswith("GiB, but resources.memory allows 1.5")
    assert well[2] == "COMPLETE"
    assert time.monotonic() - began < 60
    assert (checkpoints_of(home, "toy", study.cells[0], 0) / memory.MARK).exists()


def test_a_memory_error_of_a_trial_is_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*args: object) -> Iterator[None]:
        raise MemoryError("9 GiB")
        yield

    monkeypatch.setattr(toy_trainable, "train", hungry)
    end = TrialRun(assignment(tmp_path)).next_batch().end
    assert (end.cause, end.reason) == ("memory", "out of memory: MemoryError: 9 GiB")


def test_a_process_that_ran_another_trial_before_leaves_no_mark_but_ends(tmp_path: Path) -> None:
    """It may hold what that one left; a fresh process decides."""
    script = (
        "import sys, time; from pathlib import Path; from cs330ray.service.workers import memory\n"
        "limit_gib = {name: 99.0 for name in sys.argv[2:]} | {sys.argv[-1]: 1e-6}\n"
        "for name in limit_gib: memory.leave(); memory.watch(Path(sys.argv[1], name), limit_gib[name])\n"
        "time.sleep(20)"
    )
    for names, marked in ((["one"], True), (["other", "two"], False)):
        ended = subprocess.run([sys.executable, "-c", script, str(tmp_path), *names], timeout=30)
        assert ended.returncode == 1
        assert (tmp_path / names[-1] / memory.MARK).exists() is marked


HOLDS_MIB = "b = bytearray({} * 2**20); import time; time.sleep(20)"


def bounded(home: Path, limit_gib: float, then: str) -> subprocess.CompletedProcess[str]:
    """A process whose memory is bounded, after it has done what `then` says."""
    script = f"""
import os, subprocess, sys, time; from pathlib import Path; from cs330ray.service.workers import memory
memory.watch(Path(sys.argv[1]), {limit_gib})
{then}
"""
    command = [sys.executable, "-c", script, str(home)]
    return subprocess.run(command, timeout=60, capture_output=True, text=True)


def test_the_memory_of_child_processes_counts_and_they_end_too(tmp_path: Path) -> None:
    """This process holds little; its child's child holds 700 MiB."""
    holds = HOLDS_MIB.format(700)
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}])"
    then = f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); time.sleep(20)"
    ended = bounded(tmp_path, 0.5, then)
    assert ended.returncode == 1
    mark = (tmp_path / memory.MARK).read_text()
    assert re.fullmatch(r"0\.[5-9]\d GiB in 3 processes, but resources\.memory allows 0\.5", mark)
    until = time.monotonic() + 10
    while lives(int(ended.stdout)):
        assert time.monotonic() < until
        time.sleep(0.05)


def lives(pid: int) -> bool:
    """Whether a process has not ended; one that has is there until its parent, here the machine's first, asks."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_forked_processes_share_counts_once(tmp_path: Path) -> None:
    """300 MiB in this process and its four forks, 1.5 GiB of resident memory in all; then one writes 600 of its own."""
    then = """
held = bytearray(b"1") * (300 * 2**20)
forks = []
for fork in range(4):
    if not (pid := os.fork()):
        time.sleep(2.5)
        own = bytearray(b"2") * (600 * 2**20 if fork == 0 else 1)
        time.sleep(20); os._exit(0)
    forks.append(pid)
time.sleep(2); print("alive", flush=True); time.sleep(20)
"""
    ended = bounded(tmp_path, 0.6, then)
    assert (ended.returncode, ended.stdout) == (1, "alive\n")
    assert (tmp_path / memory.MARK).read_text().endswith("GiB in 5 processes, but resources.memory allows 0.6")


def test_a_mark_of_a_trial_that_the_record_does_not_know_is_no_concern_of_this_one(tmp_path: Path) -> None:
    (tmp_path / memory.MARK).write_text("9 GiB")
    end = TrialRun(assignment(tmp_path, begun=True)).next_batch().end
    assert (end.cause, end.reason) == ("memory", "out of memory: 9 GiB")
    assert TrialRun(assignment(tmp_path, begun=False)).next_batch().end is None


def test_a_worker_that_ends_in_its_test_takes_nothing_from_the_training(tmp_path: Path) -> None:
    trained = TrialRun(noisy(tmp_path))
    trained.next_batch()
    (tmp_path / trial_run.TESTING).write_text(str(trial_run.TESTS_ALLOWED))
    assert trained.next_batch().tests
    last = trained.next_batch()
    assert last.end == Ending("COMPLETE")
    assert last.untested.reason == "its worker ended 3 times while it was tested"
    (tmp_path / memory.MARK).write_text("9 GiB")
    again = TrialRun(noisy(tmp_path))
    while (batch := again.next_batch()).end is None:
        pass
    assert (batch.end, batch.untested.reason) == (Ending("COMPLETE"), "out of memory: 9 GiB")


def test_a_run_of_confirmation_that_fails_before_it_could_say_on_what_it_runs_has_failed(home: Path) -> None:
    study = toy(budget={"trials": 1}, confirm={"top": 1, "seeds": 1})
    (cell,) = study.cells
    ledger = Writer.at(home)
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    ledger.enter(study, cell, ask(study, cell, ["min"], []), seed=1)
    ledger.write_rows(study, cell, 0, [Row(20, {"val_loss": 0.5, "val_speed": 0.5}, 1.0)])
    ledger.end(study, cell, 0, Ending("COMPLETE"))
    assert confirm.pending(ledger, study, 0) == [(cell.under(0), 0)]
    ledger.end(study, cell.under(0), 0, Ending("FAIL", "worker lost 4 times", cause="lost"))
    assert confirm.pending(ledger, study, 0) == []
    (found,) = confirm.confirmed(ledger, study)[cell.key]
    assert [run.trial.state for run in found.runs] == ["FAIL"]
    assert found.runs[0].trial.seed == fresh_seed(study.seed, 0)


# All fail -----------------------------------------------------------------------------------------------------------


def test_a_study_whose_trials_all_fail_stops_after_the_share_with_the_commonest_reason(home: Path) -> None:
    fails = {"resources": {"slots": 1}, "fixed": {"ends": "raises"}}
    study = toy(budget={"trials": 8, "fail_share": 0.25}, **fails)
    with pytest.raises(StudyError, match="all 2 that ended have failed, 2 of them with: raised: RuntimeError: planted"):
        in_process.run(study, home, mirror=False)
    assert [trial[2] for trial in whole(home)[:2]] == ["FAIL", "FAIL"]
    assert len(whole(home)) <= 3
    with pytest.raises(StudyError, match=r"fail_share=1` \(now 0\.25\)"):
        in_process.run(study, home, mirror=False)
    assert len(whole(home)) <= 3
    in_process.run(toy(budget={"trials": 8, "fail_share": 1.0}, **fails), home, mirror=False)
    assert [trial[2] for trial in whole(home)] == ["FAIL"] * 8


def test_no_cell_is_judged_before_it_had_its_turn(home: Path) -> None:
    study = toy(
        compare={"ends": ["raises", "diverges", "well"]},
        budget={"trials": 1, "fail_share": 0.1},
        resources={"slots": 1},
    )
    in_process.run(study, home, mirror=False)
    assert [trial[2] for trial in whole(home)] == ["FAIL", "FAIL", "COMPLETE"]


def test_one_trial_that_does_well_keeps_a_study_going(home: Path) -> None:
    study = toy(compare={"ends": ["raises", "well"]}, budget={"trials": 2, "fail_share": 0.25}, resources={"slots": 1})
    in_process.run(study, home, mirror=False)
    assert len(whole(home)) == 4


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


# A disk that takes nothing ------------------------------------------------------------------------------------------


class Disk:
    """A disk that is full for so many writes of checkpoints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left, self._write = times, files.make_directory
        monkeypatch.setattr(files, "make_directory", self.write)
        monkeypatch.setattr(trial_run, "SAVE_AGAIN_S", 0.0)

    def write(self, *args: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(*args)


def test_training_goes_on_where_a_checkpoint_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, times=1)
    run_ = TrialRun(assignment(tmp_path, checkpoint_s=0.0, batch_s=0.0))
    run_.next_batch()
    second = run_.next_batch()
    assert second.unsaved == "No space left on device"
    assert [row.step for row in second.rows] == [10]
    assert second.end is None
    assert run_.next_batch().checkpoint.step == 10


def test_a_trial_ends_only_when_its_last_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, times=2)
    run_ = TrialRun(assignment(tmp_path))
    run_.next_batch()
    for _ in range(2):
        waiting = run_.next_batch()
        assert (waiting.rows, waiting.unsaved) == ((), "No space left on device")
        assert waiting.end is None
    last = run_.next_batch()
    assert (last.checkpoint.step, last.end) == (20, Ending("COMPLETE"))


def test_what_a_trainable_raises_while_it_saves_is_its_own_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, state: object) -> None:
        raise RuntimeError("no such tensor")

    monkeypatch.setattr(toy_trainable, "_save", broken)
    run_ = TrialRun(assignment(tmp_path))
    run_.next_batch()
    assert run_.next_batch().end.reason == "raised: RuntimeError: no such tensor"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed: file write failed"),
        raised_from(ValueError("cannot save"), OSError(errno.EIO, "Input/output error")),
    ],
)
def test_an_error_that_says_that_the_disk_is_at_fault_is_no_failure_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever a probe shows: a large file may fill a disk that has room again once it is gone."""

    def fails(path: Path, state: object) -> None:
        raise error

    monkeypatch.setattr(toy_trainable, "_save", fails)
    monkeypatch.setattr(trial_run, "SAVE_AGAIN_S", 0.0)
    run_ = TrialRun(assignment(tmp_path))
    run_.next_batch()
    for _ in range(2):
        waiting = run_.next_batch()
        assert (waiting.end, waiting.waits) == (None, "end")
        assert waiting.unsaved in str(error.__cause__ or error)


def test_a_place_that_takes_no_file_is_no_failure_of_the_trial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a directory should be")
    with pytest.raises(local.DiskFault, match="Not a directory"):
        local.write(tmp_path / "file" / "trial", 5, lambda path: path.touch())


def test_a_disk_that_stays_full_stops_the_study_with_one_line_and_loses_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = toy()
    (cell,) = study.cells
    ledger = Writer.at(home)
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    ledger.enter(study, cell, ask(study, cell, ["min"], []), seed=1)
    ear = Ear()
    recorder = Recorder(ledger, study, ear)
    clock = iter([0.0, 0.0, 30.0, 30.0, 61.0, 61.0])
    monkeypatch.setattr(record.time, "monotonic", lambda: next(clock))
    waiting = News(unsaved="No space left on device", waits="end")
    for iteration in range(3):
        assert recorder.failure is None
        recorder.take("tune", iteration, assignment(home, cell=cell.key), waiting)
    assert isinstance(recorder.failure, StudyError)
    assert "No space left on device for 60s; make room, and the same command goes on" in str(recorder.failure)
    assert len([line for line in ear.lines if "no checkpoint can be written" in line]) == 1
    assert ledger.trials(study, cell)[0].state == "RUNNING"


def test_a_disk_that_takes_no_word_of_a_trial_does_not_fail_it(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from cs330ray.service.workers import log\n"
        "log.log_into(Path(sys.argv[1])); full = os.open('/dev/full', os.O_WRONLY); os.dup2(full, 1)\n"
        "print('x' * 100_000, flush=True); log.log_into(Path(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60).returncode == 0


# Thinning -----------------------------------------------------------------------------------------------------------


def test_of_the_finished_trials_the_best_keep_their_last_checkpoint_and_all_keep_their_rows(home: Path) -> None:
    study = toy(budget={"trials": 5}, resources={"slots": 1, "keep": 2})
    in_process.run(study, home, mirror=False)
    ledger = Writer.at(home)
    (cell,) = study.cells
    trials = ledger.trials(study, cell)
    best = sorted(trials, key=lambda trial: trial.values or ())[:2]
    assert sorted(ledger.checkpoints(study, cell)) == sorted(trial.number for trial in best)
    for trial in trials:
        left = list(checkpoints_of(home, "toy", cell, trial.number).glob("step-*"))
        assert [path.name for path in left] == (["step-00000020"] if trial in best else [])
        assert ledger.last_step(study, cell, trial.number) == 20


def test_more_may_be_kept_from_now_on_and_fewer_at_once(home: Path) -> None:
    in_process.run(toy(budget={"trials": 3}, resources={"slots": 1}), home, mirror=False)
    ledger = Writer.at(home)
    study = ledger.study("toy")
    assert len(ledger.checkpoints(study, study.cells[0])) == 3
    in_process.run(toy(budget={"trials": 3}, resources={"slots": 1, "keep": 0}), home, mirror=False)
    assert ledger.checkpoints(study, study.cells[0]) == {}


def test_runs_of_confirmation_keep_their_checkpoints(home: Path) -> None:
    study = toy(budget={"trials": 1}, resources={"slots": 1, "keep": 0}, confirm={"top": 1, "seeds": 1})
    in_process.run(study, home, mirror=False)
    ledger = Writer.at(home)
    (cell,) = study.cells
    assert ledger.checkpoint(study, cell, 0) is None
    kept = ledger.checkpoint(study, cell.under(0), 0)
    assert kept is not None
    assert local.read(Path(kept)).step == 20


def test_a_trial_for_which_a_gpu_has_no_memory_fails_as_such_and_the_study_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CUDA raises is injected, where half of the trials are too large."""
    train = toy_trainable.train

    def short_of_memory(config: toy_trainable.Config, *given: Any) -> Iterator[Progress]:
        for progress in train(config, *given):
            if config.body == "large" and progress.step > 10:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            yield progress

    monkeypatch.setattr(toy_trainable, "train", short_of_memory)
    in_process.run(toy(budget={"trials": 6, "fail_share": 1.0}), home, mirror=False)
    ledger = Writer.at(home)
    found = ledger.trials(study := ledger.study("toy"), study.cells[0])
    ends = {trial.params["body"]: (trial.state, trial.cause, trial.reason) for trial in found}
    assert ends == {
        "small": ("COMPLETE", None, ""),
        "large": (
            "FAIL",
            "memory",
            "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
    }


# What a trial wrote -------------------------------------------------------------------------------------------------


def test_what_a_trial_writes_is_in_a_log_of_its_own_that_show_prints(
    home: Path, ray_here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = toy(fixed={"ends": "speaks"}, budget={"trials": 2}, resources={"slots": 1})
    run(study, home, mirror=False)
    ledger = Writer.at(home)
    (cell,) = study.cells
    for trial in ledger.trials(study, cell):
        text = (checkpoints_of(home, "toy", cell, trial.number) / places.LOG).read_text()
        assert text.count("words of seed") == 1
        assert f"words of seed {trial.seed}\n" in text
        assert "and from below\n" in text
    with pytest.raises(SystemExit):
        app.app(["show", "toy", "1", "--log"])
    assert f"words of seed {ledger.trials(study, cell)[1].seed}\n" in capsys.readouterr().out


def logged(home: Path, then: str) -> subprocess.CompletedProcess[str]:
    """A process that writes into the log of the trial `home / "one"`, and does what `then` says."""
    script = (
        "import logging, os, subprocess, sys, time\nfrom pathlib import Path\n"
        "from cs330ray.service.workers import log\n"
        f"home = Path(sys.argv[1]); log.LOOK_S = 0.05; log.log_into(home / 'one')\n{then}"
    )
    command = [sys.executable, "-c", script, str(home)]
    return subprocess.run(command, timeout=60, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_a_log_keeps_its_head_and_its_tail_and_says_how_much_was_left_out(tmp_path: Path) -> None:
    """Ten million bytes of a thousand each, half of them written by a child, while it is kept within bounds."""
    then = """
def say(numbers):
    for number in numbers:
        print(f"{number:0999d}", flush=True)
        if number % 1000 == 0:
            time.sleep(0.2)
say(range(5000))
child = "for number in range(5000, 10000): print(f'{number:0999d}')"
subprocess.run([sys.executable, "-c", child]); log.log_into(home / "two"); print("of the other", flush=True)
"""
    assert logged(tmp_path, then).returncode == 0
    text = (tmp_path / "one" / places.LOG).read_bytes()
    assert len(text) <= log.MOST_BYTES
    head, tail = text[: log.HEAD_BYTES], text[-log.TAIL_BYTES :]
    middle = text[log.HEAD_BYTES : -log.TAIL_BYTES]
    written = b"".join(b"%0999d\n" % number for number in range(10_000))
    assert head == written[: log.HEAD_BYTES]
    assert tail == written[-log.TAIL_BYTES :]
    (left_out,) = re.findall(rb"\n\.\.\. (\d+) bytes of this log are left out \.\.\.\n", middle)
    kept = len(text) - len(b"\n... %s bytes of this log are left out ...\n" % left_out)
    assert 0.99 * len(written) < kept + int(left_out) <= len(written)  # what is written while it is cut may be lost
    assert (tmp_path / "two" / places.LOG).read_text() == "of the other\n"


@pytest.mark.parametrize(
    "does",
    [
        "os.close(1); os.close(2)",
        "os.close(1); os.close(2); kept = [open('/dev/null') for _ in range(3)]",
        "sys.stdout.close(); sys.stderr.close()",
        "sys.stdout.buffer.close(); sys.stderr.detach()",
        "sys.stdout = sys.stderr = None",
        "import io; sys.stdout, sys.stderr = io.StringIO(), open('/dev/null', 'w')",
    ],
)
def test_what_a_trial_does_to_its_streams_takes_nothing_from_the_log_of_the_next(tmp_path: Path, does: str) -> None:
    then = f"""
logging.basicConfig()
print("first", flush=True)
{does}
print("unheard", file=sys.stdout)
log.log_into(home / "two")
print("second", flush=True); os.write(2, b"below\\n"); logging.warning("kept handler")
subprocess.run([sys.executable, "-c", "print('child')"])
"""
    assert logged(tmp_path, then).returncode == 0
    assert (tmp_path / "one" / places.LOG).read_text() in ("first\n", "first\nunheard\n")
    text = (tmp_path / "two" / places.LOG).read_text()
    assert text == "second\nbelow\nWARNING:root:kept handler\nchild\n"


def test_a_checkpoint_ahead_of_the_record_is_dropped_and_its_rows_come_again(tmp_path: Path) -> None:
    first = TrialRun(assignment(tmp_path, checkpoint_s=0.0, batch_s=0.0))
    rows = [row for _ in range(3) for row in first.next_batch().rows]
    assert [row.step for row in rows] == [5, 10, 15]
    second = TrialRun(assignment(tmp_path, recorded_step=5))
    again = second.next_batch()
    assert again.start.resumed_from_step == 5
    assert [row.step for row in again.rows] == [10, 15, 20]
    assert [row.metrics for row in again.rows][:2] == [dict(row.metrics) for row in rows[1:]]
    shutil.rmtree(tmp_path)
