"""Ratings of one's own: what is read as it stands, and what is refused in one line with its row."""

import gzip
import io
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cs330ray.course.data import movielens, packed
from cs330ray.course.data.ratings import own
from cs330ray.course.data.ratings.columns import Columns
from cs330ray.course.data.ratings.own import Source
from cs330ray.errors import DataError
from tests.course.data.conftest import write_zip
from tests.spoilt_bytes import spoilt

REAL = os.environ.get("CS330RAY_DATA")  # read before any fixture takes it away
real = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "ml-100k.zip").is_file(), reason="CS330RAY_DATA holds no archive of MovieLens"
)
PAIRS = [(user, item) for user in range(1, 6) for item in range(1, 9) if (user + item) % 3]  # 27 of 5 users, 8 items
RATINGS = [(user, item, 1 + (2 * user + item) % 5, 978_300_000 + 17 * item % 50) for user, item in PAIRS]
EXPECTED = [(str(user), str(item), float(stars)) for user, item, stars, _ in RATINGS]
HEADER = ("userId", "movieId", "rating", "timestamp")


def lines(rows: Any = RATINGS, separator: str = ",", header: Any = HEADER, end: str = "\n") -> str:
    return "".join(separator.join(map(str, row)) + end for row in ([header] if header else []) + list(rows))


def changed(row: int, text: str) -> str:
    """A good file whose line has become another; the header is line 1."""
    held = lines().splitlines()
    held[row - 1] = text
    return "\n".join(held) + "\n"


def rows_of(source: Source, form: str = "course") -> list[tuple[str, str, float]]:
    """All ratings, by user and item, with their ids."""
    named = own.names(source)
    parts = [own.part(source, form, 0, part) for part in movielens.PARTS]
    users, items, stars = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("users", "items", "stars")
    )
    order = np.lexsort((items, users))
    return [(named.users[users[at]], named.items[items[at]], float(stars[at])) for at in order]


def written(folder: Path, content: str | bytes, name: str = "mine.csv") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def as_parquet(**columns: Any) -> bytes:
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), content)
    return content.getvalue()


COLUMNS = {name: [row[at] for row in RATINGS] for at, name in enumerate(HEADER)}

# Good ones

GOOD: dict[str, tuple[str, str | bytes]] = {
    "as ml-latest-small": ("ratings.csv", lines()),
    "as ml-1m": ("ratings.dat", lines(separator="::", header=None)),
    "as ml-100k": ("u.data", lines(separator="\t", header=None)),
    "in tabs with a header": ("a.tsv", lines(separator="\t")),
    "in semicolons": ("a.csv", lines(separator=";")),
    "in colons with a header": ("a.dat", lines(separator="::")),
    "CRLF": ("a.csv", lines(end="\r\n")),
    "a byte order mark": ("a.csv", "\ufeff" + lines()),
    "a byte order mark without a header": ("a.csv", "\ufeff" + lines(header=None)),
    "empty lines": ("a.csv", "\n\n" + lines().replace("\n", "\n\n")),
    "empty lines of CRLF": ("a.csv", "\r\n" + lines(end="\r\n\r\n")),
    "no end of the last line": ("a.csv", lines().rstrip("\n")),
    "quoted fields": ("a.csv", lines([[f'"{field}"' for field in row] for row in RATINGS])),
    "blanks around": ("a.csv", lines(separator=" , ")),
    "other columns": ("a.csv", lines([(f'"Dr, {row[0]}"', *row) for row in RATINGS], header=("who", *HEADER))),
    "columns in another order": ("a.csv", lines([row[::-1] for row in RATINGS], header=HEADER[::-1])),
    "names in another case": ("a.csv", lines(header=("USER_ID", "Item", "Rating", "when"))),
    "reviews of two lines": ("a.csv", lines([(*row, '"one\nor, two"') for row in RATINGS], header=(*HEADER, "review"))),
    "gz": ("a.csv.gz", gzip.compress(lines().encode())),
    "Parquet": ("a.parquet", as_parquet(**COLUMNS)),
    "Parquet of texts": ("a.parquet", as_parquet(**{name: [*map(str, held)] for name, held in COLUMNS.items()})),
    "Parquet of dictionaries": (
        "a.parquet",
        as_parquet(**COLUMNS | {"userId": pyarrow.array([*map(str, COLUMNS["userId"])]).dictionary_encode()}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_ratings_are_read_as_they_stand_in_any_usual_form(case: str, tmp_path: Path) -> None:
    name, content = GOOD[case]
    assert rows_of(Source(written(tmp_path / "in", content, name))) == EXPECTED


def test_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    users = ["anna lee", "9" * 5000, "Ünal", "日本", "1.0", "007", "a,b", 'say "hi"']
    rows = [(f'"{u.replace(chr(34), chr(34) * 2)}"', item, 3) for u in users for item in (" x", "y z", "1e3", "é")]
    source = Source(written(tmp_path / "in", lines(rows, header=("user", "item", "rating"))))
    named = own.names(source)
    assert named.users == sorted(users)
    assert named.items == sorted(["x", "y z", "1e3", "é"])
    assert len(rows_of(source)) == 32


def test_whole_numbers_are_in_their_order_and_floats_stay_what_they_are(tmp_path: Path) -> None:
    rows = [(user, item, 3) for user in (10, 9, 2) for item in ("10.0", "9.0", "2.0", "1.0", "5.0", "7.0", "11.0")]
    source = Source(written(tmp_path / "in", lines(rows, header=("user", "item", "rating"))))
    assert own.names(source).users == ["2", "9", "10"]
    assert own.names(source).items == ["1.0", "10.0", "11.0", "2.0", "5.0", "7.0", "9.0"]
    floats = {"user": [float(row[0]) for row in rows], "item": [row[1] for row in rows], "rating": [3] * len(rows)}
    as_floats = Source(written(tmp_path / "in", as_parquet(**floats), "a.parquet"))
    assert own.names(as_floats).users == ["10.0", "2.0", "9.0"]


@pytest.mark.parametrize(
    "values",
    [["-2.5", "0", "10"], ["0", "1"], ["1e-3", ".5", "+7."], ["3"]],
    ids=["negative", "0 and 1", "forms", "one"],
)
def test_stars_are_any_finite_numbers(values: list[str], tmp_path: Path) -> None:
    rows = [(*row[:2], values[at % len(values)]) for at, row in enumerate(RATINGS)]
    found = rows_of(Source(written(tmp_path / "in", lines(rows, header=("user", "item", "rating")))))
    assert [stars for *_, stars in found] == [np.float32(row[2]) for row in rows]


@pytest.mark.parametrize("header", [("user", "item"), ("user", "item", "overall"), None])
def test_without_stars_each_row_is_a_positive(header: Any, tmp_path: Path) -> None:
    width = len(header) if header else 2
    source = Source(written(tmp_path / "in", lines([row[:width] for row in RATINGS], header=header)))
    assert not own.has_stars(source)
    assert rows_of(source) == [(user, item, 1.0) for user, item, _ in EXPECTED]
    explicit = Source(written(tmp_path / "in", lines(), "b.csv"), Columns(rating=""))
    assert not own.has_stars(explicit)


def test_columns_are_named_where_their_names_are_not_the_usual(tmp_path: Path) -> None:
    path = written(tmp_path / "in", lines(header=("who", "what", "liked", "when")))
    assert rows_of(Source(path, Columns("who", "what", "liked"))) == EXPECTED
    assert rows_of(Source(path, Columns("who", "what", "liked", "when", by_time=True)), "time") == EXPECTED


# Bad ones

THREE = ("user", "item", "rating")
BAD: dict[str, tuple[str | bytes, str]] = {
    "no such user": (
        lines(header=("who", *HEADER[1:])),
        r"user_column: expected one of user, userid, uid, got 'who, movieId, rating, timestamp'; name",
    ),
    "no header": (
        lines([("anna", *row[1:]) for row in RATINGS], header=None), r"user_column: .* got 'anna, 1, 4, .*add a header"
    ),
    "two users": (lines(header=("user", "item", "rating", "userId")), r"one column for user, got 'user' and 'userId'"),
    "a pair twice": (
        lines([*RATINGS[:5], RATINGS[1], *RATINGS[5:]]),
        r"line 7: expected each pair of user and item once, got '1' and '3' again, which line 3 has; keep one",
    ),
    "a pair twice behind empty lines": (
        "\n" + lines([*RATINGS, RATINGS[2]]).replace("\n", "\n\n", 3), r"line 32: .* which line 8 has"
    ),
    "a rating in words": (
        changed(5, "1,6,good,9"), r"line 5: expected a finite number for the rating, got 'good'; correct it"
    ),
    "a decimal comma": (changed(5, '1,6,"3,5",9'), r"line 5: .* got '3,5'"),
    "NaN": (changed(3, "1,3,NaN,9"), r"line 3: .* got 'NaN'"),
    "inf": (changed(3, "1,3,-inf,9"), r"line 3: .* got '-inf'"),
    "beyond a float": (changed(3, "1,3,1e39,9"), r"line 3: .* got '1e39'"),
    "no rating": (changed(3, "1,3,,9"), r"line 3: .* got an empty field"),
    "one user": (lines([(7, row, 3) for row in range(30)], header=THREE), r"two users or more, got '7' alone"),
    "one item": (lines([(row, 7, 3) for row in range(30)], header=THREE), r"two items or more, got '7' alone"),
    "empty": ("", r"expected a header and ratings, got an empty file"),
    "empty lines alone": ("\n\n", r"expected a header and ratings, got an empty file"),
    "a header alone": (lines([]), r"expected rows of ratings below the header, got none"),
    "few": (lines(RATINGS[:19]), r"expected 20 ratings or more, .* got 19"),
    "other bytes": (changed(4, "1,§,3,9").encode("latin-1"), r"line 4: expected text in UTF-8, got other bytes; save"),
    "UTF-16": (lines().encode("utf-16"), r"line 1: expected text in UTF-8"),
    "too few fields": (changed(6, "1,7,3"), r"line 6: expected 4 fields as in the first line, got 3; correct"),
    "too many fields": (changed(6, "1,Me, too,3,9"), r"line 6: expected 4 fields .* got 5; .*quote"),
    "too few fields of colons": (
        lines(separator="::", header=None).replace("1::3::1::978300001\n", "1::3\n"), r"line 2: expected 4 fields"
    ),
    "no user": (changed(6, ",7,3,9"), r"line 6: expected the user's id, got an empty field"),
    "no item": (changed(6, "1,  ,3,9"), r"line 6: expected the item's id, got an empty field"),
    "one column": ("user\n1\n2\n", r"item_column: expected one of item, .*, got 'user'"),
    "not a table": (bytes(range(255, -1, -1)) * 40, r"line 1: expected text in UTF-8"),
    "lines of carriage returns": (lines(end="\r"), r"line 1: expected a row of a table, but .*line feed"),
    "one endless line": ("a" * 100_000, r"got a line of over 65536 bytes"),
}  # fmt: skip


def refusal(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        own.pack(source)
    said = str(caught.value)
    assert "\n" not in said
    assert "; " in said  # before the next step
    assert (packed.cache() / "packed").is_dir() is False or not list((packed.cache() / "packed").glob("ratings-*"))
    return said


@pytest.mark.parametrize("case", BAD)
def test_bad_ratings_are_one_line_with_file_row_rule_value_and_next_step(case: str, tmp_path: Path) -> None:
    content, rule = BAD[case]
    path = written(tmp_path / "in", content)
    said = refusal(Source(path))
    assert said.startswith(f"{path}: ")
    assert re.search(rule, said), said


def test_a_path_to_nothing_says_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"got nothing at {tmp_path}/data/mine.csv; check the path" in refusal(Source("data/mine.csv"))
    assert "expected readable ratings, but " in refusal(Source("~nobody-of-this-name/mine.csv"))


def test_a_path_is_below_the_directory_of_the_command_or_of_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "data", lines())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rows_of(Source("data/mine.csv")) == rows_of(Source("~/data/mine.csv")) == EXPECTED


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        ([], "expected one of ratings.csv, .* in it, got no file; rename"),
        (["a.csv", "b.csv"], "got a.csv, b.csv; rename the file of ratings, or name it itself"),
        (["ratings.csv", "ratings.tsv"], "expected one file of ratings, got .*ratings.csv and .*ratings.tsv; move"),
        (
            ["ratings.csv", "ratings.csv.gz"],
            "expected one file of ratings, got .*ratings.csv and .*ratings.csv.gz; move",
        ),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_or_zip_without_one_file_of_ratings_says_what_it_has(
    names: list[str], rule: str, zipped: bool, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in"
    if zipped:
        path = tmp_path / "in.zip"
        write_zip(path, {f"in/{name}": lines() for name in names})
    for name in names:
        written(tmp_path / "in", lines(), name)
    assert re.search(rule, refusal(Source(str(path))))


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zip_of(tmp_path: Path, members: dict[str, str | bytes]) -> bytes:
    write_zip(tmp_path / "made.zip", members)
    return (tmp_path / "made.zip").read_bytes()


def test_a_torn_file_is_one_line(tmp_path: Path) -> None:
    many = lines([(user, item, 3, 9) for user in range(100) for item in range(200)])
    zipped = zip_of(tmp_path, {"ratings.csv": many})
    flipped = zipped[:2000] + bytes([zipped[2000] ^ 255]) + zipped[2001:]
    cases = {
        "a.csv.gz": torn(gzip.compress(many.encode())), "b.csv.gz": b"nothing", "a.zip": torn(zipped), "b.zip": flipped,
        "c.zip": zip_of(tmp_path, {"../ratings.csv": many}), "a.parquet": torn(as_parquet(**COLUMNS)),
        "b.parquet": b"nothing",
    }  # fmt: skip
    for name, content in cases.items():
        said = refusal(Source(written(tmp_path / "in", content, name)))
        assert name in said
        assert re.search("expected a (whole file|whole and plain .zip|Parquet file), but .*; replace it", said), said


@pytest.mark.parametrize("name", ["a.csv", "a.dat", "a.csv.gz", "a.zip", "a.parquet"])
def test_spoilt_bytes_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    whole = {
        "a.csv": lines().encode(), "a.dat": lines(separator="::", header=None).encode(),
        "a.csv.gz": gzip.compress(lines().encode()), "a.zip": zip_of(tmp_path, {"ratings.csv": lines()}),
        "a.parquet": as_parquet(**COLUMNS),
    }[name]  # fmt: skip
    refused = {}
    for seed in range(int(os.environ.get("CS330RAY_FUZZ", "30"))):
        what, content = spoilt(whole, seed)
        source = Source(written(tmp_path / "in", content, name), BY_TIME)
        try:
            own.part(source, "time", 0, "train")
        except DataError as error:
            refused[what] = str(error)
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{what}: {error!r}")
    assert refused
    assert [what for what, said in refused.items() if "\n" in said or "; " not in said] == []


def test_bad_fields_of_parquet_are_said_with_their_row(tmp_path: Path) -> None:
    none = [*COLUMNS["rating"]]
    none[3] = None
    for changes, rule in (
        ({"rating": none}, "row 4: expected a finite number for the rating, got an empty field"),
        ({"rating": [*map(float, COLUMNS["rating"][:-1]), math.nan]}, "row 26: .* got nan"),
        ({"userId": [None, *COLUMNS["userId"][1:]]}, "row 1: expected the user's id, got an empty field"),
        ({"userId": [math.nan, *map(float, COLUMNS["userId"][1:])]}, "row 1: expected the user's id, got an empty"),
        ({"movieId": [[item] for item in COLUMNS["movieId"]]}, "expected columns of texts, numbers or dates, got list"),
    ):
        said = refusal(Source(written(tmp_path / "in", as_parquet(**COLUMNS | changes), "a.parquet")))
        assert re.search(rf"a\.parquet: {rule}", said), said


# Times

SECONDS = [row[3] for row in RATINGS]
BY_TIME = Columns(by_time=True)


def dates(form: str) -> list[str]:
    return [str(np.datetime64(second, "s")).replace("T", form[0]) + form[1:] for second in SECONDS]


TIMES: dict[str, Any] = {
    "seconds": SECONDS, "fractions": [second / 1000 for second in SECONDS], "ISO 8601": dates("T"),
    "with a blank": dates(" "), "in UTC": dates("TZ"),
}  # fmt: skip


def timed(times: Any) -> str:
    return lines([(*row[:3], when) for row, when in zip(RATINGS, times, strict=True)])


@pytest.mark.parametrize("case", TIMES)
def test_times_are_numbers_or_dates(case: str, tmp_path: Path) -> None:
    expected = newest(SECONDS)
    assert held_out(Source(written(tmp_path / "in", timed(TIMES[case])), BY_TIME)) == expected
    columns = COLUMNS | {"timestamp": TIMES[case]}
    assert held_out(Source(written(tmp_path / "in", as_parquet(**columns), "a.parquet"), BY_TIME)) == expected


@pytest.mark.parametrize("kind", ["timestamp[s]", "date64", "float64"])
def test_times_of_parquet_have_types_of_their_own(kind: str, tmp_path: Path) -> None:
    seconds = [second // 86400 * 86400 for second in SECONDS] if kind == "date64" else SECONDS
    plain = pyarrow.array([second * 1000 for second in seconds] if kind == "date64" else seconds)
    column = plain.cast(kind) if kind != "float64" else plain.cast("float64")
    path = written(tmp_path / "in", as_parquet(**COLUMNS | {"timestamp": column}), "a.parquet")
    assert held_out(Source(path, BY_TIME)) == newest(seconds)


def newest(times: Any) -> set[tuple[str, str]]:
    """Of each user the newest rating, by hand: each has five or six. Of two of one moment the later row is newer."""
    last = {}
    for at in sorted(range(len(RATINGS)), key=lambda at: times[at]):
        user, item, *_ = RATINGS[at]
        last[user] = (str(user), str(item))
    return set(last.values())


def held_out(source: Source, part: str = "test") -> set[tuple[str, str]]:
    named, read = own.names(source), own.part(source, "time", 0, part)
    return {(named.users[u], named.items[i]) for u, i in zip(read.users, read.items, strict=True)}


def test_by_time_the_newest_of_each_user_test_and_those_before_them_validate(tmp_path: Path) -> None:
    """A user of 50 ratings gives 2 (of 2.5, to the even one), one of 30 gives 2, of 5 one, of 4 none."""
    rows = [(f"user of {count}", item, 3, 100 - item) for count in (50, 30, 5, 4) for item in range(count)]
    source = Source(written(tmp_path / "in", lines(rows)), BY_TIME)
    newest_of = {50: 2, 30: 2, 5: 1}  # item 0 is the newest of all, item 1 the next
    for part, first in (("test", 0), ("val", 1)):
        expected = {
            (f"user of {count}", str(item))
            for count, each in newest_of.items()
            for item in range(first * each, (first + 1) * each)
        }
        assert held_out(source, part) == expected
    assert len(held_out(source, "train")) == 89 - 2 * 5
    assert [own.part(source, "time", seed, "test").items.tolist() for seed in (0, 1)] == [
        own.part(source, "time", 0, "test").items.tolist()
    ] * 2


@pytest.mark.parametrize(
    ("content", "columns", "rule"),
    [
        (lines([row[:3] for row in RATINGS], header=HEADER[:3]), BY_TIME, "time_column: expected one of time, time"),
        (lines(), Columns(time="when"), "time_column: expected 'when', got 'userId, movieId"),
        (timed(["yesterday", *SECONDS[1:]]), BY_TIME, r"line 2: expected a time such as .*, got 'yesterday'; correct"),
        (timed([*SECONDS[:9], "soon", *SECONDS[10:]]), BY_TIME, r"line 11: expected a time .* got 'soon'"),
        (timed([*dates("T")[:9], "2001-02-31T10:00:00", *dates("T")[10:]]), BY_TIME, r"line 11: .* got '2001-02-31T"),
        (timed([*SECONDS[:9], "nan", *SECONDS[10:]]), BY_TIME, r"line 11: .* got nan"),
        (timed([*SECONDS[:9], "", *SECONDS[10:]]), BY_TIME, r"line 11: .* got an empty field"),
        (lines([(user, item, 3, 1) for user in range(9) for item in range(4)]), BY_TIME,
         r'split by time: expected a user with 5 ratings or more, got at most 4 of one; write split = "course"'),
    ],
)  # fmt: skip
def test_bad_times_are_one_line_where_they_are_read(content: str, columns: Columns, rule: str, tmp_path: Path) -> None:
    assert re.search(rule, refusal(Source(written(tmp_path / "in", content), columns)))


def test_times_are_not_read_where_the_split_is_at_random(tmp_path: Path) -> None:
    assert rows_of(Source(written(tmp_path / "in", timed(["soon"] * len(RATINGS))))) == EXPECTED


# Titles

TITLES = {str(item): f"Film, the {item}th: é" for item in range(1, 9)}


def titles_of(tmp_path: Path, name: str, content: str | bytes) -> list[str | None]:
    written(tmp_path / "in", content, name)
    written(tmp_path / "in", lines(separator="::", header=None), "ratings.dat")
    return own.names(Source(str(tmp_path / "in"))).titles


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "movies.csv",
            lines([(i, f'"{t}"', "Drama") for i, t in TITLES.items()], header=("movieId", "title", "genres")),
        ),
        ("movies.dat", lines([(i, t, "Drama") for i, t in TITLES.items()], "::", None)),
        ("u.item", lines([(i, t, "", "http://x") for i, t in TITLES.items()], "|", None)),
        ("titles.tsv", lines(TITLES.items(), "\t", ("item", "title"), "\r\n")),
        ("titles.csv", "\ufeff" + lines([(i, f'"{t}"') for i, t in TITLES.items()], header=("id", "Name"))),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_titles_beside_the_ratings_are_read_in_utf_8_or_else_latin_1(
    name: str, content: str, encoding: str, tmp_path: Path
) -> None:
    if encoding == "latin-1" and content.startswith("\ufeff"):
        content = content[1:]
    assert titles_of(tmp_path, name, content.encode(encoding)) == list(TITLES.values())


def test_an_item_may_have_no_title_and_a_title_no_rating(tmp_path: Path) -> None:
    found = titles_of(tmp_path, "titles.csv", "item,title\n3,Three\n5,\n99,No\n")
    assert found == [None, None, "Three", *[None] * 5]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (
            "item,title\na,A\n",
            "expected titles of the rated items, such as '1', got those of others, such as 'a'; write",
        ),
        ("item,title\n", "got none; "),
        ("", "expected a column of items named .*, got ''"),
        ("item,genre\n1,A\n", "expected a column of titles named title or name, got 'item, genre'; rename"),
        ("item,title\n1,A\n1,B\n", "line 3: expected one title for each item, got a second one for '1'"),
        ("item,title\n1,A\n2\n", "line 3: expected 2 fields or more, got 1"),
    ],
)
def test_bad_titles_are_one_line(content: str, rule: str, tmp_path: Path) -> None:
    written(tmp_path / "in", content, "titles.csv")
    said = refusal(Source(written(tmp_path / "in", lines())))
    assert f"{tmp_path}/in/titles.csv: " in said
    assert re.search(rule, said), said


# As published

LAYOUTS: dict[str, dict[str, str]] = {
    "ml-latest-small": {
        "ratings.csv": lines(), "movies.csv": lines(TITLES_ := [(i, f'"{t}"', "A|B") for i, t in TITLES.items()],
        header=("movieId", "title", "genres")), "links.csv": "movieId,imdbId\n", "tags.csv": "userId,movieId,tag\n",
    },
    "ml-1m": {
        "ratings.dat": lines(separator="::", header=None), "users.dat": "1::F::1::10::48067\n",
        "movies.dat": lines([(i, t, "A|B") for i, t in TITLES.items()], "::", None), "README": "Terms",
    },
    "ml-100k": {
        "u.data": lines(separator="\t", header=None), "u.user": "1|24|M|technician|85711\n", "u1.base": "1\t1\t5\t9\n",
        "u.item": lines([(i, t, "", "http://x") for i, t in TITLES.items()], "|", None),
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_its_zip_and_the_file_alone_are_read_as_published_to_the_same_digest(
    layout: str, tmp_path: Path
) -> None:
    members = {name: text.encode("latin-1") for name, text in LAYOUTS[layout].items()}
    write_zip(tmp_path / f"{layout}.zip", {f"{layout}/{name}": content for name, content in members.items()})
    for name, content in members.items():
        written(tmp_path / layout, content, name)
    sources = [Source(str(tmp_path / place)) for place in (f"{layout}.zip", layout, f"{layout}/{next(iter(members))}")]
    assert len({own.pack(source).digest for source in sources}) == 1
    for source in sources:
        assert rows_of(source) == EXPECTED
        assert own.names(source).titles == list(TITLES.values())


def test_a_gz_in_a_zip_is_unpacked_too(tmp_path: Path) -> None:
    content = zip_of(tmp_path, {"a/ratings.csv.gz": gzip.compress(lines().encode())})
    assert rows_of(Source(written(tmp_path / "in", content, "a.ZIP"))) == EXPECTED


@real
def test_the_published_ratings_are_the_same_by_either_way(warm_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS330RAY_DATA", str(REAL))
    source = Source(str(Path(str(REAL)) / "ml-100k.zip"))
    assert own.sizes(source) == movielens.sizes("movielens")
    assert own.names(source).titles == [title.strip() for title in movielens.titles() or ()]
    for part in movielens.PARTS:
        mine, published = own.part(source, "course", 3, part), movielens.ratings("movielens", "course", 3, part)
        for column in ("users", "items", "stars"):
            assert np.array_equal(getattr(mine, column), getattr(published, column))


# Packing


def test_a_table_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = own._read, []
    monkeypatch.setattr(own, "_read", lambda *given: calls.append(given) or read(*given))
    path = Path(written(tmp_path / "in", lines()))
    first = own.pack(Source(str(path))).digest
    copied = shutil.copy(path, tmp_path / "elsewhere.csv")
    assert own.pack(Source(str(path))).digest == own.pack(Source(str(path))).digest == first
    assert len(calls) == 1
    path.write_text(changed(2, "1,1,1,9"))
    assert own.pack(Source(str(path))).digest != first
    written(tmp_path / "in", "item,title\n1,One\n", "titles.csv")
    assert own.names(Source(str(path))).titles[0] == "One"
    assert len(calls) == 3
    assert own.pack(Source(str(copied))).digest == first


def test_a_table_that_changes_while_it_is_read_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = Path(written(tmp_path / "in", lines())), own._read

    def changing(*given: Any) -> Any:
        found = read(*given)
        path.write_text(lines(RATINGS[1:]))
        return found

    monkeypatch.setattr(own, "_read", changing)
    assert "expected it to stay as it is while it is read" in refusal(Source(str(path)))


def test_rows_in_another_order_have_the_same_digest(tmp_path: Path) -> None:
    one, other = (
        Source(written(tmp_path / "in", lines(rows), name))
        for rows, name in ((RATINGS, "a.csv"), (RATINGS[::-1], "b.csv"))
    )
    assert own.pack(one).digest == own.pack(other).digest


def test_a_split_cuts_the_parts_that_are_said(tmp_path: Path) -> None:
    rows = [(user, item, 3) for user in range(10) for item in range(20)]
    source = Source(written(tmp_path / "in", lines(rows, header=THREE)))
    parts = [
        {*zip(part.users, part.items, strict=True)}
        for part in (own.part(source, "course", 7, p) for p in movielens.PARTS)
    ]
    assert [len(part) for part in parts] == [180, 10, 10]
    assert len(set.union(*parts)) == 200


@pytest.mark.slow
def test_a_million_ratings_are_packed_in_seconds(tmp_path: Path) -> None:
    """Within 20 s beside other work; alone it takes about two."""
    keys = np.random.RandomState(0).permutation(6_000 * 4_000)[:1_000_000]
    content = "".join(f"{key // 4_000},{key % 4_000},{key % 9 / 2},{key}\n" for key in keys.tolist())
    source = Source(written(tmp_path / "in", "userId,movieId,rating,timestamp\n" + content), BY_TIME)
    began = time.monotonic()
    assert len(own.pack(source).arrays["users"]) == 1_000_000
    assert time.monotonic() - began < 20
