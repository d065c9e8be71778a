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

    def each_trial_equals_a_lone_rerun(self, folder: Path) -> None:
        """All that have ended, and of those that run what they have done."""
        ledger = self.ledger()
        found = ledger.study(self.name)
        (cell,) = found.cells
        for trial in ledger.trials(found, cell):
            config = toy_trainable.Config(**{**cell.fixed, **trial.params, "sleep_s": 0.0})
            alone = run_alone(toy_trainable, config, trial.seed, STEPS, folder / self.name / str(trial.number))
            rows = [(row.step, dict(row.metrics)) for row in ledger.rows(found, cell, trial.number)]
            assert trial.state in ("COMPLETE", "RUNNING")
            assert len(rows) == STEPS or trial.state == "RUNNING"
            assert rows == [(each.step, dict(each.metrics)) for each in alone][: len(rows)]


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
        assert each.complete() == list(range(trials))
        each.each_trial_equals_a_lone_rerun(tmp_path)
        attempts = each.attempts()
        assert len({node for starts in attempts for start in starts for node in start["nodes"]}) >= 2
        assert max((start["resumed_from_step"] or 0) for starts in attempts for start in starts) > 1
    assert not Path(f"/tmp/cs330ray-{long.job}").exists()
    assert "token" not in {path.name for path in long.folder.iterdir()}


def test_a_lost_disk_costs_a_minute_of_record_a_preempted_job_comes_again_and_one_that_is_stopped_does_not(
    cluster: Slurm, tmp_path: Path
) -> None:
    first = Sent(cluster, study("struck", 60, 0.25), "--cpus-per-node=1")
    first.submit()
    first.until(lambda: (first.home / "ledger.db").exists(), 180)  # the first copy, after a minute
    copied = first.complete()
    home = {**cluster.environment, "CS330RAY_HOME": str(first.home)}
    words = ["cs330ray", "run", str(cluster.folder / "struck.toml")]
    refused = subprocess.run(words, env=home, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"one job at a time may work here, but job {first.job} of Slurm does" in refused.stderr
    second = Sent(cluster, study("struck", 60, 0.25), "--cpus-per-node=1")
    second.submit()
    first.until(lambda: len(first.said()) >= len(copied) + 2)
    assert [cluster.state(each.job) for each in (first, second)] == ["RUNNING", "PENDING"]

    own = Path(f"/tmp/cs330ray-{first.job}")
    for process in processes_of(own):  # the machine dies, and its disk with it
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(own)
    first.until(lambda: not cluster.state(first.job))
    assert set(copied) <= set(first.complete()) < set(first.said())

    second.until(lambda: len(second.said()) >= 3)
    urgent = ["--partition=urgent", "--nodes=2", "--cpus-per-task=2", "--output=/dev/null"]
    cluster.run("sbatch", *urgent, "--wrap=sleep 5")
    second.until(lambda: "it resumes when its turn comes again" in second.log)
    before = second.said()
    assert set(before) <= set(second.complete())
    second.until(lambda: len(second.said()) > len(before))

    stopped = cluster.run("cs330ray", "stop", "struck").stdout
    assert stopped.splitlines()[0] == f"struck: stopped job {second.job}; nothing is lost"
    assert cluster.state(second.job) in ("", "COMPLETING")
    assert "it resumes" not in second.log[second.log.rindex("COMPLETE") :]
    assert set(second.said()) <= set(second.complete())
    second.each_trial_equals_a_lone_rerun(tmp_path)
    with contextlib.closing(sqlite3.connect(second.home / "ledger.db")) as copy:
        assert copy.execute("select count(*) from cs330ray_leases").fetchone() == (0,)
