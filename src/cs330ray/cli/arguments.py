"""What commands share: their arguments, and how they find a ledger, a cell and a trial."""

import contextlib
import gc
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cs330ray.errors import SpecError
from cs330ray.spec.places import LEDGER, home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cs330ray.ledger.ledger import Ledger
    from cs330ray.ledger.records import Trial
    from cs330ray.ledger.writer import Writer
    from cs330ray.spec.study import Cell, Study


Name = Annotated[str, typer.Argument(metavar="STUDY", help="a study's name, as in `cs330ray list`")]


Replicate = Annotated[int, typer.Option(metavar="R", help="of which replicate, where a study has several")]


Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override the file, e.g. budget.trials=32")
]


def prefix() -> str:
    """What makes a command find this home from another shell."""
    return f"CS330RAY_HOME={shlex.quote(str(home()))} " if home() != Path("runs") else ""


def ledger_here(*, follow: bool = False) -> "Ledger":
    """Open the ledger of this home for reading, or to `follow` it. Raises SpecError where there is none."""
    from cs330ray.ledger.ledger import Ledger
    from cs330ray.ledger.once import LedgerOnce

    _must_be_here()
    return Ledger.at(home(), access="follow") if follow else LedgerOnce.at(home())


@contextlib.contextmanager
def read_once() -> "Iterator[Ledger]":
    """Open the ledger of this home for a command that reads it and ends. Raises SpecError where there is none.

    Looking for garbage among all that stays would take a quarter of its time.
    """
    gc.disable()
    try:
        yield ledger_here()
    finally:
        gc.enable()


def writer_here() -> "Writer":
    """Open the ledger of this home for writing. Raises SpecError where there is none."""
    from cs330ray.ledger.writer import Writer

    _must_be_here()
    return Writer.at(home())


def ledger_is_here() -> bool:
    """Whether this home has a ledger."""
    return bool(os.environ.get("CS330RAY_LEDGER")) or os.path.exists(home() / LEDGER)  # noqa: PTH110 - False where it may not be seen


def _must_be_here() -> None:
    if not ledger_is_here():
        raise SpecError(f"{home()}: a ledger is needed here, but there is none; run a study, or set CS330RAY_HOME")


def cell_of(study: "Study", name: str, replicate: int = 0) -> "Cell":
    """The cell of this title, or key, in a replicate. Raises SpecError."""
    found = [cell for cell in cells_of(study, replicate) if name in (cell.title, cell.key)]
    if not found:
        cells = ", ".join(repr(cell.title) for cell in study.compared)
        raise SpecError(f"--cell: one of {cells} is needed, but got {name!r}")
    return found[0]


def cells_of(study: "Study", replicate: int) -> "list[Cell]":
    """The cells of a replicate. Raises SpecError where the study has none of that number."""
    if not 0 <= replicate < study.repeat.searches:
        has = "replicate 0 alone" if study.repeat.searches == 1 else f"one from 0 to {study.repeat.searches - 1}"
        raise SpecError(f"--replicate: {study.name} has {has}, got {replicate}; see `cs330ray show {study.name}`")
    return study.replicate(replicate)


def trial_of(ledger: "Ledger", study: "Study", number: int, cell: str | None, replicate: int = 0) -> "Trial":
    """The one trial of this number in a replicate, in the cell that is named or in any. Raises SpecError."""
    chosen = cells_of(study, replicate) if cell is None else [cell_of(study, cell, replicate)]
    found = [trial for each in chosen for trial in ledger.trials(study, each) if trial.number == number]
    cells = ", ".join(repr(each.title) for each in study.compared)
    if len(found) != 1:
        why = (
            f"{len(found)} cells have it; add --cell with one of {cells}"
            if found
            else "there is none; see `cs330ray show`"
        )
        raise SpecError(f"{study.name}: trial {number} must be one trial, but {why}")
    return found[0]
