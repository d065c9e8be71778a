"""A trial is a generator: the contract of every trainable. `trial.run` holds one to it.

A trainable is a module with `Config`, `METRICS`, `prepare`, `train` and `test`. None knows Ray, Optuna or MLflow.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from cs330ray.errors import Diverged


@dataclass(frozen=True)
class Metric:
    """What a trainable reports under one name: which way is better, within which bounds, in which unit."""

    goal: Literal["max", "min"]
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""


@dataclass(frozen=True)
class Progress:
    """A moment of a trial: what it has reached, and how to keep it."""

    step: int  # outer steps done
    metrics: Mapping[str, float]
    save: Callable[[Path], None] | None  # write this very moment into an empty directory; valid until the next one
    # None for what a process of one's own reports: its checkpoints come as moments without metrics, when they are
    # whole, and while it is silent moments come that are neither


@dataclass(frozen=True)
class Item:
    """One scored item of a test: `unit` names the independent unit it belongs to (task, user, story)."""

    unit: str
    score: float


@dataclass(frozen=True)
class Scores:
    """What a test found: metrics (one may carry an axis, `test_accuracy/shots/4`), and the items behind each."""

    metrics: Mapping[str, float]
    items: Mapping[str, Sequence[Item]] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """What of a checkpoint makes a model: no optimizer, no generator."""

    tensors: Mapping[str, Any]  # torch's, by name; none where nothing is trained
    notes: Mapping[str, Any] = field(default_factory=dict)  # as JSON has them: what else `ready` needs
    card: str = ""  # Markdown for people: which moment's weights, on what data, how to use the model, its limits


@dataclass(frozen=True)
class Member:
    """One trial among those that train together."""

    config: Any
    seed: int
    steps: int  # outer steps to train
    resume: Path | None = None  # the checkpoint that it goes on from


Moment = Mapping[int, Progress | Exception]  # who of the members, by place, has a row now, or has failed
TrainMany = Callable[[Sequence[Member], Collection[int]], Iterator[Moment]]


def alone(train_many: TrainMany) -> Callable[..., Iterator[Progress]]:
    """Make `train` of `train_many`: it trains one."""

    def train(config: Any, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
        for moment in train_many([Member(config, seed, steps, resume)], ()):
            progress = moment[0]
            if isinstance(progress, Exception):
                raise progress
            yield progress

    train.__doc__ = train_many.__doc__
    return train


class Trainable(Protocol):
    """The module that runs trials of one system.

    One that has `SPLITS` besides, the word for what its workers share out ("tasks"), may run as several processes: each
    runs `train`, or `test`, and takes part through `cs330ray.training.parallel`. All yield at the same steps, hold the
    same state bit for bit and raise Diverged at the same step. Without it a trial takes one worker.

    One that has these two besides may train several trials in one process, as one computation:

        FUSIBLE: frozenset[str]  # fields of Config in which they may differ; seeds and steps always may
        def train_many(members: Sequence[Member], left: Collection[int] = ()) -> Iterator[Moment]

    Who is at a multiple of `eval_every_steps`, or at its end, has a row in the moment; who fails alone has an exception
    there, and is in none after it. Who stands in `left` when the next step begins is dropped. A member's numbers do not
    depend on its company: to the bit on a CPU with one thread, `train` is `train_many` of one.

    One that has these two besides gives models that are ready to use:

        def export(config: Config, seed: int, checkpoint: Path) -> Weights
        def ready(config: Config, exported: Weights) -> Any

    What `export` takes out of a checkpoint, reading no test split, is what `cs330ray best --export` writes. `ready` is
    what `cs330ray.load` calls with what it has read, without the card: it makes the model, runs nothing of what it was
    given, and raises DataError where that is not of this configuration. Without `export` nothing can be written;
    without `ready` what was written cannot be loaded.
    """

    Config: Any  # a pydantic model: every hyperparameter with bounds, default and unit
    METRICS: Mapping[str, Metric]

    def prepare(self, config: Any) -> str:
        """Find, verify and pack the data that `config` needs; its digest. Raises DataError, before any trial starts."""
        ...

    def train(self, config: Any, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
        """Train up to `steps` outer steps, from scratch or from `resume`; a Progress every `eval_every_steps`."""
        ...

    def test(self, config: Any, seed: int, checkpoint: Path) -> Scores:
        """Score the checkpoint on the test split. The only reader of that split."""
        ...


def finite(loss: float, step: int) -> float:
    """The loss itself where it is finite; raises Diverged where it is not."""
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} at step {step}")
    return loss
