"""What several workers cost a trial beyond its training: starting a team of two, and passing it on to the next trial.

    python benchmarks/workers.py [--trials 8] [--workers 2] [--smallest]

A ProtoNet on embedded letters, one step a trial. The first trial of a study starts Python, torch and a process group in
each worker; the next ones find them. `alone` is the same study with one worker a trial and one slot.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUDY = """
name = "team"
trainable = "protonet"
objective = ["val_accuracy"]
[fixed]
dataset = "glyphs"
tasks = 4
val_tasks = 4
[search]
lr = {{ low = 1e-4, high = 1e-2, log = true }}
[sampler]
kind = "random"
[budget]
trials = {trials}
steps = 1
[resources]
workers = {workers}
slots = 1
"""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--trials", type=int, default=8)
    given.add_argument("--workers", type=int, default=2)
    given.add_argument("--smallest", action="store_true", help="two trials: shows only that it runs")
    arguments = given.parse_args()
    trials = 2 if arguments.smallest else arguments.trials
    team, alone = (measure(trials, workers) for workers in (arguments.workers, 1))
    print(f"{'':<28} {'team':>8} {'alone':>8}")
    for name in team:
        print(f"{name:<28} {team[name]:>8} {alone[name]:>8}")
    print(json.dumps({**{f"team_{name}": value for name, value in team.items()},
                      **{f"alone_{name}": value for name, value in alone.items()}}))  # fmt: skip


def measure(trials: int, workers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        home, file = Path(folder) / "runs", Path(folder) / "team.toml"
        file.write_text(STUDY.format(trials=trials, workers=workers))
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        environment = {**os.environ, "CS330RAY_HOME": str(home), "PYTHONPATH": path}
        launched = time.time()
        command = [sys.executable, "-m", "cs330ray", "run", str(file)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return told(home, launched)


def told(home: Path, launched: float) -> dict[str, float]:
    from cs330ray.ledger.writer import Writer

    ledger = Writer.at(home)
    study = ledger.study("team")
    (cell,) = study.cells
    ends = sorted(trial.ended_s or 0.0 for trial in ledger.trials(study, cell))
    first = ledger.attempts(study, cell, 0)[0]["began_s"]
    return {
        "first_began_s": round(first - launched, 2),  # the driver's start is in it
        "first_trial_s": round(ends[0] - first, 2),
        "next_trial_s": round(statistics.median(b - a for a, b in itertools.pairwise(ends)), 2),
    }


if __name__ == "__main__":
    main()
