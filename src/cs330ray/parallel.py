"""The old address of `training.parallel`, for systems that were written before it moved."""

import warnings

from cs330ray.training.parallel import (
    add,
    add_gradients,
    gather,
    gather_from,
    gather_scores,
    join,
    leave,
    rank,
    share,
    workers,
)

__all__ = [
    "add", "add_gradients", "gather", "gather_from", "gather_scores", "join", "leave", "rank", "share", "workers",
]  # fmt: skip

warnings.warn(
    "cs330ray.parallel has moved: import its names from cs330ray.training.parallel", DeprecationWarning, stacklevel=2
)
