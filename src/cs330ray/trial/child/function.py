"""The process that calls a function of one's own: `train(config, seed, steps, trial)`, or `test`.

    python -m cs330ray.trial.child.function FILE FUNCTION train|test

What it is called with stands in CS330RAY_CALL. `test` takes (config, seed, checkpoint).
"""

import dataclasses
import importlib
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cs330ray.trial.child.report import CHECKPOINTS, RESUME, ROWS, append, write

CALL = "CS330RAY_CALL"


class Trial:
    """What a function reports to, and learns where to resume from."""

    def __init__(self) -> None:
        resume = os.environ.get(RESUME)
        self.resume = Path(resume) if resume else None  # the checkpoint to resume from; to be read, not written to
        self.checkpoints = Path(os.environ[CHECKPOINTS])  # the directory below which checkpoints are written

    def log(self, step: int, metrics: Mapping[str, float], checkpoint: str | os.PathLike[str] | None = None) -> None:
        """Report what the training has reached after `step` steps, see `cs330ray.log`."""
        write(step, metrics, checkpoint)


def main(file: str, name: str, what: str) -> None:
    """Call a function of a file with what the study asks."""
    path = Path(file)
    sys.path.insert(0, str(path.parent))
    function: Callable[..., Any] = getattr(importlib.import_module(path.stem), name)
    call = json.loads(os.environ[CALL])
    config = _as_wanted(function, call["config"])
    if what == "train":
        returned = function(config, call["seed"], call["steps"], Trial())
        if inspect.isgenerator(returned):
            raise TypeError(
                f"{name}: expected a function that trains, got a generator; call trial.log in place of yield"
            )
        return
    scores = function(config, call["seed"], Path(os.environ[RESUME]))
    if not isinstance(scores, Mapping):
        raise TypeError(f"{name}: expected a dictionary such as {{'test_accuracy': 0.8}}, got {scores!r}")
    append(Path(os.environ[ROWS]), {key: float(value) for key, value in scores.items()})


def _as_wanted(function: Callable[..., Any], config: dict[str, Any]) -> Any:
    """The configuration as the function's first parameter says: a dataclass of its own, or a dictionary."""
    first = next(iter(inspect.signature(function).parameters), None)
    wanted = typing.get_type_hints(function).get(first) if first is not None else None
    return wanted(**config) if isinstance(wanted, type) and dataclasses.is_dataclass(wanted) else config


if __name__ == "__main__":
    main(*sys.argv[1:])
