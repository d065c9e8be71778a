"""The noisy trainable with a model: it can be exported and made ready again."""

from pathlib import Path
from typing import Any

import torch

from cs330ray.errors import DataError
from cs330ray.trial.contract import Weights
from tests.noisy import METRICS, Config, luck, prepare, test, train

__all__ = ["METRICS", "Config", "export", "luck", "prepare", "ready", "test", "train"]


def export(config: Config, seed: int, checkpoint: Path) -> Weights:
    return Weights({"quality": torch.tensor([config.quality, float(seed % 1000)])}, {"seed": seed})


def ready(config: Config, exported: Weights) -> Any:
    if set(exported.tensors) != {"quality"} or exported.tensors["quality"].shape != (2,):
        raise DataError("tensors: `quality` of two numbers is needed; export the model anew")
    return config.quality, exported.notes["seed"]
