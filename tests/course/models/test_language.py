"""Models of language: what people hand them that is no text."""

from collections.abc import Callable

import pytest

from cs330ray.course.models.language import Answerer, Reviewer, Summariser
from cs330ray.errors import SpecError


def unasked(text: str) -> str:
    raise AssertionError(text)


@pytest.mark.parametrize("text", ["", " \n", None, 3, ["x"], b"x"])
@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lambda text: Reviewer(unasked).stars(text), "review"),
        (lambda text: Summariser(unasked).summarise(text), "text"),
        (lambda text: Answerer(unasked).answer(text, "Where is Anna?"), "story"),
        (lambda text: Answerer(unasked).answer("Anna walked to the attic.", text), "question"),
    ],
)
def test_what_is_no_text_with_words_is_one_line(ask: Callable[[object], object], name: str, text: object) -> None:
    with pytest.raises(SpecError, match=rf"^{name}: expected a text with words in it, got "):
        ask(text)


def test_a_text_is_asked_in_one_line_with_single_blanks() -> None:
    asked: list[str] = []
    Answerer(lambda text: asked.append(text) or "attic").answer("Anna  walked\nto the attic. ", " Where is Anna?")
    assert asked == ["Anna walked to the attic. Where is Anna?"]
