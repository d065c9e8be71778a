"""The configurations that a search tries first: what [start] gives, as points of each cell's space."""

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from cs330ray.errors import SpecError
from cs330ray.spec.study import Cell, Study, canonical
from cs330ray.spec.tables import Choice, Domain, applies
from cs330ray.trial.contract import Trainable
from cs330ray.trial.domains import possible
from cs330ray.trial.named import configuration, of
from cs330ray.words import short


def starts(study: Study, cell: Cell) -> list[dict[str, Any]]:
    """Find the configurations that a cell tries first, in order, equal ones once. Raises SpecError in one line.

    A parameter that a start does not name has the value of Config, and one whose condition does not hold is left out. A
    name that only other cells search is theirs.
    """
    trainable, found = of(cell), dict[str, dict[str, Any]]()
    for index, start in enumerate(study.start):
        given = {} if start == "default" else start
        for problem in _misnamed(study, given):
            raise SpecError(f"start.{index}.{problem}")
        if cell.space:
            params = _point(trainable, cell, given, f"start.{index}")
            found.setdefault(canonical(params), params)
    return list(found.values())


def _misnamed(study: Study, given: Mapping[str, Any]) -> Iterator[str]:
    for name in given:
        if name in study.searched:
            continue
        for cell in study.compared:
            if name in cell.fixed:
                where = "compare" if name in cell.values else "fixed"
                yield f"{name}: expected a parameter of [search], got one of [{where}]; remove it here"
                return
        near = difflib.get_close_matches(name, study.searched, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(study.searched)}); correct the name"
        yield f"{name}: expected a parameter of [search], got {short(name)}{hint}"


def _point(trainable: Trainable, cell: Cell, given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The point of a cell's space that a start names. Raises SpecError."""
    named = {name: value for name, value in given.items() if name in cell.space}
    for name, value in named.items():
        if (found := _within(cell.space[name], value)) is None:
            raise SpecError(
                f"{place}.{name}: expected {possible(cell, name)}, got {short(value)}; write such a value, or widen "
                f"search.{name}"
            )
        named[name] = found
    for name in cell.space:
        if name not in named and trainable.Config.model_fields[name].is_required():
            raise SpecError(f"{place}.{name}: expected a value, since Config has no default, got none; write one")
    params: dict[str, Any] = {}
    config = _config(trainable, cell, named, place)
    for name, domain in cell.space.items():  # each stands behind those of its condition
        if not applies(domain, {**cell.fixed, **params}):
            continue
        params[name] = named[name] if name in named else _default(trainable, cell, name, config, named)
        if params[name] is None:
            raise SpecError(
                f"{place}.{name}: expected {possible(cell, name)}, got {short(getattr(config, name))}, the value of "
                f"{cell.trainable}'s Config; write another here, or widen search.{name}"
            )
    _config(trainable, cell, params, place)
    return params


def _config(trainable: Trainable, cell: Cell, params: Mapping[str, Any], place: str) -> Any:
    try:
        return configuration(trainable, cell, params)
    except SpecError as error:
        raise SpecError(f"{place}: {error}") from None


def _default(trainable: Trainable, cell: Cell, name: str, config: Any, named: Mapping[str, Any]) -> Any:
    """Config's own value of a parameter, as a value of its domain, None where it is none.

    A choice may be a text that a validator of Config turns into that value.
    """
    domain, value = cell.space[name], getattr(config, name)
    found = _within(domain, value)
    for choice in domain.choices if found is None and isinstance(domain, Choice) else ():
        try:
            if getattr(configuration(trainable, cell, {**named, name: choice}), name) == value:
                return choice
        except SpecError:  # a choice that goes with others alone
            continue
    return found


def _within(domain: Domain, value: Any) -> Any:
    """A value as a domain holds it, None where it is outside: 1 is 1.0 among real numbers, and no truth value."""
    if isinstance(domain, Choice):
        same = [choice for choice in domain.choices if choice == value]
        return next((choice for choice in same if isinstance(choice, bool) is isinstance(value, bool)), None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not domain.low <= value <= domain.high:
        return None
    if domain.whole:
        return int(value) if (value - domain.low) % (domain.step or 1) == 0 else None
    steps = 0.0 if domain.step is None else (value - domain.low) / domain.step
    return float(value) if math.isclose(steps, round(steps), abs_tol=1e-8) else None
