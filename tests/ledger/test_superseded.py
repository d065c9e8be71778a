"""Rows that a later attempt of a trial sets aside: kept by attempt, seen, carried, mirrored."""

from pathlib import Path

import mlflow
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from cs330ray.errors import DataError
from cs330ray.ledger.records import Row
from cs330ray.ledger.tables import SUPERSEDED
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.experiments import tracking_uri
from cs330ray.mirror.sync import Mirror
from cs330ray.report import tables
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.travel import pack, unpack
from cs330ray.trial import named
from tests.filled import ON


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return parse(
        {
            "name": "own", "trainable": "command", "objective": ["val_accuracy"],
            "command": {"run": ["python", "{lr}"], "metrics": {"val_accuracy": "max"}},
            "search": {"lr": {"low": 0.1, "high": 1.0}}, "budget": {"trials": 1, "steps": 10},
        },
        "own",
    )  # fmt: skip


def rows(steps: range, value: float) -> list[Row]:
    return [Row(step, {"val_accuracy": value}, 1.7e9 + step) for step in steps]


def begun(home: Path, asked: Study) -> Writer:
    """A ledger with a trial that reported steps 1 to 5, was cut, and went on from its checkpoint of step 2."""
    ledger, (cell,) = Writer.at(home), asked.cells
    ledger.open(asked, named.metrics(asked))
    point = {"params": {"lr": 0.5}, "distributions": {"lr": FloatDistribution(0.1, 1.0)}}
    ledger.enter(asked, cell, create_trial(state=TrialState.RUNNING, **point), seed=1)
    ledger.write_attempt(asked, cell, 0, {**ON, "threads": 1, "python": "3.11.7", "versions": {}})
    ledger.write_rows(asked, cell, 0, rows(range(1, 6), 0.25))
    for step in (2, 4):
        ledger.write_checkpoint(asked, cell, 0, step, str(home / f"step-{step}"), "digest")
    return ledger


def resumed(ledger: Writer, asked: Study, steps: range) -> None:
    (cell,) = asked.cells
    assert ledger.supersede(asked, cell, 0, 2) == 3
    ledger.write_rows(asked, cell, 0, rows(steps, 0.75))


def test_the_newest_attempt_counts_and_what_it_set_aside_is_kept_by_the_attempt_that_made_it(
    tmp_path: Path, asked: Study
) -> None:
    ledger, (cell,) = begun(tmp_path, asked), asked.cells
    resumed(ledger, asked, range(3, 5))
    found = [(row.step, row.metrics["val_accuracy"]) for row in ledger.rows(asked, cell, 0)]
    assert found == [(1, 0.25), (2, 0.25), (3, 0.75), (4, 0.75)]
    aside = ledger.database.select(SUPERSEDED.select())
    assert [(row.attempt, row.step) for row in aside] == [(0, 3), (0, 4), (0, 5)]
    kept = ledger.kept(asked, cell, 0)
    assert kept is not None
    assert kept.step == 2  # that of step 4 is of another course
    assert ledger.supersede(asked, cell, 0, 4) == 0  # nothing came after


def test_optuna_forgets_what_was_set_aside(tmp_path: Path, asked: Study) -> None:
    ledger, (cell,) = begun(tmp_path, asked), asked.cells
    for step in range(1, 6):
        ledger.report(asked, cell, 0, step, 0.25)
    resumed(ledger, asked, range(3, 4))
    (trial,) = Writer.at(tmp_path).history(asked, cell)
    assert sorted(trial.intermediate_values) == [1, 2]


def test_show_says_how_many_rows_were_set_aside(tmp_path: Path, asked: Study) -> None:
    ledger, (cell,) = begun(tmp_path, asked), asked.cells
    (trial,) = ledger.trials(asked, cell)
    assert "set aside" not in str(tables.trial(ledger, asked, trial, log=False)[0].rows)
    resumed(ledger, asked, range(3, 5))
    facts = dict(tables.trial(ledger, asked, trial, log=False)[0].rows)
    assert facts["set aside"] == "3 rows of an earlier start, which it began again"


def test_what_was_set_aside_goes_with_its_study(tmp_path: Path, asked: Study) -> None:
    ledger, (cell,) = begun(tmp_path, asked), asked.cells
    resumed(ledger, asked, range(3, 5))
    pack.pack(ledger, asked, tmp_path, tmp_path / "own.zip")
    unpack.unpack(tmp_path / "own.zip", tmp_path / "there", None)
    there = Writer.at(tmp_path / "there")
    with pytest.raises(
        DataError, match="its folder is not known here, where the study was unpacked; run its study file"
    ):
        named.code_digest("command", there.study("own").command)  # nothing that arrived is started
    assert there.superseded(asked, cell, 0) == 3
    there.delete("own")
    assert there.superseded(asked, cell, 0) == 0


def test_mlflow_is_sent_the_rows_of_the_new_attempt_though_it_is_beyond_the_old_one(
    tmp_path: Path, asked: Study
) -> None:
    ledger = begun(tmp_path, asked)
    Mirror(ledger, "own", tmp_path).sync()
    resumed(ledger, asked, range(3, 9))
    Mirror(ledger, "own", tmp_path).sync()
    Mirror(ledger, "own", tmp_path).sync()
    client = mlflow.MlflowClient(tracking_uri(tmp_path))
    (experiment,) = [each for each in client.search_experiments() if each.name == "own"]
    (run,) = client.search_runs([experiment.experiment_id], "tags.`cs330ray.kind` = 'trial'")
    history = client.get_metric_history(run.info.run_id, "val_accuracy")
    assert {point.step for point in history if point.value == 0.75} == set(range(3, 9))
