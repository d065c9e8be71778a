"""What a trial leaves running, and how it is ended."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from cs330ray.service.workers import leftovers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux alone")


def ran(script: str, *arguments: str) -> list[str]:
    """What a process of its own prints."""
    head = "import os, subprocess, sys, threading, time; from cs330ray.service.workers import leftovers\n"
    code = head + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_sweep_ends_children_in_sessions_of_their_own_orphans_and_those_that_ignore_sigterm() -> None:
    pids = ran(
        """
        leftovers.adopt()
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        subprocess.run("sleep 600 >/dev/null & setsid sleep 600 >/dev/null &", shell=True)  # their parent ends at once
        subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600 & wait"])
        time.sleep(0.5)
        found = leftovers.descendants(leftovers.psutil.Process())
        print(*(process.pid for process in found))
        print(leftovers.sweep(), leftovers.descendants(leftovers.psutil.Process()), leftovers.sweep())
        """
    )
    assert pids[-3:] == ["True", "[]", "False"]
    assert len(pids) == 5 + 3
    assert not any(psutil.pid_exists(int(pid)) for pid in pids[:-3])


def test_pythons_own_helpers_stay_and_a_thread_that_is_no_daemon_is_told() -> None:
    said = ran(
        """
        from multiprocessing import resource_tracker
        resource_tracker.ensure_running()
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        print(leftovers.sweep(), resource_tracker._resource_tracker._check_alive())
        threading.Thread(target=time.sleep, args=(600,)).start()
        print(leftovers.sweep(), flush=True)
        leftovers.exit_within(0.1)
        """
    )
    assert said == ["False", "True", "True"]


def test_a_process_that_a_trial_started_is_found_by_its_mark_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(leftovers.MARK, str(tmp_path / "runs" / "toy" / "checkpoints" / "0123" / "trial-00000"))
    ours = subprocess.Popen(["sleep", "600"], start_new_session=True)
    monkeypatch.setenv(leftovers.MARK, str(tmp_path / "runs" / "toy-2" / "checkpoints" / "0123" / "trial-00000"))
    other = subprocess.Popen(["sleep", "600"])
    monkeypatch.delenv(leftovers.MARK)
    try:
        time.sleep(0.2)  # until both are what they are to be
        found = leftovers.of_trials(tmp_path / "runs" / "toy")
        assert [process.pid for process in found] == [ours.pid]
        leftovers.remove(found)
        assert (ours.wait(5) is not None, other.poll()) == (True, None)
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_what_takes_too_long_ends_the_process_and_what_does_not_leaves_it() -> None:
    assert ran(
        """
        with leftovers.exit_unless_done(0.2):
            pass
        time.sleep(0.5)
        print("alive", flush=True)
        with leftovers.exit_unless_done(0.2):
            time.sleep(600)
        """
    ) == ["alive"]
