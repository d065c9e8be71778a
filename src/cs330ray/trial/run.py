"""Run one trial: each row and each checkpoint held to the contract, whoever runs it; and the plain local loop.

What is refused here is the trial's own failure, ContractError, in one line that names the promise.
"""

import math
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from cs330ray.checkpoints import local
from cs330ray.errors import ContractError
from cs330ray.trial.contract import Item, Progress, Scores, Trainable


def train(
    trainable: Trainable, config: Any, seed: int, steps: int, resume: Path | None = None, *, begin_step: int = 0
) -> Generator[Progress]:
    """Train as `Trainable.train` does, from the checkpoint `resume` of `begin_step`; each row with plain numbers.

    Whole steps rise from `begin_step` to at most `steps`, and the row of `steps` is the last that is asked for. Raises
    ContractError, and whatever the trainable raises.
    """
    if begin_step >= steps:
        return
    rows = trainable.train(config, seed, steps, resume)
    if not isinstance(rows, Iterator):
        raise ContractError(f"train must `yield` Progress as it trains, got {_kind(rows)}")
    step, after = begin_step, f"after resuming from {begin_step}" if resume is not None else ""
    own_process = bool(getattr(trainable, "own_process", False))  # it ends by itself, after its last checkpoint
    try:
        while own_process or step < steps:
            try:
                row = next(rows)
            except StopIteration:
                return
            if own_process and isinstance(row, Progress) and not is_row(row, step):
                yield Progress(row.step, {}, partial(_save, row.save) if row.save is not None else None)
                continue
            progress = _checked(row, step, steps, after, may_save=not own_process)
            yield progress
            step, after = progress.step, f"after step {progress.step}"
    finally:
        _close(rows)


def scores(found: Any) -> Scores:
    """What `Trainable.test` returned, as plain numbers. Raises ContractError, ValueError where one is not finite."""
    if not isinstance(found, Scores):
        raise ContractError(f"test must return Scores, got {_kind(found)}")
    metrics = _numbers(found.metrics)
    items = {str(name): [_item(str(name), each) for each in scored] for name, scored in found.items.items()}
    named = list(metrics.items())
    named += [(name, item.score) for name, scored in items.items() for item in scored]
    for name, value in named:
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, but got {value}")
    return Scores(metrics, items)


def run_alone(
    trainable: Trainable, config: Any, seed: int, steps: int, home: Path, *, save_every_steps: int | None = None
) -> Generator[Progress]:
    """Run one trial in this process, resuming from the newest whole checkpoint under `home`; its rows, one by one.

    The last row's checkpoint is written after the consumer has taken that row; earlier ones every `save_every_steps`.
    Raises ContractError, DiskFault, and whatever the trainable raises.
    """
    newest = local.newest(home)
    saved = newest.step if newest else 0
    latest, step = None, saved
    for progress in train(trainable, config, seed, steps, newest.path if newest else None, begin_step=saved):
        if progress.step > step:
            step = progress.step
            yield progress
        if progress.save is None:
            continue
        latest = progress
        due = save_every_steps is not None and progress.step - saved >= save_every_steps
        if due or progress.step >= steps:
            local.write(home, progress.step, progress.save)
            saved = progress.step
    if latest is not None and latest.save is not None and latest.step > saved:  # ended by a rule of its own
        local.write(home, latest.step, latest.save)


def is_row(moment: Progress, last: int) -> bool:
    """Whether a moment of a process of one's own is a row, and no checkpoint or pause after the row of step `last`."""
    return bool(moment.metrics) or (moment.save is None and moment.step > last)


def _checked(row: Any, last: int, steps: int, after: str, *, may_save: bool) -> Progress:
    """A row with plain numbers, whose step is beyond `last`. Raises ContractError."""
    if not isinstance(row, Progress):
        raise ContractError(f"train must yield Progress, got {_kind(row)}")
    given: Any = row.step
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise ContractError(f"step must be a whole number, got {_quoted(given)}")
    step = int(given)
    if step <= last:
        rule = "`train` must continue from the checkpoint `resume`" if "resuming" in after else "steps must rise"
        raise ContractError(f"yielded step {step} {after}; {rule}" if after else f"yielded step {step}; the first is 1")
    if step > steps:
        raise ContractError(f"yielded step {step}, but the trial has {steps}; end with a row at `steps`")
    if row.save is None and not may_save:
        return Progress(step, _numbers(row.metrics, f"step {step}: "), None)
    if not callable(row.save):
        raise ContractError(f"step {step}: save must be a function of a directory, got {_quoted(row.save)}")
    return Progress(step, _numbers(row.metrics, f"step {step}: "), partial(_save, row.save))


def _save(save: Callable[[Path], None], directory: Path) -> None:
    """Have a trainable write its moment into an empty directory. Raises ContractError where that is no checkpoint."""
    try:
        save(directory)
    except OSError as error:
        if isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(directory):
            error.filename = str(Path(error.filename).relative_to(directory))  # the rest is another in each trial
            error.add_note("in the directory that `save` was given")
        raise
    written = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*"))}
    for name, path in written.items():
        if name == local.MANIFEST:
            raise ContractError(f"save must not write {name}, which names the files of a checkpoint; take another name")
        if path.is_symlink() and (path.readlink().is_absolute() or not _is_file_within(path, directory)):
            raise ContractError(f"save wrote {name}, a link that leads to no file of the checkpoint; write the file")
        if not path.is_dir() and not path.is_file():
            raise ContractError(f"save wrote {name}, which is no file; a checkpoint holds files alone")
    if not any(path.is_file() for path in written.values()):
        raise ContractError("save wrote no file; write all that the rest of the training depends on")


def _is_file_within(path: Path, directory: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(directory.resolve())


def _numbers(metrics: Any, place: str = "") -> dict[str, float]:
    """Metrics by name, as plain numbers. Raises ContractError, whose message begins with `place`."""
    if not isinstance(metrics, Mapping):
        raise ContractError(f"{place}metrics must be a mapping of names to numbers, got {_quoted(metrics)}")
    found = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise ContractError(f"{place}the name of a metric must be text, got {_quoted(name)}")
        found[str(name)] = _number(f"{place}{name}", value)
    return found


def _item(name: str, item: Any) -> Item:
    if not isinstance(item, Item):
        raise ContractError(f"{name}: each item of Scores must be an Item, got {_quoted(item)}")
    return Item(str(item.unit), _number(f"{name} of item {_quoted(item.unit)}", item.score))


def _number(name: str, value: Any) -> float:
    """One number, whichever library's. Raises ContractError for what is none, text and complex numbers among it."""
    plain = value.item() if isinstance(value, np.ndarray | np.generic) and value.ndim == 0 else value
    try:
        if isinstance(plain, str | bytes | bytearray | memoryview | complex):  # float() would read or cut them
            raise TypeError
        return float(plain)
    except Exception:  # noqa: BLE001 - whatever the conversion of somebody's type raises
        raise ContractError(f"{name} must be a number, got {_quoted(value)}") from None


def _close(rows: Iterator[Progress]) -> None:
    """Close a generator. What it raises then comes after its trial's end: it is for the log."""
    close = getattr(rows, "close", None)
    try:
        if close is not None:
            close()
    except Exception:  # noqa: BLE001 - the trial boundary
        traceback.print_exc()


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _quoted(value: object, length: int = 60) -> str:
    """A value as Python writes it, in one line and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - whatever a class of somebody's does
        text = _kind(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
