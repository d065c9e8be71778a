"""Prompts as strings: a question, an example with its answer, and the examples that stand before a question.

The styles are those of CS330, homework 3, part 2. No prompt ends in a blank: the answer's first token carries it.

    Asking   the course's way: an answer ends at a period
    Plain    of one's own text: an answer ends with its line, or with the tokenizer's end token
    Chat     a conversation, as the tokenizer's own chat template writes it: an answer ends as a turn does there
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

from cs330ray.errors import SpecError
from cs330ray.words import first_line

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


@dataclass(frozen=True)
class Asking:
    """How a question is put, and the examples with it, in the course's way."""

    style: PromptStyle
    template: str | None = None

    def prompt(self, text: str) -> str:
        """The question about a text, as it stands behind `prefix`."""
        return question(self.style, text, self.template)

    def prefix(self, shots: Sequence[tuple[str, str]]) -> str:
        """Examples, each a text and its answer, in front of a question."""
        return prefix([shot(self.style, text, answer, self.template) for text, answer in shots])

    def answer(self, text: str, answer: str) -> str:
        """What is to be written behind the question about a text, the end included."""
        return shot(self.style, text, answer, self.template).removeprefix(self.prompt(text))

    @property
    def stop(self) -> str | None:
        """The characters that end an answer; None where a token alone does."""
        return "."

    def tokens(self, tokenizer: Any, text: str) -> list[int]:
        """The tokens of a text; nobody warns of a long one, since the window is checked in words of our own."""
        found: list[int] = tokenizer(text, verbose=False)["input_ids"]
        return found

    def ends(self, tokenizer: Any) -> set[int]:  # noqa: ARG002 - of a conversation it is asked
        """Tokens that end an answer, beside those that end any text."""
        return set()


@dataclass(frozen=True)
class Plain(Asking):
    """How one's own text is asked: examples a blank line apart, and an answer that may hold periods."""

    end: str = "\n"  # of an answer: of its line, or the tokenizer's end token

    def prefix(self, shots: Sequence[tuple[str, str]]) -> str:
        """Examples and a blank line behind each."""
        return "".join(f"{self.prompt(text)} {answer}\n\n" for text, answer in shots)

    def answer(self, text: str, answer: str) -> str:  # noqa: ARG002 - it is the same behind each
        """The answer behind a blank, and its end."""
        return f" {answer}{self.end}"

    @property
    def stop(self) -> str | None:
        """The end of the line, unless a token ends an answer."""
        return self.end if self.end == "\n" else None


@dataclass(frozen=True)
class Chat(Asking):
    """How one's own text is asked in a conversation. Raises SpecError where the template's cannot be cut."""

    tokenizer: Any = None  # that has a chat template

    def prompt(self, text: str) -> str:
        """A text, and what opens the turn of its answer."""
        return self._written((), text).removeprefix(self._opening)

    def prefix(self, shots: Sequence[tuple[str, str]]) -> str:
        """What opens a conversation, the turns of the examples, and what opens the turn of a text."""
        pairs = zip(self._written(shots, "a"), self._written(shots, "b"), strict=False)
        opening = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if shots and self._written(shots, "a") != opening + self.prompt("a"):
            raise self._unfit("writes a question otherwise where others stand before it")
        return opening

    def answer(self, text: str, answer: str) -> str:
        """The answer and the end of its turn."""
        asked, whole = self._written((), text), self._written((), text, answer).rstrip()
        if not whole.startswith(asked + answer) or whole == asked + answer:
            raise self._unfit("does not write an answer and its end right behind the question")
        return whole.removeprefix(asked)

    @property
    def stop(self) -> None:
        """A token ends a turn."""
        return

    def tokens(self, tokenizer: Any, text: str) -> list[int]:
        """The tokens of a conversation, without those that the tokenizer adds to a text."""
        found: list[int] = tokenizer(text, verbose=False, add_special_tokens=False)[
            "input_ids"
        ]  # the template has them
        return found

    def ends(self, tokenizer: Any) -> set[int]:
        """The token that ends a turn."""
        return {self.tokens(tokenizer, self.answer("a", "b").removeprefix("b"))[0]}

    @cached_property
    def _opening(self) -> str:
        return self.prefix(())

    def _written(self, shots: Sequence[tuple[str, str]], text: str, answer: str | None = None) -> str:
        """A conversation up to where an answer begins, or up to the end of the one given."""
        turns = [part for shot_text, told in shots for part in (("user", shot_text), ("assistant", told))]
        turns += [("user", text)] + ([] if answer is None else [("assistant", answer)])
        put = [(role, question(self.style, said, self.template) if role == "user" else said) for role, said in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": role, "content": said} for role, said in put],
                    tokenize=False,
                    add_generation_prompt=answer is None,
                    enable_thinking=False,  # which templates that know of no thinking ignore
                )
            )
        except Exception as error:  # noqa: BLE001 - a template raises what its language has for it
            raise self._unfit(f"fails: {first_line(error)}") from None

    @staticmethod
    def _unfit(what: str) -> SpecError:
        return SpecError(f"chat: the chat template of the model's tokenizer {what}; set chat = false")
