"""Where ratings of one's own are: a file, or a folder or .zip as published, with a file of titles beside them.

ratings.csv .tsv .dat .parquet, u.data    each also with .gz; a file that is named itself may have any name
movies.csv .dat, titles.csv .tsv, u.item  optional: the items' titles
"""

import functools
import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from cs330ray.course.data import unpack
from cs330ray.errors import DataError
from cs330ray.words import first_line

RATINGS = ("ratings.csv", "ratings.tsv", "ratings.dat", "ratings.parquet", "u.data")
TITLES = ("movies.csv", "movies.dat", "titles.csv", "titles.tsv", "u.item")
MEMBER_BYTES = 1 << 34  # of a file in a .zip, unpacked; ml-32m's ratings have 0.9 GB
NAMES_SHOWN = 8  # of what a folder holds instead
SPOILT = (*unpack.SPOILT_ZIP, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True)
class File:
    """A file of a table: on the disk, or a member of a .zip there."""

    path: Path
    member: str | None = None

    @property
    def place(self) -> str:
        """The file as a message names it."""
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    @property
    def name(self) -> str:
        """The last part of its name in lower case, without `.gz`."""
        return PurePosixPath(self.member or self.path.as_posix()).name.lower().removesuffix(".gz")

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open its content, unpacked. Raises DataError where it cannot be read to the end."""
        try:
            with ExitStack() as stack:
                if self.member is None:
                    file: IO[bytes] = stack.enter_context(self.path.open("rb"))
                else:
                    file = stack.enter_context(stack.enter_context(unpack.open_zip(self.path)).open(self.member))
                if (self.member or self.path.name).lower().endswith(".gz"):
                    file = cast("IO[bytes]", stack.enter_context(gzip.open(file)))
                yield file
        except SPOILT as error:
            raise DataError(f"{self.place}: expected a whole file, but {first_line(error)}; replace it") from None


def find(data: str) -> tuple[File, File | None]:
    """Find the ratings at a path, and the titles beside them where there are any. Raises DataError."""
    try:
        path = Path(data).expanduser()
        if path.is_dir():
            return _chosen(data, _in_folder(path))
        if path.is_file() and path.suffix.lower() == ".zip":
            return _chosen(data, _in_zip(path))
        if path.is_file():
            return File(path), _one_of(data, "titles", TITLES, _in_folder(path.parent))
    except (OSError, RuntimeError) as error:  # a RuntimeError where `~` names nobody
        raise DataError(f"data: {data}: expected readable ratings, but {first_line(error)}; check the path") from None
    raise DataError(
        f"data: {data}: expected a file, folder or .zip of ratings, got nothing at {path.absolute()}; check the path"
    )


def digest(files: Sequence[File]) -> str:
    """The sha256 over the content of the files on the disk that hold these tables. Raises DataError."""
    try:
        stats = {file.path: file.path.stat() for file in files}
        parts = [_digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in sorted(stats.items())]
    except OSError as error:
        raise DataError(f"{files[0].path}: expected a readable file, but {first_line(error)}; check the path") from None
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, time_ns: int, number: int) -> str:  # noqa: ARG001 - tell one version from another
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_folder(path: Path) -> dict[str, list[File]]:
    """The files right in a folder, by name."""
    return _by_name([File(entry) for entry in sorted(path.iterdir()) if entry.is_file()])


def _in_zip(path: Path) -> dict[str, list[File]]:
    """The files anywhere in a .zip, by name. Raises DataError."""
    try:
        with unpack.open_zip(path) as zipped:
            found = [member.filename for member in unpack.members(zipped, 4 * MEMBER_BYTES, MEMBER_BYTES)]
    except (*SPOILT, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected a whole and plain .zip, but {first_line(error)}; replace it") from None
    return _by_name([File(path, name) for name in sorted(found)])


def _by_name(files: Sequence[File]) -> dict[str, list[File]]:
    found: dict[str, list[File]] = {}
    for file in files:
        found.setdefault(file.name, []).append(file)
    return found


def _chosen(data: str, files: Mapping[str, list[File]]) -> tuple[File, File | None]:
    ratings = _one_of(data, "ratings", RATINGS, files)
    if ratings is None:
        names = ", ".join([*files][:NAMES_SHOWN]) + (", ..." if len(files) > NAMES_SHOWN else "")
        raise DataError(
            f"data: {data}: expected one of {', '.join(RATINGS)} in it, got {names or 'no file'}; "
            "rename the file of ratings, or name it itself"
        )
    return ratings, _one_of(data, "titles", TITLES, files)


def _one_of(data: str, what: str, names: Sequence[str], files: Mapping[str, list[File]]) -> File | None:
    """The one file that has one of these names, None where there is none. Raises DataError where there are several."""
    found = [file for name in names for file in files.get(name, [])]
    if len(found) > 1:
        raise DataError(
            f"data: {data}: expected one file of {what}, got {' and '.join(file.place for file in found[:2])}; "
            "move one away"
        )
    return found[0] if found else None
