"""Domains are checked against the types of a Config's fields, and conditions against each other."""

import re
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat

from cs330ray.errors import SpecError
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.spec.tables import Choice, Domain, Range
from cs330ray.trial.check import check
from cs330ray.trial.domains import misfits, never_searched
from tests import toy as toy_trainable
from tests.studies_of_tests import toy

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "study-file.md"


class Opt(Enum):
    SGD = "sgd"
    ADAM = "adam"


class Inner(BaseModel):
    lr: float = 0.1


class Config(BaseModel):
    real: float = 1.0
    maybe_real: float | None = None
    positive: PositiveFloat | None = None
    bounded: Annotated[float, Field(ge=0)] | None = None
    whole: int = 1
    maybe_whole: int | None = None
    count: NonNegativeInt = 0
    eights: int = Field(8, multiple_of=8)
    few: Literal[1, 2, 4] = 1
    either: int | float = 1
    flag: bool = False
    text: str = ""
    opt: Opt = Opt.SGD
    anything: Any = None
    layers: tuple[int, ...] = (64,)
    inner: Inner = Inner()


TRAINABLE: Any = SimpleNamespace(Config=Config)


def found(name: str, domain: Domain) -> list[str]:
    return list(misfits(TRAINABLE, name, domain, Config.model_fields[name]))


@pytest.mark.parametrize("name", ["real", "maybe_real", "positive", "bounded"])
def test_whole_ends_of_a_real_parameter_are_refused_whatever_else_it_takes(name: str) -> None:
    wanted = f"{name} is a real number, but got whole ends; write 1.0 and 9.0"
    assert found(name, Range(low=1, high=9)) == found(name, Range(low=1, high=9, step=2)) == [wanted]
    assert found(name, Range(low=1.0, high=9.0)) == []


@pytest.mark.parametrize("name", ["whole", "maybe_whole", "count"])
def test_a_range_that_is_not_whole_is_refused_for_whole_numbers_whatever_else_they_take(name: str) -> None:
    write = "; write whole numbers"
    half = found(name, Range(low=1, high=9, step=0.5))
    assert half == [f"{name} is an integer, but got low=1, high=9, step=0.5{write}"]
    assert found(name, Range(low=1.0, high=9.0))[0] == f"{name} is an integer, but got low=1.0, high=9.0{write}"
    assert found(name, Range(low=1, high=9, step=2)) == []


@pytest.mark.parametrize(
    ("name", "domain", "line"),
    [
        ("flag", Range(low=0, high=1), "a range is one of numbers, but flag takes none; write [true, false]"),
        ("text", Range(low=0, high=1), "a range is one of numbers, but text takes none; write a list of choices"),
        ("eights", Range(low=8, high=64), "input should be a multiple of 8, but got 9"),
        ("few", Range(low=1, high=4), "input should be 1, 2 or 4, but got 3"),
        ("opt", Choice(choices=["sgd", "lion"]), "input should be 'sgd' or 'adam', but got 'lion'"),
        (
            "maybe_real",
            Choice(choices=[0.5, "none"]),
            "TOML has no null, and maybe_real does not take 'none' for None; have a validator of Config turn a text "
            "into it, as docs/guide/study-file.md shows",
        ),
    ],
)
def test_what_does_not_fit_a_field_is_said(name: str, domain: Domain, line: str) -> None:
    assert found(name, domain)[0] == line


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("eights", Range(low=8, high=64, step=8)), ("few", Range(low=1, high=2)), ("either", Range(low=1, high=9)),
        ("either", Range(low=1.0, high=9.0)), ("anything", Range(low=1, high=9)),
        ("flag", Choice(choices=[True, False])), ("opt", Choice(choices=["sgd", "adam"])),
        ("count", Range(low=1, high=10**6, log=True)),
    ],
)  # fmt: skip
def test_what_fits_a_field_is_taken(name: str, domain: Domain) -> None:
    assert found(name, domain) == []


# Conditions


def study(search: dict[str, Any], **tables: Any) -> Study:
    given = {"budget": {"trials": 2, "steps": 2}, "search": search, **tables}
    return parse({"name": "s", "trainable": "mine.t", "objective": "val_loss", **given}, "s.toml")


def never(search: dict[str, Any], **tables: Any) -> list[str]:
    return list(never_searched(study(search, **tables)))


A = {"low": 0.0, "high": 1.0}
WIDTH = {"low": 16, "high": 64, "step": 16}
END = "; correct the condition, or remove a"


@pytest.mark.parametrize(
    ("search", "tables", "line"),
    [
        ({"name": ["a", "b"], "a": {**A, "when": {"name": "B"}}}, {}, "name is one of ['a', 'b'], never 'B'"),
        ({"w": WIDTH, "a": {**A, "when": {"w": 24}}}, {}, "w is from 16 to 64 in steps of 16, never 24"),
        ({"w": WIDTH, "a": {**A, "when": {"w": [8, 65]}}}, {}, "w is from 16 to 64 in steps of 16, never [8, 65]"),
        ({"w": WIDTH, "a": {**A, "when": {"w": "16"}}}, {}, "w is from 16 to 64 in steps of 16, never '16'"),
        ({"r": A, "a": {**A, "when": {"r": 2.0}}}, {}, "r is from 0.0 to 1.0, never 2.0"),
        ({"a": {**A, "when": {"b": 2}}}, {"fixed": {"b": 1}}, "b is fixed at 1, never 2"),
        ({"a": {**A, "when": {"b": 2}}}, {"compare": {"b": [1, 3]}}, "b is compared at 1, never 2"),
        ({"b": ["x", "y"], "a": {**A, "when": {"b": []}}}, {}, "b is one of ['x', 'y'], never []"),
        (
            {"c": ["x", "y"], "b": {"choices": [1, 2], "when": {"c": "x"}}, "a": {**A, "when": {"b": 1, "c": "y"}}},
            {},
            "c must have other values for a than for b, which a depends on",
        ),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(search: Any, tables: Any, line: str) -> None:
    assert never(search, **tables) == [f"search.a.when: {line}{END}"]


def test_what_depends_on_a_parameter_that_is_never_searched_is_not_either() -> None:
    search = {"b": {"choices": [1, 2], "when": {"c": "x"}}, "a": {**A, "when": {"b": 1}}}
    first, second = never(search, fixed={"c": "y"})
    assert first == "search.b.when: c is fixed at 'y', never 'x'; correct the condition, or remove b"
    assert second == f"search.a.when: c is fixed at 'y', never 'x' (as the `when` of b demands){END}"


@pytest.mark.parametrize(
    ("search", "tables"),
    [
        ({"w": WIDTH, "a": {**A, "when": {"w": [24, 32]}}}, {}),
        ({"a": {**A, "when": {"b": 2}}}, {"compare": {"b": [1, 2]}}),  # in one of the cells
        ({"f": [True, False], "a": {**A, "when": {"f": True}}}, {}),
        ({"r": A, "a": {**A, "when": {"r": 0.3}}}, {}),
        ({"c": ["x", "y"], "b": {"choices": [1], "when": {"c": "x"}}, "a": {**A, "when": {"b": 1, "c": ["x"]}}}, {}),
    ],
)
def test_a_condition_that_may_hold_is_taken(search: Any, tables: Any) -> None:
    assert never(search, **tables) == []


# As a run checks them


def test_a_run_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"^s\.toml: search\.width\.when: body is one of .*never 'huge'; correct"):
        check(toy(search={"width": {"low": 1, "high": 8, "when": {"body": "huge"}}}), "s.toml")
    monkeypatch.setattr(toy_trainable, "Config", Config)
    with pytest.raises(SpecError, match=r"^s\.toml: search\.inner\.lr: a parameter is one field of Config, not one of"):
        check(parse(toy().model_dump() | {"search": {"inner.lr": [0.1]}, "fixed": {}}, "s.toml"), "s.toml")


def test_what_the_guide_shows_for_null_and_lists_is_taken_and_reads_as_they_do() -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "Before" in block]
    (choices,) = re.findall(r"^(clip = .*\nlayers = .*)\n", GUIDE.read_text(), re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    import tomllib

    found = tomllib.loads(choices)
    config = names["Config"]
    assert [config(clip=text).clip for text in found["clip"]] == [None, 0.5, 1.0]
    assert [config(layers=text).layers for text in found["layers"]] == [(64,), (64, 64), (128, 64)]
    for name, values in found.items():
        fits = misfits(SimpleNamespace(Config=config), name, Choice(choices=values), config.model_fields[name])
        assert list(fits) == []
