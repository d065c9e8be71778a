"""Plain tables as TOML text, which `tomllib` reads back as they were; Python's library does not write TOML."""

import math
from collections.abc import Mapping
from typing import Any


def document(tables: Mapping[str, Any]) -> str:
    """A whole file: a line for each of the outermost keys."""
    return "".join(f"{text(key)} = {inline(value)}\n" for key, value in tables.items())


def inline(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text(key)} = {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return hex(value) if value > 2**63 else str(value)  # Python writes no number of thousands of digits
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return text(value) if isinstance(value, str) else value.isoformat()  # a date or a time


def text(content: str) -> str:
    """A text between quotes, whatever is in it."""
    escaped = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in content)
    return '"' + "".join(escaped) + '"'
