"""What the systems share as they run: the device, streams of random numbers, a trial's state as tensors and JSON."""

import ctypes
import hashlib
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cs330ray.errors import CheckpointError, DataError, SpecError
from cs330ray.words import first_line


def device() -> torch.device:
    """CPU unless there is CUDA; CS330RAY_DEVICE says otherwise. On CUDA the run repeats as far as its kernels can.

    Raises SpecError where the device that was asked for is not here.
    """
    name = os.environ.get("CS330RAY_DEVICE")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name and not here.get(name):
        there = ", ".join(known for known, present in here.items() if present)
        raise SpecError(f"CS330RAY_DEVICE: a device of this machine ({there}) is needed, but got {name!r}; unset it")
    chosen = torch.device(name) if name else PartialState().device
    if chosen.type == "mps" and name is None:
        return torch.device("cpu")
    if chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa ruin second derivatives, as bf16's seven do
    if chosen.type == "cpu":
        _keep_freed_memory()
    return chosen


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep what tensors free, up to 1 GiB: else each step's blocks of some MB are mapped and zeroed anew.

    A fifth of a ProtoNet's step goes there without it. Other C libraries go on as they do.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
                mallopt(parameter, 1 << 30)


def generator(stream: str, seed: int) -> torch.Generator:
    """A stream of random numbers of its own for each purpose and seed, the same for every system."""
    digest = hashlib.sha256(f"cs330ray/{stream}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def save_state(
    directory: Path,
    *,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    notes: Mapping[str, Any],
) -> None:
    """Write all that a trial is into an empty directory, to the bit: state.safetensors and `notes` as state.json."""
    held = {f"tensor/{name}": tensor.detach().contiguous() for name, tensor in tensors.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        held |= {f"optimizer/{index}/{name}": moment for name, moment in moments.items()}
    save_file(held | {"generator": generator.get_state()}, directory / "state.safetensors")
    (directory / "state.json").write_text(json.dumps(dict(notes)))


def load_state(
    checkpoint: Path,
    *,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Read what `save_state` wrote into tensors, optimiser and generator made alike; the notes.

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
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(moments)})
    generator.set_state(drawn)
    return notes


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
    return set(named) == {"step", "exp_avg", "exp_avg_sq"} and all(
        moment.shape == (() if name == "step" else parameter.shape) for name, moment in named.items()
    )


def mean(values: Tensor) -> float:
    """The mean of all values, taken in float64."""
    return values.detach().cpu().double().mean().item()


def ci95(values_T: Tensor) -> float:
    """Half the width of the normal 95 % interval of the mean over independent units: 1.96 s / sqrt(n)."""
    return 1.96 * values_T.detach().cpu().double().std().item() / math.sqrt(len(values_T))
