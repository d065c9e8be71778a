"""Where studies live, and where the files of those that come with the package lie."""

import os
from pathlib import Path


def home() -> Path:
    """Where studies live: CS330RAY_HOME, else `runs` here."""
    return Path(os.environ.get("CS330RAY_HOME") or "runs")


def shipped() -> Path:
    """Where the studies that come with the package lie, in a checkout or in an installed wheel."""
    checkout = Path(__file__).parents[2] / "studies"
    return checkout if checkout.is_dir() else Path(__file__).parent / "shipped"


def study_file(text: str) -> Path:
    """A study's file: a path, or the name of one that comes with the package."""
    path, known = Path(text), shipped() / f"{text}.toml"
    return known if not path.exists() and known.is_file() else path
