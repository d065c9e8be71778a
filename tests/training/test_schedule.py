"""Learning rates over a trial, beside those of transformers."""

import pytest
import torch

from cs330ray.training import schedule

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_schedule_is_that_of_transformers(kind: schedule.Kind, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=12)
    for step in range(1, 13):
        ours = schedule.factor(step, kind=kind, warmup_steps=warmup, schedule_steps=12)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_behind_its_length_a_rate_is_and_stays_0(kind: schedule.Kind) -> None:
    assert [schedule.factor(step, kind=kind, schedule_steps=3) for step in (4, 5, 9)] == [0, 0, 0]
    assert schedule.factor(3, kind=kind, schedule_steps=3) > 0


def test_without_a_schedule_the_rate_is_the_same_bit_for_bit() -> None:
    assert all(0.3 * schedule.factor(step, kind="constant") == 0.3 for step in (1, 2, 1000))


def test_a_schedule_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule_steps: expected a length"):
        schedule.factor(1, kind="linear")
