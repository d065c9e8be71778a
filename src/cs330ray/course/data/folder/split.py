"""Which classes of a folder train, validate and test: drawn by a seed, or read from three lists beside the classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cs330ray.course.data.folder.tree import plain
from cs330ray.errors import DataError

PARTS = ("train", "val", "test")
SHARES = (0.64, 0.16, 0.20)  # of the classes: those of miniImageNet (Ravi & Larochelle 2017), 64, 16 and 20 of 100


def by_seed(names: Sequence[str], data_seed: int) -> dict[str, list[str]]:
    """Shuffle the classes by `data_seed` and cut them by SHARES; the classes of each part, sorted."""
    ends = np.rint(np.cumsum(SHARES) * len(names)).astype(int)
    shuffled = np.random.RandomState(data_seed).permutation(len(names))  # its streams never change
    return {
        part: [names[at] for at in sorted(places)]
        for part, places in zip(PARTS, np.split(shuffled, ends[:-1]), strict=True)
    }


def by_lists(root: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Read train.txt, val.txt and test.txt in the folder; the classes of each part, sorted.

    A line names a class, or a folder with every class below it. A class that no list names is not used. Raises
    DataError for a line that names none, and for a class in two lists.
    """
    parts: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for part in PARTS:
        path = root / f"{part}.txt"
        chosen = [name for line in _lines(path) for name in _named(path, line, names)]
        for name in chosen:
            if (other := taken.setdefault(name, part)) != part:
                raise DataError(
                    f"{path}: expected each class in one list, got {name!r}, also in {other}.txt; remove one"
                )
        parts[part] = sorted(set(chosen))
    return parts


def _lines(path: Path) -> list[str]:
    try:
        lines = [plain(line.strip().rstrip("/")) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "text that is not UTF-8"
        raise DataError(
            f"{path}: expected the names of its classes, one a line (split = lists), got {why}; write it, or take "
            "split = seed"
        ) from None
    if not any(lines):
        raise DataError(f"{path}: expected the names of its classes, one a line, got none; add some")
    return [line for line in lines if line]


def _named(path: Path, line: str, names: Sequence[str]) -> list[str]:
    found = [name for name in names if name == line or name.startswith(f"{line}/")]
    if not found:
        raise DataError(f"{path}: expected the name of a class or of a folder of classes, got {line!r}; correct it")
    return found
