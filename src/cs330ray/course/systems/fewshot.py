"""What the few-shot systems share: which images they learn from, tasks of them, and the scores over these tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from cs330ray.course.data.episodes import Classes, Episodes, draw_episodes
from cs330ray.course.data.folder.images import Folder, Need
from cs330ray.course.data.images import Part, image_classes, images_digest
from cs330ray.course.data.omniglot import SIDE
from cs330ray.course.learners.fewshot.tasks import CPU_IMAGES_AT_ONCE, Batch, QueryNorm
from cs330ray.course.models import card, drawings
from cs330ray.course.models.classifier import Classifier
from cs330ray.course.models.pictures import Pictures
from cs330ray.training import parallel
from cs330ray.training.device import device, generator
from cs330ray.training.state import ci95, mean
from cs330ray.trial.contract import Item, Metric, Scores

DRAWINGS = 20  # of each character of omniglot and glyphs
OWN = "images"  # the dataset of one's own
ACCURACY = Metric("max", 0.0, 1.0)
LOSS = Metric("min", 0.0, unit="nats")

# Fields of a Config; each system gives its own default and has them in its own order.
Drawings = Annotated[int, Field(ge=1, le=DRAWINGS - 1)]  # of one's own images too
Affine = Annotated[bool, Field(description="batch norm has a learned scale and shift, not only normalises")]
Tasks = Annotated[int, Field(ge=1, le=1024, description="tasks of an outer step")]
EvalEverySteps = Annotated[int, Field(ge=1, description="outer steps from one validation to the next")]
ValTasks = Annotated[int, Field(ge=1, le=10_000, description="tasks of the validation")]
TestTasks = Annotated[int, Field(ge=2, le=100_000, description="tasks of the test")]
TestShots = Annotated[tuple[Drawings, ...], Field(min_length=1, description="support drawings of each class, at test")]
TestQueries = Annotated[Drawings, Field(description="query drawings of each class, at test")]

BYTES_AT_ONCE = 1 << 29  # of images that validation and test hold
Asked = TypeVar("Asked", Episodes, Batch)


class Kind(NamedTuple):
    """How many tasks are drawn, and of what kind: classes of each, support and query drawings of each class."""

    tasks: int
    ways: int
    shots: int
    queries: int


class Config(BaseModel):
    """The images that a few-shot system learns from: the first fields of its Config."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    LATER: ClassVar[frozenset[str]] = frozenset({"data", "size", "channels"})  # than version 0.1.0

    dataset: Literal["omniglot", "glyphs", "images"] = Field(
        "omniglot", description="characters to learn from, or `images`: a folder of your own"
    )
    split: Literal["course", "paper", "lake", "seed", "lists"] = Field(
        "course", description="which classes train, validate and test; of `images`: drawn by data_seed, or listed"
    )
    data_seed: int = Field(0, ge=0, lt=2**32, description="seed of the split and of the validation and test episodes")
    data: str | None = Field(None, min_length=1, description="folder of your own images, with a folder for each class")
    size: int = Field(SIDE, ge=16, le=256, description="pixels of an image's side, to which your own are stretched")
    channels: Literal[1, 3] = Field(1, description="of your own images: 1 grey, 3 in colour")

    @model_validator(mode="after")
    def _fits_the_dataset(self) -> Self:
        own = self.dataset == OWN
        if own and self.data is None:
            raise ValueError(f"data: expected the folder of your images for dataset = {OWN}, got none; name it")
        if own != (self.split in ("seed", "lists")):
            ways = "seed or lists" if own else "course, paper or lake"
            raise ValueError(f"split: expected {ways} for dataset = {self.dataset}, got {self.split}; take one of them")
        given = {"data": (self.data, None), "size": (self.size, SIDE), "channels": (self.channels, 1)}
        for name, (value, theirs) in ({} if own else given).items():
            if value != theirs:
                raise ValueError(
                    f"{name}: expected {theirs or 'none'} for dataset = {self.dataset}, got {value}; leave it out, or "
                    f"take dataset = {OWN}"
                )
        return self

    @property
    def kinds(self) -> Mapping[Part, Kind]:
        """The tasks that each part is asked for."""
        raise NotImplementedError

    @property
    def folder(self) -> Folder | None:
        """The folder of one's own images, if it learns from one."""
        if self.data is None or (self.split != "seed" and self.split != "lists"):
            return None
        return Folder(self.data, self.size, self.channels, self.split, self.data_seed)

    def check_drawings(self, name: str, shots: int, queries: int) -> None:
        """Raise ValueError where a class has too few drawings for what the field `name` asks.

        How many of one's own images a class has is known to `prepare`.
        """
        if self.dataset != OWN and shots + queries > DRAWINGS:
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
    if config.folder is None:
        return images_digest(config.dataset)
    kinds = config.kinds.items()
    return config.folder.prepare({part: Need(kind.ways, kind.shots, kind.queries) for part, kind in kinds})


def classes(config: Config, part: Part, where: torch.device) -> Classes:
    """Read the classes of one part, with their images on the device `where`."""
    if config.folder is not None:
        return config.folder.classes(part).to(where)
    return Classes.equal(image_classes(config.dataset, config.split, config.data_seed, part)).to(where)


def draw(classes: Classes, kind: Kind, stream: torch.Generator) -> Batch:
    """Draw tasks, where the images are."""
    return _batch(_episodes(classes, kind, stream))


def evaluation(config: Config, part: Literal["val", "test"], where: torch.device) -> Episodes:
    """Draw the tasks of validation or test: of the data seed, and so the same for every trial."""
    return _episodes(classes(config, part, where), config.kinds[part], generator(part, config.data_seed))


def batches(tasks: Episodes | Batch) -> Iterator[Batch]:
    """Gather the images of tasks, as many tasks at a time as BYTES_AT_ONCE hold; of no tasks, a batch of none.

    What ProtoNet and MAML compute together on a CPU stays together, so that their scores are the same bit for bit.
    """
    if isinstance(tasks, Batch):
        yield tasks
        return
    together = max(1, CPU_IMAGES_AT_ONCE // tasks.query_TNQ[:1].numel()) if len(tasks) else 1
    at_once = max(1, BYTES_AT_ONCE // (together * tasks.bytes_of_a_task)) * together
    for first in range(0, max(len(tasks), 1), at_once):
        yield _batch(tasks[first : first + at_once])


def gathered(evaluate: Callable[[Batch], Mapping[str, Tensor]], tasks: Episodes | Batch) -> dict[str, Tensor]:
    """Score this worker's share of the tasks; the scores of all of them."""
    rows = [evaluate(batch) for batch in batches(tasks[parallel.share(len(tasks))])]
    return parallel.gather_scores({name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def _episodes(classes: Classes, kind: Kind, stream: torch.Generator) -> Episodes:
    return draw_episodes(classes, **kind._asdict(), generator=stream, device=classes.images_ICHW.device)


def _batch(episodes: Episodes) -> Batch:
    return Batch(episodes.support_TNKCHW, episodes.query_TNQCHW)


def means(part: str, scores_T: Mapping[str, Tensor]) -> dict[str, float]:
    """Average the scores of a part's tasks; by name, as the metrics of a row."""
    return {f"{part}_{name}": mean(values_T) for name, values_T in scores_T.items()}


def items(accuracy_T: Tensor) -> list[Item]:
    """List the accuracy of each task, for the record."""
    return [Item(unit=str(task), score=score) for task, score in enumerate(accuracy_T.tolist())]


def test_scores(
    score: Callable[[Asked, QueryNorm, Sequence[QueryNorm]], Mapping[str, Tensor]],
    tasks: Asked,
    *,
    shots: int,
    sweep: Sequence[int],
    query_norm: QueryNorm,
    accuracy: str,
) -> Scores:
    """Score the test: with `shots`, also under the support's statistics, and with each number of shots in the sweep.

    All are of the same tasks and queries, of which `score` gives one value a task (T,), by name. `accuracy` names the
    one that is the accuracy of the queries; under other statistics that `score` is asked for too, it has their name
    behind a slash. No pass is made twice.
    """
    also: Sequence[QueryNorm] = () if query_norm == "support" else ("support",)
    scores_T = dict(score(tasks.with_shots(shots), query_norm, also))
    support_norm_T = scores_T.pop(f"{accuracy}/support") if also else scores_T[accuracy]
    of_sweep_T = {
        some: scores_T if some == shots else score(tasks.with_shots(some), query_norm, ()) for some in set(sweep)
    }
    accuracies_T = {
        "test_accuracy": scores_T[accuracy],
        "test_accuracy_support_norm": support_norm_T,
        **{f"test_accuracy/shots/{some}": of_sweep_T[some][accuracy] for some in sweep},
    }
    found = means("test", scores_T) | {name: mean(values_T) for name, values_T in accuracies_T.items()}
    found["test_accuracy_ci95"] = ci95(accuracies_T["test_accuracy"])
    return Scores(found, {name: items(values_T) for name, values_T in accuracies_T.items()})


def said(config: Config, *, weights: str, limits: Sequence[str]) -> str:
    """What a card says of a model: which moment's weights, on which images, how it is used, its limits."""
    own = config.dataset == OWN
    of_images = card.of_pictures(config.size, config.channels) if own else card.OF_DRAWINGS
    use = card.CLASSIFY_PICTURES if own else card.CLASSIFY
    return card.sections(weights=weights, dataset=config.dataset, use=use, limits=[*limits, *of_images])


def classifier(
    config: Config, score: Callable[[Tensor, Tensor], Tensor], ways: int | None, where: torch.device
) -> Classifier:
    """Make a classifier that reads images as training did."""
    read = Pictures(config.size, config.channels) if config.dataset == OWN else drawings
    return Classifier(score, ways, where, read)
