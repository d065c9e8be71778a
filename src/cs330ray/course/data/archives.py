"""Publishers' archives: found where people put them, or downloaded once.

    $CS330RAY_DATA/FILE                       what people put there; never written to
    CACHE/FILE                                what was downloaded; CACHE is $CS330RAY_CACHE or ~/.cache/cs330ray

$CS330RAY_OFFLINE=1 forbids downloads. A file stands under its name only when it is whole.
"""

import http.client
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cs330ray.course.data.packed import alone, cache
from cs330ray.errors import DataError
from cs330ray.files import new_file

CONNECT_TIMEOUT_S = 15
CHUNK_BYTES = 1 << 16


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
    try:
        request = urllib.request.urlopen(archive.url, timeout=CONNECT_TIMEOUT_S)  # noqa: S310 - our own constants
        with request as response, new_file(final) as partial, partial.open("xb") as file:
            total = response.headers.get("Content-Length")
            _copy(response, file, archive, int(total) if total else None)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(_missing(archive, f"the download failed ({error})")) from None


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
