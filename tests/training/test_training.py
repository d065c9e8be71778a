"""The state of a trial, and the old addresses of what systems use as they train."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from cs330ray.errors import CheckpointError, DataError
from cs330ray.training import device, parallel, state
from cs330ray.training.adam import Adam
from cs330ray.training.state import Trained


@dataclass(kw_only=True)
class Counted(Trained):
    """A state that notes one thing more."""

    NOTES: ClassVar[tuple[str, ...]] = ("step", "seen")

    seen: list[int]


def fresh(seed: int) -> Counted:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, generator=generator).requires_grad_()
    return Counted(
        tensors={"w": weights}, optimizer=Adam([weights], lr=0.1), generator=generator, seen=[]
    )  # fmt: skip


def train(trained: Counted, steps: int) -> None:
    """Descend the square of the distance to a point that is drawn anew in each step."""
    (weights,) = trained.tensors.values()
    for _ in range(steps):
        trained.step += 1
        trained.seen.append(trained.step)
        trained.optimizer.zero_grad()
        (weights - torch.randn(3, generator=trained.generator)).square().sum().backward()
        trained.optimizer.step()


def test_a_state_that_was_restored_trains_on_exactly_as_one_that_was_never_saved(tmp_path: Path) -> None:
    whole, cut = fresh(0), fresh(0)
    train(whole, 5)
    train(cut, 2)
    cut.save(tmp_path)
    rest = fresh(1).restored(tmp_path)
    assert (rest.step, rest.seen) == (2, [1, 2])
    train(rest, 3)
    assert torch.equal(rest.tensors["w"], whole.tensors["w"])
    assert rest.seen == whole.seen == [1, 2, 3, 4, 5]


def test_restoring_fills_the_tensors_that_the_optimiser_already_trains(tmp_path: Path) -> None:
    fresh(0).save(tmp_path)
    trained = fresh(1)
    (weights,) = trained.tensors.values()
    assert trained.restored(tmp_path) is trained
    assert trained.tensors["w"] is weights is trained.optimizer.params[0]


def test_a_checkpoint_without_one_of_the_notes_is_refused(tmp_path: Path) -> None:
    fresh(0).save(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"step": 2}))
    with pytest.raises(CheckpointError, match=r"state\.json: 'seen' is needed among a trial's notes"):
        fresh(0).restored(tmp_path)


def test_a_state_takes_the_tensors_of_an_exported_model_and_refuses_those_of_another() -> None:
    trained = fresh(0).filled({"w": torch.tensor([1.0, 2.0, 3.0])})
    assert trained.tensors["w"].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(DataError, match="'w' is missing"):
        trained.filled({})


# Old addresses

OF_DEVICE = ("device", "generator")
OF_STATE = ("ci95", "fill", "load_notes", "load_state", "load_tensors", "mean", "save_state")
OF_PARALLEL = (
    "add", "add_gradients", "gather", "gather_from", "gather_scores", "join", "leave", "rank", "share", "workers",
)  # fmt: skip


@pytest.mark.parametrize(
    ("old", "places"),
    [
        ("runtime", {device: OF_DEVICE, state: OF_STATE}),
        ("parallel", {parallel: OF_PARALLEL}),
    ],
)
def test_an_old_address_still_has_its_names_and_says_where_they_are_now(old, places, monkeypatch):
    monkeypatch.delitem(sys.modules, f"cs330ray.{old}", raising=False)
    with pytest.warns(
        DeprecationWarning, match=rf"cs330ray\.{old} has moved: import its names from cs330ray\.training\."
    ):
        module = importlib.import_module(f"cs330ray.{old}")
    for place, names in places.items():
        for name in names:
            assert getattr(module, name) is getattr(place, name)
    assert sorted(module.__all__) == sorted(name for names in places.values() for name in names)


def test_denormals_are_zero_inside_and_what_they_were_outside() -> None:
    tiny = torch.tensor(2e-38)

    def quartered() -> float:
        return (tiny * 0.5 * 0.5).item()

    assert quartered() > 0
    with device.flushing_denormals():
        assert quartered() == 0
        with device.flushing_denormals():
            assert quartered() == 0
        assert quartered() == 0
    assert quartered() > 0
