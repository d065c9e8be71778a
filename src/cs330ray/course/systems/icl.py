"""In-context learning of a language model from examples in its prompt, CS330 homework 3. A step is a question."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cs330ray.course.data.text import Example
from cs330ray.course.learners import incontext
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.learners.incontext import Asking, Ordering
from cs330ray.course.learners.prompts import PromptStyle
from cs330ray.course.models import card
from cs330ray.course.models import language as answerers
from cs330ray.course.models.language import LanguageModel
from cs330ray.course.pretrained import models
from cs330ray.course.systems import language
from cs330ray.course.systems.language import SHARE, Texts
from cs330ray.errors import CheckpointError, SpecError
from cs330ray.training import parallel
from cs330ray.training.device import device, generator
from cs330ray.training.state import fill, load_notes
from cs330ray.trial.contract import Metric, Progress, Scores, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AMAZON_TEMPLATE = "{text} Stars, from 1 to 5:"
STARS = re.compile(r"\b[1-5]\b")
OF_DROPPING = (
    "The test drops examples until its longest question fits the model's window: `test_shots_used` says behind how "
    "many its figures were reached. This model keeps all of them, and refuses a text that does not fit behind them"
)
SPLITS = "questions"  # among workers


class Config(BaseModel):
    """Every hyperparameter of an in-context trial, with its bounds, default and unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: language.Dataset = "babi"
    task: language.Task = 1
    data_seed: language.DataSeed = 0
    max_words: language.MaxWords = None
    model: language.Model = "smollm2-135m"
    prompt: PromptStyle | None = Field(
        None,
        description="what stands between a text and its answer; babi and rooms qa, xsum tldr, amazon its own template",
    )
    template: language.Template = None
    shots: int = Field(16, ge=0, le=10_000, description="examples in the prompt; amazon: of each class")
    draw_seed: int | None = Field(
        None, ge=0, lt=2**32, description="seed of their draw; the trial's, which orders them in any case"
    )
    ordering: Ordering = Field(
        "seed", description="of the examples: as the trial's seed has it, or by an entropy of Lu et al. 2022"
    )
    orderings: int = Field(8, ge=2, le=1024, description="orderings that an entropy chooses among")
    probes: int = Field(4, ge=1, le=1024, description="texts that each of them writes, to be judged by")
    overflow: Literal["refuse", "drop"] = Field(
        "refuse", description="a prompt beyond the model's window: an error, or without the examples drawn last"
    )
    eval_every_steps: int = Field(25, ge=1, description="questions from one row to the next")
    eval_examples: int = Field(125, ge=1, le=125, description="questions of validation, and of test")
    eval_batch: int = Field(8, ge=1, le=4096, description="questions at once")
    max_new_tokens: int | None = Field(
        None, ge=1, le=10_000, description="tokens of an answer at most; xsum 30, else 6"
    )

    @model_validator(mode="after")
    def _custom_has_a_template(self) -> Self:
        language.check_template(self.asking.style, self.asking.template)
        return self

    @model_validator(mode="after")
    def _entropy_is_over_few_answers(self) -> Self:
        if self.dataset == "xsum" and self.ordering != "seed":
            raise ValueError(f"ordering: xsum has no set of answers to be uncertain of: seed, but got {self.ordering}")
        return self

    @property
    def asking(self) -> Asking:
        """How questions are put."""
        if self.dataset == "amazon" and self.prompt in (None, "custom"):
            return Asking("custom", self.template or AMAZON_TEMPLATE)
        return Asking(language.style(self.dataset, self.prompt), self.template)

    @property
    def texts(self) -> Texts:
        """Which texts the trial reads."""
        return Texts(self.dataset, self.data_seed, self.task, self.max_words)

    @property
    def new_tokens(self) -> int:
        """Tokens of an answer at most."""
        return self.max_new_tokens or language.NEW_TOKENS[self.dataset]


METRICS: Mapping[str, Metric] = {
    "val_accuracy": SHARE,  # exact match, of the questions answered so far
    "val_rouge1": SHARE,  # F; amazon has none
    "shots_used": Metric("max", 0.0, unit="examples"),
    "prompt_tokens": Metric("min", 0.0, unit="tokens"),  # of the questions answered so far, their examples included
    "ordering_entropy": Metric("max", 0.0, unit="nats"),  # that spoke for the ordering, where one did
    "test_accuracy": SHARE,
    "test_rouge1": SHARE,
    "test_shots_used": Metric("max", 0.0, unit="examples"),
}


def prepare(config: Config) -> str:
    """Find, verify and pack the text and the weights; the digest of both. Raises DataError or SpecError."""
    device()
    _draw(config, seed=0)  # DataError where there are too few
    return language.digest(config.dataset, config.model)


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one of the answers that occur in training; of summaries it cannot be said."""
    if config.dataset == "xsum":
        return {}
    return {"val_accuracy": 1 / len({example.answer for example in config.texts.part("train")})}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Answer up to `steps` validation questions, at most `eval_examples`; a Progress every `eval_every_steps`.

    They are answered in blocks of `eval_every_steps`, whole ones even where `steps` ends within: what is answered
    together hangs on neither `steps` nor where a trial was cut.
    """
    asked = config.texts.part("val")[: config.eval_examples]
    state = _State.load(resume) if resume else _State()
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
            state.tokens += decoder.tokens([config.asking.prompt(example.text) for example in block])
        state.step = min(end, steps, len(asked))
        yield Progress(state.step, state.row(config, asked), state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:
    """Ask the test questions behind the examples of the checkpoint, in its order."""
    state = _State.load(checkpoint)
    asked = config.texts.part("test")[: config.eval_examples]
    reader = _Reader.of(config, seed, asked, device())
    order = [at for at in state.order or [] if at < len(reader.shots)]
    scores = _scores(config, asked, reader.answer(reader.behind(order), asked))
    metrics = language.means("test", scores) | {"test_shots_used": float(len(order))}
    return Scores(metrics, language.items(asked, scores))


def export(config: Config, seed: int, checkpoint: Path) -> Weights:
    """No tensors: the examples of a checkpoint in its order, and which model reads them; what a card says of them."""
    drawn, order = _draw(config, seed), _State.load(checkpoint).order or []
    if not all(type(at) is int and 0 <= at < len(drawn) for at in order):
        raise CheckpointError(f"{checkpoint}: an order of {len(drawn)} examples is needed, but it holds {order}")
    shots = [[drawn[at].text, drawn[at].answer] for at in order]
    said = card.sections(
        weights=f"None: nothing was trained. {len(shots)} examples stand in the prompt, in the order that was chosen.",
        dataset=config.dataset,
        base=config.model,
        use=answerers.USE[config.dataset],
        limits=[
            f"`config.json` holds these examples: pieces of {config.dataset}, under its terms",
            *([OF_DROPPING] if config.overflow == "drop" else []),
            *answerers.LIMITS,
        ],
    )
    return Weights({}, answerers.base_notes(config.model) | {"shots": shots}, said)


def ready(config: Config, exported: Weights) -> LanguageModel:
    """A model that answers behind its examples, as the test asks. Raises DataError where it is another model."""
    fill({}, exported.tensors)
    shots = answerers.shots(exported.notes)
    answerers.check_base(config.model, exported.notes)
    model, tokenizer = models.causal(config.model, device=device())
    decoder = Decoder(model, tokenizer, window=models.window(model), prefix=config.asking.prefix(shots))

    def respond(text: str) -> str:
        answer = decoder.greedy([config.asking.prompt(text)], max_new_tokens=config.new_tokens, batch=1)[0]
        return _stars(answer) if config.dataset == "amazon" else answer

    return answerers.KINDS[config.dataset](respond)


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
        model, tokenizer = models.causal(config.model, device=device)
        drawn = [(example.text, example.answer) for example in _draw(config, seed)]
        reader = cls(config, model, tokenizer, models.window(model), drawn)
        alone = reader.decoder("")
        longest = max((config.asking.prompt(example.text) for example in asked), key=lambda one: alone.tokens([one]))
        while True:
            try:
                decoder = reader.behind(range(len(reader.shots)))
                decoder.check([longest], max_new_tokens=config.new_tokens)
                if config.ordering != "seed":
                    decoder.check([""], max_new_tokens=incontext.PROBE_ROOM)
            except SpecError:
                if config.overflow == "refuse" or not reader.shots:
                    raise
                reader.shots.pop()  # the last drawn: what is left is the draw of fewer
            else:
                return reader

    def behind(self, order: Sequence[int]) -> Decoder:
        """The model behind the examples in this order."""
        return self.decoder(self.config.asking.prefix([self.shots[at] for at in order]))

    def decoder(self, prefix: str) -> Decoder:
        """The model behind a prefix."""
        return Decoder(self.model, self.tokenizer, window=self.window, prefix=prefix)

    def answer(self, decoder: Decoder, asked: Sequence[Example]) -> list[str]:
        """What the model answers to each question."""
        questions = [self.config.asking.prompt(example.text) for example in asked]
        mine = questions[parallel.share(len(questions))]
        given = parallel.gather_from(
            lambda: decoder.greedy(mine, max_new_tokens=self.config.new_tokens, batch=self.config.eval_batch)
        )
        return [_stars(answer) for answer in given] if self.config.dataset == "amazon" else given


def _ordered(config: Config, seed: int, reader: _Reader) -> tuple[list[int], float | None]:
    """The order of the examples, and the entropy that spoke for it where one did."""
    stream = generator("order", seed)
    if config.ordering == "seed" or len(reader.shots) < 2:
        return torch.randperm(len(reader.shots), generator=stream).tolist(), None
    choice = incontext.choose(
        config.ordering,
        incontext.orders(len(reader.shots), config.orderings, stream),
        reader.shots,
        config.asking,
        reader.decoder,
        probes=config.probes,
        batch=config.eval_batch,
        generator=generator("probes", seed),
    )
    return choice.order, choice.entropy


def _draw(config: Config, seed: int) -> list[Example]:
    draw_seed = seed if config.draw_seed is None else config.draw_seed
    return config.texts.draw(config.shots, draw_seed, classes=config.dataset == "amazon")


def _stars(answer: str) -> str:
    """The first number from 1 to 5 that an answer holds."""
    found = STARS.search(answer)
    return found.group() if found else answer


def _scores(config: Config, asked: Sequence[Example], given: Sequence[str]) -> dict[str, list[float]]:
    return language.scores(given, [example.answer for example in asked], rouge=config.dataset != "amazon")
