"""What a study of many trials costs as it grows: trials of almost no work on two slots, with the mirror on.

    python benchmarks/scale.py [--trials 2000] [--smallest]

Time per trial is told of the first and of the last 200, by their ends; the driver's memory from its 100th trial to its
very end; `list` and `show` of the finished study with their start of Python; the mirror by how many trials it is behind
and what it burns. The CPU time of driver and mirror tells growth on a machine that has other work, too.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
WINDOW, WARM = 200, 100  # trials
STUDY = """
name = "scale"
trainable = "benchmarks.sleeper"
objective = ["val_loss"]
[fixed]
sleep_s = 0.0
[search]
x = {{ low = 0.0, high = 1.0 }}
[sampler]
kind = "random"
[budget]
trials = {trials}
steps = 4
[resources]
slots = 2
"""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--trials", type=int, default=2000)
    given.add_argument("--smallest", action="store_true", help="8 trials: shows only that it runs")
    arguments = given.parse_args()
    trials = 8 if arguments.smallest else arguments.trials
    figures = running(trials)
    for name, value in figures.items():
        print(f"{name:<24} {value:>10}")
    print(json.dumps(figures))


# A whole study ---------------------------------------------------------------------------------------------------


@dataclass
class Samples:
    """What was seen of the driver and of the mirror while they ran, each with its time."""

    driver_bytes: list[tuple[float, int]] = field(default_factory=list)
    driver_cpu_s: list[tuple[float, float]] = field(default_factory=list)
    mirror_cpu_s: list[tuple[float, float]] = field(default_factory=list)
    behind: list[tuple[float, int]] = field(default_factory=list)  # trials ended, less those that MLflow shows ended


def running(trials: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "runs"
        file = Path(folder) / "scale.toml"
        file.write_text(STUDY.format(trials=trials))
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        environment = {**os.environ, "CS330RAY_HOME": str(home), "PYTHONPATH": path}
        samples = Samples()
        driver = subprocess.Popen(command("run", str(file)), env=environment, stdout=subprocess.DEVNULL)
        watch = threading.Thread(target=sample, args=(driver.pid, home, samples))
        watch.start()
        code, left_s = driver.wait(), time.time()
        watch.join()
        if code != 0:
            raise SystemExit(f"the study ended with {code}")
        behind, sync_s = trials - count(home / "mlflow.db", MIRRORED), timed(environment, "sync", "scale")
        figures = told(home, trials, samples, left_s)
        figures |= {"mirror_behind_left": behind, "sync_s": sync_s}
        figures |= {
            f"{name}_s": timed(environment, *words) for name, *words in (["list", "list"], ["show", "show", "scale"])
        }
        return figures


def told(home: Path, trials: int, samples: Samples, left_s: float) -> dict[str, float]:
    from cs330ray.ledger.writer import Writer

    ledger = Writer.at(home)
    study = ledger.study("scale")
    (cell,) = study.cells
    ends = sorted(trial.ended_s or 0.0 for trial in ledger.trials(study, cell))
    window = min(WINDOW, trials // 2)
    first, last = (ends[0], ends[window]), (ends[-1 - window], ends[-1])
    first_s, last_s = ((until - since) / window for since, until in (first, last))
    warm = [(at, size) for at, size in samples.driver_bytes if at >= ends[min(WARM, trials // 4)]]
    running_most = max(size for at, size in warm if at <= ends[-1])
    at_end = [behind for at, behind in samples.behind if at >= ends[-1]]
    agreed = [at for at, behind in samples.behind if at >= ends[-1] and behind == 0]
    return {
        "trials": trials,
        "first_trial_s": round(first_s, 4),
        "last_trial_s": round(last_s, 4),
        "ratio": round(last_s / first_s, 3),
        "trials_s": round(ends[-1] - ends[0], 1),
        "left_s": round(left_s - ends[-1], 1),
        "driver_mb": round(warm[0][1] / 1e6, 1),
        "driver_growth_mb": round((max(size for _, size in warm) - warm[0][1]) / 1e6, 1),
        "driver_growth_running_mb": round((running_most - warm[0][1]) / 1e6, 1),
        **{
            f"{who}_cpu_{when}_ms": round(1000 * spent(cpu_s, *between) / window, 1)
            for who, cpu_s in (("driver", samples.driver_cpu_s), ("mirror", samples.mirror_cpu_s))
            for when, between in (("first", first), ("last", last))
        },
        "driver_cpu_s": round(samples.driver_cpu_s[-1][1], 1),
        "mirror_cpu_s": round(samples.mirror_cpu_s[-1][1], 1),
        "mirror_behind_most": max(behind for _, behind in samples.behind),
        "mirror_behind_end": at_end[0] if at_end else -1,
        "mirror_agreed_s": round(agreed[0] - ends[-1], 1) if agreed else -1.0,
    }


def spent(cpu_s: Sequence[tuple[float, float]], since: float, until: float) -> float:
    """CPU seconds between two moments; the samples lie half a second apart."""
    before, after = ([cpu for at, cpu in cpu_s if at <= moment] or [0.0] for moment in (since, until))
    return after[-1] - before[-1]


ENDED = "select count(*) from cs330ray_ends"
MIRRORED = (
    "select count(*) from runs join tags on tags.run_uuid = runs.run_uuid "
    "where tags.key = 'cs330ray.kind' and tags.value = 'trial' and runs.status <> 'RUNNING'"
)


def sample(pid: int, home: Path, samples: Samples) -> None:
    """Look at the driver, its mirror and both databases every half second until the driver has ended."""
    driver, mirror = psutil.Process(pid), None
    with contextlib.suppress(psutil.NoSuchProcess):
        while driver.status() != psutil.STATUS_ZOMBIE:
            at = time.time()
            samples.driver_bytes.append((at, driver.memory_info().rss))
            samples.driver_cpu_s.append((at, sum(driver.cpu_times()[:2])))
            mirror = mirror or next((child for child in driver.children() if "sync" in child.cmdline()), None)
            if mirror is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    samples.mirror_cpu_s.append((at, sum(mirror.cpu_times()[:2])))
            mirrored = count(home / "mlflow.db", MIRRORED)  # first: what ends meanwhile counts as behind
            samples.behind.append((at, count(home / "ledger.db", ENDED) - mirrored))
            time.sleep(0.5)


def count(database: Path, query: str) -> int:
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return int(connection.execute(query).fetchone()[0])
        except sqlite3.OperationalError:  # its tables are still to be made
            return 0


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "cs330ray", *words]


def timed(environment: dict[str, str], *words: str) -> float:
    began = time.monotonic()
    subprocess.run(command(*words), env=environment, check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - began, 2)


if __name__ == "__main__":
    main()
