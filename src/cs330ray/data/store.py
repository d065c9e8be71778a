"""The store: finds publishers' archives, downloads what is missing, reads them safely, packs their content once.

    $CS330RAY_DATA/FILE                       what people put there; never written to
    CACHE/FILE                                what was downloaded; CACHE is $CS330RAY_CACHE or ~/.cache/cs330ray
    CACHE/packed/NAME/images.npy ...          what was packed; every process maps it into memory
    CACHE/packed/NAME/manifest.json           {"digest": "sha256...", "bytes": {"images.npy": 25447808}}

$CS330RAY_OFFLINE=1 forbids downloads. A file or directory stands under its name only when it is whole.
"""

import hashlib
import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cs330ray.errors import DataError

CONNECT_TIMEOUT_S = 15
LOCK_TIMEOUT_S = 1800  # another process may be downloading or packing all that while
CHUNK_BYTES = 1 << 16
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Archive:
    """One file of a publisher: the dataset it belongs to, where it comes from, under which terms."""

    name: str  # the dataset
    file: str
    url: str
    licence: str
    instead: str  # the dataset of the same kind that needs no archive
    max_bytes: int = 1 << 26  # of the file, and of its content unpacked

    @property
    def found(self) -> Path | None:
        """Where the archive lies, in $CS330RAY_DATA or in the cache, or None."""
        places = [place / self.file for place in (_given(), cache()) if place is not None]
        return next((path for path in places if path.is_file()), None)

    @property
    def remedy(self) -> str:
        """What to do about an archive that is not what it should be."""
        return f"replace it with {self.url}, or use the dataset `{self.instead}`, which needs no archive"


_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"

ARCHIVES = {
    archive.file: archive
    for archive in [
        Archive("omniglot", "images_background.zip", f"{_OMNIGLOT}/images_background.zip", "MIT", "glyphs"),
        Archive("omniglot", "images_evaluation.zip", f"{_OMNIGLOT}/images_evaluation.zip", "MIT", "glyphs"),
        Archive("movielens", "ml-100k.zip", f"{_GROUPLENS}/ml-100k.zip", "research use, no redistribution", "planted"),
    ]
}


def archives() -> list[Archive]:
    """List every archive that a dataset may need; each says where it was `found`."""
    return list(ARCHIVES.values())


def cache() -> Path:
    """The directory that downloads and packed arrays are kept in."""
    return Path(os.environ.get("CS330RAY_CACHE") or "~/.cache/cs330ray").expanduser()


def fetch(archive: Archive) -> Path:
    """Find the archive, or download it into the cache; its path. Raises DataError where neither can be done."""
    if (found := archive.found) is not None:
        return found
    if os.environ.get("CS330RAY_OFFLINE", "0") not in ("", "0"):
        raise DataError(_missing(archive, "CS330RAY_OFFLINE forbids downloads"))
    with _alone(cache(), archive.file):
        if (found := archive.found) is None:  # unless another process fetched it meanwhile
            found = cache() / archive.file
            _download(archive, found)
    return found


def _given() -> Path | None:
    directory = os.environ.get("CS330RAY_DATA")
    return Path(directory).expanduser() if directory else None


def _missing(archive: Archive, reason: object) -> str:
    return (
        f"{archive.file}: {archive.name} needs it, but it is neither in $CS330RAY_DATA ({_given() or 'unset'}) "
        f"nor in {cache()}, and {reason}; fetch {archive.url} and put it into one of them, "
        f"or use the dataset `{archive.instead}`, which needs no archive"
    )


def _download(archive: Archive, final: Path) -> None:
    """Download the archive under a temporary name, then rename; for the holder of the lock alone."""
    for torn in final.parent.glob(f".partial-{final.name}-*"):
        torn.unlink()
    partial = final.with_name(f".partial-{final.name}-{uuid.uuid4().hex[:8]}")
    try:
        request = urllib.request.urlopen(archive.url, timeout=CONNECT_TIMEOUT_S)  # noqa: S310 - our own constants
        with request as response, partial.open("xb") as file:
            total = response.headers.get("Content-Length")
            _copy(response, file, archive, int(total) if total else None)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(final)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(_missing(archive, f"the download failed ({error})")) from None
    finally:
        partial.unlink(missing_ok=True)


def _copy(response: http.client.HTTPResponse, file: IO[bytes], archive: Archive, total: int | None) -> None:
    """Copy the response into the file under a progress bar; raises OSError where it is too long or too short."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    copied = 0
    with Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
        bar = progress.add_task(archive.file, total=total)
        while chunk := response.read(CHUNK_BYTES):
            copied += len(chunk)
            if copied > archive.max_bytes:
                raise OSError(f"it must not be longer than {archive.max_bytes} bytes")
            file.write(chunk)
            progress.advance(bar, len(chunk))
    if total is not None and copied != total:
        raise OSError(f"it ended after {copied} of {total} bytes")


def read_zip(archive: Archive, path: Path, member_bytes: int) -> dict[str, bytes]:
    """Read every file of the zip at `path` into memory, extracting none to disk; their bytes by name, sorted.

    Each may unpack to `member_bytes` at most, all to `archive.max_bytes`. Hidden files and __MACOSX are left out.
    Raises DataError where the zip is torn, names a place outside itself, or is larger than that.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            members = sorted(_members(zipped, archive.max_bytes, member_bytes), key=lambda member: member.filename)
            return {member.filename: _unpack(zipped, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: must be a whole and plain zip archive, but {error}; {archive.remedy}") from None


def _members(zipped: zipfile.ZipFile, total_bytes: int, member_bytes: int) -> Iterator[zipfile.ZipInfo]:
    """The files worth reading; raises ValueError at one that must not be read."""
    seen: set[str] = set()
    for member in zipped.infolist():
        name = PurePosixPath(member.filename)
        if member.is_dir() or "__MACOSX" in name.parts or name.name.startswith("."):
            continue
        total_bytes -= member.file_size
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
            raise ValueError(f"{member.filename!r} names a place outside it")
        if member.filename in seen:
            raise ValueError(f"{member.filename!r} stands in it twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename!r} is neither stored nor deflated")
        if member.file_size > member_bytes or total_bytes < 0:
            raise ValueError(f"{member.filename!r} ({member.file_size} bytes) unpacks it beyond the bound")
        seen.add(member.filename)
        yield member


def _unpack(zipped: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with zipped.open(member) as file:
        content = file.read(
            member.file_size + 1
        )  # a bound of our own: without one, a lying header could fill the memory
    if len(content) != member.file_size:
        raise ValueError(f"{member.filename!r} is cut short")
    return content


@dataclass(frozen=True)
class Packed:
    """Packed content: its arrays, mapped into memory, and the sha256 over them. Writing into one changes no file."""

    path: Path
    arrays: Mapping[str, NDArray[Any]]
    digest: str

    def verify(self) -> None:
        """Compare the arrays with their digest, reading all of them; raises DataError where they differ."""
        if _digest(self.arrays) != self.digest:
            raise DataError(
                f"{self.path}: packed arrays must match their digest, but were altered; delete this directory"
            )


def pack(name: str, build: Callable[[], Mapping[str, NDArray[Any]]]) -> Packed:
    """Build arrays once into the cache; the packed arrays, by the keys that `build` gives them.

    `name` must tell one content or version from another. Safe between processes: one builds, the others wait and map
    what it built; one that is killed leaves nothing that would be taken for good.
    """
    final = cache() / "packed" / name
    if (packed := _open(final)) is not None:
        return packed
    with _alone(final.parent, name):
        if (packed := _open(final)) is None:  # unless another process packed it meanwhile
            _write(final, build())
            packed = _open(final)
    if packed is None:
        raise DataError(f"{final}: what was just packed must be readable, but is not; check the disk")
    return packed


def _open(path: Path) -> Packed | None:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        sizes, digest = dict(manifest["bytes"]), str(manifest["digest"])
        if any((path / file).stat().st_size != size for file, size in sizes.items()):
            return None
        arrays = {Path(file).stem: np.load(path / file, mmap_mode="c", allow_pickle=False) for file in sizes}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Packed(path, arrays, digest)


def _write(final: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays and their manifest under a temporary name, then rename; for the holder of the lock alone."""
    for torn in [final, *final.parent.glob(f".partial-{final.name}-*")]:
        shutil.rmtree(torn, ignore_errors=True)
    partial = final.with_name(f".partial-{final.name}-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir()
        for key, array in arrays.items():
            np.save(partial / f"{key}.npy", array, allow_pickle=False)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"digest": _digest(arrays), "bytes": sizes}))
        for path in [*partial.iterdir(), partial]:
            _fsync(path)
        partial.rename(final)
        _fsync(final.parent)
    except OSError as error:
        raise DataError(
            f"{final}: packed arrays must fit on the disk, but {error}; free space or set CS330RAY_CACHE"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The sha256 over names, types, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


@contextmanager
def _alone(directory: Path, name: str) -> Iterator[None]:
    """Hold the lock on `name` in `directory`, making the directory; raises DataError where that cannot be done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / f".{name}.lock", timeout=LOCK_TIMEOUT_S)
        lock.acquire()
    except Timeout:
        raise DataError(
            f"{directory}: {name} is being made by another process for over {LOCK_TIMEOUT_S} s; end that one"
        ) from None
    except OSError as error:
        raise DataError(f"{directory}: the cache must be writable, but {error}; set CS330RAY_CACHE") from None
    try:
        yield
    finally:
        lock.release()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
