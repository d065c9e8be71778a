"""Ratings of one's own: users, items and stars as they stand in a table, packed once and split for a study.

Ids are text, without the blanks around them, and stay as they are written. Users and items are counted from 0 in the
order of their ids: of numbers where all are whole, else of text.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cs330ray.course.data import packed
from cs330ray.course.data.movielens import HELD_OUT, Ratings, at_random
from cs330ray.course.data.ratings import files
from cs330ray.course.data.ratings.columns import USUAL, Columns, choose, ids, pairs, stars, times
from cs330ray.course.data.ratings.table import table
from cs330ray.course.data.ratings.titles import titles
from cs330ray.errors import DataError

FORM = 1  # of what is packed; another one is packed anew
FEWEST = 20  # ratings, so that 5 % are one
FEWEST_OF_USER = 5  # ratings of a user of whom `time` holds any out


@dataclass(frozen=True)
class Source:
    """Where ratings are, and which columns are what; `rating` "" where there are no stars."""

    data: str
    columns: Columns = USUAL


@dataclass(frozen=True)
class Names:
    """The ids of users and items, by row, and the items' titles, None where one has none."""

    users: list[str]
    items: list[str]
    titles: list[str | None]


def pack(source: Source) -> packed.Packed:
    """Pack a table of ratings unless that is done, by user and item: `users`, `items` and `stars` (ratings,).

    Besides `sizes`, how many users and items there are; `names`, as JSON in bytes; and, where times are read, `later`:
    how many of its user's ratings are newer. Without stars there is no `stars`. Raises DataError.
    """
    ratings, named = files.find(source.data)
    held = [ratings] if named is None else [ratings, named]
    content = files.digest(held)
    made_with = FORM, source.columns, [file.name for file in held], content

    def build() -> dict[str, NDArray[Any]]:
        arrays = _read(source.columns, *held)
        if files.digest(held) != content:
            raise DataError(
                f"{ratings.place}: expected it to stay as it is while it is read, but it changed; run again"
            )
        return arrays

    return packed.pack(f"ratings-{hashlib.sha256(repr(made_with).encode()).hexdigest()[:24]}", build)


def sizes(source: Source) -> tuple[int, int]:
    """How many users and items there are. Raises DataError."""
    users, items = pack(source).arrays["sizes"].tolist()
    return users, items


def has_stars(source: Source) -> bool:
    """Whether there is a column of stars. Raises DataError."""
    return "stars" in pack(source).arrays


def part(source: Source, split: str, data_seed: int, name: str) -> Ratings:
    """Read one part of the ratings, and only that part; where there are no stars, each has one.

    `course` cuts 5 % of the ratings for test and 5 % for validation, by `data_seed`. `time` cuts, of each user with
    FEWEST_OF_USER ratings or more, the newest 5 % for test, at least one, and as many before them for validation; of
    two of one moment the later in the table is newer. Raises DataError.
    """
    arrays = pack(source).arrays
    count = len(arrays["users"])
    chosen = (
        at_random(count, data_seed, name) if split == "course" else _by_time(arrays["users"], arrays["later"], name)
    )
    given = arrays["stars"][chosen] if "stars" in arrays else np.ones(len(chosen))
    return Ratings(
        arrays["users"][chosen].astype(np.int64), arrays["items"][chosen].astype(np.int64), given.astype(np.float32)
    )


def names(source: Source) -> Names:
    """Read the ids and titles. Raises DataError."""
    return Names(*json.loads(pack(source).arrays["names"].tobytes()))


def _by_time(users: NDArray[Any], later: NDArray[Any], name: str) -> NDArray[np.intp]:
    """The ratings of one part of the split by time, by user and item."""
    rated = np.bincount(users)
    held_out = np.where(rated < FEWEST_OF_USER, 0, np.maximum(1, np.rint(HELD_OUT * rated).astype(np.int64)))[users]
    is_test, is_known = later < held_out, later >= 2 * held_out
    return np.flatnonzero({"train": is_known, "val": ~(is_test | is_known), "test": is_test}[name])


def _read(columns: Columns, ratings: files.File, named: files.File | None = None) -> dict[str, NDArray[Any]]:
    """Read and verify a table, and its titles. Raises DataError."""
    read = table(ratings)
    chosen = choose(read, columns)
    found = read.read(
        [name for name in (chosen.user, chosen.item, chosen.rating) if name], [chosen.time] if chosen.time else []
    )
    if not len(found[0]):
        raise DataError(f"{ratings.place}: expected rows of ratings below the header, got none; check the file")
    users, user_ids = ids(read, "user", found[0])
    items, item_ids = ids(read, "item", found[1])
    order = pairs(read, (users, user_ids), (items, item_ids))
    _enough(ratings, len(users))
    arrays: dict[str, NDArray[Any]] = {
        "users": users[order].astype(np.min_scalar_type(len(user_ids))),
        "items": items[order].astype(np.min_scalar_type(len(item_ids))),
        "sizes": np.array([len(user_ids), len(item_ids)]),
    }
    if chosen.rating:
        arrays["stars"] = stars(read, found[2])[order]
    if chosen.time:
        if np.bincount(users).max() < FEWEST_OF_USER:
            raise DataError(
                f"{ratings.place}: split by time: expected a user with {FEWEST_OF_USER} ratings or more, got at most "
                f'{np.bincount(users).max()} of one; write split = "course"'
            )
        arrays["later"] = _later(users, times(read, found[-1]))[order]
    said = [user_ids, item_ids, titles(named, item_ids, chosen.item) if named is not None else [None] * len(item_ids)]
    return arrays | {"names": np.frombuffer(json.dumps(said).encode(), np.uint8)}


def _enough(file: files.File, ratings: int) -> None:
    if ratings < FEWEST:
        raise DataError(
            f"{file.place}: expected {FEWEST} ratings or more, of which to hold some out, got {ratings}; collect more"
        )


def _later(users: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.uint32]:
    """How many of its user's ratings are newer than each."""
    order = np.lexsort((times, users))  # which leaves rows of one moment in their order
    ends = np.cumsum(np.bincount(users))
    later = np.empty(len(users), np.uint32)
    later[order] = ends[users[order]] - 1 - np.arange(len(users))
    return later
