"""Files and directories that are written whole or not at all: under another name, fsync, rename.

What a killed process leaves half-written has a name of `PARTIAL`, which a reader passes over. The temporary directories
that it leaves are removed by the next process that makes one.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

PARTIAL = ".partial-*"
BORN_S = 60  # within which a temporary directory has its lock

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


class Scratch:
    """A temporary directory of one kind, `ledger` for one, which lasts as long as this object and its process.

    Directories of the same kind that a killed process of this user left behind are removed first. Raises OSError.
    """

    def __init__(self, kind: str) -> None:
        prefix = f"cs330ray-{kind}-"
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _remove_if_left(left)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self.remove = weakref.finalize(self, _remove, self.path, _locked(self.path))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def _locked(folder: Path) -> int:
    """Open a directory and lock it, until it is closed or the process is gone. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove(folder: Path, handle: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)


def _remove_if_left(folder: Path) -> None:
    """Remove a directory of this user that no process holds; a newborn one is not locked yet."""
    with contextlib.suppress(OSError):
        at = folder.lstat()
        if at.st_uid == os.getuid() and time.time() - at.st_mtime > BORN_S:
            _remove(folder, _locked(folder))


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
