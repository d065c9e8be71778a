"""The baseline on few-shot images: a plain classifier of the training classes, then class means of its features."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cs330ray.course.data.episodes import Classes, gathered
from cs330ray.course.data.images import Part
from cs330ray.course.learners import baseline
from cs330ray.course.learners.baseline import Batch
from cs330ray.course.learners.fewshot import tasks
from cs330ray.course.models.classifier import Classifier
from cs330ray.course.systems import fewshot
from cs330ray.course.systems.fewshot import ACCURACY, LOSS, Drawings, Kind
from cs330ray.training import parallel
from cs330ray.training.adam import Adam
from cs330ray.training.device import device, generator
from cs330ray.training.state import Trained, load_tensors
from cs330ray.trial.contract import Metric, Progress, Scores, Weights, finite

SPLITS = "batches"  # among workers, and the tasks of validation and test


class Config(fewshot.Config):
    """Every hyperparameter of a baseline trial, with its bounds, default and unit.

    It trains on images of all training classes; only validation and test have tasks.
    """

    batch: int = Field(128, ge=2, le=8192, description="images of a batch, each training image equally likely")
    batches: int = Field(1, ge=1, le=1024, description="batches of an outer step, each normalised by itself")
    filters: int = Field(64, ge=1, le=512, description="channels of each block, and features of an image")
    affine: fewshot.Affine = True
    classifier: baseline.Classifier = Field(
        "linear", description="what tells the training classes apart: a linear layer, or cosines with a learned scale"
    )
    head: baseline.Head = Field(
        "cosine", description="what tells a task's classes apart: the nearest mean of the support, or its cosine"
    )
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate of Adam")
    eval_every_steps: fewshot.EvalEverySteps = 50
    eval_ways: int = Field(5, ge=2, le=60, description="classes of a task, at validation and test")
    eval_shots: Drawings = Field(1, description="support drawings of each class, at validation and in test_accuracy")
    eval_queries: Drawings = Field(15, description="query drawings of each class, at validation")
    val_tasks: fewshot.ValTasks = 100
    test_tasks: fewshot.TestTasks = 600
    test_shots: fewshot.TestShots = (1, 2, 4, 6, 8, 10)
    test_queries: fewshot.TestQueries = 10

    @model_validator(mode="after")
    def _drawings_suffice(self) -> Self:
        self.check_drawings("eval_shots", self.eval_shots, self.eval_queries)
        self.check_drawings("test_shots", self.most_test_shots, self.test_queries)
        return self

    @property
    def kinds(self) -> Mapping[Part, Kind]:
        """The tasks of validation and test; training needs two classes."""
        return {
            "train": Kind(1, 2, 1, 0),
            "val": Kind(self.val_tasks, self.eval_ways, self.eval_shots, self.eval_queries),
            "test": Kind(self.test_tasks, self.eval_ways, self.most_test_shots, self.test_queries),
        }

    @property
    def most_test_shots(self) -> int:
        """Support images of each class that the test needs: those of `test_accuracy` included."""
        return max(self.eval_shots, *self.test_shots)


METRICS: Mapping[str, Metric] = {
    "val_accuracy": ACCURACY,
    "train_loss": LOSS,  # of the training classes
    "train_accuracy": ACCURACY,
    "test_accuracy": ACCURACY,
    "test_accuracy_ci95": Metric("min", 0.0),
    "test_accuracy_support_norm": ACCURACY,  # the same: all is normalised by running statistics
}

prepare = fewshot.prepare


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one class in `eval_ways`."""
    return {"val_accuracy": 1 / config.eval_ways}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train up to `steps` outer steps; a Progress every `eval_every_steps` and at the end.

    The `train_` metrics of a row are those of its own step's batches, before the update.
    """
    where = device()
    classes = fewshot.classes(config, "train", where)
    state = _State.fresh(config, 0 if resume else seed, len(classes), where)
    state = state.restored(resume) if resume else state
    val = fewshot.evaluation(config, "val", where)
    while state.step < steps:
        state.step += 1
        scores_G = _learn(config, state, _draw(config, classes, state.generator))
        if state.step % config.eval_every_steps == 0 or state.step == steps:
            row = fewshot.means("train", parallel.gather_scores(scores_G))
            row |= fewshot.means("val", fewshot.gathered(lambda mine: _scores(config, state, mine), val))
            yield Progress(state.step, row, state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - the episodes come from data_seed
    """Score the checkpoint on the test classes; the same tasks and queries for every number of shots."""
    state = _State.of(config, checkpoint, device())
    episodes = fewshot.evaluation(config, "test", state.device)
    mine = fewshot.batches(episodes[parallel.share(len(episodes))])
    return fewshot.test_scores(
        lambda z, *_: parallel.gather_scores(baseline.scores(config.head, z)),
        tasks.joined([baseline.embedded(state.params, state.statistics, batch) for batch in mine]),
        shots=config.eval_shots,
        sweep=config.test_shots,
        query_norm="support",
        accuracy="accuracy",
    )


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """The parameters of a checkpoint but for the head of the training classes, and what a card says of them."""
    tensors = {name: tensor for name, tensor in load_tensors(checkpoint).items() if not name.startswith(_HEAD)}
    said = fewshot.said(
        config,
        weights="The net that embeds images, as of the last step, without its classifier of the training classes.",
        limits=[
            f"Any number of classes; its figures are of {config.eval_ways} with {config.eval_shots} of each to show",
            "Images are normalised by the running statistics of training, so that no answer hangs on other images",
        ],
    )
    return Weights(tensors, card=said)


def ready(config: Config, exported: Weights) -> Classifier:
    """A classifier by class means of features. Raises DataError where the tensors are of another net."""
    state = _State.fresh(config, 0, None, device()).filled(exported.tensors)

    @torch.no_grad()
    def score(support_NKCHW: Tensor, query_BCHW: Tensor) -> Tensor:
        z_BD = baseline.features(state.params, state.statistics, query_BCHW)
        z_support_BD = baseline.features(state.params, state.statistics, support_NKCHW.flatten(0, 1))
        return baseline.task_logits(config.head, z_support_BD.view(1, *support_NKCHW.shape[:2], -1), z_BD[None])[0]

    return fewshot.classifier(config, score, None, state.device)


_HEAD = "param/head."


@dataclass(kw_only=True)
class _State(Trained):
    """A trial at one moment: the net that embeds images, its running statistics, its classifier."""

    params: dict[str, Tensor]
    statistics: dict[str, Tensor]

    @classmethod
    def fresh(cls, config: Config, seed: int, classes: int | None, where: torch.device) -> Self:
        """Draw the moment before the first step; without a classifier where `classes` is None."""
        stream = generator("train", seed)
        drawn = baseline.init(
            config.classifier,
            filters=config.filters,
            classes=classes,
            generator=stream,
            affine=config.affine,
            side=config.size,
            channels=config.channels,
        )
        params = {name: param.to(where).requires_grad_() for name, param in drawn.items()}
        statistics = {name: tensor.to(where) for name, tensor in baseline.init_statistics(config.filters).items()}
        tensors = {f"param/{name}": param for name, param in params.items()}
        return cls(
            tensors=tensors | {f"statistics/{name}": tensor for name, tensor in statistics.items()},
            optimizer=Adam(params.values(), lr=config.lr),
            generator=stream,
            params=params,
            statistics=statistics,
        )

    @classmethod
    def of(cls, config: Config, checkpoint: Path, where: torch.device) -> Self:
        """Read a checkpoint, which knows how many classes it was trained on. Raises CheckpointError."""
        head = load_tensors(checkpoint).get(f"{_HEAD}weight")
        return cls.fresh(config, 0, None if head is None else len(head), where).restored(checkpoint)


def _learn(config: Config, state: _State, batch: Batch) -> dict[str, Tensor]:
    """Update weights and running statistics once; the scores of this worker's batches before that. Raises Diverged."""
    mine = batch[parallel.share(len(batch))]
    state.optimizer.zero_grad()
    scores_G, found = baseline.backward(config.classifier, state.params, mine, of=len(batch))
    loss = scores_G["loss"].sum().item() / len(batch) if scores_G else 0.0
    finite(parallel.add(loss), state.step)
    parallel.add_gradients(state.params.values())
    state.optimizer.step()
    baseline.remember(state.statistics, parallel.gather(found))
    return scores_G


def _draw(config: Config, classes: Classes, stream: torch.Generator) -> Batch:
    """Draw batches of images, each image of training equally likely every time."""
    ends_M = classes.counts_M.cumsum(0)
    drawn_GB = torch.randint(int(ends_M[-1]), (config.batches, config.batch), generator=stream)
    labels_GB = torch.searchsorted(ends_M, drawn_GB, right=True)
    images_GB = drawn_GB - (ends_M - classes.counts_M)[labels_GB] + classes.firsts_M[labels_GB]
    where = classes.images_ICHW.device
    return Batch(gathered(classes, images_GB, where), labels_GB.to(where))


def _scores(config: Config, state: _State, batch: tasks.Batch) -> dict[str, Tensor]:
    return baseline.scores(config.head, baseline.embedded(state.params, state.statistics, batch))
