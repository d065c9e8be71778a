"""One run of an arm: started in a folder of its own, timed, killed where that is wanted, and ended without a trace."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.faults import kill_all
from benchmarks.headline_arms.arms import NAME, Arm, Size, prepare
from benchmarks.workplace import environment
from cs330ray.report.open_study import opened

ENDED = re.compile(r"\btrial (\d+)\s+(?:on fresh seed (\d+)\s+)?COMPLETE\b")  # a line of any arm
LOOK_S, SAMPLE_S = 0.05, 0.5
LAST_WORDS = 15


@dataclass(frozen=True)
class Ran:
    """What one run of an arm took and found."""

    wall_s: float
    cpu_s: float  # of all its processes, but for the last half second of each
    first_s: float  # until the first trial had ended
    values: Mapping[int, float]  # validation MSE by trial
    choice: int
    test: Sequence[float]
    twice: int  # trials that ended twice, since a kill lost their end


class Spent:
    """Samples the processor seconds of every process that was started in a folder."""

    def __init__(self, folder: Path) -> None:
        self._mark = str(folder / "r")
        self._seconds: dict[psutil.Process, float] = {}

    def look(self) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process in self._seconds or process.environ().get("RAY_TMPDIR") == self._mark:
                    self._seconds[process] = sum(process.cpu_times()[:2])

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())


def run(arm: Arm, size: Size, folder: Path, kill_s: float | None = None) -> Ran:
    """Run an arm's command in a folder of its own; where it is killed after so many seconds, once more.

    Nothing that it started is left. Raises SystemExit where it does not end well.
    """
    prepare(arm, size, folder)
    spent, began = Spent(folder), time.monotonic()
    try:
        first_s = tended(arm, folder, spent, kill_s)
        if kill_s is not None:
            first_s = min(first_s, kill_s + tended(arm, folder, spent, None))
        wall_s = time.monotonic() - began
    finally:
        kill_all([str(folder)])
    ended = Counter(ENDED.findall(said(folder)))
    values, choice, test = answer_of(folder)
    twice = sum(times > 1 for times in ended.values())
    return Ran(wall_s, spent.seconds, first_s, values, choice, test, twice)


def tended(arm: Arm, folder: Path, spent: Spent, kill_s: float | None) -> float:
    """Start an arm's command and wait for its end, or kill it; the seconds until a trial had ended, inf without one."""
    began, first_s, sampled_s = time.monotonic(), float("inf"), 0.0
    before = len(ENDED.findall(said(folder)))
    with (folder / "said.txt").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *arm.words(folder)], env=environment(folder), stdout=out, stderr=out, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(LOOK_S)
            break
        now_s = time.monotonic() - began
        if first_s == float("inf") and len(ENDED.findall(said(folder))) > before:
            first_s = now_s
        if now_s - sampled_s >= SAMPLE_S:
            spent.look()
            sampled_s = now_s
        if kill_s is not None and now_s >= kill_s:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return first_s
    if code != 0:
        words = "\n".join(said(folder).splitlines()[-LAST_WORDS:])
        raise SystemExit(f"{' '.join(arm.words(folder))} ended with {code}:\n{words}")
    return first_s


def said(folder: Path) -> str:
    """What an arm has printed and noted so far."""
    file = folder / "said.txt"
    return file.read_text(errors="replace") if file.exists() else ""


def answer_of(folder: Path) -> tuple[dict[int, float], int, list[float]]:
    """Each trial's validation MSE, which trial was chosen, and its test MSE by fresh seed."""
    if (file := folder / "answer.json").exists():
        found = json.loads(file.read_text())
        return {int(number): value for number, value in found["values"].items()}, found["choice"], found["test"]
    study = opened(NAME, folder / "runs")
    assert study.best is not None
    assert study.best.confirmed, "the study has confirmed nothing"
    runs = study.runs[study.runs["trial"] == study.best.trial]
    values = dict(zip(study.trials["trial"].tolist(), study.trials["val_mse_last"].tolist(), strict=True))
    return values, study.best.trial, runs["test_mse_last"].tolist()
