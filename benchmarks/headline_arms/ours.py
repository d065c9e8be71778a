"""This project's recommender, for those that run it without the service."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cs330ray.course.systems import multitask


def rows(params: Mapping[str, Any], dataset: str, epochs: int, data: None, *, test: bool) -> Iterator[dict[str, float]]:
    """Train the system, which reads its data itself; after each epoch its validation MSE.

    The last row has the test's too, where it is wanted, for which the system trains once more, on train and val.
    """
    torch.set_num_threads(1)
    seed = params["seed"]
    config = multitask.Config(dataset=dataset, **{name: value for name, value in params.items() if name != "seed"})
    for progress in multitask.train(config, seed, epochs):
        row = {"val_mse": progress.metrics["val_mse_last"]}
        if test and progress.step == epochs:
            with tempfile.TemporaryDirectory() as folder:
                assert progress.save is not None
                progress.save(Path(folder))
                row["test_mse"] = multitask.test(config, seed, Path(folder)).metrics["test_mse_last"]
        yield row
