"""The texts that many modules print: each form written out by hand."""

import asyncio

import pytest

from cs330ray import words


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.84021, 4, "0.8402"),
        (12345.6, 4, "1.235e+04"),
        (1.0, 4, "1"),
        (-0.00012345, 4, "-0.0001234"),
        (2 / 3, 6, "0.666667"),
        (float("nan"), 4, "nan"),
    ],
)
def test_a_number_has_so_many_significant_digits(value: float, digits: int, text: str) -> None:
    assert words.number(value, digits) == text


def test_parameters_stand_in_one_line_and_only_floats_are_rounded() -> None:
    values = {"inner_lr": 0.35004, "steps": 123456, "body": "pooled", "vmap": True}
    assert words.params(values) == "inner_lr=0.35 steps=123456 body=pooled vmap=True"
    assert words.params(values, ", ") == "inner_lr=0.35, steps=123456, body=pooled, vmap=True"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (42.4, "42s"), (59.4, "59s"), (59.6, "1m 00s"), (185, "3m 05s"), (3599.6, "1h 00m"), (7800, "2h 10m")],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 fresh seeds"), (1, "1 fresh seed"), (5, "5 fresh seeds")])
def test_only_one_thing_is_singular(count: int, text: str) -> None:
    assert words.plural(count, "fresh seed") == text


def test_a_quoted_value_is_cut_to_its_length() -> None:
    assert words.short("a" * 58) == f"'{'a' * 58}'"
    assert words.short("a" * 59) == f"'{'a' * 56}..."
    assert words.short([1, 2, 3], 8) == "[1, 2..."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such file\nmore of it"), "no such file"),
        (ValueError("\n  indented  \n"), "indented"),
        (ValueError(""), "ValueError"),
        (OSError(" \n "), "OSError"),
    ],
)
def test_the_first_line_of_an_error_says_something(error: Exception, line: str) -> None:
    assert words.first_line(error) == line


def test_a_text_that_says_nothing_has_the_words_given_instead() -> None:
    assert words.first_line_of("\n\n", "for no known reason") == "for no known reason"
    assert words.first_line_of("\nhead is gone\n", "for no known reason") == "head is gone"


class MuteError(Exception):
    def __str__(self) -> str:
        raise OSError


def with_notes(error: BaseException, *notes: str) -> BaseException:
    for note in notes:
        error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (RuntimeError("\n\n  shapes do not fit\nmore"), "RuntimeError: shapes do not fit"),
        (ValueError(), "ValueError"),
        (KeyError("name"), "KeyError: 'name'"),
        (SystemExit("no data for this fold"), "SystemExit: no data for this fold"),
        (SystemExit(0), "SystemExit: 0"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError("late"), "asyncio.exceptions.CancelledError: late"),
        (MuteError(), f"{__name__}.MuteError: its message cannot be read: str() raised OSError"),
        (with_notes(ValueError("the reason"), "a hint\nin two lines"), "ValueError: the reason (a hint)"),
        (with_notes(ValueError(), "\n", "one", "two"), "ValueError (one; two)"),
        (
            BaseExceptionGroup("two folds", [ValueError("one"), with_notes(SystemExit(3), "late")]),
            "BaseExceptionGroup: two folds (2 sub-exceptions): ValueError: one; SystemExit: 3 (late)",
        ),
        (
            ExceptionGroup("many", [ValueError(each) for each in range(5)]),
            "ExceptionGroup: many (5 sub-exceptions): ValueError: 0; ValueError: 1; ValueError: 2; ...",
        ),
        (ValueError("\x1b[31mred\0\udcff"), "ValueError: \\x1b[31mred\\x00\\udcff"),
    ],
)
def test_an_error_in_one_line_has_type_message_notes_and_the_first_of_a_group(error: BaseException, line: str) -> None:
    assert words.typed_first_line(error) == line


def test_an_error_of_megabytes_is_a_short_line() -> None:
    assert words.typed_first_line(ValueError("z" * 5_000_000)) == f"ValueError: {'z' * 485}..."
