"""Trainables by name: the one place where the service reaches a system, and checks a study against it."""

import difflib
import hashlib
import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from cs330ray import package
from cs330ray.errors import SpecError
from cs330ray.spec.study import Cell
from cs330ray.trial.contract import Trainable
from cs330ray.words import short

OURS = "cs330ray.course.systems"  # the package of the systems that come with it
SYSTEMS = ("finetune", "icl", "maml", "mann", "multitask", "protonet")


def names() -> list[str]:
    """The trainables that come with the package."""
    return list(SYSTEMS)


def load(name: str) -> Trainable:
    """Import the trainable `name`: one of `names()`, or `package.module`. Raises SpecError."""
    target = f"{OURS}.{name}" if name in names() else name
    if "." not in target or not re.fullmatch(r"\w+(\.\w+)+", target):
        near = difflib.get_close_matches(name, names(), n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise SpecError(
            f"trainable: one of {', '.join(names())} or package.module is needed, but got {short(name)}{meant}"
        )
    try:
        module = importlib.import_module(target)
    except (ImportError, SyntaxError) as error:
        raise SpecError(
            f"trainable: {short(name)} must be importable, but {short(str(error), 200)}; check the name, and set "
            f"PYTHONPATH to the directory that holds {target.replace('.', '/')}.py (PYTHONPATH=. where that is here)"
        ) from None
    missing = [part for part in ("Config", "METRICS", "prepare", "train", "test") if not hasattr(module, part)]
    if missing:
        raise SpecError(f"trainable: {name!r} must define {', '.join(missing)}; cs330ray.trial.Trainable says how")
    return cast("Trainable", module)


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


def chance(cell: Cell, params: Mapping[str, Any]) -> Mapping[str, float]:
    """What guessing reaches, by metric, where the trainable says it."""
    trainable = load(cell.trainable)
    known = getattr(trainable, "chance", None)
    return cast("Mapping[str, float]", known(configuration(trainable, cell, params))) if known is not None else {}


def code_digest(name: str) -> str:
    """The digest of the package's source and, for a trainable of one's own, of its module."""
    files = sorted(package.source().rglob("*.py"))
    spec = importlib.util.find_spec(f"{OURS}.{name}" if name in names() else name)
    if spec is not None and spec.origin is not None and Path(spec.origin) not in files:
        files.append(Path(spec.origin))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def said(found: Any) -> str:
    """What pydantic found, in our words."""
    message = str(found["msg"]).removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}, but got {short(found['input'])}"
