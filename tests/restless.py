"""A trainable whose trials leave something running, or never end: what a person's own code may do."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from pydantic import BaseModel, ConfigDict, Field

from cs330ray.trial.contract import Metric, Progress, Scores

METRICS = {"val_loss": Metric("min"), "test_loss": Metric("min")}
NAP_S = "4321"  # told from every other sleep


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    x: float = Field(0.5, ge=0, le=1)
    leaves: str = Field("nothing", pattern="^(nothing|children|thread|hangs|exits|asks-ray)$")
    at: int = 2


def prepare(config: Config) -> str:
    return "none"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    first = 1 if resume is None else int((resume / "step").read_text()) + 1
    for step in range(first, steps + 1):
        if step == config.at:
            _leave(config.leaves)
        yield Progress(step, {"val_loss": config.x / step}, lambda path, step=step: _save(path, step))


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    return Scores({"test_loss": config.x})


def _save(path: Path, step: int) -> None:
    (path / "step").write_text(str(step))


def _leave(what: str) -> None:
    if what in ("children", "exits", "hangs"):
        subprocess.Popen(["sleep", NAP_S], start_new_session=True)
        subprocess.run(f"setsid sleep {NAP_S} >/dev/null 2>&1 &", shell=True)  # an orphan at once
        subprocess.Popen(["sh", "-c", f"trap '' TERM HUP INT; sleep {NAP_S} & wait"])
    if what == "exits":
        time.sleep(0.2)
        os._exit(0)
    if what == "thread":
        threading.Thread(target=time.sleep, args=(int(NAP_S),)).start()
    if what == "hangs":
        time.sleep(int(NAP_S))
    if what == "asks-ray":
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
