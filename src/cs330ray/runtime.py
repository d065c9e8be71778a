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
from safetensors.torch import load_file, save_file
from torch import Tensor

from cs330ray.errors import CheckpointError, SpecError


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

    Raises CheckpointError where the tensors have other names than those that were written.
    """
    held = load_file(checkpoint / "state.safetensors")
    generator.set_state(held.pop("generator"))
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key in [key for key in held if key.startswith("optimizer/")]:
        _, index, name = key.split("/")
        moments[int(index)][name] = held.pop(key)
    if set(held) != {f"tensor/{name}" for name in tensors}:
        raise CheckpointError(
            f"{checkpoint}: this configuration's tensors are needed, but got those of another; start the trial anew"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(held[f"tensor/{name}"])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(moments)})
    notes: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return notes


def mean(values: Tensor) -> float:
    """The mean of all values, taken in float64."""
    return values.detach().cpu().double().mean().item()


def ci95(values_T: Tensor) -> float:
    """Half the width of the normal 95 % interval of the mean over independent units: 1.96 s / sqrt(n)."""
    return 1.96 * values_T.detach().cpu().double().std().item() / math.sqrt(len(values_T))
