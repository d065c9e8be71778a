"""The hyperparameters of in-context learning, what they mean together, and the metrics of its trials."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cs330ray.course.learners.incontext import Ordering
from cs330ray.course.learners.prompts import Asking, PromptStyle
from cs330ray.course.systems import language
from cs330ray.course.systems.language import SCORE, SHARE, Texts
from cs330ray.errors import SpecError
from cs330ray.trial.contract import Metric

AMAZON_TEMPLATE = "{text} Stars, from 1 to 5:"


class Config(BaseModel):
    """Every hyperparameter of an in-context trial, with its bounds, default and unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    LATER: ClassVar[frozenset[str]] = frozenset({"chat", "data", "metric", "precision"})  # than version 0.1.0

    dataset: language.Dataset = "babi"
    data: language.Data = None
    task: language.Task = 1
    questions: language.Questions = "all"
    data_seed: language.DataSeed = 0
    max_words: language.MaxWords = None
    model: language.Model = "smollm2-135m"
    prompt: PromptStyle | None = Field(
        None,
        description="what stands between a text and its answer; babi and rooms qa, xsum tldr, amazon its own template",
    )
    template: language.Template = None
    chat: language.ChatField = False
    metric: language.MetricName = None
    precision: language.Precision = "fp32"
    shots: int = Field(16, ge=0, le=10_000, description="examples in the prompt; amazon and labels: of each class")
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
    eval_examples: language.EvalExamples = 125
    eval_batch: int = Field(8, ge=1, le=4096, description="questions at once")
    max_new_tokens: int | None = Field(
        None, ge=1, le=10_000, description="tokens of an answer at most; xsum 30, text 64, else 6"
    )

    @model_validator(mode="after")
    def _own_text_is_told_apart(self) -> Self:
        language.check_own(self)
        if self.chat and self.ordering != "seed":
            raise ValueError(f"ordering: a conversation has none but seed, but got {self.ordering}; set chat = false")
        return self

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
        return Texts(self.dataset, self.data_seed, self.task, self.max_words, self.questions, self.data)

    def resolved(self, labels: tuple[str, ...] | None) -> Self:
        """Say what the columns of one's own text leave open here; itself for another dataset. Raises SpecError."""
        if self.dataset != "text":
            return self
        if labels is None and self.ordering != "seed":
            raise SpecError(
                f"ordering: expected seed, since answers in words are no set to be uncertain of, "
                f"got {self.ordering}; leave it out"
            )
        language.check_labels(self.data, labels or ())
        if labels is None or self.prompt is not None:
            return self
        changes = {"prompt": "custom", "template": self.template or language.LABEL_TEMPLATE}
        return self.model_copy(update=changes)

    @property
    def has_classes(self) -> bool:
        """Whether the answers are classes, stars or labels of one's own, of which as many are shown of each."""
        return self.dataset == "amazon" or self.texts.labels is not None

    @property
    def new_tokens(self) -> int:
        """Tokens of an answer at most."""
        return self.max_new_tokens or language.NEW_TOKENS[self.dataset]


METRICS: Mapping[str, Metric] = {
    "val_accuracy": SHARE,  # exact match, of the questions answered so far
    "val_rouge1": SHARE,  # F; amazon and labels have none
    "val_score": SCORE,  # by a metric of one's own
    "shots_used": Metric("max", 0.0, unit="examples"),
    "prompt_tokens": Metric("min", 0.0, unit="tokens"),  # of the questions answered so far, their examples included
    "ordering_entropy": Metric("max", 0.0, unit="nats"),  # that spoke for the ordering, where one did
    "test_accuracy": SHARE,
    "test_rouge1": SHARE,
    "test_score": SCORE,
    "test_shots_used": Metric("max", 0.0, unit="examples"),
}
