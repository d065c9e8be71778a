"""What the few-shot systems share: which images they learn from, tasks of them, and the scores over these tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cs330ray.course.data.episodes import draw_episodes
from cs330ray.course.data.images import image_classes, images_digest
from cs330ray.course.learners.tasks import Batch, QueryNorm
from cs330ray.training import parallel
from cs330ray.training.device import device, generator
from cs330ray.training.state import ci95, mean
from cs330ray.trial.contract import Item, Metric, Scores

DRAWINGS = 20  # of each character
ACCURACY = Metric("max", 0.0, 1.0)
LOSS = Metric("min", 0.0, unit="nats")

# Fields of a Config; each system gives its own default and has them in its own order.
Drawings = Annotated[int, Field(ge=1, le=DRAWINGS - 1)]
Tasks = Annotated[int, Field(ge=1, le=1024, description="tasks of an outer step")]
EvalEverySteps = Annotated[int, Field(ge=1, description="outer steps from one validation to the next")]
ValTasks = Annotated[int, Field(ge=1, le=10_000, description="tasks of the validation")]
TestTasks = Annotated[int, Field(ge=2, le=100_000, description="tasks of the test")]
TestShots = Annotated[tuple[Drawings, ...], Field(min_length=1, description="support drawings of each class, at test")]
TestQueries = Annotated[Drawings, Field(description="query drawings of each class, at test")]

Score = Callable[[Batch, QueryNorm], Mapping[str, Tensor]]  # tasks -> their scores by name, one value a task (T,)


class Kind(NamedTuple):
    """How many tasks are drawn, and of what kind: classes of each, support and query drawings of each class."""

    tasks: int
    ways: int
    shots: int
    queries: int


class Config(BaseModel):
    """The images that a few-shot system learns from: the first fields of its Config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Literal["omniglot", "glyphs"] = Field("omniglot", description="characters to learn from")
    split: Literal["course", "paper", "lake"] = Field("course", description="which characters train, validate and test")
    data_seed: int = Field(0, ge=0, lt=2**32, description="seed of the split and of the validation and test episodes")


def check_drawings(name: str, shots: int, queries: int) -> None:
    """Raise ValueError where a class has too few drawings for what the field `name` asks."""
    if shots + queries > DRAWINGS:
        raise ValueError(
            f"{name}: a class has {DRAWINGS} drawings, but got {shots} shots + {queries} queries; lower one"
        )


def metrics(family: Mapping[str, Metric]) -> dict[str, Metric]:
    """Describe the metrics of a system that scores each part by `family`, and its test with several shots."""
    return {
        "val_accuracy": ACCURACY,  # that of the queries, by its short name
        **{f"{part}_{name}": metric for part in ("train", "val", "test") for name, metric in family.items()},
        "test_accuracy": ACCURACY,
        "test_accuracy_ci95": Metric("min", 0.0),
        "test_accuracy_support_norm": ACCURACY,
    }


def prepare(config: Config) -> str:
    """Find, verify and pack the images; their digest. Raises DataError, or SpecError where the device is not here."""
    device()
    return images_digest(config.dataset)


def classes(config: Config, part: Literal["train", "val", "test"], where: torch.device) -> Tensor:
    """Read the images of one part: (M, R, H, W), uint8, on the device `where`."""
    return image_classes(config.dataset, config.split, config.data_seed, part).to(where)


def draw(classes_MRHW: Tensor, kind: Kind, stream: torch.Generator) -> Batch:
    """Draw tasks, where the images are."""
    episodes = draw_episodes(classes_MRHW, **kind._asdict(), generator=stream, device=classes_MRHW.device)
    return Batch(episodes.support_TNKCHW, episodes.query_TNQCHW)


def evaluation(config: Config, part: Literal["val", "test"], kind: Kind, where: torch.device) -> Batch:
    """Draw the tasks of validation or test: of the data seed, and so the same for every trial."""
    return draw(classes(config, part, where), kind, generator(part, config.data_seed))


def with_shots(batch: Batch, shots: int) -> Batch:
    """Keep the first support drawings of each class; the same tasks and queries."""
    return replace(batch, support_TNKCHW=batch.support_TNKCHW[:, :, :shots])


def gathered(evaluate: Callable[[Batch], Mapping[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
    """Score this worker's share of the tasks; the scores of all of them."""
    return parallel.gather_scores(evaluate(batch[parallel.share(len(batch))]))


def means(part: str, scores_T: Mapping[str, Tensor]) -> dict[str, float]:
    """Average the scores of a part's tasks; by name, as the metrics of a row."""
    return {f"{part}_{name}": mean(values_T) for name, values_T in scores_T.items()}


def items(accuracy_T: Tensor) -> list[Item]:
    """List the accuracy of each task, for the record."""
    return [Item(unit=str(task), score=score) for task, score in enumerate(accuracy_T.tolist())]


def test_scores(
    score: Score, batch: Batch, *, shots: int, sweep: Sequence[int], query_norm: QueryNorm, accuracy: str
) -> Scores:
    """Score the test: with `shots`, also under the support's statistics, and with each number of shots in the sweep.

    All are of the same tasks and queries. `accuracy` names the score that is the accuracy of the queries.
    """
    trained = with_shots(batch, shots)
    scores_T = score(trained, query_norm)
    accuracies_T = {
        "test_accuracy": scores_T[accuracy],
        "test_accuracy_support_norm": score(trained, "support")[accuracy],
    }
    for some in sweep:
        accuracies_T[f"test_accuracy/shots/{some}"] = score(with_shots(batch, some), query_norm)[accuracy]
    found = means("test", scores_T) | {name: mean(values_T) for name, values_T in accuracies_T.items()}
    found["test_accuracy_ci95"] = ci95(accuracies_T["test_accuracy"])
    return Scores(found, {name: items(values_T) for name, values_T in accuracies_T.items()})
