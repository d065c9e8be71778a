"""One's own images as a configuration asks for them: packed once for each content, size and number of channels.

    CACHE/packed/images-DIGEST/               as every dataset is packed; DIGEST is of the files' contents
    CACHE/folders/DIGEST.json                 {"files": sha256 of names, sizes and times, "contents": sha256}

So a folder whose files have the sizes and times that they had is not read again, and one whose contents have been seen
is not decoded again. What nobody uses any more may be deleted.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cs330ray.course.data import packed
from cs330ray.course.data.episodes import Classes
from cs330ray.course.data.folder import split, tree
from cs330ray.course.data.folder.image import pixels
from cs330ray.errors import DataError
from cs330ray.files import new_file

Split = Literal["seed", "lists"]

VERSION = 1  # of the way of reading images; a new one is packed anew
BYTES_MOST = 1 << 32  # of what is packed
SETTLED_NS = 2_000_000_000  # a file that has changed since may change again without another time


class Need(NamedTuple):
    """What tasks take of the classes of a part."""

    ways: int
    shots: int
    queries: int


@dataclass(frozen=True)
class Folder:
    """A folder of one's own images, and how they are to be read and split."""

    data: str
    size: int
    channels: int
    split: Split
    data_seed: int

    @property
    def root(self) -> Path:
        """Where the folder is."""
        return tree.place(self.data)

    def pack(self) -> packed.Packed:
        """Pack the folder unless that is done: `images` (I, C, S, S), `counts` and `names` of the classes (M,).

        Raises DataError where the folder does not hold classes of images, each image in one.
        """
        classes = tree.read(self.root)
        contents = _contents(self.root, classes)
        named = hashlib.sha256(repr((VERSION, contents, self.size, self.channels)).encode()).hexdigest()
        return packed.pack(f"images-{named[:24]}", lambda: self._decoded(classes, contents))

    def prepare(self, needs: Mapping[str, Need]) -> str:
        """Pack the folder and check that each part has what its tasks need; the digest of the images and their lists.

        Raises DataError.
        """
        kept = self.pack()
        counts = dict(zip(*(kept.arrays[key].tolist() for key in ("names", "counts")), strict=True))
        parts = self._parts(kept)
        for part, need in needs.items():
            self._check(part, need, {name: counts[name] for name in parts[part]})
        if self.split == "seed":  # which is in the configuration
            return kept.digest
        return hashlib.sha256(f"{kept.digest} {json.dumps(parts)}".encode()).hexdigest()

    def classes(self, part: str) -> Classes:
        """Read the classes of one part, on the CPU, where the images are mapped from the disk. Raises DataError."""
        kept = self.pack()
        counts_M = torch.from_numpy(kept.arrays["counts"])
        places = {name: at for at, name in enumerate(kept.arrays["names"].tolist())}
        chosen = torch.tensor([places[name] for name in self._parts(kept)[part]], dtype=torch.int64)
        firsts_M = counts_M.cumsum(0) - counts_M
        return Classes(torch.from_numpy(kept.arrays["images"]), firsts_M[chosen], counts_M[chosen])

    def _check(self, part: str, need: Need, counts: Mapping[str, int]) -> None:
        """Raise DataError where a part has too few classes, or one of them too few images."""
        if len(counts) < need.ways:
            raise DataError(
                f"{self.root}: {part}: expected {need.ways} classes or more, as a task has ({need.ways} ways), got "
                f"{len(counts)} by split = {self.split}; add classes, or lower the ways"
            )
        small = [name for name, count in counts.items() if count < need.shots + need.queries]
        if small:
            others = f" (and too few in {len(small) - 1} more)" if len(small) > 1 else ""
            raise DataError(
                f"{self.root}: {part}: expected {need.shots + need.queries} images or more of each class ({need.shots} "
                f"shots + {need.queries} queries), got {counts[small[0]]} of {small[0]!r}{others}; add images, remove "
                "such classes, or lower shots or queries"
            )

    def _parts(self, kept: packed.Packed) -> Mapping[str, list[str]]:
        names = kept.arrays["names"].tolist()
        return split.by_seed(names, self.data_seed) if self.split == "seed" else split.by_lists(self.root, names)

    def _decoded(self, classes: tree.Tree, contents: str) -> dict[str, NDArray[Any]]:
        """Decode every image; raises DataError for one that is none, and for one that is in two classes."""
        counts = np.array([len(files) for files in classes.values()], dtype=np.int64)
        shape = (int(counts.sum()), self.channels, self.size, self.size)
        if (bytes_ := int(np.prod(shape))) > BYTES_MOST:
            raise DataError(
                f"{self.root}: expected at most {BYTES_MOST >> 30} GiB of packed images, got {bytes_ / 2**30:.1f} "
                f"({shape[0]} of {self.size}x{self.size}x{self.channels}); lower `size`, or take a part of them"
            )
        files, shas = _files(classes), list[bytes]()
        images = np.empty(shape, np.uint8)
        with _progress(self.root.name, len(files)) as advance:
            for at, path in enumerate(files):
                content = _read(path)
                images[at] = pixels(str(path), BytesIO(content), self.size, self.channels)
                shas.append(hashlib.sha256(content).digest())
                advance()
        if _digest(classes, shas) != contents:
            raise DataError(f"{self.root}: expected images that stay as they are, got one that changed; run it again")
        _check_copies(classes, shas)
        return {"images": images, "counts": counts, "names": np.array(list(classes))}


def _contents(root: Path, classes: tree.Tree) -> str:
    """The digest of the names of the classes and the bytes of their images, read again only where a file may differ."""
    now, files = time.time_ns(), _files(classes)
    try:
        stats = [path.stat() for path in files]
    except OSError as error:
        raise DataError(f"{error.filename}: expected an image, got {error.strerror}; run it again") from None
    times = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in stats]
    signature = hashlib.sha256(repr([*zip(map(str, files), times, strict=True)]).encode()).hexdigest()
    seen = packed.cache() / "folders" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.json"
    if (known := _known(seen, signature)) is not None:
        return known
    contents = _digest(classes, [hashlib.sha256(_read(path)).digest() for path in files])
    if all(stat.st_ctime_ns < now - SETTLED_NS for stat in stats):
        _keep(seen, {"files": signature, "contents": contents})
    return contents


def _known(seen: Path, signature: str) -> str | None:
    """The digest that was found for files of this signature, if any."""
    try:
        held = json.loads(seen.read_bytes())
        return str(held["contents"]) if held["files"] == signature else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(seen: Path, held: Mapping[str, str]) -> None:
    """Remember a digest; where the cache cannot be written, the files are read again next time."""
    with suppress(OSError):
        seen.parent.mkdir(parents=True, exist_ok=True)
        with new_file(seen) as partial:
            partial.write_text(json.dumps(held))


def _files(classes: tree.Tree) -> list[Path]:
    return [path for files in classes.values() for path in files]


def _digest(classes: tree.Tree, shas: Sequence[bytes]) -> str:
    sizes = repr([(name, len(files)) for name, files in classes.items()])
    return hashlib.sha256(sizes.encode() + b"".join(shas)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected an image to read, got {error.strerror}; check its permissions") from None


def _check_copies(classes: tree.Tree, shas: Sequence[bytes]) -> None:
    """Raise DataError where an image is in two classes: it could be learned from and tested on, under two names.

    Copies within a class are left: Omniglot has two equal drawings itself.
    """
    known: dict[bytes, tuple[str, Path]] = {}
    placed = [(name, path) for name, files in classes.items() for path in files]
    pairs = zip(placed, shas, strict=True)
    copies = [(path, other) for (name, path), sha in pairs if (other := known.setdefault(sha, (name, path)))[0] != name]
    if copies:
        path, (_, other_path) = copies[0]
        more = f" (and {len(copies) - 1} more such copies)" if len(copies) > 1 else ""
        raise DataError(f"{path}: expected each image in one class, got a copy of {other_path}{more}; remove one")


@contextmanager
def _progress(name: str, images: int) -> Iterator[Callable[[], None]]:
    """Show on a terminal how many images are decoded; what tells it that one more is."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
        bar = progress.add_task(name, total=images)
        yield lambda: progress.advance(bar)
