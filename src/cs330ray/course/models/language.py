"""What a language model has learned to do with a text: answer a question about it, sum it up, tell its stars."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cs330ray.course.pretrained import models
from cs330ray.errors import DataError

Respond = Callable[[str], str]  # a text as the data have them, one line with single blanks -> what the model says to it


@dataclass(frozen=True)
class Answerer:
    """Answers questions on stories, as bAbI has them."""

    respond: Respond

    def answer(self, story: str, question: str) -> str:
        """Answer a question about a story, in a word or a list of words."""
        return self.respond(one_line(f"{story} {question}"))


@dataclass(frozen=True)
class Summariser:
    """Sums documents up in one sentence."""

    respond: Respond

    def summarise(self, text: str) -> str:
        """Sum a document up."""
        return self.respond(one_line(text))


@dataclass(frozen=True)
class Reviewer:
    """Tells the stars of reviews."""

    respond: Respond

    def stars(self, review: str) -> int | None:
        """Tell the stars of a review, 1 to 5; None where what the model says names none."""
        said = self.respond(one_line(review))
        return int(said) if said in ("1", "2", "3", "4", "5") else None


LanguageModel = Answerer | Summariser | Reviewer
KINDS: Mapping[str, type[LanguageModel]] = {
    "babi": Answerer, "rooms": Answerer, "xsum": Summariser, "amazon": Reviewer,
}  # fmt: skip
_ANSWER = 'model.answer("Anna walked to the attic.", "Where is Anna?")'
USE = {
    "babi": [_ANSWER],
    "rooms": [_ANSWER],
    "xsum": ["model.summarise(text)"],
    "amazon": ["model.stars(review)"],
}
LIMITS = ("It answers as its data do and knows nothing else; do not trust what it says of the world",)


def one_line(text: str) -> str:
    """A text as the data have them: one line, single blanks."""
    return " ".join(text.split())


def base_notes(model: str) -> dict[str, str]:
    """What identifies the pre-trained model that something was learned on top of."""
    return {"base": model, "base_digest": models.digest(model)}


def check_base(model: str, notes: Mapping[str, Any]) -> None:
    """Find the pre-trained model, fetched if it must be. Raises DataError where it is not the one of the notes."""
    wanted = notes.get("base_digest")
    if (found := models.digest(model)) != wanted:
        raise DataError(
            f"{model}: the model of digest {str(wanted)[:12]} is needed, on which this was trained, but the one found "
            f"here has {found[:12]}; put that one in its place"
        )


def shots(notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The examples of the notes, each a text and its answer. Raises DataError where they are none."""
    found = notes.get("shots")
    if not isinstance(found, list) or not all(
        isinstance(shot, list) and len(shot) == 2 and all(isinstance(part, str) for part in shot) for shot in found
    ):
        raise DataError("shots: a list of texts with their answers is needed, but it is none; export the model anew")
    return [(text, answer) for text, answer in found]
