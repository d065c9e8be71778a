"""A trainable that treats its process as no guest should, and shows in which process it ran."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cs330ray.trial.contract import Metric, Progress, Scores

METRICS: Mapping[str, Metric] = {"val_loss": Metric("min"), "pid": Metric("max")}


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    does: str = "nothing"
    mark: str = Field("", description="a file that is there once a signal was sent")
    eval_every_steps: int = Field(1, ge=1)


def prepare(config: Config) -> str:
    return "nothing"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    begin = json.loads((resume / "state.json").read_text())["step"] if resume else 0
    for step in range(begin + 1, steps + 1):
        sys.stdout.write(f"{config.does} at step {step}\n")
        if step == 2:
            _act(config)
        yield Progress(step, {"val_loss": 1.0, "pid": os.getpid()}, lambda path, step=step: _save(path, step))


def _act(config: Config) -> None:
    mark = Path(config.mark)
    if config.does == "exits":
        sys.exit("no data for this fold")
    if config.does == "closes":
        os.close(1)
        os.close(2)
    if config.does == "is interrupted":  # as by a Ctrl-C at the terminal
        os.kill(os.getpid(), signal.SIGINT)
    if config.does == "is told to end" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGTERM)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    return Scores({})


def _save(path: Path, step: int) -> None:
    (path / "state.json").write_text(json.dumps({"step": step}))
