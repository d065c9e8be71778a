"""A trainable of plain Python arithmetic: every processor reaches the same numbers, bit for bit.

The studies of `home` were made with this file, and their ledger holds its digest: leave it as it is.
"""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cs330ray.errors import DataError, Diverged
from cs330ray.trial import Item, Metric, Progress, Scores, Weights

METRICS: Mapping[str, Metric] = {
    "val_loss": Metric("min", low=0.0),
    "val_cost": Metric("min", low=0.0, unit="units"),
    "test_loss": Metric("min", low=0.0),
    "test_cost": Metric("min", low=0.0, unit="units"),
}
START = {"flat": 1.0, "steep": 2.0}
HOARD_BYTES = 7 * 1024**3 // 4
PAUSE_S = float(os.environ.get("SLOPE_PAUSE_S", "0"))  # of each step: so that a driver can be killed in the middle


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float = Field(0.25, gt=0, le=1)
    scale: int = Field(4, ge=1, le=64)
    body: Literal["flat", "steep"] = "flat"
    mode: Literal["plain", "damped"] = "plain"
    damp: float = Field(0.0, ge=0, lt=1)
    ends: Literal["well", "raises", "diverges", "nan", "hoards", "kills", "loses"] = "well"
    ends_at: int = Field(6, ge=1)
    eval_every_steps: int = Field(2, ge=1)


def prepare(config: Config) -> str:
    return "slope"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    state = {"step": 0, "loss": START[config.body], "random": seed % 2**32}
    if resume is not None:
        state = json.loads((resume / "state.json").read_text())
    for step in range(int(state["step"]) + 1, steps + 1):
        time.sleep(PAUSE_S)
        if step == config.ends_at:
            _end(config, step, resumed=resume is not None)
        random = (1664525 * int(state["random"]) + 1013904223) % 2**32
        rate = config.rate * (1 - config.damp) if config.mode == "damped" else config.rate
        loss = abs(state["loss"] - rate * (state["loss"] - 1 / config.scale) + (random / 2**32 - 0.5) / 16)
        state = {"step": step, "loss": loss, "random": random}
        if step % config.eval_every_steps == 0 or step == steps:
            shown = float("nan") if config.ends == "nan" and step >= config.ends_at else loss
            metrics = {"val_loss": shown, "val_cost": float(config.scale)}
            yield Progress(step, metrics, lambda path, state=state: _save(path, state))


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    loss = json.loads((checkpoint / "state.json").read_text())["loss"]
    items = [Item(f"unit {unit}", loss + unit / 8) for unit in range(3)]
    return Scores({"test_loss": loss + 0.125, "test_cost": float(config.scale)}, {"test_loss": items})


def export(config: Config, seed: int, checkpoint: Path) -> Weights:
    import torch

    state = json.loads((checkpoint / "state.json").read_text())
    tensors = {"loss": torch.tensor([state["loss"]], dtype=torch.float64)}
    return Weights(tensors, {"step": state["step"], "seed": seed})


def ready(config: Config, exported: Weights) -> Any:
    if set(exported.tensors) != {"loss"}:
        raise DataError("tensors: expected `loss` alone; export the model again")
    return float(exported.tensors["loss"]), exported.notes["step"], exported.notes["seed"]


def _end(config: Config, step: int, *, resumed: bool) -> None:
    """End a trial the way its configuration says; one that loses its worker does so once."""
    if config.ends == "raises":
        raise RuntimeError("planted")
    if config.ends == "diverges":
        raise Diverged(f"the loss is inf at step {step}")
    if config.ends == "kills" or (config.ends == "loses" and not resumed):
        os.kill(os.getpid(), signal.SIGKILL)
    if config.ends == "hoards":
        hoard = bytearray(HOARD_BYTES)
        time.sleep(30)
        del hoard


def _save(path: Path, state: Mapping[str, float]) -> None:
    (path / "state.json").write_text(json.dumps(state))
