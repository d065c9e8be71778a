"""Whether what is searched fits the fields of a Config, and whether each condition can ever hold."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cs330ray.spec.study import Cell, Study
from cs330ray.spec.tables import Choice, Domain, Range, Value
from cs330ray.trial import declared
from cs330ray.trial.contract import Trainable
from cs330ray.trial.declared import said
from cs330ray.words import short

ALL_ARE_TRIED = 64  # whole numbers of a range; of more, its ends
NULLS = {"none", "null", "nil", "nan", ""}  # what people write for the null that TOML has not
CONVERTED = "have a validator of Config turn a text into it, as docs/guide/study-file.md shows"


def misfits(trainable: Trainable, name: str, domain: Domain, field: FieldInfo) -> Iterator[str]:
    """Why a domain does not fit the field `name` of a Config, a line each."""
    if isinstance(domain, Choice):
        for value in domain.choices:
            yield from refused(trainable, name, value)
        return
    kinds = kinds_of(field.annotation) - {type(None)}
    step = "" if domain.step is None else f", step={domain.step}"
    if kinds and kinds <= {bool, str}:
        instead = "[true, false]" if kinds == {bool} else "a list of choices"
        yield f"a range is one of numbers, but {name} takes none; write {instead}"
    elif int in kinds and not domain.whole and kinds <= {int, bool, str}:
        yield f"{name} is an integer, but got low={domain.low}, high={domain.high}{step}; write whole numbers"
    elif float in kinds and domain.whole and kinds <= {float, bool, str}:
        yield f"{name} is a real number, but got whole ends; write {float(domain.low)} and {float(domain.high)}"
    for value in _tried(domain):
        yield from refused(trainable, name, value)


def kinds_of(annotation: Any) -> set[Any]:
    """The types that an annotation takes: those of a union, and of literals, each by itself."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in kinds_of(part)}
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation}


def _tried(domain: Range) -> list[int | float]:
    """The values of a range that are tried: its ends, and of a few whole numbers all."""
    if domain.whole and (domain.high - domain.low) // (domain.step or 1) < ALL_ARE_TRIED:
        return list(range(int(domain.low), int(domain.high) + 1, int(domain.step or 1)))
    return [domain.low, domain.high]


def refused(trainable: Trainable, name: str, value: Value) -> Iterator[str]:
    """Why the Config refuses `value` for `name`, all else at its default."""
    try:
        trainable.Config(**{name: value})
    except ValidationError as error:
        found = [each for each in error.errors(include_url=False) if each["loc"][:1] == (name,)]
        kinds = kinds_of(trainable.Config.model_fields[name].annotation)
        if found and isinstance(value, str) and value.lower() in NULLS and type(None) in kinds:
            yield f"TOML has no null, and {name} does not take {value!r} for None; {CONVERTED}"
        yield from map(said, found)
    except Exception as error:  # noqa: BLE001 - a validator of other people's
        yield f"no Config can be built with {short(value)}: {declared.raised(error)}"


# Conditions ----------------------------------------------------------------------------------------------------------


def never_searched(study: Study) -> Iterator[str]:
    """The parameters whose condition can hold in no cell that has them, a line each."""
    whys: dict[tuple[str, str], list[str | None]] = {}
    for cell in study.cells:
        for name, domain in cell.space.items():
            if domain.when:
                whys.setdefault((cell.trainable, name), []).append(_why_never(cell, name))
    for (_, name), found in whys.items():
        if all(found):
            yield f"search.{name}.when: {found[0]}; correct the condition, or remove {name}"


def _why_never(cell: Cell, name: str) -> str | None:
    """Why a parameter is never searched in a cell; None where it may be."""
    allowed: dict[str, list[Any]] = {}  # by parameter, what the conditions so far leave of its values
    waiting, seen = [name], {name}
    while waiting:
        here = waiting.pop(0)
        for key, wanted in (cell.space[here].when or {}).items():
            values = [
                value for value in (wanted if isinstance(wanted, list) else [wanted]) if _can_be(cell, key, value)
            ]
            through = "" if here == name else f" (as the `when` of {here} demands)"
            if not values:
                return f"{key} is {possible(cell, key)}, never {short(wanted)}{through}"
            allowed[key] = [value for value in allowed.get(key, values) if value in values]
            if not allowed[key]:
                return f"{key} must have other values for {name} than for {here}, which {name} depends on"
            if key in cell.space and key not in seen:
                seen.add(key)
                waiting.append(key)
    return None


def _can_be(cell: Cell, key: str, value: Any) -> bool:
    if key in cell.fixed:
        return bool(cell.fixed[key] == value)
    domain = cell.space[key]
    if isinstance(domain, Choice):
        return value in domain.choices
    if isinstance(value, str | list) or not domain.low <= value <= domain.high:
        return False
    return not domain.whole or (value - domain.low) % (domain.step or 1) == 0


def possible(cell: Cell, key: str) -> str:
    """Say which values a parameter can have in a cell: `from 0.1 to 1.0`, `one of ['a', 'b']`, `fixed at 3`."""
    if key in cell.fixed:
        return f"{'compared' if key in cell.values else 'fixed'} at {short(cell.fixed[key])}"
    domain = cell.space[key]
    if isinstance(domain, Choice):
        return f"one of {short(domain.choices)}"
    step = f" in steps of {domain.step or 1}" if domain.whole or domain.step else ""
    return f"from {domain.low} to {domain.high}{step}"
