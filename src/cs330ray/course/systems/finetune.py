"""Fine-tuning of a language model on few examples: all weights, some blocks or LoRA, CS330 homework 3."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from safetensors.torch import save_file

from cs330ray.course.data.text import Example
from cs330ray.course.learners import decoding, lora, prompts
from cs330ray.course.learners.lora import Encoded, Scored
from cs330ray.course.models import card
from cs330ray.course.models import language as answerers
from cs330ray.course.models.language import LanguageModel
from cs330ray.course.pretrained import models
from cs330ray.course.pretrained.library import settle_hub
from cs330ray.course.systems import language
from cs330ray.course.systems.finetune_config import CLASSES, METRICS, Config
from cs330ray.errors import DataError
from cs330ray.training import parallel
from cs330ray.training.device import device, generator
from cs330ray.training.state import Trained, load_tensors, mean
from cs330ray.trial.contract import Progress, Scores, Weights, finite

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["METRICS", "SPLITS", "Config", "chance", "export", "prepare", "ready", "test", "train"]

SPLITS = "examples"  # of a batch, among workers


def prepare(config: Config) -> str:
    """Find, verify and pack the text and the weights; the digest of both. Raises DataError or SpecError."""
    device()
    if config.tuning.method == "lora":
        settle_hub()  # peft imports it
        lora.require_peft()
    _draw(config, seed=0)  # DataError where there are too few
    return language.digest(config.dataset, config.model)


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one of the classes; of answers in words it cannot be said."""
    return {"val_accuracy": 1 / len(CLASSES[config.dataset])} if config.classifies else {}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train up to `steps` steps, or until `early_stop` ends it; a Progress every `eval_every_steps` and at the end.

    Only rows that are due may end it, so that a longer budget ends where a shorter one does. With no examples nothing
    trains: the one row, of step 1, is what the model knows by itself.
    """
    where = device()
    state = _State.fresh(config, 0, where).restored(resume) if resume else _State.fresh(config, seed, where)
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
            accuracy = mean(_score(config, state, drawn).accuracy_B)
            row |= {"train_loss": loss, "train_accuracy": accuracy}
            state.ended = due and config.enough is not None and accuracy >= config.enough
        else:
            state.ended = True
        yield Progress(state.step, row, state.save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - nothing is drawn
    """Score the checkpoint on the test examples."""
    state = _State.fresh(config, 0, device()).restored(checkpoint)
    questions = _Questions.of(config, "test", state)
    scores = _evaluate(config, state, questions)
    return Scores(_means("test", scores), language.items(questions.examples, scores[1]))


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """What trained, of a checkpoint, and which model it is learned on top of; what a card says of it."""
    trained = {"all": "All weights", "lora": "The adapters alone"}.get(config.tuning.method, "The trained blocks alone")
    new_head = ", and the head, which is new" if config.classifies and config.tuning.method != "all" else ""
    said = card.sections(
        weights=f"{trained}{new_head}, as of the last step.",
        dataset=config.dataset,
        base=config.model,
        use=answerers.USE[config.dataset],
        limits=[
            f"Examples it has learned from: {config.shots}{' of each class' * config.classifies}",
            *answerers.LIMITS,
        ],
    )
    return Weights(load_tensors(checkpoint), answerers.base_notes(config.model), said)


def ready(config: Config, exported: Weights) -> LanguageModel:
    """A model that answers as the test asks. Raises DataError where the tensors or the model below are others."""
    if config.tuning.method == "lora":
        settle_hub()  # peft imports it
        lora.require_peft()
    answerers.check_base(config.model, exported.notes)
    state = _State.fresh(config, 0, device()).filled(exported.tensors)
    state.model.train(False)
    return answerers.KINDS[config.dataset](lambda text: _told(config, state, text))


@dataclass(kw_only=True)
class _State(Trained):
    """A trial at one moment; its checkpoint holds of the model only what trains."""

    NOTES: ClassVar[tuple[str, ...]] = ("step", "left", "ended")

    config: Config
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    adapter: "PeftModel | None"
    params: dict[str, torch.nn.Parameter]  # those that train
    left: list[int] = field(default_factory=list)  # examples not yet seen since the last shuffle
    ended: bool = False

    @classmethod
    def fresh(cls, config: Config, seed: int, where: torch.device) -> Self:
        """Load the model as it is before the first step."""
        if config.classifies:
            classes = len(CLASSES[config.dataset])
            model, tokenizer = models.encoder(
                config.model, classes=classes, layers=config.layers, seed=seed, device=where
            )
        else:
            model, tokenizer = models.causal(config.model, device=where)
        if config.dropout is not None:
            lora.set_dropout(model, config.dropout)
        adapter = lora.tune(model, config.tuning, generator("adapter", seed))
        if adapter is not None:
            adapter.peft_config["default"].base_model_name_or_path = config.model  # not the folder it was read from
        params = lora.trained(model)
        return cls(
            tensors={f"param/{name}": param for name, param in params.items()},
            optimizer=torch.optim.Adam(params.values(), lr=config.rate, fused=True),
            generator=generator("train", seed),  # of the order of the examples
            config=config,
            model=model,
            tokenizer=tokenizer,
            adapter=adapter,
            params=params,
        )

    def save(self, directory: Path) -> None:
        """Write this moment; of an adapter also the files that peft reads, beside it."""
        super().save(directory)
        if self.adapter is not None:
            save_file(lora.adapter_tensors(self.adapter), directory / "adapter_model.safetensors")
            self.adapter.peft_config["default"].save_pretrained(str(directory))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
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
            limit = min(config.max_tokens, models.window(self.model))
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
        answer, window = len(whole) - len(asked), models.window(self.model)
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
        examples = config.texts.part(part)[: config.eval_examples]
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
    draw_seed = seed if config.draw_seed is None else config.draw_seed
    return config.texts.draw(config.shots, draw_seed, classes=config.classifies)


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
    drawn = generator(stream, seed).initial_seed()
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
    return loss, language.scores(predicted, [example.answer for example in questions.examples], rouge=True)


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
            window=models.window(state.model),
        )
    )
    told |= dict(zip(rest, decoded, strict=True))
    return [told[place] for place in range(len(examples))]


def _told(config: Config, state: _State, text: str) -> str:
    """What the model says to a text."""
    window = models.window(state.model)
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
    return language.means(part, found) | {f"{part}_loss": loss}
