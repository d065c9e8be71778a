"""A trainable that sleeps: what a study of it takes beyond the sleep is the service's cost."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cs330ray.trial.contract import Metric, Progress, Scores

METRICS: Mapping[str, Metric] = {"val_loss": Metric("min", 0.0)}


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    x: float = Field(0.5, ge=0, le=1)
    sleep_s: float = Field(2.0, ge=0, description="of a whole trial")
    eval_every_steps: int = Field(1, ge=1)


def prepare(config: Config) -> str:
    return "none"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    done = int((resume / "step").read_text()) if resume else 0
    for step in range(done + 1, steps + 1):
        time.sleep(config.sleep_s / steps)
        yield Progress(step, {"val_loss": config.x / step}, lambda path, step=step: _save(path, step))


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    return Scores({})


def _save(path: Path, step: int) -> None:
    (path / "step").write_text(str(step))
