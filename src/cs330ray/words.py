"""Texts that many modules print: numbers, parameters, durations, plurals, quoted values, addresses, first lines."""

import re
import traceback
from collections.abc import Mapping
from typing import Any

# Numbers and values ------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 4) -> str:
    """Write a number in so many significant digits: `0.8402`."""
    return f"{value:.{digits}g}"


def shown(value: Any) -> str:
    """Write a value of a configuration: a float in four digits, all else as it is."""
    return number(value) if isinstance(value, float) else str(value)


def params(values: Mapping[str, Any], between: str = " ") -> str:
    """Write parameters in one line: `inner_lr=0.4 body=pooled`."""
    return between.join(f"{name}={shown(value)}" for name, value in values.items())


def duration(seconds: float) -> str:
    """Write seconds as people say them: 42s, 3m 05s, 2h 10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def plural(count: int, noun: str) -> str:
    """Count things: `1 fresh seed`, `5 fresh seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# What others have written ------------------------------------------------------------------------------------------


def short(value: object, length: int = 60) -> str:
    """Quote a value as Python writes it, cut where it is long; at most `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def redacted(text: str) -> str:
    """Hide the name and password of an address in a text; the text for messages."""
    hidden = re.sub(r"//\S*@", "//***@", text)
    return re.sub(r"(password|passwd|token|secret)=[^&\s]*", r"\1=***", hidden)


def first_line(error: BaseException) -> str:
    """Take the first line of an error that says something, or the name of its class."""
    return first_line_of(str(error), type(error).__name__)


def first_line_of(text: str, otherwise: str = "") -> str:
    """Take the first line of a text that says something, or `otherwise`."""
    return next((line.strip() for line in text.splitlines() if line.strip()), otherwise)


def typed_first_line(error: BaseException) -> str:
    """Say an error as Python does, in one line: `ValueError: no such file`."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]
