"""Checkpoints as directories: temporary name, fsync, digest, rename. A reader sees a whole one or none.

HOME/step-00000120/        what `Progress.save` wrote: tensors and JSON, never code
HOME/step-00000120/MANIFEST.json    {"step": 120, "files": {"state.safetensors": "sha256..."}}
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cs330ray import files
from cs330ray.errors import CheckpointError
from cs330ray.words import first_line

MANIFEST = "MANIFEST.json"
MANIFEST_BYTES = 1 << 24
PROBE_BYTES = 1024**2
OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}  # full, over quota, broken, gone from the network


class DiskFault(OSError):  # noqa: N818 - the disk's, not ours
    """The disk takes no checkpoint: everybody's matter, and no failure of the trial that wanted to write one."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint: the outer steps done in it, its directory, and the digest of its manifest."""

    step: int
    path: Path
    digest: str


def write(home: Path, step: int, save: Callable[[Path], None], keep: int = 2) -> Checkpoint:
    """Write a checkpoint of `step` under `home` and keep the `keep` newest; the checkpoint.

    One that is already there and whole is left as it is: the same step of the same trial is the same moment. Raises
    DiskFault where the disk takes none, and else what `save` raises.
    """
    final = home / name_of(step)
    if (whole := _whole(final)) is not None:
        return whole

    def fill(partial: Path) -> None:
        save(partial)
        digests = {
            path.relative_to(partial).as_posix(): _sha256(path) for path in sorted(partial.rglob("*")) if path.is_file()
        }
        (partial / MANIFEST).write_text(json.dumps({"step": step, "files": digests}, sort_keys=True))
        if final.exists():  # a torn one: _whole said so
            shutil.rmtree(final)

    with disk_faults(home):
        files.make_directory(final, fill)
    for old in [path for path in _directories(home) if path <= final][:-keep]:  # later ones are torn: nothing led here
        shutil.rmtree(old, ignore_errors=True)
    return read(final)


def sweep(home: Path) -> None:
    """Remove what a killed process left half-written under `home`; only for who alone writes there."""
    for partial in home.glob(files.PARTIAL):
        shutil.rmtree(partial, ignore_errors=True)


def forget_after(home: Path, step: int) -> None:
    """Remove the checkpoints under `home` beyond `step`: what the record does not hold has not happened."""
    for path in _directories(home):
        if path > home / name_of(step):
            shutil.rmtree(path, ignore_errors=True)


def copy(source: Checkpoint, into: Path) -> None:
    """Copy what a checkpoint holds, but not its manifest, into the empty directory `into`."""
    shutil.copytree(source.path, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))


def remove(home: Path) -> None:
    """Remove every checkpoint under `home`."""
    sweep(home)
    for path in _directories(home):
        shutil.rmtree(path, ignore_errors=True)


def newest(home: Path) -> Checkpoint | None:
    """The newest whole checkpoint under `home`, or None; torn ones are passed over."""
    for path in reversed(_directories(home)):
        if (whole := _whole(path)) is not None:
            return whole
    return None


def read(path: Path) -> Checkpoint:
    """Check the directory `path` against its manifest; the checkpoint. Raises CheckpointError where it is not whole."""
    try:
        if not (path / MANIFEST).is_file() or (path / MANIFEST).stat().st_size > MANIFEST_BYTES:
            raise ValueError("it is no file, or too large")
        text = (path / MANIFEST).read_bytes()
        manifest = json.loads(text)
        step, digests = manifest["step"], manifest["files"]
        if type(step) is not int or step < 0 or not isinstance(digests, dict):
            raise ValueError("`step` must be a number and `files` a table")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: a checkpoint holds a {MANIFEST}, but this one cannot be read ({error}); use another"
        ) from None
    for name, digest in digests.items():
        if not _matches(path, name, digest):
            raise CheckpointError(
                f"{path}: {name} must match its digest, but it is missing or altered; use another checkpoint"
            )
    return Checkpoint(step, path, hashlib.sha256(text).hexdigest())


@contextmanager
def disk_faults(home: Path) -> Iterator[None]:
    """Raise DiskFault in place of what is raised within, where the disk under `home` is why."""
    try:
        yield
    except Exception as error:
        if fault := _fault_of_disk(error, home):
            raise DiskFault(fault) from error
        raise


def _fault_of_disk(error: Exception, home: Path) -> str:
    """What is wrong with the disk under `home`, where that is why a checkpoint could not be written; else nothing.

    A large file may fill a disk that has room for the probe once that file is gone: so what an error says comes first.
    """
    for each in _causes(error):
        if isinstance(each, DiskFault) or (isinstance(each, OSError) and each.errno in OF_DISKS):
            return each.strerror or str(each)
        text = str(each)
        hidden = re.search(r"\(os error (\d+)\)", text)  # of safetensors; torch's own words have no number
        if (hidden and int(hidden[1]) in OF_DISKS) or "file write failed" in text:
            return first_line(each)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".partial-probe-") as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as fault:
        return fault.strerror or str(fault)
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _whole(path: Path) -> Checkpoint | None:
    try:
        return read(path)
    except CheckpointError:
        return None


def _matches(path: Path, name: str, digest: object) -> bool:
    try:
        file = (path / name).resolve()
        return file.is_relative_to(path.resolve()) and file.is_file() and _sha256(file) == digest
    except (OSError, ValueError):  # absent, unreadable, a directory, no name at all
        return False


def name_of(step: int) -> str:
    """The name of the directory of a checkpoint of `step`."""
    return f"step-{step:08d}"


def _directories(home: Path) -> list[Path]:
    return sorted(home.glob("step-*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
