"""What the systems on language models share: texts to learn from, the draw of examples, and scores of answers."""

import functools
import json
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import Field

from cs330ray.course.data import text
from cs330ray.course.data.text import Example
from cs330ray.course.data.texts import text as own
from cs330ray.course.learners import answers, lora
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.learners.lora import Encoded
from cs330ray.course.learners.prompts import Asking, Chat, Plain, PromptStyle
from cs330ray.course.pretrained import models
from cs330ray.course.pretrained.library import one_line
from cs330ray.errors import CheckpointError, DataError, SpecError
from cs330ray.training import device
from cs330ray.trial import declared
from cs330ray.trial.contract import Item, Metric
from cs330ray.words import short

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRIED = ("Where?", "Where is Mary?")  # two lengths, so that one is padded
NEW_TOKENS = {"babi": 6, "rooms": 6, "xsum": 30, "amazon": 6, "text": 64}  # of an answer in words
LABEL_TEMPLATE = "{text}\nLabel:"  # of one's own texts, where their labels are written
OF_PUBLISHED = ("task", "questions", "max_words")  # fields that mean nothing to one's own text
OF_OWN = ("data", "chat")
KEPT = "data.json"  # in a checkpoint
SHARE = Metric("max", 0.0, 1.0)
SCORE = Metric("max")

# Fields of a Config; each system has them in its own order.
Dataset = Annotated[
    Literal["babi", "xsum", "amazon", "rooms", "text"], Field(description="text to learn from; text: a file of yours")
]
Data = Annotated[str | None, Field(min_length=1, description="text: its file, .jsonl or .csv, from here or absolute")]
ChatField = Annotated[bool, Field(description="text: ask in a conversation, by the tokenizer's own chat template")]
MetricName = Annotated[
    str | None,
    Field(pattern=r"^\w+(\.\w+)*:\w+$", description="a score of yours, package.module:function"),
]
Precision = Annotated[device.Precision, Field(description="of products of matrices; all else is fp32")]
EvalExamples = Annotated[int, Field(ge=1, le=1_000_000, description="examples of validation, and of test")]
Task = Annotated[int, Field(ge=1, le=20, description="bAbI's task")]
Questions = Annotated[text.Questions, Field(description="babi: of a story; the course asks the first alone")]
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
    questions: text.Questions
    data: str | None = None  # the file of one's own text

    def part(self, name: str) -> Sequence[Example]:
        """Read a part: the examples of train, val or test."""
        if self.data is not None:
            return own.part(self.data, name, self.data_seed)
        return text.examples(
            self.dataset, name, self.data_seed, task=self.task, max_words=self.max_words, questions=self.questions
        )

    def draw(self, shots: int, draw_seed: int, *, classes: bool) -> list[Example]:
        """Draw training examples, with `classes` so many of each. Raises DataError where there are too few."""
        if self.data is not None:
            return own.draw(own.part(self.data, "train", self.data_seed), shots, draw_seed, classes=classes)
        return text.draw(self.part("train"), shots, draw_seed, classes=classes)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels of one's own text; None where it has answers in words, and of all other texts."""
        return None if self.data is None else own.labels(self.data)

    def place(self, example: Example) -> str:
        """Say where an example stands: in which line of one's own file, or in which unit of a dataset."""
        return f"{self.dataset} {example.unit}" if self.data is None else f"{self.data}: line {example.line}"

    def digest(self) -> str:
        """Find, verify and pack the texts; their digest. Raises DataError."""
        return text.digest(self.dataset) if self.data is None else own.digest(self.data)


@dataclass(frozen=True)
class OwnData:
    """What a trial was begun with of a file of one's own, kept in its checkpoints: people edit their files."""

    digest: str
    labels: tuple[str, ...] | None

    @classmethod
    def of(cls, texts: Texts) -> Self | None:
        """The file as it is now; None of published texts."""
        return None if texts.data is None else cls(texts.digest(), texts.labels)

    @classmethod
    def kept(cls, texts: Texts, checkpoint: Path) -> Self | None:
        """Read what a checkpoint was begun with; None of published texts. Raises CheckpointError."""
        if texts.data is None:
            return None
        try:
            found = json.loads((checkpoint / KEPT).read_bytes())
            digest, labels = str(found["digest"]), found["labels"]
            return cls(digest, None if labels is None else tuple(str(label) for label in labels))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{checkpoint}: expected {KEPT} of a trial on a file of one's own, got {error!r}; start the trial again"
            ) from None

    def saving(self, save: Callable[[Path], None]) -> Callable[[Path], None]:
        """Save this with what else a checkpoint holds."""

        def both(directory: Path) -> None:
            save(directory)
            (directory / KEPT).write_text(json.dumps({"digest": self.digest, "labels": self.labels}))

        return both


def same_data(texts: Texts, checkpoint: Path) -> None:
    """Raise DataError where a file has other rows than a trial was begun with: its split would be another one too."""
    kept = OwnData.kept(texts, checkpoint)
    if kept is not None and kept.digest != texts.digest():
        raise DataError(
            f"{texts.data}: expected the rows that the trial was begun with ({kept.digest[:12]}), got others "
            f"({texts.digest()[:12]}); put the file back as it was, or start the trial again"
        )


def style(dataset: str, prompt: PromptStyle | None) -> PromptStyle:
    """Choose what stands between a text and its answer: the prompt that was asked for, or the dataset's own."""
    return {"xsum": "tldr", "text": "none"}.get(dataset, "qa") if prompt is None else prompt  # type: ignore[return-value]


def asking(
    dataset: str, way: Asking, *, chat: bool, in_context: bool, tokenizer: "PreTrainedTokenizerBase", model: str
) -> Asking:
    """How questions on a dataset are put to a model, and how their answers end. Raises SpecError where it cannot."""
    if dataset != "text":
        return way
    if chat:
        if not tokenizer.chat_template:
            raise SpecError(f"chat: expected a model with a chat template, got {model} without; set chat = false")
        return Chat(way.style, way.template, tokenizer)
    if in_context:
        return Plain(way.style, way.template)
    if tokenizer.eos_token is None:
        raise DataError(f"{model}: expected a tokenizer with an end token, got one without; set eos_token in it")
    return Plain(way.style, way.template, str(tokenizer.eos_token))


def check_labels(data: str | None, labels: Sequence[str]) -> None:
    """Raise DataError where labels that are to be written would count as the same."""
    folded: dict[str, str] = {}
    for label in labels:
        if (other := folded.setdefault(answers.fold(label), label)) != label:
            raise DataError(
                f"{data}: label: expected labels that differ in more than case and a last period, got "
                f"{short(other)} and {short(label)}; rename one"
            )


def check_template(prompt: PromptStyle | None, template: str | None) -> None:
    """Raise ValueError where a prompt needs a template that has no place for the text."""
    if prompt == "custom" and "{text}" not in (template or ""):
        raise ValueError(f"template: prompt = custom needs one with {{text}} in it, but got {template!r}")


def check_own(config: Any) -> None:
    """Raise ValueError where fields of one's own text and of published ones are mixed up."""
    if config.dataset == "text" and config.data is None:
        raise ValueError('data: expected the path of a file with dataset = "text", got none; set it')
    of_text = config.dataset == "text"
    others, wanted = (OF_PUBLISHED, "a published dataset") if of_text else (OF_OWN, 'dataset = "text"')
    for name in others:
        if (told := getattr(config, name)) != type(config).model_fields[name].default:
            raise ValueError(f"{name}: expected only with {wanted}, got {told!r}; leave it out")
    most = type(config).model_fields["eval_examples"].default
    if config.dataset != "text" and config.eval_examples > most:
        raise ValueError(
            f"eval_examples: expected at most {most}, as many as {config.dataset} has of val and of test, got "
            f"{config.eval_examples}; lower it"
        )


def digest(texts: Texts, model: str, metric: str | None) -> str:
    """Find, verify and pack the text and the weights; the digest of both. Raises DataError or SpecError.

    A metric of one's own counts too: what it finds is as much of the record as the data.
    """
    own_metric = "" if metric is None else f" {metric_digest(metric)}"
    return sha256(f"{texts.digest()} {models.digest(model)}{own_metric}".encode()).hexdigest()


def tried(
    model: str, *, classes: int | None = None, layers: int | None = None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a model, a classifier where `classes` are given, and run it on two texts: the model without its weights.

    What goes with it is its tokenizer. Once a process for each model: it takes seconds. On the CPU, so that the process
    that starts a study holds no GPU. Raises DataError or SpecError, in one line, where a trial could not run it.
    """
    return _tried(model, models.digest(model), classes, layers)


@functools.lru_cache(maxsize=32)
def _tried(
    model: str,
    digest: str,  # noqa: ARG001 - tells one content from another
    classes: int | None,
    layers: int | None,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    cpu = torch.device("cpu")
    if classes is None:
        weights, tokenizer = models.causal(model, device=cpu)
    else:
        weights, tokenizer = models.encoder(model, classes=classes, layers=layers, seed=0, device=cpu)
    with one_line(Path(model), "a model that can read a text by its tokenizer"):
        if classes is None:
            Decoder(weights, tokenizer, window=models.window(weights)).greedy(TRIED, max_new_tokens=1, batch=2)
        else:
            texts = [Encoded(tuple(tokenizer(text)["input_ids"]), label=0) for text in TRIED]
            lora.evaluate(weights, texts, 2, pad=int(tokenizer.pad_token_id), device=cpu)
    return weights.to(torch.device("meta")), tokenizer  # type: ignore[arg-type]  # transformers' own is typed badly


def scores(
    texts: Texts, told: Sequence[str], true: Sequence[str], *, rouge: bool, metric: str | None = None
) -> dict[str, list[float]]:
    """Score answers in words; by name, what each reached: its exact match, and what else is asked for."""
    pairs = list(zip(told, true, strict=True))
    match = answers.exact_match if texts.data is None else answers.same
    found = {"accuracy": [float(match(*pair)) for pair in pairs]}
    if rouge:
        found["rouge1"] = [answers.rouge1(*pair) for pair in pairs]
    return found if metric is None else found | {"score": own_scores(metric, pairs)}


def means(part: str, found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Average the scores of a part; by name, as the metrics of a row."""
    return {f"{part}_{name}": sum(values) / len(values) for name, values in found.items()}


def items(asked: Sequence[Example], found: Mapping[str, Sequence[float]]) -> dict[str, list[Item]]:
    """List what each example of the test reached; by metric, for the record."""
    return {
        f"test_{name}": [Item(example.unit, score) for example, score in zip(asked, values, strict=True)]
        for name, values in found.items()
    }


# A metric of one's own: `package.module:function` of a prediction and its answer, both texts -------------------------


@functools.lru_cache(maxsize=32)
def load_metric(name: str) -> Callable[[str, str], float]:
    """Import a metric. Raises SpecError where there is none of this name."""
    try:
        found = pkgutil.resolve_name(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a module of somebody's raises
        raise SpecError(
            f"metric: expected package.module:function that can be imported, got {name!r}, which raised "
            f"{declared.raised(error)}; check the name, and set PYTHONPATH to the directory that holds it"
        ) from None
    if not callable(found):
        raise SpecError(f"metric: expected a function, got {name!r}, which is {short(found)}; name a function")
    score: Callable[[str, str], float] = found
    return score


def metric_digest(name: str) -> str:
    """Import a metric and try it on an answer that is right; the digest of its module. Raises SpecError."""
    try:
        declared.called(_score, name, "an answer", "an answer")
    except declared.Raised as error:
        raise SpecError(f"metric: {name!r} must score a prediction by its answer, but raised {error}") from None
    source = getattr(pkgutil.resolve_name(name.partition(":")[0]), "__file__", None)
    return sha256(name.encode() if source is None else Path(source).read_bytes()).hexdigest()


def own_scores(name: str, pairs: Iterable[tuple[str, str]]) -> list[float]:
    """Score predictions by their answers. Raises SpecError where one has no finite number."""
    return [_score(name, *pair) for pair in pairs]


def _score(name: str, prediction: str, answer: str) -> float:
    value: object = load_metric(name)(prediction, answer)
    if not isinstance(value, Real) or not math.isfinite(value):
        raise SpecError(
            f"metric: expected a finite number from {name!r}, got {short(value)} for {short(prediction)} and "
            f"{short(answer)}; return a float"
        )
    return float(value)
