"""Fine-tuning of a language model on few examples: all weights, some blocks or LoRA, CS330 homework 3."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from safetensors.torch import save_file

from cs330ray.course.data.text import Example
from cs330ray.course.learners import decoding, lora
from cs330ray.course.learners.lora import Encoded, Scored
from cs330ray.course.models import card
from cs330ray.course.models import language as answerers
from cs330ray.course.models.language import LanguageModel
from cs330ray.course.pretrained import models
from cs330ray.course.pretrained.library import settle_hub
from cs330ray.course.systems import language
from cs330ray.course.systems.configs.finetune import CLASSES, METRICS, Config
from cs330ray.course.systems.finetune_reader import Reader
from cs330ray.course.systems.language import OwnData
from cs330ray.training import parallel
from cs330ray.training.adam import Adam
from cs330ray.training.device import computing_in, device, generator
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
    config, classes = _resolved(config, config.texts.labels)
    if config.tuning.method == "lora":
        settle_hub()  # peft imports it
        lora.require_peft()
    drawn = _draw(config, seed=0)  # DataError where there are too few
    digest = language.digest(config.texts, config.model, config.metric)
    model, tokenizer = language.tried(config.model, classes=len(classes) or None, layers=config.layers)
    if config.tuning.method == "lora":
        lora.adapted(model, config.targets)
    if config.gradient_checkpointing:
        lora.require_checkpointing(model)
    reader = Reader(config, tokenizer, models.window(model), classes)
    for example in [*drawn, *config.texts.part("val")[: config.eval_examples]]:
        reader.encode(example, new_tokens=0 if config.classifies else config.new_tokens)
    return digest


def chance(config: Config) -> Mapping[str, float]:
    """What guessing reaches: one of the classes or labels; of other answers in words it cannot be said."""
    labels = config.texts.labels
    names = labels or _resolved(config, labels)[1]
    return {"val_accuracy": 1 / len(names)} if names else {}


def train(config: Config, seed: int, steps: int, resume: Path | None = None) -> Iterator[Progress]:
    """Train up to `steps` steps, or until `early_stop` ends it; a Progress every `eval_every_steps` and at the end.

    Only rows that are due may end it, so that a longer budget ends where a shorter one does; a schedule of the learning
    rate ends it too, at a step of its own. With no examples nothing trains: the one row, of step 1, is what the model
    knows by itself.
    """
    where = device()
    own = OwnData.of(config.texts)
    config, classes = _resolved(config, own.labels if own else None)
    state = _State.fresh(config, 0 if resume else seed, where, classes)
    if resume is not None:
        language.same_data(config.texts, resume)
        state.restored(resume)
    save = own.saving(state.save) if own else state.save
    end = steps if config.last_step is None else min(steps, config.last_step)
    drawn = [state.encode(example) for example in _draw(config, seed)]
    val = _Questions.of(config, "val", state)
    while state.step < end and not state.ended:
        state.step += 1
        loss = _update(config, state, drawn, seed) if drawn else None
        due = state.step % config.eval_every_steps == 0
        if not due and drawn and state.step < end:
            continue
        row = _means("val", _evaluate(config, state, val)) | {"trained_parameters": float(state.size)}
        finite(row["val_loss"], state.step)
        if loss is not None:
            accuracy = mean(_score(config, state, drawn).accuracy_B)
            row |= {"train_loss": loss, "train_accuracy": accuracy}
            state.ended = due and config.enough is not None and accuracy >= config.enough
        else:
            state.ended = True
        yield Progress(state.step, row, save)


def test(config: Config, seed: int, checkpoint: Path) -> Scores:  # noqa: ARG001 - nothing is drawn
    """Score the checkpoint on the test examples."""
    language.same_data(config.texts, checkpoint)
    config, classes = _resolved(config, config.texts.labels)
    state = _State.fresh(config, 0, device(), classes).restored(checkpoint)
    questions = _Questions.of(config, "test", state)
    scores = _evaluate(config, state, questions)
    return Scores(_means("test", scores), language.items(questions.examples, scores[1]))


def export(config: Config, seed: int, checkpoint: Path) -> Weights:  # noqa: ARG001 - the checkpoint holds all
    """What trained, of a checkpoint, and which model it is learned on top of; what a card says of it."""
    own = OwnData.kept(config.texts, checkpoint)
    labels = own.labels if own else None
    config, classes = _resolved(config, labels)
    trained = {"all": "All weights", "lora": "The adapters alone"}.get(config.tuning.method, "The trained blocks alone")
    new_head = ", and the head, which is new" if config.classifies and config.tuning.method != "all" else ""
    said = card.sections(
        weights=f"{trained}{new_head}, as of the last step.",
        dataset=answerers.source(config.dataset, config.data),
        base=config.model,
        use=answerers.use(config.dataset, labels),
        limits=[
            f"Examples it has learned from: {config.shots}{' of each class' * bool(classes or labels)}",
            *answerers.LIMITS,
        ],
    )
    notes = answerers.base_notes(config.model) | answerers.own_notes(config.dataset, labels)
    return Weights(load_tensors(checkpoint), notes, said)


def ready(config: Config, exported: Weights) -> LanguageModel:
    """A model that answers as the test asks. Raises DataError where the tensors or the model below are others."""
    labels = answerers.own_labels(config.dataset, exported.notes)
    config, classes = _resolved(config, labels)
    if config.tuning.method == "lora":
        settle_hub()  # peft imports it
        lora.require_peft()
    answerers.check_base(config.model, exported.notes)
    state = _State.fresh(config, 0, device(), classes).filled(exported.tensors)
    state.model.train(False)
    return answerers.made(config.dataset, labels, lambda text: _told(config, state, text))


def _resolved(config: Config, labels: tuple[str, ...] | None) -> tuple[Config, tuple[str, ...]]:
    """What `labels` of one's own text, if there are any, say of a configuration; and the classes, if it tells them."""
    config = config.resolved(labels)
    if not config.classifies:
        return config, ()
    return config, CLASSES[config.dataset] if labels is None else labels


@dataclass(kw_only=True)
class _State(Trained):
    """A trial at one moment; its checkpoint holds of the model only what trains."""

    NOTES: ClassVar[tuple[str, ...]] = ("step", "left", "ended")

    config: Config
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    adapter: "PeftModel | None"
    params: dict[str, torch.nn.Parameter]  # those that train
    classes: tuple[str, ...]  # that are told, if any
    left: list[int] = field(default_factory=list)  # examples not yet seen since the last shuffle
    ended: bool = False

    @classmethod
    def fresh(cls, config: Config, seed: int, where: torch.device, classes: tuple[str, ...] | None = None) -> Self:
        """Load the model as it is before the first step; of a resolved configuration."""
        if classes is None:
            config, classes = _resolved(config, config.texts.labels)
        if classes:
            model, tokenizer = models.encoder(
                config.model, classes=len(classes), layers=config.layers, seed=seed, device=where
            )
        else:
            model, tokenizer = models.causal(config.model, device=where)
        if config.dropout is not None:
            lora.set_dropout(model, config.dropout)
        adapter = lora.tune(model, config.tuning, generator("adapter", seed))
        if adapter is not None:
            adapter.peft_config["default"].base_model_name_or_path = config.model  # not the folder it was read from
        if config.gradient_checkpointing:
            lora.checkpoint_gradients(model)
        params = lora.trained(model)
        return cls(
            tensors={f"param/{name}": param for name, param in params.items()},
            optimizer=Adam(params.values(), lr=config.rate, fused=True),
            generator=generator("train", seed),  # of the order of the examples
            config=config,
            model=model,
            tokenizer=tokenizer,
            adapter=adapter,
            params=params,
            classes=classes,
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

    @property
    def reader(self) -> Reader:
        """How texts become tokens."""
        return Reader(self.config, self.tokenizer, models.window(self.model), self.classes)

    def encode(self, example: Example, *, new_tokens: int = 0) -> Encoded:
        """Turn an example into tokens, see `Reader`."""
        return self.reader.encode(example, new_tokens=new_tokens)

    def computing(self) -> AbstractContextManager[object]:
        """Compute in the precision that was asked for."""
        return computing_in(self.config.precision, self.device)


@dataclass(frozen=True)
class _Questions:
    """The examples of a part that are evaluated, and their tokens."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    rouge: bool = True  # whether words in common say anything of an answer: not of a label

    @classmethod
    def of(cls, config: Config, part: Literal["val", "test"], state: _State) -> Self:
        """Read and encode a part. Raises DataError where a question and what may be generated do not fit the window."""
        examples = config.texts.part(part)[: config.eval_examples]
        new_tokens = 0 if config.classifies else config.new_tokens
        encoded = [state.encode(example, new_tokens=new_tokens) for example in examples]
        return cls(examples, encoded, rouge=config.texts.labels is None)


def _draw(config: Config, seed: int) -> Sequence[Example]:
    if not config.shots:
        return []
    draw_seed = seed if config.draw_seed is None else config.draw_seed
    by_class = config.classifies or config.texts.labels is not None  # as in context
    return config.texts.draw(config.shots, draw_seed, classes=by_class)


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
        answers = sum(example.answers for example in chosen)
        loss = lora.backward(state.model, parts, answers=answers, computing=state.computing)
    loss = finite(parallel.add(loss), state.step)
    parallel.add_gradients(state.params.values())
    state.optimizer.lr = config.rate_of(state.step)
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
    mine, found = examples[parallel.share(len(examples))], None
    if mine:
        with state.computing():
            found = lora.evaluate(state.model, mine, config.eval_batch, pad=state.pad, device=state.device)
    return Scored(**parallel.gather_scores(vars(found) if found else {}))


def _evaluate(config: Config, state: _State, questions: _Questions) -> tuple[float, dict[str, list[float]]]:
    """Score questions: the loss of a label, and by name what each example reached."""
    found = _score(config, state, questions.encoded)
    loss = (found.loss_B.double().sum() / found.labels_B.sum()).item()
    true = [example.answer for example in questions.examples]
    if state.classes:
        told = [state.classes[at] for at in found.likeliest_B.tolist()]
        scores = {"accuracy": found.accuracy_B.tolist()}
        if config.metric is not None:
            scores["score"] = language.own_scores(config.metric, zip(told, true, strict=True))
        return loss, scores
    predicted = _answers(config, state, questions.examples, found)
    return loss, language.scores(config.texts, predicted, true, rouge=questions.rouge, metric=config.metric)


def _answers(config: Config, state: _State, examples: Sequence[Example], found: Scored) -> list[str]:
    """What the model answers by greedy decoding.

    Where each token of the true answer is the likeliest after those before it, greedy decoding tells that answer, up to
    its end: it need not be run.
    """
    reader, told = state.reader, dict[int, str]()
    for place, example in enumerate(examples):
        written = reader.written(example) if found.right_B[place] == found.labels_B[place] else None
        if written is not None and found.labels_B[place] <= config.new_tokens:
            told[place] = written
    rest = [place for place in range(len(examples)) if place not in told]
    mine = [reader.question(examples[place].text) for place in rest[parallel.share(len(rest))]]
    decoded = parallel.gather_from(lambda: _decoded(config, state, mine, config.eval_batch))
    told |= dict(zip(rest, decoded, strict=True))
    return [told[place] for place in range(len(examples))]


def _decoded(config: Config, state: _State, questions: Sequence[str], batch: int) -> list[str]:
    with state.computing():
        return decoding.greedy(
            state.model,
            state.tokenizer,
            questions,
            max_new_tokens=config.new_tokens,
            batch=batch,
            window=models.window(state.model),
            asking=state.reader.asking,
        )


def _told(config: Config, state: _State, text: str) -> str:
    """What the model says to a text."""
    if not state.classes:
        return _decoded(config, state, [state.reader.question(text)], 1)[0]
    batch = lora.collate([Encoded(state.reader.cut(text), label=0)], pad=state.pad, device=state.device)
    with torch.no_grad(), state.computing():
        return state.classes[int(lora.logits(state.model, batch).argmax())]


def _means(part: str, scores: tuple[float, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    loss, found = scores
    return language.means(part, found) | {f"{part}_loss": loss}
