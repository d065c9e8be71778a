"""A trial's state as tensors and JSON: written, restored bit for bit, and filled from a model that was exported."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cs330ray.errors import CheckpointError, DataError
from cs330ray.training.adam import MOMENTS, Adam
from cs330ray.words import first_line


@dataclass(kw_only=True)
class Trained:
    """All that a system on Adam is at one moment, which its checkpoint holds bit for bit.

    A system that has more to note beside its tensors names those fields in `NOTES`: they are written as JSON.
    """

    NOTES: ClassVar[tuple[str, ...]] = ("step",)

    tensors: Mapping[str, Tensor]  # all that a checkpoint holds, by name; each stays the same object
    optimizer: Adam
    generator: torch.Generator  # of all that training draws
    step: int = 0

    def save(self, directory: Path) -> None:
        """Write this moment into an empty directory."""
        notes = {name: getattr(self, name) for name in self.NOTES}
        save_state(directory, tensors=self.tensors, optimizer=self.optimizer, generator=self.generator, notes=notes)

    def restored(self, checkpoint: Path) -> Self:
        """Become the moment that `save` wrote, of the same configuration; itself. Raises CheckpointError."""
        notes = load_state(checkpoint, tensors=self.tensors, optimizer=self.optimizer, generator=self.generator)
        for name in self.NOTES:
            setattr(self, name, notes[name])
        return self

    def filled(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take the tensors of a model that was exported; itself. Raises DataError where they are of another one."""
        fill(self.tensors, tensors)
        return self

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device


def save_state(
    directory: Path,
    *,
    tensors: Mapping[str, Tensor],
    optimizer: Adam | torch.optim.Optimizer,
    generator: torch.Generator,
    notes: Mapping[str, Any],
) -> None:
    """Write all that a trial is into an empty directory, bit for bit: state.safetensors, and `notes` as state.json."""
    held = {f"tensor/{name}": tensor.detach().contiguous() for name, tensor in tensors.items()}
    kept = optimizer.moments if isinstance(optimizer, Adam) else optimizer.state_dict()["state"]
    for index, moments in kept.items():
        held |= {f"optimizer/{index}/{name}": moment for name, moment in moments.items()}
    save_file(held | {"generator": generator.get_state()}, directory / "state.safetensors")
    (directory / "state.json").write_text(json.dumps(dict(notes)))


def load_state(
    checkpoint: Path,
    *,
    tensors: Mapping[str, Tensor],
    optimizer: Adam | torch.optim.Optimizer,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Restore what `save_state` wrote into matching tensors, optimiser and generator; the notes.

    Raises CheckpointError, and leaves them as they are, where something else was written than this configuration has.
    """
    notes = load_notes(checkpoint / "state.json")
    try:
        held = load_file(checkpoint / "state.safetensors")
        drawn = torch.Generator().set_state(held.pop("generator")).get_state()
        moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key in [key for key in held if key.startswith("optimizer/")]:
            _, index, name = key.split("/")
            moments[int(index)][name] = held.pop(key)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{checkpoint}: tensors of a trial are needed, but {reason}; use another") from None
    trained = optimizer.params if isinstance(optimizer, Adam) else _params_of(optimizer)
    alike = {f"tensor/{name}": (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in held.items()} != alike or not all(
        0 <= index < len(trained) and _are_moments(named, trained[index]) for index, named in moments.items()
    ):
        raise CheckpointError(
            f"{checkpoint}: this configuration's tensors are needed, but got those of another; start the trial anew"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(held[f"tensor/{name}"])
    if isinstance(optimizer, Adam):
        optimizer.load(moments)
    else:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(moments)})
    generator.set_state(drawn)
    return notes


def _params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def load_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Read the tensors of what `save_state` wrote, without optimiser and generator. Raises CheckpointError."""
    try:
        held = load_file(checkpoint / "state.safetensors")
    except (SafetensorError, OSError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{checkpoint}: tensors of a trial are needed, but {reason}; use another") from None
    return {name.removeprefix("tensor/"): tensor for name, tensor in held.items() if name.startswith("tensor/")}


@torch.no_grad()
def fill(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a model into its own. Raises DataError where names, shapes or types are not the same."""
    for name in [*wanted, *given]:
        if name not in given or name not in wanted:
            lies = "is missing" if name in wanted else "is none of them"
            raise DataError(
                f"tensors: those of the configuration are needed, but {name!r} {lies}; export the model anew"
            )
        alike = [(tensor.dtype, tuple(tensor.shape)) for tensor in (wanted[name], given[name])]
        if alike[0] != alike[1]:
            kinds = [f"{str(dtype).removeprefix('torch.')} {shape}" for dtype, shape in alike]
            raise DataError(f"tensors: {name} must be {kinds[0]}, but is {kinds[1]}; export the model anew")
    for name, tensor in wanted.items():
        tensor.copy_(given[name])


def load_notes(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint. Raises CheckpointError where it is none, and later for a key it lacks."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: a trial's notes are needed, but {error}; use another checkpoint") from None
    step = notes.get("step") if isinstance(notes, dict) else None
    if type(step) is not int or step < 0:
        raise CheckpointError(
            f"{path}: a trial's notes with its `step` are needed, but are not; use another checkpoint"
        )
    return _Notes(path, notes)


class _Notes(dict[str, Any]):
    """A trial's notes, which say so where one is missing."""

    def __init__(self, path: Path, notes: Mapping[str, Any]) -> None:
        super().__init__(notes)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self._path}: {key!r} is needed among a trial's notes; use another checkpoint")


def _are_moments(named: Mapping[str, Tensor], parameter: Tensor) -> bool:
    """Whether this is Adam's state of a parameter: two moments of its shape, and a count of steps."""
    return set(named) == set(MOMENTS) and all(
        moment.shape == (() if name == "step" else parameter.shape) for name, moment in named.items()
    )


def mean(values: Tensor) -> float:
    """The mean of all values, taken in float64."""
    return values.detach().cpu().double().mean().item()


def ci95(values_T: Tensor) -> float:
    """Half the width of the normal 95 % interval of the mean over independent units: 1.96 s / sqrt(n)."""
    return 1.96 * values_T.detach().cpu().double().std().item() / math.sqrt(len(values_T))
