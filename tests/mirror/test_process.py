"""The mirror's process: when it is started, and that it is let go of, not killed."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs330ray.mirror import process, sync
from cs330ray.mirror.process import MirrorProcess, mirrored
from cs330ray.service.session import Interrupted

LAST_PASS = "import sys, time; sys.stdin.read(); time.sleep({s}); open({file!r}, 'w'); sys.exit({code})"


class Ear:
    def __init__(self) -> None:
        self.said: list[str] = []

    def says(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def stands_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    """Have a program stand for the mirror: one that takes so long for its last pass, and ends with a code."""
    start, started = subprocess.Popen, []
    (tmp_path / "toy").mkdir()

    def replaced(seconds: float, code: int = 0) -> list[Any]:
        program = LAST_PASS.format(s=seconds, file=str(tmp_path / "done"), code=code)

        def popen(_: object, **given: Any) -> Any:
            started.append(start([sys.executable, "-c", program], **given))
            return started[-1]

        monkeypatch.setattr(process.subprocess, "Popen", popen)
        return started

    return replaced


@pytest.mark.parametrize(("code", "said"), [(0, 0), (1, 1)])
def test_a_study_that_ends_waits_for_the_last_pass_also_where_no_mirror_was_started(
    stands_for: Callable[..., list[Any]], tmp_path: Path, code: int, said: int
) -> None:
    started, ear = stands_for(0.2, code), Ear()
    with mirrored("toy", tmp_path, ear, wanted=True):
        assert started == []
    assert len(started) == 1
    assert (tmp_path / "done").exists()
    assert len(ear.said) == said


def test_a_cut_before_the_first_trial_starts_no_mirror(stands_for: Callable[..., list[Any]], tmp_path: Path) -> None:
    started, ear = stands_for(0.0), Ear()
    with pytest.raises(Interrupted), mirrored("toy", tmp_path, ear, wanted=True):
        raise Interrupted
    assert (started, ear.said) == ([], [])


def test_a_mirror_that_takes_its_time_at_a_cut_is_not_killed(
    stands_for: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow may be making its tables, and half of them is a database that nothing can open."""
    monkeypatch.setattr(process, "CUT_WAIT_S", 0.1)
    started, ear = stands_for(1.0), Ear()
    with pytest.raises(Interrupted), mirrored("toy", tmp_path, ear, wanted=True) as mirror:  # noqa: PT012
        mirror.tend()
        raise Interrupted
    assert ear.said == [f"MLflow is behind (see {tmp_path / 'toy' / 'mirror.log'}); `cs330ray sync toy` catches up"]
    assert started[0].poll() is None
    until = time.monotonic() + 30
    while started[0].poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "done").exists()


def test_a_mirror_that_ended_well_while_something_else_was_waited_for_is_not_behind(
    stands_for: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is let go of before Ray ends, which may take longer than a person waits for it."""
    monkeypatch.setattr(process, "CUT_WAIT_S", 0.0)
    started, ear = stands_for(0.0), Ear()
    with pytest.raises(Interrupted), mirrored("toy", tmp_path, ear, wanted=True) as mirror:  # noqa: PT012
        mirror.tend()
        mirror.let_go()
        started[0].wait()
        raise Interrupted
    assert ear.said == []


def test_a_person_who_leaves_at_the_end_does_not_wait(stands_for: Callable[..., list[Any]], tmp_path: Path) -> None:
    started, ear, asked = stands_for(20.0), Ear(), iter([False, True])
    with mirrored("toy", tmp_path, ear, wanted=True, leaves=lambda: next(asked)):
        pass
    assert len(ear.said) == 1
    assert started[0].poll() is None
    started[0].kill()
    started[0].wait()


def test_the_pipe_of_one_that_died_is_closed_when_another_is_started(
    stands_for: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "AGAIN_S", 0.0)
    started, mirror = stands_for(0.0), MirrorProcess("toy", tmp_path)
    mirror.tend()
    started[0].kill()
    started[0].wait()
    mirror.tend()
    assert len(started) == 2
    assert started[0].stdin.closed
    assert mirror.end()


def test_one_that_runs_is_not_started_again(stands_for: Callable[..., list[Any]], tmp_path: Path) -> None:
    started, mirror = stands_for(0.0), MirrorProcess("toy", tmp_path)
    for _ in range(3):
        mirror.tend()
    assert len(started) == 1
    assert mirror.end()


def test_the_mirror_rests_so_that_it_costs_a_hundredth_of_a_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Passes of 2 s, which opens MLflow, of 5, 50 and 900 ms; then MLflow is gone for two, and two cost nothing."""
    rests: list[float] = []
    passes = iter([2.0, 0.005, 0.05, 0.9, None, None, 0.0, 0.0])

    class Leaving:
        def __init__(self) -> None:
            self.wanted = 7

        def is_set(self) -> bool:
            return len(rests) == self.wanted

        def wait(self, seconds: float) -> None:
            rests.append(round(seconds, 3))

        def set(self) -> None:
            """Nobody asks."""

    class Made:
        def __init__(self, *_: object) -> None:
            self.is_new = True

        def sync(self) -> int:
            cost = next(passes)
            if cost is None:
                raise sync.MirrorError("gone")
            self.is_new, clock[0] = False, clock[0] + cost
            return 0

        def remarks(self) -> list[str]:
            return []

    clock = [0.0]
    monkeypatch.setattr(sync, "Mirror", Made)
    monkeypatch.setattr(sync.threading, "Event", Leaving)
    monkeypatch.setattr(sync.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(sync.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sync.os, "nice", lambda _: None)
    assert sync.follow(None, "toy", tmp_path)  # type: ignore[arg-type]
    assert rests == [1.0, 1.0, 5.0, 30.0, 2.0, 4.0, 1.0]
