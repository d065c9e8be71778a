"""What a language model has learned to do with a text: answer it, sum it up, tell its stars, or its label."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs330ray.course.learners.answers import same
from cs330ray.course.pretrained import models
from cs330ray.errors import DataError, SpecError

Respond = Callable[[str], str]  # a text as the data have them, one line with single blanks -> what the model says to it


@dataclass(frozen=True)
class Answerer:
    """Answers questions on stories, as bAbI has them."""

    respond: Respond

    def answer(self, story: str, question: str) -> str:
        """Answer a question about a story, in a word or a list of words."""
        return self.respond(_told("story", story) + " " + _told("question", question))


@dataclass(frozen=True)
class Summariser:
    """Sums documents up in one sentence."""

    respond: Respond

    def summarise(self, text: str) -> str:
        """Sum a document up."""
        return self.respond(_told("text", text))


@dataclass(frozen=True)
class Reviewer:
    """Tells the stars of reviews."""

    respond: Respond

    def stars(self, review: str) -> int | None:
        """Tell the stars of a review, 1 to 5; None where what the model says names none."""
        said = self.respond(_told("review", review))
        return int(said) if said in ("1", "2", "3", "4", "5") else None


@dataclass(frozen=True)
class Responder:
    """Answers prompts like those of one's own file."""

    respond: Respond

    def answer(self, prompt: str) -> str:
        """Answer a prompt."""
        return self.respond(_own("prompt", prompt))


@dataclass(frozen=True)
class Labeller:
    """Tells the labels of texts like those of one's own file."""

    respond: Respond
    labels: tuple[str, ...]  # as the file has them, sorted

    def label(self, text: str) -> str | None:
        """Tell the label of a text; None where what the model says is none of them."""
        said = self.respond(_own("text", text))
        found = next((label for label in self.labels if same(said, label)), None)
        return said if said in self.labels else found


LanguageModel = Answerer | Summariser | Reviewer | Responder | Labeller
KINDS: Mapping[str, type[Answerer | Summariser | Reviewer]] = {
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


def made(dataset: str, labels: tuple[str, ...] | None, respond: Respond) -> LanguageModel:
    """Make the model of a dataset; `labels` are those of one's own text, if it has any."""
    if dataset != "text":
        return KINDS[dataset](respond)
    return Responder(respond) if labels is None else Labeller(respond, labels)


def use(dataset: str, labels: tuple[str, ...] | None) -> list[str]:
    """Lines of code that use the model of a dataset."""
    return USE.get(dataset, ["model.answer(prompt)" if labels is None else "model.label(text)"])


def source(dataset: str, data: str | None) -> str:
    """Name the data for people: a dataset, or the file of one's own, without its path."""
    return dataset if data is None else Path(data).name


def own_notes(dataset: str, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """What a model on one's own text takes along so that the file is not needed."""
    return {"labels": None if labels is None else list(labels)} if dataset == "text" else {}


def own_labels(dataset: str, notes: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of the notes; None where it has answers in words. Raises DataError where the notes do not say."""
    if dataset != "text":
        return None
    found = notes.get("labels", 0)
    if found is not None and not (isinstance(found, list) and all(isinstance(label, str) for label in found) and found):
        raise DataError("labels: expected a list of texts, or null, got something else; export the model again")
    return None if found is None else tuple(found)


def one_line(text: str) -> str:
    """A text as the data have them: one line, single blanks."""
    return " ".join(text.split())


def _told(name: str, text: object) -> str:
    """A text that a person gave, in one line. Raises SpecError where there is none."""
    return one_line(_own(name, text))


def _own(name: str, text: object) -> str:
    """A text that a person gave, without blanks around it. Raises SpecError where there is none."""
    if not isinstance(text, str) or not text.strip():
        raise SpecError(f"{name}: expected a text with words in it, got {text!r:.80}")
    return text.strip()


def base_notes(model: str) -> dict[str, str]:
    """What identifies the pre-trained model that something was learned on top of."""
    return {"base": model, "base_digest": models.digest(model)}


def check_base(model: str, notes: Mapping[str, Any]) -> None:
    """Find the pre-trained model, fetched if it must be. Raises DataError where it is not the one of the notes."""
    wanted = notes.get("base_digest")
    try:
        found = models.digest(model)
    except DataError as error:
        raise DataError(f"{error}; where it is elsewhere, say cs330ray.load(DIR, base=PATH)") from None
    if found != wanted:
        raise DataError(
            f"{model}: the model of digest {str(wanted)[:12]} is needed, on which this was trained, but the one found "
            f"here has {found[:12]}; put that one in its place, or say where it is: cs330ray.load(DIR, base=PATH)"
        )


def shots(notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The examples of the notes, each a text and its answer. Raises DataError where they are none."""
    found = notes.get("shots")
    if not isinstance(found, list) or not all(
        isinstance(shot, list) and len(shot) == 2 and all(isinstance(part, str) for part in shot) for shot in found
    ):
        raise DataError("shots: a list of texts with their answers is needed, but it is none; export the model anew")
    return [(text, answer) for text, answer in found]
