"""Several trials that train in lock-step, as one computation: what `train_many` of every system does around a step."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from cs330ray.errors import Diverged
from cs330ray.trial.contract import Member, Progress, finite


class State(Protocol):
    """What a member is at one moment: see `training.state.Trained`."""

    step: int

    def restored(self, checkpoint: Path) -> Self:
        """Become the moment that `save` wrote."""

    def save(self, directory: Path) -> None:
        """Write this moment into an empty directory."""


S = TypeVar("S", bound=State)


@dataclass
class Trainee(Generic[S]):
    """A member under way."""

    place: int  # among the members
    config: Any
    steps: int  # outer steps to train
    state: S
    failure: Diverged | None = None  # what ended it alone
    over: bool = False  # it ended by a rule of its own

    @property
    def due(self) -> bool:
        """Whether it has a row at this step."""
        return bool(self.state.step % self.config.eval_every_steps == 0) or self.state.step == self.steps

    def is_finite(self, loss: float) -> bool:
        """Whether its loss is finite; where it is not, it has diverged, and the others go on."""
        try:
            finite(loss, self.state.step)
        except Diverged as error:
            self.failure = error
        return self.failure is None


def trainees(members: Sequence[Member], fresh: Callable[[Any, int], S]) -> list[Trainee[S]]:
    """Begin each member with what is `fresh` of its configuration and seed, or as its checkpoint has it."""
    states = [
        fresh(each.config, each.seed) if each.resume is None else fresh(each.config, 0).restored(each.resume)
        for each in members
    ]
    return [
        Trainee(place, each.config, each.steps, state)
        for place, (each, state) in enumerate(zip(members, states, strict=True))
    ]


def in_lock_step(begun: Sequence[Trainee[S]], left: Collection[int]) -> Iterator[list[Trainee[S]]]:
    """Give those that train the next step together, until none is left."""

    def goes_on(one: Trainee[S]) -> bool:
        return one.failure is None and not one.over and one.place not in left and one.state.step < one.steps

    while now := [one for one in begun if goes_on(one)]:
        yield now


def moment(now: Sequence[Trainee[S]], rows: Mapping[int, Mapping[str, float]]) -> dict[int, Progress | Exception]:
    """Say who has a row, given the metrics by place, and who has failed."""
    found: dict[int, Progress | Exception] = {}
    for one in now:
        if one.failure is not None:
            found[one.place] = one.failure
        elif one.place in rows:
            found[one.place] = Progress(one.state.step, rows[one.place], one.state.save)
    return found
