"""In-context learning of a language model from examples in its prompt, CS330 homework 3. A step is a question."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from cs330ray.course.data.text import Example
from cs330ray.course.learners import incontext
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.learners.prompts import Asking
from cs330ray.course.models import card
from cs330ray.course.models import language as answerers
from cs330ray.course.models.language import LanguageModel
from cs330ray.course.pretrained import models
from cs330ray.course.systems import language
from cs330ray.course.systems.configs.icl import METRICS, Config
from cs330ray.course.systems.language import OwnData
from cs330ray.errors import CheckpointError, DataError, SpecError
from cs330ray.training import parallel
from cs330ray.training.device import computing_in, device, generator
from cs330ray.training.state import fill, load_notes
from cs330ray.trial.contract import Progress, Scores, Weights
from cs330ray.words import short

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["METRICS", "SPLITS", "Config", "chance", "export", "prepare", "ready", "test", "train"]

STARS = re.compile(r"\b[1-5]\b")
OF_DROPPING = (
    "The test drops examples until its longest question fits the model's window: `test_shots_used` says behind how "
    "many its figures were reached. This model keeps all of them, and refuses a text that does not fit behind them"
)
SPLITS = "questions"  # among workers


def prepare(config: Config) -> str:
    """Find, verify and pack the text and the weights; the digest of both. Raises DataError or SpecError."""
    device()
    config = config.resolved(config.texts.labels)
    _draw(config, seed=0)  # DataError where there are too few
    digest = language.digest(config.texts, config.model, config.metric)
    model, tokenizer = language.tried(config.model)
    _Reader.fitting(config, 0, config.texts.part("val")[: config.eval_examples], model, tokenizer)
    return digest


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one of the answers that occur in training; of summaries it cannot be said."""
    if config.dataset == "text":
        return {} if config.texts.labels is None else {"val_accuracy": 1 / len(config.texts.labels)}
    if config.dataset == "xsum":
        return {}
    return {"val_accuracy": 1 / len({example.answer for example in config.texts.part("train")})}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Answer up to `steps` validation questions, at most `eval_examples`; a Progress every `eval_every_steps`.

    They are answered in blocks of `eval_every_steps`, whole ones even where `steps` ends within: what is answered
    together hangs on neither `steps` nor where a trial was cut.
    """
    own = OwnData.of(config.texts)
    config = config.resolved(own.labels if own else None)
    asked = config.texts.part("val")[: config.eval_examples]
    if resume is not None:
        language.same_data(config.texts, resume)
    state = _State.load(resume) if resume else _State()
    save = own.saving(state.save) if own else state.save
    if state.step >= min(steps, len(asked)):
        return
    reader = _Reader.of(config, seed, asked, device())
    if state.order is None:
        state.order, state.entropy = parallel.gather([_ordered(config, seed, reader)])[0]  # alike on other hardware too
    if sorted(map(str, state.order)) != sorted(map(str, range(len(reader.shots)))):
        raise CheckpointError(
            f"{resume}: an order of {len(reader.shots)} examples is needed, but it holds one of {len(state.order)}; "
            "start the trial anew"
        )
    decoder = reader.behind(state.order)
    while state.step < min(steps, len(asked)):
        end = (state.step // config.eval_every_steps + 1) * config.eval_every_steps
        if len(state.answers) < min(end, len(asked)):
            block = asked[len(state.answers) : end]
            state.answers += reader.answer(decoder, block)
            state.tokens += decoder.tokens([reader.asking.prompt(example.text) for example in block])
        state.step = min(end, steps, len(asked))
        yield Progress(state.step, state.row(config, asked), save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    """Ask the test questions behind the examples of the checkpoint, in its order."""
    language.same_data(config.texts, checkpoint)
    config = config.resolved(config.texts.labels)
    state = _State.load(checkpoint)
    asked = config.texts.part("test")[: config.eval_examples]
    reader = _Reader.of(config, seed, asked, device())
    order = [at for at in state.order or [] if at < len(reader.shots)]
    scores = _scores(config, asked, reader.answer(reader.behind(order), asked))
    metrics = language.means("test", scores) | {"test_shots_used": float(len(order))}
    return Scores(metrics, language.items(asked, scores))


def export(config: Config, seed: int, checkpoint: Path) -> Weights:
    """No tensors: the examples of a checkpoint in its order, and which model reads them; what a card says of them."""
    language.same_data(config.texts, checkpoint)
    drawn, order = _draw(config, seed), _State.load(checkpoint).order or []
    if not all(type(at) is int and 0 <= at < len(drawn) for at in order):
        raise CheckpointError(f"{checkpoint}: an order of {len(drawn)} examples is needed, but it holds {order}")
    shots = [[drawn[at].text, drawn[at].answer] for at in order]
    labels, source = config.texts.labels, answerers.source(config.dataset, config.data)
    said = card.sections(
        weights=f"None: nothing was trained. {len(shots)} examples stand in the prompt, in the order that was chosen.",
        dataset=source,
        base=config.model,
        use=answerers.use(config.dataset, labels),
        limits=[
            f"`config.json` holds these examples: pieces of {source}, under its terms",
            *([OF_DROPPING] if config.overflow == "drop" else []),
            *answerers.LIMITS,
        ],
    )
    notes = answerers.base_notes(config.model) | {"shots": shots} | answerers.own_notes(config.dataset, labels)
    return Weights({}, notes, said)


def ready(config: Config, exported: Weights) -> LanguageModel:
    """A model that answers behind its examples, as the test asks. Raises DataError where it is another model."""
    fill({}, exported.tensors)
    shots, labels = answerers.shots(exported.notes), answerers.own_labels(config.dataset, exported.notes)
    config = config.resolved(labels)
    answerers.check_base(config.model, exported.notes)
    model, tokenizer = models.causal(config.model, device=device())
    reader = _Reader(config, model, tokenizer, models.window(model), shots)
    decoder = reader.behind(range(len(shots)))

    def respond(text: str) -> str:
        with reader.computing():
            answer = decoder.greedy([reader.asking.prompt(text)], max_new_tokens=config.new_tokens, batch=1)[0]
        return _stars(answer) if config.dataset == "amazon" else answer

    return answerers.made(config.dataset, labels, respond)


@dataclass
class _State:
    """All that a trial is at one moment: what was answered, and behind which order of examples."""

    step: int = 0
    order: list[int] | None = None  # of the examples as drawn
    entropy: float | None = None
    answers: list[str] = field(default_factory=list)  # of whole blocks, and so of more than `step` questions
    tokens: list[int] = field(default_factory=list)  # of their prompts

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        try:
            state = cls(**load_notes(checkpoint / "answers.json"))
            if not all(isinstance(part, list) for part in (state.order or [], state.answers, state.tokens)):
                raise TypeError("lists are needed")
        except (CheckpointError, TypeError):
            raise CheckpointError(
                f"{checkpoint}: the answers of an in-context trial are needed, but it holds none; start the trial anew"
            ) from None
        return state

    def save(self, directory: Path) -> None:
        (directory / "answers.json").write_text(json.dumps(vars(self)))

    def row(self, config: Config, asked: Sequence[Example]) -> dict[str, float]:
        """The metrics over the questions answered so far."""
        scores = _scores(config, asked[: self.step], self.answers[: self.step])
        row = language.means("val", scores)
        row |= {"shots_used": float(len(self.order or [])), "prompt_tokens": sum(self.tokens[: self.step]) / self.step}
        return row | ({} if self.entropy is None else {"ordering_entropy": self.entropy})


@dataclass(frozen=True)
class _Reader:
    """A model, and the examples as drawn that fit its window together with the longest question."""

    config: Config
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    window: int
    shots: list[tuple[str, str]]

    @classmethod
    def of(cls, config: Config, seed: int, asked: Sequence[Example], device: torch.device) -> Self:
        """Load the model and draw the examples; raises SpecError where a prompt does not fit its window."""
        return cls.fitting(config, seed, asked, *models.causal(config.model, device=device))

    @classmethod
    def fitting(
        cls,
        config: Config,
        seed: int,
        asked: Sequence[Example],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Self:
        """Draw the examples; raises SpecError where a prompt does not fit the model's window.

        DataError, with the line, where it is of one's own text.
        """
        examples = _draw(config, seed)
        drawn = [(example.text, example.answer) for example in examples]
        reader = cls(config, model, tokenizer, models.window(model), drawn)
        if reader.asking.stop == "\n":
            _check_lines(config, [*examples, *asked])
        alone = reader.decoder("")
        longest = max(asked, key=lambda example: alone.tokens([reader.asking.prompt(example.text)]))
        while True:
            try:
                decoder = reader.behind(range(len(reader.shots)))
                decoder.check([reader.asking.prompt(longest.text)], max_new_tokens=config.new_tokens)
                if config.ordering != "seed":
                    decoder.check([""], max_new_tokens=incontext.PROBE_ROOM)
            except SpecError as error:
                if config.overflow == "drop" and reader.shots:
                    reader.shots.pop()  # the last drawn: what is left is the draw of fewer
                elif config.data is not None:
                    raise DataError(f"{config.texts.place(longest)}: {error}") from None
                else:
                    raise
            else:
                return reader

    @cached_property
    def asking(self) -> Asking:
        """How questions are put."""
        config = self.config
        return language.asking(
            config.dataset, config.asking, chat=config.chat, in_context=True,
            tokenizer=self.tokenizer, model=config.model,
        )  # fmt: skip

    def computing(self) -> AbstractContextManager[object]:
        """Compute in the precision that was asked for."""
        return computing_in(self.config.precision, self.model.device)

    def behind(self, order: Sequence[int]) -> Decoder:
        """The model behind the examples in this order."""
        return self.decoder(self.asking.prefix([self.shots[at] for at in order]))

    def decoder(self, prefix: str) -> Decoder:
        """The model behind a prefix."""
        return Decoder(self.model, self.tokenizer, window=self.window, prefix=prefix, asking=self.asking)

    def answer(self, decoder: Decoder, asked: Sequence[Example]) -> list[str]:
        """What the model answers to each question."""
        questions = [self.asking.prompt(example.text) for example in asked]
        mine = questions[parallel.share(len(questions))]
        with self.computing():
            given = parallel.gather_from(
                lambda: decoder.greedy(mine, max_new_tokens=self.config.new_tokens, batch=self.config.eval_batch)
            )
        return [_stars(answer) for answer in given] if self.config.dataset == "amazon" else given


def _check_lines(config: Config, examples: Sequence[Example]) -> None:
    """Raise DataError where an answer has several lines: in a prompt without turns it ends with its line."""
    for example in examples:
        if "\n" in example.answer:
            raise DataError(
                f"{config.texts.place(example)}: answer: expected one line, since in context it ends there, got "
                f"{short(example.answer)}; write it in one line, or set chat = true"
            )


def _ordered(config: Config, seed: int, reader: _Reader) -> tuple[list[int], float | None]:
    """The order of the examples, and the entropy that spoke for it where one did."""
    stream = generator("order", seed)
    if config.ordering == "seed" or len(reader.shots) < 2:
        return torch.randperm(len(reader.shots), generator=stream).tolist(), None
    with reader.computing():
        choice = incontext.choose(
            config.ordering,
            incontext.orders(len(reader.shots), config.orderings, stream),
            reader.shots,
            reader.asking,
            reader.decoder,
            probes=config.probes,
            batch=config.eval_batch,
            generator=generator("probes", seed),
        )
    return choice.order, choice.entropy


def _draw(config: Config, seed: int) -> list[Example]:
    draw_seed = seed if config.draw_seed is None else config.draw_seed
    return config.texts.draw(config.shots, draw_seed, classes=config.has_classes)


def _stars(answer: str) -> str:
    """The first number from 1 to 5 that an answer holds."""
    found = STARS.search(answer)
    return found.group() if found else answer


def _scores(config: Config, asked: Sequence[Example], given: Sequence[str]) -> dict[str, list[float]]:
    true = [example.answer for example in asked]
    return language.scores(config.texts, given, true, rouge=not config.has_classes, metric=config.metric)
