"""Where a trial's files lie under the home: its checkpoints, and beside them what it wrote."""

import hashlib
from pathlib import Path

from cs330ray.spec import Cell

LOG = "log.txt"


def checkpoints_of(home: Path, study: str, cell: Cell, number: int) -> Path:
    """Where a trial's checkpoints lie."""
    slug = hashlib.sha256(cell.key.encode()).hexdigest()[:12]
    return home.resolve() / study / "checkpoints" / slug / f"trial-{number:05d}"


def log_of(home: Path, study: str, cell: Cell, number: int) -> Path:
    """Where what a trial wrote lies; a trial that wrote nothing may have none."""
    return checkpoints_of(home, study, cell, number) / LOG
