"""How well slots are used as they grow in number: trials of 30 s that sleep, on Ray clusters of one machine.

    python benchmarks/scaling.py [--slots 2 8 32 64] [--seconds 30] [--rounds 4] [--smallest]

Efficiency is the share of slot seconds that trials slept, in the steady state: from when every slot has had a trial
until the first slot begins its last. Beside it stands what is lost: between two trials of a slot, and within a trial
beyond its sleep. A node of the clusters has at most 8 slots; the processes of all share this machine.
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
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cs330ray.quiet import quiet

quiet()  # before Ray: sets its environment, with a token that the driver inherits

ROOT = Path(__file__).parents[1]
NODE_SLOTS = 8
ROWS = 3  # of a trial
STUDY = """
name = "scaling"
trainable = "benchmarks.sleeper"
objective = ["val_loss"]
[fixed]
sleep_s = {seconds}
[search]
x = {{ low = 0.0, high = 1.0 }}
[sampler]
kind = "random"
[budget]
trials = {trials}
steps = {rows}
"""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--slots", type=int, nargs="+", default=[2, 8, 32, 64])
    given.add_argument("--seconds", type=float, default=30.0)
    given.add_argument("--rounds", type=int, default=4, help="trials a slot")
    given.add_argument("--verbose", action="store_true")
    given.add_argument("--smallest", action="store_true", help="2 slots, trials of a second: shows only that it runs")
    arguments = given.parse_args()
    if arguments.smallest:
        arguments.slots, arguments.seconds, arguments.rounds = [2], 1.0, 4
    efficiencies = {}
    print(
        f"{'slots':>5} {'efficiency':>10} {'all busy, s':>11} {'between, s':>10} {'over, s':>8} {'driver CPU, ms':>14}"
    )
    for slots in arguments.slots:
        figures = measure(slots, arguments.seconds, arguments.rounds, verbose=arguments.verbose)
        efficiencies[f"efficiency_{slots}"] = figures["efficiency"]
        print(
            "{slots:>5} {efficiency:>10} {all_busy_s:>11} {between_s:>10} {over_s:>8} {driver_cpu_ms:>14}".format(
                **figures
            )
        )
    print(json.dumps(efficiencies))


def measure(slots: int, seconds: float, rounds: int, *, verbose: bool = False) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, cluster(slots) as address:
        home, file = Path(folder) / "runs", Path(folder) / "scaling.toml"
        file.write_text(STUDY.format(seconds=seconds, trials=slots * rounds, rows=ROWS))
        environment = {**os.environ, "CS330RAY_HOME": str(home), "RAY_ADDRESS": address}
        out = None if verbose else subprocess.DEVNULL
        driver = subprocess.Popen([sys.executable, "-m", "cs330ray", "run", str(file)], env=environment, stdout=out)
        cpu_s = 0.0
        while driver.poll() is None:
            cpu_s = max(cpu_s, cpu_of(driver.pid))
            time.sleep(0.5)
        if driver.returncode != 0:
            raise SystemExit(f"the study ended with {driver.returncode}")
        return told(home, slots, seconds, slots * rounds, cpu_s)


def cpu_of(pid: int) -> float:
    import psutil

    try:
        return float(sum(psutil.Process(pid).cpu_times()[:2]))
    except psutil.NoSuchProcess:
        return 0.0


def told(home: Path, slots: int, seconds: float, trials: int, cpu_s: float) -> dict[str, float]:
    from cs330ray.ledger.writer import Writer

    ledger = Writer.at(home)
    study = ledger.study("scaling")
    (cell,) = study.cells
    attempts = [ledger.attempts(study, cell, number)[0] for number in range(trials)]
    by_slot: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for attempt, trial in zip(attempts, ledger.trials(study, cell), strict=True):
        by_slot.setdefault((attempt["host"], attempt["pid"]), []).append((attempt["began_s"], trial.ended_s or 0.0))
    slot_trials = [sorted(spans) for spans in by_slot.values()]
    since = max(spans[0][0] for spans in slot_trials)
    until = min(spans[-1][0] for spans in slot_trials)
    assert len(slot_trials) == slots, f"{len(slot_trials)} processes ran trials on {slots} slots"
    assert until > since, "no steady state: more --rounds"
    # A trial sleeps from its beginning; what it takes beyond `seconds` is the service's.
    slept_s = sum(overlap(begin, begin + seconds, since, until) for spans in slot_trials for begin, _ in spans)
    gaps = [later[0] - before[1] for spans in slot_trials for before, later in itertools.pairwise(spans)]
    return {
        "slots": slots,
        "efficiency": round(slept_s / (slots * (until - since)), 3),
        "all_busy_s": round(until - since, 1),
        "between_s": round(statistics.median(gaps), 2),
        "over_s": round(statistics.median(end - begin - seconds for spans in slot_trials for begin, end in spans), 2),
        "driver_cpu_ms": round(1000 * cpu_s / trials),
    }


def overlap(begin: float, end: float, since: float, until: float) -> float:
    return max(min(end, until) - max(begin, since), 0.0)


@contextmanager
def cluster(slots: int) -> Iterator[str]:
    """A cluster of a head without slots and as many nodes as they take; its address."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 1024**2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        try:
            for first in range(0, slots, NODE_SLOTS):
                made.add_node(num_cpus=min(NODE_SLOTS, slots - first), **small)
            made.wait_for_nodes()
            yield made.address
        finally:
            made.shutdown()


if __name__ == "__main__":
    main()
