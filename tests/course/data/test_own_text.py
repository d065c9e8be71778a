"""Files of prompts and answers, and of texts and labels: what is read, how it is split, and what is refused."""

import errno
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cs330ray.course.data import text
from cs330ray.course.data.texts import text as own
from cs330ray.errors import DataError

PARTS = ("train", "val", "test")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes, str], str]:
    """Write a file below the directory where the command runs; its name."""
    monkeypatch.chdir(tmp_path)

    def written(content: str | bytes, name: str = "mine.jsonl") -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return written


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int = 20, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {at}?", "answer": f"answer {at}", **more} for at in range(count)]


def texts(*counts: int) -> list[dict[str, Any]]:
    """As many texts of the labels a, b, c ... as `counts` says."""
    return [
        {"text": f"{label} {at}", "label": label}
        for label, count in zip("abcdefg", counts, strict=False)
        for at in range(count)
    ]


def parts_of(data: str, data_seed: int = 0) -> dict[str, list[text.Example]]:
    return {part: own.part(data, part, data_seed)[:] for part in PARTS}


# Reading


def test_prompts_have_answers_and_each_knows_its_line(write: Any) -> None:
    data = write(lines([*pairs(4), {"prompt": " Two\nlines? ", "answer": " yes\n", "note": 3}]))
    found = {example.line: example for part in parts_of(data).values() for example in part}
    assert found.keys() == {1, 2, 3, 4, 5}
    assert found[1] == text.Example("line 1", "Question 0?", "answer 0", 1)
    assert found[5] == text.Example("line 5", "Two\nlines?", "yes", 5)  # blanks around are left out, those within stay
    assert own.labels(data) is None


def test_labels_are_sorted_and_numbers_are_as_they_are_written(write: Any) -> None:
    rows = [{"text": at, "label": label} for at, label in enumerate([10, 9, "ten", 1.50] * 3)]
    data = write(lines(rows).replace("1.5}", "1.50}"))
    assert own.labels(data) == ("1.50", "10", "9", "ten")
    assert {example.text for part in parts_of(data).values() for example in part} == {str(at) for at in range(12)}


CSV = 'text,other,label\n"One, two",x,good\n"Three\nlines\nof it",x,bad\n'


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (CSV, "mine.csv"),
        (CSV.replace("\n", "\r\n"), "mine.csv"),
        ("\ufeff" + CSV, "mine.CSV"),
        ("\n" + CSV.replace("good\n", "good\n\n  \n") + "\n\n", "mine.csv"),
        (lines([{"text": "One, two", "label": "good"}, {"text": "Three\nlines\nof it", "label": "bad"}]), "mine.jsonl"),
        (
            "\ufeff" + lines([{"text": "One, two", "label": "good"}, {"text": "Three\nlines\nof it", "label": "bad"}])
            .replace("\n", "\r\n\r\n"),
            "mine.jsonl",
        ),
    ],
    ids=["CSV", "CRLF", "BOM", "empty lines", "JSONL", "JSONL with BOM, CRLF and empty lines"],
)  # fmt: skip
def test_the_same_rows_are_read_however_they_are_written(content: str, name: str, write: Any) -> None:
    table = own._open(write(content, name))
    assert [text.replace("\r\n", "\n") for text in table.prompts] == ["One, two", "Three\nlines\nof it"]
    assert list(table.answers) == ["good", "bad"]
    assert table.labels == ("bad", "good")
    assert table.codes.tolist() == [1, 0]


def test_a_row_of_several_lines_is_told_by_its_first(write: Any) -> None:
    table = own._open(write(CSV + "Four,x,good\n", "mine.csv"))
    assert table.lines.tolist() == [2, 3, 6]


def test_a_path_is_from_here_absolute_or_from_home(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(lines(pairs()))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own.digest(data) == own.digest(str(tmp_path / data)) == own.digest(f"~/{data}")


# Packing


def test_a_file_is_read_once_and_its_digest_is_of_its_rows(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(lines(pairs()))
    digest = own.digest(data)
    own._table.cache_clear()  # as in another process
    with monkeypatch.context() as patch:
        patch.setattr(own, "_packable", None)
        assert own.digest(data) == digest
    assert own.digest(write(lines(pairs()).replace("\n", "\r\n"), "other.jsonl")) == digest
    assert own.digest(write(lines(pairs(21)), "more.jsonl")) != digest


def test_a_file_that_was_changed_is_read_again_in_the_same_process(write: Any) -> None:
    data = write(lines(pairs()))
    before = own.digest(data)
    write(lines([*pairs(19), {"prompt": "New?", "answer": "yes"}]))
    assert own.digest(data) != before


def test_a_packed_row_that_was_altered_is_found(write: Any, cold_cache: Path) -> None:
    data = write(lines(pairs()))
    own.digest(data)
    own._table.cache_clear()
    (path,) = (cold_cache / "packed").glob("text-*/prompts.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="were altered; delete this directory"):
        own.digest(data)


# The split


@pytest.mark.parametrize("data_seed", range(3))
def test_a_fifth_is_val_and_a_fifth_test_by_the_data_seed(write: Any, data_seed: int) -> None:
    data = write(lines(pairs(50)))
    parts = parts_of(data, data_seed)
    assert {part: len(parts[part]) for part in parts} == {"train": 30, "val": 10, "test": 10}
    assert {example.line for part in parts.values() for example in part} == set(range(1, 51))
    assert parts == parts_of(data, data_seed)
    assert {e.line for e in parts["test"]} != {e.line for e in parts_of(data, data_seed + 1)["test"]}


@pytest.mark.parametrize("data_seed", range(3))
def test_of_each_label_a_fifth_is_val_and_a_fifth_test_and_one_at_least(write: Any, data_seed: int) -> None:
    parts = parts_of(write(lines(texts(40, 10, 3))), data_seed)
    counts = {part: dict(Counter(example.answer for example in parts[part])) for part in parts}
    assert counts["val"] == counts["test"] == {"a": 8, "b": 2, "c": 1}
    assert counts["train"] == {"a": 24, "b": 6, "c": 1}
    for part in ("val", "test"):  # any first few are spread over the labels
        assert {example.answer for example in parts[part][:3]} == {"a", "b", "c"}


@pytest.mark.parametrize("data_seed", range(3))
def test_no_group_is_in_two_parts_and_any_first_few_are_of_as_many_groups_as_can_be(write: Any, data_seed: int) -> None:
    data = write(lines([{"prompt": f"{at}?", "answer": "x", "group": at % 10} for at in range(60)]))
    parts = parts_of(data, data_seed)
    groups = {part: {example.unit for example in parts[part]} for part in parts}
    assert {part: len(groups[part]) for part in groups} == {"train": 6, "val": 2, "test": 2}
    assert set.union(*groups.values()) == {str(at) for at in range(10)}
    assert len({example.unit for example in parts["val"][:2]}) == 2


@pytest.mark.parametrize("data_seed", range(5))
@pytest.mark.parametrize("grouped", [False, True])
def test_rows_of_one_prompt_are_in_one_part_with_the_groups_that_they_tie_together(
    write: Any, grouped: bool, data_seed: int
) -> None:
    """Prompt 0 is asked by groups 0 and 1, and prompt 1 by 1 and 2, so that these three are one unit."""
    asked = [*((at, at) for at in range(12)), (0, 1), (1, 2), (0, 0)]
    rows = [
        {"prompt": f" Who  is {prompt}? ", "answer": "x"} | ({"group": group} if grouped else {})
        for prompt, group in asked
    ]
    rows[-1]["prompt"] = "WHO IS 0?"
    parts = parts_of(write(lines(rows)), data_seed)
    where = [{part for part in parts if any(f" {at}?" in example.text for example in parts[part])} for at in range(12)]
    assert all(len(found) == 1 for found in where)
    assert not grouped or where[0] == where[1] == where[2]
    assert sum(len(examples) for examples in parts.values()) == 15  # none is left out


def test_the_split_of_the_published_texts_is_not_that_of_one_s_own(write: Any) -> None:
    """Streams have names: a data_seed does not put the same places into test."""
    order = text.stream("own text", 0).permutation(50)
    assert not np.array_equal(order, text.stream("xsum", 0).permutation(50))


def test_spread_takes_the_turns_of_a_shuffle_one_of_each_group_after_another() -> None:
    """Counted by hand on the same permutation, for a recorded draw must never change."""
    groups = np.array([0, 0, 0, 1, 1, 2])
    shuffled = np.random.RandomState(3).permutation(6).tolist()
    turns = Counter[int]()
    order = []
    for at in shuffled:
        order.append((turns[int(groups[at])], len(order), at))
        turns[int(groups[at])] += 1
    assert text.spread(groups, np.random.RandomState(3)).tolist() == [at for _, _, at in sorted(order)]


# Drawing


def test_draws_are_nested_balanced_and_of_as_many_units_as_there_are(write: Any) -> None:
    pool = own.part(write(lines(texts(20, 30))), "train", 0)
    draws = [own.draw(pool, shots, 3, classes=True) for shots in range(4)]
    assert [Counter(example.answer for example in drawn) for drawn in draws[1:]] == [
        {"a": count, "b": count} for count in (1, 2, 3)
    ]
    assert all(larger[: len(smaller)] == smaller for smaller, larger in itertools.pairwise(draws))
    rows = [{"prompt": f"{at}?", "answer": "x", "group": at % 10} for at in range(60)]
    grouped = own.part(write(lines(rows), "grouped.jsonl"), "train", 0)
    assert len({example.unit for example in own.draw(grouped, 6, 0, classes=False)}) == 6


def test_a_draw_is_that_of_any_other_text(write: Any) -> None:
    pool = own.part(write(lines(texts(20, 30))), "train", 0)
    assert own.draw(pool, 4, 7, classes=True) == text.draw(pool[:], 4, 7, classes=True)
    assert own.draw(pool, 9, 7, classes=False) == text.draw(pool[:], 9, 7, classes=False)


def test_too_many_shots_are_refused_with_the_file(write: Any) -> None:
    data = write(lines(pairs(10)))
    with pytest.raises(DataError, match=r"^mine\.jsonl: shots: `shots <= 6`, .* but got 7; lower shots or add rows$"):
        own.draw(own.part(data, "train", 0), 7, 0, classes=False)


# A million rows


@pytest.mark.slow
def test_a_million_rows_take_seconds_and_only_those_that_are_drawn_are_looked_at(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write("text,label\n" + "".join(f"Text number {at},{'abc'[at % 3]}\n" for at in range(10**6)), "mine.csv")
    begin = time.monotonic()
    own.digest(data)
    looked: list[int] = []
    example = own.Table.example
    monkeypatch.setattr(own.Table, "example", lambda table, at: looked.append(at) or example(table, at))
    pools = {part: own.part(data, part, 0) for part in PARTS}
    assert [len(pool) for pool in pools.values()] == pytest.approx([600_000, 200_000, 200_000], abs=10)
    assert len(own.draw(pools["train"], 8, 0, classes=True)) == 24
    assert len(pools["val"][:125]) == 125
    assert len(looked) == 24 + 125
    assert time.monotonic() - begin < 60  # 7 s on one core of the machine it was written on


# What is refused


def a_folder(write: Any) -> str:
    Path("folder.jsonl").mkdir()
    return "folder.jsonl"


def in_parts(rows: list[dict[str, Any]]) -> Callable[[Any], str]:
    return lambda write: write(lines(rows))


def csv(content: str | bytes) -> Callable[[Any], str]:
    return lambda write: write(content, "mine.csv")


def spoilt(line: str | bytes, at: int = 3) -> Callable[[Any], str]:
    """A sound file whose line `at` is another."""
    whole = lines(pairs()).encode().split(b"\n")
    whole[at - 1] = line if isinstance(line, bytes) else line.encode()
    return lambda write: write(b"\n".join(whole))


BAD: dict[str, tuple[Callable[[Any], str], str]] = {
    "no such file": (lambda _: "none.jsonl", r"none\.jsonl: expected a file, got none at /.*/none\.jsonl; check the"),
    "a folder": (a_folder, r"folder\.jsonl: expected a file, got a folder; name the \.jsonl or \.csv file in it"),
    "a .txt": (lambda write: write("x", "a.txt"), r"a\.txt: expected a \.jsonl or \.csv file, got \.txt; write one"),
    "no suffix": (lambda write: write("x", "a"), r"a: expected a \.jsonl or \.csv file, got no suffix; write"),
    "nothing in it": (lambda write: write(""), r"expected rows, got an empty file; write some"),
    "a header alone": (csv("text,label\n"), r"expected rows, got an empty file; write some"),
    "missing columns": (
        csv("question,answer\na,b\n"),
        r"expected the columns prompt and answer, or text and label, got 'question', 'answer'; rename them",
    ),
    "semicolons": (csv("text;label\na;b\n"), r"expected the columns .*, got 'text;label'; rename them"),
    "label alone": (csv("label\na\n"), r"expected the columns .*, got 'label'; rename them"),
    "both pairs": (
        in_parts([{"prompt": "a", "answer": "b", "text": "c", "label": "d"}]),
        r"expected .*, got 'prompt', 'answer', 'text', 'label'; remove two",
    ),
    "a column twice": (csv("text,text,label\n"), r"line 1: expected different names of columns, got text, te"),
    "too few cells": (csv("text,label\na,b\nc\n"), r"line 3: expected 2 cells, as the header has, got 1; quote"),
    "too many cells": (csv("text,label\na,b,c\n"), r"line 2: expected 2 cells, as the header has, got 3; quo"),
    "a huge cell": (csv(f"text,label\n{'x' * 200_000},b\n"), r"line 2: expected cells of CSV, got field larger"),
    "an open quote": (csv('text,label\n"a,b\nc,d\n'), r"line 2: expected cells of CSV, got unexpected end of"),
    "one label": (in_parts(texts(9)), r"label: expected two labels or more, got 'a' alone; add rows"),
    "a label once": (
        in_parts(texts(9, 1)),
        r"line 10: label: expected at least 3 different texts of 'b', one for each of train, val and test, "
        r"got 1; add some, or remove the label",
    ),
    "an empty prompt": (spoilt('{"prompt": " ", "answer": "x"}'), r"line 3: prompt: expected a text, got ' '; write o"),
    "an empty answer": (spoilt('{"prompt": "x", "answer": ""}'), r"line 3: answer: expected a text, got ''; write one"),
    "an empty cell": (csv("text,label\na,x\n,y\n"), r"line 3: text: expected a text, got ''; write one"),
    "null": (spoilt('{"prompt": "x", "answer": null}'), r"line 3: answer: expected a text or a number, got None; writ"),
    "not a number": (spoilt('{"prompt": "x", "answer": NaN}'), r"line 3: answer: expected a text or a number, got nan"),
    "true": (spoilt('{"prompt": "x", "answer": true}'), r"line 3: answer: expected a text or a number, got True; writ"),
    "a list": (spoilt('{"prompt": ["x"], "answer": "y"}'), r"line 3: prompt: expected a text or a number, got \['x'\]"),
    "no answer": (spoilt('{"prompt": "x"}'), r"line 3: answer: expected a text or a number, got no such field; write"),
    "no group": (
        in_parts([*pairs(9, group="g"), *pairs(1)]),
        r"line 10: group: expected a text or a number, got no such field; write one, or remove the row",
    ),
    "a late group": (
        in_parts([*pairs(9), {"prompt": "x", "answer": "y", "group": 1}]),
        r"line 10: group: expected none, as in the first row, got one; give it to all rows",
    ),
    "no object": (spoilt('["x", "y"]'), r"line 3: expected a JSON object, got '\[\"x\", \"y\"\]'; write one"),
    "half an object": (spoilt('{"prompt": "x", '), r"line 3: expected a JSON object, got '\{\"prompt\": \"x"),
    "one JSON array": (lambda write: write(json.dumps(pairs(), indent=1)), r"line 1: expected a JSON object, got '\['"),
    "half a character": (
        spoilt('{"prompt": "x \\ud800", "answer": "y"}'),
        r"line 3: prompt: expected characters, got half of one in 'x \\ud800'; correct it",
    ),
    "not UTF-8": (
        spoilt('{"prompt": "né", "answer": "y"}'.encode("latin-1")),
        r"line 3: expected UTF-8, got the byte 0xe9 at offset \d+; save it so",
    ),
    "UTF-16": (csv("text,label\na,b\n".encode("utf-16")), r"line 1: expected UTF-8, got the byte 0xff at offse"),
    "too few rows": (
        in_parts(pairs(4)),
        r"expected at least 5 different prompts for train, val and test, got 4 in 4 rows; add some",
    ),
    "one prompt again and again": (
        in_parts(pairs(3) * 9),
        r"expected at least 5 different prompts for train, val and test, got 3 in 27 rows; add some",
    ),
    "a group in all rows": (
        in_parts(pairs(20, group="g")),
        r"expected at least 5 different groups with no prompt in common for train, val and test, got 1 in 20",
    ),
    "a label in one group": (
        in_parts([{"text": f"{at}", "label": "ab"[at == 0], "group": at} for at in range(5)]),
        r"label: expected 'b' in the groups of train, got none at data_seed \d; choose another data_seed",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line_with_its_place(make: Callable[[Any], str], message: str, write: Any) -> None:
    data = make(write)
    with pytest.raises(DataError, match=message) as caught:
        _ = [own.part(data, "train", data_seed) for data_seed in range(9)]
    assert str(caught.value).startswith(f"{data}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_one_line(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(lines(pairs()))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("cs330ray.course.data.texts.text.open", refused, raising=False)  # root reads all files
    with pytest.raises(
        DataError, match="expected a file that can be read, got Permission denied; change its permissions"
    ):
        own.digest(data)
