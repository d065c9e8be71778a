"""The script for a machine with a GPU: that a part that fails is a row, and that what it measures is what it says."""

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.gpu_parts import promises, speed

from benchmarks import auditor, gpu, greedy
from cs330ray.checkpoints import local
from cs330ray.trial import named

ROOT = Path(__file__).parents[2]


def test_all_parts_together_have_eight_minutes() -> None:
    assert sum(gpu.BUDGETS_S.values()) <= 8 * 60


def stand_in(monkeypatch: pytest.MonkeyPatch, body: str, tmp_path: Path) -> None:
    """Have every part run this script in place of its own process."""
    script = tmp_path / "part.py"
    script.write_text(f"import sys, json, time, pathlib\nfolder = pathlib.Path(sys.argv[-1])\n{body}\n")
    monkeypatch.setattr(gpu, "__file__", str(script))


ROW = '(folder / "rows.jsonl").write_text(json.dumps(dict(part="bf16", name="one", found="well", seconds=1.0)) + "\\n")'


def test_a_part_that_dies_has_the_rows_it_had_and_one_that_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, f"{ROW}\nprint('CUDA error: unspecified launch failure'); sys.exit(7)", tmp_path)
    first, last = gpu.run_part("bf16", "cpu", tmp_path / "bf16")
    assert (first.name, first.found, first.failed) == ("one", "well", False)
    assert last.failed
    assert last.found == "it ended with 7: CUDA error: unspecified launch failure"


def test_a_part_is_ended_when_its_budget_is_spent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeps = (
        'import subprocess\nsubprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\ntime.sleep(600)'
    )
    stand_in(monkeypatch, f"{ROW}\n{sleeps}", tmp_path)
    monkeypatch.setitem(gpu.BUDGETS_S, "bf16", 1)
    began = time.monotonic()
    first, last = gpu.run_part("bf16", "cpu", tmp_path / "bf16")
    assert (first.failed, last.failed, last.found) == (False, True, f"not done within {gpu.CPU_TIMES} s")
    assert time.monotonic() - began < 60
    assert list(auditor.processes([str(tmp_path)])) == []


def test_a_part_of_which_one_thing_fails_goes_on_and_the_exit_status_is_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(where: str, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "bad", lambda: str(1 / 0)
        yield "good", lambda: "well"
        yield "later", lambda: "not built"

    def done(part: str, where: str, folder: Path) -> Iterator[gpu.Row]:
        folder.mkdir(parents=True)
        gpu.do_part(part, where, folder)
        yield from (gpu.Row(**json.loads(line)) for line in (folder / gpu.ROWS).read_text().splitlines())

    monkeypatch.setattr(gpu, "rows_of", lambda part: rows)
    monkeypatch.setattr(gpu, "run_part", done)
    assert gpu.main(["--device", "cpu", "--parts", "bf16,steps"]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[2:]] == ["bad", "good", "later"] * 2
    assert lines[2].endswith("FAILED: ZeroDivisionError: division by zero")
    assert json.loads(last).items() >= {"failed": 2, "not_built": 2, "rows": 6}.items()


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match=r"^--device: expected a CUDA GPU, got none; write --device cpu"):
        gpu.main([])


def test_a_part_that_nobody_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--parts", "steps,sleep"])
    assert "expected some of tests,resumed,service,bf16,steps,together, got sleep" in capsys.readouterr().err


# Promises ------------------------------------------------------------------------------------------------------------


def test_every_system_is_killed_and_resumed() -> None:
    assert set(promises.TRIALS) == set(named.SYSTEMS)


def checkpoint(home: Path, value: float, step: int = 8) -> None:
    from safetensors.torch import save_file

    def save(path: Path) -> None:
        save_file({"w": torch.tensor([1.0, value])}, path / "state.safetensors")
        (path / "state.json").write_text('{"step": 8}')

    local.write(home, step, save)


@pytest.mark.parametrize("value", [2.0, 2.0000002])
def test_checkpoints_that_differ_in_one_bit_are_told_apart(value: float, tmp_path: Path) -> None:
    checkpoint(tmp_path / "one", 2.0)
    checkpoint(tmp_path / "other", value)
    if value == 2.0:
        assert promises.compared(tmp_path / "one", tmp_path / "other") == "1 tensors"
    else:
        with pytest.raises(AssertionError, match="w differs"):
            promises.compared(tmp_path / "one", tmp_path / "other")


def killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spoil: Callable[[Path], object]) -> str:
    """Leave a MANN behind its checkpoint as a killed process does, spoil something, resume it and compare."""
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    monkeypatch.setattr(promises, "TRIALS", {"mann": promises.TRIALS["mann"]})
    monkeypatch.setattr(os, "kill", lambda *_: None)
    promises.be_killed("cpu", str(tmp_path))
    spoil(tmp_path)
    return promises.same("mann", "cpu", tmp_path)


def test_a_killed_trial_that_is_resumed_equals_a_whole_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert killed(monkeypatch, tmp_path, lambda folder: None).startswith("4 rows and ")


def test_a_row_that_was_lost_or_changed_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        rows = json.loads((folder / "mann.json").read_text())
        rows[0][1]["val_loss"] += 1e-9
        (folder / "mann.json").write_text(json.dumps(rows))

    with pytest.raises(AssertionError, match="step 2: val_loss is"):
        killed(monkeypatch, tmp_path, spoil)


def test_a_greedy_trial_raises_what_the_device_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    with pytest.raises(MemoryError):
        list(greedy.train(greedy.Config(wants="all"), 0, 1))
    assert len(list(greedy.train(greedy.Config(wants="half"), 0, 1))) == 1


# Speed ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    config: Any
    seed: int
    steps: int
    resume: Path | None = None


class Clock:
    """A clock that only what is measured moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(speed, "now_s", lambda: self.now_s)
        monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: self.now_s))

    def work(self, seconds: float) -> None:
        self.now_s += seconds


def fused(clock: Clock, steps: int) -> SimpleNamespace:
    """A system whose members train together: ten seconds to begin with, a step one second, and .1 a member more."""

    def train_many(members: Sequence[Member], left: Collection[int] = ()) -> Iterator[Mapping[int, object]]:
        assert [member.seed for member in members] == list(range(len(members)))
        clock.work(10)
        for step in range(1, members[0].steps + 1):
            clock.work(1 + 0.1 * len(members))
            if step % steps == 0:
                yield dict.fromkeys(range(len(members)), object())

    return SimpleNamespace(Config=dict, prepare=lambda config: "", train_many=train_many)


def test_members_together_are_timed_between_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 steps take 55, 70 and 130 s: 1, 4 and 16 members take 50, 200 and 800 steps in them."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(speed.named, "load", lambda name: fused(clock, 50))
    monkeypatch.setattr(speed.contract, "Member", Member, raising=False)
    said = speed.rates("maml", {}, 50, 100)
    assert said.endswith("by their number: 1: 91 (x1.0), 4: 286 (x3.1), 16: 615 (x6.8)")


def test_a_member_that_ends_alone_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = SimpleNamespace(train_many=lambda members: iter([{0: ValueError("diverged")}]))
    monkeypatch.setattr(speed.contract, "Member", Member, raising=False)
    with pytest.raises(ValueError, match="diverged"):
        speed.lasted_s(trainable, None, 1, 1)


def test_a_system_is_timed_between_its_rows_and_a_loop_behind_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 5 steps take 50 s, the next 5 take 10; a loop's first call takes 9 s, the others .5."""
    clock, calls = Clock(monkeypatch), iter([9.0] + [0.5] * 100)

    def train(config: object, seed: int, steps: int) -> Iterator[int]:
        for seconds in (50, 10):
            clock.work(seconds)
            yield steps

    monkeypatch.setattr(speed.named, "load", lambda name: SimpleNamespace(train=train))
    assert speed.trained("maml", None, 5) == 0.5
    assert speed.repeated(lambda: clock.work(next(calls)), 4.0) == 2.0
    assert speed.told(6.0, 2.0) == "6.0 steps a second, the course's 2.0: x3.0"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu.main(["--device", "cpu"])
    said = capsys.readouterr().out
    assert code == 0, said
    figures = json.loads(said.splitlines()[-1])
    assert figures["failed"] == 0
    assert figures["rows"] == 1 + 7 + 2 + 3 + 7 + 3
