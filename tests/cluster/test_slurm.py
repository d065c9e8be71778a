"""Studies as jobs of a real Slurm: two nodes, a limit of time, a cancelled job, a preempted one, a lost disk."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cs330ray.ledger.ledger import Ledger
from cs330ray.spec.study import Study
from cs330ray.trial.run import run_alone
from tests import toy as toy_trainable
from tests.cluster.slurm import Slurm, processes_of, slurm, why_not
from tests.studies_of_tests import toml, toy

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS = 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with slurm() as made:
        yield made


def study(name: str, trials: int, sleep_s: float = 0.2) -> Study:
    return toy(name=name, fixed={"sleep_s": sleep_s, "eval_every_steps": 1}, budget={"trials": trials, "steps": STEPS},
               resources={"checkpoint": "1s"})  # fmt: skip


class Sent:
    """A study that was submitted."""

    def __init__(self, cluster: Slurm, asked: Study, *options: str) -> None:
        self.cluster, self.name = cluster, asked.name
        self.of_study = cluster.folder / "runs" / "slurm" / asked.name
        self.home = self.of_study / "home"
        file = toml(asked, cluster.folder / f"{asked.name}.toml")
        self._words = ["cs330ray", "submit", str(file), "--slurm", *options]
        self.job, self.folder = "", Path()

    def submit(self) -> None:
        self.cluster.run(*self._words)
        self.folder = max((self.of_study / "jobs").iterdir())
        self.job = (self.folder / "id").read_text()

    @property
    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log.txt").read_text()
        return ""

    def said(self) -> list[int]:
        """The trials that the log says have ended."""
        return [int(line.split()[2]) for line in self.log.splitlines() if " COMPLETE " in line]

    def until(self, true: Callable[[], Any], seconds: float = 150) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"{self.log}\n{self.cluster.run('squeue').stdout}"
            time.sleep(0.25)

    def ledger(self) -> Ledger:
        return Ledger.at(self.home)

    def complete(self) -> list[int]:
        """The trials that the copy on the shared disk holds to their end."""
        ledger = self.ledger()
        found = ledger.study(self.name)
        return [trial.number for trial in ledger.trials(found, found.cells[0]) if trial.state == "COMPLETE"]

    def attempts(self) -> list[list[dict[str, Any]]]:
        ledger = self.ledger()
        found = ledger.study(self.name)
        return [ledger.attempts(found, found.cells[0], trial.number) for trial in ledger.trials(found, found.cells[0])]

    def each_trial_equals_a_lone_rerun(self, trials: int, folder: Path) -> None:
        ledger = self.ledger()
        found = ledger.study(self.name)
        (cell,) = found.cells
        assert [trial.state for trial in ledger.trials(found, cell)] == ["COMPLETE"] * trials
        for trial in ledger.trials(found, cell):
            config = toy_trainable.Config(**{**cell.fixed, **trial.params, "sleep_s": 0.0})
            alone = run_alone(toy_trainable, config, trial.seed, STEPS, folder / self.name / str(trial.number))
            assert [(row.step, dict(row.metrics)) for row in ledger.rows(found, cell, trial.number)] == [
                (progress.step, dict(progress.metrics)) for progress in alone
            ]


def test_a_study_outlives_its_time_beside_another_on_the_same_nodes_whose_job_is_cancelled(
    cluster: Slurm, tmp_path: Path
) -> None:
    began_s = time.monotonic()
    limit = ["--time=30", "--sbatch=--signal=B:TERM@60", "--requeue=3"]
    long = Sent(cluster, study("long", 10), "--nodes=2", "--cpus-per-node=1", *limit)
    other = Sent(cluster, study("other", 8), "--nodes=2", "--cpus-per-node=1")
    for each in (long, other):
        each.submit()
    other.until(lambda: len(other.said()) >= 2 and len(long.said()) >= 2)
    assert [cluster.state(each.job) for each in (long, other)] == ["RUNNING", "RUNNING"]

    minutes = int(time.monotonic() - began_s) // 60 + 1
    cluster.run("scontrol", "update", f"JobId={long.job}", f"TimeLimit={minutes}")  # it is nearly over
    cluster.run("scancel", other.job)
    other.until(lambda: not cluster.state(other.job))
    assert set(other.said()) <= set(other.complete())  # nothing is lost, and it does not come again
    status = cluster.run("cs330ray", "status").stdout
    assert [line.split()[:3] for line in status.splitlines()[2:]] == [
        ["long", long.job, cluster.state(long.job)], ["other", other.job, "STOPPED"],
    ]  # fmt: skip
    other.submit()

    long.until(lambda: "it resumes when its turn comes again" in long.log)
    assert set(long.said()) <= set(long.complete())
    cluster.run("scontrol", "update", f"JobId={long.job}", "TimeLimit=30")
    assert cluster.run("cs330ray", "logs", "long", "--follow", seconds=240).stdout == long.log
    assert (long.folder / "ended").read_text() == "0"
    other.until(lambda: (other.folder / "ended").exists())

    for each, trials in ((long, 10), (other, 8)):
        each.each_trial_equals_a_lone_rerun(trials, tmp_path)
        attempts = each.attempts()
        assert len({node for starts in attempts for start in starts for node in start["nodes"]}) >= 2
        assert max((start["resumed_from_step"] or 0) for starts in attempts for start in starts) > 1
    assert not Path(f"/tmp/cs330ray-{long.job}").exists()
    assert "token" not in {path.name for path in long.folder.iterdir()}


def test_a_lost_disk_costs_a_minute_of_record_and_a_preempted_job_comes_again(cluster: Slurm, tmp_path: Path) -> None:
    struck = Sent(cluster, study("struck", 14, 0.25), "--cpus-per-node=1")
    struck.submit()
    struck.until(lambda: (struck.home / "ledger.db").exists(), 180)  # the first copy, after a minute
    copied = struck.complete()
    struck.until(lambda: len(struck.said()) >= len(copied) + 2)
    said = set(struck.said())
    own = Path(f"/tmp/cs330ray-{struck.job}")
    for process in processes_of(own):  # the machine dies, and its disk with it
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(own)
    struck.until(lambda: not cluster.state(struck.job))
    assert set(copied) <= set(struck.complete()) < said
    status = cluster.run("cs330ray", "status", "struck").stdout
    assert "KILLED" in status

    struck.submit()
    struck.until(lambda: len(struck.said()) >= 3)
    cluster.run(
        "sbatch", "--partition=urgent", "--nodes=2", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 5"
    )
    struck.until(lambda: "it resumes when its turn comes again" in struck.log)
    assert set(struck.said()) <= set(struck.complete())
    struck.until(lambda: (struck.folder / "ended").exists() and (struck.folder / "ended").read_text() == "0", 240)
    struck.each_trial_equals_a_lone_rerun(14, tmp_path)


def test_a_job_that_runs_is_stopped_and_nobody_else_writes_its_home_meanwhile(cluster: Slurm) -> None:
    held = Sent(cluster, study("held", 30, 0.2), "--cpus-per-node=1")
    held.submit()
    held.until(lambda: held.said())
    own_home = {"CS330RAY_HOME": str(held.home)}
    refused = subprocess.run(
        ["cs330ray", "run", str(cluster.folder / "held.toml")], env={**cluster.environment, **own_home},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"one job at a time may work here, but job {held.job} of Slurm does" in refused.stderr
    waits = Sent(cluster, study("held", 30, 0.2), "--cpus-per-node=1")
    waits.submit()
    assert cluster.state(waits.job) == "PENDING"

    stopped = cluster.run("cs330ray", "stop", "held").stdout
    assert stopped.splitlines()[0] == f"held: stopped job {waits.job}; nothing is lost"
    assert not cluster.state(held.job)
    assert not cluster.state(waits.job)
    assert held.said()
    assert set(held.said()) <= set(held.complete())
    with contextlib.closing(sqlite3.connect(held.home / "ledger.db")) as copy:
        assert copy.execute("select count(*) from cs330ray_leases").fetchone() == (0,)
