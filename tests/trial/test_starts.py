"""What [start] gives as points of a cell's space, and each way in which it can be refused."""

import re
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cs330ray.errors import SpecError
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.trial import check as checks
from cs330ray.trial import starts as resolved
from cs330ray.trial.check import check
from cs330ray.trial.starts import starts
from tests import toy as toy_trainable
from tests.studies_of_tests import toy


def widths(value: Any) -> Any:
    return tuple(int(width) for width in value.split("-")) if isinstance(value, str) else value


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = 0.1
    momentum: float = Field(0.9, le=0.99)
    shots: int = 5
    layers: Annotated[tuple[int, ...], BeforeValidator(widths)] = (64, 64)
    clip: Annotated[float | None, BeforeValidator(lambda value: None if value == "none" else value)] = None
    flag: bool = False
    depth: int
    steps_a: int = 2


class Other(BaseModel):
    lr: float = 0.3
    temperature: float = 1.0


SEARCH: dict[str, Any] = {
    "lr": {"low": 0.01, "high": 1.0, "log": True},
    "shots": {"low": 1, "high": 9, "step": 2},
    "layers": ["64", "64-64"],
    "clip": ["none", 0.5],
    "flag": [True, False],
    "steps_a": {"low": 1, "high": 3, "when": {"flag": True}},
}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainables, `one` and `other`, beside those that there are."""
    made = {"one": SimpleNamespace(Config=Config), "other": SimpleNamespace(Config=Other)}
    for module in (resolved, checks):
        of = module.of
        monkeypatch.setattr(module, "of", lambda cell, of=of: made.get(cell.trainable) or of(cell))


def study(start: list[Any], **changes: Any) -> Study:
    raw = {
        "name": "started", "trainable": "one", "objective": ["val_loss"], "fixed": {"depth": 1}, "search": SEARCH,
        "budget": {"trials": 4, "steps": 1}, "start": start,
    }  # fmt: skip
    return parse(raw | changes, "here")


def found(start: list[Any], **changes: Any) -> list[dict[str, Any]]:
    asked = study(start, **changes)
    return starts(asked, asked.cells[0])


DEFAULT = {"lr": 0.1, "shots": 5, "layers": "64-64", "clip": "none", "flag": False}


def test_default_is_what_config_says_in_the_words_of_the_domains() -> None:
    assert found(["default"]) == [DEFAULT]


def test_a_table_changes_what_it_names_and_keeps_the_rest_and_the_order_stands() -> None:
    assert found([{"lr": 0.5, "layers": "64"}, "default", {"shots": 9}]) == [
        DEFAULT | {"lr": 0.5, "layers": "64"},
        DEFAULT,
        DEFAULT | {"shots": 9},
    ]


def test_a_parameter_is_there_where_its_condition_holds_and_else_left_out() -> None:
    assert found([{"flag": True}, {"flag": True, "steps_a": 3}, {"steps_a": 1}]) == [
        DEFAULT | {"flag": True, "steps_a": 2},
        DEFAULT | {"flag": True, "steps_a": 3},
        DEFAULT,
    ]


def test_a_whole_number_is_a_real_one_in_a_range_of_such() -> None:
    (start,) = found([{"lr": 1}])
    assert (start["lr"], type(start["lr"])) == (1.0, float)


def test_equal_starts_are_tried_once() -> None:
    assert found(["default", {"lr": 0.1}, {"lr": 0.2}, {}]) == [DEFAULT, DEFAULT | {"lr": 0.2}]


def test_a_name_that_only_other_cells_search_is_theirs() -> None:
    space = {"lr": SEARCH["lr"], "other": {"temperature": {"low": 0.5, "high": 2.0}}}
    changes = {"trainable": None, "compare": {"trainable": ["one", "other"]}, "fixed": {"one": {"depth": 1}}}
    asked = study([{"lr": 0.2, "temperature": 2.0}, {"temperature": 0.5}, "default"], search=space, **changes)
    one, other = (starts(asked, cell) for cell in asked.cells)
    assert one == [{"lr": 0.2}, {"lr": 0.1}]
    assert other == [
        {"lr": 0.2, "temperature": 2.0},
        {"lr": 0.3, "temperature": 0.5},
        {"lr": 0.3, "temperature": 1.0},
    ]


@pytest.mark.parametrize(
    ("start", "changes", "said"),
    [
        ({"lr": 3.0}, {}, "start.1.lr: expected from 0.01 to 1.0, got 3.0; write such a value, or widen search.lr"),
        ({"shots": 4}, {}, "start.1.shots: expected from 1 to 9 in steps of 2, got 4; write such"),
        ({"shots": 5.5}, {}, "start.1.shots: expected from 1 to 9 in steps of 2, got 5.5; "),
        ({"lr": True}, {}, "start.1.lr: expected from 0.01 to 1.0, got True; "),
        ({"lr": "0.1"}, {}, "start.1.lr: expected from 0.01 to 1.0, got '0.1'; "),
        ({"layers": "128"}, {}, "start.1.layers: expected one of ['64', '64-64'], got '128'; "),
        ({"flag": 1}, {}, "start.1.flag: expected one of [True, False], got 1; "),
        ({"depth": 2}, {}, "start.1.depth: expected a parameter of [search], got one of [fixed]; remove it here"),
        (
            {"momentum": 0.5}, {"compare": {"momentum": [0.5, 0.9]}},
            "start.1.momentum: expected a parameter of [search], got one of [compare]; remove it here",
        ),
        ({"lrr": 0.5}, {}, "start.1.lrr: expected a parameter of [search], got 'lrr'; did you mean 'lr'?"),
        (
            {"zzz": 0.5}, {}, "start.1.zzz: expected a parameter of [search], got 'zzz' (known: clip, flag,",
        ),
        (
            "default", {"search": SEARCH | {"shots": {"low": 6, "high": 9}}},
            "start.1.shots: expected from 6 to 9 in steps of 1, got 5, the value of one's Config; write another here, "
            "or widen search.shots",
        ),
        (
            "default", {"search": SEARCH | {"depth": {"low": 1, "high": 2}}, "fixed": {}},
            "start.1.depth: expected a value, since Config has no default, got none; write one",
        ),
        (
            {"momentum": 1.5}, {"search": SEARCH | {"momentum": {"low": 0.0, "high": 2.0}}},
            "start.1: momentum: input should be less than or equal to 0.99, but got 1.5",
        ),
    ],
)  # fmt: skip
def test_what_is_no_point_of_the_space_is_one_line(start: Any, changes: dict[str, Any], said: str) -> None:
    first = {"lr": 0.5, "shots": 7} | ({"depth": 1} if "depth" in changes.get("search", {}) else {})
    with pytest.raises(SpecError, match=f"^{re.escape(said)}") as refused:
        found([first, start], **changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (["defaul"], "here: start.0: expected \"default\" or a table such as { inner_lr = 0.1 }, got 'defaul'"),
        (["default", 3], 'here: start.1: expected "default" or a table such as { inner_lr = 0.1 }, got 3'),
        (["default", {"lr": [1]}], "here: start.1.lr: text, a finite number, true or false is needed, but got [1]"),
    ],
)
def test_what_is_no_start_is_one_line(start: list[Any], said: str) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(said)}"):
        study(start)


def test_a_start_needs_something_to_search() -> None:
    with pytest.raises(SpecError, match="start: expected something to search"):
        study(["default"], search={})


def test_check_refuses_a_start_before_anything_begins() -> None:
    check(toy(start=["default", {"lr": 0.5}]), "toy.toml")
    with pytest.raises(SpecError, match=r"^toy\.toml: start\.0\.lr: expected from 0\.001 to 1\.0, got 3\.0; "):
        check(toy(start=[{"lr": 3.0}]), "toy.toml")
    with pytest.raises(SpecError, match=r"^toy\.toml: start: expected at most 4 configurations, .* got 5; raise"):
        check(toy(start=[{"lr": 0.1 * number} for number in range(1, 6)]), "toy.toml")


def test_a_start_makes_another_study_and_none_leaves_its_digest_as_it_was() -> None:
    assert toy(start=[]).digest == toy().digest
    assert len({toy(start=start).digest for start in ([], ["default"], [{"lr": 0.5}])}) == 3


def test_the_toy_s_own_defaults_are_a_start() -> None:
    (cell,) = toy(start=["default"]).cells
    own = toy_trainable.Config()
    assert starts(toy(start=["default"]), cell) == [{"lr": own.lr, "body": own.body}]
