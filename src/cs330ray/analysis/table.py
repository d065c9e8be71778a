"""A table of texts, for whoever shows it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sheet:
    """A table: its title, the names of its columns, and its rows as texts."""

    title: str | None
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
