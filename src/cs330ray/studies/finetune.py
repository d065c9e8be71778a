"""Fine-tuning of a language model on few examples: all weights, some blocks or LoRA, CS330 homework 3."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors.torch import save_file
from torch import Tensor

from cs330ray import parallel, runtime
from cs330ray.data import text, weights
from cs330ray.data.text import Example
from cs330ray.errors import DataError
from cs330ray.learners import answers, decoding, lora, prompts
from cs330ray.learners.lora import Encoded, Scored, Tuning
from cs330ray.learners.prompts import PromptStyle
from cs330ray.models import card, language
from cs330ray.models.language import LanguageModel
from cs330ray.trial import Item, Metric, Progress, Scores, Weights, finite

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLASSES = {"amazon": text.STARS, "rooms": text.ROOMS.places}  # in which order a classifier has them
NEW_TOKENS = {"babi": 6, "rooms": 6, "xsum": 30}
STOP_AT = {"babi": 0.9, "rooms": 0.9, "xsum": 0.55, "amazon": 0.75}  # training accuracy; the course's, and rooms'
MOST_RANK = 1024
SPLITS = "examples"  # of a batch, among workers
OF_WORDS, OF_CLASSES = ("prompt", "template"), ("layers", "max_tokens")  # fields that mean nothing to the other answers


class Config(BaseModel):
    """Every hyperparameter of a fine-tuning trial, with its bounds, default and unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Literal["babi", "xsum", "amazon", "rooms"] = Field("babi", description="text to learn from")
    answers: Literal["words", "classes"] | None = Field(
        None, description="in words, by a causal model, or classes (amazon, rooms), by an encoder; amazon: classes"
    )
    task: int = Field(1, ge=1, le=20, description="bAbI's task")
    data_seed: int = Field(0, ge=0, lt=2**32, description="seed of the split")
    max_words: int | None = Field(None, ge=1, description="xsum: words of document and summary together; 350")
    model: str = Field("smollm2-135m", min_length=1, description="weights by name, Hugging Face id or folder")
    layers: int | None = Field(None, ge=1, description="encoder: keep only so many of its first blocks; all")
    max_tokens: int = Field(128, ge=8, le=100_000, description="encoder: tokens of a text, which is cut there")
    prompt: PromptStyle | None = Field(
        None, description="what stands between a text and its answer; babi and rooms qa, xsum tldr"
    )
    template: str | None = Field(None, description="of prompt = custom, with {text} in it")
    shots: int = Field(16, ge=0, le=10_000, description="training examples; with classes: of each")
    draw_seed: int | None = Field(None, ge=0, lt=2**32, description="seed of their draw; the trial's")
    method: Annotated[str, Field(pattern=r"^(all|first|middle|last|lora(-[1-9]\d{0,3})?)$")] = Field(
        "lora", description="which parameters train: all, blocks, or lora (lora-4: of rank 4); a new head always does"
    )
    blocks: int = Field(2, ge=1, le=1000, description="first, middle, last: how many blocks train")
    rank: int = Field(16, ge=1, le=MOST_RANK, description="lora: columns of B, unless `method` says it")
    alpha: float | None = Field(None, gt=0, le=10_000, description="lora: B A counts alpha/rank times; the rank: once")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="lora: share dropped of what goes into A")
    targets: lora.Targets = Field("both", description="lora: the matrices of each block that get an adapter")
    dropout: float | None = Field(None, ge=0, lt=1, description="share dropped inside the model; the model's own")
    lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of Adam; lora 3e-4, else the course's: encoder 1e-4, causal 2e-5"
    )
    batch: int = Field(8, ge=1, le=4096, description="examples of a step, none twice: at most all there are")
    micro_batch: int = Field(4, ge=1, le=4096, description="examples at once, whose gradients are added up to a step's")
    early_stop: bool = Field(True, description="end at a row whose training accuracy reaches `stop_at`")
    stop_at: float | None = Field(
        None, gt=0, le=1, description="training accuracy to end at; babi and rooms .9, xsum .55, amazon .75"
    )
    eval_every_steps: int = Field(5, ge=1, description="steps from one validation to the next")
    eval_examples: int = Field(125, ge=1, le=125, description="examples of validation, and of test")
    eval_batch: int = Field(16, ge=1, le=4096, description="examples at once where nothing is trained")
    max_new_tokens: int | None = Field(
        None, ge=1, le=10_000, description="tokens of an answer at most; babi and rooms 6, xsum 30"
    )

    @field_validator("method")
    @classmethod
    def _rank_is_bounded(cls, method: str) -> str:
        if int(method.partition("-")[2] or 1) > MOST_RANK:
            raise ValueError(f"the rank of lora is at most {MOST_RANK}")
        return method

    @model_validator(mode="after")
    def _answers_are_of_the_dataset(self) -> Self:
        if (self.classifies and self.dataset not in CLASSES) or (not self.classifies and self.dataset == "amazon"):
            raise ValueError(f"answers: babi and xsum have words, amazon classes, but got {self.answers}; leave it out")
        return self

    @model_validator(mode="after")
    def _custom_has_a_template(self) -> Self:
        if self.prompt == "custom" and "{text}" not in (self.template or ""):
            raise ValueError(f"template: prompt = custom needs one with {{text}} in it, but got {self.template!r}")
        return self

    @model_validator(mode="after")
    def _every_field_means_something(self) -> Self:
        for name in OF_WORDS if self.classifies else OF_CLASSES:
            if (told := getattr(self, name)) != type(self).model_fields[name].default:
                kind = "words" if self.classifies else "classes"
                raise ValueError(f"{name}: answers must be {kind} for it to count, but got {told!r}; leave it out")
        return self

    @property
    def classifies(self) -> bool:
        """Whether an encoder tells classes; else a causal model answers in words."""
        return self.answers == "classes" or (self.answers is None and self.dataset == "amazon")

    @property
    def style(self) -> PromptStyle:
        """What stands between a text and its answer."""
        return ("tldr" if self.dataset == "xsum" else "qa") if self.prompt is None else self.prompt

    @property
    def new_tokens(self) -> int:
        """How many tokens an answer in words may have."""
        return NEW_TOKENS[self.dataset] if self.max_new_tokens is None else self.max_new_tokens

    @property
    def tuning(self) -> Tuning:
        """Which parameters train."""
        method, _, told = self.method.partition("-")
        rank = int(told) if told else self.rank
        alpha = float(rank) if self.alpha is None else self.alpha
        return Tuning(cast("lora.Method", method), self.blocks, rank, alpha, self.lora_dropout, self.targets)

    @property
    def rate(self) -> float:
        """The learning rate."""
        usual = 3e-4 if self.tuning.method == "lora" else 1e-4 if self.classifies else 2e-5
        return usual if self.lr is None else self.lr

    @property
    def enough(self) -> float | None:
        """The training accuracy to end at, if any."""
        return (STOP_AT[self.dataset] if self.stop_at is None else self.stop_at) if self.early_stop else None


_SHARE = Metric("max", 0.0, 1.0)
_LOSS = Metric("min", 0.0, unit="nats")
METRICS: Mapping[str, Metric] = {
    "val_accuracy": _SHARE,  # exact match of the greedy answer, or the class
    "val_rouge1": _SHARE,  # F; of answers in words
    "val_loss": _LOSS,  # of a token of the true answer after those before it, or of an example's class
    "train_loss": _LOSS,  # of the step's own batch, before its update
    "train_accuracy": _SHARE,  # of all examples: an answer's share of tokens that are right after the true ones
    "trained_parameters": Metric("min", 0.0, unit="numbers"),
    "test_accuracy": _SHARE,
    "test_rouge1": _SHARE,
    "test_loss": _LOSS,
}


def prepare(config: Config) -> str:
    """Find, verify and pack the text and the weights; the digest of both. Raises DataError or SpecError."""
    runtime.device()
    if config.tuning.method == "lora":
        lora.require_peft()
    _draw(config, seed=0)  # DataError where there are too few
    both = f"{text.digest(config.dataset)} {weights.digest(config.model)}"
    return sha256(both.encode()).hexdigest()


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one of the classes; of answers in words it cannot be said."""
    return {"val_accuracy": 1 / len(CLASSES[config.dataset])} if config.classifies else {}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train up to `steps` steps, or until `early_stop` ends it; a Progress every `eval_every_steps` and at the end.

    Only rows that are due may end it, so that a longer budget ends where a shorter one does. With no examples nothing
    trains: the one row, of step 1, is what the model knows by itself.
    """
    device = runtime.device()
    state = _State.load(resume, config, device) if resume else _State.fresh(config, seed, device)
    drawn = [state.encode(example) for example in _draw(config, seed)]
    val = _Questions.of(config, "val", state)
    while state.step < steps and not state.ended:
        state.step += 1
        loss = _update(config, state, drawn, seed) if drawn else None
        due = state.step % config.eval_every_steps == 0
        if not due and drawn and state.step < steps:
            continue
        row = _means("val", _evaluate(config, state, val)) | {"trained_parameters": float(state.size)}
        finite(row["val_loss"], state.step)
        if loss is not None:
            accuracy = runtime.mean(_score(config, state, drawn).accuracy_B)
            row |= {"train_loss": loss, "train_accuracy": accuracy}
            state.ended = due and config.enough is not None and accuracy >= config.enough
        else:
            state.ended = True
        yield Progress(state.step, row, state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - nothing is drawn
    """Score the checkpoint on the test examples."""
    state = _State.load(checkpoint, config, runtime.device())
    questions = _Questions.of(config, "test", state)
    scores = _evaluate(config, state, questions)
    units = [example.unit for example in questions.examples]
    items = {
        f"test_{name}": [Item(unit, score) for unit, score in zip(units, values, strict=True)]
        for name, values in scores[1].items()
    }
    return Scores(_means("test", scores), items)


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """What trained, of a checkpoint, and which model it is learned on top of; what a card says of it."""
    trained = {"all": "All weights", "lora": "The adapters alone"}.get(config.tuning.method, "The trained blocks alone")
    new_head = ", and the head, which is new" if config.classifies and config.tuning.method != "all" else ""
    said = card.sections(
        weights=f"{trained}{new_head}, as of the last step.",
        dataset=config.dataset,
        base=config.model,
        use=language.USE[config.dataset],
        limits=[
            f"Examples it has learned from: {config.shots}{' of each class' * config.classifies}",
            *language.LIMITS,
        ],
    )
    return Weights(runtime.load_tensors(checkpoint), language.base_notes(config.model), said)


def ready(config: Config, exported: Weights) -> LanguageModel:
    """A model that answers as the test asks. Raises DataError where the tensors or the model below are others."""
    if config.tuning.method == "lora":
        lora.require_peft()
    language.check_base(config.model, exported.notes)
    state = _State.fresh(config, 0, runtime.device())
    runtime.fill(state._tensors, exported.tensors)
    state.model.train(False)
    return language.KINDS[config.dataset](lambda text: _told(config, state, text))


@dataclass
class _State:
    """All that a trial is at one moment; its checkpoint holds of the model only what trains, to the bit."""

    config: Config
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    adapter: "PeftModel | None"
    params: dict[str, torch.nn.Parameter]  # those that train
    optimizer: torch.optim.Adam
    generator: torch.Generator  # of the order of the examples
    step: int = 0
    left: list[int] = field(default_factory=list)  # examples not yet seen since the last shuffle
    ended: bool = False

    @classmethod
    def fresh(cls, config: Config, seed: int, device: torch.device) -> Self:
        if config.classifies:
            classes = len(CLASSES[config.dataset])
            model, tokenizer = weights.encoder(
                config.model, classes=classes, layers=config.layers, seed=seed, device=device
            )
        else:
            model, tokenizer = weights.causal(config.model, device=device)
        if config.dropout is not None:
            lora.set_dropout(model, config.dropout)
        adapter = lora.tune(model, config.tuning, runtime.generator("adapter", seed))
        if adapter is not None:
            adapter.peft_config["default"].base_model_name_or_path = config.model  # not the folder it was read from
        params = lora.trained(model)
        optimizer = torch.optim.Adam(params.values(), lr=config.rate, fused=True)
        return cls(config, model, tokenizer, adapter, params, optimizer, runtime.generator("train", seed))

    @classmethod
    def load(cls, checkpoint: Path, config: Config, device: torch.device) -> Self:
        state = cls.fresh(config, 0, device)
        notes = runtime.load_state(
            checkpoint, tensors=state._tensors, optimizer=state.optimizer, generator=state.generator
        )
        state.step, state.left, state.ended = notes["step"], notes["left"], notes["ended"]
        return state

    def save(self, directory: Path) -> None:
        """Write the state; of an adapter also the files that peft reads, beside it."""
        runtime.save_state(
            directory,
            tensors=self._tensors,
            optimizer=self.optimizer,
            generator=self.generator,
            notes={"step": self.step, "left": self.left, "ended": self.ended},
        )
        if self.adapter is not None:
            save_file(lora.adapter_tensors(self.adapter), directory / "adapter_model.safetensors")
            self.adapter.peft_config["default"].save_pretrained(str(directory))

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {f"param/{name}": param for name, param in self.params.items()}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def size(self) -> int:
        """How many numbers train."""
        return sum(param.numel() for param in self.params.values())

    def next_batch(self, examples: int) -> list[int]:
        """Places of the next batch: each example once in a pass, in a new order each time; a rest is left out."""
        size = min(self.config.batch, examples)
        if len(self.left) < size:
            self.left = torch.randperm(examples, generator=self.generator).tolist()
        taken, self.left = self.left[:size], self.left[size:]
        return taken

    def encode(self, example: Example, *, new_tokens: int = 0) -> Encoded:
        """Turn an example into tokens: the question's, as decoding reads it, and those that follow in the whole.

        Raises DataError where the question's tokens change with the answer behind it, and where it is longer than the
        model's window with its answer or with `new_tokens`.
        """
        config = self.config
        if config.classifies:
            limit = min(config.max_tokens, weights.window(self.model))
            ids = self.tokenizer(example.text, truncation=True, max_length=limit)["input_ids"]
            return Encoded(tuple(ids), label=CLASSES[config.dataset].index(example.answer))
        question = _question(config, example)
        asked, whole = (self._ids(words) for words in (question, question + _answer(config, example)))
        kept = next((place for place, token in enumerate(asked) if whole[place : place + 1] != [token]), len(asked))
        if kept < len(asked):
            raise DataError(
                f"{config.dataset} {example.unit}: a question must have the same tokens with an answer behind it, but "
                f"{config.model} changes the last {len(asked) - kept} of {len(asked)}; take another model or prompt"
            )
        answer, window = len(whole) - len(asked), weights.window(self.model)
        most = max(answer, new_tokens)
        if len(asked) + most > window:
            lower = "max_new_tokens" if len(asked) + answer <= window else "max_words"
            raise DataError(
                f"{config.dataset} {example.unit}: prompt and answer must fit into the {window} tokens of "
                f"{config.model}, but have {len(asked)} + {most}; lower {lower} or take another model"
            )
        return Encoded(tuple(whole), answer=answer)

    def _ids(self, words: str) -> list[int]:
        ids: list[int] = self.tokenizer(words, verbose=False)["input_ids"]  # the window is checked here, in words
        return ids


@dataclass(frozen=True)
class _Questions:
    """The examples of a part that are evaluated, and their tokens."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]

    @classmethod
    def of(cls, config: Config, part: Literal["val", "test"], state: _State) -> Self:
        """Read and encode a part. Raises DataError where a question and what may be generated do not fit the window."""
        examples = _examples(config, part)[: config.eval_examples]
        new_tokens = 0 if config.classifies else config.new_tokens
        return cls(examples, [state.encode(example, new_tokens=new_tokens) for example in examples])


def _question(config: Config, example: Example) -> str:
    return prompts.question(config.style, example.text, config.template)


def _answer(config: Config, example: Example) -> str:
    """What is to be generated after the question: a blank, the answer, a period."""
    whole = prompts.shot(config.style, example.text, example.answer, config.template)
    return whole.removeprefix(_question(config, example))


def _draw(config: Config, seed: int) -> Sequence[Example]:
    if not config.shots:
        return []
    pool = _examples(config, "train")
    draw_seed = seed if config.draw_seed is None else config.draw_seed
    return text.draw(pool, config.shots, draw_seed, classes=config.classifies)


def _examples(config: Config, part: str) -> list[Example]:
    return text.examples(config.dataset, part, config.data_seed, task=config.task, max_words=config.max_words)


def _update(config: Config, state: _State, drawn: Sequence[Encoded], seed: int) -> float:
    """Take a step; the loss of its batch before it. Raises Diverged.

    Dropout hangs on the seed, the step and the worker alone: with it, several workers drop other values than one does.
    """
    chosen = [drawn[place] for place in state.next_batch(len(drawn))]
    mine = chosen[parallel.share(len(chosen))]
    parts = [part for _, part in lora.batches(mine, config.micro_batch, pad=state.pad, device=state.device)]
    worker = f"/{parallel.rank()}" if parallel.rank() else ""
    state.optimizer.zero_grad()
    state.model.train()
    with _own_stream(f"dropout/{state.step}{worker}", seed, state.device):
        loss = lora.backward(state.model, parts, answers=sum(example.answers for example in chosen))
    loss = finite(parallel.add(loss), state.step)
    parallel.add_gradients(state.params.values())
    state.optimizer.step()
    return loss


@contextmanager
def _own_stream(stream: str, seed: int, device: torch.device) -> Iterator[None]:
    """Have the global random numbers, which dropout draws from, be of a stream of our own; afterwards as before."""
    drawn = runtime.generator(stream, seed).initial_seed()
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=kind):
        torch.default_generator.manual_seed(drawn)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(drawn)
        yield


def _score(config: Config, state: _State, examples: Sequence[Encoded]) -> Scored:
    mine = examples[parallel.share(len(examples))]
    found = lora.evaluate(state.model, mine, config.eval_batch, pad=state.pad, device=state.device) if mine else None
    return Scored(**parallel.gather_scores(vars(found) if found else {}))


def _evaluate(config: Config, state: _State, questions: _Questions) -> tuple[float, dict[str, list[float]]]:
    """Score questions: the loss of a label, and by name what each example reached."""
    found = _score(config, state, questions.encoded)
    loss = (found.loss_B.double().sum() / found.labels_B.sum()).item()
    if config.classifies:
        return loss, {"accuracy": found.accuracy_B.tolist()}
    predicted = _answers(config, state, questions.examples, found)
    pairs = [(told, example.answer) for told, example in zip(predicted, questions.examples, strict=True)]
    return loss, {
        "accuracy": [float(answers.exact_match(*pair)) for pair in pairs],
        "rouge1": [answers.rouge1(*pair) for pair in pairs],
    }


def _answers(config: Config, state: _State, examples: Sequence[Example], found: Scored) -> list[str]:
    """What the model answers by greedy decoding.

    Where each token of the true answer is the likeliest after those before it, greedy decoding tells that answer, up to
    its period: it need not be run.
    """
    told: dict[int, str] = {}
    for place, example in enumerate(examples):
        answer, period, _ = _answer(config, example).partition(".")
        if period and found.right_B[place] == found.labels_B[place] <= config.new_tokens:
            told[place] = answer.strip()
    rest = [place for place in range(len(examples)) if place not in told]
    mine = [_question(config, examples[place]) for place in rest[parallel.share(len(rest))]]
    decoded = parallel.gather_from(
        lambda: decoding.greedy(
            state.model,
            state.tokenizer,
            mine,
            max_new_tokens=config.new_tokens,
            batch=config.eval_batch,
            window=weights.window(state.model),
        )
    )
    told |= dict(zip(rest, decoded, strict=True))
    return [told[place] for place in range(len(examples))]


def _told(config: Config, state: _State, text: str) -> str:
    """What the model says to a text."""
    window = weights.window(state.model)
    if not config.classifies:
        question = prompts.question(config.style, text, config.template)
        return decoding.greedy(
            state.model, state.tokenizer, [question], max_new_tokens=config.new_tokens, batch=1, window=window
        )[0]
    ids = state.tokenizer(text, truncation=True, max_length=min(config.max_tokens, window))["input_ids"]
    batch = lora.collate([Encoded(tuple(ids), label=0)], pad=state.pad, device=state.device)
    with torch.no_grad():
        return CLASSES[config.dataset][int(lora.logits(state.model, batch).argmax())]


def _means(part: str, scores: tuple[float, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    loss, found = scores
    means = {f"{part}_{name}": sum(values) / len(values) for name, values in found.items()}
    return means | {f"{part}_loss": loss}


if __name__ == "__main__":  # pragma: no cover
    from cs330ray.cli import study_main

    study_main("finetune")
