"""A trainable whose validation is luck: it reaches its quality plus a noise of its seed, the same at each step."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cs330ray.errors import Diverged
from cs330ray.trial.contract import Item, Metric, Progress, Scores

METRICS: Mapping[str, Metric] = {
    f"{part}_{name}": Metric(goal) for part in ("val", "test") for name, goal in (("accuracy", "max"), ("cost", "min"))
}


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    quality: float = Field(0.5, ge=0, le=1)
    cost: float = Field(1.0, ge=0)
    noise: float = Field(0.1, ge=0, le=1)
    bonus: float = Field(0.0, ge=0, le=1, description="on validation alone")
    on_test: Literal["same", "opposite", "raises", "nan", "numpy", "uneven", "kills"] = "same"
    raises_below: float = Field(0.0, description="a quality below which test raises")
    stops_at: int | None = Field(None, description="the step after which training ends by itself")
    diverges_on: int = Field(-1, description="a seed that diverges")
    sleep_s: float = Field(0.0, ge=0)
    eval_every_steps: int = Field(1, ge=1)


def luck(seed: int, noise: float) -> float:
    """What a seed adds."""
    return float(np.random.default_rng(seed).normal(scale=noise))


def prepare(config: Config) -> str:
    return "noisy"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    begin = json.loads((resume / "state.json").read_text())["step"] if resume else 0
    if seed == config.diverges_on:
        raise Diverged("planted")
    for step in range(begin + 1, min(steps, config.stops_at or steps) + 1):
        time.sleep(config.sleep_s)
        values = {"val_accuracy": config.quality + config.bonus + luck(seed, config.noise), "val_cost": config.cost}
        yield Progress(step, values, lambda path, step=step: _save(path, step))


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    if config.on_test == "raises" or config.quality < config.raises_below:
        raise RuntimeError("the test split was read")
    if config.on_test == "kills" and not (mark := checkpoint.parent / "killed").exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    reached = 1 - config.quality if config.on_test == "opposite" else config.quality
    reached = float("nan") if config.on_test == "nan" else reached
    units: list[Any] = [f"task {seed}", "task"] if config.on_test == "uneven" else ["0", "1"]
    kind: Any = np.float32 if config.on_test == "numpy" else float
    items = [Item(unit, kind(reached + offset)) for unit, offset in zip(units, (-0.1, 0.1), strict=True)]
    return Scores({"test_accuracy": kind(reached), "test_cost": config.cost}, {"test_accuracy": items})


def _save(path: Path, step: int) -> None:
    (path / "state.json").write_text(json.dumps({"step": step}))
