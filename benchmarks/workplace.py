"""Where a benchmark starts commands: their environment, and a folder whose processes end with the benchmark."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults import kill_all

ROOT = Path(__file__).parents[1]
KEPT = ("CS330RAY_DATA", "CS330RAY_CACHE")
KEEPER = """
import sys
from benchmarks import workplace
sys.stdin.read()
workplace.clear(sys.argv[1])
"""


def environment(folder: Path) -> dict[str, str]:
    """The caller's environment without what would steer Ray, MLflow or the service; studies and sockets in `folder`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "CS330RAY_")) or name in KEPT
    }
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    own = {"CS330RAY_HOME": str(folder / "runs"), "RAY_TMPDIR": str(folder / "r")}
    return kept | own | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def workplace(prefix: str) -> Iterator[Path]:
    """A temporary directory; a process of its own ends what was started in it and removes it, however this one ends."""
    work = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))  # short: Ray's sockets lie under it
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(work)], cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield work
    finally:
        keeper.communicate()


def clear(work: str) -> None:
    """End every process that knows of a folder, and remove it."""
    kill_all([work])
    shutil.rmtree(work, ignore_errors=True)
