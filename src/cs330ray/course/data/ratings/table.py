"""A table of ratings, as text or as Parquet: its columns by name, and where a row is for people.

Text is UTF-8, with or without a byte order mark, its fields separated by commas, tabs, semicolons or `::`. Fields may
be quoted, but for `::`; empty lines are passed over. Where the first line holds numbers alone, there is no header.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Protocol

from cs330ray.course.data.ratings.files import File
from cs330ray.errors import DataError
from cs330ray.words import first_line

UNNAMED = ("user", "item", "rating", "time")  # the columns of a text without a header, in this order
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
HEAD_BYTES = 1 << 16  # within which the first line ends
BLOCK_BYTES = 1 << 22  # of a text that is read at once
TWO_COLONS, ONE_BYTE = "::", "\x1f"  # readers of CSV know separators of one byte alone
PARQUET = (".parquet", ".pq")


class Table(Protocol):
    """What is read from. A row is counted from 0, without header and empty lines."""

    @property
    def file(self) -> File:
        """Where it is."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The names of its columns, in order."""
        ...

    def read(self, coded: Sequence[str], plain: Sequence[str]) -> list[Any]:
        """Read columns as Arrow's chunked arrays, of text the `coded` ones as dictionaries; then the `plain` ones.

        Raises DataError.
        """
        ...

    def place(self, row: int) -> str:
        """Say where a row is: `ratings.csv: line 3`."""
        ...


def table(file: File) -> Table:
    """Open a table. Raises DataError where it has no columns."""
    return _parquet(file) if file.name.endswith(PARQUET) else _text(file)


# Text --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A table in lines of text."""

    file: File
    separator: str
    names: Sequence[str]
    before: int  # lines before the first row, those that are empty too

    def read(self, coded: Sequence[str], plain: Sequence[str]) -> list[Any]:
        """Read columns in one pass."""
        from pyarrow import ArrowException, dictionary, int32, string
        from pyarrow import csv as arrow

        places = [str(list(self.names).index(name)) for name in (*coded, *plain)]
        kinds = [*(dictionary(int32(), string()) for _ in coded), *(string() for _ in plain)]
        quoted = self.separator != TWO_COLONS
        reading = arrow.ReadOptions(
            column_names=[str(at) for at in range(len(self.names))],
            skip_rows=self.before,
            block_size=BLOCK_BYTES,
            use_threads=False,
        )
        parsing = arrow.ParseOptions(
            delimiter=_byte(self.separator), quote_char='"' if quoted else False, newlines_in_values=quoted
        )
        converting = arrow.ConvertOptions(
            column_types=dict(zip(places, kinds, strict=True)),
            include_columns=places,
            null_values=[],
            strings_can_be_null=False,
        )
        with self.file.opened() as stream:
            try:
                found = arrow.read_csv(self._in_bytes(stream), reading, parsing, converting)
                return [found.column(place) for place in places]
            except ArrowException as error:
                reason = first_line(error)
        raise DataError(self._fault(reason))

    def place(self, row: int) -> str:
        """Say which line an editor shows, by reading up to there."""
        try:
            found = next(islice(self._records(), row, None), None)
        except csv.Error:
            found = None
        return f"{self.file.place}: row {row + 1}" if found is None else f"{self.file.place}: line {found[0]}"

    def _in_bytes(self, stream: IO[bytes]) -> IO[bytes]:
        if self.separator != TWO_COLONS:
            return stream
        return io.BytesIO(stream.read().replace(TWO_COLONS.encode(), ONE_BYTE.encode()))

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Read row by row, slowly: the line that each ends in, and its fields. Raises csv.Error."""
        with self.file.opened() as stream:
            lines = io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="")
            for line in islice(lines, self.before):
                assert line
            reader = _reader(lines, self.separator)
            yield from ((self.before + reader.line_num, fields) for fields in reader if fields)

    def _fault(self, reason: str) -> str:
        """Say what is wrong with a text that could not be read, by reading it once more."""
        with self.file.opened() as stream:
            for line, content in enumerate(stream, 1):
                if not _is_text(content):
                    return _no_text(self.file, line)
        try:
            for line, fields in self._records():
                if len(fields) != len(self.names):
                    return (
                        f"{self.file.place}: line {line}: expected {len(self.names)} fields as in the first line, got "
                        f"{len(fields)}; correct the line, and quote a field that holds a separator"
                    )
        except csv.Error as error:
            reason = first_line(error)
        return f"{self.file.place}: expected a table of text, but {reason}; correct it"


def _text(file: File) -> Text:
    """Read the first line that is not empty. Raises DataError where there is none."""
    with file.opened() as stream:
        head = stream.read(HEAD_BYTES)
    lines = head.split(b"\n")
    for line, content in enumerate(lines, 1):
        if line == len(lines) and len(head) == HEAD_BYTES:
            raise DataError(
                f"{file.place}: line {line}: expected a row of a table, got a line of over {HEAD_BYTES} bytes or only "
                "empty ones before it; check the file"
            )
        if not _is_text(content):
            raise DataError(_no_text(file, line))
        if text := content.decode("utf-8-sig").strip("\r\n"):
            separator = next((each for each in (TWO_COLONS, "\t", ",", ";") if each in text), ",")
            try:
                fields = next(_reader([text], separator))
            except csv.Error as error:
                raise DataError(
                    f"{file.place}: line {line}: expected a row of a table, but {error}; save it with lines that "
                    "end in a line feed"
                ) from None
            if all(NUMBER.fullmatch(field) for field in fields):
                return Text(file, separator, _positions(len(fields)), line - 1)
            return Text(file, separator, [field.strip() for field in fields], line)
    raise DataError(f"{file.place}: expected a header and ratings, got an empty file; check the path")


def _positions(count: int) -> list[str]:
    return [*UNNAMED[:count], *(f"column {at}" for at in range(len(UNNAMED) + 1, count + 1))]


def _reader(lines: Any, separator: str) -> Any:
    if separator == TWO_COLONS:
        replaced = (line.replace(TWO_COLONS, ONE_BYTE) for line in lines)
        return csv.reader(replaced, delimiter=ONE_BYTE, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=separator)


def _byte(separator: str) -> str:
    return ONE_BYTE if separator == TWO_COLONS else separator


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _no_text(file: File, line: int) -> str:
    return f"{file.place}: line {line}: expected text in UTF-8, got other bytes; save the file as UTF-8"


# Parquet -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parquet:
    """A table in Parquet's form."""

    file: File
    content: Any  # a ParquetFile of pyarrow's

    @property
    def names(self) -> Sequence[str]:
        """The names of its columns."""
        return [str(name) for name in self.content.schema_arrow.names]

    def read(self, coded: Sequence[str], plain: Sequence[str]) -> list[Any]:
        """Read columns; those of bytes as text."""
        from pyarrow import ArrowException, string, types

        try:
            found = self.content.read(columns=[*coded, *plain])
            columns = [found.column(name) for name in (*coded, *plain)]
            if nested := next((each.type for each in columns if types.is_nested(each.type)), None):
                raise DataError(
                    f"{self.file.place}: expected columns of texts, numbers or dates, got {nested}; convert it"
                )
            return [each.cast(string()) if types.is_binary(each.type) else each for each in columns]
        except (ArrowException, OSError, KeyError) as error:
            raise _no_parquet(self.file, error) from None

    def place(self, row: int) -> str:
        """Say which row: Parquet has no lines."""
        return f"{self.file.place}: row {row + 1}"


def _parquet(file: File) -> Parquet:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile  # here, for it is slow to import and seldom needed

    with file.opened() as stream:
        content = io.BytesIO(stream.read())
    try:
        return Parquet(file, ParquetFile(content))
    except (ArrowException, OSError) as error:
        raise _no_parquet(file, error) from None


def _no_parquet(file: File, error: BaseException) -> DataError:
    return DataError(f"{file.place}: expected a Parquet file, but {first_line(error)}; replace it")
