"""A trainable that is a process of one's own: any command, or a function of a file. It keeps the contract of a trial.

What it yields is what the process reports; a checkpoint is what the process says is whole. Whether a second run with
the same seed gives the same rows is the script's affair: nothing here promises it.
"""

import ast
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, create_model

from cs330ray.checkpoints import local
from cs330ray.errors import ContractError, DataError, SpecError
from cs330ray.spec.command import CODE, Command, filled, is_function
from cs330ray.spec.places import home
from cs330ray.spec.tables import Value
from cs330ray.trial.child import folder as folders
from cs330ray.trial.child.function import CALL
from cs330ray.trial.child.process import Child, search_path
from cs330ray.trial.child.protocol import Reports
from cs330ray.trial.contract import Metric, Progress, Scores
from cs330ray.words import short

FUNCTION = "cs330ray.trial.child.function"  # the program that calls one
ARGUMENTS = {"train": 4, "test": 3}  # of a function, by place


@dataclass(frozen=True)
class OwnProcess:
    """What `trial.Trainable` asks for, of a process."""

    trainable: str  # "command", or FILE.py:FUNCTION
    command: Command
    parameters: frozenset[str]
    own_process: ClassVar[bool] = True

    @cached_property
    def METRICS(self) -> Mapping[str, Metric]:  # noqa: N802 - as a module has it
        """The declared metrics, and of each `val_` one its like on test, where there is a test."""
        declared = {name: Metric(goal) for name, goal in self.command.metrics.items()}
        on_test = (
            {f"test_{name.removeprefix('val_')}": metric for name, metric in declared.items()} if self.tests else {}
        )
        return {**on_test, **declared}

    @cached_property
    def Config(self) -> type[BaseModel]:  # noqa: N802 - as a module has it
        """The parameters that the study declares, each with a value, but for those that a condition may leave out."""
        fields: dict[str, Any] = dict.fromkeys(sorted(self.parameters), (Value | None, None))
        return create_model("Config", __config__=ConfigDict(extra="forbid", frozen=True), **fields)

    @property
    def tests(self) -> bool:
        """Whether it has something that reads the test split."""
        return self._has("test") if is_function(self.trainable) else bool(self.command.test)

    @property
    def folder(self) -> Path:
        """Where it starts: on a node of a cluster, where its files have travelled to. Raises DataError."""
        if not self.command.folder:
            raise DataError(
                f"{self.trainable}: its folder is not known here, where the study was unpacked; run its study file once"
            )
        folder = Path(self.command.folder)
        travelled = Path.cwd() / CODE
        return travelled if folder.name == CODE and not folder.is_dir() and travelled.is_dir() else folder

    def digest(self) -> str:
        """Digest the files of the folder. Raises DataError."""
        return folders.digest(self.folder, home())

    def prepare(self, config: Any) -> str:  # noqa: ARG002 - the same for every configuration
        """Check that it can be started; the digest of its folder. Raises DataError or SpecError."""
        found = self.digest()
        if is_function(self.trainable):
            for name in ("train", "test"):
                self._check_function(name)
            return found
        for key in ("run", "test"):
            for word in getattr(self.command, key)[:1]:
                here = "/" in word and os.access(self.folder / word, os.X_OK)
                if not here and ("/" in word or shutil.which(word, path=search_path()) is None):
                    raise DataError(
                        f"command.{key}: expected a program that is here, got {short(word)}; install it, or correct it"
                    )
        return found

    def train(self, config: Any, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
        """Start it and yield what it reports, until it ends or reports a step beyond `steps`.

        A row cannot be saved. A moment without metrics is a checkpoint, or a pause where it cannot be saved. Raises
        ContractError, ProcessFailed and Diverged.
        """
        begin = local.read(resume) if resume is not None else None
        begin_step = begin.step if begin is not None else 0
        with self._started("train", config, begin, seed=seed, steps=steps) as child:
            reports = Reports(self.METRICS, child.checkpoints, child.scratch, begin_step)
            for line in child.lines():
                for moment in reports.read(line):
                    if moment.step <= steps:
                        yield moment
                    elif reports.reached > begin_step:  # it does not know its budget
                        return
                    else:
                        raise ContractError(
                            f"its first row is of step {moment.step}, beyond the budget of {steps}; report earlier, or "
                            "raise budget.steps"
                        )
            child.check()
        if not reports.any and begin is None:
            raise ContractError(
                "ended with exit code 0 and reported no row; append lines such as "
                '{"step": 100, "val_accuracy": 0.8} to the file CS330RAY_ROWS, or call cs330ray.log'
            )

    def test(self, config: Any, seed: int, checkpoint: Path) -> Scores:
        """Start what scores a checkpoint on the test split; the metrics of its lines, the last of a name.

        Raises ContractError and ProcessFailed.
        """
        found: dict[str, float] = {}
        for metrics in self.tested(config, seed, checkpoint):
            found |= metrics
        return Scores(found)

    def tested(self, config: Any, seed: int, checkpoint: Path) -> Iterator[dict[str, float]]:
        """Yield the metrics of each line of a test, none of a pause. Raises as `test`."""
        if not self.tests:
            raise SpecError(f"{self.trainable}: nothing reads its test split; add command.test, or a function `test`")
        begin, any_found = local.read(checkpoint), False
        with self._started("test", config, begin, seed=seed, steps=begin.step) as child:
            for line in child.lines():
                metrics = _scores(line) if line else {}
                any_found |= bool(metrics)
                yield metrics
            child.check()
        if not any_found:
            raise ContractError('the test reported no metric; append a line such as {"test_accuracy": 0.8}')

    def _started(
        self, what: str, config: BaseModel, checkpoint: local.Checkpoint | None, *, seed: int, steps: int
    ) -> Child:
        values = {name: value for name, value in config.model_dump().items() if name in config.model_fields_set}
        if is_function(self.trainable):
            call = {"config": values, "seed": seed, "steps": steps}
            file, name = self._file_and_name()
            words = [sys.executable, "-m", FUNCTION, str(file), name if what == "train" else "test", what]
            return Child(lambda _: words, self.folder, checkpoint, {CALL: json.dumps(call)})
        given, template = (
            values | {"seed": seed, "steps": steps},
            self.command.run if what == "train" else self.command.test,
        )
        return Child(lambda copied: filled(template, given | {"checkpoint": copied}), self.folder, checkpoint, {})

    # Of a function ----------------------------------------------------------------------------------------------------

    def _file_and_name(self) -> tuple[Path, str]:
        file, _, name = self.trainable.partition(":")
        return self.folder / file, name

    @cached_property
    def _functions(self) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
        """The functions of the file, which is read and not run. Raises SpecError."""
        file, _ = self._file_and_name()
        try:
            tree = ast.parse(file.read_bytes(), str(file))
        except OSError as error:
            raise SpecError(f"trainable: {self.trainable}: {file} must be readable, but {error.strerror}") from None
        except (SyntaxError, ValueError) as error:
            line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
            raise SpecError(f"trainable: {self.trainable}: {file} must be Python, but {error.args[0]}{line}") from None
        return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}

    def _has(self, name: str) -> bool:
        return name in self._functions

    def _check_function(self, what: str) -> None:
        """Check that a function is there and takes what it is given. Raises SpecError."""
        wanted = "train(config, seed, steps, trial)" if what == "train" else "test(config, seed, checkpoint)"
        name = self._file_and_name()[1] if what == "train" else "test"
        node = self._functions.get(name)
        if node is None:
            if what == "train":
                known = ", ".join(self._functions) or "none"
                raise SpecError(f"trainable: {self.trainable}: expected a function {name}, got {known}; correct it")
            return
        arguments = node.args
        places = len(arguments.posonlyargs) + len(arguments.args)
        least = places - len(arguments.defaults)
        fits = least <= ARGUMENTS[what] and (places >= ARGUMENTS[what] or arguments.vararg is not None)
        if isinstance(node, ast.AsyncFunctionDef) or not fits:
            raise SpecError(
                f"trainable: {self.trainable}: expected `def {wanted}`, got `{name}({ast.unparse(arguments)})` in line "
                f"{node.lineno}; correct it there"
            )


def _scores(line: bytes) -> dict[str, float]:
    """The metrics of a line of a test. Raises ContractError."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ContractError(
            f'the test must report JSON such as {{"test_accuracy": 0.8}}, got {short(line.decode(errors="replace"))}'
        )
    told.pop("step", None)
    for name, value in told.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ContractError(f"the test's {short(name)} must be a number, got {short(value)}")
    return {name: float(value) for name, value in told.items()}
