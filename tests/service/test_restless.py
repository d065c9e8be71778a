"""Trials that hang, exit, and leave threads and processes: each ends, and after `run` nothing of them lives."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cs330ray.service.run import run
from cs330ray.service.workers import leftovers
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from tests.studies_of_tests import toml, whole


def study(*leaves: str, **resources: object) -> Study:
    raw = {
        "name": "restless",
        "trainable": "tests.restless",
        "objective": ["val_loss"],
        "compare": {"leaves": [*leaves]},
        "search": {"x": {"low": 0.1, "high": 1.0}},
        "budget": {"trials": 1, "steps": 3, "fail_share": 1.0},
        "resources": {"slots": 1, "checkpoint": "1s", **resources},
    }
    return parse(raw, "restless")


def alive(home: Path) -> list[str]:
    """What is left of a study's trials, in words."""
    return [" ".join(process.cmdline()) for process in leftovers.of_trials(home / "restless")]


@pytest.mark.slow
def test_each_trial_ends_and_what_it_left_ends_before_the_next_is_done(home: Path, ray_here: str) -> None:
    run(study("children", "thread", "hangs", "nothing", silence="5s"), home, mirror=False)
    ends = {key.split('"')[3]: (state, reason) for key, _, state, reason, *_ in whole(home, "restless")}
    assert ends == {
        "children": ("COMPLETE", ""),
        "thread": ("COMPLETE", ""),
        "hangs": ("FAIL", "silent: no row for 5s"),
        "nothing": ("COMPLETE", ""),
    }
    assert alive(home) == []


@pytest.mark.slow
def test_a_worker_that_is_gone_takes_what_its_trial_started_with_it(home: Path, ray_here: str) -> None:
    run(study("exits", "asks-ray"), home, mirror=False)
    (gone, well) = whole(home, "restless")
    assert gone[3].startswith("worker lost 4 times: ")
    assert well[2] == "COMPLETE"
    assert alive(home) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_hanging_study_leaves_in_seconds_and_nothing_of_it_is_left(home: Path, number: signal.Signals) -> None:
    """Of a driver that was killed the next one clears away what its trials had started."""
    file = toml(study("children", "hangs"), home.parent / "restless.toml")
    environment = {**os.environ, "CS330RAY_HOME": str(home), "RAY_ADDRESS": ""}
    command = [sys.executable, "-m", "cs330ray", "run", str(file), "--set", "budget.trials=1"]
    with (home.parent / "log").open("w") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 90
        while not _hangs(home) and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(2)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        began = time.monotonic()
        code = driver.wait(60)
    finally:
        driver.kill()
        driver.wait()
    text = (home.parent / "log").read_text()
    if number is signal.SIGKILL:
        again = subprocess.run(
            [*command, "--set", "resources.silence=3s"], env=environment, capture_output=True, text=True
        )
        assert again.returncode == 0, again.stderr
    else:
        assert code == 130, text
        assert re.search(r"^Go on with: ", text, re.MULTILINE)
        assert time.monotonic() - began < 30  # of them Ray and the mirror take most, on a busy machine
    _, left = psutil.wait_procs(family, timeout=10)
    left = [process.name() for process in left if not process.name().startswith("ray::")]
    assert left == []  # but for agents of a Ray whose driver was killed, which wait a minute for its GCS
    assert alive(home) == []


def _hangs(home: Path) -> bool:
    """Whether the second trial hangs: it was entered, and has written its first line since."""
    return len(list((home / "restless" / "checkpoints").glob("*/trial-00000/*.txt"))) == 2
