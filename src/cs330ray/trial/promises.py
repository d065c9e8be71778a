"""Every promise of the contract that can be tested in a minute, tested on a trainable of anybody's.

`trial.run` checks rows, checkpoints and scores as it does in a study; what is tested here besides is what a study
cannot see, or records as it is.

`python -P -m cs330ray.trial.promises` is what `cs330ray check` runs in a process of its own: a module may do anything.
"""

import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from cs330ray.checkpoints import local
from cs330ray.errors import Cs330rayError, Diverged
from cs330ray.trial import bounds, declared, named, run
from cs330ray.trial.contract import Progress, Scores, Trainable, Weights
from cs330ray.trial.declared import Promise
from cs330ray.trial.environment import settle
from cs330ray.words import plural, short

SEED = 5
Rows = list[tuple[int, dict[str, float]]]


class _Broken(Exception):  # noqa: N818 - what it is, not what went wrong
    """A promise does not hold."""


class _Untested(Exception):  # noqa: N818 - what it is, not what went wrong
    """A promise cannot be tested, since one before it does not hold."""


@dataclass
class _Tested:
    """A trainable under test, and what the promises so far have shown of it."""

    name: str  # as a study file names it
    values: Mapping[str, Any]  # of the configuration, beside its defaults
    steps: int  # of the longer of two budgets
    folder: Path  # empty, for checkpoints
    trainable: Trainable | None = None
    config: Any = None
    whole: Rows = field(default_factory=list)  # of an unbroken run
    saved: list[local.Checkpoint] = field(default_factory=list)  # of that run, one a row

    # What the promises share ------------------------------------------------------------------------------------------

    def loaded(self) -> Any:
        if self.trainable is None:
            raise _Untested("the module could not be loaded")
        return self.trainable

    def configured(self) -> Any:
        if self.config is None:
            raise _Untested("there is no Config to train with")
        return self.config

    def checkpoint(self) -> Path:
        if not self.saved:
            raise _Untested("there is no checkpoint")
        return self.saved[0].path

    def trained(self) -> Rows:
        if not self.whole:
            raise _Untested("there is no sound run to compare with")
        return self.whole

    def train(
        self, steps: int, begin: local.Checkpoint | None = None, keep: list[local.Checkpoint] | None = None
    ) -> Rows:
        """The rows of a run, each checked; with `keep` a checkpoint of each is written and added to it."""
        trainable, rows = self.loaded(), Rows()
        resume, begin_step = (begin.path, begin.step) if begin is not None else (None, 0)
        moments = run.train(trainable, self.configured(), SEED, steps, resume, begin_step=begin_step)
        while (moment := declared.called(next, moments, None)) is not None:
            rows.append((moment.step, _sound(moment, trainable)))
            if keep is not None:
                save = partial(declared.called, moment.save)
                keep.append(local.write(self.folder / f"of-{steps}", moment.step, save, keep=steps))
        if not rows and begin is None:
            raise _Broken(f"`train` yielded no Progress in {plural(steps, 'step')}; it must yield one at the last step")
        return rows

    def scores(self, checkpoint: Path) -> Scores:
        """What a test found, each mean that of its items."""
        found = declared.called(self.loaded().test, self.configured(), SEED, checkpoint)
        scores: Scores = declared.called(run.scores, found)
        for name, items in scores.items.items():
            if name not in scores.metrics:
                raise _Broken(f"test: items are behind a metric, but there is none named {short(name)}")
            mean = math.fsum(item.score for item in items) / max(len(items), 1)
            if items and not math.isclose(mean, scores.metrics[name], rel_tol=1e-4, abs_tol=1e-6):
                raise _Broken(
                    f"test: the mean of the items behind {name} is {mean:.6g}, but it is {scores.metrics[name]:.6g}"
                )
        return scores

    # The promises, in their order -------------------------------------------------------------------------------------

    def declares(self) -> str:
        self.trainable = named.load(self.name)
        if taken := declared.taken(self.trainable):
            raise _Broken(taken)
        return ""

    def is_strict(self) -> str:
        trainable = self.loaded()
        settings = trainable.Config.model_config
        if settings.get("extra") != "forbid" or not settings.get("frozen"):
            raise _Broken('write model_config = ConfigDict(extra="forbid", frozen=True): a typo must not be taken')
        return ""

    def has_defaults(self) -> str:
        trainable = self.loaded()
        required = [name for name, info in trainable.Config.model_fields.items() if info.is_required()]
        every = "eval_every_steps"
        spacing = {every: 1} if every in trainable.Config.model_fields else {}
        self.config = named.validated(trainable, self.name, {**spacing, **self.values})
        if required:
            raise _Broken(f"{', '.join(required)} {'have' if len(required) > 1 else 'has'} no default")
        try:
            trainable.Config()
        except ValidationError as error:
            raise _Broken(declared.said(error.errors(include_url=False)[0])) from None
        return ""

    def prepares(self) -> str:
        first, second = (named.prepared(self.loaded(), self.name, self.configured()) for _ in range(2))
        if first != second:
            raise _Broken(f"the same configuration has two digests, {short(first, 20)} and then {short(second, 20)}")
        return f"digest {short(first, 20)}"

    def says_chance(self) -> str | None:
        if not hasattr(self.loaded(), "chance"):
            return None
        found = named.chance_of(self.loaded(), self.name, self.configured())
        return ", ".join(f"{name} {value:.4g}" for name, value in found.items()) or "none for this configuration"

    def trains(self) -> str:
        settle(1, 1)  # what a trainable draws from global random numbers differs from the next run's
        self.whole = self.train(self.steps, keep=self.saved)  # stays empty where a row is not sound
        if self.loaded().METRICS.keys().isdisjoint(name for _, metrics in self.whole for name in metrics):
            raise _Broken("no row holds a metric that METRICS declares, so there is nothing to rank trials by")
        last = self.whole[-1][0]
        ended = "" if last == self.steps else f"; it ended before step {self.steps}"
        return f"{plural(len(self.whole), 'row')}, the last at step {last}{ended}"

    def trains_the_same(self) -> str:
        wanted = self.trained()
        settle(2, 1)
        _same(wanted, self.train(self.steps), "a second run with the same seed")
        return ""

    def leaves_random_numbers(self) -> str:
        self.trained()
        before = _random_states()
        self.train(self.steps)
        if changed := [name for name, state in _random_states().items() if before.get(name, state) != state]:
            raise _Broken(
                f"training draws from the global random numbers of {', '.join(changed)}; use its own generator"
            )
        return ""

    def resumes(self) -> str:
        whole = self.trained()
        for begin in self.saved:
            rest = [row for row in whole if row[0] > begin.step]
            _same(rest, self.train(self.steps, begin), f"a run resumed from step {begin.step}")
        return f"from each of {plural(len(self.saved), 'checkpoint')}"

    def goes_on(self) -> str:
        whole, half = self.trained(), self.steps // 2
        saved: list[local.Checkpoint] = []
        short_rows = self.train(half, keep=saved)
        rest = [row for row in whole if row[0] > saved[-1].step]
        _same(rest, self.train(self.steps, saved[-1]), f"a run of {half} steps, given {self.steps}")
        return f"{plural(len(short_rows), 'row')} of {half} steps, then on to {self.steps}"

    def tests(self) -> str:
        path = self.checkpoint()
        first, second = (self.scores(path) for _ in range(2))
        if first != second:
            raise _Broken("the same checkpoint has two scores")
        return f"{plural(len(first.metrics), 'metric')}, items behind {len(first.items)} of them"

    def exports(self) -> str | None:
        trainable = self.loaded()
        if not hasattr(trainable, "export"):
            return None
        weights = declared.called(trainable.export, self.configured(), SEED, self.checkpoint())
        if not isinstance(weights, Weights):
            raise _Broken(f"`export` must return a cs330ray.trial.Weights, got {short(weights)}")
        try:
            notes = json.loads(json.dumps(dict(weights.notes), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise _Broken(f"the notes of its Weights must be as JSON has them, but {error}") from None
        if not hasattr(trainable, "ready"):
            return f"{plural(len(weights.tensors), 'tensor')}; without `ready` nobody can load them"
        model = declared.called(trainable.ready, self.configured(), Weights(weights.tensors, notes))
        return f"{plural(len(weights.tensors), 'tensor')}, a {type(model).__name__}"


TESTS: Sequence[tuple[str, Callable[[_Tested], str | None]]] = (
    ("declares its five names as Trainable says", _Tested.declares),
    ("Config refuses unknown keys and is frozen", _Tested.is_strict),
    ("Config has a default for every field", _Tested.has_defaults),
    ("prepare gives one digest, the same twice", _Tested.prepares),
    ("chance speaks of declared metrics", _Tested.says_chance),
    ("train yields rising steps, finite metrics in their bounds, and checkpoints", _Tested.trains),
    ("the same seed gives the same rows, whatever the global random numbers", _Tested.trains_the_same),
    ("global random numbers stay where they were", _Tested.leaves_random_numbers),
    ("cut anywhere and resumed, the rows are those of an unbroken run", _Tested.resumes),
    ("a longer budget continues a shorter one", _Tested.goes_on),
    ("test scores a checkpoint with finite numbers, the same twice", _Tested.tests),
    ("export and ready make a model", _Tested.exports),
)
NAMES = tuple(name for name, _ in TESTS)


def tested(name: str, values: Mapping[str, Any], steps: int, folder: Path) -> Iterator[Promise]:
    """Test the trainable `name` with these values of its Config, within the empty directory `folder`; each promise.

    A promise that does not apply, of a name that the module need not have, is left out.
    """
    subject = _Tested(name, values, steps, folder)
    for title, test in TESTS:
        try:
            said = test(subject)
        except _Untested as why:
            yield Promise(title, None, str(why))
        except (_Broken, declared.Raised, Cs330rayError, Diverged) as why:
            yield Promise(title, False, str(why))
        else:
            if said is not None:
                yield Promise(title, True, said)


def _sound(moment: Progress, trainable: Trainable) -> dict[str, float]:
    """The metrics of a row. Raises _Broken where one is not finite, or outside its declared bounds."""
    metrics = dict(moment.metrics)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise _Broken(
                f"step {moment.step}: {name} must be finite, got {value}; a loss goes through cs330ray.trial.finite"
            )
    for name, value in bounds.outside(trainable.METRICS, metrics).items():
        raise _Broken(bounds.said(trainable.METRICS, name, value, f"step {moment.step}"))
    return metrics


def _same(wanted: Rows, got: Rows, what: str) -> None:
    """Compare rows bit for bit. Raises _Broken with the first difference."""
    if [step for step, _ in wanted] != [step for step, _ in got]:
        raise _Broken(f"{what} must yield steps {[step for step, _ in wanted]}, got {[step for step, _ in got]}")
    for (step, before), (_, now) in zip(wanted, got, strict=True):
        for name in [*before, *(name for name in now if name not in before)]:
            if before.get(name) != now.get(name):
                raise _Broken(
                    f"{what} has other rows: at step {step} {name} was {before.get(name)}, now {now.get(name)}"
                )


def _random_states() -> dict[str, str]:
    torch = sys.modules.get("torch")
    states = {"random": repr(random.getstate()), "numpy": repr(np.random.get_state(legacy=False))}
    return states | ({"torch": repr(torch.get_rng_state().tolist())} if torch is not None else {})


def main(arguments: Sequence[str]) -> None:
    """Test a trainable and add each promise as a line of JSON to a file: NAME VALUES STEPS FOLDER FILE."""
    name, values, steps, folder, file = arguments
    with Path(file).open("a", encoding="utf-8") as lines:
        for promise in tested(name, json.loads(values), int(steps), Path(folder)):
            lines.write(json.dumps(asdict(promise)) + "\n")
            lines.flush()
    sys.stdout.flush()
    os._exit(0)  # whatever threads the module has left


if __name__ == "__main__":
    main(sys.argv[1:])
