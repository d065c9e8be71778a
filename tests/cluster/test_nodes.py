"""Nodes that differ, come, go and scale: studies on several Ray nodes of one machine."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cs330ray.ledger.writer import Writer
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from tests.studies_of_tests import toml, toy, whole
from tests.team_toy import NUMBERS

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
SMALL = {"object_store_memory": 100 * 1024**2}
SLOW = {"eval_every_steps": 1, "sleep_s": 0.1}


@pytest.fixture
def cluster() -> Iterator["Cluster"]:
    """A head that runs no trials; a test adds the other nodes."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
        yield made
        made.shutdown()


class Driver:
    """A study that runs in a process of its own, and the lines it has said."""

    def __init__(self, cluster: "Cluster", study: Study, folder: Path) -> None:
        self.home, self.lines = folder / "runs", list[str]()
        environment = {**os.environ, "CS330RAY_HOME": str(self.home), "RAY_ADDRESS": cluster.address}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cs330ray", "run", str(toml(study, folder / f"{study.name}.toml"))],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def until(self, holds: Callable[[], Any], seconds: float = 90) -> Any:
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, self.lines
            assert self.process.poll() is None, self.lines
            time.sleep(0.2)
        return found

    def says(self, words: str) -> str | None:
        return next((line for line in self.lines if words in line), None)

    def ends(self, seconds: float = 150) -> int:
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def nodes(self, study: Study) -> set[str]:
        """The nodes on which trials ran."""
        ledger = Writer.at(self.home)
        (cell,) = study.cells
        attempts = [one for trial in ledger.trials(study, cell) for one in ledger.attempts(study, cell, trial.number)]
        return {node for attempt in attempts for node in attempt["nodes"]}

    def losses(self) -> list[str]:
        """Why workers were lost."""
        with contextlib.closing(sqlite3.connect(self.home / "ledger.db")) as ledger:
            return [reason for (reason,) in ledger.execute("select reason from cs330ray_losses")]


@pytest.fixture
def start(cluster: "Cluster", tmp_path: Path) -> Iterator[Callable[[Study], Driver]]:
    drivers: list[Driver] = []

    def started(study: Study) -> Driver:
        drivers.append(Driver(cluster, study, tmp_path))
        return drivers[-1]

    yield started
    for driver in drivers:
        driver.process.kill()
        driver.ends()
        assert driver.process.stdout is not None
        driver.process.stdout.close()


@pytest.fixture
def another_peft(tmp_path: Path) -> dict[str, str]:
    """The environment of a node where a dependency has another version."""
    claims = tmp_path / "other" / "peft-0.0.1.dist-info"
    claims.mkdir(parents=True)
    (claims / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.0.1\n")
    return {"PYTHONPATH": os.pathsep.join([str(claims.parent), os.environ["PYTHONPATH"]])}


CLAIMS_CUDA = """
import builtins, sys
importing = builtins.__import__
def imported(*args, **kwargs):
    found = importing(*args, **kwargs)
    torch = sys.modules.get("torch")
    if hasattr(torch, "compile"):  # it is whole
        torch.version.cuda = "13.0"
    return found
builtins.__import__ = imported
"""


@pytest.fixture
def with_cuda(tmp_path: Path) -> dict[str, str]:
    """The environment of a node whose torch says that it was built with CUDA."""
    place = tmp_path / "cuda"
    place.mkdir()
    (place / "sitecustomize.py").write_text(CLAIMS_CUDA)
    return {"PYTHONPATH": os.pathsep.join([str(place), os.environ["PYTHONPATH"]])}


def test_a_node_that_differs_gets_no_trials_and_is_named_once_while_the_study_goes_on(cluster, start, another_peft):
    good = cluster.add_node(num_cpus=1, **SMALL)
    bad = cluster.add_node(num_cpus=1, env_vars=another_peft, **SMALL)
    cluster.wait_for_nodes()
    study = toy(budget={"trials": 3, "steps": 10})
    driver = start(study)
    assert driver.ends() == 0, driver.lines
    assert driver.nodes(study) == {good.node_id}
    assert bad.node_id not in driver.nodes(study)
    assert sum("gets no trials: peft must be" in line and "but is 0.0.1" in line for line in driver.lines) == 1


def test_a_study_whose_only_node_differs_is_refused_with_code_2_and_nothing_is_started(cluster, start, another_peft):
    cluster.add_node(num_cpus=1, env_vars=another_peft, **SMALL)
    cluster.wait_for_nodes()
    driver = start(toy())
    assert driver.ends() == 2, driver.lines
    assert "no node may run its trials" in driver.lines[-1]
    assert not driver.home.exists()


def test_a_cluster_without_nodes_waits_and_a_bad_one_that_comes_first_gets_no_trial(cluster, start, another_peft):
    study = toy(budget={"trials": 3, "steps": 10}, resources={"slots": 2})
    driver = start(study)
    driver.until(lambda: driver.says("waits for nodes: a trial needs 1 CPU"))
    cluster.add_node(num_cpus=1, env_vars=another_peft, **SMALL)
    driver.until(lambda: driver.says("gets no trials: peft must be"))
    good = cluster.add_node(num_cpus=1, **SMALL)
    assert driver.ends() == 0, driver.lines
    assert driver.nodes(study) == {good.node_id}
    ledger = Writer.at(driver.home)
    assert [state for _, _, state, *_ in whole(driver.home)] == ["COMPLETE"] * 3
    assert all(len(ledger.attempts(study, study.cells[0], number)) == 1 for number in range(3))
    assert driver.losses() == []  # a trial that was quicker than the question lost nothing
    assert sum("gets no trials" in line for line in driver.lines) == 1


def test_a_cluster_without_gpus_waits_for_them_and_does_not_fall_back_to_the_cpu(cluster, start, with_cuda):
    cluster.add_node(num_cpus=2, **SMALL)
    study = toy(budget={"trials": 2, "steps": 10}, resources={"slots": 2, "gpus": 0.5})
    driver = start(study)
    driver.until(lambda: driver.says("waits for nodes: a trial needs 0.5 GPU and 1 CPU"))
    assert not driver.says("no GPU here")
    without = cluster.add_node(num_cpus=2, num_gpus=1, **SMALL)
    driver.until(lambda: driver.says("there is a GPU, but its torch was built without CUDA"))
    with_gpu = cluster.add_node(num_cpus=2, num_gpus=1, env_vars=with_cuda, **SMALL)
    assert driver.ends() == 0, driver.lines
    assert driver.nodes(study) == {with_gpu.node_id}
    assert without.node_id not in driver.nodes(study)


def test_a_node_that_vanishes_costs_its_trials_the_time_since_their_checkpoint_alone(cluster, start, tmp_path):
    cluster.add_node(num_cpus=1, **SMALL)
    lost = cluster.add_node(num_cpus=1, **SMALL)
    cluster.wait_for_nodes()
    study = toy(fixed=SLOW, budget={"trials": 2, "steps": 100}, resources={"checkpoint": "1s"})
    driver = start(study)
    driver.until(lambda: driver.home.exists() and sum(1 for _ in driver.home.rglob("step-*")) >= 2)
    driver.until(lambda: lost.node_id in driver.nodes(study))
    cluster.remove_node(lost, allow_graceful=False)
    assert driver.ends() == 0, driver.lines
    trials = whole(driver.home)
    assert [state for _, _, state, *_ in trials] == ["COMPLETE", "COMPLETE"]
    assert all([step for step, _ in rows] == list(range(1, 101)) for *_, rows in trials)
    ledger = Writer.at(driver.home)
    attempts = [ledger.attempts(study, study.cells[0], number) for number in range(2)]
    assert sorted(map(len, attempts)) == [1, 2]
    again = max(attempts, key=len)[1]
    assert (again["resumed_from_step"] or 0) > 0
    (loss,) = driver.losses()
    assert loss.endswith(f"[on {lost.node_id}]")


def test_lost_trials_go_on_before_any_other_begins_where_no_node_comes_for_them(cluster, start):
    cluster.add_node(num_cpus=1, **SMALL)
    lost = cluster.add_node(num_cpus=2, **SMALL)
    cluster.wait_for_nodes()
    study = toy(fixed=SLOW, budget={"trials": 8, "steps": 60}, resources={"checkpoint": "1s", "slots": 3})
    driver = start(study)
    driver.until(lambda: driver.home.exists() and sum(1 for _ in driver.home.rglob("step-*")) >= 3)
    cluster.remove_node(lost, allow_graceful=False)
    assert driver.ends() == 0, driver.lines
    ledger = Writer.at(driver.home)
    attempts = {
        trial.number: ledger.attempts(study, study.cells[0], trial.number)
        for trial in ledger.trials(study, study.cells[0])
    }
    again = [each[1]["began_s"] for each in attempts.values() if len(each) > 1]
    assert len(again) == 2
    fresh = [each[0]["began_s"] for number, each in attempts.items() if number >= 3]
    assert max(again) < sorted(fresh)[1]  # one may have been asked before the loss


def test_a_team_on_two_nodes_reaches_what_one_process_reaches_and_its_checkpoint_travels(cluster, start):
    nodes = [cluster.add_node(num_cpus=1, **SMALL).node_id for _ in range(2)]
    cluster.wait_for_nodes()
    study = parse(
        {"name": "team", "trainable": "tests.team_toy", "objective": ["val_sum"],
         "search": {"scale": {"low": 1, "high": 9}}, "budget": {"trials": 2, "steps": 6},
         "resources": {"workers": 2, "checkpoint": 0.001}, "confirm": {"top": 1, "seeds": 1}}, "team",
    )  # fmt: skip
    driver = start(study)
    assert driver.ends() == 0, driver.lines
    ledger, (cell,) = Writer.at(driver.home), study.cells
    for trial in ledger.trials(study, cell):
        assert trial.values == (trial.params["scale"] * sum(range(6 * NUMBERS)),)
    assert all(sorted(ledger.attempts(study, cell, number)[0]["nodes"]) == sorted(nodes) for number in range(2))
    best = max(ledger.trials(study, cell), key=lambda trial: trial.values)
    scores = ledger.test_metrics(study, cell.under(0), best.number)
    assert scores["test_sum"] == best.values[0] + sum(range(NUMBERS))


def test_several_studies_share_a_cluster(cluster, start, tmp_path):
    cluster.add_node(num_cpus=2, **SMALL)
    cluster.wait_for_nodes()
    shared = {"fixed": SLOW, "budget": {"trials": 2, "steps": 40}, "resources": {"slots": 1}}
    studies = [toy(name=name, **shared) for name in ("one", "two")]
    drivers = [start(study) for study in studies]
    assert [driver.ends() for driver in drivers] == [0, 0], [driver.lines for driver in drivers]
    spans = []
    for study in studies:
        ledger, (cell,) = Writer.at(drivers[0].home), study.cells
        trials = ledger.trials(study, cell)
        assert [trial.state for trial in trials] == ["COMPLETE"] * 2
        spans.append((ledger.attempts(study, cell, 0)[0]["began_s"], trials[-1].ended_s))
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)  # at the same time
