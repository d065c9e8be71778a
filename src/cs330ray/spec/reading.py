"""Reading a study file, with the overrides of a command; what is no study is one line."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from cs330ray.errors import SpecError
from cs330ray.package import shipped
from cs330ray.spec.places import is_own
from cs330ray.spec.strict import by_value, first_line
from cs330ray.spec.study import Study
from cs330ray.words import short

DEEPEST = 8  # tables and lists within each other; a study has four


LARGEST = 2**63 - 1  # of TOML's whole numbers


NULL = r"[=,\[]\s*(null|None|none|nil)\s*([,\]}#]|$)"  # as other formats have it


LONGEST_KEY = 100  # characters of a name in a file


def read(path: Path, overrides: Sequence[str] = (), fork: str | None = None) -> Study:
    """Read a study file, with `--set` overrides such as "budget.trials=32"; the study. Raises SpecError."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        known = ", ".join(sorted(file.stem for file in shipped().glob("*.toml")))
        raise SpecError(
            f"{path}: a study file must be readable, but {reason}; those that come with it: {known}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError of Python's own
        null = (
            "; TOML has no null, see Choices in docs/guide/study-file.md" if re.search(NULL, text, re.MULTILINE) else ""
        )
        raise SpecError(f"{path}: a study file must be TOML, but {str(error)[:200]}; mend that place{null}") from None
    for override in overrides:
        _override(raw, override)
    if fork is not None:
        raw["name"] = fork
    study = _placed(parse(raw, str(path)), path)
    if is_own(study.name):  # one that is recorded from before stays readable
        raise SpecError(f"{path}: name: the home keeps files of its own under {study.name!r}; choose another")
    return study


def _placed(study: Study, path: Path) -> Study:
    """Make the folder of a command absolute: it is relative to the study file."""
    if study.command is None or not study.command.folder:  # of a study that was unpacked: it is not known
        return study
    folder = (path.parent / study.command.folder).resolve()
    return study.model_copy(update={"command": study.command.model_copy(update={"folder": str(folder)})})


def parse(raw: Mapping[str, Any], source: str) -> Study:
    """Check a study given as plain tables; the study. Raises SpecError in one line that begins with `source`."""
    for problem in _boundless(raw):
        raise SpecError(f"{source}: {problem}")
    try:
        return Study.model_validate(dict(raw))
    except ValidationError as error:
        more = len(by_value(error)) - 1
        suffix = f" (and {more} more)" if more else ""
        raise SpecError(f"{source}: {first_line(error)}{suffix}") from None


def _boundless(value: object, place: tuple[str, ...] = ()) -> Iterator[str]:
    """What no study has: tables without end, whole numbers beyond 64 bits, endless names."""
    where = ".".join(place)
    if isinstance(value, int) and abs(value) > LARGEST:
        yield f"{where}: `-2**63 < value < 2**63` must hold of whole numbers, but got one of {value.bit_length()} bits"
    if isinstance(value, Mapping | list) and len(place) >= DEEPEST:
        yield f"{where}: at most {DEEPEST} tables and lists in each other are needed, but got more; flatten them"
        return
    for key, inner in enumerate(value) if isinstance(value, list) else _items(value):
        name = str(key)
        if len(name) > LONGEST_KEY:
            yield f"{'.'.join([*place, short(name)])}: a name has at most {LONGEST_KEY} characters; shorten it"
        elif isinstance(inner, int | Mapping | list):
            yield from _boundless(inner, (*place, name))


def _items(value: object) -> Iterable[tuple[object, object]]:
    return value.items() if isinstance(value, Mapping) else ()


def _override(raw: dict[str, Any], override: str) -> None:
    place, equals, text = override.partition("=")
    keys = place.strip().split(".")
    if not equals or not all(keys):
        raise SpecError(f"--set {override}: `table.key=value` is needed; for example --set budget.trials=32")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    table = raw
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise SpecError(f"--set {override}: {key!r} is a value and holds no keys; name a table")
    table[keys[-1]] = value
