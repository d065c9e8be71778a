"""MovieLens-100k (Harper & Konstan 2015): 100,000 ratings of 1,682 films by 943 users; and `planted`, its stand-in.

The publishers' archive is verified by content: its numbers, and that each of u1-u5 divides the very ratings of u.data,
whose five test parts divide them too. It may be used for research and not be passed on.

`planted` needs no archive: ratings of a low-rank model whose noise is known, so that no prediction of it has a lower
mean squared error than `PLANTED_FLOOR`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cs330ray.course.data import archives, packed, unpack
from cs330ray.errors import DataError, SpecError

FILE = "ml-100k.zip"
MEMBER_BYTES = 1 << 22  # the published files have 1,979,173 bytes at most
DATASETS = ("movielens", "planted")
FOLDS = ("u1", "u2", "u3", "u4", "u5")
SPLITS = ("course", *FOLDS)
PARTS = ("train", "val", "test")
HELD_OUT = 0.05  # share of ALL ratings: of validation in every split, and of test in `course`


@dataclass(frozen=True)
class Facts:
    """What the archive must hold."""

    ratings: int = 100_000
    users: int = 943
    items: int = 1682
    fold: int = 20_000  # ratings in the test part of each of u1-u5


@dataclass(frozen=True)
class Planted:
    """How `planted` is drawn: stars = mean + a_i + b_j + x_i . y_j + noise; deviations are in stars.

    Not rounded and not cut, so that the noise alone is the floor. Each user's items are drawn at random, liked ones
    more often, so that a ranking can be learned. Dense and of rank one: the 54,000 ratings of `course` settle the 1,200
    numbers that are planted, and the floor is within reach.
    """

    version: int = 1  # of the way of drawing below; a new one is packed anew
    seed: int = 330
    users: int = 300
    items: int = 300
    rated: int = 200  # items that each user has rated
    rank: int = 1
    mean: float = 3.5
    bias: float = 0.4  # of users, and of items
    taste: float = 0.6  # of x_i . y_j
    noise: float = 0.9


@dataclass(frozen=True)
class Ratings:
    """Ratings of one part, in no order; users and items are counted from 0."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    stars: NDArray[np.float32]


FACTS = Facts()
PLANTED = Planted()
PLANTED_FLOOR = PLANTED.noise**2


def ratings(dataset: str, split: str, data_seed: int, part: str) -> Ratings:
    """Read one part of a dataset of ratings, and only that part.

    `course` cuts 5 % of the ratings for test and 5 % for validation, by `data_seed`. `u1` ... `u5` have the publishers'
    test parts; validation, as large as there, is cut by `data_seed` from that fold's own training part.
    Raises SpecError for an unknown name, DataError where the data cannot be had.
    """
    for field, value, choices in (("dataset", dataset, DATASETS), ("split", split, SPLITS), ("part", part, PARTS)):
        _known(field, value, choices)
    arrays = pack(dataset).arrays
    chosen = indices(split, data_seed, part, arrays["folds"])
    return Ratings(
        arrays["users"][chosen].astype(np.int64),
        arrays["items"][chosen].astype(np.int64),
        arrays["stars"][chosen].astype(np.float32),
    )


def sizes(dataset: str) -> tuple[int, int]:
    """How many users and items a dataset has, in all parts together. Raises SpecError for an unknown name."""
    _known("dataset", dataset, DATASETS)
    return (FACTS.users, FACTS.items) if dataset == "movielens" else (PLANTED.users, PLANTED.items)


def titles() -> list[str] | None:
    """The titles of the films, by item; None where the archive is not here. For them alone nothing is downloaded.

    Raises DataError where the archive does not name each film once.
    """
    archive = archives.ARCHIVES[FILE]
    if (path := archive.found) is None:
        return None
    members = {Path(name).name: text for name, text in unpack.read_zip(archive, path, MEMBER_BYTES).items()}
    rows = [line.split("|") for line in members.get("u.item", b"").decode("latin-1").splitlines()]
    if [row[0] for row in rows] != [str(item) for item in range(1, FACTS.items + 1)] or min(map(len, rows)) < 2:
        raise DataError(
            f"{path}: u.item must name the films 1 to {FACTS.items} in order, but does not; {archive.remedy}"
        )
    return [row[1] for row in rows]


def planted_floor(split: str, data_seed: int, part: str) -> float:
    """The mean squared error of the planted model itself on one part of `planted`; PLANTED_FLOOR but for chance."""
    arrays = pack("planted").arrays
    chosen = indices(split, data_seed, part, arrays["folds"])
    return float(np.square(arrays["stars"][chosen] - arrays["exact"][chosen]).mean())


def indices(split: str, data_seed: int, part: str, folds: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Choose the ratings of one part of a split; their places in the packed order. `folds` has each rating's of u1-u5.

    The course's solutions saw what are here train and val together.
    """
    if split == "course":
        return at_random(len(folds), data_seed, part)
    is_test = folds == FOLDS.index(split)
    rest = np.random.RandomState(data_seed).permutation(np.flatnonzero(~is_test))
    val, train = np.split(rest, [round(HELD_OUT * len(folds))])
    return {"train": train, "val": val, "test": np.flatnonzero(is_test)}[part]


def at_random(count: int, data_seed: int, part: str) -> NDArray[np.intp]:
    """Choose the ratings of one part of `count`, of which 5 % are cut for test and 5 % for validation at random."""
    held_out = round(HELD_OUT * count)
    order = np.random.RandomState(data_seed).permutation(count)  # its streams never change, unlike default_rng's
    test, val, train = np.split(order, [held_out, 2 * held_out])
    return {"train": train, "val": val, "test": test}[part]


def pack(dataset: str) -> packed.Packed:
    """Pack a dataset unless that is done: `users`, `items`, `stars` and `folds` (ratings,).

    Raises DataError where the archive is missing or not what was published.
    """
    if dataset == "planted":
        return packed.pack(f"planted-{_hashed(PLANTED)}", _plant)
    return packed.pack(f"movielens-{_hashed(FACTS)}", _read)


def verify() -> str:
    """Check the archive and what is packed from it, reading all of it; the packed digest. Raises DataError."""
    _read()
    kept = pack("movielens")
    kept.verify()
    return kept.digest


def _known(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SpecError(f"{field}: must be one of {', '.join(choices)}, but got {value!r}")


def _hashed(made_with: object) -> str:
    return hashlib.sha256(repr(made_with).encode()).hexdigest()[:12]


def _read() -> dict[str, NDArray[Any]]:
    """Read and verify the archive; its ratings by user and item. Raises DataError."""
    archive = archives.ARCHIVES[FILE]
    path = archives.fetch(archive)
    members = {Path(name).name: text for name, text in unpack.read_zip(archive, path, MEMBER_BYTES).items()}
    try:
        table = _table(members, "u.data")
        _check("u.data", "as many ratings, users and items", _sizes(table), (FACTS.ratings, FACTS.users, FACTS.items))
        _check("u.data", "stars from 1 to 5 alone", sorted({*table[:, 2].tolist()}), [1, 2, 3, 4, 5])
        folds = np.full(len(table), len(FOLDS), np.uint8)
        for fold, name in enumerate(FOLDS):
            base, test = _table(members, f"{name}.base"), _table(members, f"{name}.test")
            _check(
                name,
                "as many ratings to train and test",
                (len(base), len(test)),
                (FACTS.ratings - FACTS.fold, FACTS.fold),
            )
            _check(name, "the ratings of u.data", np.array_equal(_sorted(np.concatenate([base, test])), table), True)
            folds[np.isin(_keys(table), _keys(test))] = fold
        _check("u1-u5", "each rating in one test part", int((folds < len(FOLDS)).sum()), FACTS.ratings)
    except ValueError as error:
        raise DataError(f"{path}: {error}; {archive.remedy}") from None
    users, items, stars = table.T
    return _arrays(users - 1, items - 1, stars.astype(np.uint8), folds)


def _table(members: Mapping[str, bytes], name: str) -> NDArray[np.int64]:
    """The (user, item, stars) of one file, by user and item; raises ValueError where it is no such file."""
    if name not in members:
        raise ValueError(f"{name} must be in it, but is not")
    try:
        rows = np.array(members[name].split(), np.int64).reshape(-1, 4)  # the fourth is the time
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must hold four whole numbers a line, but does not") from None
    table = _sorted(rows[:, :3])
    _check(name, "each pair of user and item once", len(np.unique(_keys(table))), len(table))
    return table


def _sorted(table: NDArray[np.int64]) -> NDArray[np.int64]:
    return table[np.argsort(_keys(table), kind="stable")]


def _keys(table: NDArray[np.int64]) -> NDArray[np.int64]:
    return table[:, 0] * (1 << 32) + table[:, 1]


def _sizes(table: NDArray[np.int64]) -> tuple[int, int, int]:
    """Ratings, users and items; ValueError where users and items are not counted from 1 without a gap."""
    users, items = (len(np.unique(column)) for column in table.T[:2])
    _check(
        "u.data",
        "users and items counted from 1",
        (*table.min(0)[:2].tolist(), *table.max(0)[:2].tolist()),
        (1, 1, users, items),
    )
    return len(table), users, items


def _check(name: str, what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise ValueError(f"{name} must hold {what}: {wanted}, but got {got}")


def _plant() -> dict[str, NDArray[Any]]:
    """Draw the planted ratings; `exact` is what they are without noise."""
    random = np.random.RandomState(PLANTED.seed)
    shape = PLANTED.users, PLANTED.items
    a, b = (random.normal(0, PLANTED.bias, size) for size in shape)
    x, y = (random.normal(0, PLANTED.rank**-0.25, (size, PLANTED.rank)) for size in shape)
    taste = PLANTED.taste * x @ y.T
    likely = taste + b + random.gumbel(0, PLANTED.taste, shape)  # a random order that follows what is liked
    users = np.repeat(np.arange(PLANTED.users), PLANTED.rated)
    items = np.sort(np.argsort(-likely, axis=1)[:, : PLANTED.rated], axis=1).ravel()
    exact = PLANTED.mean + a[users] + b[items] + taste[users, items]
    stars = (exact + random.normal(0, PLANTED.noise, len(exact))).astype(np.float32)
    return _arrays(users, items, stars, random.permutation(len(stars)) % len(FOLDS)) | {"exact": exact}


def _arrays(
    users: NDArray[Any], items: NDArray[Any], stars: NDArray[Any], folds: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    return {
        "users": users.astype(np.uint16),
        "items": items.astype(np.uint16),
        "stars": stars,
        "folds": folds.astype(np.uint8),
    }
