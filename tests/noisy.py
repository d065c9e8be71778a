"""A trainable whose validation is luck: it reaches its quality plus a noise of its seed, the same at each step."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cs330ray.errors import Diverged
from cs330ray.trial import Item, Metric, Progress, Scores

METRICS: Mapping[str, Metric] = {
    f"{part}_{name}": Metric(goal) for part in ("val", "test") for name, goal in (("accuracy", "max"), ("cost", "min"))
}


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    quality: float = Field(0.5, ge=0, le=1)
    cost: float = Field(1.0, ge=0)
    noise: float = Field(0.1, ge=0, le=1)
    on_test: Literal["same", "opposite", "raises"] = "same"
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
    for step in range(begin + 1, steps + 1):
        time.sleep(config.sleep_s)
        values = {"val_accuracy": config.quality + luck(seed, config.noise), "val_cost": config.cost}
        yield Progress(step, values, lambda path, step=step: _save(path, step))


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    if config.on_test == "raises":
        raise RuntimeError("the test split was read")
    reached = config.quality if config.on_test == "same" else 1 - config.quality
    items = [Item(str(task), reached + offset) for task, offset in enumerate((-0.1, 0.1))]
    return Scores({"test_accuracy": reached, "test_cost": config.cost}, {"test_accuracy": items})


def _save(path: Path, step: int) -> None:
    (path / "state.json").write_text(json.dumps({"step": step}))
