import math
from types import SimpleNamespace
from typing import Self, cast

import pytest
from pydantic import BaseModel, model_validator

from cs330ray.checkpoints import local
from cs330ray.errors import Diverged, SpecError
from cs330ray.trial import named
from cs330ray.trial.contract import Progress, Trainable, finite
from cs330ray.trial.run import run_alone
from tests import toy

CONFIG = toy.Config(lr=0.3, width=2)


def rows(home, steps=10, *, take=None, config=CONFIG, seed=7, save_every_steps=None):
    """The rows of a run, or of one that is cut when `take` of them have come."""
    progress = run_alone(toy, config, seed, steps, home, save_every_steps=save_every_steps)
    taken = []
    for moment in progress:
        taken.append((moment.step, dict(moment.metrics)))
        if len(taken) == take:
            progress.close()
    return taken


def counting(steps_until_it_ends, every=1):
    """A trainable that ends by a rule of its own, and saves its step as text."""

    def train(config, seed, steps, resume=None):
        start = int((resume / "step.txt").read_text()) if resume else 0
        for step in range(start + every, min(steps, steps_until_it_ends) + 1, every):
            yield Progress(step, {}, lambda path, step=step: (path / "step.txt").write_text(str(step)))

    return SimpleNamespace(train=train)


# finite


def test_a_finite_loss_is_the_loss():
    assert finite(-3.5, 7) == -3.5


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_has_diverged_and_names_its_step(loss):
    with pytest.raises(Diverged, match=f"^the loss is {loss} at step 7$"):
        finite(loss, 7)


# run_alone


def test_a_trial_yields_a_row_an_evaluation_up_to_its_steps(tmp_path):
    config = CONFIG.model_copy(update={"eval_every_steps": 4})
    assert [step for step, _ in rows(tmp_path, steps=10, config=config)] == [4, 8, 10]


def test_a_trial_leaves_a_checkpoint_of_its_last_step(tmp_path):
    rows(tmp_path, steps=10)
    assert local.newest(tmp_path).step == 10


def test_a_trial_that_ends_by_a_rule_of_its_own_leaves_a_checkpoint_too(tmp_path):
    assert [moment.step for moment in run_alone(counting(6), None, 0, 10, tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert local.newest(tmp_path).step == 6


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 9])
def test_a_cut_and_resumed_trial_yields_the_rows_of_an_unbroken_one(tmp_path, cut):
    whole = rows(tmp_path / "whole")
    taken = rows(tmp_path / "cut", take=cut, save_every_steps=2)
    saved = local.newest(tmp_path / "cut")
    rest = rows(tmp_path / "cut", save_every_steps=2)
    assert rest == whole[saved.step if saved else 0 :]
    assert taken == whole[:cut]


def test_a_longer_trial_continues_a_shorter_one(tmp_path):
    short = rows(tmp_path / "grown", steps=4)
    assert short + rows(tmp_path / "grown", steps=10) == rows(tmp_path / "whole", steps=10)


def test_a_finished_trial_has_no_more_rows(tmp_path):
    rows(tmp_path)
    assert rows(tmp_path) == []


def test_checkpoints_are_written_where_the_spacing_is_reached(tmp_path):
    written = []
    for _ in run_alone(counting(100, every=2), None, 0, 10, tmp_path, save_every_steps=5):
        newest = local.newest(tmp_path)
        written.append(newest.step if newest else None)
    # At steps 2, 4, 6, 8, 10, before the row's own checkpoint: step 6 is the first that lies 5 or more after step 0.
    assert written == [None, None, None, 6, 6]
    assert local.newest(tmp_path).step == 10


def test_a_torn_checkpoint_costs_the_steps_since_the_one_before(tmp_path):
    whole = rows(tmp_path / "whole")
    rows(tmp_path / "torn", take=7, save_every_steps=3)
    (local.newest(tmp_path / "torn").path / "state.json").write_text("{}")
    assert local.newest(tmp_path / "torn").step == 3
    assert rows(tmp_path / "torn") == whole[3:]


def test_what_a_trainable_raises_is_raised(tmp_path):
    config = CONFIG.model_copy(update={"ends": "diverges", "ends_at": 3})
    with pytest.raises(Diverged, match="at step 3"):
        rows(tmp_path, config=config)


def test_other_seeds_are_other_trials(tmp_path):
    assert rows(tmp_path / "one", seed=1) != rows(tmp_path / "two", seed=2)


def test_what_a_validator_says_is_not_told_its_value_twice() -> None:
    class Config(BaseModel):
        heads: int = 4

        @model_validator(mode="after")
        def _divides(self) -> Self:
            if 64 % self.heads:
                raise ValueError(f"heads must divide 64, but got {self.heads}")
            return self

    trainable = cast("Trainable", SimpleNamespace(Config=Config))
    with pytest.raises(SpecError) as refused:
        named.validated(trainable, "mine.t", {"heads": 5})
    assert str(refused.value) == "mine.t: heads must divide 64, but got 5"
    with pytest.raises(SpecError) as refused:
        named.validated(trainable, "mine.t", {"heads": "four"})
    assert str(refused.value).startswith("heads: input should be a valid integer")
    assert str(refused.value).endswith(", but got 'four'")
