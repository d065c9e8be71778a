"""A store of objects at an address that pyarrow or fsspec knows: s3://, gs://, file:// and others; no call is endless.

What lies there is for `copies` to say. Whatever a store does wrong is a StoreFault.
"""

import contextlib
import functools
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

import pyarrow
from pyarrow import fs

from cs330ray import files
from cs330ray.errors import SpecError
from cs330ray.words import first_line, redacted, short

VARIABLE = "CS330RAY_CHECKPOINTS"
ANSWER_S = 30.0  # how long a call may move nothing
CHUNK_BYTES = 8 * 1024**2
FLAT = ("s3", "gcs", "abfs")  # where there are no directories to make
S3_OPTIONS = {  # a write returns when it is done, and a small file is one request
    "connect_timeout": 5, "request_timeout": 20, "background_writes": False, "allow_delayed_open": True,
}  # fmt: skip
S3_ATTEMPTS = 3
GCS_PATIENCE_S = 20  # by default it is 15 minutes

Moves = Callable[[], None]  # what a call says whenever something has gone through


class StoreFault(OSError):  # noqa: N818 - the store's, not ours
    """The store does not answer, or refuses. As with a disk that takes nothing, a trial goes on or waits."""


class Store:
    """The objects below one address. Each call may raise StoreFault."""

    def __init__(self, address: str, files: fs.FileSystem, root: str, secrets: Iterable[str] = ()) -> None:
        self.address = address  # without credentials: it is recorded and shown
        self._files, self._root = files, root.rstrip("/")
        self._secrets = [secret for secret in secrets if secret]
        self._hung: _Call | None = None

    def files(self, place: str) -> dict[str, int]:
        """The size of each file below `place`, by its name there."""
        selector = fs.FileSelector(self._path(place), recursive=True, allow_not_found=True)
        base = f"{self._path(place)}/".lstrip("/")
        return {
            info.path.lstrip("/").removeprefix(base): int(info.size or 0)
            for info in self._call(lambda _: self._files.get_file_info(selector))
            if info.type == fs.FileType.File
        }

    def has(self, place: str) -> bool:
        """Whether there is a file."""
        return bool(self._call(lambda _: self._files.get_file_info(self._path(place))).type == fs.FileType.File)

    def read(self, place: str, most: int) -> bytes:
        """The first `most` bytes of a file. Raises FileNotFoundError."""

        def read(_: Moves) -> bytes:
            with self._files.open_input_stream(self._path(place), compression=None) as stream:
                return bytes(stream.read(most))

        return bytes(self._call(read, may_lack=True))

    def write(self, place: str, content: bytes) -> None:
        """Write a small file."""
        self._call(lambda moves: self._send([content], place, moves))

    def upload(self, source: Path, place: str) -> None:
        """Copy a file of this machine to the store."""
        self._call(lambda moves: self._send(_chunks(source), place, moves))

    def download(self, place: str, into: BinaryIO) -> str:
        """Copy a file of the store into one of this machine; its sha256. Raises FileNotFoundError."""

        def receive(moves: Moves) -> str:
            digest = hashlib.sha256()
            with self._files.open_input_stream(self._path(place), compression=None) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
                    into.write(chunk)
                    moves()
            return digest.hexdigest()

        return str(self._call(receive, may_lack=True))

    def remove(self, place: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""

        def remove(_: Moves) -> None:
            found = self._files.get_file_info(self._path(place)).type
            with contextlib.suppress(FileNotFoundError):  # somebody was quicker
                if found == fs.FileType.File:
                    self._files.delete_file(self._path(place))
                elif found == fs.FileType.Directory:
                    self._files.delete_dir(self._path(place))

        self._call(remove)

    def _send(self, chunks: Iterable[bytes], place: str, moves: Moves) -> None:
        path = self._path(place)
        if self._files.type_name not in FLAT:
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
        stream = self._files.open_output_stream(path, compression=None)
        for chunk in chunks:
            stream.write(chunk)
            moves()
        stream.close()  # not where a write failed: that would make a file of what there is
        if self._files.type_name == "local":
            files.fsync(Path(path))
            for folder in Path(path).parents:
                with contextlib.suppress(OSError):  # a call that some shared disks do not have
                    files.fsync(folder)
                if folder == Path(self._root):
                    break

    def _path(self, place: str) -> str:
        return f"{self._root}/{place}" if place else self._root

    def _call(self, work: Callable[[Moves], Any], *, may_lack: bool = False) -> Any:
        """What `work` returns, a FileNotFoundError too if it `may_lack`. While a call hangs, no other is begun."""
        if self._hung is not None and self._hung.is_alive():
            raise StoreFault(f"{self.address} has not answered yet")
        call = _Call(work)
        call.start()
        if not call.ends():
            self._hung = call
            raise StoreFault(f"{self.address} does not answer within {ANSWER_S:g}s")
        if call.error is None:
            return call.result
        if may_lack and isinstance(call.error, FileNotFoundError):
            raise FileNotFoundError(f"{self.address}: {_reason(call.error, self._secrets)}")
        raise StoreFault(f"{self.address}: {_reason(call.error, self._secrets)}")


class _Call(threading.Thread):
    """A call to a store in a thread of its own, which is left behind where it hangs."""

    def __init__(self, work: Callable[[Moves], Any]) -> None:
        super().__init__(daemon=True)
        self._work, self._moved_s = work, time.monotonic()
        self.result: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Do the work."""
        try:
            self.result = self._work(self._moves)
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            self.error = error.with_traceback(None)  # whose frames hold a stream that is closed when let go

    def _moves(self) -> None:
        self._moved_s = time.monotonic()

    def ends(self) -> bool:
        """Wait until it is over; False as soon as nothing has moved for too long."""
        while self.is_alive():
            left_s = self._moved_s + ANSWER_S - time.monotonic()
            if left_s <= 0:
                return False
            self.join(left_s)
        return True


# Opening ------------------------------------------------------------------------------------------------------------


def wanted() -> str | None:
    """Where checkpoints are to be copied, as an address, or None. Raises SpecError where it is none, nor a path."""
    url = os.environ.get(VARIABLE)
    if not url:
        return None
    if url.startswith("/"):
        return Path(url).as_uri()
    shown = short(redacted(re.sub(r"//.*@", "//***@", url.partition("?")[0], flags=re.DOTALL)), 200)
    if not re.match(r"[a-z][a-z0-9+.-]*://", url):
        raise SpecError(
            f"{VARIABLE}: an address such as s3://bucket/folder, or a path such as /shared/folder, is needed, "
            f"but got {shown}"
        )
    query = "" if url.startswith("file:") else "?"
    if (wrong := re.search(rf"[^!$&-;=@-Z\[\]_a-z~%{query}]|%(?![0-9A-Fa-f]{{2}})", url)) is not None:
        raise SpecError(
            f"{VARIABLE}: in {shown} a {wrong[0]!r} must be written {quote(wrong[0], safe='')}; or, for a folder, give "
            "its path alone: /shared/my folder"
        )
    if "@" in urlsplit(url).path:
        raise SpecError(
            f"{VARIABLE}: in {shown} a / or @ that is part of a name or password must be written %2F or %40; mend it"
        )
    return url


def tried(url: str) -> Store:
    """The store at an address, once a small object was written there, read and removed. Raises SpecError."""
    probe, content = f".cs330ray-{uuid.uuid4().hex}", b"to see whether this can be written"
    try:
        store = at(url)
        store.write(probe, content)
        if store.read(probe, len(content) + 1) != content:
            raise StoreFault(f"{store.address}: what was written is not what is read")
        store.remove(probe)
    except OSError as fault:
        raise SpecError(
            f"{VARIABLE}: a place to write, read and remove in is needed, but {fault}; mend it, or unset it"
        ) from None
    return store


@functools.lru_cache(maxsize=4)
def at(url: str) -> Store:
    """The store at an address; once a process. Raises StoreFault."""
    parts = urlsplit(url)
    user, secret = parts.username or "", parts.password or ""
    host = parts.netloc.rpartition("@")[2] if secret else parts.netloc
    address = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
    secrets = [url, secret, unquote(secret), *((user, unquote(user)) if secret else ())]
    call = _Call(lambda _: _opened(url))
    call.start()
    if not call.ends():
        raise StoreFault(f"{address} does not answer within {ANSWER_S:g}s")
    if call.error is not None:
        raise StoreFault(f"{address}: {_reason(call.error, secrets)}")
    files, root = call.result
    return Store(address, files, root, secrets)


def _opened(url: str) -> tuple[fs.FileSystem, str]:
    if url.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in url:
        url += f"{'&' if '?' in url else '?'}retry_limit_seconds={GCS_PATIENCE_S}"
    try:
        files, root = fs.FileSystem.from_uri(url)
    except pyarrow.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        files, root = fs.FileSystem.from_uri(f"fsspec+{url}")
    if files.type_name == "s3":
        _, (options,) = files.__reduce__()  # what an address cannot say
        retry = fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)
        files = fs.S3FileSystem(**{**options, **S3_OPTIONS, "retry_strategy": retry})
    return files, root


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _reason(error: Exception, secrets: Iterable[str]) -> str:
    """What a store says in one line, without what opens it."""
    text = first_line(error)
    for secret in secrets:
        text = text.replace(secret, "***") if secret else text
    return text
