"""Which promises of a trial a process of one's own keeps, found by running it: what a study may count on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cs330ray.checkpoints import local
from cs330ray.errors import Cs330rayError, Diverged, ProcessFailed
from cs330ray.trial import run
from cs330ray.trial.child.own import OwnProcess
from cs330ray.trial.contract import Scores, Trainable
from cs330ray.trial.declared import Promise
from cs330ray.words import plural

SEED = 5
Rows = list[tuple[int, dict[str, float]]]


class _TooLong(Exception):  # noqa: N818 - what it is, not what went wrong
    """All of it takes longer than it may."""


@dataclass
class _Tested:
    """A process under test, and what its runs so far have shown."""

    trainable: OwnProcess
    config: Any
    steps: int
    folder: Path  # empty, for checkpoints
    until: float  # of the monotonic clock
    whole: Rows = field(default_factory=list)
    saved: list[local.Checkpoint] = field(default_factory=list)

    def run(self, begin: local.Checkpoint | None = None, keep: Path | None = None) -> Rows:
        """The rows of a run; with `keep` its checkpoints are written there."""
        rows, at = Rows(), (begin.path, begin.step) if begin is not None else (None, 0)
        moments = run.train(cast("Trainable", self.trainable), self.config, SEED, self.steps, at[0], begin_step=at[1])
        try:
            for moment in moments:
                if time.monotonic() > self.until:
                    raise _TooLong
                if moment.save is not None and keep is not None:
                    self.saved.append(local.write(keep, moment.step, moment.save, keep=self.steps))
                elif moment.metrics:
                    rows.append((moment.step, dict(moment.metrics)))
        finally:
            moments.close()
        return rows

    def reports(self) -> tuple[bool, str]:
        self.trainable.prepare(self.config)
        self.whole = self.run(keep=self.folder)
        missing = [name for name in self.trainable.command.metrics if not any(name in row for _, row in self.whole)]
        if missing:
            return False, f"no row holds {', '.join(missing)}, which [command.metrics] declares"
        return True, f"{plural(len(self.whole), 'row')}, the last at step {self.whole[-1][0]}"

    def has_budget(self) -> tuple[bool, str]:
        last = self.whole[-1][0]
        return last == self.steps, f"its last row is of step {last} of {self.steps}"

    def repeats(self) -> tuple[bool, str]:
        return _same(self.whole, self.run(), "a second run")

    def resumes(self) -> tuple[bool, str]:
        if not self.saved:
            return False, "it reports no checkpoint: a trial that is cut starts again"
        tried = [self.saved[0], *self.saved[len(self.saved) // 2 : -1][:1]]  # each starts the process again
        for begin in tried:
            rest = [row for row in self.whole if row[0] > begin.step]
            found = _same(rest, self.run(begin), f"resumed from step {begin.step}, it") if rest else (True, "")
            if not found[0]:
                return found
        return True, f"from step {' and '.join(str(begin.step) for begin in tried)}"

    def is_tested(self) -> tuple[bool, str]:
        if not self.trainable.tests or not self.saved:
            return False, "nothing reads a test split" if not self.trainable.tests else "there is no checkpoint to test"
        found: dict[str, float] = {}
        for metrics in self.trainable.tested(self.config, SEED, self.saved[-1].path):
            if time.monotonic() > self.until:
                raise _TooLong
            found |= metrics
        run.scores(Scores(found))
        return True, ", ".join(f"{name} {value:.4g}" for name, value in found.items())


TESTS: tuple[tuple[str, bool, Callable[[_Tested], tuple[bool, str]]], ...] = (
    ("starts, and reports rows of its metrics", True, _Tested.reports),
    ("ends at the steps that it is given", False, _Tested.has_budget),
    ("the same seed gives the same rows", False, _Tested.repeats),
    ("cut and resumed, the rows are those of an unbroken run", False, _Tested.resumes),
    ("a test scores its checkpoint", False, _Tested.is_tested),
)


def tested(
    trainable: OwnProcess, config: Any, steps: int, folder: Path, limit_s: float
) -> Iterator[tuple[bool, Promise]]:
    """Test a process with a configuration, within the empty directory `folder`: whether each must hold, and it.

    Only the first must: what else does not hold, a study does without.
    """
    subject = _Tested(trainable, config, steps, folder, time.monotonic() + limit_s)
    for title, must, test in TESTS:
        try:
            holds, said = test(subject)
        except (Cs330rayError, ProcessFailed, Diverged, MemoryError) as error:
            holds, said = False, str(error)
        except _TooLong:
            yield must, Promise(title, None, f"all of it takes more than {limit_s:g}s; lower --steps, or raise --limit")
            return
        yield must, Promise(title, holds, said)
        if must and not holds:
            return


def _same(wanted: Rows, got: Rows, what: str) -> tuple[bool, str]:
    """Compare rows bit for bit."""
    for (step, before), (other, now) in zip(wanted, got, strict=False):
        if (step, before) != (other, now):
            name = next((each for each in before if before[each] != now.get(each)), "")
            values = f": {name} was {before[name]}, now {now.get(name)}" if name else f" and {other} differ"
            return False, f"{what} has other rows from step {step}{values}"
    if len(wanted) != len(got):
        return False, f"{what} has {plural(len(got), 'row')} in place of {len(wanted)}"
    return True, ""
