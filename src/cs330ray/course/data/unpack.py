"""Archives read into memory: each member within a bound, none extracted to disk, nothing outside the archive named."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, Self, cast

from cs330ray.course.data.archives import CHUNK_BYTES, Archive
from cs330ray.errors import DataError

DIRECTORY_BYTES = 1 << 23  # of the list of what is in a zip; those of the largest published one have 1.9 MB
HEADER_BYTES = 1 << 16  # of a long name in a tar
TAR_MEMBERS = 10_000


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
