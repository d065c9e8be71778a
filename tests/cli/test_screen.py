"""A command whose screen is gone: one that only prints ends quietly, a study goes on and says the way on."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cs330ray.cli import app, screen
from cs330ray.cli.screen import Screen, ScreenLost
from cs330ray.cli.tables import plain_table, table_of
from cs330ray.errors import SpecError
from tests.studies_of_tests import toml, toy

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def unread() -> io.TextIOWrapper:
    """A stream into a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def test_a_stream_that_nobody_reads_ends_a_command_that_prints_with_the_code_of_a_shell() -> None:
    out = Screen(unread(), lasting=False, hides=False)
    out.write("text")
    with pytest.raises(ScreenLost) as lost:
        out.flush()
    assert screen.end(lost.value) == 141
    out.close()  # what lies in its buffer goes nowhere, so that Python's own last flush raises nothing


@pytest.mark.parametrize(
    ("ends_with", "code", "said"),
    [
        (SpecError("study.toml: expected a name, got none"), 2, "study.toml: expected a name, got none\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(3), 3, ""),
        (SystemExit(0), 141, ""),
        (None, 141, ""),
    ],
)
def test_a_command_that_fails_says_so_though_nobody_reads_what_it_printed(
    ends_with: BaseException | None,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        sys.stdout.write("a table\n")
        if ends_with is not None:
            raise ends_with

    out = Screen(unread(), lasting=False, hides=False)
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as ended:
        app.guarded(command)
    assert (ended.value.code, capsys.readouterr().err) == (code, said)
    out.close()


@needs_full
def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    out = Screen(FULL.open("w"), lasting=False, hides=False)
    out.write("text")
    with pytest.raises(ScreenLost) as lost:
        out.flush()
    assert screen.end(lost.value) == 2
    out.close()
    said = capsys.readouterr().err
    assert said == "stdout: expected to write the output, got: No space left on device; send it elsewhere\n"


def test_what_goes_on_says_once_that_its_screen_is_gone_and_its_last_words_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Screen(unread(), lasting=False, hides=False))
    screen.last()
    for _ in range(3):
        sys.stdout.write("a line\n")
        sys.stdout.flush()
    screen.must_be_read("Go on with: cs330ray run toy")
    said = capsys.readouterr().err
    assert said == "stdout: Broken pipe; the work goes on without a screen\nGo on with: cs330ray run toy\n"
    sys.stdout.close()


def test_where_stderr_is_gone_too_the_terminal_has_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "TERMINAL", str(tmp_path / "tty"))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Screen(unread(), lasting=True, hides=name == "stderr"))
    screen.must_be_read("Go on with: cs330ray run toy")
    said = (tmp_path / "tty").read_text()
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    monkeypatch.undo()
    assert said == "Go on with: cs330ray run toy\n"


def test_a_command_without_stdout_takes_no_file_for_its_screen_and_ends_well() -> None:
    """With number 1 free, the next file that is opened would get it, and all that is printed."""
    code = (
        "import os, sys; from cs330ray.cli import screen; screen.settle();"
        "fd = os.open(os.devnull, os.O_RDONLY); print('lost', flush=True);"
        "sys.stderr.write(f'{fd > 2} {sys.stdout.lost}')"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&- <&-', sys.executable, code], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, f"True {os.strerror(errno.EBADF)}")


@pytest.mark.parametrize(
    ("to", "code", "said"), [("| true; exit ${PIPESTATUS[0]}", 141, ""), (">&-", 0, ""), (">/dev/full", 2, "stdout: ")]
)
def test_a_command_that_prints_much_ends_without_a_traceback_where_nobody_reads_it(
    to: str, code: int, said: str
) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"$0" -m cs330ray schema {to}', sys.executable], capture_output=True, text=True
    )
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == (1 if said else 0)


def test_a_stream_of_few_characters_takes_all_of_them() -> None:
    code = "from cs330ray.cli import screen; screen.settle(); print('± \\udcff')"
    environment: dict[str, Any] = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "\\xb1 \\udcff\n"


def test_a_table_shows_no_control_sequence_of_a_name_or_a_reason() -> None:
    from rich.console import Console

    rows = [["\x1b[31mred\x1b[0m", "raised: \x1b[2J\nBoom"]]
    assert plain_table("t\x1b[1mitle", ["name", "reason"], rows) == ("title\nname  reason\nred   raised: \\nBoom")
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system=None, width=80).print(table_of("\x1b[1mt[b]", ["n", "r"], rows))
    assert "\x1b[31m" not in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    assert "t[b]" in out.getvalue()


@pytest.mark.slow
def test_a_study_whose_reader_is_gone_goes_on_and_after_a_ctrl_c_says_the_way_on(
    home: Path, ray_here: str, tmp_path: Path
) -> None:
    study = toy(budget={"trials": 3, "steps": 20}, fixed={"sleep_s": 0.02, "eval_every_steps": 5})
    file = str(toml(study, tmp_path / "toy.toml"))
    environment = {**os.environ, "CS330RAY_HOME": str(home), "RAY_ADDRESS": ray_here}

    def begun(until: str, *more: str) -> subprocess.Popen[str]:
        """A study that is read until a line has a word, and then no more."""
        process = subprocess.Popen(
            [sys.executable, "-m", "cs330ray", "run", file, *more], env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert any(until in line for line in process.stdout)
        process.stdout.close()
        return process

    whole = begun("toy")
    assert whole.stderr is not None
    with whole.stderr:
        said = whole.stderr.read()
    assert whole.wait() == 0, said
    assert said.startswith("stdout: Broken pipe; the work goes on without a screen\n")
    assert "toy: done in" in said
    for word in ("toy", "COMPLETE"):  # before anything is recorded, and in the midst of it
        cut = begun(word, "--fork", f"cut-{word.lower()}", "--set", "budget.trials=300")
        cut.send_signal(signal.SIGINT)
        assert cut.stderr is not None
        with cut.stderr:
            said = cut.stderr.read()
        assert cut.wait() == 130, said
        more = f"--fork cut-{word.lower()} --set budget.trials=300"
        assert f"Go on with: CS330RAY_HOME={home} cs330ray run {file} {more}\n" in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_sync_prints_one_line_also_where_mlflow_makes_its_tables(tmp_path: Path) -> None:
    home = Path(shutil.copytree(ROOT / "tests" / "before" / "home", tmp_path / "runs"))
    done = subprocess.run(
        [sys.executable, "-m", "cs330ray", "sync", "slope"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "CS330RAY_HOME": str(home), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
