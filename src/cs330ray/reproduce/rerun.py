"""One trial again, in this process and without Ray, from what the ledger recorded of it.

The ledger is only read, but for `test`, which records that it opened the test split.

A line of trials that continue one another is run as it was: up to the steps of the first, on from its checkpoint to
those of the next. So the rows at its seams are there, which a trial of all the steps at once would not have.
"""

import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cs330ray.checkpoints import local
from cs330ray.clock import wall_s
from cs330ray.errors import ContractError, Cs330rayError, DataError, SpecError
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Row, Trial
from cs330ray.ledger.writer import Writer
from cs330ray.spec.study import Study, first_values
from cs330ray.trial import environment, named
from cs330ray.trial.contract import Trainable
from cs330ray.trial.run import run_alone, scores

# What a machine without a GPU calls its device: `platform.processor()`, or `cpu` where that is empty.
PROCESSORS = {"cpu", "x86_64", "amd64", "i386", "i686", "arm", "arm64", "aarch64", "ppc64le", "riscv64"}
HARDWARE = ("host", "device", "threads")
NOT_HERE = "not there"


@dataclass(frozen=True)
class Recorded:
    """What the ledger holds of a trial, and of those that it continues."""

    study: Study
    trial: Trial
    settings: Mapping[str, Any]  # of its configuration
    rows: Sequence[Row]
    starts: Sequence[Mapping[str, Any]]  # on what it ran, from each start on
    before: Sequence[int]  # the steps that those had which it continues

    @property
    def raised(self) -> bool:
        """Whether it ended by what its trainable raised, so that it must end so again."""
        return self.trial.cause in ("diverged", "raised")

    @property
    def was_cut(self) -> bool:
        """Whether it was ended from outside: by the pruner, a lost worker, short memory, silence, a person."""
        return self.trial.cause in ("pruned", "lost", "memory", "silent", "stopped")

    @property
    def last_step(self) -> int:
        """The step of its last row, 0 where it has none."""
        return self.rows[-1].step if self.rows else 0

    @property
    def steps(self) -> int:
        """Up to which step it is run; a process of one's own may go by how many it was given."""
        return self.last_step if self.was_cut and self.trial.cell.command is None else self.trial.steps

    @property
    def threads(self) -> int:
        """With how many threads it began."""
        return int(self.starts[0]["threads"]) if self.starts else max(int(self.study.resources.cpus), 1)

    @property
    def workers(self) -> int:
        """How many workers trained it, at the most."""
        return max((len(start.get("workers", [""])) for start in self.starts), default=1)


@dataclass(frozen=True)
class Outcome:
    """What a trial did when it was run again."""

    rows: Sequence[Row]
    reason: str = ""  # what it raised


@dataclass(frozen=True)
class Change:
    """What was otherwise when a trial was recorded, or changed while it ran."""

    what: str
    recorded: Sequence[tuple[int, str]]  # after which step it was so; more than one where it was resumed
    now: str


def under(ledger: Ledger, study: Study, trial: Trial, fresh: int) -> Trial:
    """The run of confirmation of a trial on fresh seed number `fresh`. Raises SpecError."""
    found = [run for run in ledger.trials(study, trial.cell.under(fresh)) if run.number == trial.number]
    if not found:
        raise SpecError(
            f"{study.name}: --fresh: a seed on which trial {trial.number} was confirmed is needed, but got {fresh}; "
            f"`cs330ray show {study.name} {trial.number}` lists them"
        )
    return found[0]


def read(ledger: Ledger, study: Study, trial: Trial) -> Recorded:
    """What is recorded of a trial. Raises SpecError where it cannot be run again."""
    place = f"{study.name}: trial {trial.number}"
    if trial.state == "RUNNING":
        raise SpecError(f"{place} must have ended, but it is RUNNING or was interrupted; end it by `cs330ray run`")
    line = ledger.lineage(study, trial.cell, trial.number)
    rows = [row for number in line for row in ledger.rows(study, trial.cell, number)]
    starts = [start for number in line for start in ledger.attempts(study, trial.cell, number)]
    by_number = {each.number: each.steps for each in ledger.trials(study, trial.cell, line)}
    before = [by_number[number] for number in line[:-1]]
    recorded = Recorded(study, trial, {**trial.cell.fixed, **trial.params}, rows, starts, before)
    if not rows and not recorded.raised:
        raise SpecError(f"{place} must have rows to compare, but it ended without: {trial.reason or trial.state}")
    return recorded


@contextlib.contextmanager
def as_recorded(recorded: Recorded) -> Iterator[Trainable]:
    """Have this process train on the device, and with the threads, that a trial had; its trainable. Raises SpecError.

    One that ran on a CPU is kept from a GPU that is here, unless CS330RAY_DEVICE says what to take. What cannot be set,
    `changes` names.
    """
    devices = {start["device"] for start in recorded.starts}
    before = {name: os.environ.get(name) for name in ("CS330RAY_DEVICE", "CUDA_VISIBLE_DEVICES")}
    try:
        if devices and devices <= {*PROCESSORS, platform.processor()} and not before["CS330RAY_DEVICE"]:
            os.environ["CS330RAY_DEVICE"] = "cpu"
            if "torch" not in sys.modules:  # else it may know the GPUs by now
                environment.see_no_more_gpus_than_asked(0)
        trainable = named.of(recorded.trial.cell)
        environment.settle(recorded.trial.seed, recorded.threads)
        yield trainable
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def changes(recorded: Recorded, trainable: Trainable) -> list[Change]:
    """What is otherwise now than it was recorded, and what changed while the trial ran. Raises DataError."""
    now = _facts(
        {
            **environment.circumstances(),
            "code": named.code_digest(recorded.trial.cell.trainable, recorded.trial.cell.command),
        }
    )
    now["data"] = _data(recorded, trainable)[:12]
    began = [(start.get("resumed_from_step") or 0, _facts(start)) for start in recorded.starts]
    found = []
    for what in dict.fromkeys(name for _, facts in began for name in facts):
        here = now.get(what) or _installed(what)
        held = [(after, facts[what]) for after, facts in began if what in facts]
        held = [held[0], *(later for before, later in pairwise(held) if before[1] != later[1])]
        if len(held) > 1 or not _same(held[0][1], here):
            found.append(Change(what, held, here))
    return found


def _facts(start: Mapping[str, Any]) -> dict[str, str]:
    """What may change a number: texts to compare. Ray is not among them, since nothing is left to it here."""
    facts = {what: str(start[what])[:12] for what in ("code", "data") if what in start}
    facts |= {what: str(start[what]) for what in ("python", *HARDWARE)}
    return facts | {name: str(version) for name, version in start["versions"].items() if name != "ray"}


def _installed(name: str) -> str:
    """The version of a package that is not loaded here."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return NOT_HERE


def _same(recorded: str, here: str) -> bool:
    """Whether two facts agree; a version that is not loaded here does not say for which accelerator it was built."""
    return recorded == here or ("+" not in here and recorded.partition("+")[0] == here)


def _data(recorded: Recorded, trainable: Trainable) -> str:
    """The data digest that the service would record for the trial's cell."""
    cell = recorded.trial.cell
    try:
        return named.prepared(trainable, cell.trainable, named.configuration(trainable, cell, first_values(cell)))
    except (DataError, SpecError):  # at another point of the cell, which this trial may not need
        return NOT_HERE


def run(recorded: Recorded, trainable: Trainable, home: Path, hear: Callable[[Row], None]) -> Outcome:
    """Train a trial again under the empty directory `home`, and `hear` each row. Raises SpecError or DataError."""
    rows: list[Row] = []
    try:
        config = _config(recorded, trainable)
    except ValueError as error:  # pydantic's, which it may have failed by
        if not recorded.raised:
            named.configuration(trainable, recorded.trial.cell, recorded.trial.params)
        return Outcome(rows, _in_words(recorded, error))
    named.prepared(trainable, recorded.trial.cell.trainable, config)
    generator = _rows(recorded, trainable, config, home)
    with contextlib.closing(generator), environment.Told() as told:
        while True:
            try:
                row = next(generator, None)
            except local.DiskFault as fault:
                raise DataError(f"{home}: room for a checkpoint is needed, but {fault}; set TMPDIR or --keep") from None
            except BaseException as error:  # the trial boundary
                if told():
                    raise
                return Outcome(rows, _reason(recorded, error))
            if row is None:
                return Outcome(rows)
            rows.append(row)
            hear(row)
            if recorded.raised and row.step > recorded.last_step:  # it should have ended before
                return Outcome(rows)
            if recorded.was_cut and row.step >= recorded.last_step:
                return Outcome(rows)


def _config(recorded: Recorded, trainable: Trainable) -> Any:
    """The configuration that a trial had. Raises ValueError, of pydantic's where the trainable itself refuses it."""
    config = trainable.Config(**recorded.settings)
    before = recorded.starts[-1].get("config") if recorded.starts else None
    return named.as_recorded(trainable, recorded.trial.cell.trainable, recorded.settings, before) if before else config


def _reason(recorded: Recorded, error: BaseException) -> str:
    """What a trainable raised, where that is a result. Raises Cs330rayError where this machine cannot run the trial."""
    reason = _in_words(recorded, error)
    if isinstance(error, Cs330rayError) and not isinstance(error, ContractError) and not recorded.raised:
        raise error
    if environment.cause_of(error) == "memory":
        place = f"{recorded.study.name}: trial {recorded.trial.number}"
        raise DataError(f"{place}: enough memory is needed, but this machine is {reason}; use a larger one")
    return reason


def _in_words(recorded: Recorded, error: BaseException) -> str:
    """The reason of an end, in the words of the version that recorded the trial where it says the same in them."""
    before = environment.reason_of_before(error)
    return before if before == recorded.trial.reason else environment.reason_of(error)


def stretches(recorded: Recorded, config: Any) -> list[int]:
    """The steps up to which a trial is run at a stretch: those of its line, and where a row was out of turn.

    Such a row is the last of a trial that was interrupted behind it and then given more steps.
    """
    every = getattr(config, "eval_every_steps", 1)
    seams = {*recorded.before, *(row.step for row in recorded.rows if row.step % every)}
    return [*sorted(seam for seam in seams if seam < recorded.steps), recorded.steps]


def _rows(recorded: Recorded, trainable: Trainable, config: Any, home: Path) -> Generator[Row]:
    own_process, held = recorded.trial.cell.command is not None, list[Row]()
    for steps in stretches(recorded, config):
        environment.settle(recorded.trial.seed, recorded.threads)  # as where it began, and went on
        newest = local.newest(home)
        yield from (
            row for row in held if newest is not None and row.step <= newest.step
        )  # what came after is made again
        held = []
        for progress in run_alone(trainable, config, recorded.trial.seed, steps, home):
            row = Row(progress.step, progress.metrics, wall_s())
            if own_process and steps < recorded.steps:
                held.append(row)
            else:
                yield row


def test(ledger: Writer, recorded: Recorded, trainable: Trainable, home: Path) -> tuple[dict[str, float], str]:
    """Score the weights that `run` left under `home` on the test split, and record that it was opened.

    The metrics, or what it raised.
    """
    last = local.newest(home)
    assert last is not None  # a trial that has a test had rows, and has ended without raising
    config = _config(recorded, trainable)
    opening = ledger.write_opening(recorded.trial.cell.trainable, config.model_dump_json(), str(last.path))
    environment.settle(recorded.trial.seed, recorded.threads)
    with environment.Told() as told:
        try:
            found = scores(trainable.test(config, recorded.trial.seed, last.path))
        except BaseException as error:  # the trial boundary
            if told():
                raise
            return {}, _reason(recorded, error)
    ledger.write_opened(opening, found.metrics)
    return dict(found.metrics), ""
