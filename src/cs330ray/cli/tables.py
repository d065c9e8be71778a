"""Tables in a terminal, or in a file."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cs330ray.words import printable

if TYPE_CHECKING:
    from cs330ray.analysis.table import Sheet

STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red", "RUNNING": "cyan"}


def table_of(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table; states in their colours."""
    heading = None if title is None else Text(printable(title))
    table = Table(
        title=heading, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(text), style=STYLES.get(text, "")) for text in row))
    return table


def plain_table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table without colours and edges, for a pipe: thousands of rows take no time."""
    columns, *rows = [[printable(text).replace("\n", "\\n") for text in row] for row in [columns, *rows]]
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [
        "  ".join(set_cell_size(text, width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [columns, *rows]
    ]
    return "\n".join([printable(title), *lines] if title else lines)


def print_table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: folded at the edge of a terminal, whole into a pipe."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        Console(highlight=False).print(table_of(title, columns, rows))
    else:  # a pipe has no edge to fold at
        typer.echo(plain_table(title, columns, rows))


def print_sheet(sheet: "Sheet") -> None:
    """Print a sheet as a table."""
    print_table(sheet.title, sheet.columns, sheet.rows)
