"""A trainable that holds half of a device's memory, or more than all of it, which ends its trial."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from cs330ray.training.device import device
from cs330ray.trial.contract import Metric, Progress, Scores

METRICS: Mapping[str, Metric] = {"val_loss": Metric("min", 0.0)}
GIB = 1 << 30
NEVER = 1 << 62  # bytes that no machine has


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    wants: str = Field("half", pattern="^(half|all)$", description="of the memory; all: and more")
    eval_every_steps: int = Field(1, ge=1)


def prepare(config: Config) -> str:
    return "none"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    held = _held(config, device())
    yield Progress(steps, {"val_loss": 0.0}, lambda path: _save(path, len(held)))


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    return Scores({})


def _save(path: Path, blocks: int) -> None:
    (path / "blocks").write_text(str(blocks))


def _held(config: Config, where: torch.device) -> list[object]:
    """Hold memory, in blocks of a GiB on CUDA. Raises what the device raises where there is no more."""
    if where.type != "cuda":
        return [bytearray(NEVER if config.wants == "all" else 1)]
    held: list[object] = []
    _, whole = torch.cuda.mem_get_info()
    while config.wants == "all" or len(held) * GIB < whole // 2:
        held.append(torch.empty(GIB, dtype=torch.uint8, device=where))
    return held
