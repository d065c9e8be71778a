"""A whole study on Ray: states and reasons, the mirror, resuming, extending, and every way to be killed."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest

from cs330ray.errors import SpecError
from cs330ray.ledger.trials.fronts import pareto_front
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.runs import Runs
from cs330ray.mirror.sync import Mirror, MirrorError
from cs330ray.service.listener import Silent
from cs330ray.service.run import run
from cs330ray.service.search import ask
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.spec.places import checkpoints_of
from cs330ray.spec.study import Study
from tests import in_process
from tests import toy as toy_trainable
from tests.assignments import assignment
from tests.studies_of_tests import toml, toy, whole

pytestmark = pytest.mark.usefixtures("ray_here")

ALL_ENDS = {
    "compare": {"ends": ["well", "raises", "diverges", "nan"]},
    "prune": {"kind": "median", "min_steps": 5, "startup": 1},
    "budget": {"trials": 3, "steps": 20},
    "seed": 0,
}


class Ear(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def says(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def every_end(tmp_path_factory: pytest.TempPathFactory, ray_here: str) -> Path:
    """A finished study with COMPLETE, PRUNED, and failed trials of each kind, on one slot, mirrored afterwards."""
    home = tmp_path_factory.mktemp("every-end")
    run(toy(**ALL_ENDS, resources={"slots": 1}), home, mirror=False)
    return home


def runs_of(home: Path, experiment: str = "toy") -> list[Any]:
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000))


def test_each_trial_ends_in_its_state_with_its_reason(every_end: Path) -> None:
    ends = {(key, state): reason for key, _, state, reason, *_ in whole(every_end)}
    assert {state for key, state in ends if "well" in key} == {"COMPLETE", "PRUNED"}
    assert ends['{"ends":"raises"}', "FAIL"] == "raised: RuntimeError: planted"
    assert ends['{"ends":"diverges"}', "FAIL"] == "diverged: the loss is inf at step 3"
    assert ends['{"ends":"nan"}', "FAIL"].startswith("val_loss must be finite")
    assert ends['{"ends":"well"}', "PRUNED"].startswith("median at step")


def test_each_end_has_its_cause_in_the_ledgers_own_table(every_end: Path) -> None:
    connection = sqlite3.connect(every_end / "ledger.db")
    found = set(connection.execute("select cell, state, cause from cs330ray_ends"))
    connection.close()
    assert found == {
        ('{"ends":"well"}', "COMPLETE", None),
        ('{"ends":"well"}', "PRUNED", "pruned"),
        ('{"ends":"raises"}', "FAIL", "raised"),
        ('{"ends":"diverges"}', "FAIL", "diverged"),
        ('{"ends":"nan"}', "FAIL", "unscored"),
    }


def test_cells_take_turns_and_share_their_seeds(every_end: Path) -> None:
    trials = whole(every_end)
    assert len(trials) == 12
    assert len({seed for *_, seed, _, _ in trials}) == 3
    ledger = Writer.at(every_end)
    study = ledger.study("toy")
    starts = sorted(
        (trial.started_s, cell.key, trial.number) for cell in study.cells for trial in ledger.trials(study, cell)
    )
    assert [number for _, _, number in starts] == [0] * 4 + [1] * 4 + [2] * 4


def test_mlflow_shows_the_same_states_runs_parameters_and_curves_in_one_tree(every_end: Path) -> None:
    ledger = Writer.at(every_end)
    Mirror(ledger, "toy", every_end).sync()
    runs = runs_of(every_end)
    by_id = {found.info.run_id: found for found in runs}
    trials = {
        (found.data.tags["cs330ray.cell"], int(found.data.tags["cs330ray.trial"])): found
        for found in runs
        if found.data.tags["cs330ray.kind"] == "trial"
    }
    assert len(runs) == 1 + 4 + 12
    client = mlflow.MlflowClient(f"sqlite:///{every_end}/mlflow.db")
    shown = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    for key, number, state, reason, params, seed, _, rows in whole(every_end):
        found = trials[key, number]
        assert found.info.status == shown[state]
        assert found.data.tags.get("cs330ray.reason", "") == reason
        assert found.data.tags["cs330ray.seed"] == str(seed)
        assert {name: found.data.params[name] for name in params} == {name: str(params[name]) for name in params}
        curve = client.get_metric_history(found.info.run_id, "val_speed")
        assert [(point.step, point.value) for point in curve] == [(step, row["val_speed"]) for step, row in rows]
        cell = by_id[found.data.tags["mlflow.parentRunId"]]
        assert cell.data.tags["cs330ray.cell"] == key
        assert by_id[cell.data.tags["mlflow.parentRunId"]].data.tags["cs330ray.kind"] == "study"


def test_to_sync_again_changes_nothing(every_end: Path) -> None:
    ledger = Writer.at(every_end)
    Mirror(ledger, "toy", every_end).sync()
    before = dump(every_end / "mlflow.db")
    assert Mirror(ledger, "toy", every_end).sync() == 0
    assert dump(every_end / "mlflow.db") == before


def test_optuna_opens_what_a_study_left(every_end: Path) -> None:
    url = f"sqlite:///{every_end}/ledger.db"
    assert len(optuna.get_all_study_summaries(url)) == 4
    found = optuna.load_study(study_name='toy {"ends":"well"}', storage=url)
    assert {trial.state.name for trial in found.trials} == {"COMPLETE", "PRUNED"}
    assert found.best_trial.intermediate_values[20] == found.best_value


def test_the_same_study_again_does_nothing_and_a_greater_budget_goes_on(every_end: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(every_end, tmp_path / "runs"))
    before = whole(home)
    in_process.run(toy(**ALL_ENDS, resources={"slots": 1}), home, mirror=False)
    assert whole(home) == before
    grown = {**ALL_ENDS, "budget": {"trials": 4, "steps": 20}}
    ear = Ear()
    in_process.run(toy(**grown, resources={"slots": 1}), home, ear, mirror=False)
    assert "grown: budget.trials: 3 -> 4" in ear.lines
    after = whole(home)
    assert len(after) == 16
    assert [trial for trial in after if trial[1] < 3] == before


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"resources": {"cpus": 64}}, "cpus=64"),
        ({"resources": {"require_gpu": True}}, "require_gpu"),
        ({"resources": {"workers": 3}}, "for each of workers=3"),
    ],
)
def test_what_does_not_fit_the_machine_is_refused_before_anything_starts(
    home: Path, changes: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(SpecError, match=fragment):
        run(toy(**changes), home, mirror=False)
    assert not home.exists()


def test_the_first_lines_say_what_is_confirmed_and_that_gpus_that_are_not_here_count_as_none(home: Path) -> None:
    ear = Ear()
    in_process.run(toy(confirm={"seeds": 1}, resources={"gpus": 0.5}, budget={"trials": 1}), home, ear, mirror=False)
    assert "toy: then the best 3 of each cell again on 1 fresh seed, and test" in ear.lines
    assert any("no GPU here" in line for line in ear.lines)


def test_one_slot_asks_the_same_study_twice(tmp_path: Path) -> None:
    study = toy(budget={"trials": 6}, prune={"kind": "asha", "min_steps": 5}, resources={"slots": 1})
    for name in ("a", "b"):
        in_process.run(study, tmp_path / name, mirror=False)
    assert whole(tmp_path / "a") == whole(tmp_path / "b")


# Killing ------------------------------------------------------------------------------------------------------------

SLOW = {
    "budget": {"trials": 4, "steps": 60},
    "prune": {"kind": "asha", "min_steps": 20},
    "resources": {"slots": 1, "checkpoint": 1},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What the slow study comes to; here without its naps."""
    home = tmp_path_factory.mktemp("undisturbed")
    in_process.run(toy(**SLOW), home, mirror=False)
    return whole(home)


def slow() -> Study:
    return toy(**SLOW, fixed={"sleep_s": 0.05})


class Driver:
    """`cs330ray run` in a process of its own, on the run's Ray."""

    def __init__(self, home: Path, address: str, *arguments: str, **environment: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        file = toml(slow(), home.parent / "slow.toml")
        self.words = ["run", str(file), *arguments]
        self._log = (home.parent / "driver.log").open("a+")
        given = {**os.environ, "CS330RAY_HOME": str(home), "RAY_ADDRESS": address, **environment}
        command = [sys.executable, "-m", "cs330ray", *self.words]
        self.process = subprocess.Popen(command, env=given, stdout=self._log, stderr=self._log, start_new_session=True)

    def until_rows(self, count: int, seconds: float = 90, query: str = "select count(*) from cs330ray_rows") -> None:
        """Wait until so many rows are recorded, or until another count is so high."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"the driver ended early:\n{self.output()}")
            if (self.home / "ledger.db").exists() and counted(self.home, query) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(f"not {count} after {seconds}s: {query}\n{self.output()}")

    def until_checkpoint_of_a_running_trial_after(self, ended: int) -> None:
        """Wait until so many trials have ended and the next one has left a checkpoint."""
        self.until_rows(1, query=f"{CHECKPOINTS_OF_RUNNING} and trial >= {ended}")

    def output(self) -> str:
        self._log.flush()
        self._log.seek(0)
        return self._log.read()

    def end(self, seconds: float = 120) -> int:
        code = self.process.wait(seconds)
        self.text = self.output()
        self._log.close()
        return code


CHECKPOINTS_OF_RUNNING = (
    "select count(*) from cs330ray_checkpoints where trial not in (select trial from cs330ray_ends)"
)


def counted(home: Path, query: str) -> int:
    connection = sqlite3.connect(home / "ledger.db", timeout=30)
    try:
        return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def test_a_killed_driver_goes_on_by_the_same_command_as_if_nothing_had_been(
    home: Path, ray_here: str, undisturbed: list[tuple[Any, ...]]
) -> None:
    first = Driver(home, ray_here)
    first.until_checkpoint_of_a_running_trial_after(ended=1)
    first.process.send_signal(signal.SIGKILL)
    first.end()
    assert len(whole(home)) < 4 or any(state == "RUNNING" for _, _, state, *_ in whole(home))
    second = Driver(home, ray_here)
    assert second.end() == 0, second.text
    assert "goes on from its checkpoint at step" in second.text
    assert whole(home) == undisturbed


def test_a_killed_worker_costs_its_trial_the_time_since_the_checkpoint_and_nothing_else(
    home: Path, ray_here: str, undisturbed: list[tuple[Any, ...]]
) -> None:
    driver = Driver(home, ray_here)
    driver.until_checkpoint_of_a_running_trial_after(ended=0)
    ledger = Writer.at(home)
    study = ledger.study("toy")
    (cell,) = study.cells
    number = ledger.trials(study, cell)[-1].number
    os.kill(ledger.attempts(study, cell, number)[-1]["pid"], signal.SIGKILL)
    assert driver.end() == 0, driver.text
    assert "lost its worker" in driver.text
    assert whole(home) == undisturbed
    first, second = ledger.attempts(study, cell, number)
    assert first["resumed_from_step"] is None
    assert second["resumed_from_step"] is None or second["resumed_from_step"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_study_leaves_a_consistent_ledger_and_says_how_to_go_on(
    home: Path, ray_here: str, undisturbed: list[tuple[Any, ...]], number: signal.Signals
) -> None:
    first = Driver(home, ray_here, "--fork", "toy", "--set", "seed=0")
    first.until_rows(16)
    first.process.send_signal(number)
    assert first.end() == 130, first.text
    assert "Traceback" not in first.text
    (printed,) = re.findall(r"^Go on with: (.*)$", first.text, re.MULTILINE)
    where, program, *words = shlex.split(printed)
    assert (where, program) == (f"CS330RAY_HOME={home}", "cs330ray")
    assert words == first.words
    second = Driver(home, ray_here, *words[2:])
    assert second.end() == 0, second.text
    assert whole(home) == undisturbed


@pytest.mark.slow
def test_a_second_driver_is_told_who_runs_the_study_and_leaves(home: Path, ray_here: str) -> None:
    first = Driver(home, ray_here)
    first.until_rows(1)
    second = Driver(home, ray_here)
    assert second.end() == 2
    assert f"process {first.process.pid} runs it" in second.text
    first.process.send_signal(signal.SIGTERM)
    first.end()


@pytest.mark.slow
def test_mlflow_that_is_down_from_start_to_end_hinders_nothing_and_sync_shows_all_afterwards(
    home: Path, ray_here: str, undisturbed: list[tuple[Any, ...]]
) -> None:
    driver = Driver(home, ray_here, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert driver.end() == 0, driver.text
    assert whole(home) == undisturbed
    assert not (home / "mlflow.db").exists()
    Mirror(Writer.at(home), "toy", home).sync()
    assert sorted(found.data.tags["cs330ray.kind"] for found in runs_of(home)) == ["cell", "study"] + ["trial"] * 4


def dump(database: Path) -> list[str]:
    connection = sqlite3.connect(database)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_a_mirror_that_is_cut_between_rows_and_its_mark_makes_no_row_twice(
    every_end: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    ledger = Writer.at(every_end)
    original = Runs.log

    def cut(self: Runs, key: Any, **entries: Any) -> None:
        if "cs330ray.mirrored_step" in (entries.get("tags") or {}):
            raise OSError("the power went")
        original(self, key, **entries)

    with monkeypatch.context() as power:
        power.setattr(Runs, "log", cut)
        with pytest.raises(MirrorError, match="the power went"):
            Mirror(ledger, "toy", every_end).sync()
    Mirror(ledger, "toy", every_end).sync()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for found in runs_of(tmp_path):
        if found.data.tags["cs330ray.kind"] == "trial":
            steps = [point.step for point in client.get_metric_history(found.info.run_id, "val_speed")]
            assert len(steps) == len(set(steps))
    study = ledger.study("toy")
    trials = sum(len(ledger.trials(study, cell)) for cell in study.cells)
    assert len(runs_of(tmp_path)) == 1 + 4 + trials


def test_a_mirror_that_is_cut_before_its_rows_arrive_sends_them_later(
    every_end: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    ledger = Writer.at(every_end)
    original = Runs.log

    def cut(self: Runs, key: Any, **entries: Any) -> None:
        if entries.get("metrics"):
            raise OSError("the power went")
        original(self, key, **entries)

    with monkeypatch.context() as power:
        power.setattr(Runs, "log", cut)
        with pytest.raises(MirrorError, match="the power went"):
            Mirror(ledger, "toy", every_end).sync()
    Mirror(ledger, "toy", every_end).sync()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    recorded = {(key, str(number)): [step for step, _ in rows] for key, number, *_, rows in whole(every_end)}
    for found in runs_of(tmp_path):
        tags = found.data.tags
        if tags["cs330ray.kind"] == "trial":
            steps = [point.step for point in client.get_metric_history(found.info.run_id, "val_speed")]
            assert steps == recorded[tags["cs330ray.cell"], tags["cs330ray.trial"]]


def test_two_mirrors_at_once_make_each_run_once(
    every_end: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with ThreadPoolExecutor(2) as both:
        changes = list(both.map(lambda _: Mirror(Writer.at(every_end), "toy", every_end).sync(), range(2)))
    assert min(changes) == 0 < max(changes)
    ledger = Writer.at(every_end)
    study = ledger.study("toy")
    trials = sum(len(ledger.trials(study, cell)) for cell in study.cells)
    assert len(runs_of(tmp_path)) == 1 + 4 + trials


@pytest.mark.slow
def test_a_worker_that_dies_in_the_last_trial_is_replaced_too(
    home: Path, ray_here: str, undisturbed: list[tuple[Any, ...]]
) -> None:
    driver = Driver(home, ray_here, "--set", "budget.trials=1")
    driver.until_rows(4)
    ledger = Writer.at(home)
    study = ledger.study("toy")
    (cell,) = study.cells
    os.kill(ledger.attempts(study, cell, 0)[-1]["pid"], signal.SIGKILL)
    assert driver.end() == 0, driver.text
    assert whole(home) == undisturbed[:1]


@pytest.mark.slow
def test_a_trial_that_kills_its_worker_every_time_fails_in_the_end_and_the_study_goes_on(home: Path) -> None:
    run(toy(compare={"ends": ["kills", "well"]}, budget={"trials": 1}), home, mirror=False)
    (killed, well) = whole(home)
    assert killed[2] == "FAIL"
    assert killed[3].startswith("worker lost 4 times: ")
    assert "worker process has died" in killed[3]
    assert well[2] == "COMPLETE"


@pytest.mark.slow
def test_the_mirror_of_a_killed_driver_leaves_by_itself_when_it_has_caught_up(home: Path, ray_here: str) -> None:
    driver = Driver(home, ray_here)
    driver.until_rows(20)
    driver.process.send_signal(signal.SIGKILL)
    driver.end()
    until = time.monotonic() + 60
    while mirrors_of(home) and time.monotonic() < until:
        time.sleep(0.2)
    assert mirrors_of(home) == []
    assert Mirror(Writer.at(home), "toy", home).sync() == 0


@pytest.mark.slow
def test_a_killed_mirror_is_started_again_and_mlflow_agrees_at_the_end(home: Path, ray_here: str) -> None:
    driver = Driver(home, ray_here)
    driver.until_rows(4)
    until = time.monotonic() + 60
    while not mirrors_of(home) and time.monotonic() < until:
        time.sleep(0.1)
    (mirror,) = mirrors_of(home)
    os.kill(mirror, signal.SIGKILL)
    while not set(mirrors_of(home)) - {mirror}:  # at the latest at the study's end
        assert time.monotonic() < until
        time.sleep(0.1)
    assert driver.end() == 0, driver.text
    Mirror(Writer.at(home), "toy", home).sync()
    assert Mirror(Writer.at(home), "toy", home).sync() == 0
    assert len(runs_of(home)) == 1 + 1 + 4


def mirrors_of(home: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            words = process.info["cmdline"] or []
            if "--until-eof" in words and process.environ().get("CS330RAY_HOME") == str(home.resolve()):
                found.append(process.pid)
    return found


def test_a_spent_study_is_not_started_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process.run(toy(budget={"trials": 1}), home, mirror=False)
    monkeypatch.setattr("cs330ray.service.tune.tune.run", lambda *_, **__: pytest.fail("nothing is left to run"))
    run(toy(budget={"trials": 1}), home, mirror=False)
    assert len(whole(home)) == 1


@pytest.mark.slow
def test_no_trial_runs_after_the_time_is_spent_and_more_time_resumes_it(home: Path) -> None:
    slow_study = {"fixed": {"sleep_s": 0.1}, "resources": {"slots": 1}}
    run(toy(**slow_study, budget={"trials": 4, "steps": 20, "time": 3}), home, mirror=False)
    assert 1 <= len(whole(home)) < 4
    assert {trial[2] for trial in whole(home)} <= {"COMPLETE", "RUNNING"}
    run(toy(**slow_study, budget={"trials": 4, "steps": 20, "time": 600}), home, mirror=False)
    assert [trial[2] for trial in whole(home)] == ["COMPLETE"] * 4


def test_two_objectives_leave_a_front_and_both_values(home: Path) -> None:
    study = toy(
        objective=["val_loss", "val_speed"],
        sampler={"kind": "nsga2", "population": 4},
        budget={"trials": 8, "steps": 10},
    )
    in_process.run(study, home, mirror=False)
    ledger = Writer.at(home)
    trials = ledger.trials(study, study.cells[0])
    assert all(len(trial.values or ()) == 2 for trial in trials)
    best = optuna.load_study(study_name="toy {}", storage=f"sqlite:///{home}/ledger.db").best_trials
    front = pareto_front(trials, ledger.goals(study))
    assert {trial.number for trial in front} == {trial.number for trial in best}


def test_two_mirrors_in_turn_make_no_run_twice(tmp_path: Path, every_end: Path) -> None:
    home = Path(shutil.copytree(every_end, tmp_path / "runs"))
    ledger = Writer.at(home)
    one, other = Mirror(ledger, "toy", home), Mirror(ledger, "toy", home)
    one.sync()
    in_process.run(
        toy(**{**ALL_ENDS, "budget": {"trials": 4, "steps": 20}}, resources={"slots": 1}), home, mirror=False
    )
    other.sync()
    assert one.sync() == 0
    assert len(runs_of(home)) == 1 + 4 + 16


@pytest.mark.parametrize("cut_at", ["params", "metrics", "tags"])
def test_a_mirror_cut_at_any_write_catches_up(
    every_end: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    ledger, original = Writer.at(every_end), Runs.log

    def cut(self: Runs, key: Any, **entries: Any) -> None:
        if entries.get(cut_at):
            raise OSError("the power went")
        original(self, key, **entries)

    with monkeypatch.context() as power:
        power.setattr(Runs, "log", cut)
        with pytest.raises(MirrorError, match="the power went"):
            Mirror(ledger, "toy", every_end).sync()
    Mirror(ledger, "toy", every_end).sync()
    for key, number, _, _, params, *_ in whole(every_end):
        (found,) = [
            found
            for found in runs_of(tmp_path)
            if (found.data.tags["cs330ray.cell"], found.data.tags["cs330ray.trial"]) == (key, str(number))
        ]
        assert {name: found.data.params[name] for name in params} == {name: str(params[name]) for name in params}


def test_a_metric_of_another_type_is_a_number_and_what_is_no_number_fails_its_trial_alone(home: Path) -> None:
    in_process.run(toy(compare={"ends": ["numpy", "text"]}, budget={"trials": 1}), home, mirror=False)
    (numpy, text) = whole(home)
    assert numpy[2] == "COMPLETE"
    assert text[2] == "FAIL"
    assert text[3].endswith(": val_loss must be a number, got 'low'")


@pytest.mark.slow
def test_a_ledger_that_stops_writing_is_one_line_and_the_study_goes_on_afterwards(home: Path, ray_here: str) -> None:
    driver = Driver(home, ray_here)
    driver.until_rows(2)
    sabotage(
        home, "create trigger boom before insert on cs330ray_rows begin select raise(abort, 'disk I/O error'); end"
    )
    assert driver.end() == 2
    assert "disk I/O error" in driver.text
    assert "Traceback" not in driver.text
    sabotage(home, "drop trigger boom")
    assert Driver(home, ray_here).end() == 0


def sabotage(home: Path, statement: str) -> None:
    connection = sqlite3.connect(home / "ledger.db", timeout=30)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_trial_that_goes_on_under_other_code_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = toy(budget={"trials": 1})
    (cell,) = study.cells
    ledger = Writer.at(home)
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    number = ledger.enter(study, cell, ask.ask(study, cell, ["min"], []), seed=1)
    place = checkpoints_of(home, "toy", cell, number)
    told = assignment(
        place, cell=cell.key, trial=number, config={**cell.fixed, **ledger.entered(study, cell, number).params}, seed=1,
        recorded_step=0, begun=False, checkpoint_s=0, batch_s=0, code="old", data="toy",
    )  # fmt: skip
    first = TrialRun(told)
    news = first.next_batch()
    ledger.write_attempt(study, cell, number, news.start.recorded())
    ledger.write_rows(study, cell, number, news.rows)
    first.next_batch()
    ear = Ear()
    in_process.run(study, home, ear, mirror=False)
    assert "trial 0 goes on under other code than it began with" in ear.lines


@pytest.mark.slow
def test_on_a_ray_of_its_own_a_study_survives_sigkill_and_a_ctrl_c_that_reaches_every_process(
    home: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    first = Driver(home, "")
    first.until_checkpoint_of_a_running_trial_after(ended=0)
    first.process.send_signal(signal.SIGKILL)
    first.end()
    second = Driver(home, "")
    second.until_checkpoint_of_a_running_trial_after(ended=1)
    os.killpg(second.process.pid, signal.SIGINT)
    assert second.end() == 130, second.text
    third = Driver(home, "")
    assert third.end() == 0, third.text
    assert "Traceback" not in third.text
    assert whole(home) == undisturbed


@pytest.mark.slow
def test_on_a_ray_of_its_own_a_study_starts_another_when_its_raylet_dies_and_sigterm_interrupts_it(
    home: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    first = Driver(home, "")
    first.until_checkpoint_of_a_running_trial_after(ended=0)
    (raylet,) = [child for child in psutil.Process(first.process.pid).children() if child.name() == "raylet"]
    raylet.kill()
    first.until_checkpoint_of_a_running_trial_after(ended=1)
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 130, first.text
    assert "Ray on this machine died; another one is started" in first.text
    assert "nothing is lost" in first.text
    second = Driver(home, "")
    assert second.end() == 0, second.text
    assert whole(home) == undisturbed
