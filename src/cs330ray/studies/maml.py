"""MAML on few-shot images: episodes of hand-drawn or printed characters, CS330 homework 2."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from cs330ray.data import image_classes, images_digest
from cs330ray.data.episodes import draw_episodes
from cs330ray.learners import conv4, maml
from cs330ray.learners.maml import Batch, Maml
from cs330ray.trial import Item, Metric, Progress, Scores, finite

DRAWINGS = 20  # of each character
Shots = Annotated[int, Field(ge=1, le=DRAWINGS - 1)]


class Config(BaseModel):
    """Every hyperparameter of a MAML trial, with its bounds, default and unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Literal["omniglot", "glyphs"] = Field("omniglot", description="characters to learn from")
    split: Literal["course", "paper", "lake"] = Field("course", description="which characters train, validate and test")
    data_seed: int = Field(0, ge=0, lt=2**32, description="seed of the split and of the validation and test episodes")
    ways: int = Field(5, ge=2, le=60, description="classes of a task")
    shots: Shots = Field(1, description="support drawings of each class of a task")
    queries: int = Field(15, ge=1, le=DRAWINGS - 1, description="query drawings of each class of a task")
    tasks: int = Field(16, ge=1, le=1024, description="tasks of an outer step")
    body: conv4.Body = Field("course", description="Conv-4 without pooling and a mean over space, or with and flattened")
    filters: int = Field(32, ge=1, le=512, description="channels of each block")
    inner_lr: float = Field(0.4, gt=0, le=10, description="learning rate of the inner loop (the paper's alpha), or its start")
    inner_steps: int = Field(1, ge=1, le=100, description="gradient steps of the inner loop")
    learn_inner_lrs: maml.LearnInnerLrs = Field("none", description="learn an inner rate per tensor, or per tensor and step")
    first_order: bool = Field(False, description="take the inner gradients for constants (first-order MAML)")
    outer_lr: float = Field(1e-3, gt=0, le=1, description="learning rate of the outer Adam (the paper's beta)")
    query_norm: maml.QueryNorm = Field("query", description="whose batch statistics normalise the queries")
    eval_every_steps: int = Field(50, ge=1, description="outer steps from one validation to the next")
    eval_inner_steps: int | None = Field(None, ge=1, le=1000, description="inner steps of validation and test; as in training")
    val_tasks: int = Field(100, ge=1, le=10_000, description="tasks of the validation")
    test_tasks: int = Field(600, ge=2, le=100_000, description="tasks of the test")
    test_shots: tuple[Shots, ...] = Field((1, 2, 4, 6, 8, 10), min_length=1, description="support drawings of each class, at test")
    test_queries: int = Field(10, ge=1, le=DRAWINGS - 1, description="query drawings of each class, at test")

    @model_validator(mode="after")
    def _drawings_suffice(self) -> Self:
        for shots, queries in (("shots", self.queries), ("test_shots", self.test_queries)):
            most = self.shots if shots == "shots" else max(self.shots, *self.test_shots)
            if most + queries > DRAWINGS:
                raise ValueError(f"{shots}: a class has {DRAWINGS} drawings, but got {most} shots + {queries} queries; lower one")
        return self

    @property
    def training(self) -> Maml:
        """The algorithm as it trains."""
        return Maml(self.body, self.inner_steps, self.first_order, self.query_norm)

    @property
    def evaluation(self) -> Maml:
        """The algorithm as it validates and tests."""
        return replace(self.training, inner_steps=self.eval_inner_steps or self.inner_steps)


_ACCURACY = Metric("max", 0.0, 1.0)
_FAMILY = {
    "loss": Metric("min", 0.0, unit="nats"),
    "pre_adapt_support_accuracy": _ACCURACY,
    "post_adapt_support_accuracy": _ACCURACY,
    "post_adapt_query_accuracy": _ACCURACY,
}
METRICS: Mapping[str, Metric] = {
    "val_accuracy": _ACCURACY,  # val_post_adapt_query_accuracy, by its short name
    **{f"{part}_{name}": metric for part in ("train", "val", "test") for name, metric in _FAMILY.items()},
    "test_accuracy": _ACCURACY,
    "test_accuracy_ci95": Metric("min", 0.0),
    "test_accuracy_support_norm": _ACCURACY,
}


def prepare(config: Config) -> str:
    """Find, verify and pack the images; their digest."""
    return images_digest(config.dataset)


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train up to `steps` outer steps; a Progress every `eval_every_steps` and at the end.

    The `train_` metrics of a row are those of its step's own tasks before the update.
    """
    device = _device()
    state = _State.fresh(config, seed, device)
    if resume is not None:
        state.load(resume)
    classes_MRHW = image_classes(config.dataset, config.split, config.data_seed, "train").to(device)
    val = _validation(config, device)
    while state.step < steps:
        state.step += 1
        batch = _draw(config, classes_MRHW, state.generator, device)
        due = state.step % config.eval_every_steps == 0 or state.step == steps
        row = _measure("train", config.training, state, batch) if due else {}
        state.optimizer.zero_grad()
        finite(maml.outer_backward(config.training, state.params, state.inner_lrs, batch), state.step)
        state.optimizer.step()
        if due:
            row |= _measure("val", config.evaluation, state, val)
            finite(row["val_loss"], state.step)
            yield Progress(state.step, row | {"val_accuracy": row["val_post_adapt_query_accuracy"]}, state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    """Score the checkpoint on the test characters, with each number of shots on the same tasks and queries."""
    device = _device()
    state = _State.fresh(config, seed, device)
    state.load(checkpoint)
    batch = _test_batch(config, device)
    evaluation = config.evaluation
    found = _scores_T(evaluation, state, batch[:, : config.shots])
    accuracies_T = {"test_accuracy": found["post_adapt_query_accuracy"]}
    for shots in config.test_shots:
        scores_T = _scores_T(evaluation, state, _with_shots(batch, shots))
        accuracies_T[f"test_accuracy/shots/{shots}"] = scores_T["post_adapt_query_accuracy"]
