"""Prototypical networks on few-shot images: episodes of hand-drawn or printed characters, CS330 homework 2."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from cs330ray import parallel, runtime
from cs330ray.data import image_classes, images_digest
from cs330ray.data.episodes import draw_episodes
from cs330ray.learners import conv4, protonet
from cs330ray.learners.maml import Batch, QueryNorm
from cs330ray.learners.protonet import ProtoNet
from cs330ray.models import card
from cs330ray.models.classifier import Classifier
from cs330ray.trial import Item, Metric, Progress, Scores, Weights, finite

DRAWINGS = 20  # of each character
SPLITS = "tasks"  # among workers
Ways = Annotated[int, Field(ge=2, le=60)]
Drawings = Annotated[int, Field(ge=1, le=DRAWINGS - 1)]


class Config(BaseModel):
    """Every hyperparameter of a ProtoNet trial, with its bounds, default and unit.

    Validation and test are of one kind of task, `eval_ways` and so on, whatever kind the training has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Literal["omniglot", "glyphs"] = Field("omniglot", description="characters to learn from")
    split: Literal["course", "paper", "lake"] = Field("course", description="which characters train, validate and test")
    data_seed: int = Field(0, ge=0, lt=2**32, description="seed of the split and of the validation and test episodes")
    ways: Ways = Field(5, description="classes of a training task")
    shots: Drawings = Field(1, description="support drawings of each class of a training task")
    queries: Drawings = Field(15, description="query drawings of each class of a training task")
    tasks: int = Field(16, ge=1, le=1024, description="tasks of an outer step")
    filters: int = Field(64, ge=1, le=512, description="channels of each block, and features of an image")
    distance: protonet.Distance = Field("squared", description="of a feature to a prototype")
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate of Adam")
    query_norm: QueryNorm = Field("query", description="whose batch statistics normalise the queries")
    eval_every_steps: int = Field(50, ge=1, description="outer steps from one validation to the next")
    eval_ways: Ways = Field(5, description="classes of a task, at validation and test")
    eval_shots: Drawings = Field(1, description="support drawings of each class, at validation and in test_accuracy")
    eval_queries: Drawings = Field(15, description="query drawings of each class, at validation")
    val_tasks: int = Field(100, ge=1, le=10_000, description="tasks of the validation")
    test_tasks: int = Field(600, ge=2, le=100_000, description="tasks of the test")
    test_shots: tuple[Drawings, ...] = Field(
        (1, 2, 4, 6, 8, 10), min_length=1, description="support drawings of each class, at test"
    )
    test_queries: Drawings = Field(10, description="query drawings of each class, at test")

    @model_validator(mode="after")
    def _drawings_suffice(self) -> Self:
        for name, most, queries in (
            ("shots", self.shots, self.queries),
            ("eval_shots", self.eval_shots, self.eval_queries),
            ("test_shots", self.most_test_shots, self.test_queries),
        ):
            if most + queries > DRAWINGS:
                raise ValueError(
                    f"{name}: a class has {DRAWINGS} drawings, but got {most} shots + {queries} queries; lower one"
                )
        return self

    @property
    def most_test_shots(self) -> int:
        """Support drawings of each class that the test needs: those of `test_accuracy` included."""
        return max(self.eval_shots, *self.test_shots)

    @property
    def algorithm(self) -> ProtoNet:
        """The algorithm as it trains, validates and tests."""
        return ProtoNet(self.distance, self.query_norm)


_ACCURACY = Metric("max", 0.0, 1.0)
_FAMILY = {
    "loss": Metric("min", 0.0, unit="nats"),
    "support_accuracy": _ACCURACY,
    "query_accuracy": _ACCURACY,
}
METRICS: Mapping[str, Metric] = {
    "val_accuracy": _ACCURACY,  # val_query_accuracy, by its short name
    **{f"{part}_{name}": metric for part in ("train", "val", "test") for name, metric in _FAMILY.items()},
    "test_accuracy": _ACCURACY,
    "test_accuracy_ci95": Metric("min", 0.0),
    "test_accuracy_support_norm": _ACCURACY,
}


def prepare(config: Config) -> str:
    """Find, verify and pack the images; their digest. Raises DataError, or SpecError where the device is not here."""
    runtime.device()
    return images_digest(config.dataset)


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one class in `eval_ways`."""
    return {"val_accuracy": 1 / config.eval_ways}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train up to `steps` outer steps; a Progress every `eval_every_steps` and at the end.

    The `train_` metrics of a row are those of its own step's tasks, before the update.
    """
    device = runtime.device()
    state = _State.load(resume, config, device) if resume else _State.fresh(config, seed, device)
    classes_MRHW = image_classes(config.dataset, config.split, config.data_seed, "train").to(device)
    val = _validation(config, device)
    while state.step < steps:
        state.step += 1
        batch = _draw(classes_MRHW, config.tasks, config.ways, config.shots, config.queries, generator=state.generator)
        scores_T = _learn(config, state, batch)
        if state.step % config.eval_every_steps == 0 or state.step == steps:
            row = _means("train", parallel.gather_scores(scores_T))
            row |= _means("val", _scores(config.algorithm, state, val))
            finite(row["val_loss"], state.step)
            yield Progress(state.step, row | {"val_accuracy": row["val_query_accuracy"]}, state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - the episodes come from data_seed
    """Score the checkpoint on the test characters; the same tasks and queries for every number of shots."""
    state = _State.load(checkpoint, config, runtime.device())
    batch = _test_batch(config, state.device)
    one = _with_shots(batch, config.eval_shots)
    scores_T = _scores(config.algorithm, state, one)
    by_support_T = _scores(replace(config.algorithm, query_norm="support"), state, one)
    accuracies_T = {
        "test_accuracy": scores_T["query_accuracy"],
        "test_accuracy_support_norm": by_support_T["query_accuracy"],
    }
    for shots in config.test_shots:
        swept_T = _scores(config.algorithm, state, _with_shots(batch, shots))
        accuracies_T[f"test_accuracy/shots/{shots}"] = swept_T["query_accuracy"]
    metrics = _means("test", scores_T) | {name: runtime.mean(values_T) for name, values_T in accuracies_T.items()}
    metrics["test_accuracy_ci95"] = runtime.ci95(accuracies_T["test_accuracy"])
    return Scores(metrics, {name: _items(values_T) for name, values_T in accuracies_T.items()})


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """The parameters of a checkpoint, and what a card says of them."""
    said = card.sections(
        weights="The net that embeds drawings, as of the last step.",
        dataset=config.dataset,
        use=card.CLASSIFY,
        limits=[
            f"Any number of classes; it was trained on tasks of {config.ways} with {config.shots} of each to show, "
            f"and its figures are of {config.eval_ways}",
            card.SUPPORT_NORM,
            *card.OF_DRAWINGS,
        ],
    )
    return Weights(runtime.load_tensors(checkpoint), card=said)


def ready(config: Config, exported: Weights) -> Classifier:
    """A classifier by the nearest prototype. Raises DataError where the tensors are of another net."""
    state = _State.fresh(config, 0, runtime.device())
    runtime.fill(state._tensors, exported.tensors)
    algorithm = replace(config.algorithm, query_norm="support")

    def score(support_NKCHW: Tensor, query_BCHW: Tensor) -> Tensor:
        return protonet.predict(algorithm, state.params, Batch(support_NKCHW[None], query_BCHW[None, None]))[0]

    return Classifier(score, None, state.device)


@dataclass
class _State:
    """All that a trial is at one moment, and what its checkpoint holds, to the bit."""

    step: int
    params: dict[str, Tensor]
    optimizer: torch.optim.Adam
    generator: torch.Generator  # of the episodes

    @classmethod
    def fresh(cls, config: Config, seed: int, device: torch.device) -> Self:
        generator = runtime.generator("train", seed)
        drawn = conv4.init("pooled", filters=config.filters, ways=None, generator=generator)
        params = {name: param.to(device).requires_grad_() for name, param in drawn.items()}
        return cls(0, params, torch.optim.Adam(params.values(), lr=config.lr), generator)

    @classmethod
    def load(cls, checkpoint: Path, config: Config, device: torch.device) -> Self:
        state = cls.fresh(config, 0, device)
        notes = runtime.load_state(
            checkpoint, tensors=state._tensors, optimizer=state.optimizer, generator=state.generator
        )
        state.step = notes["step"]
        return state

    def save(self, directory: Path) -> None:
        runtime.save_state(
            directory,
            tensors=self._tensors,
            optimizer=self.optimizer,
            generator=self.generator,
            notes={"step": self.step},
        )

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {f"param/{name}": param for name, param in self.params.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device


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


def _draw(
    classes_MRHW: Tensor, tasks: int, ways: int, shots: int, queries: int, *, generator: torch.Generator
) -> Batch:
    episodes = draw_episodes(
        classes_MRHW,
        tasks=tasks,
        ways=ways,
        shots=shots,
        queries=queries,
        generator=generator,
        device=classes_MRHW.device,
    )
    return Batch(episodes.support_TNKCHW, episodes.query_TNQCHW)


def _validation(config: Config, device: torch.device) -> Batch:
    classes_MRHW = image_classes(config.dataset, config.split, config.data_seed, "val").to(device)
    generator = runtime.generator("val", config.data_seed)
    kind = config.val_tasks, config.eval_ways, config.eval_shots, config.eval_queries
    return _draw(classes_MRHW, *kind, generator=generator)


def _test_batch(config: Config, device: torch.device) -> Batch:
    classes_MRHW = image_classes(config.dataset, config.split, config.data_seed, "test").to(device)
    generator = runtime.generator("test", config.data_seed)
    kind = config.test_tasks, config.eval_ways, config.most_test_shots, config.test_queries
    return _draw(classes_MRHW, *kind, generator=generator)


def _with_shots(batch: Batch, shots: int) -> Batch:
    return replace(batch, support_TNKCHW=batch.support_TNKCHW[:, :, :shots])


def _scores(algorithm: ProtoNet, state: _State, batch: Batch) -> dict[str, Tensor]:
    mine = batch[parallel.share(len(batch))]
    return parallel.gather_scores(protonet.evaluate(algorithm, state.params, mine))


def _means(part: str, scores_T: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"{part}_{name}": runtime.mean(values_T) for name, values_T in scores_T.items()}


def _items(accuracy_T: Tensor) -> list[Item]:
    return [Item(unit=str(task), score=score) for task, score in enumerate(accuracy_T.tolist())]


if __name__ == "__main__":  # pragma: no cover
    from cs330ray.cli import study_main

    study_main("protonet")
