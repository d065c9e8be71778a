"""A study is a file: the typed TOML question, its cells, its identity, and what may grow.

Neither Ray nor torch is known here; whether a trainable has a parameter or a metric is checked by `service.trainables`.
"""

import difflib
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from cs330ray.errors import SpecError
from cs330ray.words import short

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
RESERVED = ("alone", "artifacts")  # folders of the home
IDENTITY = ("name", "trainable", "objective", "seed", "fixed", "search", "sampler", "prune")
DEEPEST = 8  # tables and lists within each other; a study has four
LARGEST = 2**63 - 1  # of TOML's whole numbers
MOST_CELLS = 1000
LONGEST_KEY = 100  # characters of a name in a file
LONGEST_CELL = 400  # characters of a cell's key; with the study's name they are a column of 512
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


class Strict(BaseModel):
    """A frozen table that refuses unknown keys, wrong types and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Range(Strict):
    """Numbers from `low` to `high`, whole ones where all given numbers are whole."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None
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


class Choice(Strict):
    """One of several values."""

    choices: list[Scalar] = Field(min_length=1)
    when: dict[str, Value] | None = Field(None, description="only searched where these parameters have these values")

    @model_validator(mode="after")
    def _distinct(self) -> "Choice":
        if len(set(self.choices)) < len(self.choices):  # 1, 1.0 and true are one choice to Optuna
            raise ValueError(f"the choices must differ, but got {short(self.choices)}")
        return self


def _domain(value: object) -> object:
    """Read a bare list as a Choice."""
    return {"choices": value} if isinstance(value, list) else value


def _tables(value: object) -> object:
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
        raise ValueError(_first_line(error, place)) from None


Domain = Range | Choice
Space = dict[str, Domain | dict[str, Domain]]
WrittenDomain = list[Scalar] | Domain  # as a file may write it
WrittenSpace = dict[str, WrittenDomain | dict[str, WrittenDomain]]


class Sampler(Strict):
    """How Optuna searches."""

    kind: Literal["tpe", "random", "qmc", "nsga2"] = "tpe"
    startup: int = Field(4, ge=1, description="tpe: trials drawn at random before the model is used")
    population: int = Field(8, ge=2, description="nsga2: trials per generation")


class Prune(Strict):
    """When a trial is ended early."""

    kind: Literal["asha", "median", "none"] = "none"
    min_steps: int = Field(100, ge=1, description="the first rung, and the unit of all later ones, in outer steps")
    reduction: int = Field(3, ge=2, description="asha: one in `reduction` goes on from each rung (the paper's eta)")
    startup: int = Field(4, ge=1, description="median: COMPLETE trials needed before any is pruned")


class Budget(Strict):
    """What may grow without making it another study."""

    trials: int = Field(ge=1, le=1_000_000, description="per cell; failed ones count")
    steps: int = Field(ge=1, le=MOST_STEPS, description="outer steps per trial")
    time: Seconds | None = Field(None, description="whole study; no trial starts after it")
    fail_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="the study stops when this share of its trials has ended and all failed; may change",
    )


class Resources(Strict):
    """What one trial gets."""

    cpus: float = Field(1.0, ge=0.01)
    gpus: float = Field(0.0, ge=0, description="where there are GPUs; without, 0, and the first line says so")
    workers: int = Field(1, ge=1, description="processes per trial, data parallel")
    require_gpu: bool = False
    slots: int | None = Field(None, ge=1, description="trials at once; default: as many as fit")
    memory: float | None = Field(None, gt=0, description="GiB; a trial that holds more fails as out of memory")
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


@dataclass(frozen=True)
class Cell:
    """One combination of the compared values; its key is its canonical JSON, never an index.

    A cell under one of confirmation's fresh seeds is a cell of its own, with a key that no search has.
    """

    key: str
    values: Mapping[str, Value]
    trainable: str
    fixed: Mapping[str, Value]  # [fixed] and the compared values, without `trainable`
    space: Mapping[str, Domain]
    fresh: int | None = None  # which of the fresh seeds; None in a search

    @property
    def title(self) -> str:
        """The cell in words: `inner_steps=1 body=pooled`; `all` where nothing is compared."""
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or "all"

    def under(self, fresh: int) -> "Cell":
        """The cell under fresh seed number `fresh`."""
        return replace(self, key=f"{self.key} fresh {fresh}", fresh=fresh)

    @property
    def searched(self) -> "Cell":
        """The cell of the search that this one, under a fresh seed, belongs to."""
        return replace(self, key=self.key.removesuffix(f" fresh {self.fresh}"), fresh=None)


class Study(Strict):
    """A question, and what may be spent on its answer."""

    name: str = Field(pattern=NAME)
    question: str | None = Field(None, description="what the study asks, for its report; may change")
    trainable: str | None = Field(None, description="a system of cs330ray, or package.module of your own")
    objective: list[str] = Field(min_length=1)
    seed: int = Field(0, ge=0)
    fixed: dict[str, Value | dict[str, Value]] = {}
    compare: dict[str, list[Scalar]] = {}
    search: Annotated[Space, BeforeValidator(_tables, json_schema_input_type=WrittenSpace)] = {}
    sampler: Sampler = Sampler()
    prune: Prune = Prune()
    budget: Budget
    resources: Resources = Resources()
    confirm: Confirm | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "Study":
        for problem in _incoherent(self):
            raise ValueError(problem)
        return self

    @property
    def cells(self) -> list[Cell]:
        """Every combination of the compared values, in the order of the file."""
        combinations = itertools.product(*self.compare.values())
        return [self._cell(dict(zip(self.compare, values, strict=True))) for values in combinations]

    def _cell(self, values: dict[str, Scalar]) -> Cell:
        trainable = str(values.get("trainable", self.trainable))
        fixed = {key: value for key, value in self.fixed.items() if not isinstance(value, dict)}
        space = {key: domain for key, domain in self.search.items() if not isinstance(domain, dict)}
        own_fixed, own_space = self.fixed.get(trainable, {}), self.search.get(trainable, {})
        fixed |= own_fixed if isinstance(own_fixed, dict) else {}
        space |= own_space if isinstance(own_space, dict) else {}
        fixed |= {key: value for key, value in values.items() if key != "trainable"}
        return Cell(canonical(values), values, trainable, fixed, space)

    @property
    def digest(self) -> str:
        """The study's identity: what, when changed, makes it another study."""
        identity = {key: value for key, value in self.model_dump(mode="json").items() if key in IDENTITY}
        return hashlib.sha256(canonical(identity).encode()).hexdigest()

    def trainables(self) -> list[str]:
        """The names of the trainables that take part."""
        return list(dict.fromkeys(cell.trainable for cell in self.cells))


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _incoherent(study: Study) -> Iterator[str]:
    if study.resources.workers > 1 and study.resources.gpus % 1:
        yield (
            f"resources.gpus: each of workers={study.resources.workers} needs whole GPUs, "
            f"but got {study.resources.gpus:g}; write 1"
        )
    if study.name in RESERVED or study.name.startswith(("ledger.db", "mlflow.db")):
        yield f"name: the home keeps files of its own under {study.name!r}; choose another"
    compared = study.compare.get("trainable")
    if (study.trainable is None) == (compared is None):
        yield "trainable: exactly one of `trainable` and `compare.trainable` is needed; remove or add one"
        return
    if compared and not all(isinstance(name, str) for name in compared):
        yield f"compare.trainable: names are needed, but got {short(compared)}"
        return
    if len(set(study.objective)) < len(study.objective):
        yield f"objective: the metrics must differ, but got {short(study.objective)}"
    for name, values in study.compare.items():
        if not values or len({json.dumps(value) for value in values}) < len(values):
            yield f"compare.{name}: at least one value, each once, is needed, but got {short(values)}"
            return
    if (cells := math.prod(map(len, study.compare.values()))) > MOST_CELLS:
        yield f"compare: at most {MOST_CELLS} combinations are needed, but got {cells}; search some, or ask two studies"
        return
    if longest := [cell.key for cell in study.cells if len(cell.key) > LONGEST_CELL]:
        yield f"compare: a cell's values have at most {LONGEST_CELL} characters, but got {short(longest[0])}"
    for name in study.compare:
        if any(name == key or (_nested(value) and name in value) for key, value in study.fixed.items()):
            yield f"compare.{name}: a parameter stands in one table only, but it is in [fixed] too; remove one"
    tables = [
        (where, key) for where in ("fixed", "search") for key, value in getattr(study, where).items() if _nested(value)
    ]
    for where, name in tables:
        if name not in study.trainables():
            yield f"{where}.{name}: a table here must name a trainable of the study ({', '.join(study.trainables())})"
    if len(study.objective) > 1 and study.prune.kind != "none":
        yield f'prune.kind: several objectives cannot be pruned, but got {study.prune.kind!r}; write kind = "none"'
    if study.sampler.kind == "nsga2" and len(study.objective) < 2:
        yield "sampler.kind: nsga2 needs two objectives or more; use tpe"
    if study.resources.gpus > 1 and study.resources.gpus != int(study.resources.gpus):
        yield f"resources.gpus: more than one GPU must be a whole number, but got {study.resources.gpus}"
    for name in study.confirm.bounds if study.confirm else ():
        if len(study.objective) < 2 or name not in study.objective:
            yield f"confirm.bounds.{name}: a bound is for one of several objectives, but they are {study.objective}"
    for cell in study.cells:
        yield from _incoherent_cell(study, cell)


def _nested(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _incoherent_cell(study: Study, cell: Cell) -> Iterator[str]:
    for name in cell.space:
        if name in cell.fixed:
            where = "compare" if name in cell.values else "fixed"
            yield f"search.{name}: a parameter stands in one table only, but it is in [{where}] too; remove one"
    known: list[str] = []
    for name, domain in cell.space.items():
        for key in domain.when or {}:
            if key not in known and key not in cell.fixed:
                yield f"search.{name}.when: {key!r} must be fixed, compared or searched before {name}; move it up"
        if domain.when and study.sampler.kind == "qmc":
            yield f"search.{name}.when: qmc has no conditional parameters; use tpe or random"
        known.append(name)


def applies(domain: Domain, values: Mapping[str, object]) -> bool:
    """Whether a conditional parameter is searched, given the values so far."""
    return all(
        key in values and (values[key] in wanted if isinstance(wanted, list) else values[key] == wanted)
        for key, wanted in (domain.when or {}).items()
    )


# Reading ---------------------------------------------------------------------------------------------------------


def read(path: Path, overrides: Sequence[str] = (), fork: str | None = None) -> Study:
    """Read a study file, with `--set` overrides such as "budget.trials=32"; the study. Raises SpecError."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SpecError(
            f"{path}: a study file must be readable, but {reason}; `ls studies/` shows those that come with it"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError of Python's own
        raise SpecError(f"{path}: a study file must be TOML, but {str(error)[:200]}; mend that place") from None
    for override in overrides:
        _override(raw, override)
    if fork is not None:
        raw["name"] = fork
    return parse(raw, str(path))


def parse(raw: Mapping[str, Any], source: str) -> Study:
    """Check a study given as plain tables; the study. Raises SpecError in one line that begins with `source`."""
    for problem in _boundless(raw):
        raise SpecError(f"{source}: {problem}")
    try:
        return Study.model_validate(dict(raw))
    except ValidationError as error:
        more = len(_by_value(error)) - 1
        suffix = f" (and {more} more)" if more else ""
        raise SpecError(f"{source}: {_first_line(error)}{suffix}") from None


def _boundless(value: object, place: tuple[str, ...] = ()) -> Iterator[str]:
    """What no study has: tables without end, whole numbers beyond 64 bits, endless names."""
    where = ".".join(place)
    if isinstance(value, int) and abs(value) > LARGEST:
        yield f"{where}: `-2**63 < value < 2**63` must hold of whole numbers, but got one of {value.bit_length()} bits"
    if isinstance(value, Mapping | list) and len(place) >= DEEPEST:
        yield f"{where}: at most {DEEPEST} tables and lists in each other are needed, but got more; flatten them"
        return
    for key, inner in enumerate(value) if isinstance(value, list) else _items(value):
        name = str(key)
        if len(name) > LONGEST_KEY:
            yield f"{'.'.join([*place, short(name)])}: a name has at most {LONGEST_KEY} characters; shorten it"
        elif isinstance(inner, int | Mapping | list):
            yield from _boundless(inner, (*place, name))


def _items(value: object) -> Iterable[tuple[object, object]]:
    return value.items() if isinstance(value, Mapping) else ()


def _override(raw: dict[str, Any], override: str) -> None:
    place, equals, text = override.partition("=")
    keys = place.strip().split(".")
    if not equals or not all(keys):
        raise SpecError(f"--set {override}: `table.key=value` is needed; for example --set budget.trials=32")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    table = raw
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise SpecError(f"--set {override}: {key!r} is a value and holds no keys; name a table")
    table[keys[-1]] = value


def _by_value(error: ValidationError) -> dict[tuple[str, ...], list[ErrorDetails]]:
    """The errors by the place of the wrong value: a union complains once a member, and of a table and its contents."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for one in error.errors(include_url=False):
        place = tuple(str(part) for part in one["loc"] if not _is_union_tag(part))
        found.setdefault(place, []).append(one)
    outer = {place[:length] for place in found for length in range(len(place))}
    return {place: errors for place, errors in found.items() if place not in outer}


def _first_line(error: ValidationError, within: str = "") -> str:
    keys, errors = next(iter(_by_value(error).items()))
    first = errors[0]
    place = ".".join([within, *keys] if within else keys)
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_suggestion(error.title, first['loc'])}; remove it or mend its name"
    elif first["type"] == "missing":
        message = "this key is needed; add it"
    elif first["loc"] and _is_union_tag(first["loc"][-1]):
        wanted = "text, a finite number, true or false" if len(errors) > 2 else "a finite number"
        message = f"{wanted} is needed, but got {short(first['input'])}"
    elif first["type"] in ("model_type", "dict_type"):
        message = f"a table is needed, but got {short(first['input'])}"
    elif first["type"] != "value_error":
        message = f"{message[:1].lower()}{message[1:]}, but got {short(first['input'])}"
    if place == "search" and first["type"] == "value_error":
        return f"{place}.{message}"
    return f"{place}: {message}" if place else message


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and bool(re.search(r"[\[(]|^(bool|int|float|str|function-.*|Range|Choice)$", part))


def _suggestion(title: str, place: tuple[int | str, ...]) -> str:
    tables = (Study, Range, Choice, Sampler, Prune, Budget, Resources, Confirm)
    wanted = title if len(place) == 1 else str(place[-2]).capitalize()
    model = next((table for table in tables if table.__name__ == wanted), None)
    if model is None:
        return ""
    near = difflib.get_close_matches(str(place[-1]), model.model_fields, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(model.model_fields)})"
