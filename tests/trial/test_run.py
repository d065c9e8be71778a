"""What a trial's rows and saves may not be, with the line that a person reads, whoever runs the trial."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cs330ray.checkpoints import local
from cs330ray.errors import ContractError
from cs330ray.ledger.records import Ending
from cs330ray.service.messages import Continuation
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.trial import run
from cs330ray.trial.contract import Item, Progress, Scores
from cs330ray.trial.environment import reason_of
from tests import toy as toy_trainable
from tests.assignments import assignment

STEPS = 4


def save(directory: Path) -> None:
    (directory / "state.json").write_text("{}")


def of_steps(*steps: Any) -> list[Any]:
    return [Progress(step, {"val_loss": 0.5}, save) for step in steps]


def of_metrics(metrics: Any) -> list[Any]:
    return [Progress(1, metrics, save)]


def value(number: Any) -> list[Any]:
    return of_metrics({"val_loss": number})


def saving(write: Any) -> list[Any]:
    return [Progress(STEPS, {"val_loss": 0.5}, write)]


def nested(directory: Path) -> None:
    (directory / "weights" / "state.json").write_text("{}")


def manifest(directory: Path) -> None:
    (directory / "MANIFEST.json").write_text("{}")


def link_to(target: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        save(directory)
        (directory / "latest").symlink_to(target)

    return write


def absolute_link(directory: Path) -> None:
    save(directory)
    (directory / "latest").symlink_to(directory / "state.json")


def pipe(directory: Path) -> None:
    os.mkfifo(directory / "pipe")


def refused(error: BaseException) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        raise error

    return write


class Endless:
    """An object whose words are none."""

    def __repr__(self) -> str:
        raise RuntimeError


ODD: dict[str, tuple[Any, str]] = {
    "same step twice": (of_steps(1, 1), "yielded step 1 after step 1; steps must rise"),
    "back": (of_steps(1, 2, 1, 2), "yielded step 1 after step 2; steps must rise"),
    "step 0": (of_steps(0), "yielded step 0; the first is 1"),
    "step -3": (of_steps(-3), "yielded step -3; the first is 1"),
    "beyond the end": (of_steps(3, 6), "yielded step 6, but the trial has 4; end with a row at `steps`"),
    "float": (of_steps(1.0), "step must be a whole number, got 1.0"),
    "tensor": (of_steps(torch.tensor(3)), "step must be a whole number, got tensor(3)"),
    "bool": (of_steps(True), "step must be a whole number, got True"),
    "None": (of_steps(None), "step must be a whole number, got None"),
    "text": (of_steps("1"), "step must be a whole number, got '1'"),
    "a dictionary": ([{"step": 1, "val_loss": 0.5}], "train must yield Progress, got dict"),
    "a tuple": ([(1, {"val_loss": 0.5})], "train must yield Progress, got tuple"),
    "a bare yield": ([None], "train must yield Progress, got None"),
    "metrics are a list": (
        of_metrics([0.5]),
        "step 1: metrics must be a mapping of names to numbers, got [0.5]",
    ),
    "metrics are None": (of_metrics(None), "step 1: metrics must be a mapping of names to numbers, got None"),
    "name is a number": (of_metrics({3: 1.0}), "step 1: the name of a metric must be text, got 3"),
    "value is None": (value(None), "step 1: val_loss must be a number, got None"),
    "value is text": (value("0.5"), "step 1: val_loss must be a number, got '0.5'"),
    "value is bytes": (value(b"0.5"), "step 1: val_loss must be a number, got b'0.5'"),
    "value is complex": (value(1 + 2j), "step 1: val_loss must be a number, got (1+2j)"),
    "value is NumPy's complex": (value(np.array(1j)), "step 1: val_loss must be a number, got array(0.+1.j)"),
    "value is a list": (value([0.5]), "step 1: val_loss must be a number, got [0.5]"),
    "value is a dictionary": (
        of_metrics({"val": {"loss": 0.5}}),
        "step 1: val must be a number, got {'loss': 0.5}",
    ),
    "value is an array": (value(np.array([1.0, 2.0])), "step 1: val_loss must be a number, got array([1., 2.])"),
    "value is a vector": (
        value(torch.tensor([0.5, 0.25])),
        "step 1: val_loss must be a number, got tensor([0.5000, 0.2500])",
    ),
    "value is a matrix": (value(torch.eye(2)), "step 1: val_loss must be a number, got tensor([[1., 0.], [0., 1.]])"),
    "value is too large": (value(10**400), f"step 1: val_loss must be a number, got 1{'0' * 56}..."),
    "value without words": (value(Endless()), "step 1: val_loss must be a number, got Endless"),
    "save is None": (saving(None), "step 4: save must be a function of a directory, got None"),
    "save writes nothing": (
        saving(lambda directory: None),
        "save wrote no file; write all that the rest of the training depends on",
    ),
    "save writes our manifest": (
        saving(manifest),
        "save must not write MANIFEST.json, which names the files of a checkpoint; take another name",
    ),
    "save links to nothing": (
        saving(link_to("gone.json")),
        "save wrote latest, a link that leads to no file of the checkpoint; write the file",
    ),
    "save links outside": (
        saving(link_to("../../../../../../../../etc/passwd")),
        "save wrote latest, a link that leads to no file of the checkpoint; write the file",
    ),
    "save links to where it will not be": (
        saving(absolute_link),
        "save wrote latest, a link that leads to no file of the checkpoint; write the file",
    ),
    "save makes a pipe": (saving(pipe), "save wrote pipe, which is no file; a checkpoint holds files alone"),
    "save misses a directory": (
        saving(nested),
        "raised: FileNotFoundError: [Errno 2] No such file or directory: 'weights/state.json'"
        " (in the directory that `save` was given)",
    ),
    "save may not": (saving(refused(PermissionError(13, "no"))), "raised: PermissionError: [Errno 13] no"),
    "save raises without a word": (saving(refused(OSError())), "raised: OSError"),
    "save exits": (saving(refused(SystemExit("no disk for me"))), "raised: SystemExit: no disk for me"),
}  # fmt: skip
each = pytest.mark.parametrize("name", ODD)


def train_of(name: str) -> Callable[..., Iterator[Any]]:
    def train(*_: Any) -> Iterator[Any]:
        yield from ODD[name][0]

    return train


@each
def test_an_odd_row_or_save_ends_its_trial_with_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_trainable, "train", train_of(name))
    trial = TrialRun(assignment(tmp_path, steps=STEPS))
    while (news := trial.next_batch()).end is None:
        assert news.unsaved is None
    assert (news.end.state, news.end.cause) == ("FAIL", "raised")
    assert news.end.reason == ODD[name][1]
    assert local.newest(tmp_path) is None
    assert list(tmp_path.glob(".partial*")) == []


@each
def test_the_plain_loop_says_the_same(name: str, tmp_path: Path) -> None:
    with pytest.raises(BaseException) as broken:  # noqa: PT011 - what is said is compared
        list(run.run_alone(SimpleNamespace(train=train_of(name)), None, 0, STEPS, tmp_path))
    assert reason_of(broken.value) == ODD[name][1]


@pytest.mark.parametrize("returned", [None, [1, 2], of_steps(1, 2), 3])
def test_a_train_that_yields_nothing_is_told_to(returned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_trainable, "train", lambda *_: returned)
    end = TrialRun(assignment(tmp_path)).next_batch().end
    got = "None" if returned is None else type(returned).__name__
    assert end == Ending("FAIL", f"train must `yield` Progress as it trains, got {got}", cause="raised")


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (1, 1.0), (True, 1.0), (np.float32(0.5), 0.5), (np.int64(3), 3.0), (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5), (torch.tensor([0.25]), 0.25), (torch.tensor(3, dtype=torch.int8), 3.0),
        (float("inf"), float("inf")),
    ],
)  # fmt: skip
def test_the_number_of_whichever_library_is_a_plain_number_in_a_row(given: Any, number: float) -> None:
    trainable = SimpleNamespace(train=lambda *_: iter([Progress(np.int32(1), {"val_loss": given}, save)]))
    (row,) = run.train(trainable, None, 0, STEPS)
    assert (row.step, row.metrics) == (1, {"val_loss": number})
    assert (type(row.step), type(row.metrics["val_loss"])) == (int, float)


def test_folders_hidden_files_and_links_within_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "weights" / "é ü").mkdir(parents=True)
        (directory / "weights" / "é ü" / ".state").write_text("{}")
        (directory / "latest").symlink_to("weights/é ü/.state")

    list(run.run_alone(SimpleNamespace(train=lambda *_: iter(saving(write))), None, 0, STEPS, tmp_path))
    assert (local.newest(tmp_path).path / "latest").read_text() == "{}"


def test_the_row_of_the_last_step_is_the_last_that_is_asked_for_and_the_generator_is_closed(tmp_path: Path) -> None:
    closed = []

    def train(*_: Any) -> Iterator[Progress]:
        step = 0
        try:
            while True:
                step += 1
                yield from of_steps(step)
        finally:
            closed.append(step)

    trainable = SimpleNamespace(train=train)
    assert [row.step for row in run.run_alone(trainable, None, 0, STEPS, tmp_path)] == [1, 2, 3, 4]
    assert closed == [4]
    assert list(run.run_alone(trainable, None, 0, STEPS, tmp_path)) == []


def test_what_a_generator_raises_when_it_is_closed_takes_nothing_from_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: Any) -> Iterator[Progress]:
        try:
            yield from of_steps(STEPS)
        finally:
            raise ValueError("while it was closed")

    monkeypatch.setattr(toy_trainable, "train", train)
    trial = TrialRun(assignment(tmp_path, steps=STEPS))
    trial.next_batch()
    assert trial.next_batch().end == Ending("COMPLETE")
    trial.close()
    assert "ValueError: while it was closed" in capsys.readouterr().err


# Where it resumed ---------------------------------------------------------------------------------------------------


def test_a_trainable_that_ignores_its_checkpoint_is_found_out_wherever_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TrialRun(assignment(tmp_path, checkpoint_s=0.0, batch_s=0.0))
    for _ in range(3):
        first.next_batch()
    assert local.newest(tmp_path).step == 10
    train = toy_trainable.train
    monkeypatch.setattr(toy_trainable, "train", lambda config, seed, steps, resume: train(config, seed, steps))
    line = "yielded step 5 after resuming from 10; `train` must continue from the checkpoint `resume`"
    news = TrialRun(assignment(tmp_path)).next_batch()
    assert (news.start.resumed_from_step, news.rows) == (10, ())
    assert news.end == Ending("FAIL", line, cause="raised")
    with pytest.raises(ContractError) as broken:
        list(run.run_alone(toy_trainable, toy_trainable.Config(eval_every_steps=5), 7, 20, tmp_path))
    assert str(broken.value) == line


def test_rows_between_the_checkpoint_and_the_last_recorded_row_come_again_and_are_no_fault(tmp_path: Path) -> None:
    """A continuation of a trial of 15 steps, of which the checkpoint of 5 is left."""
    train, config = toy_trainable.train, toy_trainable.Config(lr=0.5, eval_every_steps=5)
    progress = next(train(config, 7, 15))
    begun = local.write(tmp_path / "before", progress.step, progress.save)
    continues = Continuation(after_step=15, begin_at=str(begun.path))
    news = TrialRun(replace(assignment(tmp_path / "own"), continues=continues)).next_batch()
    assert news.start.resumed_from_step == 5
    assert [row.step for row in news.rows] == [20]
    assert news.end is None


# What test returns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (None, "test must return Scores, got None"),
        ({"test_loss": 0.5}, "test must return Scores, got dict"),
        (Scores({"test_loss": None}), "test_loss must be a number, got None"),
        (Scores({"test_loss": torch.ones(2)}), "test_loss must be a number, got tensor([1., 1.])"),
        (Scores({"test_loss": 1.0}, {"test_loss": [0.5]}), "test_loss: each item of Scores must be an Item, got 0.5"),
        (
            Scores({"test_loss": 1.0}, {"test_loss": [Item("a", "b")]}),
            "test_loss of item 'a' must be a number, got 'b'",
        ),
    ],
)  # fmt: skip
def test_odd_scores_are_one_line_and_take_nothing_from_the_training(
    found: Any, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_trainable, "test", lambda *_: found)
    trial = TrialRun(assignment(tmp_path, test=True))
    while (last := trial.next_batch()).end is None:
        pass
    assert (last.end, last.untested.reason) == (Ending("COMPLETE"), line)
