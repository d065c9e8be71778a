"""Where a trial's files lie under the home, and in a store: its checkpoints, and beside them what it wrote."""

import hashlib
import os
from pathlib import Path

from cs330ray.package import shipped
from cs330ray.spec.study import Cell

LOG = "log.txt"


def checkpoints_of(home: Path, study: str, cell: Cell, number: int) -> Path:
    """Where a trial's checkpoints lie."""
    return home.resolve() / study / "checkpoints" / _slug(cell) / f"trial-{number:05d}"


def copies_of(name: str, cell: Cell, number: int) -> str:
    """Where their copies lie in a store, in the folder `name` of the study."""
    return f"{name}/{_slug(cell)}/trial-{number:05d}"


def log_of(home: Path, study: str, cell: Cell, number: int) -> Path:
    """Where what a trial wrote lies; a trial that wrote nothing may have none."""
    return checkpoints_of(home, study, cell, number) / LOG


def _slug(cell: Cell) -> str:
    return hashlib.sha256(cell.key.encode()).hexdigest()[:12]


def home() -> Path:
    """Where studies live: CS330RAY_HOME, else `runs` here."""
    return Path(os.environ.get("CS330RAY_HOME") or "runs")


def study_file(text: str) -> Path:
    """A study's file: a path, or the name of one that comes with the package."""
    path, known = Path(text), shipped() / f"{text}.toml"
    return known if not path.exists() and known.is_file() else path
