"""What a look saw, kept as JSON."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs330ray.analysis.claims.look import Look
from tests.analysis.looks import DEEP, WIDE, searched, unsearched

titles = st.lists(st.text(max_size=20), min_size=1, max_size=5, unique=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(st.booleans(), st.integers(), finite, st.text(max_size=10))


@st.composite
def looks(draw: st.DrawFn) -> Look:
    cells, units = draw(titles), draw(st.integers(1, 4))
    columns = st.lists(finite, min_size=units, max_size=units)
    tables = st.tuples(*[columns] * len(cells)).map(lambda found: dict(zip(cells, found, strict=True)))
    return searched(
        draw(tables),
        number=draw(st.integers(1, 9)),
        goal=draw(st.sampled_from(["max", "min"])),
        test=draw(tables),
        searched=draw(st.lists(st.text(min_size=1), min_size=1, max_size=3)),
        held=draw(st.dictionaries(st.text(), st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=3)),
        split=draw(st.none() | st.just("data_seed")),
        left_out=draw(st.dictionaries(st.text().filter(lambda title: title not in cells), st.text(), max_size=2)),
        objectives=draw(st.dictionaries(st.text(), tables, max_size=2)),
    )


@given(looks())
def test_json_keeps_all_of_a_look_and_the_order_of_its_cells(look: Look) -> None:
    again = Look.from_json(look.to_json())
    assert again == look
    assert (list(again.validation), list(again.test)) == (list(look.validation), list(look.test))


def test_the_order_of_cells_outlives_a_database_that_sorts_keys() -> None:
    look = searched({"b": WIDE, "a": DEEP})
    assert Look.from_json(json.dumps(json.loads(look.to_json()), sort_keys=True)).cells == ("b", "a")


@pytest.mark.parametrize("text", ["{}", "[]", "1", '{"number": 1}', "no json", '{"number": 1, "further": 2}'])
def test_other_texts_are_no_look(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a look|Expecting value"):
        Look.from_json(text)


def test_a_claim_is_about_test_or_else_about_validation() -> None:
    tested = searched({"a": WIDE}, test={"a": DEEP})
    assert (tested.about, tested.values, tested.units) == ("test_accuracy", {"a": tuple(DEEP)}, 5)
    untested = replace(tested, tested=None, test={})
    assert (untested.about, untested.values) == ("val_accuracy", {"a": tuple(WIDE)})


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"number": -1}, "the number of a look, or 0 before the first, got -1"),
        ({"unit": "seed"}, "replicates where something is searched and there alone, got seeds"),
        ({"tested": None}, "test values under the name of their metric, got None with 2 cells"),
        ({"test": {}}, "test values under the name of their metric, got test_accuracy with 0 cells"),
        ({"test": {"b": DEEP, "a": WIDE}}, "test: expected the cells a, b, got b, a"),
        ({"test": {"a": WIDE, "b": DEEP[:4]}}, "test of b: expected 5 values, got 4"),
        ({"test": {"a": WIDE, "b": [*DEEP[:4], float("nan")]}}, "test of b: expected finite values"),
        ({"objectives": {"test_mse": {"a": WIDE}}}, "test_mse: expected the cells a, b, got a"),
        ({"left_out": {"b": "no test"}}, "to be compared or left out, got both for b"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(others: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        searched({"a": WIDE, "b": DEEP}, **others)


def test_cells_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="validation of a: expected some values, got 0"):
        searched({"a": []})


def test_trials_of_a_search_are_none_where_nothing_is_searched() -> None:
    assert searched({"a": WIDE}).trials_of_search == 8
    assert unsearched({"a": WIDE}).trials_of_search is None
