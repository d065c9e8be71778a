"""A study on a real cluster: `ray up` to two hosts, submitted with a token, one host's plug pulled in the middle."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from cs330ray.spec.study import Study
from cs330ray.trial.named import code_digest
from cs330ray.trial.run import run_alone
from tests import toy as toy_trainable
from tests.cluster.conftest import UpCluster
from tests.studies_of_tests import toml, toy

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ASK = """
import json, sys, urllib.error, urllib.request
def status(path, headers):
    try:
        return urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8265" + path, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code
token = open(sys.argv[1]).read()
paths = ["/api/jobs/", "/nodes?view=summary", "/api/v0/nodes", "/api/cluster_status", "/api/version"]
print(json.dumps({path: [status(path, {}), status(path, {"Authorization": "Bearer wrong"}),
                         status(path, {"Authorization": "Bearer " + token})] for path in paths}))
"""

SCRIPT = """
import json, os, sys, time
from pathlib import Path

import cs330ray
from beside import slope

lr, steps = float(sys.argv[1]), int(sys.argv[2])
resume = os.environ.get("CS330RAY_RESUME")
for step in range((json.loads(Path(resume, "step.json").read_text()) if resume else 0) + 1, steps + 1):
    time.sleep(0.3)
    place = Path(os.environ["CS330RAY_CHECKPOINTS_DIR"], f"step-{step}")
    place.mkdir(parents=True)
    (place / "step.json").write_text(json.dumps(step))
    cs330ray.log(step=step, value=slope * lr * step, checkpoint=place)
"""
COMMAND = """
name = "scripted"
trainable = "command"
objective = "value"
[command]
run = ["python", "train.py", "{lr}", "{steps}"]
[command.metrics]
value = "max"
[search]
lr = { low = 0.1, high = 1.0 }
[budget]
trials = 6
steps = 30
[resources]
slots = 4
checkpoint = "1s"
"""


def study(name: str, trials: int, sleep_s: float, **changes: Any) -> Study:
    return toy(name=name, fixed={"sleep_s": sleep_s, "eval_every_steps": 1}, budget={"trials": trials, "steps": 40},
               resources={"checkpoint": "1s", "slots": 4}, **changes)  # fmt: skip


def until(true: Callable[[], Any], log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.25)


@pytest.fixture
def ledger(cluster: UpCluster, monkeypatch: pytest.MonkeyPatch) -> Writer:
    monkeypatch.setenv("CS330RAY_LEDGER", cluster.ledger)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", cluster.mlflow)
    return Writer.at(cluster.home)


def hosts_at_work(ledger: Writer, name: str) -> set[str]:
    """The hosts where trials that have reached a few steps run."""
    found = ledger.find(name)
    if found is None:
        return set()
    (cell,) = found.cells
    running = [trial for trial in ledger.trials(found, cell) if trial.state == "RUNNING"]
    return {
        ledger.attempts(found, cell, trial.number)[-1]["host"]
        for trial in running
        if len(ledger.rows(found, cell, trial.number)) > 10
    }


def test_without_the_token_neither_the_jobs_nor_the_dashboard_answer(cluster: UpCluster) -> None:
    done = cluster.hosts["head"].run("python", "-c", ASK, str(cluster.token))
    assert json.loads(done.stdout) == {key: [401, 403, 200] for key in json.loads(done.stdout)}
    refused = cluster.hosts["desk"].run("cs330ray", "status", check=False)
    assert refused.returncode == 2
    assert "the cluster asks for its token" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_stopped_study_is_whole_and_the_same_submit_goes_on(cluster: UpCluster, ledger: Writer) -> None:
    desk, file = cluster.hosts["desk"], toml(study("stopped", 6, 0.1), cluster.hosts.folder / "stopped.toml")
    log = cluster.hosts.folder / "first.log"
    first = desk.start(*cluster.submit(str(file)), log=log)
    until(lambda: hosts_at_work(ledger, "stopped"), log)
    again = desk.run(*cluster.submit(str(file)), check=False)
    stopped = desk.run("cs330ray", "stop", "stopped", "--token-file", str(cluster.token))
    assert first.wait(30) == 130, log.read_text()
    assert again.returncode == 2
    assert "a study runs once at a time, but job stopped-" in again.stderr
    assert stopped.stdout.splitlines()[-1] == f"Go on with: {' '.join(cluster.submit(str(file)))}"
    assert "interrupted after" in log.read_text()
    done = desk.run(*cluster.submit(str(file)), seconds=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_script_of_ones_own_travels_with_what_lies_beside_it_and_resumes(cluster: UpCluster, ledger: Writer) -> None:
    desk, folder, log = cluster.hosts["desk"], cluster.hosts.folder / "scripted", cluster.hosts.folder / "scripted.log"
    folder.mkdir()
    for name, text in {"train.py": SCRIPT, "beside.py": "slope = 2.0", "study.toml": COMMAND}.items():
        (folder / name).write_text(text)
    first = desk.start(*cluster.submit(str(folder / "study.toml")), log=log)
    until(lambda: hosts_at_work(ledger, "scripted") == {"head", "worker"}, log)
    desk.run("cs330ray", "stop", "scripted", "--token-file", str(cluster.token))
    assert first.wait(30) == 130, log.read_text()
    done = desk.run(*cluster.submit(str(folder / "study.toml")), seconds=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = ledger.study("scripted")
    (cell,) = found.cells
    trials = ledger.trials(found, cell)
    assert [trial.state for trial in trials] == ["COMPLETE"] * 6
    attempts = [ledger.attempts(found, cell, trial.number) for trial in trials]
    assert max((each[-1]["resumed_from_step"] or 0) for each in attempts) > 1
    assert len({attempt["code"] for each in attempts for attempt in each}) == 1
    for trial in trials:
        rows = ledger.rows(found, cell, trial.number)
        assert [row.step for row in rows] == list(range(1, 31))
        assert rows[-1].metrics["value"] == pytest.approx(2.0 * trial.params["lr"] * 30)


def test_a_head_that_dies_costs_one_more_ray_up_and_the_same_submit(
    cluster: UpCluster, ledger: Writer, tmp_path: Path
) -> None:
    desk, file = cluster.hosts["desk"], toml(study("headless", 5, 0.2), cluster.hosts.folder / "headless.toml")
    log = cluster.hosts.folder / "headless.log"
    desk.start(*cluster.submit(str(file)), log=log)
    until(lambda: hosts_at_work(ledger, "headless") == {"head", "worker"}, log)
    cluster.hosts["head"].die()
    cluster.hosts.boot("head")
    cluster.up()
    done = desk.run(*cluster.submit(str(file)), seconds=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on from its checkpoint at step" in done.stdout
    assert_each_trial_equals_a_lone_rerun(ledger, "headless", 5, tmp_path)


def test_a_host_that_dies_costs_its_trials_nothing_but_time(cluster: UpCluster, ledger: Writer, tmp_path: Path) -> None:
    file = toml(study("struck", 8, 0.2), cluster.hosts.folder / "struck.toml")
    log = cluster.hosts.folder / "struck.log"
    submitted = cluster.hosts["desk"].start(*cluster.submit(str(file)), log=log)
    until(lambda: hosts_at_work(ledger, "struck") == {"head", "worker"}, log)
    cluster.hosts["worker"].die()
    try:
        assert submitted.wait(180) == 0, log.read_text()
    except subprocess.TimeoutExpired:
        pytest.fail(log.read_text())
    found = ledger.study("struck")
    (cell,) = found.cells
    attempts = [ledger.attempts(found, cell, trial.number) for trial in ledger.trials(found, cell)]
    ran_on = [[attempt["host"] for attempt in each] for each in attempts]
    assert ["worker", "head"] in ran_on
    assert {attempt["code"] for each in attempts for attempt in each} == {code_digest("tests.toy")}
    assert_each_trial_equals_a_lone_rerun(ledger, "struck", 8, tmp_path)
    assert Mirror(ledger, "struck", cluster.home).sync() == 0


def assert_each_trial_equals_a_lone_rerun(ledger: Writer, name: str, trials: int, folder: Path) -> None:
    found = ledger.study(name)
    (cell,) = found.cells
    assert [trial.state for trial in ledger.trials(found, cell)] == ["COMPLETE"] * trials
    for trial in ledger.trials(found, cell):
        config = toy_trainable.Config(**{**cell.fixed, **trial.params, "sleep_s": 0.0})
        alone = run_alone(toy_trainable, config, trial.seed, 40, folder / str(trial.number))
        assert [(row.step, dict(row.metrics)) for row in ledger.rows(found, cell, trial.number)] == [
            (progress.step, dict(progress.metrics)) for progress in alone
        ]
