"""What the service costs: 60 trials that sleep two seconds on two slots, with the mirror on, against the ideal minute.

    python benchmarks/service_cost.py [TRIALS] [--smallest]

The wall time runs from the beginning of the first trial to the end of the last; the start is told apart.
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

ROOT = Path(__file__).parents[1]
SLOTS, SLEEP_S = 2, 2.0
STUDY = """
name = "sleep"
trainable = "benchmarks.sleeper"
objective = ["val_loss"]
[search]
x = {{ low = 0.0, high = 1.0 }}
[budget]
trials = {trials}
steps = 4
[resources]
slots = {slots}
"""


def main(trials: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "runs"
        file = Path(folder) / "sleep.toml"
        file.write_text(STUDY.format(trials=trials, slots=SLOTS))
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        launched = time.time()
        subprocess.run(
            [sys.executable, "-m", "cs330ray", "run", str(file)],
            env={**os.environ, "CS330RAY_HOME": str(home), "PYTHONPATH": path}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        whole_s = time.time() - launched
        report(home, trials, launched, whole_s)


def report(home: Path, trials: int, launched: float, whole_s: float) -> None:
    from cs330ray.ledger.writer import Writer

    ledger = Writer.at(home)
    study = ledger.study("sleep")
    (cell,) = study.cells
    began = [ledger.attempts(study, cell, number)[0]["began_s"] for number in range(trials)]
    ended = [trial.ended_s or 0.0 for trial in ledger.trials(study, cell)]
    wall_s, ideal_s = max(ended) - min(began), trials * SLEEP_S / SLOTS
    spent = [end - begin for begin, end in zip(began, ended, strict=True)]
    figures = {
        "ratio": round(wall_s / ideal_s, 3),
        "start_s": round(min(began) - launched, 2),
        "wall_s": round(wall_s, 2),
        "ideal_s": ideal_s,
        "trial_s": round(statistics.median(spent), 3),
        "between_s": round(wall_s * SLOTS / trials - statistics.median(spent), 3),
        "whole_command_s": round(whole_s, 2),
    }
    for name, value in figures.items():
        print(f"{name:<18} {value:>8}")
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("trials", nargs="?", type=int, default=60)
    parser.add_argument("--smallest", action="store_true", help="two trials: shows only that it runs")
    given = parser.parse_args()
    main(2 if given.smallest else given.trials)
