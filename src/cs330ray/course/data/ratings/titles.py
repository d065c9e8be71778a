"""Titles of items, from a file beside the ratings.

A text with a header names its columns, `movieId,title` as in ml-latest-small; `movies.dat` and `u.item` have none, and
begin with id and title. Text is UTF-8 or, where it is not, Latin-1: MovieLens' older files are.
"""

import csv
import io
from collections.abc import Sequence

from cs330ray.course.data.ratings.columns import KNOWN
from cs330ray.course.data.ratings.files import File
from cs330ray.errors import DataError
from cs330ray.words import short

SEPARATORS = {"movies.dat": "::", "u.item": "|"}  # of those without a header; `.tsv` has tabs, all else commas
TITLE = ("title", "name")


def titles(file: File, item_ids: Sequence[str], item_column: str) -> list[str | None]:
    """Read the title of each item, None where there is none. Raises DataError, also where no item has one."""
    found: dict[str, str] = {}
    for line, item, title in _rows(file, item_column):
        if found.setdefault(item, title) != title:
            raise DataError(
                f"{file.place}: line {line}: expected one title for each item, got a second one for {short(item)}; "
                "remove one"
            )
    if not found.keys() & {*item_ids}:
        one = next(iter(found), None)
        raise DataError(
            f"{file.place}: expected titles of the rated items, such as {short(item_ids[0])}, got "
            f"{'none' if one is None else f'those of others, such as {short(one)}'}; write the ids as in the ratings, "
            "or move the file away"
        )
    return [found.get(item) or None for item in item_ids]


def _rows(file: File, item_column: str) -> list[tuple[int, str, str]]:
    """The line, the id and the title of each row."""
    with file.opened() as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if (separator := SEPARATORS.get(file.name)) is not None:
        lines = [line.rstrip("\r").split(separator) for line in text.split("\n")]
        records, item, title = [(line, fields) for line, fields in enumerate(lines, 1) if any(fields)], 0, 1
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if file.name.endswith(".tsv") else ",")
        try:
            records = [(reader.line_num, fields) for fields in reader if fields]
        except csv.Error as error:
            raise DataError(
                f"{file.place}: line {reader.line_num}: expected a table, but {error}; correct it"
            ) from None
        header = [name.strip() for name in records.pop(0)[1]] if records else []
        item = _place(file, header, "items", (item_column, *KNOWN["item"], "id"))
        title = _place(file, header, "titles", TITLE)
    rows = []
    for line, fields in records:
        if len(fields) <= max(item, title):
            raise DataError(
                f"{file.place}: line {line}: expected {max(item, title) + 1} fields or more, got {len(fields)}; "
                "correct the line"
            )
        rows.append((line, fields[item].strip(), fields[title].strip()))
    return rows


def _place(file: File, header: Sequence[str], what: str, names: Sequence[str]) -> int:
    """Where the column of one of these names is."""
    plain = [name.replace("_", "").replace(" ", "").casefold() for name in header]
    for name in names:
        if name in header:
            return header.index(name)
        if name in plain:
            return plain.index(name)
    raise DataError(
        f"{file.place}: expected a column of {what} named {' or '.join(dict.fromkeys(names))}, got "
        f"{short(', '.join(header), 200)}; rename one, or move the file away"
    )
