"""MAML on few-shot images: episodes of hand-drawn or printed characters, CS330 homework 2."""

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
from cs330ray.learners import conv4, maml
from cs330ray.learners.maml import Batch, Maml
from cs330ray.models import card
from cs330ray.models.classifier import Classifier
from cs330ray.trial import Item, Metric, Progress, Scores, Weights, finite

DRAWINGS = 20  # of each character
SPLITS = "tasks"  # among workers
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
    body: conv4.Body = Field(
        "course", description="Conv-4 without pooling and a mean over space, or with and flattened"
    )
    filters: int = Field(32, ge=1, le=512, description="channels of each block")
    inner_lr: float = Field(
        0.4, gt=0, le=10, description="learning rate of the inner loop (the paper's alpha), or its start"
    )
    inner_steps: int = Field(1, ge=1, le=100, description="gradient steps of the inner loop")
    learn_inner_lrs: maml.LearnInnerLrs = Field(
        "none", description="learn an inner rate per tensor, or per tensor and step"
    )
    first_order: bool = Field(False, description="take the inner gradients for constants (first-order MAML)")
    outer_lr: float = Field(1e-3, gt=0, le=1, description="learning rate of the outer Adam (the paper's beta)")
    query_norm: maml.QueryNorm = Field("query", description="whose batch statistics normalise the queries")
    eval_every_steps: int = Field(50, ge=1, description="outer steps from one validation to the next")
    eval_inner_steps: int | None = Field(
        None, ge=1, le=1000, description="inner steps of validation and test; as in training"
    )
    val_tasks: int = Field(100, ge=1, le=10_000, description="tasks of the validation")
    test_tasks: int = Field(600, ge=2, le=100_000, description="tasks of the test")
    test_shots: tuple[Shots, ...] = Field(
        (1, 2, 4, 6, 8, 10), min_length=1, description="support drawings of each class, at test"
    )
    test_queries: int = Field(10, ge=1, le=DRAWINGS - 1, description="query drawings of each class, at test")

    @model_validator(mode="after")
    def _drawings_suffice(self) -> Self:
        for shots, queries in (("shots", self.queries), ("test_shots", self.test_queries)):
            most = self.shots if shots == "shots" else max(self.shots, *self.test_shots)
            if most + queries > DRAWINGS:
                raise ValueError(
                    f"{shots}: a class has {DRAWINGS} drawings, but got {most} shots + {queries} queries; lower one"
                )
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
    """Find, verify and pack the images; their digest. Raises DataError, or SpecError where the device is not here."""
    runtime.device()
    return images_digest(config.dataset)


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one class in `ways`."""
    return {"val_accuracy": 1 / config.ways}


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
        due = state.step % config.eval_every_steps == 0 or state.step == steps
        batch = _draw(config, classes_MRHW, config.tasks, config.shots, config.queries, state.generator)
        row = _means("train", _scores(config.training, state, batch)) if due else {}
        _learn(config, state, batch)
        if due:
            row |= _means("val", _scores(config.evaluation, state, val))
            finite(row["val_loss"], state.step)
            yield Progress(state.step, row | {"val_accuracy": row["val_post_adapt_query_accuracy"]}, state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - the episodes come from data_seed
    """Score the checkpoint on the test characters; the same tasks and queries for every number of shots."""
    state = _State.load(checkpoint, config, runtime.device())
    batch = _test_batch(config, state.device)
    trained = _with_shots(batch, config.shots)
    scores_T = _scores(config.evaluation, state, trained)
    by_support_T = _scores(replace(config.evaluation, query_norm="support"), state, trained)
    accuracies_T = {
        "test_accuracy": scores_T["post_adapt_query_accuracy"],
        "test_accuracy_support_norm": by_support_T["post_adapt_query_accuracy"],
    }
    for shots in config.test_shots:
        swept_T = _scores(config.evaluation, state, _with_shots(batch, shots))
        accuracies_T[f"test_accuracy/shots/{shots}"] = swept_T["post_adapt_query_accuracy"]
    metrics = _means("test", scores_T) | {name: runtime.mean(values_T) for name, values_T in accuracies_T.items()}
    metrics["test_accuracy_ci95"] = runtime.ci95(accuracies_T["test_accuracy"])
    return Scores(metrics, {name: _items(values_T) for name, values_T in accuracies_T.items()})


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """The parameters and inner rates of a checkpoint, and what a card says of them."""
    said = card.sections(
        weights="The start that the inner loop adapts to each task, and its rates, as of the last step.",
        dataset=config.dataset,
        use=card.CLASSIFY,
        limits=[
            f"Tasks have {config.ways} classes, as in training, which had {config.shots} of each to show",
            card.SUPPORT_NORM,
            *card.OF_DRAWINGS,
        ],
    )
    return Weights(runtime.load_tensors(checkpoint), card=said)


def ready(config: Config, exported: Weights) -> Classifier:
    """A classifier that adapts to the support it is shown. Raises DataError where the tensors are of another net."""
    state = _State.fresh(config, 0, runtime.device())
    runtime.fill(state._tensors, exported.tensors)
    algorithm = replace(config.evaluation, query_norm="support")

    def score(support_NKCHW: Tensor, query_BCHW: Tensor) -> Tensor:
        batch = Batch(support_NKCHW[None], query_BCHW[None, None])
        return maml.predict(algorithm, state.params, state.inner_lrs, batch)[0]

    return Classifier(score, config.ways, state.device)


@dataclass
class _State:
    """All that a trial is at one moment, and what its checkpoint holds, to the bit."""

    step: int
    params: dict[str, Tensor]
    inner_lrs: dict[str, Tensor]
    optimizer: torch.optim.Adam
    generator: torch.Generator  # of the episodes

    @classmethod
    def fresh(cls, config: Config, seed: int, device: torch.device) -> Self:
        generator = runtime.generator("train", seed)
        drawn = conv4.init(config.body, filters=config.filters, ways=config.ways, generator=generator)
        params = {name: param.to(device).requires_grad_() for name, param in drawn.items()}
        inner_lrs = maml.init_inner_lrs(params, config.inner_lr, config.learn_inner_lrs, config.inner_steps)
        learned_lrs = [] if config.learn_inner_lrs == "none" else [lr.requires_grad_() for lr in inner_lrs.values()]
        optimizer = torch.optim.Adam([*params.values(), *learned_lrs], lr=config.outer_lr)
        return cls(0, params, inner_lrs, optimizer, generator)

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
        inner_lrs = {f"inner_lr/{name}": inner_lr for name, inner_lr in self.inner_lrs.items()}
        return {f"param/{name}": param for name, param in self.params.items()} | inner_lrs

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device


def _learn(config: Config, state: _State, batch: Batch) -> None:
    """Update the weights, and learned rates, once. Raises Diverged."""
    mine = batch[parallel.share(len(batch))]
    state.optimizer.zero_grad()
    loss = maml.outer_backward(config.training, state.params, state.inner_lrs, mine, of=len(batch))
    finite(parallel.add(loss), state.step)
    parallel.add_gradients(state.optimizer.param_groups[0]["params"])
    state.optimizer.step()


def _draw(
    config: Config, classes_MRHW: Tensor, tasks: int, shots: int, queries: int, generator: torch.Generator
) -> Batch:
    episodes = draw_episodes(
        classes_MRHW,
        tasks=tasks,
        ways=config.ways,
        shots=shots,
        queries=queries,
        generator=generator,
        device=classes_MRHW.device,
    )
    return Batch(episodes.support_TNKCHW, episodes.query_TNQCHW)


def _validation(config: Config, device: torch.device) -> Batch:
    classes_MRHW = image_classes(config.dataset, config.split, config.data_seed, "val").to(device)
    generator = runtime.generator("val", config.data_seed)
    return _draw(config, classes_MRHW, config.val_tasks, config.shots, config.queries, generator)


def _test_batch(config: Config, device: torch.device) -> Batch:
    classes_MRHW = image_classes(config.dataset, config.split, config.data_seed, "test").to(device)
    generator = runtime.generator("test", config.data_seed)
    most_shots = max(config.shots, *config.test_shots)
    return _draw(config, classes_MRHW, config.test_tasks, most_shots, config.test_queries, generator)


def _with_shots(batch: Batch, shots: int) -> Batch:
    return replace(batch, support_TNKCHW=batch.support_TNKCHW[:, :, :shots])


def _scores(algorithm: Maml, state: _State, batch: Batch) -> dict[str, Tensor]:
    mine = batch[parallel.share(len(batch))]
    return parallel.gather_scores(maml.evaluate(algorithm, state.params, state.inner_lrs, mine))


def _means(part: str, scores_T: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"{part}_{name}": runtime.mean(values_T) for name, values_T in scores_T.items()}


def _items(accuracy_T: Tensor) -> list[Item]:
    return [Item(unit=str(task), score=score) for task, score in enumerate(accuracy_T.tolist())]


if __name__ == "__main__":  # pragma: no cover
    from cs330ray.cli import study_main

    study_main("maml")
