"""A trainable of almost no work that splits itself between workers, and can go wrong in one of them or in all."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from cs330ray.errors import Diverged
from cs330ray.training import parallel
from cs330ray.trial.contract import Item, Metric, Progress, Scores

SPLITS = "numbers"
NUMBERS = 7  # of a step; not a multiple of the workers
METRICS: Mapping[str, Metric] = {"val_sum": Metric("max"), "workers": Metric("max"), "pid": Metric("max")}


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: int = Field(1, ge=1, le=100)
    ends: str = Field("well", pattern="^(well|one raises|one dies|all diverge)$")
    sleep_s: float = Field(0.0, ge=0)
    mark: str = Field("", description="a file that is there once a worker has died")


def prepare(config: Config) -> str:
    return "numbers"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Add up the whole numbers below NUMBERS * steps, scaled: each worker its share of each step's."""
    begun = {"step": 0, "sum": 0} if resume is None else json.loads((resume / "state.json").read_text())
    total = begun["sum"]
    for step in range(begun["step"] + 1, steps + 1):
        time.sleep(config.sleep_s)
        numbers = torch.arange((step - 1) * NUMBERS, step * NUMBERS)[parallel.share(NUMBERS)]
        if step == 3:
            _go_wrong(config)
        total += config.scale * int(parallel.add(float(numbers.sum())))
        state = {"step": step, "sum": total}
        found = {"val_sum": float(total), "workers": float(parallel.workers()), "pid": float(os.getpid())}
        yield Progress(step, found, lambda path, state=state: _save(path, state))


def _go_wrong(config: Config) -> None:
    last = parallel.rank() == parallel.workers() - 1
    if config.ends == "one raises" and last:
        raise RuntimeError("planted in the last")
    if config.ends == "one dies" and last and not _died_before(Path(config.mark)):
        os.kill(os.getpid(), signal.SIGKILL)
    if config.ends == "all diverge":
        raise Diverged("the sum is inf at step 3")


def _died_before(mark: Path) -> bool:
    """Whether this was asked before, by whichever process."""
    there = mark.exists()
    mark.touch()
    return there


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    total = json.loads((checkpoint / "state.json").read_text())["sum"]
    numbers = torch.arange(NUMBERS)[parallel.share(NUMBERS)]
    return Scores({"test_sum": total + float(parallel.add(float(numbers.sum())))}, {"test_sum": [Item("0", total)]})


def _save(path: Path, state: dict[str, int]) -> None:
    (path / "state.json").write_text(json.dumps(state))
