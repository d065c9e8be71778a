"""Trainables by name: the one place where the service reaches a system, and asks it for data and for chance."""

import datetime
import difflib
import enum
import hashlib
import importlib
import importlib.util
import math
import re
import uuid
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, cast

from pydantic import ValidationError

from cs330ray import package
from cs330ray.errors import DataError, SpecError
from cs330ray.spec.command import Command, is_own_process
from cs330ray.spec.study import Cell, Study, canonical
from cs330ray.trial import declared
from cs330ray.trial.child.own import OwnProcess
from cs330ray.trial.contract import Metric, Trainable
from cs330ray.trial.declared import Raised, said
from cs330ray.words import short

OURS = "cs330ray.course.systems"  # the package of the systems that come with it
SYSTEMS = ("baseline", "finetune", "icl", "maml", "mann", "multitask", "protonet")


def names() -> list[str]:
    """The trainables that come with the package."""
    return list(SYSTEMS)


def of(cell: Cell) -> Trainable:
    """Find the trainable of a cell: a module, or a process of one's own. Raises SpecError."""
    return load(cell.trainable, cell.command, frozenset([*cell.fixed, *cell.space]))


def load(name: str, command: Command | None = None, parameters: frozenset[str] = frozenset()) -> Trainable:
    """Import the trainable `name`: one of `names()`, or `package.module`; with a command, the process that it starts.

    A process takes what `parameters` name. Raises SpecError.
    """
    if command is not None and is_own_process(name):
        return cast("Trainable", OwnProcess(name, command, parameters))
    target = f"{OURS}.{name}" if name in names() else name
    if "." not in target or not re.fullmatch(r"\w+(\.\w+)+", target):
        near = difflib.get_close_matches(name, names(), n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise SpecError(
            f"trainable: one of {', '.join(names())} or package.module is needed, but got {short(name)}{meant}"
        )
    try:
        module = _imported(target)
    except ModuleNotFoundError as error:
        raise SpecError(
            f"trainable: {short(name)} must be importable, but {short(str(error), 200)}; check the name, and set "
            f"PYTHONPATH to the directory that holds {target.replace('.', '/')}.py (PYTHONPATH=. where that is here)"
        ) from None
    except Raised as error:
        raise SpecError(f"trainable: {name!r} cannot be imported: {error}") from None
    for problem in declared.problems(module):
        raise SpecError(f"trainable: {name!r} {problem}" if problem.startswith("must") else f"{name}: {problem}")
    return cast("Trainable", module)


def _imported(target: str) -> ModuleType:
    """Import a module. Raises ModuleNotFoundError where there is none, and Raised for whatever it raises itself."""
    try:
        return importlib.import_module(target)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = declared.raised(error)
        if isinstance(error, ModuleNotFoundError):
            if error.name and (target == error.name or target.startswith(f"{error.name}.")):
                raise
            raise Raised(f"{said}; install it, or add the directory that holds it to PYTHONPATH") from None
        if isinstance(error, SystemExit):
            raise Raised(f'{said}; put what runs as a program under `if __name__ == "__main__":`') from None
        raise Raised(f"{said}; correct it there") from None


def configuration(trainable: Trainable, cell: Cell, params: Mapping[str, Any]) -> Any:
    """The validated Config of a cell with searched `params`. Raises SpecError."""
    return validated(trainable, cell.trainable, {**cell.fixed, **params})


def validated(trainable: Trainable, name: str, values: Mapping[str, Any]) -> Any:
    """The Config of the trainable `name` with these values. Raises SpecError."""
    try:
        return trainable.Config(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{place or name}: {said(first)}") from None
    except Exception as error:  # noqa: BLE001 - a validator of other people's
        raise SpecError(f"{name}: a Config cannot be built: {declared.raised(error)}; correct it there") from None


def prepared(trainable: Trainable, name: str, config: Any) -> str:
    """The digest of the data that `config` needs, found and packed. Raises DataError, whatever `prepare` raises."""
    try:
        digest = declared.called(trainable.prepare, config)
    except Raised as error:
        raise DataError(f"{name}: `prepare` must find the data, but raised {error}") from None
    if not isinstance(digest, str):
        raise DataError(f"{name}: `prepare` must return the digest of the data as a text, got {short(digest)}")
    return digest


def whole(config: Any) -> dict[str, Any]:
    """Every hyperparameter of a Config as JSON has it, the same in every process."""
    return {name: _as_json(value) for name, value in config.model_dump().items()}


def signature(trainable: Trainable, config: Any) -> dict[str, Any] | None:
    """What trials must have alike to train together; None where the trainable cannot do that."""
    fusible = getattr(trainable, "FUSIBLE", None)
    if fusible is None:
        return None
    return {name: value for name, value in whole(config).items() if name not in fusible}


def _as_json(value: Any) -> Any:
    """A value of a Config as JSON has it: what that cannot hold as a text, and a function by its name alone."""
    if isinstance(value, enum.Enum):
        return _as_json(value.value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # which pydantic reads
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(map(_as_json, value), key=canonical)
    if isinstance(value, PurePath | datetime.date | datetime.time | datetime.timedelta | Decimal | uuid.UUID):
        return str(value)
    known = value if hasattr(value, "__qualname__") else type(value)
    return f"<{known.__module__}.{known.__qualname__}>"


def as_recorded(trainable: Trainable, name: str, values: Mapping[str, Any], before: Mapping[str, Any] | None) -> Any:
    """The Config of the trainable `name` with these values, and the defaults of `before`, a `whole` one that had them.

    Raises SpecError.
    """
    config = validated(trainable, name, values)
    now = whole(config)
    other = {field: value for field, value in (before or {}).items() if field in now and now[field] != value}
    return validated(trainable, name, {**values, **other}) if other else config


def chance(cell: Cell, params: Mapping[str, Any]) -> Mapping[str, float]:
    """What guessing reaches, by metric, where the trainable says it. Raises SpecError where it says nonsense."""
    trainable = of(cell)
    return chance_of(trainable, cell.trainable, configuration(trainable, cell, params))


def chance_of(trainable: Trainable, name: str, config: Any) -> Mapping[str, float]:
    """What guessing reaches with a Config, by metric; nothing where the trainable does not say. Raises SpecError."""
    known = getattr(trainable, "chance", None)
    if known is None:
        return {}
    place = f"{name}: `chance`"
    try:
        found = declared.called(known, config)
    except Raised as error:
        raise SpecError(f"{place} must say what guessing reaches, but raised {error}") from None
    if not isinstance(found, Mapping):
        raise SpecError(f"{place} must return a value by metric, such as {{'val_accuracy': 0.2}}, got {short(found)}")
    for metric, value in found.items():
        if metric not in trainable.METRICS:
            raise SpecError(f"{place} must speak of {', '.join(trainable.METRICS)}, got {short(metric)}")
        if not isinstance(value, Real) or not math.isfinite(value):
            raise SpecError(f"{place} must return a finite number for {metric}, got {short(value)}")
    return found


def metrics(study: Study) -> dict[str, Mapping[str, Metric]]:
    """The metrics of a study's trainables, by their names. Raises SpecError."""
    return {cell.trainable: of(cell).METRICS for cell in study.compared}


def code_digest(name: str, command: Command | None = None) -> str:
    """The digest of the package's source and of one's own module; of a process that of its folder. Raises DataError."""
    if command is not None and is_own_process(name):
        return OwnProcess(name, command, frozenset()).digest()
    files = sorted(package.source().rglob("*.py"))
    spec = importlib.util.find_spec(f"{OURS}.{name}" if name in names() else name)
    if spec is not None and spec.origin is not None and Path(spec.origin) not in files:
        files.append(Path(spec.origin))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
