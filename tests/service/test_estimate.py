"""What `--dry-run` expects of a study without a record, against trainables whose times are known."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cs330ray.service import estimate
from cs330ray.trial.contract import Progress
from tests import toy as toy_trainable
from tests.studies_of_tests import toy

START_S, STEP_S, EVAL_S = 0.1, 0.01, 0.05


@pytest.fixture(autouse=True)
def _clocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that take no time, by a clock that they move: a start, data_seed times a step, and evaluations."""
    now = [0.0]

    def train(config: Any, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
        now[0] += START_S
        for step in range(1, steps + 1):
            now[0] += STEP_S * config.data_seed
            if step % config.eval_every_steps == 0 or step == steps:
                now[0] += EVAL_S
                yield Progress(step, {"val_loss": 0.5, "val_speed": 0.5}, None)

    monkeypatch.setattr(toy_trainable, "train", train)
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: now[0]))


def planned(slots: int = 1, **changes: Any) -> str:
    return "\n".join(estimate.plan(toy(prune={"kind": "none"}, **changes), slots, 0.0))


def trial_s(steps: int, every: int, times: int) -> float:
    return START_S + steps * times * STEP_S + steps / every * EVAL_S


@pytest.mark.parametrize(("every", "times"), [(1, 1), (3, 2), (25, 1), (100, 8), (1000, 40)])
def test_a_trial_is_its_start_its_steps_and_its_evaluations(every: int, times: int) -> None:
    """With rows up to some seconds apart as they are, and beyond by two spacings."""
    out = planned(fixed={"data_seed": times, "eval_every_steps": every}, budget={"trials": 1, "steps": 2000})
    said = re.search(r"at most about (?:(\d+)m )?(\d+)s in all", out)
    assert said is not None
    assert int(said[1] or 0) * 60 + int(said[2]) == pytest.approx(trial_s(2000, every, times), abs=0.6)


def test_both_ends_of_the_space_are_timed_and_the_mean_is_expected() -> None:
    out = planned(search={"data_seed": [1, 4]}, budget={"trials": 2, "steps": 1000}, slots=2)
    least, most = trial_s(1000, 5, 1), trial_s(1000, 5, 4)
    assert f"about 20ms a step, evaluations included, about {least:.0f}s a trial, up to {most:.0f}s elsewhere" in out
    assert f"at most about {(least + most) / 2:.0f}s in all, if nothing is pruned" in out


def test_an_end_of_the_space_that_config_refuses_is_left_out() -> None:
    search = {"data_seed": [1, 4], "lr": {"low": 0.1, "high": 20.0}}
    assert "elsewhere" not in planned(search=search, budget={"trials": 1, "steps": 100})
