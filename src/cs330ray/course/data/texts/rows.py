"""Rows of a file of one's own: JSONL or CSV, by its suffix; each with the line that it begins at."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cs330ray.errors import DataError
from cs330ray.words import short

Fields = Mapping[str, object]  # by column; CSV has texts alone, JSONL all that JSON has, but numbers as texts


def located(data: str) -> Path:
    """Find a file: absolute or below the directory where the command runs, with `~` for one's home.

    Raises DataError where it is none, or none whose rows can be read.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        raise DataError(f"{data}: expected a file, got a folder; name the .jsonl or .csv file in it")
    if not path.is_file():
        raise DataError(f"{data}: expected a file, got none at {path.absolute()}; check the name and the directory")
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"{data}: expected a .jsonl or .csv file, got {path.suffix or 'no suffix'}; "
            "write one JSON object a line, or a header and rows with commas"
        )
    return path


def read(data: str, content: bytes) -> Iterator[tuple[int, Fields]]:
    """Read the rows of a file in their order; of each the line where it begins, from 1, and its fields.

    Byte order mark, CRLF and empty lines are allowed. A number is a text, as it is written. Raises DataError.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise wrong(
            data, line, f"expected UTF-8, got the byte 0x{content[error.start]:02x} at offset {error.start}; save it so"
        ) from None
    return _READERS[Path(data).suffix.lower()](data, text)


def wrong(data: str, line: int, what: str) -> DataError:
    """Say in one line what is wrong with a row."""
    return DataError(f"{data}: line {line}: {what}")


def _json_rows(data: str, text: str) -> Iterator[tuple[int, Fields]]:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            row = json.loads(written, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise wrong(data, line, f"expected a JSON object, got {short(written.strip())}; write one object a line")
        yield line, row


def _csv_rows(data: str, text: str) -> Iterator[tuple[int, Fields]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise wrong(data, line, f"expected cells of CSV, got {error}; quote it whole, or write JSONL") from None
        if cells is None:
            return
        if len(cells) < 2 and not "".join(cells).strip():
            continue
        if not names:
            names = [cell.strip() for cell in cells]
            if len({*names}) < len(names):
                raise wrong(data, line, f"expected different names of columns, got {', '.join(names)}; rename one")
        elif len(cells) != len(names):
            raise wrong(
                data,
                line,
                f"expected {len(names)} cells, as the header has, got {len(cells)}; quote what holds commas",
            )
        else:
            yield line, dict(zip(names, cells, strict=True))


_READERS: Mapping[str, Callable[[str, str], Iterator[tuple[int, Fields]]]] = {".jsonl": _json_rows, ".csv": _csv_rows}
