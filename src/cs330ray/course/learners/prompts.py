"""Prompts as strings: a question, an example with its answer, and the examples that stand before a question.

The styles are those of CS330, homework 3, part 2. No prompt ends in a blank: the answer's first token carries it.
"""

from collections.abc import Sequence
from typing import Literal

from cs330ray.errors import SpecError

PromptStyle = Literal["qa", "none", "tldr", "custom"]

ENDINGS = {"qa": " In the", "none": "", "tldr": " TL;DR:"}  # what follows a text and asks for its answer
PLACE = "{text}"  # of the text in a template


def question(style: PromptStyle, text: str, template: str | None = None) -> str:
    """Ask for the answer to a text: `text In the`, `text`, `text TL;DR:`, or the template with the text in its place.

    Raises SpecError where `custom` has no template, or one without `{text}`.
    """
    before, after = _around(style, template)
    return (before + text + after).rstrip()


def shot(style: PromptStyle, text: str, answer: str, template: str | None = None) -> str:
    """Show a question with its answer after one blank, and a period unless the answer ends a sentence itself."""
    end = "" if answer.endswith((".", "!", "?")) else "."
    return f"{question(style, text, template)} {answer}{end}"


def prefix(shots: Sequence[str]) -> str:
    """Join the examples so that a question can follow at once: one blank after each, under every style, as the course.

    A template that wants lines begins with them.
    """
    return "".join(f"{one} " for one in shots)


def ending(style: PromptStyle, template: str | None = None) -> str:
    """What a question ends in: its style's own words, or under a style that has none the question mark of its text."""
    _, after = _around(style, template)
    return after.strip() or "?"


def first_text(style: PromptStyle, written: str, template: str | None = None) -> str:
    """Cut the first text out of what a model wrote after examples: up to where its question ends, or all of it."""
    before, after = _around(style, template)
    head, mark, _ = written.strip().removeprefix(before.strip()).partition(ending(style, template))
    return (head if after.strip() else head + mark).strip()


def _around(style: PromptStyle, template: str | None) -> tuple[str, str]:
    """What stands before and after a text."""
    if style != "custom":
        return "", ENDINGS[style]
    if template is None or PLACE not in template:
        raise SpecError(f"template: prompt=custom needs a template with {PLACE}, but got {template!r}; add one")
    before, _, after = template.partition(PLACE)
    return before, after
