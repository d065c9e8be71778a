"""The tables of a study file: what may be searched, how, and what is spent on it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal, TypeGuard

from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from cs330ray.spec.strict import Strict, first_line
from cs330ray.words import short

MOST_STEPS = 2**31 - 1  # what a column of whole numbers holds


Number = StrictInt | StrictFloat


Scalar = StrictBool | Number | StrictStr


Value = Scalar | list[Scalar]


def _seconds(value: object) -> object:
    """Read "1h30m", "90s" or a number of seconds as seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", value)
        if not match or not value:
            raise ValueError('a time such as "2h", "90m", "1h30m" or "45s" is needed')
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(3600 * hours + 60 * minutes + seconds)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str), Field(gt=0)]


Processor = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Cap:
    """The most that a study may take of one kind of processor."""

    of: Processor
    seconds: float  # of one GPU, or of one CPU


COST = r"^(\d{1,9}(?:\.\d{1,6})?) *(gpu|cpu)-hours?$"


def _cost(value: object) -> object:
    """Read "20 gpu-hours" or "0.5 cpu-hours" in its one spelling."""
    match = re.fullmatch(COST, value) if isinstance(value, str) else None
    if match is None or not float(match[1]):
        raise ValueError(
            f'expected hours above 0 of GPU or CPU, such as "20 gpu-hours" or "0.5 cpu-hours", got {short(value)}'
        )
    hours = f"{float(match[1]):.15g}"
    return f"{hours} {match[2]}-{'hour' if hours == '1' else 'hours'}"


Cost = Annotated[str, BeforeValidator(_cost, json_schema_input_type=str), Field(pattern=COST)]


class Range(Strict):
    """Numbers from `low` to `high`, whole ones where all given numbers are whole."""

    low: Number
    high: Number
    log: bool = Field(False, description="by equal ratios; whole ends stay whole numbers")
    step: Number | None = Field(
        None, description="between values, from low; not with log: list the choices there, or search whole numbers"
    )
    when: dict[str, Value] | None = Field(None, description="only searched where these parameters have these values")

    @property
    def whole(self) -> bool:
        """Whether the range is one of integers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step) if number is not None)

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"`low < high` must hold, but got low={self.low}, high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"`low > 0` must hold on a log scale, but got low={self.low}")
        if self.step is not None and (self.step <= 0 or self.log):
            raise ValueError(
                f"`step > 0` without `log` must hold, but got step={self.step}, log={str(self.log).lower()}"
                + ("; on a log scale there are no steps: list the choices, or search whole numbers" * self.log)
            )
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"`high - low` must be a finite number, but got low={self.low}, high={self.high}")
        if self.step is None:
            return self
        if not self.whole and math.ulp(max(abs(self.low), abs(self.high))) > 1e-9 * self.step:
            raise ValueError(
                f"`step` must be far above the rounding of `low` and `high`, but got low={self.low}, high={self.high}, "
                f"step={self.step}"
            )
        if not _divides(self.step, self.low, self.high):
            raise ValueError(
                f"`step` must divide `high - low`, but got low={self.low}, high={self.high}, step={self.step}"
            )
        return self


def _divides(step: int | float, low: int | float, high: int | float) -> bool:
    """In decimals as written, as Optuna reckons: 0.1 divides 0.3, whatever their binary fractions do."""
    first, last, each = (Decimal(str(number)) for number in (low, high, step))
    return (last - first) % each == 0


def _single(value: object) -> object:
    """Refuse lists and tables among choices, with the way round."""
    for choice in value if isinstance(value, list) else ():
        if isinstance(choice, list | dict):
            raise ValueError(
                f"each choice is a text, a number, true or false, but got {short(choice)}; name it by a text that a "
                "validator of your Config turns into it"
            )
    return value


class Choice(Strict):
    """One of several values."""

    choices: Annotated[list[Scalar], BeforeValidator(_single, json_schema_input_type=list[Scalar])] = Field(
        min_length=1,
        description="texts, numbers, true or false; TOML has no null, and lists and tables are no choices: name each "
        "by a text that a validator of your Config turns into it",
    )
    when: dict[str, Value] | None = Field(None, description="only searched where these parameters have these values")

    @model_validator(mode="after")
    def _distinct(self) -> "Choice":
        if len(set(self.choices)) < len(self.choices):  # 1, 1.0 and true are one choice to Optuna
            raise ValueError(f"the choices must differ, but got {short(self.choices)}")
        return self


def _domain(value: object) -> object:
    """Read a bare list as a Choice."""
    return {"choices": value} if isinstance(value, list) else value


def search_tables(value: object) -> object:
    """Read [search.NAME] with neither `low` nor `choices` as the table of one trainable."""
    if not isinstance(value, dict):
        return value
    return {key: _space(key, item) if _is_table(item) else _parse_domain(key, item) for key, item in value.items()}


def _is_table(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict) and not {"low", "high", "choices"} & set(value)


def _space(trainable: str, table: dict[str, object]) -> object:
    return {key: _parse_domain(f"{trainable}.{key}", item) for key, item in table.items()}


def _parse_domain(place: str, value: object) -> object:
    """A Range or a Choice; which one is told by its keys, so that an error speaks of the one that was meant."""
    domain = _domain(value)
    if not isinstance(domain, dict):
        raise ValueError(
            f"{place}: a list of choices or a table with `low` and `high` is needed, but got {short(value)}"
        )
    try:
        return Choice.model_validate(domain) if "choices" in domain else Range.model_validate(domain)
    except ValidationError as error:
        raise ValueError(first_line(error, place)) from None


Domain = Range | Choice


Space = dict[str, Domain | dict[str, Domain]]


WrittenDomain = list[Scalar] | Domain  # as a file may write it


WrittenSpace = dict[str, WrittenDomain | dict[str, WrittenDomain]]


class Sampler(Strict):
    """How Optuna searches. A study keeps what it began with, whatever the defaults become: `growth.as_recorded`."""

    kind: Literal["tpe", "gp", "random", "qmc", "nsga2"] = Field(
        "gp",  # for studies that begin: the best at 16 trials by benchmarks/samplers.py
        description="gp by default; tpe where gp learns less, or was not measured: with pruning, conditions, several "
        "objectives, or more than 32 trials",
    )
    startup: int = Field(4, ge=1, description="tpe, gp: trials drawn before the model is used")
    population: int = Field(8, ge=2, description="nsga2: trials per generation")


class Prune(Strict):
    """When a trial is ended early."""

    kind: Literal["asha", "median", "none"] = "none"
    min_steps: int = Field(100, ge=1, description="the first rung, and the unit of all later ones, in outer steps")
    reduction: int = Field(3, ge=2, description="asha: one in `reduction` goes on from each rung (the paper's eta)")
    startup: int = Field(4, ge=1, description="median: COMPLETE trials needed before any is pruned")


def _counted(value: object) -> object:
    """Read 1e3, which TOML has for a real number, as 1000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_counted, json_schema_input_type=int)]


class Budget(Strict):
    """What may grow without making it another study."""

    trials: Count = Field(ge=1, le=1_000_000, description="per cell; failed ones count")
    steps: Count = Field(ge=1, le=MOST_STEPS, description="outer steps per trial")
    time: Seconds | None = Field(None, description="of the search, all sessions together; may change")
    cost: Cost | None = Field(
        None,
        description='such as "20 gpu-hours" or "0.5 cpu-hours": of search, confirmation and tests, all sessions '
        "together; may change",
    )
    fail_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="the study stops when this share of its trials has ended and all failed; may change",
    )

    @property
    def cap(self) -> Cap | None:
        """The cost as seconds of one GPU or CPU, None where there is no bound."""
        match = re.fullmatch(COST, self.cost or "")
        return None if match is None else Cap("gpu" if match[2] == "gpu" else "cpu", 3600 * float(match[1]))


class Resources(Strict):
    """What one trial gets."""

    cpus: float = Field(1.0, ge=0.01)
    gpus: float = Field(0.0, ge=0, description="where there are GPUs; without, 0, and the first line says so")
    workers: int = Field(1, ge=1, description="processes per trial, data parallel")
    fuse: int = Field(
        1, ge=1, le=64, description="trials that no model chose train as one computation, with equal numbers; on a CPU"
    )
    require_gpu: bool = False
    slots: int | None = Field(None, ge=1, description="trials at once; default: as many as fit")
    memory: float | None = Field(None, gt=0, description="GiB, child processes included; beyond it a trial fails")
    silence: Seconds | None = Field(
        None, description="a trial that has no row for so long fails as silent, and its worker is ended; default: never"
    )
    keep: int = Field(5, ge=0, description="the best COMPLETE trials of each cell whose last checkpoint is kept")
    checkpoint: Seconds = Field(30.0, description="seconds of training between two checkpoints of a trial")


class Confirm(Strict):
    """How the best are confirmed on fresh seeds and the test set."""

    top: int | None = Field(
        None, ge=1, description="per cell, of COMPLETE trials; default: 3, with several objectives the whole front"
    )
    seeds: int = Field(
        5, ge=1, le=1000, description="fresh ones, the same for all; each is trained, validated and tested"
    )
    bounds: dict[str, Number] = Field(
        {}, description="several objectives: the first chooses among those whose mean validation keeps these bounds"
    )

    def most(self, objectives: int) -> int | None:
        """How many trials of a cell are confirmed at most; None is the whole front."""
        return 3 if self.top is None and objectives == 1 else self.top


class Repeat(Strict):
    """How often the whole search is done again: replicates, over which the cells are compared."""

    searches: int = Field(1, ge=1, le=100, description="searches of every cell, each with its own draws and seeds")
    split: str | None = Field(
        None, description="the integer parameter that seeds the split of the data; replicate r takes its value + r"
    )


def applies(domain: Domain, values: Mapping[str, object]) -> bool:
    """Whether a conditional parameter is searched, given the values so far."""
    return all(
        key in values and (values[key] in wanted if isinstance(wanted, list) else values[key] == wanted)
        for key, wanted in (domain.when or {}).items()
    )
