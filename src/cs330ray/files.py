"""Files and directories that are written whole or not at all: under another name, fsync, rename.

What a killed process leaves half-written has a name of `PARTIAL`, which a reader passes over.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

PARTIAL = ".partial-*"

Result = TypeVar("Result")


def make_directory(final: Path, fill: Callable[[Path], Result]) -> Result:
    """Have `fill` write into an empty directory, and rename that to `final`; what `fill` returned.

    Where `final` is there by then, it must be empty. Raises what `fill` raises, and OSError; then nothing is left.
    """
    partial = _beside(final)
    try:
        partial.mkdir(parents=True)
        result = fill(partial)
        for path in [*partial.rglob("*"), partial]:
            fsync(path)
        partial.rename(final)
        fsync(final.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result


@contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of `final` at the end of the block.

    Where the block raises, or the disk does, `final` stays as it was and nothing else is left.
    """
    partial = _beside(final)
    try:
        yield partial
        fsync(partial)
        partial.replace(final)
        fsync(final.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(final: Path, text: str) -> Path:
    """Write a text file, in the place of one that is there; its path."""
    with new_file(final) as partial:
        partial.write_text(text, encoding="utf-8")
    return final


def fsync(path: Path) -> None:
    """Have the disk hold a file, or the names in a directory, before anything that comes after."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(final: Path) -> Path:
    return final.with_name(f".partial-{final.name}-{uuid.uuid4().hex[:8]}")
