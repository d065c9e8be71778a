"""What the systems on language models share: texts to learn from, the draw of examples, and scores of answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import Field

from cs330ray.course.data import text
from cs330ray.course.data.text import Example
from cs330ray.course.learners import answers
from cs330ray.course.learners.prompts import PromptStyle
from cs330ray.course.pretrained import models
from cs330ray.trial.contract import Item, Metric

NEW_TOKENS = {"babi": 6, "rooms": 6, "xsum": 30, "amazon": 6}  # of an answer in words
SHARE = Metric("max", 0.0, 1.0)

# Fields of a Config; each system has them in its own order.
Dataset = Annotated[Literal["babi", "xsum", "amazon", "rooms"], Field(description="text to learn from")]
Task = Annotated[int, Field(ge=1, le=20, description="bAbI's task")]
DataSeed = Annotated[int, Field(ge=0, lt=2**32, description="seed of the split")]
MaxWords = Annotated[int | None, Field(ge=1, description="xsum: words of document and summary together; 350")]
Model = Annotated[str, Field(min_length=1, description="weights by name, Hugging Face id or folder")]
Template = Annotated[str | None, Field(description="of prompt = custom, with {text} in it")]


@dataclass(frozen=True)
class Texts:
    """Which texts a trial reads."""

    dataset: str
    data_seed: int
    task: int
    max_words: int | None

    def part(self, name: str) -> list[Example]:
        """Read a part: the examples of train, val or test."""
        return text.examples(self.dataset, name, self.data_seed, task=self.task, max_words=self.max_words)

    def draw(self, shots: int, draw_seed: int, *, classes: bool) -> list[Example]:
        """Draw training examples, with `classes` so many of each. Raises DataError where there are too few."""
        return text.draw(self.part("train"), shots, draw_seed, classes=classes)


def style(dataset: str, prompt: PromptStyle | None) -> PromptStyle:
    """Choose what stands between a text and its answer: the prompt that was asked for, or the dataset's own."""
    return ("tldr" if dataset == "xsum" else "qa") if prompt is None else prompt


def check_template(prompt: PromptStyle | None, template: str | None) -> None:
    """Raise ValueError where a prompt needs a template that has no place for the text."""
    if prompt == "custom" and "{text}" not in (template or ""):
        raise ValueError(f"template: prompt = custom needs one with {{text}} in it, but got {template!r}")


def digest(dataset: str, model: str) -> str:
    """Find, verify and pack the text and the weights; the digest of both. Raises DataError or SpecError."""
    return sha256(f"{text.digest(dataset)} {models.digest(model)}".encode()).hexdigest()


def scores(told: Sequence[str], true: Sequence[str], *, rouge: bool) -> dict[str, list[float]]:
    """Score answers in words; by name, what each reached: its exact match, and with `rouge` also its ROUGE-1."""
    pairs = list(zip(told, true, strict=True))
    found = {"accuracy": [float(answers.exact_match(*pair)) for pair in pairs]}
    return found | ({"rouge1": [answers.rouge1(*pair) for pair in pairs]} if rouge else {})


def means(part: str, found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Average the scores of a part; by name, as the metrics of a row."""
    return {f"{part}_{name}": sum(values) / len(values) for name, values in found.items()}


def items(asked: Sequence[Example], found: Mapping[str, Sequence[float]]) -> dict[str, list[Item]]:
    """List what each example of the test reached; by metric, for the record."""
    return {
        f"test_{name}": [Item(example.unit, score) for example, score in zip(asked, values, strict=True)]
        for name, values in found.items()
    }
