"""Packed content: built once into the cache, and mapped into memory by every process.

    CACHE/packed/NAME/images.npy ...          what was packed; CACHE is $CS330RAY_CACHE or ~/.cache/cs330ray
    CACHE/packed/NAME/manifest.json           {"digest": "sha256...", "bytes": {"images.npy": 25447808}}

A directory stands under its name only when it is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cs330ray.errors import DataError
from cs330ray.files import make_directory

LOCK_TIMEOUT_S = 1800  # another process may be downloading or packing all that while
MANIFEST = "manifest.json"


def cache() -> Path:
    """The directory that downloads and packed arrays are kept in. Raises DataError where this user has no home."""
    try:
        return Path(os.environ.get("CS330RAY_CACHE") or "~/.cache/cs330ray").expanduser()
    except RuntimeError:  # Python's, for a user whom the system does not know
        raise DataError("HOME: expected the home directory of this user, got none; set HOME to a directory") from None


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

    def fill_and_seal(directory: Path) -> None:
        digest = fill(directory)
        sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
        (directory / MANIFEST).write_text(json.dumps({"digest": digest, "bytes": sizes}))

    try:
        make_directory(final, fill_and_seal)
    except OSError as error:
        raise DataError(
            f"{final}: what is kept must fit on the disk, but {error}; free space or set CS330RAY_CACHE"
        ) from None


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
