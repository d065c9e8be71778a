"""Trials over two workers on one Ray: what they reach, how they end, and what is left of them."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cs330ray.errors import SpecError
from cs330ray.ledger.records import Trial
from cs330ray.ledger.writer import Writer
from cs330ray.service.run import run
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.trial import check
from tests.team_toy import NUMBERS

pytestmark = pytest.mark.usefixtures("ray_here")

STEPS = 6
ENDS = ["one dies", "one raises", "all diverge", "well"]


def study(**changes: Any) -> Study:
    raw = {
        "name": "team",
        "trainable": "tests.team_toy",
        "objective": ["val_sum"],
        "search": {"scale": {"low": 1, "high": 100}},
        "budget": {"trials": 1, "steps": STEPS},
        "resources": {"workers": 2, "checkpoint": 0.001},
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
    return parse(raw, "team")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Trial, list[dict[str, float]], list[Any]]]:
    """A study with a trial of each end, confirmed: by end the trial, its rows and attempts."""
    home = tmp_path_factory.mktemp("team")
    asked = study(
        compare={"ends": ENDS},
        fixed={"mark": str(home / "died"), "sleep_s": 0.3},
        confirm={"top": 1, "seeds": 1},
    )
    run(asked, home, mirror=False)
    ledger = Writer.at(home)
    found: dict[str, Any] = {
        str(cell.values["ends"]): (
            trial,
            [dict(row.metrics) for row in ledger.rows(asked, cell, trial.number)],
            ledger.attempts(asked, cell, trial.number),
        )
        for cell in asked.cells
        for trial in ledger.trials(asked, cell)
    }
    fresh = asked.cells[-1].under(0)
    return {**found, "confirmed": (ledger.values(asked, fresh, 0), ledger.test_metrics(asked, fresh, 0))}


def the_sum(trial: Trial, steps: int = STEPS) -> float:
    count = NUMBERS * steps
    return float(trial.params["scale"] * count * (count - 1) // 2)


@pytest.mark.slow
def test_the_workers_shares_add_up_to_what_one_process_reaches(ended):
    trial, rows, attempts = ended["well"]
    assert (trial.state, trial.values) == ("COMPLETE", (the_sum(trial),))
    assert [row["workers"] for row in rows] == [2.0] * STEPS
    assert len(attempts[0]["workers"]) == 2


@pytest.mark.slow
def test_an_error_of_one_worker_fails_the_trial_with_its_own_traceback(ended):
    trial, rows, _ = ended["one raises"]
    assert (trial.state, trial.reason) == ("FAIL", "raised: RuntimeError: planted in the last")
    assert "_go_wrong" in trial.traceback
    assert len(rows) == 2


@pytest.mark.slow
def test_a_worker_that_is_gone_costs_its_trial_what_came_after_the_checkpoint(ended):
    trial, rows, attempts = ended["one dies"]
    assert (trial.state, trial.values) == ("COMPLETE", (the_sum(trial),))
    assert [row["workers"] for row in rows] == [2.0] * STEPS
    assert len(attempts) == 2


@pytest.mark.slow
def test_workers_that_diverge_together_go_on_with_the_next_trial(ended):
    trial, rows, _ = ended["all diverge"]
    assert (trial.state, trial.reason) == ("FAIL", "diverged: the sum is inf at step 3")
    _, later_rows, _ = ended["well"]  # the next cell
    assert later_rows[0]["pid"] == rows[0]["pid"]


@pytest.mark.slow
def test_a_confirmation_is_trained_and_tested_by_all_workers(ended):
    trial, *_ = ended["well"]
    values, scores = ended["confirmed"]
    assert values == trial.values
    assert scores["test_sum"] == the_sum(trial) + NUMBERS * (NUMBERS - 1) / 2


@pytest.mark.slow
def test_what_is_left_of_a_team_after_its_study_is_nothing(ended):
    pids = {int(row["pid"]) for end in ENDS for row in ended[end][1]}
    until = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids) or ray.available_resources().get("CPU") != 2.0:
        assert time.monotonic() < until, (pids, ray.available_resources())
        time.sleep(0.1)


@pytest.mark.slow
def test_a_trial_that_is_pruned_in_the_middle_frees_its_processes_and_more_wait_than_fit(tmp_path: Path):
    """Two slots' worth of CPUs are one team's: six trials take turns."""
    asked = study(
        name="pruned",
        budget={"trials": 6, "steps": 12},
        prune={"kind": "asha", "min_steps": 2, "reduction": 2},
        fixed={"sleep_s": 0.05},
    )
    run(asked, tmp_path, mirror=False)
    ledger = Writer.at(tmp_path)
    (cell,) = asked.cells
    trials = ledger.trials(asked, cell)
    assert {trial.state for trial in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        rows = ledger.rows(asked, cell, trial.number)
        assert rows[-1].metrics["val_sum"] == the_sum(trial, rows[-1].step)
    assert len({row.metrics["pid"] for trial in trials for row in ledger.rows(asked, cell, trial.number)}) == 1


def test_a_trainable_that_splits_nothing_is_refused_in_one_line():
    with pytest.raises(SpecError) as refused:
        check.check(
            study(trainable="tests.toy", objective=["val_loss"], search={"scale": {"low": 1, "high": 2}}), "team.toml"
        )
    assert str(refused.value) == (
        "team.toml: resources.workers: tests.toy splits nothing between workers, so that 1 is needed, but got 2"
    )
