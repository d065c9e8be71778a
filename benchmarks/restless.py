"""ProtoNet as the fault campaign trains it: some of its trials leave a thread and processes running when they end."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cs330ray.course.systems import protonet
from cs330ray.course.systems.protonet import METRICS, Config, chance, prepare, test  # noqa: F401 - the contract
from cs330ray.trial.contract import Progress

EVERY = 3  # one seed in so many leaves something
NAP_S = 7200


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train as ProtoNet does, and leave what a person's own code may leave."""
    if seed % EVERY == 0:
        threading.Thread(target=time.sleep, args=(NAP_S,)).start()
        subprocess.Popen(["sleep", str(NAP_S)], start_new_session=True)
        subprocess.run(f"setsid sleep {NAP_S} >/dev/null 2>&1 &", shell=True)  # an orphan at once
        subprocess.Popen(["sh", "-c", f"trap '' TERM HUP INT; sleep {NAP_S} & wait"])
    return protonet.train(config, seed, steps, resume)
