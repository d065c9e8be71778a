"""The columns of a table of ratings: which is which, and what their fields mean. What is wrong is said with its row."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cs330ray.course.data.ratings.table import NUMBER, Table
from cs330ray.errors import DataError
from cs330ray.words import short

# The names that are looked for where none is given; in any case, and without `_`, `-` and blanks.
KNOWN = {
    "user": ("user", "userid", "uid"),
    "item": ("item", "itemid", "movie", "movieid", "product", "productid", "book", "bookid"),
    "rating": ("rating", "stars"),
    "time": ("time", "timestamp", "date"),
}
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Columns:
    """What each column is called; None: by KNOWN. `rating` "": there are no stars. Times are read where `by_time`."""

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    time: str | None = None
    by_time: bool = False


USUAL = Columns()


@dataclass(frozen=True)
class Chosen:
    """The columns of one table; None where there is none, or none is read."""

    user: str
    item: str
    rating: str | None
    time: str | None


def choose(table: Table, columns: Columns) -> Chosen:
    """Find the columns in a table. Raises DataError with those that are there."""
    user, item = (_column(table, what, getattr(columns, what)) for what in ("user", "item"))
    rating = None if columns.rating == "" else _column(table, "rating", columns.rating, needed=False)
    time = _column(table, "time", columns.time, needed=columns.by_time)
    assert user is not None  # it is needed
    assert item is not None
    named = [name for name in (user, item, rating, time) if name is not None]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise DataError(
            f"{table.file.place}: expected a column for each of user, item, rating and time, got {short(twice)} for "
            "two of them; correct user_column and the others"
        )
    return Chosen(user, item, rating, time if columns.by_time else None)


def _column(table: Table, what: str, name: str | None, *, needed: bool = True) -> str | None:
    """The column of a name, or that of a known one."""
    if name is not None:
        found = [each for each in table.names if each == name]
    else:
        found = [each for each in table.names if re.sub(r"[_\s-]", "", each).casefold() in KNOWN[what]]
    if len(found) > 1:
        raise DataError(
            f"{table.file.place}: expected one column for {what}, got {' and '.join(map(short, found))}; "
            f"name one with {what}_column, or rename one"
        )
    if not found and (needed or name is not None):
        wanted = short(name) if name is not None else f"one of {', '.join(KNOWN[what])}"
        raise DataError(
            f"{table.file.place}: {what}_column: expected {wanted}, got {short(', '.join(table.names), 200)}; "
            f"name the column with {what}_column, or add a header where there is none"
        )
    return found[0] if found else None


def ids(table: Table, what: str, column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """Number the ids of a column in their order: the number of each row, and the ids. Raises DataError."""
    codes, values = _coded(column)
    texts = ["" if value is None or value != value else str(value).strip() for value in values]  # NaN is no id
    if (row := _first(codes, [not text for text in texts])) is not None:
        raise DataError(f"{table.place(row)}: expected the {what}'s id, got an empty field; write one")
    whole = all(WHOLE.fullmatch(text) for text in texts)
    ordered = sorted({*texts}, key=int) if whole else sorted({*texts})
    numbers = {text: number for number, text in enumerate(ordered)}
    if len(ordered) < 2:
        raise DataError(
            f"{table.file.place}: expected ratings of two {what}s or more, got {short(ordered[0])} alone; "
            f"check {what}_column"
        )
    return np.array([numbers[text] for text in texts], np.int64)[codes], ordered


def pairs(
    table: Table, users: tuple[NDArray[np.int64], Sequence[str]], items: tuple[NDArray[np.int64], Sequence[str]]
) -> NDArray[np.intp]:
    """Order the rows by user and item. Raises DataError where a user has rated an item twice."""
    keys = users[0] * len(items[1]) + items[0]
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(again):
        at = again[np.argmin(order[again + 1])]
        second = int(order[at + 1])
        user, item = users[1][users[0][second]], items[1][items[0][second]]
        raise DataError(
            f"{table.place(second)}: expected each pair of user and item once, got {short(user)} and {short(item)} "
            f"again, which {table.place(int(order[at])).rpartition(': ')[2]} has; keep one of them, such as the newest"
        )
    return order


def stars(table: Table, column: Any) -> NDArray[np.float32]:
    """Read the ratings of a column, any finite numbers. Raises DataError."""
    codes, values = _coded(column)
    read = np.array([_number(value) for value in values])
    if (row := _first(codes, ~np.isfinite(read))) is not None:
        got = values[codes[row]] if codes[row] >= 0 else None
        raise DataError(
            f"{table.place(row)}: expected a finite number for the rating, got {_shown(got)}; correct it, or name "
            "another column with rating_column"
        )
    return read.astype(np.float32)[codes]


def times(table: Table, column: Any) -> NDArray[np.float64]:
    """Read the times of a column: finite numbers, dates, or texts of either. Raises DataError."""
    from pyarrow import compute, float64, int64, types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise _no_time(table, int(np.argmax(column.is_null().to_numpy())), None)
    if types.is_date(column.type):
        column = column.cast("timestamp[us]")
    if types.is_timestamp(column.type):
        column = column.cast(int64())
    if types.is_string(column.type) or types.is_large_string(column.type):
        column = _moments(table, compute.utf8_trim_whitespace(column))
    elif not types.is_integer(column.type) and not types.is_floating(column.type):
        raise DataError(f"{table.file.place}: expected times as numbers or dates, got {column.type}; convert them")
    read = column.cast(float64(), safe=False).to_numpy()
    if not np.isfinite(read).all():
        row = int(np.argmin(np.isfinite(read)))
        raise _no_time(table, row, float(read[row]))
    return np.asarray(read, np.float64)


def _moments(table: Table, texts: Any) -> Any:
    """Texts as numbers, or as dates by ISO 8601: all as the first."""
    from pyarrow import float64, int64, timestamp

    kinds = [float64(), timestamp("us"), timestamp("us", "UTC")]
    kind = next((kind for kind in kinds if _cast(texts.slice(0, 1), kind) is not None), None)
    if kind is None:
        raise _no_time(table, 0, texts[0].as_py())
    found = _cast(texts, kind)
    if found is None:
        good, bad = 1, len(texts)  # so many of the first can be read, and so many cannot
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if _cast(texts.slice(0, middle), kind) is not None else (good, middle)
        raise _no_time(table, good, texts[good].as_py())
    return found if kind == float64() else found.cast(int64())


def _cast(texts: Any, kind: Any) -> Any:
    from pyarrow import ArrowInvalid

    try:
        return texts.cast(kind)
    except ArrowInvalid:
        return None


def _no_time(table: Table, row: int, got: object) -> DataError:
    return DataError(
        f"{table.place(row)}: expected a time such as 978300760 or 2001-01-31T10:00:00, got {_shown(got)}; correct "
        "it, or name another column with time_column"
    )


def _coded(column: Any) -> tuple[NDArray[np.int64], list[Any]]:
    """The different values of a column, and which each row has; -1 where it has none."""
    from pyarrow import types

    coded = column if types.is_dictionary(column.type) else column.dictionary_encode()
    whole = coded.unify_dictionaries().combine_chunks()
    return whole.indices.fill_null(-1).to_numpy(zero_copy_only=False), whole.dictionary.to_pylist()


def _first(codes: NDArray[np.int64], bad: Any) -> int | None:
    """The first row whose value is bad, or missing."""
    is_bad = np.append(np.asarray(bad, bool), True)[codes]
    return int(np.argmax(is_bad)) if is_bad.any() else None


def _number(value: object) -> float:
    """A value as a number that float32 holds; NaN where it is none."""
    if isinstance(value, str):
        value = float(value) if NUMBER.fullmatch(value) else np.nan
    if not isinstance(value, int | float):
        try:
            value = float(value)  # type: ignore[arg-type] # a Decimal
        except (TypeError, ValueError):
            return np.nan
    return float(value) if abs(value) <= FLOAT32_MAX else np.nan


def _shown(got: object) -> str:
    return "an empty field" if got is None or got == "" else short(got)
