"""What the report of a study of many trials costs: seconds of the whole command, and megabytes of its page.

    python benchmarks/report.py [--trials 2000] [--smallest]

The history is made, with 20 rows a trial, four parameters, pruned and failed trials and a confirmation; making it takes
some minutes and is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made import fill
from cs330ray.spec.reading import parse

RUNS = 3
STUDY = {
    "name": "many",
    "trainable": "benchmarks.sleeper",
    "objective": ["val_accuracy"],
    "search": {
        "lr": {"low": 1e-3, "high": 10.0, "log": True},
        "decay": {"low": 0.0, "high": 1.0},
        "body": ["course", "pooled"],
        "filters": {"low": 16, "high": 64, "step": 16},
    },
    "sampler": {"kind": "random"},
    "confirm": {"top": 3, "seeds": 5},
}


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--trials", type=int, default=2000)
    given.add_argument("--smallest", action="store_true", help="8 trials, one report: shows only that it runs")
    arguments = given.parse_args()
    trials, runs = (8, 1) if arguments.smallest else (arguments.trials, RUNS)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        began = time.perf_counter()
        fill(home, parse(STUDY | {"budget": {"trials": trials, "steps": 100}}, "many"), rows=20)
        print(f"{trials} trials made in {time.perf_counter() - began:.0f} s")
        command = [sys.executable, "-m", "cs330ray", "report", "many"]
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            subprocess.run(command, env=os.environ | {"CS330RAY_HOME": folder}, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
            print(f"report in {times[-1]:.2f} s")
        megabytes = (home / "many" / "report" / "report.html").stat().st_size / 1e6
    print(json.dumps({"seconds": round(statistics.median(times), 2), "megabytes": round(megabytes, 2)}))


if __name__ == "__main__":
    main()
