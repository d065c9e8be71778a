"""Prototypical networks on few-shot images: episodes of characters or of images of one's own, CS330 homework 2."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cs330ray.course.data.episodes import Episodes
from cs330ray.course.data.images import Part
from cs330ray.course.learners import protonet
from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.tasks import Batch, QueryNorm
from cs330ray.course.learners.protonet import ProtoNet
from cs330ray.course.models import card
from cs330ray.course.models.classifier import Classifier
from cs330ray.course.systems import fewshot
from cs330ray.course.systems.fewshot import ACCURACY, LOSS, Drawings, Kind
from cs330ray.training import parallel
from cs330ray.training.adam import Adam
from cs330ray.training.device import device, generator
from cs330ray.training.state import Trained, load_tensors
from cs330ray.trial.contract import Metric, Progress, Scores, Weights, finite

SPLITS = "tasks"  # among workers
Ways = Annotated[int, Field(ge=2, le=60)]


class Config(fewshot.Config):
    """Every hyperparameter of a ProtoNet trial, with its bounds, default and unit.

    Validation and test are of one kind of task, `eval_ways` and so on, whatever kind the training has.
    """

    ways: Ways = Field(5, description="classes of a training task")
    shots: Drawings = Field(1, description="support drawings of each class of a training task")
    queries: Drawings = Field(15, description="query drawings of each class of a training task")
    tasks: fewshot.Tasks = 16
    filters: int = Field(64, ge=1, le=512, description="channels of each block, and features of an image")
    affine: fewshot.Affine = True
    distance: protonet.Distance = Field("squared", description="of a feature to a prototype")
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate of Adam")
    query_norm: QueryNorm = Field("query", description="whose batch statistics normalise the queries")
    eval_every_steps: fewshot.EvalEverySteps = 50
    eval_ways: Ways = Field(5, description="classes of a task, at validation and test")
    eval_shots: Drawings = Field(1, description="support drawings of each class, at validation and in test_accuracy")
    eval_queries: Drawings = Field(15, description="query drawings of each class, at validation")
    val_tasks: fewshot.ValTasks = 100
    test_tasks: fewshot.TestTasks = 600
    test_shots: fewshot.TestShots = (1, 2, 4, 6, 8, 10)
    test_queries: fewshot.TestQueries = 10

    @model_validator(mode="after")
    def _drawings_suffice(self) -> Self:
        self.check_drawings("shots", self.shots, self.queries)
        self.check_drawings("eval_shots", self.eval_shots, self.eval_queries)
        self.check_drawings("test_shots", self.most_test_shots, self.test_queries)
        return self

    @property
    def kinds(self) -> Mapping[Part, Kind]:
        """The tasks that each part is asked for."""
        return {
            "train": Kind(self.tasks, self.ways, self.shots, self.queries),
            "val": Kind(self.val_tasks, self.eval_ways, self.eval_shots, self.eval_queries),
            "test": Kind(self.test_tasks, self.eval_ways, self.most_test_shots, self.test_queries),
        }

    @property
    def most_test_shots(self) -> int:
        """Support drawings of each class that the test needs: those of `test_accuracy` included."""
        return max(self.eval_shots, *self.test_shots)

    @property
    def algorithm(self) -> ProtoNet:
        """The algorithm as it trains, validates and tests."""
        return ProtoNet(self.distance, self.query_norm)


METRICS: Mapping[str, Metric] = fewshot.metrics(
    {"loss": LOSS, "support_accuracy": ACCURACY, "query_accuracy": ACCURACY}
)

prepare = fewshot.prepare


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one class in `eval_ways`."""
    return {"val_accuracy": 1 / config.eval_ways}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train up to `steps` outer steps; a Progress every `eval_every_steps` and at the end.

    The `train_` metrics of a row are those of its own step's tasks, before the update.
    """
    where = device()
    state = _State.fresh(config, 0, where).restored(resume) if resume else _State.fresh(config, seed, where)
    classes, kind = fewshot.classes(config, "train", where), config.kinds["train"]
    val = fewshot.evaluation(config, "val", where)
    while state.step < steps:
        state.step += 1
        batch = fewshot.draw(classes, kind, state.generator)
        scores_T = _learn(config, state, batch)
        if state.step % config.eval_every_steps == 0 or state.step == steps:
            row = fewshot.means("train", parallel.gather_scores(scores_T))
            row |= fewshot.means("val", _scores(config.algorithm, state, val))
            finite(row["val_loss"], state.step)
            yield Progress(state.step, row | {"val_accuracy": row["val_query_accuracy"]}, state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - the episodes come from data_seed
    """Score the checkpoint on the test characters; the same tasks and queries for every number of shots."""
    state = _State.fresh(config, 0, device()).restored(checkpoint)
    return fewshot.test_scores(
        lambda episodes, norm, also: _scores(replace(config.algorithm, query_norm=norm), state, episodes, also),
        fewshot.evaluation(config, "test", state.device),
        shots=config.eval_shots,
        sweep=config.test_shots,
        query_norm=config.query_norm,
        accuracy="query_accuracy",
    )


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """The parameters of a checkpoint, and what a card says of them."""
    said = fewshot.said(
        config,
        weights="The net that embeds images, as of the last step.",
        limits=[
            f"Any number of classes; it was trained on tasks of {config.ways} with {config.shots} of each to show, "
            f"and its figures are of {config.eval_ways}",
            card.SUPPORT_NORM,
        ],
    )
    return Weights(load_tensors(checkpoint), card=said)


def ready(config: Config, exported: Weights) -> Classifier:
    """A classifier by the nearest prototype. Raises DataError where the tensors are of another net."""
    state = _State.fresh(config, 0, device()).filled(exported.tensors)
    algorithm = replace(config.algorithm, query_norm="support")

    def score(support_NKCHW: Tensor, query_BCHW: Tensor) -> Tensor:
        return protonet.predict(algorithm, state.params, Batch(support_NKCHW[None], query_BCHW[None, None]))[0]

    return fewshot.classifier(config, score, None, state.device)


@dataclass(kw_only=True)
class _State(Trained):
    """A trial at one moment: the net that embeds images."""

    params: dict[str, Tensor]

    @classmethod
    def fresh(cls, config: Config, seed: int, where: torch.device) -> Self:
        """Draw the moment before the first step."""
        stream = generator("train", seed)
        drawn = conv4.init(
            "pooled",
            filters=config.filters,
            ways=None,
            generator=stream,
            affine=config.affine,
            side=config.size,
            channels=config.channels,
        )
        params = {name: param.to(where).requires_grad_() for name, param in drawn.items()}
        return cls(
            tensors={f"param/{name}": param for name, param in params.items()},
            optimizer=Adam(params.values(), lr=config.lr),
            generator=stream,
            params=params,
        )


def _learn(config: Config, state: _State, batch: Batch) -> dict[str, Tensor]:
    """Update the weights once; the scores of this worker's tasks before that. Raises Diverged."""
    mine = batch[parallel.share(len(batch))]
    state.optimizer.zero_grad()
    scores_T = protonet.backward(config.algorithm, state.params, mine, of=len(batch))
    loss = scores_T["loss"].sum().item() / len(batch) if scores_T else 0.0
    finite(parallel.add(loss), state.step)
    parallel.add_gradients(state.params.values())
    state.optimizer.step()
    return scores_T


def _scores(
    algorithm: ProtoNet, state: _State, episodes: Episodes, also: Sequence[QueryNorm] = ()
) -> dict[str, Tensor]:
    return fewshot.gathered(lambda mine: protonet.evaluate(algorithm, state.params, mine, also=also), episodes)
