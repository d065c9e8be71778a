"""The hyperparameters of fine-tuning, what they mean together, and the metrics of its trials."""

import difflib
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cs330ray.course.data.rooms import ROOMS
from cs330ray.course.data.text_archives import STARS
from cs330ray.course.learners import lora
from cs330ray.course.learners.lora import Tuning
from cs330ray.course.learners.prompts import PromptStyle
from cs330ray.course.systems import language
from cs330ray.course.systems.language import SCORE, SHARE, Texts
from cs330ray.errors import SpecError
from cs330ray.training import schedule
from cs330ray.trial.contract import Metric

CLASSES = {"amazon": STARS, "rooms": ROOMS.places}  # in which order a classifier has them
STOP_AT = {"babi": 0.9, "rooms": 0.9, "xsum": 0.55, "amazon": 0.75}  # training accuracy; the course's, and rooms'
MOST_RANK = 1024
OF_WORDS, OF_CLASSES = ("prompt", "template", "chat"), ("layers", "max_tokens")  # fields of no meaning to the others


class Config(BaseModel):
    """Every hyperparameter of a fine-tuning trial, with its bounds, default and unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    LATER: ClassVar[frozenset[str]] = frozenset(
        {
            "chat",
            "data",
            "gradient_checkpointing",
            "lr_schedule",
            "metric",
            "precision",
            "schedule_steps",
            "warmup_steps",
        }
    )  # than version 0.1.0

    dataset: language.Dataset = "babi"
    data: language.Data = None
    answers: Literal["words", "classes"] | None = Field(
        None,
        description="in words, by a causal model, or classes (amazon, rooms, labels of yours), by an encoder; "
        "amazon and labels: classes",
    )
    task: language.Task = 1
    questions: language.Questions = "all"
    data_seed: language.DataSeed = 0
    max_words: language.MaxWords = None
    model: language.Model = "smollm2-135m"
    layers: int | None = Field(None, ge=1, description="encoder: keep only so many of its first blocks; all")
    max_tokens: int = Field(128, ge=8, le=100_000, description="encoder: tokens of a text, which is cut there")
    prompt: PromptStyle | None = Field(
        None, description="what stands between a text and its answer; babi and rooms qa, xsum tldr"
    )
    template: language.Template = None
    chat: language.ChatField = False
    metric: language.MetricName = None
    shots: int = Field(16, ge=0, le=10_000, description="training examples; with classes: of each")
    draw_seed: int | None = Field(None, ge=0, lt=2**32, description="seed of their draw; the trial's")
    method: Annotated[str, Field(pattern=r"^(all|first|middle|last|lora(-[1-9]\d{0,3})?)$")] = Field(
        "lora", description="which parameters train: all, blocks, or lora (lora-4: of rank 4); a new head always does"
    )
    blocks: int = Field(2, ge=1, le=1000, description="first, middle, last: how many blocks train")
    rank: int = Field(16, ge=1, le=MOST_RANK, description="lora: columns of B, unless `method` says it")
    alpha: float | None = Field(None, gt=0, le=10_000, description="lora: B A counts alpha/rank times; the rank: once")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="lora: share dropped of what goes into A")
    targets: str = Field(
        "both",
        pattern=r"^[\w.-]+(, ?[\w.-]+)*$",
        description="lora: which matrices get an adapter: attention, mlp or both of each block, all-linear, or names "
        "(q_proj, v_proj)",
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="share dropped inside the model; the model's own")
    lr: float | None = Field(
        None, gt=0, le=1, description="learning rate of Adam; lora 3e-4, else the course's: encoder 1e-4, causal 2e-5"
    )
    lr_schedule: schedule.Kind = Field("constant", description="of the rate; linear and cosine fall to 0")
    schedule_steps: int | None = Field(
        None,
        ge=1,
        description="linear, cosine: steps until the rate is 0, where a trial ends; the budget may grow",
    )
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="steps in which the rate rises from 0")
    precision: language.Precision = "fp32"
    gradient_checkpointing: bool = Field(
        False, description="compute blocks again in the backward pass: less memory, a third more time, the same numbers"
    )
    batch: int = Field(8, ge=1, le=4096, description="examples of a step, none twice: at most all there are")
    micro_batch: int = Field(4, ge=1, le=4096, description="examples at once, whose gradients are added up to a step's")
    early_stop: bool = Field(True, description="end at a row whose training accuracy reaches `stop_at`")
    stop_at: float | None = Field(
        None, gt=0, le=1, description="training accuracy to end at; babi and rooms .9, xsum .55, amazon .75, text: none"
    )
    eval_every_steps: int = Field(5, ge=1, description="steps from one validation to the next")
    eval_examples: language.EvalExamples = 125
    eval_batch: int = Field(16, ge=1, le=4096, description="examples at once where nothing is trained")
    max_new_tokens: int | None = Field(
        None, ge=1, le=10_000, description="tokens of an answer at most; babi and rooms 6, xsum 30, text 64"
    )

    @field_validator("method")
    @classmethod
    def _rank_is_bounded(cls, method: str) -> str:
        if int(method.partition("-")[2] or 1) > MOST_RANK:
            raise ValueError(f"the rank of lora is at most {MOST_RANK}")
        return method

    @field_validator("targets")
    @classmethod
    def _targets_are_no_typo(cls, targets: str) -> str:
        known = (*lora.OF_BLOCKS, lora.ALL_LINEAR)
        if targets not in known and (near := difflib.get_close_matches(targets, known, n=1, cutoff=0.76)):
            raise ValueError(f"expected {', '.join(known)} or names of matrices, got {targets!r}; write {near[0]!r}")
        return targets

    @model_validator(mode="after")
    def _own_text_is_told_apart(self) -> Self:
        language.check_own(self)
        return self

    @model_validator(mode="after")
    def _a_schedule_has_a_length(self) -> Self:
        if self.lr_schedule != "constant" and (self.schedule_steps is None or self.schedule_steps <= self.warmup_steps):
            raise ValueError(
                f"schedule_steps: expected more than warmup_steps ({self.warmup_steps}) with lr_schedule = "
                f"{self.lr_schedule}, got {self.schedule_steps}; set it, since the budget's steps may grow"
            )
        return self

    @model_validator(mode="after")
    def _answers_are_of_the_dataset(self) -> Self:
        if self.dataset == "text":
            return self  # the columns of the file say it
        if (self.classifies and self.dataset not in CLASSES) or (not self.classifies and self.dataset == "amazon"):
            raise ValueError(f"answers: babi and xsum have words, amazon classes, but got {self.answers}; leave it out")
        return self

    @model_validator(mode="after")
    def _custom_has_a_template(self) -> Self:
        language.check_template(self.prompt, self.template)
        return self

    @model_validator(mode="after")
    def _every_field_means_something(self) -> Self:
        if (self.dataset != "text" or self.answers is not None) and (meaningless := self._meaningless()):
            raise ValueError(meaningless)
        return self

    def _meaningless(self) -> str:
        """Which field does not count with these answers, in words; nothing where all do."""
        for name in OF_WORDS if self.classifies else OF_CLASSES:
            if (told := getattr(self, name)) != type(self).model_fields[name].default:
                kind = "words" if self.classifies else "classes"
                return f"{name}: answers must be {kind} for it to count, but got {told!r}; leave it out"
        return ""

    def resolved(self, labels: tuple[str, ...] | None) -> Self:
        """Say what the columns of one's own text leave open here; itself for another dataset. Raises SpecError."""
        if self.dataset != "text":
            return self
        answers = self.answers or ("words" if labels is None else "classes")
        if answers == "classes" and labels is None:
            raise SpecError(f"answers: expected labels for classes, got answers in words in {self.data}; leave it out")
        if answers == "words":
            language.check_labels(self.data, labels or ())
        labelled = answers == "words" and labels is not None and self.prompt is None
        changes = {"prompt": "custom", "template": self.template or language.LABEL_TEMPLATE} if labelled else {}
        config = self.model_copy(update={"answers": answers, **changes})
        if meaningless := config._meaningless():
            raise SpecError(meaningless)
        return config

    @property
    def classifies(self) -> bool:
        """Whether an encoder tells classes; else a causal model answers in words. Of one's own text once `resolved`."""
        assert self.dataset != "text" or self.answers is not None, "resolve it first"
        return self.answers == "classes" or (self.answers is None and self.dataset == "amazon")

    @property
    def texts(self) -> Texts:
        """Which texts the trial reads."""
        return Texts(self.dataset, self.data_seed, self.task, self.max_words, self.questions, self.data)

    @property
    def style(self) -> PromptStyle:
        """What stands between a text and its answer."""
        return language.style(self.dataset, self.prompt)

    @property
    def new_tokens(self) -> int:
        """How many tokens an answer in words may have."""
        return language.NEW_TOKENS[self.dataset] if self.max_new_tokens is None else self.max_new_tokens

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
        return (STOP_AT.get(self.dataset) if self.stop_at is None else self.stop_at) if self.early_stop else None

    def rate_of(self, step: int) -> float:
        """The learning rate of a step."""
        return self.rate * schedule.factor(
            step, kind=self.lr_schedule, warmup_steps=self.warmup_steps, schedule_steps=self.schedule_steps
        )

    @property
    def last_step(self) -> int | None:
        """The step behind which the rate is 0, if there is one."""
        return None if self.lr_schedule == "constant" else self.schedule_steps


_LOSS = Metric("min", 0.0, unit="nats")
METRICS: Mapping[str, Metric] = {
    "val_accuracy": SHARE,  # exact match of the greedy answer, or the class
    "val_rouge1": SHARE,  # F; of answers in words
    "val_score": SCORE,  # by a metric of one's own
    "val_loss": _LOSS,  # of a token of the true answer after those before it, or of an example's class
    "train_loss": _LOSS,  # of the step's own batch, before its update
    "train_accuracy": SHARE,  # of all examples: an answer's share of tokens that are right after the true ones
    "trained_parameters": Metric("min", 0.0, unit="numbers"),
    "test_accuracy": SHARE,
    "test_rouge1": SHARE,
    "test_score": SCORE,
    "test_loss": _LOSS,
}
