"""A trainable whose cells can differ in nothing: `salt` changes the stream of random numbers and nothing else.

A softmax regression of ten classes in twenty dimensions, trained by SGD on a hundred examples that the seed draws.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cs330ray.trial.contract import Metric, Progress, Scores

CLASSES, DIMENSIONS, EXAMPLES, SCORED, BATCH = 10, 20, 100, 200, 10
METRICS: Mapping[str, Metric] = {f"{part}_accuracy": Metric("max", 0.0, 1.0) for part in ("val", "test")}


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float = Field(0.1, gt=0)
    salt: int = Field(0, ge=0, description="another stream of random numbers")
    eval_every_steps: int = Field(20, ge=1)


def prepare(config: Config) -> str:
    return "drawn"


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    inputs, labels = drawn(EXAMPLES, [seed, config.salt])
    begin, weights = 0, np.zeros((DIMENSIONS, CLASSES))
    if resume is not None:
        begin, weights = loaded(resume)
    scored = drawn(SCORED, [0])
    for step in range(begin + 1, steps + 1):
        batch = np.random.default_rng([seed, config.salt, step]).integers(EXAMPLES, size=BATCH)
        logits = inputs[batch] @ weights
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(BATCH), labels[batch]] -= 1
        weights = weights - config.rate * inputs[batch].T @ shares / BATCH
        if step % config.eval_every_steps == 0 or step == steps:
            now = weights
            yield Progress(
                step,
                {"val_accuracy": accuracy(now, *scored)},
                lambda path, step=step, now=now: np.savez(path / "state.npz", step=step, weights=now),
            )


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    _, weights = loaded(checkpoint)
    return Scores({"test_accuracy": accuracy(weights, *drawn(SCORED, [1]))})


def drawn(count: int, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples of the one task: inputs (count, DIMENSIONS) and labels (count,)."""
    centres = np.random.default_rng(7).normal(size=(CLASSES, DIMENSIONS)) * 0.8
    rng = np.random.default_rng([2, *seed])
    labels = rng.integers(CLASSES, size=count)
    return centres[labels] + rng.normal(size=(count, DIMENSIONS)), labels


def accuracy(weights: np.ndarray, inputs: np.ndarray, labels: np.ndarray) -> float:
    return float(((inputs @ weights).argmax(axis=1) == labels).mean())


def loaded(checkpoint: Path) -> tuple[int, np.ndarray]:
    with np.load(checkpoint / "state.npz") as held:
        return int(held["step"]), held["weights"]
