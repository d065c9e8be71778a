"""The store: finds publishers' archives, downloads what is missing, reads them safely, packs their content once.

    $CS330RAY_DATA/FILE                       what people put there; never written to
    CACHE/FILE                                what was downloaded; CACHE is $CS330RAY_CACHE or ~/.cache/cs330ray
    CACHE/packed/NAME/images.npy ...          what was packed; every process maps it into memory
    CACHE/packed/NAME/manifest.json           {"digest": "sha256...", "bytes": {"images.npy": 25447808}}

$CS330RAY_OFFLINE=1 forbids downloads. A file or directory stands under its name only when it is whole.
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, Self, cast

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cs330ray.errors import DataError

CONNECT_TIMEOUT_S = 15
LOCK_TIMEOUT_S = 1800  # another process may be downloading or packing all that while
CHUNK_BYTES = 1 << 16
DIRECTORY_BYTES = 1 << 23  # of the list of what is in a zip; those of the largest published one have 1.9 MB
HEADER_BYTES = 1 << 16  # of a long name in a tar
TAR_MEMBERS = 10_000
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
    also: str | None = None  # the name of what stands at `url`, where that is another; taken as well

    @property
    def found(self) -> Path | None:
        """Where the archive lies, in $CS330RAY_DATA or in the cache, or None."""
        places = [place for place in (_given(), cache()) if place is not None]
        paths = [place / name for place in places for name in (self.file, self.also) if name is not None]
        return next((path for path in paths if path.is_file()), None)

    @property
    def downloaded(self) -> str:
        """The name that a download has."""
        return self.also or self.file

    @property
    def remedy(self) -> str:
        """What to do about an archive that is not what it should be."""
        return f"replace it with {self.url}, or use the dataset `{self.instead}`, which needs no archive"


_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_BABI = "https://s3.amazonaws.com/text-datasets/babi_tasks_1-20_v1-2.tar.gz"  # Keras' copy
_XSUM = "https://huggingface.co/datasets/EdinburghNLP/xsum/resolve/refs%2Fconvert%2Fparquet/default/validation"
_AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_Musical_Instruments_5.json.gz"

ARCHIVES = {
    archive.file: archive
    for archive in [
        Archive("omniglot", "images_background.zip", f"{_OMNIGLOT}/images_background.zip", "MIT", "glyphs"),
        Archive("omniglot", "images_evaluation.zip", f"{_OMNIGLOT}/images_evaluation.zip", "MIT", "glyphs"),
        Archive("movielens", "ml-100k.zip", f"{_GROUPLENS}/ml-100k.zip", "research use, no redistribution", "planted"),
        Archive("babi", "tasks_1-20_v1-2.tar.gz", _BABI, "CC BY 3.0", "rooms", max_bytes=1 << 28),
        Archive("xsum", "xsum.jsonl", f"{_XSUM}/0000.parquet", "research use", "rooms", also="xsum.parquet"),
        Archive(
            "amazon",
            "Musical_Instruments_5.json.gz",
            _AMAZON,
            "research use, cite",
            "rooms",
            also="reviews_Musical_Instruments_5.json.gz",
        ),
    ]
}


def archives() -> list[Archive]:
    """List every archive that a dataset may need; each says where it was `found`."""
    return list(ARCHIVES.values())


def cache() -> Path:
    """The directory that downloads and packed arrays are kept in."""
    return Path(os.environ.get("CS330RAY_CACHE") or "~/.cache/cs330ray").expanduser()


def offline() -> bool:
    """Whether CS330RAY_OFFLINE forbids downloads."""
    return os.environ.get("CS330RAY_OFFLINE", "0") not in ("", "0")


def fetch(archive: Archive) -> Path:
    """Find the archive, or download it into the cache; its path. Raises DataError where neither can be done."""
    if (found := archive.found) is not None:
        return found
    if offline():
        raise DataError(_missing(archive, "CS330RAY_OFFLINE forbids downloads"))
    with alone(cache(), archive.file):
        if (found := archive.found) is None:  # unless another process fetched it meanwhile
            found = cache() / archive.downloaded
            _download(archive, found)
    return found


def _given() -> Path | None:
    directory = os.environ.get("CS330RAY_DATA")
    return Path(directory).expanduser() if directory else None


def _missing(archive: Archive, reason: object) -> str:
    return (
        f"{archive.file}: {archive.name} needs it, but it is neither in $CS330RAY_DATA ({_given() or 'unset'}) "
        f"nor in {cache()}, and {reason}; fetch {archive.url} and put it into one of them "
        f"as {archive.downloaded}, "
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
        with open_zip(path) as zipped:
            found = sorted(members(zipped, archive.max_bytes, member_bytes), key=lambda member: member.filename)
            return {member.filename: _unpack(zipped, member) for member in found}
    except SPOILT_ZIP as error:
        raise DataError(f"{path}: must be a whole and plain zip archive, but {error}; {archive.remedy}") from None


SPOILT_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, IndexError, OSError, RuntimeError, ValueError)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose list of members fits DIRECTORY_BYTES; raises one of SPOILT_ZIP where it is none."""
    with _Sparing(io.FileIO(path)) as file, zipfile.ZipFile(file) as zipped:
        yield zipped


class _Sparing(io.BufferedReader):
    """A file that raises ValueError where more than DIRECTORY_BYTES are read at once, as only a zip's list could be."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = DIRECTORY_BYTES + 1
        content = super().read(most if size is None or size < 0 else min(size, most))
        if len(content) == most:
            raise ValueError(f"the list of what is in it has more than {DIRECTORY_BYTES} bytes")
        return content


def members(zipped: zipfile.ZipFile, total_bytes: int, member_bytes: int) -> Iterator[zipfile.ZipInfo]:
    """List the files of a zip that are worth reading; raises ValueError at one that must not be read."""
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


def read_tar(archive: Archive, path: Path, member_bytes: int, folder: str) -> dict[str, bytes]:
    """Read the files right in a `folder` of the gzipped tar at `path` into memory, extracting none to disk; by name.

    Each may have `member_bytes` at most; all that the archive holds, in other folders too, `archive.max_bytes`. Hidden
    files are left out. Raises DataError where the archive is torn, names a place outside itself, holds anything but
    plain files and folders, or is larger than that.
    """
    try:
        with gzip.open(path) as unzipped:
            stream = _Whole(unzipped, archive.max_bytes)
            with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", tarinfo=_Member) as tar:
                files = dict(_tar_members(tar, member_bytes, folder))
            while stream.read(CHUNK_BYTES):  # to its end, where the checksum is
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError, OverflowError, ValueError) as error:
        raise DataError(f"{path}: must be a whole and plain tar.gz archive, but {error}; {archive.remedy}") from None
    return dict(sorted(files.items()))


def read_gz(archive: Archive, path: Path) -> bytes:
    """Unpack the gzip file at `path` in memory; raises DataError where it is torn or larger than it may be."""
    try:
        with gzip.open(path) as unzipped:
            stream = _Bounded(unzipped, archive.max_bytes)
            content = b"".join(iter(lambda: stream.read(CHUNK_BYTES), b""))
        if not content:
            raise ValueError("it is empty")
    except (zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path}: must be a whole gzip file, but {error}; {archive.remedy}") from None
    return content


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Bounded:
    """A stream that raises ValueError where it goes on beyond a number of bytes."""

    def __init__(self, stream: _Readable, limit: int) -> None:
        self._stream, self._limit, self._left = stream, limit, limit

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or what is left; a size that a header lies about takes no memory."""
        chunk = self._stream.read(min(size, self._left + 1))
        self._left -= len(chunk)
        if self._left < 0:
            raise ValueError(f"it unpacks beyond the bound of {self._limit} bytes")
        return chunk


class _Whole(_Bounded):
    """The stream of a tar without holes: those of a pax header are read in a time that is the square of their size."""

    _tail = b""

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or what is left."""
        chunk = super().read(size)
        if b"GNU.sparse" in self._tail + chunk:
            raise ValueError("a member of it is a link, a device or has holes")
        self._tail = chunk[-9:]
        return chunk


class _Member(tarfile.TarInfo):
    """A member of a tar whose header takes no more memory than it must."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header's block; raises ValueError where it announces an endless name or holes."""
        member = super().frombuf(buf, encoding, errors)
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError(f"{member.name!r} is a link, a device or has holes")
        if member.size > HEADER_BYTES and not (member.isreg() or member.isdir()):
            raise ValueError(f"{member.name!r} has a header of {member.size} bytes, more than {HEADER_BYTES}")
        return member


def _tar_members(tar: tarfile.TarFile, member_bytes: int, folder: str) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files right in `folder`; raises ValueError at a member that must not be."""
    seen: set[str] = set()
    for count, member in enumerate(tar, 1):
        if count > TAR_MEMBERS:
            raise ValueError(f"it has more than {TAR_MEMBERS} members")
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise ValueError(f"{member.name!r} names a place outside it")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise ValueError(f"{member.name!r} is a link, a device or has holes")
        if member.name in seen:
            raise ValueError(f"{member.name!r} stands in it twice")
        seen.add(member.name)
        if name.parent.name != folder or name.name.startswith("."):
            continue
        if member.size > member_bytes:
            raise ValueError(f"{member.name!r} ({member.size} bytes) is beyond the bound")
        file = tar.extractfile(member)
        assert file is not None  # it is a plain file
        yield member.name, file.read()


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
    with alone(final.parent, name):
        if (packed := _open(final)) is None:  # unless another process packed it meanwhile
            arrays = build()
            keep(final, lambda directory: _save(arrays, directory))
            packed = _open(final)
    if packed is None:
        raise DataError(f"{final}: what was just packed must be readable, but is not; check the disk")
    return packed


def _open(path: Path) -> Packed | None:
    if (kept := whole(path)) is None:
        return None
    digest, files = kept
    try:
        arrays = {Path(file).stem: np.lib.format.open_memmap(path / file, mode="c") for file in files}
    except Exception:  # noqa: BLE001 - NumPy reads a header as Python source, and a spoilt one raises whatever that may
        return None
    return Packed(path, arrays, digest)


def _save(arrays: Mapping[str, NDArray[Any]], directory: Path) -> str:
    """Write the arrays into an empty directory; their digest."""
    for key, array in arrays.items():
        np.save(directory / f"{key}.npy", array, allow_pickle=False)
    return _digest(arrays)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The sha256 over names, types, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def whole(path: Path) -> tuple[str, list[str]] | None:
    """Read what the directory at `path` was kept with: its digest and its files; None unless each has its size."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        sizes, digest = dict(manifest["bytes"]), str(manifest["digest"])
        if any(
            Path(file).name != file or not (path / file).is_file() or (path / file).stat().st_size != size
            for file, size in sizes.items()
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return digest, list(sizes)


def keep(final: Path, fill: Callable[[Path], str]) -> None:
    """Have `fill` write into an empty directory, put it into its place whole; for the holder of the lock alone.

    `fill` returns the digest of what it wrote. Raises DataError where the disk fails.
    """
    for torn in [final, *final.parent.glob(f".partial-{final.name}-*")]:
        shutil.rmtree(torn, ignore_errors=True)
    partial = final.with_name(f".partial-{final.name}-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir()
        digest = fill(partial)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"digest": digest, "bytes": sizes}))
        for path in [*partial.iterdir(), partial]:
            _fsync(path)
        partial.rename(final)
        _fsync(final.parent)
    except OSError as error:
        raise DataError(
            f"{final}: what is kept must fit on the disk, but {error}; free space or set CS330RAY_CACHE"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def alone(directory: Path, name: str) -> Iterator[None]:
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
