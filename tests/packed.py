"""A model in a directory, made without a study: as `best --export` would have written it."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cs330ray.export import write
from cs330ray.export.directory import Described
from cs330ray.export.write import Model
from cs330ray.trial import named


def pack(directory: Path, name: str, values: Mapping[str, Any], *, steps: int = 1, seed: int = 5) -> Path:
    """Train a trial of the trainable `name` and write its model into `directory`; the directory."""
    trainable: Any = named.load(name)
    config = trainable.Config(**values)
    with TemporaryDirectory() as place:
        for progress in trainable.train(config, seed, steps):
            last = progress
        last.save(Path(place))
        weights = trainable.export(config, seed, Path(place))
    described = Described(
        cs330ray="0.1.0", code=named.code_digest(name), trainable=name, config=config.model_dump(mode="json"),
        seed=seed, steps=last.step, notes=dict(weights.notes),
    )  # fmt: skip
    write.write(directory, Model(described, weights, {}), {}, weights.card)
    return directory
