"""What a process reports, line by line: rows and checkpoints, checked, as the moments of a trial."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cs330ray.checkpoints.local import MANIFEST
from cs330ray.errors import ContractError, Diverged
from cs330ray.files import Scratch
from cs330ray.spec.tables import MOST_STEPS
from cs330ray.trial.contract import Progress
from cs330ray.words import short

MOST_METRICS = 1000  # of a row
MOST_BYTES = 1 << 20  # of a line
LONGEST_NAME = 200  # characters of a metric's


class Reports:
    """The lines of one process, from its first on."""

    def __init__(self, declared: Mapping[str, Any], checkpoints: Path, scratch: Scratch, begin_step: int) -> None:
        self._declared = declared  # metrics that must be finite
        self._checkpoints, self._scratch = checkpoints, scratch
        self._begin = self._last = begin_step
        self._kept = begin_step  # the step of the last checkpoint
        self._lines = 0
        self.any = False  # whether there was a row
        self.reached = begin_step  # the step of the last row but one

    def read(self, line: bytes) -> Iterator[Progress]:
        """Read a line as moments: its row, which cannot be saved, then its checkpoint, which can; of silence a pause.

        Raises ContractError, and Diverged where a declared metric is not finite.
        """
        if not line:
            yield Progress(self._last, {}, None)
            return
        self._lines += 1
        told = self._table(line)
        step = self._step(told.pop("step", None))
        checkpoint = told.pop("checkpoint", None)
        metrics = {name: self._number(step, name, value) for name, value in told.items()}
        if len(metrics) > MOST_METRICS:
            raise ContractError(f"step {step}: at most {MOST_METRICS} metrics a row, got {len(metrics)}; report fewer")
        if metrics or step > self._last:
            yield self._row(step, metrics)
        elif checkpoint is None:
            raise ContractError(f"line {self._lines}: expected metrics or a checkpoint at step {step}, got neither")
        if checkpoint is not None:
            yield self._checkpoint(step, checkpoint)

    def _table(self, line: bytes) -> dict[str, Any]:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            told = line.decode(errors="replace")
        if not isinstance(told, dict):
            raise ContractError(
                f'line {self._lines}: expected JSON such as {{"step": 100, "val_accuracy": 0.8}}, got {short(told)}'
            )
        return told

    def _step(self, step: Any) -> int:
        if isinstance(step, bool) or not isinstance(step, int):
            got = "none" if step is None else short(step)
            raise ContractError(f"line {self._lines}: step must be a whole number, got {got}")
        if step > MOST_STEPS:
            raise ContractError(f"line {self._lines}: step must be at most {MOST_STEPS}, got {short(step)}")
        return step

    def _number(self, step: int, name: str, value: Any) -> float:
        if not name.isprintable() or not name.strip() or len(name) > LONGEST_NAME:
            raise ContractError(
                f"step {step}: a metric has a name of at most {LONGEST_NAME} readable characters, got {short(name)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ContractError(f"step {step}: {short(name)} must be a number, got {short(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf if value > 0 else -math.inf
        if name in self._declared and not math.isfinite(number):
            raise Diverged(f"{name} is {number} at step {step}")
        return number

    def _row(self, step: int, metrics: Mapping[str, float]) -> Progress:
        if step <= self._last:
            if not self.any and self._begin:
                rule = "continue after the step of the checkpoint in CS330RAY_RESUME"
                raise ContractError(f"reported step {step} after resuming from {self._begin}; {rule}")
            if self.any and step == self._last:
                raise ContractError(f"reported step {step} twice; report all metrics of a step in one line")
            last = f" after step {self._last}" if self.any else ""
            raise ContractError(f"reported step {step}{last}; steps must rise, from 1")
        self.reached, self._last, self.any = self._last, step, True
        return Progress(step, metrics, None)

    def _checkpoint(self, step: int, named: Any) -> Progress:
        place = f"checkpoint of step {step}"
        if step <= self._kept:
            raise ContractError(f"{place}: expected one after step {self._kept}, which is kept already")
        if not isinstance(named, str) or not named:
            raise ContractError(f"{place}: expected the name of a directory, got {short(named)}")
        root = self._checkpoints.resolve()
        directory = (root / named).resolve()
        if directory == root or not directory.is_relative_to(root):
            raise ContractError(f"{place}: expected a directory below CS330RAY_CHECKPOINTS_DIR, got {short(named)}")
        if not directory.is_dir():
            raise ContractError(f"{place}: expected a directory that is written, got none at {short(named)}")
        self._kept = step
        return Progress(step, {}, Announced(directory, step, self._scratch))


class Announced:
    """A checkpoint that a process has announced: called, it copies it. It keeps the process's directory from going."""

    def __init__(self, directory: Path, step: int, scratch: Scratch) -> None:
        """Look at what is announced. Raises ContractError where that cannot be a checkpoint."""
        self._directory, self._scratch, self._place = directory, scratch, f"checkpoint of step {step}"
        try:
            self._files = _files(directory)
        except FileNotFoundError:
            raise self._changed() from None
        if not any(path.is_file() for path in self._files):
            raise ContractError(f"{self._place}: expected a file in the directory, got none; write it, then report it")
        for path in self._files:
            name = path.relative_to(directory).as_posix()
            if name == MANIFEST:
                raise ContractError(f"{self._place}: {MANIFEST} names the files of a checkpoint; take another name")
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ContractError(f"{self._place}: expected files and directories alone, got {short(name)}")

    def __call__(self, into: Path) -> None:
        """Copy it into an empty directory.

        Raises ContractError where it has changed since it was announced, and OSError where the disk takes none.
        """
        try:
            for path in self._files:
                copied = into / path.relative_to(self._directory)
                if path.is_dir():
                    copied.mkdir(parents=True, exist_ok=True)
                else:
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copied)
            same = _files(self._directory) == self._files
        except FileNotFoundError:
            same = False
        if not same:
            raise self._changed()

    def _changed(self) -> ContractError:
        return ContractError(f"{self._place}: written to after it was announced; report it when it is whole")


def _files(directory: Path) -> dict[Path, tuple[int, int]]:
    """What a directory holds, each with size and time. Raises FileNotFoundError where something goes meanwhile."""
    stats = [(path, path.lstat()) for path in sorted(directory.rglob("*"))]
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats}
