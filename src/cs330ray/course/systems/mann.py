"""MANN on few-shot images: sequences of labelled images, then new ones of the same classes, CS330 homework 1."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from cs330ray.course.data.episodes import Classes, check_enough
from cs330ray.course.data.images import Part
from cs330ray.course.learners import mann
from cs330ray.course.learners.mann import Batch, Mann
from cs330ray.course.models.classifier import Classifier
from cs330ray.course.systems import fewshot
from cs330ray.course.systems.fewshot import ACCURACY, LOSS, Drawings, Kind
from cs330ray.course.systems.together import Trainee, in_lock_step, moment, trainees
from cs330ray.training import parallel
from cs330ray.training.adam import Adam
from cs330ray.training.device import device, generator
from cs330ray.training.state import Trained, ci95, load_tensors
from cs330ray.trial.contract import Member, Metric, Moment, Scores, Weights, alone

SPLITS = "tasks"  # among workers
FUSIBLE = frozenset({"lr"})  # in which members that train together may differ
OF_LEAKS = (
    "Trained and scored with protocol = leaky: a query may be one of the very drawings that were shown, so its figures "
    "are better than those to expect of new ones"
)


class Config(fewshot.Config):
    """Every hyperparameter of a MANN trial, with its bounds, default and unit."""

    protocol: Literal["clean", "leaky"] = Field(
        "clean",
        description="queries are never of the support, or drawn regardless of it, as some published solutions do, "
        "in training, validation and test alike",
    )
    ways: int = Field(3, ge=2, le=60, description="classes of a task, and its queries")
    shots: Drawings = Field(1, description="support drawings of each class of a task")
    tasks: int = Field(128, ge=1, le=4096, description="tasks of an outer step")
    cell: mann.Cell = Field("lstm", description="how a layer remembers: LSTM, GRU or plain tanh")
    layers: int = Field(1, ge=1, le=8, description="recurrent layers before the last, which is as wide as the classes")
    hidden: int = Field(128, ge=1, le=4096, description="units of each recurrent layer but the last")
    encoder: mann.Encoder = Field("none", description="give the memory pixels, or features of a convolutional net")
    filters: int = Field(16, ge=1, le=512, description="channels of each block of the conv encoder")
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate of Adam")
    eval_every_steps: fewshot.EvalEverySteps = 500
    val_tasks: fewshot.ValTasks = 600
    test_tasks: fewshot.TestTasks = 600

    @property
    def kinds(self) -> Mapping[Part, Kind]:
        """The tasks that each part is asked for."""
        train = Kind(self.tasks, self.ways, self.shots, 1)
        val, test = (train._replace(tasks=tasks) for tasks in (self.val_tasks, self.test_tasks))
        return {"train": train, "val": val, "test": test}

    @property
    def net(self) -> Mann:
        """The net as it trains, validates and tests."""
        return Mann(self.cell, self.layers, self.encoder)


METRICS: Mapping[str, Metric] = {
    **{f"{part}_accuracy": ACCURACY for part in ("train", "val", "test")},
    **{f"{part}_loss": LOSS for part in ("train", "val", "test")},
    "test_accuracy_ci95": Metric("min", 0.0),
}

prepare = fewshot.prepare


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one class in `ways`."""
    return {"val_accuracy": 1 / config.ways}


def train_many(members: Sequence[Member], left: Collection[int] = ()) -> Iterator[Moment]:
    """Train each up to its outer steps; a Progress every `eval_every_steps` and at the end.

    The `train_` metrics of a row are those of its own step's tasks, before the update.
    """
    where, config = device(), members[0].config
    classes, val = fewshot.classes(config, "train", where), _evaluation_batch(config, "val", where)
    for now in in_lock_step(trainees(members, lambda told, seed: _State.fresh(told, seed, where)), left):
        mine = []
        for each in now:
            each.state.step += 1
            batch = _draw(config, classes, config.tasks, each.state.generator)
            mine.append(batch[parallel.share(len(batch))])
        losses_MT, logits_MTNN = _learn(now, mine)
        rows = {}
        for each, losses_T, logits_TNN, batch in zip(now, losses_MT, logits_MTNN, mine, strict=True):
            if each.due and each.failure is None:
                row = fewshot.means("train", _gathered(losses_T, logits_TNN, batch))
                rows[each.place] = row | fewshot.means("val", _score(config, each.state, val))
                each.is_finite(rows[each.place]["val_loss"])
        if found := moment(now, rows):
            yield found


train = alone(train_many)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - the episodes come from data_seed
    """Score the checkpoint on the test characters, under the protocol that it was trained by."""
    state = _State.fresh(config, 0, device()).restored(checkpoint)
    scores_T = _score(config, state, _evaluation_batch(config, "test", state.device))
    metrics = fewshot.means("test", scores_T) | {"test_accuracy_ci95": ci95(scores_T["accuracy"])}
    return Scores(metrics, {"test_accuracy": fewshot.items(scores_T["accuracy"])})


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """The parameters of a checkpoint, and what a card says of them."""
    said = fewshot.said(
        config,
        weights="The net with its memory, as of the last step.",
        limits=[
            f"Tasks have {config.ways} classes, as in training, which had {config.shots} of each to show",
            "Each query is read alone behind the support, so that no answer hangs on other queries; `test_accuracy` is "
            f"of {config.ways} queries read one after another, one of each class",
            *([OF_LEAKS] if config.protocol == "leaky" else []),
        ],
    )
    return Weights(load_tensors(checkpoint), card=said)


def ready(config: Config, exported: Weights) -> Classifier:
    """A classifier that remembers the support. Raises DataError where the tensors are of another net."""
    state = _State.fresh(config, 0, device()).filled(exported.tensors)

    @torch.no_grad()
    def score(support_NKCHW: Tensor, query_BCHW: Tensor) -> Tensor:
        return mann.predict(config.net, state.params, support_NKCHW, query_BCHW)

    return fewshot.classifier(config, score, config.ways, state.device)


@dataclass(kw_only=True)
class _State(Trained):
    """A trial at one moment: the net with its memory."""

    params: dict[str, Tensor]

    @classmethod
    def fresh(cls, config: Config, seed: int, where: torch.device) -> Self:
        """Draw the moment before the first step."""
        stream = generator("train", seed)
        drawn = mann.init(
            config.net,
            hidden=config.hidden,
            ways=config.ways,
            filters=config.filters,
            generator=stream,
            side=config.size,
            channels=config.channels,
        )
        params = {name: param.to(where).requires_grad_() for name, param in drawn.items()}
        optimizer = Adam(params.values(), lr=config.lr, fused=True)
        return cls(tensors=params, optimizer=optimizer, generator=stream, params=params)


def _learn(now: Sequence[Trainee[_State]], batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Update the weights of each once, by this worker's share of its tasks; its losses and logits before, (M, T, ...).

    Who diverges is not updated.
    """
    config, params = now[0].config, [each.state.params for each in now]
    logits_MTNN = mann.logits_many(config.net, params, batches)
    losses_MT = torch.stack(
        [mann.losses(*each) for each in zip(logits_MTNN, (batch.labels_TN for batch in batches), strict=True)]
    )
    losses = [losses_T.sum() / config.tasks for losses_T in losses_MT]
    well = [one.is_finite(parallel.add(loss.item())) for one, loss in zip(now, losses, strict=True)]
    for each in now:
        each.state.optimizer.zero_grad()
    if len(batches[0]) and any(well):
        torch.autograd.backward([loss for loss, is_well in zip(losses, well, strict=True) if is_well])
    for each in now:
        if each.failure is None:
            parallel.add_gradients(each.state.params.values())
            each.state.optimizer.step()
    return losses_MT, logits_MTNN


def _draw(config: Config, classes: Classes, tasks: int, stream: torch.Generator) -> Batch:
    """Draw tasks as sequences; leaky ones have a query that is of the support with a chance of shots / images."""
    ways, shots, images_ICHW = config.ways, config.shots, classes.images_ICHW
    check_enough(classes, tasks=tasks, ways=ways, shots=shots, queries=1)
    classes_TN = _distinct(tasks, len(classes), ways, stream)
    limits_B = classes.equal_count or classes.counts_M[classes_TN].flatten()
    images_TNS = _distinct(tasks * ways, limits_B, shots + 1, stream).view(tasks, ways, shots + 1)
    if config.protocol == "leaky":
        images_TNS[..., -1] = _below(limits_B, tasks * ways, stream).view(tasks, ways)
    labels_TN = _distinct(tasks, ways, ways, stream)
    images_TNS += classes.firsts_M[classes_TN][..., None]
    images_TNS[..., -1] = images_TNS[..., -1].gather(1, labels_TN)
    images_B = images_TNS.permute(2, 1, 0).flatten().to(images_ICHW.device)
    gathered = images_ICHW.index_select(0, images_B).to(torch.float32).mul_(1 / 255)
    return Batch(gathered.view(-1, tasks, *images_ICHW.shape[1:]), labels_TN.to(images_ICHW.device))


def _distinct(rows: int, choices: int | Tensor, picks: int, generator: torch.Generator) -> Tensor:
    """Draw distinct numbers below `choices` in each row, every ordered choice equally likely: (rows, picks), int64.

    Each is drawn from as many as are left and then moved up past those that are taken: for a few of many choices
    cheaper than to sort them all. `choices` is one number, or one for each row.
    """
    found: list[Tensor] = []
    for taken in range(picks):
        pick = _below(choices - taken, rows, generator)
        rising = torch.stack(found, dim=1).sort(dim=1).values.unbind(dim=1) if taken > 1 else found
        for earlier in rising:
            pick += pick >= earlier
        found.append(pick)
    return torch.stack(found, dim=1)


def _below(limits: int | Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Draw a number below a limit for each row, int64; limits that differ take another way than torch's own."""
    if isinstance(limits, int):
        return torch.randint(limits, (rows,), generator=generator)
    return (torch.rand(rows, generator=generator, dtype=torch.float64) * limits).long()


def _evaluation_batch(config: Config, part: Literal["val", "test"], where: torch.device) -> Batch:
    classes = fewshot.classes(config, part, where)
    return _draw(config, classes, config.kinds[part].tasks, generator(part, config.data_seed))


@torch.no_grad()
def _score(config: Config, state: _State, batch: Batch) -> dict[str, Tensor]:
    mine = batch[parallel.share(len(batch))]
    logits_TNN = mann.logits(config.net, state.params, mine)
    return _gathered(mann.losses(logits_TNN, mine.labels_TN), logits_TNN, mine)


def _gathered(losses_T: Tensor, logits_TNN: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The scores of all workers' tasks, one value a task (T,), given what `batch`, this worker's share, has."""
    return parallel.gather_scores({"loss": losses_T, "accuracy": mann.accuracies(logits_TNN, batch.labels_TN)})
