"""Where a trial runs, and its streams of random numbers: the same for every system."""

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Literal

import torch
from accelerate import PartialState

from cs330ray.errors import SpecError

Precision = Literal["fp32", "bf16"]


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


def computing_in(precision: Precision, where: torch.device) -> AbstractContextManager[object]:
    """Multiply matrices in bf16 where that is asked for, as accelerate's mixed precision does; else change nothing.

    Parameters, gradients, the optimiser, softmax and losses stay in float32. torch's own context, since accelerate
    keeps one precision for a whole process, and a worker runs trials of several.
    """
    return torch.autocast(where.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Take numbers below 1.2e-38 for zero on this thread: a CPU computes with them a hundred times as slowly.

    Under weight decay, Adam shrinks what has no other gradient by a factor a step, and its moments with it. Where torch
    shares its work among threads, the others compute on as they do.
    """
    before = bool((torch.tensor(2e-38) * 0.5 * 0.5 == 0).item())  # torch has no word for it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


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
