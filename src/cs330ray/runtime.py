"""The old address of `training.device` and `training.state`, for systems that were written before they moved."""

import warnings

from cs330ray.training.device import device, generator
from cs330ray.training.state import ci95, fill, load_notes, load_state, load_tensors, mean, save_state

__all__ = [
    "ci95", "device", "fill", "generator", "load_notes", "load_state", "load_tensors", "mean", "save_state",
]  # fmt: skip

warnings.warn(
    "cs330ray.runtime has moved: import its names from cs330ray.training.device and cs330ray.training.state",
    DeprecationWarning,
    stacklevel=2,
)
