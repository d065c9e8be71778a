"""What a script says of its training: one line of JSON each, appended to the file that CS330RAY_ROWS names.

It is imported by the process that trains.
"""

import json
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROWS = "CS330RAY_ROWS"  # the file
CHECKPOINTS = "CS330RAY_CHECKPOINTS_DIR"  # the directory below which its checkpoints lie
RESUME = "CS330RAY_RESUME"  # the checkpoint to resume from; not set where it starts from scratch


def log(step: int, checkpoint: str | os.PathLike[str] | None = None, **metrics: float) -> None:
    """Report what the training has reached after `step` steps; does nothing where no study runs this process.

    Report each step once, in rising order. `checkpoint` names a directory below CS330RAY_CHECKPOINTS_DIR that is
    written whole and stays as it is. Of several processes of one training that of RANK 0 reports. Raises TypeError.
    """
    write(step, metrics, checkpoint)


def write(step: Any, metrics: Mapping[str, Any], checkpoint: str | os.PathLike[str] | None = None) -> None:
    """Report a row with metrics by name, see `log`."""
    file = os.environ.get(ROWS)
    if not file or os.environ.get("RANK", "0") != "0":
        return
    if isinstance(step, bool) or not isinstance(step, numbers.Integral):
        raise TypeError(f"step: expected a whole number, got {step!r}")
    line: dict[str, Any] = {"step": int(step), **{str(name): _number(name, value) for name, value in metrics.items()}}
    if checkpoint is not None:
        line["checkpoint"] = os.fspath(Path(checkpoint).absolute())
    append(Path(file), line)


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Append one line of JSON, in one piece."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, (json.dumps(dict(line)) + "\n").encode())
    finally:
        os.close(handle)


def _number(name: str, value: Any) -> float:
    """A number of Python, NumPy or torch."""
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, str | bytes | complex):
        raise TypeError(f"{name}: expected a number, got {plain!r}")
    return float(plain)
