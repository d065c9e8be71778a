"""The strict table that every table of a study file is, and its errors in one line."""

import difflib
import re

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
)
from pydantic_core import ErrorDetails

from cs330ray.words import short


class Strict(BaseModel):
    """A frozen table that refuses unknown keys, wrong types and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def by_value(error: ValidationError) -> dict[tuple[str, ...], list[ErrorDetails]]:
    """The errors by the place of the wrong value: a union complains once a member, and of a table and its contents."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for one in error.errors(include_url=False):
        place = tuple(str(part) for part in one["loc"] if not _is_union_tag(part))
        found.setdefault(place, []).append(one)
    outer = {place[:length] for place in found for length in range(len(place))}
    return {place: errors for place, errors in found.items() if place not in outer}


def first_line(error: ValidationError, within: str = "") -> str:
    """Say the first error of a table in one line that begins with its place."""
    keys, errors = next(iter(by_value(error).items()))
    first = errors[0]
    place = ".".join([within, *keys] if within else keys)
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_suggestion(error.title, first['loc'])}; remove it or mend its name"
    elif first["type"] == "missing":
        message = "this key is needed; add it"
    elif first["loc"] and _is_union_tag(first["loc"][-1]):
        wanted = "text, a finite number, true or false" if len(errors) > 2 else "a finite number"
        message = f"{wanted} is needed, but got {short(first['input'])}"
    elif first["type"] in ("model_type", "dict_type"):
        message = f"a table is needed, but got {short(first['input'])}"
    elif first["type"] != "value_error":
        message = f"{message[:1].lower()}{message[1:]}, but got {short(first['input'])}"
    if place == "search" and first["type"] == "value_error":
        return f"{place}.{message}"
    return f"{place}: {message}" if place else message


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and bool(re.search(r"[\[(]|^(bool|int|float|str|function-.*|Range|Choice)$", part))


def _suggestion(title: str, place: tuple[int | str, ...]) -> str:
    wanted = title if len(place) == 1 else str(place[-2]).capitalize()
    model = next((table for table in Strict.__subclasses__() if table.__name__ == wanted), None)
    if model is None:
        return ""
    near = difflib.get_close_matches(str(place[-1]), model.model_fields, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(model.model_fields)})"
