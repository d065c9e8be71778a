"""A trial that is a process of one's own: its rows, checkpoints, every way to misbehave, and what is left."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cs330ray.checkpoints import local
from cs330ray.errors import ContractError, DataError, Diverged, ProcessFailed, SpecError, WorkerLost
from cs330ray.spec.command import Command
from cs330ray.trial import environment, named, run
from cs330ray.trial.child import process
from cs330ray.trial.child.own import OwnProcess

PREFIX = """
import json, os, sys, time
def row(**told):
    with open(os.environ["CS330RAY_ROWS"], "a") as rows:
        rows.write(json.dumps(told) + "\\n")
def raw(text):
    with open(os.environ["CS330RAY_ROWS"], "a") as rows:
        rows.write(text)
def checkpoint(step, text="weights"):
    directory = os.path.join(os.environ["CS330RAY_CHECKPOINTS_DIR"], str(step))
    os.makedirs(directory)
    with open(os.path.join(directory, "weights.txt"), "w") as file:
        file.write(text)
    return directory
seed, steps = int(sys.argv[1]), int(sys.argv[2])
"""

Rows = list[tuple[int, dict[str, float]]]


def own(folder: Path, script: str, **more: Any) -> OwnProcess:
    """A trainable that runs a script, with `row`, `raw`, `checkpoint`, `seed` and `steps` at hand."""
    (folder / "train.py").write_text(PREFIX + textwrap.dedent(script))
    words = ["python", "train.py", "{seed}", "{steps}"]
    command = Command(run=words, metrics={"val_accuracy": "max"}, folder=str(folder), **more)
    return OwnProcess("command", command, frozenset())


def rows_of(trainable: OwnProcess, steps: int = 3, seed: int = 0, **values: Any) -> Rows:
    config = trainable.Config(**values)
    return [(each.step, dict(each.metrics)) for each in run.train(trainable, config, seed, steps) if each.metrics]


def left(folder: Path) -> list[psutil.Process]:
    """The processes whose working directory is a folder."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.pid != os.getpid() and each.cwd() == str(folder.resolve()):
                found.append(each)
        except psutil.Error:
            continue
    return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]


GOOD = "for step in range(1, steps + 1): row(step=step, val_accuracy=seed + step / 10)"


def test_rows_are_what_the_process_reports(tmp_path: Path) -> None:
    assert rows_of(own(tmp_path, GOOD), seed=7) == [
        (1, {"val_accuracy": 7.1}), (2, {"val_accuracy": 7.2}), (3, {"val_accuracy": 7.3})
    ]  # fmt: skip


def test_one_that_knows_no_budget_is_ended_at_its_first_row_beyond(tmp_path: Path) -> None:
    forever = "for step in range(2, 10**6, 2): row(step=step, val_accuracy=0.5); time.sleep(0.01)"
    assert [step for step, _ in rows_of(own(tmp_path, forever), steps=5)] == [2, 4]
    assert left(tmp_path) == []


BAD: dict[str, tuple[str, type[BaseException], str]] = {
    "no row": ("pass", ContractError, "ended with exit code 0 and reported no row"),
    "text": ("raw('done\\n')", ContractError, 'line 1: expected JSON such as {"step": 100, "val_accuracy": 0.8}, got'),
    "a list": ("raw('[1]\\n')", ContractError, "line 1: expected JSON"),
    "nested without end": ("raw('[' * 100000 + '\\n')", ContractError, "line 1: expected JSON"),
    "no step": ("row(val_accuracy=1.0)", ContractError, "line 1: step must be a whole number, got none"),
    "half a step": ("row(step=1.5, val_accuracy=1.0)", ContractError, "step must be a whole number, got 1.5"),
    "a true step": ("row(step=True, val_accuracy=1.0)", ContractError, "step must be a whole number, got True"),
    "step 0": ("row(step=0, val_accuracy=1.0)", ContractError, "reported step 0; steps must rise, from 1"),
    "out of order": (
        "row(step=2, val_accuracy=1.0); row(step=1, val_accuracy=1.0)", ContractError,
        "reported step 1 after step 2; steps must rise",
    ),
    "twice": (
        "row(step=1, val_accuracy=1.0); row(step=1, val_loss=1.0)", ContractError,
        "reported step 1 twice; report all metrics of a step in one line",
    ),
    "a word": ("row(step=1, val_accuracy='a')", ContractError, "step 1: 'val_accuracy' must be a number, got 'a'"),
    "nothing": ("row(step=1, val_accuracy=None)", ContractError, "step 1: 'val_accuracy' must be a number, got None"),
    "NaN": ("row(step=2, val_accuracy=float('nan'))", Diverged, "val_accuracy is nan at step 2"),
    "10,000 keys": (
        "row(step=1, **{f'm{i}': 0.0 for i in range(10_000)})", ContractError, "at most 1000 metrics a row, got 10000"
    ),
    "half a line": ("row(step=1, val_accuracy=1.0); raw('{\"step\": 2')", ContractError, "its last line is cut off"),
    "a line without end": (
        "raw('x' * 3_000_000); time.sleep(60)", ContractError, "a line must have at most 1048576 bytes"
    ),
    "exit code": (
        "row(step=1, val_accuracy=1.0); sys.stderr.write('ValueError: bad lr\\n'); sys.exit(3)", ProcessFailed,
        "exit code 3: ValueError: bad lr",
    ),
    "raises": ("raise ValueError('bad lr')", ProcessFailed, "exit code 1: ValueError: bad lr"),
    "silent death": ("sys.exit(4)", ProcessFailed, "exit code 4: it wrote nothing to stderr"),
    "killed": ("os.kill(os.getpid(), 9)", ProcessFailed, "ended by SIGKILL"),
    "memory": ("raise MemoryError('10 GiB')", MemoryError, "MemoryError: 10 GiB"),
    "megabytes": ("sys.stderr.write('x' * 5_000_000); sys.exit(1)", ProcessFailed, "exit code 1: xxx"),
    "checkpoint elsewhere": (
        "row(step=1, val_accuracy=1.0, checkpoint='/etc')", ContractError,
        "checkpoint of step 1: expected a directory below CS330RAY_CHECKPOINTS_DIR, got '/etc'",
    ),
    "checkpoint above": (
        "row(step=1, val_accuracy=1.0, checkpoint='..')", ContractError, "below CS330RAY_CHECKPOINTS_DIR, got '..'"
    ),
    "the whole directory": (
        "row(step=1, val_accuracy=1.0, checkpoint='.')", ContractError, "below CS330RAY_CHECKPOINTS_DIR, got '.'"
    ),
    "written anew": (
        "for step in (1, 2, 3):\n"
        "  line = json.dumps({'step': step, 'val_accuracy': 1.5}) + '\\n'\n"
        "  open(os.environ['CS330RAY_ROWS'], 'w').write(line); time.sleep(0.4)",
        ContractError, "its file must be appended to, but was written anew",
    ),
    "removed": (
        "os.unlink(os.environ['CS330RAY_ROWS']); time.sleep(60)", ContractError, "must be appended to, but is gone"
    ),
    "first row beyond": (
        "row(step=500, val_accuracy=1.0)", ContractError, "its first row is of step 500, beyond the budget of 3"
    ),
    "an endless step": ("row(step=10**30, val_accuracy=1.0)", ContractError, "step must be at most 2147483647"),
    "an endless number": ("row(step=1, val_accuracy=10**400)", Diverged, "val_accuracy is inf at step 1"),
    "a name of two lines": ("row(step=1, **{'a\\nb': 1.0})", ContractError, "a metric has a name of at most 200"),
    "an empty checkpoint": (
        "d = os.environ['CS330RAY_CHECKPOINTS_DIR'] + '/1'; os.mkdir(d); row(step=1, val_accuracy=1.0, checkpoint=d)",
        ContractError, "checkpoint of step 1: expected a file in the directory, got none",
    ),
    "our own file": (
        "d = checkpoint(1); open(d + '/MANIFEST.json', 'w').close(); row(step=1, val_accuracy=1.0, checkpoint=d)",
        ContractError, "MANIFEST.json names the files of a checkpoint; take another name",
    ),
    "a link": (
        "d = checkpoint(1); os.symlink('/etc/passwd', d + '/x'); row(step=1, val_accuracy=1.0, checkpoint=d)",
        ContractError, "checkpoint of step 1: expected files and directories alone, got 'x'",
    ),
    "a real-time signal": ("os.kill(os.getpid(), 40)", ProcessFailed, "ended by "),
    "no such checkpoint": (
        "row(step=1, val_accuracy=1.0, checkpoint='step-1')", ContractError, "expected a directory that is written"
    ),
    "checkpoint of before": (
        "row(step=1, val_accuracy=1.0, checkpoint=checkpoint(1)); row(step=1, checkpoint=checkpoint(2))", ContractError,
        "checkpoint of step 1: expected one after step 1",
    ),
    "neither": ("row(step=1, val_accuracy=1.0); row(step=1)", ContractError, "metrics or a checkpoint at step 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_misbehaves_has_one_clear_end_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    script, kind, said = BAD[name]
    with pytest.raises(kind) as raised:
        rows_of(own(tmp_path, script))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert left(tmp_path) == []


def test_the_end_of_stderr_is_kept(tmp_path: Path) -> None:
    noisy = "for i in range(5000): sys.stderr.write(f'line {i}\\n')\nsys.exit(1)"
    with pytest.raises(ProcessFailed) as raised:
        rows_of(own(tmp_path, noisy))
    assert raised.value.tail.splitlines() == [f"line {i}" for i in range(4960, 5000)]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.3)


STUBBORN = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):
    subprocess.Popen(["sleep", "600"])
subprocess.Popen(["sleep", "600"], preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
row(step=1, val_accuracy=0.5)
time.sleep(600)
"""


@pytest.mark.usefixtures("brief")
def test_one_that_ignores_sigterm_and_has_children_is_ended_whole(tmp_path: Path) -> None:
    rows = run.train(own(tmp_path, STUBBORN), own(tmp_path, STUBBORN).Config(), 0, 3)
    assert next(row.step for row in rows if row.metrics) == 1
    while len(left(tmp_path)) < 4:  # all are under way
        time.sleep(0.1)
    began = time.monotonic()
    rows.close()
    assert time.monotonic() - began < 5
    assert left(tmp_path) == []


@pytest.mark.usefixtures("brief")
def test_children_that_outlive_it_are_ended(tmp_path: Path) -> None:
    script = "import subprocess; subprocess.Popen(['sleep', '600']); row(step=1, val_accuracy=0.5)"
    assert rows_of(own(tmp_path, script)) == [(1, {"val_accuracy": 0.5})]
    assert left(tmp_path) == []


def test_it_may_end_in_order_when_it_is_told_to(tmp_path: Path) -> None:
    script = """
    import signal
    def leave(*_):
        open("left", "w").write("in order")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    row(step=1, val_accuracy=0.5)
    time.sleep(600)
    """
    trainable = own(tmp_path, script)
    rows = run.train(trainable, trainable.Config(), 0, 3)
    next(row for row in rows if row.metrics)
    rows.close()
    assert (tmp_path / "left").read_text() == "in order"


# Checkpoints ---------------------------------------------------------------------------------------------------------

SAVING = """
begin = 0
if "CS330RAY_RESUME" in os.environ:
    begin = int(open(os.path.join(os.environ["CS330RAY_RESUME"], "weights.txt")).read())
for step in range(begin + 1, steps + 1):
    row(step=step, val_accuracy=step / 10)
    if step % 2 == 0:
        row(step=step, checkpoint=checkpoint(step, str(step)))
"""


def kept(trainable: OwnProcess, steps: int, home: Path) -> Rows:
    rows = run.run_alone(trainable, trainable.Config(), 0, steps, home, save_every_steps=2)
    return [(each.step, dict(each.metrics)) for each in rows]


def test_what_it_announces_is_kept_and_a_longer_budget_resumes_there(tmp_path: Path) -> None:
    trainable, home = own(tmp_path, SAVING), tmp_path / "home"
    assert [step for step, _ in kept(trainable, 5, home)] == [1, 2, 3, 4, 5]
    newest = local.newest(home)
    assert newest is not None
    assert (newest.step, (newest.path / "weights.txt").read_text()) == (4, "4")
    assert kept(trainable, 7, home) == [(step, {"val_accuracy": step / 10}) for step in (5, 6, 7)]


def test_one_that_ignores_what_it_resumes_from_is_told_so(tmp_path: Path) -> None:
    home = tmp_path / "home"
    kept(own(tmp_path, SAVING), 4, home)
    with pytest.raises(ContractError, match="reported step 1 after resuming from 4; continue after the step"):
        kept(own(tmp_path, GOOD), 6, home)


def test_what_is_written_to_after_it_was_announced_is_no_checkpoint(tmp_path: Path) -> None:
    script = """
    directory = checkpoint(1)
    row(step=1, val_accuracy=0.5, checkpoint=directory)
    time.sleep(0.5)
    with open(os.path.join(directory, "more.txt"), "w") as file:
        file.write("late")
    row(step=2, val_accuracy=0.5)
    """
    trainable = own(tmp_path, script)
    moments = list(run.train(trainable, trainable.Config(), 0, 2))
    saves = [moment.save for moment in moments if moment.save is not None]
    with pytest.raises(ContractError, match="checkpoint of step 1: written to after it was announced"):
        local.write(tmp_path / "home", 1, saves[0])


def test_a_checkpoint_between_two_rows_is_a_row_without_metrics(tmp_path: Path) -> None:
    script = "row(step=1, val_accuracy=0.5); row(step=2, checkpoint=checkpoint(2)); row(step=3, val_accuracy=0.6)"
    trainable = own(tmp_path, script)
    found, last = [], 0
    for moment in run.train(trainable, trainable.Config(), 0, 3):
        if run.is_row(moment, last):
            found.append(("row", last := moment.step))
        elif moment.save is not None:
            found.append(("checkpoint", moment.step))
    assert found == [("row", 1), ("row", 2), ("checkpoint", 2), ("row", 3)]


def test_a_full_disk_is_the_disk_s_fault_and_no_failure_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable = own(tmp_path, "row(step=1, val_accuracy=0.5, checkpoint=checkpoint(1))")
    saves = [each.save for each in run.train(trainable, trainable.Config(), 0, 1) if each.save is not None]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cs330ray.trial.child.protocol.shutil.copyfile", full)
    with pytest.raises(local.DiskFault):
        local.write(tmp_path / "home", 1, saves[0])


def test_what_a_script_does_to_what_it_resumes_from_is_not_done_to_the_record(tmp_path: Path) -> None:
    home = tmp_path / "home"
    kept(own(tmp_path, SAVING), 4, home)
    spoils = SAVING + "\nopen(os.path.join(os.environ.get('CS330RAY_RESUME', '.'), 'weights.txt'), 'w').write('spoilt')"
    assert [step for step, _ in kept(own(tmp_path, spoils), 6, home)] == [5, 6]
    assert [local.read(path).step for path in sorted(home.glob("step-*"))] == [4, 6]


def test_one_that_has_ended_early_has_nothing_more_to_report_when_it_resumes(tmp_path: Path) -> None:
    early, home = own(tmp_path, SAVING.replace("steps + 1", "min(steps, 4) + 1")), tmp_path / "home"
    assert [step for step, _ in kept(early, 8, home)] == [1, 2, 3, 4]
    assert kept(early, 9, home) == []


@pytest.mark.usefixtures("brief")
def test_what_it_started_in_sessions_of_their_own_is_ended_with_it(tmp_path: Path) -> None:
    script = """
    import subprocess
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    row(step=1, val_accuracy=0.5)
    time.sleep(600)
    """
    trainable = own(tmp_path, script)
    rows = run.train(trainable, trainable.Config(), 0, 3)
    next(row for row in rows if row.metrics)
    assert len(left(tmp_path)) == 2
    rows.close()
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EAGAIN, WorkerLost), (errno.ENOMEM, WorkerLost), (errno.EACCES, ContractError)]
)
def test_a_machine_that_is_short_of_processes_is_no_failure_of_the_script(
    number: int, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cs330ray.trial.child.process.subprocess.Popen", refused)
    with pytest.raises(kind):
        rows_of(own(tmp_path, GOOD))


# What it is given ----------------------------------------------------------------------------------------------------


def test_arguments_have_the_values_of_the_trial(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import json, os, sys\nopen(os.environ['CS330RAY_ROWS'], 'a').write('{\"step\": 1, \"val_accuracy\": 1}\\n')\n"
        "json.dump(sys.argv[1:], open('told.json', 'w'))"
    )
    words = ["python", "train.py", "--lr={lr}", "{wide}", "{layers}", "{name}", "{{lr}}", '{"a": {"b": 1}}', "{steps}"]
    command = Command(run=words, metrics={"val_accuracy": "max"}, folder=str(tmp_path))
    trainable = OwnProcess("command", command, frozenset(["lr", "wide", "layers", "name"]))
    rows_of(trainable, steps=9, lr=1e-05, wide=True, layers=[64, 32], name="a b")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told == ["--lr=1e-05", "true", "64,32", "a b", "{lr}", '{"a": {"b": 1}}', "9"]


def test_it_has_a_session_a_temporary_directory_and_the_python_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
    import tempfile
    told = {"session": os.getsid(0) == os.getpid(), "tmp": tempfile.gettempdir(), "python": sys.executable}
    told |= {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "RANK")}
    json.dump(told, open("told.json", "w"))
    row(step=1, val_accuracy=1.0)
    """
    monkeypatch.setenv("RANK", "1")
    environment.settle(0, 3)
    rows_of(own(tmp_path, script))
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["session"]
    assert (told["OMP_NUM_THREADS"], told["RANK"]) == ("3", None)
    assert not Path(told["tmp"]).exists()  # it went with the process
    assert Path(told["python"]).parent == Path(sys.executable).parent


def test_log_writes_what_the_protocol_reads_and_does_nothing_outside(tmp_path: Path) -> None:
    script = "import cs330ray\nfor step in (1, 2): cs330ray.log(step=step, val_accuracy=step / 4)"
    assert rows_of(own(tmp_path, script)) == [(1, {"val_accuracy": 0.25}), (2, {"val_accuracy": 0.5})]
    (tmp_path / "outside.py").write_text("import cs330ray; cs330ray.log(step=1, val_accuracy=0.5)")
    outside = {name: text for name, text in os.environ.items() if not name.startswith("CS330RAY_ROWS")}
    subprocess.run([sys.executable, str(tmp_path / "outside.py")], check=True, env=outside)


def test_of_several_processes_that_of_rank_0_reports(tmp_path: Path) -> None:
    script = """
    import subprocess
    code = "import cs330ray, os; cs330ray.log(step=1, val_accuracy=float(os.environ['RANK']))"
    for rank in "10":
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "RANK": rank}, check=True)
    """
    assert rows_of(own(tmp_path, script)) == [(1, {"val_accuracy": 0.0})]


def test_a_test_reads_the_checkpoint_and_reports_metrics(tmp_path: Path) -> None:
    (tmp_path / "test.py").write_text(
        "import os, sys\nvalue = open(os.path.join(sys.argv[1], 'weights.txt')).read()\n"
        "open(os.environ['CS330RAY_ROWS'], 'a').write('{\"test_accuracy\": 0.%s}\\n' % value)"
    )
    trainable, home = own(tmp_path, SAVING, test=["python", "test.py", "{checkpoint}"]), tmp_path / "home"
    kept(trainable, 4, home)
    newest = local.newest(home)
    assert newest is not None
    assert trainable.test(trainable.Config(), 0, newest.path).metrics == {"test_accuracy": 0.4}
    assert trainable.METRICS["test_accuracy"].goal == "max"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("pass", "the test reported no metric"),
        ("raise ValueError('no data')", "exit code 1: ValueError: no data"),
        ("raw('fine\\n')", "the test must report JSON"),
        ("row(test_accuracy='high')", "the test's 'test_accuracy' must be a number"),
    ],
)
def test_a_test_that_misbehaves_has_one_clear_end(script: str, said: str, tmp_path: Path) -> None:
    trainable = own(tmp_path, SAVING, test=["python", "test.py", "1", "1"])
    kept(trainable, 2, tmp_path / "home")
    (tmp_path / "test.py").write_text(PREFIX + script)
    newest = local.newest(tmp_path / "home")
    assert newest is not None
    with pytest.raises((ContractError, ProcessFailed), match=said.replace("(", r"\(")):
        trainable.test(trainable.Config(), 0, newest.path)


# Functions -----------------------------------------------------------------------------------------------------------

FUNCTION = """
from dataclasses import dataclass
import helper

@dataclass
class Settings:
    lr: float
    width: int = 8

def train(config: Settings, seed, steps, trial):
    assert isinstance(config, Settings)
    for step in range(1, steps + 1):
        directory = trial.checkpoints / str(step)
        directory.mkdir()
        (directory / "weights.txt").write_text(str(step))
        trial.log(step, {"val_accuracy": helper.scored(config.lr * step) + config.width}, checkpoint=directory)

def test(config, seed, checkpoint):
    return {"test_accuracy": config["lr"] + float((checkpoint / "weights.txt").read_text())}
"""


def function(folder: Path, text: str, name: str = "train.py:train") -> OwnProcess:
    (folder / "train.py").write_text(text)
    (folder / "helper.py").write_text("def scored(value): return value")
    command = Command(metrics={"val_accuracy": "max"}, folder=str(folder))
    return OwnProcess(name, command, frozenset(["lr"]))


def test_a_function_with_a_dataclass_trains_and_is_tested(tmp_path: Path) -> None:
    trainable = function(tmp_path, FUNCTION)
    trainable.prepare(trainable.Config(lr=0.5))
    rows = list(run.run_alone(trainable, trainable.Config(lr=0.5), 0, 2, tmp_path / "home"))
    assert [dict(row.metrics) for row in rows] == [{"val_accuracy": 8.5}, {"val_accuracy": 9.0}]
    newest = local.newest(tmp_path / "home")
    assert newest is not None
    assert trainable.test(trainable.Config(lr=0.5), 0, newest.path).metrics == {"test_accuracy": 2.5}


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (FUNCTION, "train.py:fit", "expected a function fit, got train, test; correct it"),
        (FUNCTION, "other.py:train", "other.py must be readable, but No such file"),
        ("def train(config, seed, steps, trial:\n  pass", "train.py:train", "must be Python, but"),
        ("def train(config): pass", "train.py:train", "`def train(config, seed, steps, trial)`, got `train(config)`"),
        ("async def train(config, seed, steps, trial): pass", "train.py:train", "expected `def train(config,"),
        (FUNCTION + "\ndef test(config): pass", "train.py:train", "expected `def test(config, seed, checkpoint)`, got"),
    ],
)
def test_a_file_without_such_a_function_is_one_line_before_anything_starts(
    text: str, name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as raised:
        function(tmp_path, text, name).prepare(None)
    assert said in str(raised.value)


def test_a_function_that_yields_is_told_to_log(tmp_path: Path) -> None:
    text = "def train(config, seed, steps, trial):\n    yield 1"
    with pytest.raises(ProcessFailed, match="got a generator; call trial"):
        rows_of(function(tmp_path, text), lr=0.5)


# The folder ----------------------------------------------------------------------------------------------------------


def files(folder: Path, names: dict[str, str]) -> None:
    for name, text in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def digest(folder: Path) -> str:
    command = Command(run=["python"], metrics={"val_accuracy": "max"}, folder=str(folder))
    return named.code_digest("command", command)


STUDY = 'name = "one"\nobjective = "val_accuracy"\n[budget]\ntrials = 1\nsteps = 1\n'


@pytest.mark.parametrize(
    ("name", "text", "counts"),
    [
        ("train.py", "changed", True),
        ("lib/more.py", "new", True),
        ("config.toml", "lr = 1", True),
        ("data/big.bin", "x", False),
        ("lib/out/kept.txt", "x", True),
        ("lib/out/scratch.tmp", "x", False),
        ("study.toml", STUDY, False),
        (".git/index", "x", False),
        ("__pycache__/train.pyc", "x", False),
        ("runs/ledger.db", "x", False),
        ("env/lib/site.py", "x", False),
        ("above.log", "x", False),
    ],
)
def test_the_code_of_a_folder_is_what_travels(
    name: str, text: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(tmp_path / "runs"))
    files(tmp_path.parent, {".git/HEAD": "", ".gitignore": "*.log\n"})  # of the repository that the folder is in
    files(tmp_path, {
        "train.py": "", "data/a": "", "lib/__init__.py": "", "env/pyvenv.cfg": "",
        ".gitignore": "data/\n*.tmp\n", "lib/.gitignore": "!kept.txt\n",
    })  # fmt: skip
    before = digest(tmp_path)
    files(tmp_path, {name: text})
    assert (digest(tmp_path) != before) == counts


def test_a_folder_that_is_too_large_is_one_line(tmp_path: Path) -> None:
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(101 * 1024**2)
    with pytest.raises(DataError, match=r"files of 100 MiB in all, got more at weights.bin; name data and"):
        digest(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-program"], "command.run: expected a program that is here, got 'no-such-program'"),
        (["train.sh"], "command.run: expected a program that is here, got 'train.sh'"),  # ./train.sh would be
    ],
)
def test_a_program_that_is_not_here_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "train.sh").touch(0o755)
    trainable = OwnProcess("command", Command(run=words, metrics={"a": "max"}, folder=str(tmp_path)), frozenset())
    with pytest.raises(DataError, match=said):
        trainable.prepare(None)
