"""A trainable that changed between two calls of `run`: refused with the difference; readers use it as it was."""

import dataclasses
import enum
import json
import math
import threading
import tomllib
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel, Field

from cs330ray.errors import SpecError
from cs330ray.ledger.database import Database
from cs330ray.ledger.records import Ending
from cs330ray.ledger.writer import Writer
from cs330ray.report import tables
from cs330ray.reproduce import rerun
from cs330ray.service import run as service
from cs330ray.service import unchanged
from cs330ray.service.messages import Circumstances, Start
from cs330ray.service.workers.alone import Alone
from cs330ray.trial import named
from cs330ray.trial.contract import Metric
from tests import filled
from tests import toy as module
from tests.assignments import assignment
from tests.desk import Desk, begun
from tests.studies_of_tests import toy


class Level(enum.Enum):
    """How high."""

    HIGH = "high"


class Inner(BaseModel):
    """A table in a configuration."""

    lr: float = 0.1
    when: float | None = None


@pytest.fixture
def desk(tmp_path: Path) -> Callable[..., Desk]:
    """A desk for a study of the toy."""
    return lambda **changes: Desk(tmp_path, toy(**changes))


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the toy give other defaults from now on."""

    def change(**defaults: Any) -> None:
        class Config(module.Config):
            """The toy's, with other defaults."""

        for name, default in defaults.items():
            Config.model_fields[name].default = default
        Config.model_rebuild(force=True)
        monkeypatch.setattr(module, "Config", Config)

    return change


def recorded(at: Desk) -> Circumstances:
    """Begin a trial as a worker would, which says its whole configuration."""
    told = at.ask()
    runs = Alone()
    runs.take_up(dataclasses.replace(told, trainable="tests.toy"))
    on = dataclasses.replace(begun().circumstances, config=runs.circumstances().config)
    at.play(told, (1, 0.5), start=Start(None, 0.0, on))
    return on


def refused(at: Desk) -> str:
    with pytest.raises(SpecError) as error:
        unchanged.check(at.ledger, at.study)
    return str(error.value)


WAYS_OUT = "Change it back, run another study with `--fork NAME`, or `cs330ray delete toy`"


def test_a_worker_says_the_whole_configuration_defaults_too(tmp_path: Path) -> None:
    runs = Alone()
    runs.take_up(assignment(tmp_path))
    config = runs.circumstances().config
    assert config == {**named.whole(module.Config()), **assignment(tmp_path).config}
    assert set(config) == set(module.Config.model_fields)


def test_what_has_not_changed_is_taken_up_again(desk: Callable[..., Desk], changed: Callable[..., None]) -> None:
    at = desk()
    recorded(at)
    unchanged.check(at.ledger, at.study)
    changed(lr=0.9)  # which the study searches
    unchanged.check(at.ledger, at.study)


def test_a_default_that_the_study_does_not_name_may_not_change(
    desk: Callable[..., Desk], changed: Callable[..., None]
) -> None:
    at = desk()
    recorded(at)
    changed(ends_at=7)
    assert (
        refused(at)
        == f"toy: a study of this name exists, and its trainable has changed since: ends_at: 3 -> 7. {WAYS_OUT}"
    )


def test_a_goal_may_not_change(desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    at = desk()
    monkeypatch.setattr(module, "METRICS", {**module.METRICS, "val_loss": Metric("max", low=0.0)})
    assert "has changed since: goal of val_loss: min -> max. " in refused(at)


def test_a_parameter_that_went_is_said_and_a_new_one_is_taken(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = desk()
    on = recorded(at)
    whole = named.whole
    monkeypatch.setattr(named, "whole", lambda config: {**whole(config), "new": 1})
    unchanged.check(at.ledger, at.study)
    monkeypatch.setattr(named, "whole", lambda config: {k: v for k, v in on.config.items() if k != "ends_at"})
    assert "ends_at: 3 -> no such parameter. " in refused(at)


def test_run_refuses_before_it_leaves_a_trace(
    desk: Callable[..., Desk], changed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = desk()
    recorded(at)
    changed(ends_at=7)
    monkeypatch.setattr(service, "held", lambda *_: pytest.fail("the lease was taken"))
    with pytest.raises(SpecError, match="ends_at: 3 -> 7"):
        service.run(at.study, at.home, mirror=False)


def test_what_reads_takes_the_configuration_that_was_recorded(
    desk: Callable[..., Desk], changed: Callable[..., None]
) -> None:
    at = desk()
    on = recorded(at)
    changed(ends_at=7)
    cell, trial = at.cell, at.ledger.trials(at.study, at.cell)[0]
    config = named.as_recorded(module, cell.trainable, {**cell.fixed, **trial.params}, on.config)
    assert named.whole(config) == on.config
    settings = {**cell.fixed, **trial.params}
    again = rerun.Recorded(at.study, trial, settings, [], [{"config": on.config}], [])
    assert named.whole(rerun._config(again, module)) == on.config


def test_best_prints_the_whole_configuration(desk: Callable[..., Desk]) -> None:
    at = desk(budget={"trials": 1, "steps": 1})
    on = recorded(at)
    at.ledger.end(at.study, at.cell, 0, Ending("COMPLETE"))
    printed = tables.best_toml(at.ledger, at.study)
    assert tomllib.loads(printed) == {"trainable": "tests.toy", "fixed": on.config}
    assert f"# searched: {', '.join(at.ledger.trials(at.study, at.cell)[0].params)}\n" in printed


def test_a_study_of_the_same_name_and_no_record_is_new(tmp_path: Path, desk: Callable[..., Desk]) -> None:
    at = desk()
    unchanged.check(at.ledger, toy(name="other"))


def test_a_configuration_is_recorded_alike_in_every_process() -> None:
    """Sets have no order, functions an address, and JSON no infinity."""

    class Config(BaseModel):
        names: frozenset[str] = frozenset({"c", "a", "b"})
        act: Any = math.sqrt
        kind: Any = dict
        other: Any = threading.Lock
        clip: float = math.inf
        lowest: float = -math.inf
        nothing: float = math.nan
        sizes: tuple[int, ...] = (64, 64)
        place: Path = Path("/data")
        level: Level = Level.HIGH
        inner: Inner = Inner()

    assert named.whole(Config()) == {
        "names": ["a", "b", "c"], "act": "<math.sqrt>", "kind": "<builtins.dict>",
        "other": f"<{threading.Lock.__module__}.{threading.Lock.__qualname__}>",
        "clip": "inf", "lowest": "-inf", "nothing": "nan", "sizes": [64, 64], "place": "/data", "level": "high",
        "inner": {"lr": 0.1, "when": None},
    }  # fmt: skip
    assert json.loads(json.dumps(named.whole(Config()), allow_nan=False)) == named.whole(Config())


def test_a_default_of_infinity_comes_back() -> None:
    class Config(BaseModel):
        clip: float = 1.0

    again = named.as_recorded(cast("Any", SimpleNamespace(Config=Config)), "mine.t", {}, {"clip": "inf"})
    assert again.clip == math.inf


def test_a_default_that_is_another_each_time_is_no_change(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config(module.Config):
        name: str = Field(default_factory=lambda: uuid.uuid4().hex)

    monkeypatch.setattr(module, "Config", Config)
    at = desk()
    on = recorded(at)
    unchanged.check(at.ledger, at.study)
    again = named.as_recorded(cast("Any", module), "tests.toy", {}, on.config)
    assert again.name == on.config["name"]


def test_many_trials_are_compared_by_few_queries(desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    at = desk(budget={"trials": 40})
    for _ in range(40):
        recorded(at)
    asked = []
    select = Database.select
    monkeypatch.setattr(Database, "select", lambda self, query: asked.append(query) or select(self, query))
    unchanged.check(at.ledger, at.study)
    assert len(asked) < 20  # six of them of Optuna's tables, one a table


def test_data_that_changed_after_the_last_trial_are_said(tmp_path: Path) -> None:
    ledger = Writer.at(tmp_path)
    filled.fill(ledger)
    study = ledger.study("letters")
    one, other = study.cells
    ledger.write_attempt(study, one, 3, {**filled.ON, "data": "a" * 64})
    now = {one.key: "b" * 64, other.key: "c" * 64}
    said = list(unchanged.data_said(ledger, study, now))
    assert said[0].startswith("letters: cost=1.0: its data changed after trial 3 ('aaaa")
    assert list(unchanged.data_said(ledger, study, {**now, one.key: "a" * 64})) == said[1:]
