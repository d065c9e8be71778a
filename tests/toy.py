"""A trainable of almost no work for tests of the service: a noisy descent that can end in every way a trial can end."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cs330ray.errors import Diverged
from cs330ray.trial.contract import Item, Metric, Progress, Scores

METRICS: Mapping[str, Metric] = {"val_loss": Metric("min", low=0.0), "val_speed": Metric("max", 0.0, 1.0)}


HOARD_BYTES = 2 * 1024**3


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(0.1, gt=0, le=10)
    width: int = Field(4, ge=1, le=64)
    body: str = Field("small", pattern="^(small|large)$")
    data_seed: int = 0
    eval_every_steps: int = Field(1, ge=1)
    sleep_s: float = Field(0.0, ge=0)
    ends: str = Field("well", pattern="^(well|raises|diverges|nan|kills|numpy|text|hoards|speaks|early)$")
    ends_at: int = 3


def prepare(config: Config) -> str:
    return "toy"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    generator = np.random.default_rng(seed)
    loss, start = 1.0 + 1.0 / config.width, 0
    if resume is not None:
        state = json.loads((resume / "state.json").read_text())
        loss, start = state["loss"], state["step"]
        generator.bit_generator.state = state["generator"]
    for step in range(start + 1, steps + 1):
        time.sleep(config.sleep_s)
        noise = generator.normal(scale=0.01)
        loss = abs(loss * (1 - min(config.lr, 1.9) / 2) + noise)
        if step == config.ends_at and config.ends == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if step == config.ends_at and config.ends == "hoards":
            hoard = bytearray(HOARD_BYTES)
            time.sleep(30)
            del hoard
        if step == config.ends_at and config.ends == "speaks":
            sys.stdout.write(f"words of seed {seed}\n")
            os.write(2, b"and from below\n")
        if step > config.ends_at and config.ends == "early":
            return
        if step == config.ends_at and config.ends == "raises":
            raise RuntimeError("planted")
        if step == config.ends_at and config.ends == "diverges":
            raise Diverged(f"the loss is inf at step {step}")
        if step % config.eval_every_steps == 0 or step == steps:
            value = float("nan") if config.ends == "nan" and step >= config.ends_at else loss
            value = np.float32(value) if config.ends == "numpy" else "low" if config.ends == "text" else value
            state = {"loss": loss, "step": step, "generator": generator.bit_generator.state}
            yield Progress(
                step,
                {"val_loss": value, "val_speed": 1 / (1 + config.width)},
                lambda path, state=state: _save(path, state),
            )


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    loss = json.loads((checkpoint / "state.json").read_text())["loss"]
    return Scores({"test_loss": loss}, {"test_loss": [Item("0", loss)]})


def _save(path: Path, state: dict[str, object]) -> None:
    (path / "state.json").write_text(json.dumps(state))
