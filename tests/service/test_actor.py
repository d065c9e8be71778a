"""The worker's side, driven without Ray."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cs330ray.checkpoints import local
from cs330ray.ledger.records import Ending
from cs330ray.service.messages import Assignment, News
from cs330ray.service.workers import trial_run
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.trial.environment import Told
from tests import toy
from tests.assignments import assignment


def steps(batch: News) -> list[int]:
    return [row.step for row in batch.rows]


def said(news: News) -> set[str]:
    """What the news say something of."""
    return {name for name, value in vars(news).items() if value not in (None, ())}


def last_of(run: TrialRun) -> News:
    """The news with which a trial ends."""
    while (news := run.next_batch()).end is None:
        pass
    return news


def test_the_last_rows_come_back_not_done_and_one_further_call_saves_then_ends(tmp_path: Path) -> None:
    run = TrialRun(assignment(tmp_path))
    first = run.next_batch()
    assert steps(first) == [5, 10, 15, 20]
    assert first.end is None
    assert local.newest(tmp_path) is None
    second = run.next_batch()
    assert list(second.rows) == []
    assert second.end == Ending("COMPLETE")
    assert second.checkpoint.step == 20
    assert local.newest(tmp_path) is not None


def test_no_checkpoint_is_ever_ahead_of_the_rows_that_were_handed_over(tmp_path: Path) -> None:
    run, handed = TrialRun(assignment(tmp_path, batch_s=0.0, checkpoint_s=0.0)), 0
    while True:
        batch = run.next_batch()
        newest = local.newest(tmp_path)
        assert newest is None or newest.step <= handed
        handed = max([handed, *steps(batch)])
        if batch.end is not None:
            break
    assert handed == 20


def test_a_batch_ends_at_every_step_where_the_pruner_may_be_asked(tmp_path: Path) -> None:
    run = TrialRun(assignment(tmp_path, prune_every=10))
    assert steps(run.next_batch()) == [5, 10]
    assert steps(run.next_batch()) == [15, 20]


def test_a_batch_ends_at_the_first_row_past_where_the_pruner_may_be_asked(tmp_path: Path) -> None:
    run = TrialRun(assignment(tmp_path, prune_every=7))
    assert [steps(run.next_batch()) for _ in range(3)] == [[5, 10], [15], [20]]
    run = TrialRun(assignment(tmp_path / "fine", prune_every=2))
    assert [steps(run.next_batch()) for _ in range(4)] == [[5], [10], [15], [20]]


def test_another_process_goes_on_from_the_newest_checkpoint_and_yields_the_same_rows(tmp_path: Path) -> None:
    unbroken = TrialRun(assignment(tmp_path / "a")).next_batch().rows
    cut = TrialRun(assignment(tmp_path / "b", batch_s=0.0, checkpoint_s=0.0))
    first = [row for _ in range(3) for row in cut.next_batch().rows]
    cut.close()
    rest = TrialRun(assignment(tmp_path / "b")).next_batch()
    assert rest.start.resumed_from_step == 10
    assert rest.checkpoint.step == 10
    together = {row.step: row.metrics for row in [*first, *rest.rows]}
    assert together == {row.step: row.metrics for row in unbroken}


def test_a_trial_cut_between_its_last_checkpoint_and_its_end_ends_without_training_again(tmp_path: Path) -> None:
    run = TrialRun(assignment(tmp_path))
    run.next_batch(), run.next_batch()
    again = TrialRun(assignment(tmp_path))
    batch = again.next_batch()
    assert list(batch.rows) == []
    assert again.next_batch().end == Ending("COMPLETE")


@pytest.mark.parametrize("left", [None, "OUT_OF_MEMORY", "TESTING"])
def test_a_disk_that_takes_no_writes_when_a_trial_begins_is_no_failure_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str | None
) -> None:
    """It refuses to remove a file that is not there, too. What another trial left here has to go before it begins."""
    monkeypatch.setattr(trial_run, "SAVE_AGAIN_S", 0.0)
    if left is not None:
        (tmp_path / left).write_text("1")
    run = TrialRun(assignment(tmp_path, begun=False))
    with monkeypatch.context() as read_only:

        def refuses(path: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        read_only.setattr(Path, "unlink", refuses)
        first = run.next_batch()
    if left is None:
        assert steps(first) == [5, 10, 15, 20]
        return
    assert first == News(unsaved="Read-only file system", waits="begin")
    assert steps(run.next_batch()) == [5, 10, 15, 20]
    assert not (tmp_path / left).exists()


@pytest.mark.parametrize(
    ("ends", "cause", "reason"),
    [
        ("raises", "raised", "raised: RuntimeError: planted"),
        ("diverges", "diverged", "diverged: the loss is inf at step 7"),
    ],
)
def test_what_a_trainable_raises_is_a_result_with_cause_reason_and_traceback(
    tmp_path: Path, ends: str, cause: str, reason: str
) -> None:
    batch = TrialRun(assignment(tmp_path, config={"ends": ends, "ends_at": 7})).next_batch()
    assert steps(batch) == [5]
    assert batch.end is not None
    assert (batch.end.state, batch.end.cause, batch.end.reason) == ("FAIL", cause, reason)
    assert "tests/toy.py" in batch.end.traceback


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (SystemExit("no data for this fold"), "raised: SystemExit: no data for this fold"),
        (SystemExit(0), "raised: SystemExit: 0"),
        (KeyboardInterrupt(), "raised: KeyboardInterrupt"),
        (asyncio.CancelledError("late"), "raised: asyncio.exceptions.CancelledError: late"),
        (GeneratorExit(), "raised: GeneratorExit"),
        (
            BaseExceptionGroup("two", [ValueError("one"), KeyboardInterrupt()]),
            "raised: BaseExceptionGroup: two (2 sub-exceptions): ValueError: one; KeyboardInterrupt",
        ),
    ],
    ids=lambda each: "" if isinstance(each, str) else repr(each)[:30],
)
@pytest.mark.parametrize("where", ["train", "test"])
def test_whatever_a_trainable_raises_is_its_end_with_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, reason: str, where: str
) -> None:
    def raises(*_: Any) -> Any:
        raise raised
        yield

    monkeypatch.setattr(toy, where, raises if where == "train" else lambda *_: next(raises()))
    run = TrialRun(assignment(tmp_path, test=True))
    news = run.next_batch()
    if where == "train":
        said, text = (news.end.state, news.end.cause, news.end.reason), news.end.traceback
        assert said == ("FAIL", "raised", reason)
    else:
        news = last_of(run)
        assert news.end == Ending("COMPLETE")
        assert news.untested.reason == reason
        text = news.untested.traceback
    assert text.startswith(("Traceback", "  + Exception Group Traceback"))
    assert "test_actor.py" in text


def test_what_is_raised_in_a_process_that_a_signal_told_to_end_is_no_word_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray ends a worker: its handler of SIGTERM raises SystemExit, in the midst of a step."""

    def handler(number: int, frame: object) -> None:
        raise SystemExit(1)

    def train(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    monkeypatch.setattr(toy, "train", train)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with Told() as told, pytest.raises(SystemExit):
            TrialRun(assignment(tmp_path), told=told).next_batch()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_ctrl_c_is_a_word_of_the_person_and_not_of_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        yield

    monkeypatch.setattr(toy, "train", train)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background has it ignored
    try:
        with Told() as told, pytest.raises(KeyboardInterrupt):
            TrialRun(assignment(tmp_path), told=told).next_batch()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_configuration_that_its_validator_refuses_says_field_rule_and_value(tmp_path: Path) -> None:
    end = TrialRun(assignment(tmp_path, config={"lr": -1, "width": 99})).next_batch().end
    assert (end.state, end.cause) == ("FAIL", "raised")
    assert end.reason == ("raised: ValidationError: Config.lr: input should be greater than 0, but got -1 (and 1 more)")


def test_a_traceback_of_megabytes_keeps_its_beginning_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any) -> Any:
        raise ValueError("z" * 5_000_000 + "the end")
        yield

    monkeypatch.setattr(toy, "train", train)
    text = TrialRun(assignment(tmp_path)).next_batch().end.traceback
    assert len(text) < 101_000
    assert text.startswith("Traceback")
    assert text.endswith("zthe end\n")
    assert " characters left out ..." in text


def test_an_unknown_trainable_is_a_result_too(tmp_path: Path) -> None:
    batch = TrialRun(assignment(tmp_path, trainable="tests.nowhere")).next_batch()
    assert batch.end.state == "FAIL"


def noisy(home: Path, **config: Any) -> Assignment:
    return replace(assignment(home, trainable="tests.noisy", test=True), config=config, steps=3)


def test_a_trial_of_the_search_never_reads_test(tmp_path: Path) -> None:
    run = TrialRun(replace(noisy(tmp_path, on_test="raises"), test=False))
    run.next_batch()
    assert said(run.next_batch()) == {"checkpoint", "end"}


def test_scores_come_with_the_end_after_the_last_checkpoint_as_plain_numbers(tmp_path: Path) -> None:
    run = TrialRun(noisy(tmp_path, on_test="numpy"))
    assert run.next_batch().scores is None
    assert said(saved := run.next_batch()) == {"checkpoint", "tests"}  # the driver has it before the test begins
    assert saved.checkpoint.step == 3
    last = run.next_batch()
    assert said(last) == {"scores", "end"}
    assert last.end == Ending("COMPLETE")
    items = last.scores.items["test_accuracy"]
    assert {type(item.score) for item in items} | {type(last.scores.metrics["test_accuracy"])} == {float}
    assert last.scores.metrics["test_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("on_test", "reason"),
    [
        ("raises", "raised: RuntimeError: the test split was read"),
        ("nan", "raised: ValueError: test_accuracy must be finite, but got nan"),
    ],
)
def test_a_test_that_fails_leaves_the_training_complete_and_says_why(tmp_path: Path, on_test: str, reason: str) -> None:
    last = last_of(TrialRun(noisy(tmp_path, on_test=on_test)))
    assert last.end == Ending("COMPLETE")
    assert last.scores is None
    assert last.untested.reason == reason
    assert "Traceback" in last.untested.traceback


def test_a_trial_cut_before_its_test_is_tested_from_its_last_checkpoint(tmp_path: Path) -> None:
    run = TrialRun(replace(noisy(tmp_path), test=False))
    run.next_batch(), run.next_batch()
    assert last_of(TrialRun(noisy(tmp_path))).scores.metrics["test_accuracy"] == 0.5


def test_a_trial_that_reaches_no_row_is_not_tested(tmp_path: Path) -> None:
    run = TrialRun(replace(noisy(tmp_path, stops_at=1), steps=0))
    run.next_batch()
    assert said(last_of(run)) == {"end"}


SPARE = """
import subprocess, sys
from pathlib import Path
from cs330ray.service.messages import as_config
from cs330ray.service.workers import leftovers
from cs330ray.service.workers.actor import TrialActor
from cs330ray.spec.command import Command
from tests.assignments import assignment

home = Path(sys.argv[1])
told = as_config(assignment(home, command=Command(run=["true"], metrics={"val_loss": "min"})))
running = subprocess.Popen(["sleep", "600"], env={leftovers.MARK: str(home), "PATH": "/usr/bin:/bin"})
actor = TrialActor.__new__(TrialActor)
actor.setup(told)
print("set up:", running.poll(), home.exists())
actor.step()
print("stepped:", running.poll() is not None)
"""


def test_a_worker_that_gets_no_trial_touches_none(tmp_path: Path) -> None:
    """Tune may give the trial for which it starts a worker to another one that is free before."""
    home = tmp_path / "trial"
    done = subprocess.run([sys.executable, "-c", SPARE, str(home)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["set up: None False"], done.stderr
    assert (home / "log.txt").read_text() == "stepped: True\n"
