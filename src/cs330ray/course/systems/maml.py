"""MAML on few-shot images: episodes of characters or of images of one's own, CS330 homework 2."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cs330ray.course.data.episodes import Episodes
from cs330ray.course.data.images import Part
from cs330ray.course.learners import maml
from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.tasks import Batch, QueryNorm
from cs330ray.course.learners.maml import Maml
from cs330ray.course.models import card
from cs330ray.course.models.classifier import Classifier
from cs330ray.course.systems import fewshot
from cs330ray.course.systems.fewshot import ACCURACY, LOSS, Drawings, Kind
from cs330ray.course.systems.together import Trainee, in_lock_step, moment, trainees
from cs330ray.training import parallel
from cs330ray.training.adam import Adam
from cs330ray.training.device import device, generator
from cs330ray.training.state import Trained, load_tensors
from cs330ray.trial.contract import Member, Metric, Moment, Scores, Weights, alone

SPLITS = "tasks"  # among workers
FUSIBLE = frozenset({"inner_lr", "outer_lr"})  # in which members that train together may differ


class Config(fewshot.Config):
    """Every hyperparameter of a MAML trial, with its bounds, default and unit."""

    ways: int = Field(5, ge=2, le=60, description="classes of a task")
    shots: Drawings = Field(1, description="support drawings of each class of a task")
    queries: Drawings = Field(15, description="query drawings of each class of a task")
    tasks: fewshot.Tasks = 16
    body: conv4.Body = Field(
        "course", description="Conv-4 without pooling and a mean over space, or with and flattened"
    )
    filters: int = Field(32, ge=1, le=512, description="channels of each block")
    affine: fewshot.Affine = True
    inner_lr: float = Field(
        0.4, gt=0, le=10, description="learning rate of the inner loop (the paper's alpha), or its start"
    )
    inner_steps: int = Field(1, ge=1, le=100, description="gradient steps of the inner loop")
    learn_inner_lrs: maml.LearnInnerLrs = Field(
        "none", description="learn an inner rate per tensor, or per tensor and step"
    )
    first_order: bool = Field(False, description="take the inner gradients for constants (first-order MAML)")
    outer_lr: float = Field(1e-3, gt=0, le=1, description="learning rate of the outer Adam (the paper's beta)")
    query_norm: QueryNorm = Field("query", description="whose batch statistics normalise the queries")
    eval_every_steps: fewshot.EvalEverySteps = 50
    eval_inner_steps: int | None = Field(
        None, ge=1, le=1000, description="inner steps of validation and test; as in training"
    )
    val_tasks: fewshot.ValTasks = 100
    test_tasks: fewshot.TestTasks = 600
    test_shots: fewshot.TestShots = (1, 2, 4, 6, 8, 10)
    test_queries: fewshot.TestQueries = 10

    @model_validator(mode="after")
    def _drawings_suffice(self) -> Self:
        self.check_drawings("shots", self.shots, self.queries)
        self.check_drawings("test_shots", self.most_test_shots, self.test_queries)
        return self

    @property
    def kinds(self) -> Mapping[Part, Kind]:
        """The tasks that each part is asked for."""
        return {
            "train": Kind(self.tasks, self.ways, self.shots, self.queries),
            "val": Kind(self.val_tasks, self.ways, self.shots, self.queries),
            "test": Kind(self.test_tasks, self.ways, self.most_test_shots, self.test_queries),
        }

    @property
    def most_test_shots(self) -> int:
        """Support drawings of each class that the test needs: those of `test_accuracy` included."""
        return max(self.shots, *self.test_shots)

    @property
    def training(self) -> Maml:
        """The algorithm as it trains."""
        return Maml(self.body, self.inner_steps, self.first_order, self.query_norm)

    @property
    def evaluation(self) -> Maml:
        """The algorithm as it validates and tests."""
        return replace(self.training, inner_steps=self.eval_inner_steps or self.inner_steps)


METRICS: Mapping[str, Metric] = fewshot.metrics(
    {
        "loss": LOSS,
        "pre_adapt_support_accuracy": ACCURACY,
        "post_adapt_support_accuracy": ACCURACY,
        "post_adapt_query_accuracy": ACCURACY,
    }
)

prepare = fewshot.prepare


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one class in `ways`."""
    return {"val_accuracy": 1 / config.ways}


def train_many(members: Sequence[Member], left: Collection[int] = ()) -> Iterator[Moment]:
    """Train each up to its outer steps; a Progress every `eval_every_steps` and at the end.

    The `train_` metrics of a row are those of its own step's tasks, before the update.
    """
    where, config = device(), members[0].config
    classes, kind = fewshot.classes(config, "train", where), config.kinds["train"]
    val = fewshot.evaluation(config, "val", where)
    for now in in_lock_step(trainees(members, lambda told, seed: _State.fresh(told, seed, where)), left):
        batches = []
        for each in now:
            each.state.step += 1
            batches.append(fewshot.draw(classes, kind, each.state.generator))
        rows = {
            each.place: fewshot.means("train", _scores(each.config.training, each.state, batch))
            for each, batch in zip(now, batches, strict=True)
            if each.due
        }
        _learn(now, batches)
        for each in now:
            if each.place in rows and each.failure is None:
                row = rows[each.place] | fewshot.means("val", _scores(config.evaluation, each.state, val))
                if each.is_finite(row["val_loss"]):
                    rows[each.place] = row | {"val_accuracy": row["val_post_adapt_query_accuracy"]}
        if found := moment(now, rows):
            yield found


train = alone(train_many)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - the episodes come from data_seed
    """Score the checkpoint on the test characters; the same tasks and queries for every number of shots."""
    state = _State.fresh(config, 0, device()).restored(checkpoint)
    return fewshot.test_scores(
        lambda episodes, norm, also: _scores(replace(config.evaluation, query_norm=norm), state, episodes, also),
        fewshot.evaluation(config, "test", state.device),
        shots=config.shots,
        sweep=config.test_shots,
        query_norm=config.query_norm,
        accuracy="post_adapt_query_accuracy",
    )


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """The parameters and inner rates of a checkpoint, and what a card says of them."""
    said = fewshot.said(
        config,
        weights="The start that the inner loop adapts to each task, and its rates, as of the last step.",
        limits=[
            f"Tasks have {config.ways} classes, as in training, which had {config.shots} of each to show",
            card.SUPPORT_NORM,
        ],
    )
    return Weights(load_tensors(checkpoint), card=said)


def ready(config: Config, exported: Weights) -> Classifier:
    """A classifier that adapts to the support it is shown. Raises DataError where the tensors are of another net."""
    state = _State.fresh(config, 0, device()).filled(exported.tensors)
    algorithm = replace(config.evaluation, query_norm="support")

    def score(support_NKCHW: Tensor, query_BCHW: Tensor) -> Tensor:
        batch = Batch(support_NKCHW[None], query_BCHW[None, None])
        return maml.predict(algorithm, state.params, state.inner_lrs, batch)[0]

    return fewshot.classifier(config, score, config.ways, state.device)


@dataclass(kw_only=True)
class _State(Trained):
    """A trial at one moment: the start of the inner loop, and its rates."""

    params: dict[str, Tensor]
    inner_lrs: dict[str, Tensor]

    @classmethod
    def fresh(cls, config: Config, seed: int, where: torch.device) -> Self:
        """Draw the moment before the first step."""
        stream = generator("train", seed)
        drawn = conv4.init(
            config.body,
            filters=config.filters,
            ways=config.ways,
            generator=stream,
            affine=config.affine,
            side=config.size,
            channels=config.channels,
        )
        params = {name: param.to(where).requires_grad_() for name, param in drawn.items()}
        inner_lrs = maml.init_inner_lrs(params, config.inner_lr, config.learn_inner_lrs, config.inner_steps)
        learned_lrs = [] if config.learn_inner_lrs == "none" else [lr.requires_grad_() for lr in inner_lrs.values()]
        tensors = {f"param/{name}": param for name, param in params.items()}
        return cls(
            tensors=tensors | {f"inner_lr/{name}": inner_lr for name, inner_lr in inner_lrs.items()},
            optimizer=Adam([*params.values(), *learned_lrs], lr=config.outer_lr),
            generator=stream,
            params=params,
            inner_lrs=inner_lrs,
        )


def _learn(now: Sequence[Trainee[_State]], batches: Sequence[Batch]) -> None:
    """Update the weights, and learned rates, of each once; who diverges does not."""
    states, config = [each.state for each in now], now[0].config
    mine = [batch[parallel.share(len(batch))] for batch in batches]
    for state in states:
        state.optimizer.zero_grad()
    params, inner_lrs = [state.params for state in states], [state.inner_lrs for state in states]
    losses = maml.outer_backward_many(config.training, params, inner_lrs, mine, of=config.tasks)
    for each, loss in zip(now, losses, strict=True):
        if each.is_finite(parallel.add(loss)):
            parallel.add_gradients(each.state.optimizer.params)
            each.state.optimizer.step()


def _scores(
    algorithm: Maml, state: _State, tasks: Episodes | Batch, also: Sequence[QueryNorm] = ()
) -> dict[str, Tensor]:
    return fewshot.gathered(
        lambda mine: maml.evaluate(algorithm, state.params, state.inner_lrs, mine, also=also), tasks
    )
