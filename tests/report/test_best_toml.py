"""`best` prints TOML: what it prints reads as the configuration, whatever its names and values are."""

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cs330ray.report.tables import _toml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


@given(st.dictionaries(TEXTS, VALUES, max_size=5), st.lists(st.dictionaries(TEXTS, VALUES, max_size=5), max_size=2))
def test_several_are_printed_one_below_another(first: dict[str, Any], others: list[dict[str, Any]]) -> None:
    """As the cells of a study are, with comments between."""
    printed = "\n\n".join(f"# a cell\n{_toml('mine.t', each, one_of_many=True)}" for each in [first, *others])
    assert tomllib.loads(printed) == {"best": [{"trainable": "mine.t", "fixed": each} for each in [first, *others]]}


@given(st.dictionaries(TEXTS, VALUES, max_size=5), st.booleans())
def test_what_is_printed_reads_as_the_configuration(config: dict[str, Any], several: bool) -> None:
    printed = tomllib.loads(_toml("mine.t", config, one_of_many=several))
    assert printed == (
        {"best": [{"trainable": "mine.t", "fixed": config}]} if several else {"trainable": "mine.t", "fixed": config}
    )


def test_a_letter_beyond_ascii_in_name_and_value() -> None:
    assert tomllib.loads(_toml("mine.t", {"λ": 0.1, "name": "💥"}, one_of_many=False))["fixed"] == {
        "λ": 0.1,
        "name": "💥",
    }


def test_what_toml_cannot_say_is_a_comment() -> None:
    printed = _toml("mine.t", {"dropout": None, "sizes": [1, None], "lr": 0.1}, one_of_many=False)
    assert tomllib.loads(printed)["fixed"] == {"lr": 0.1}
    assert printed.startswith("# dropout = null cannot be said in TOML\n# sizes = [1, null] cannot be said in TOML\n")
