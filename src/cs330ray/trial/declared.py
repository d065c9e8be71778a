"""What a trainable's module declares, checked when it is loaded: each problem in one line.

The module is other people's code, so whatever it raises is a finding, with the file and line of theirs that raised it.
"""

import inspect
import math
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from cs330ray.errors import Cs330rayError
from cs330ray.spec.columns import TAKEN, TAKEN_PARAMETERS
from cs330ray.trial.contract import Metric, Trainable
from cs330ray.words import first_line_of, short


@dataclass(frozen=True)
class Promise:
    """One promise: whether it holds, None where it could not be tested, and what is to be said of that."""

    name: str
    holds: bool | None
    said: str


NEEDED = ("Config", "METRICS", "prepare", "train", "test")
SIGNATURES = {  # as they are called, each by place; those after the star may be left out of a module
    "prepare": "config", "train": "config, seed, steps, resume", "test": "config, seed, checkpoint",
    "chance": "config", "export": "config, seed, checkpoint", "ready": "config, exported",
    "train_many": "members, left",
}  # fmt: skip
GOALS = {"maximize": "max", "maximise": "max", "minimize": "min", "minimise": "min"}


def problems(module: ModuleType) -> Iterator[str]:
    """What a module declares otherwise than `Trainable` says, a line each, the first that matters first."""
    if missing := [part for part in NEEDED if not hasattr(module, part)]:
        yield f"must define {', '.join(missing)}; cs330ray.trial.Trainable says how"
        return
    yield from _of_config(module.Config)
    yield from _of_metrics(module.METRICS)
    for name in SIGNATURES:
        if hasattr(module, name):
            yield from _of_function(name, getattr(module, name))
    yield from _of_company(module)
    splits = getattr(module, "SPLITS", "parts")
    if not isinstance(splits, str) or not splits:
        yield f"SPLITS: a word for what workers share out is expected, such as 'tasks', got {short(splits)}"


def _of_company(module: ModuleType) -> Iterator[str]:
    """What is wrong with how trials may train together."""
    fusible = getattr(module, "FUSIBLE", None)
    if hasattr(module, "train_many") != (fusible is not None):
        has, lacks = ("FUSIBLE", "train_many") if fusible is not None else ("train_many", "FUSIBLE")
        yield f"{lacks}: expected beside {has}, got none; write both, or remove {has}"
    elif fusible is not None and not (
        isinstance(fusible, Set) and fusible <= set(getattr(module.Config, "model_fields", ()))
    ):
        yield f"FUSIBLE: a frozenset of names of Config's fields is expected, got {short(fusible)}"


def _of_config(config: object) -> Iterator[str]:
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        got = f"the class {config.__name__}" if isinstance(config, type) else short(config)
        yield f"Config: a class derived from pydantic's BaseModel is expected, got {got}"
        return
    try:
        config()
    except ValidationError:
        pass  # a study may give what has no default; what it leaves wrong is said when its configurations are built
    except Exception as error:  # noqa: BLE001 - other people's code
        yield f"Config: one of defaults alone cannot be built: {raised(error)}; correct it there"


def _of_metrics(metrics: object) -> Iterator[str]:
    if not isinstance(metrics, Mapping) or not metrics:
        yield f'METRICS: a dictionary such as {{"val_loss": Metric("min")}} is expected, got {short(metrics)}'
        return
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name:
            yield f"METRICS: each name must be a text, got {short(name)}"
        elif not isinstance(metric, Metric):
            goal = GOALS.get(metric, metric) if isinstance(metric, str) else None
            write = f'Metric("{goal}")' if goal in ("max", "min") else 'Metric("max") or Metric("min")'
            yield f"METRICS[{name!r}]: a Metric is expected, got {short(metric)}; write {write}"
        else:
            yield from (f"METRICS[{name!r}].{problem}" for problem in _of_metric(metric))


def _of_metric(metric: Metric) -> Iterator[str]:
    goal: object = metric.goal
    if goal not in ("max", "min"):
        near = GOALS.get(goal) if isinstance(goal, str) else None
        yield f"goal: 'max' or 'min' is expected, got {short(goal)}{f'; write {near!r}' if near else ''}"
    for end in ("low", "high"):
        bound: object = getattr(metric, end)
        if not isinstance(bound, Real) or math.isnan(bound):
            yield f"{end}: a number is expected, got {short(bound)}"
            return
    if not metric.low < metric.high:
        yield f"low: `low < high` must hold, got low={metric.low}, high={metric.high}"
    unit: object = metric.unit
    if not isinstance(unit, str):
        yield f"unit: a text is expected, got {short(unit)}"


def _of_function(name: str, function: object) -> Iterator[str]:
    wanted = SIGNATURES[name].split(", ")
    if not callable(function):
        yield f"{name}: a function `{name}({SIGNATURES[name]})` is expected, got {short(function)}"
        return
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield f"{name}: a plain function is expected, got an async one; write `def {name}`"
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C, which says nothing of itself
        return
    try:
        signature.bind(*wanted)
        misplaced = [each for at, each in enumerate(signature.parameters) if each in wanted and each != wanted[at]]
    except TypeError:
        misplaced = wanted
    if misplaced:
        bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
        got = signature.replace(parameters=bare, return_annotation=signature.empty)
        default = "=None" if name == "train" else ""
        yield f"{name}: `{name}({SIGNATURES[name]}{default})` is expected, got `{name}{got}`"


def taken(trainable: Trainable) -> str | None:
    """Which metrics and parameters of a trainable have names of the record's own, in one line; None where none has."""
    metrics = sorted(TAKEN.intersection(trainable.METRICS))
    parameters = sorted(TAKEN_PARAMETERS.intersection(trainable.Config.model_fields))
    if not metrics and not parameters:
        return None
    found = [f"METRICS has {', '.join(metrics)}"] * bool(metrics) + [f"Config has {', '.join(parameters)}"] * bool(
        parameters
    )
    names = ", ".join(sorted(TAKEN))
    return f"{' and '.join(found)}, but the record has columns of these names ({names}); choose other names"


# What other people's code raises -----------------------------------------------------------------------------------


def called(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a trainable returns. Raises Raised for whatever it raises, but our own errors and Ctrl-C."""
    try:
        return function(*arguments)
    except (Cs330rayError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Raised(raised(error)) from error


class Raised(Exception):  # noqa: N818 - what it is, not what went wrong
    """What other people's code raised, in one line."""


def raised(error: BaseException) -> str:
    """Say an error in one line: its type, the first line of its message, and where in other people's code it arose."""
    if isinstance(error, SyntaxError):
        message, where = error.msg, f"{_near(error.filename or '?')}:{error.lineno}"
    else:
        message, where = first_line_of(str(error)), place_of(error)
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{said} ({where})" if where else said


def place_of(error: BaseException) -> str:
    """The file and line of the last frame in other people's code; of an installed package, that of its first frame."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    own = [frame for frame in frames if not {"site-packages", "dist-packages"} & set(Path(frame.filename).parts)]
    last = own[-1] if own else next(iter(frames), None)
    return f"{_near(last.filename)}:{last.lineno}" if last is not None else ""


def _is_ours(file: str) -> bool:
    """Whether a file is Python's or this package's; the systems of the course are checked as other people's are."""
    package, path = Path(__file__).parents[1], Path(file)
    if path.is_relative_to(package):
        return not path.is_relative_to(package / "course")
    python = sysconfig.get_paths()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return file.startswith("<") or (path.is_relative_to(python["stdlib"]) and not installed)


def _near(file: str) -> str:
    """A path as seen from here, where it is below."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def said(found: Any) -> str:
    """What pydantic found, in our words."""
    if found["type"] == "missing":
        return "a value is expected, since Config has no default for it; write one under [fixed]"
    message = first_line_of(str(found["msg"]).removeprefix("Value error, "), "it is refused")
    got = "" if " got " in message else f", but got {short(found['input'])}"
    return f"{message[:1].lower()}{message[1:]}{got}"
