"""Where things lie: the home and its own files, a study's folder in it, a trial's checkpoints there and in a store."""

import hashlib
import os
from pathlib import Path

from cs330ray.errors import SpecError
from cs330ray.package import shipped
from cs330ray.spec.study import Cell
from cs330ray.words import short

# The home's own files and folders. A study's folder lies beside them, so that none may have such a name.
LEDGER, MLFLOW = "ledger.db", "mlflow.db"  # with what SQLite and locks keep beside them: `ledger.db-wal`
BACKUPS, ARTIFACTS, ALONE = "backups", "artifacts", "alone"
SLURM = "slurm"  # the studies that were sent to Slurm
SERVERS = ("mlruns", "mlartifacts")  # which MLflow makes where its server is started

# A study's own files in its folder.
CHECKPOINTS, REPORT, FILE = "checkpoints", "report", "study.toml"
UNPACKING = "UNPACKING"  # there as long as the ledger does not hold a study whose files have arrived
OF_MIRROR = ("mirror.log", "mirror.lock", "mirror.last", "mirror.uids")

LOG = "log.txt"


def is_own(name: str) -> bool:
    """Whether the home keeps a file or folder of its own under this name, whichever case the disk tells apart."""
    folded = name.casefold()
    return folded in (BACKUPS, ARTIFACTS, ALONE, SLURM, *SERVERS) or folded.startswith((LEDGER, MLFLOW))


def is_one_folder(home: Path, one: str, other: str) -> bool:
    """Whether two names differ in their case alone, and the disk does not tell them apart."""
    here, there = home / one, home / other
    return one.casefold() == other.casefold() and here.exists() and there.exists() and here.samefile(there)


def checkpoints_of(home: Path, study: str, cell: Cell, number: int) -> Path:
    """Where a trial's checkpoints lie."""
    return home.resolve() / study / CHECKPOINTS / slug(cell) / f"trial-{number:05d}"


def copies_of(name: str, cell: Cell, number: int) -> str:
    """Where their copies lie in a store, in the folder `name` of the study."""
    return f"{name}/{slug(cell)}/trial-{number:05d}"


def log_of(home: Path, study: str, cell: Cell, number: int) -> Path:
    """Where what a trial wrote lies; a trial that wrote nothing may have none."""
    return checkpoints_of(home, study, cell, number) / LOG


def slug(cell: Cell) -> str:
    """Name the folder of a cell, whatever its key holds."""
    return hashlib.sha256(cell.key.encode()).hexdigest()[:12]


def home() -> Path:
    """Where studies live: CS330RAY_HOME, else `runs` here. Raises SpecError where no database can have the path."""
    place = Path(os.environ.get("CS330RAY_HOME") or "runs")
    try:
        os.path.abspath(place).encode()  # noqa: PTH100 - nothing is looked up
    except UnicodeEncodeError:
        raise SpecError(
            f"CS330RAY_HOME: expected a path in UTF-8, got {short(os.fsencode(place.absolute()), 200)}; set another"
        ) from None
    return place


def study_file(text: str) -> Path:
    """A study's file: a path, or the name of one that comes with the package."""
    path, known = Path(text), shipped() / f"{text}.toml"
    return known if not path.exists() and known.is_file() else path
