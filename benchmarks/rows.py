"""What a row costs the driver: a trial that yields rows as fast as it can, and one with a single row.

    python benchmarks/rows.py [ROWS] [--smallest]

Prints a table, and as its last line JSON {"ms_per_row": , "stop_s": }: the wall time of a row on one slot, and how
long the command takes to end after a Ctrl-C in the midst of the rows.
"""

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
MANY = 10_000_000  # rows, of which a Ctrl-C finds the driver in the midst
STUDY = """
name = "{name}"
trainable = "benchmarks.sleeper"
objective = ["val_loss"]
[fixed]
sleep_s = 0.0
[search]
x = {{ low = 0.0, high = 1.0 }}
[budget]
trials = 1
steps = {rows}
[resources]
slots = 1
"""


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        few_s = _trial_s(Path(folder), "few", 1)
        many_s = _trial_s(Path(folder), "many", rows)
        stop_s = _stop_s(Path(folder))
    figures = {"ms_per_row": round(1000 * (many_s - few_s) / rows, 3), "stop_s": round(stop_s, 2)}
    print(f"{'rows':<12}{rows:>10}\n{'one row, s':<12}{few_s:>10.2f}\n{'all rows, s':<12}{many_s:>10.2f}")
    for name, value in figures.items():
        print(f"{name:<12}{value:>10}")
    print(json.dumps(figures))


def _run(folder: Path, name: str, rows: int) -> subprocess.Popen[bytes]:
    file = folder / f"{name}.toml"
    file.write_text(STUDY.format(name=name, rows=rows))
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "CS330RAY_HOME": str(folder / name), "PYTHONPATH": path}
    command = [sys.executable, "-m", "cs330ray", "run", str(file)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def _trial_s(folder: Path, name: str, rows: int) -> float:
    """Seconds from the beginning of the trial to its end."""
    assert _run(folder, name, rows).wait() == 0
    with sqlite3.connect(folder / name / "ledger.db") as ledger:
        (circumstances,) = ledger.execute("SELECT circumstances FROM cs330ray_attempts").fetchone()
        (ended_s, written) = ledger.execute(
            "SELECT wall_s, (SELECT count(*) FROM cs330ray_rows) FROM cs330ray_ends"
        ).fetchone()
    assert written == rows, f"{written} of {rows} rows are recorded"
    return float(ended_s) - float(json.loads(circumstances)["began_s"])


def _stop_s(folder: Path) -> float:
    """Seconds from a Ctrl-C in the midst of the rows to the end of the command."""
    running = _run(folder, "stopped", MANY)
    try:
        while not _rows_in(folder / "stopped" / "ledger.db"):
            assert running.poll() is None, "it ended before there was a row"
            time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        began = time.monotonic()
        left = psutil.Process(running.pid).children()
        assert running.wait() == 130
        stop_s = time.monotonic() - began
        psutil.wait_procs(left)  # the mirror makes a last pass, and would write into a folder that is being removed
        return stop_s
    finally:
        running.kill()


def _rows_in(ledger: Path) -> int:
    if not ledger.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as opened:
            return int(opened.execute("SELECT count(*) FROM cs330ray_rows").fetchone()[0])
    except sqlite3.Error:
        return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="?", type=int, default=20_000)
    parser.add_argument("--smallest", action="store_true", help="few rows: shows only that it runs")
    given = parser.parse_args()
    main(50 if given.smallest else given.rows)
