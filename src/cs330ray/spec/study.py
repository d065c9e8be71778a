"""A study is a file: the typed TOML question, its cells, its identity, and what may grow.

Neither Ray nor torch is known here; whether a trainable has a parameter or a metric is checked by `service.trainables`.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, TypeGuard

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from cs330ray.spec.strict import Strict
from cs330ray.spec.tables import (
    Budget,
    Choice,
    Confirm,
    Domain,
    Prune,
    Resources,
    Sampler,
    Scalar,
    Space,
    Value,
    WrittenSpace,
    search_tables,
)
from cs330ray.words import short

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
RESERVED = ("alone", "artifacts")  # folders of the home
IDENTITY = ("name", "trainable", "objective", "seed", "fixed", "search", "sampler", "prune")
MOST_CELLS = 1000
LONGEST_CELL = 400  # characters of a cell's key; with the study's name they are a column of 512


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
    fixed: dict[str, Value | dict[str, Value]] = Field({})
    compare: dict[str, list[Scalar]] = Field({})
    search: Annotated[Space, BeforeValidator(search_tables, json_schema_input_type=WrittenSpace)] = Field({})
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
    yield from _misplaced(study)
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


def _misplaced(study: Study) -> Iterator[str]:
    """Yield what is wrong with parameters that stand in two tables, or under a name that is no trainable."""
    for name in study.compare:
        if any(name == key or (_nested(value) and name in value) for key, value in study.fixed.items()):
            yield f"compare.{name}: a parameter stands in one table only, but it is in [fixed] too; remove one"
    tables = [
        (where, key) for where in ("fixed", "search") for key, value in getattr(study, where).items() if _nested(value)
    ]
    for where, name in tables:
        if name not in study.trainables():
            yield f"{where}.{name}: a table here must name a trainable of the study ({', '.join(study.trainables())})"


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


# Reading ---------------------------------------------------------------------------------------------------------


SEED_BITS = 31


def trial_seed(study_seed: int, number: int) -> int:
    """The training seed of draw `number`, the same in every cell: common random numbers."""
    return hashed(study_seed, number)


def fresh_seed(study_seed: int, index: int) -> int:
    """Seed number `index` of confirmation, the same for every candidate of every cell."""
    return hashed("confirm", study_seed, index)


def hashed(*parts: object) -> int:
    """A seed that is a pure function of `parts`."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - SEED_BITS)


def first_values(cell: Cell) -> dict[str, object]:
    """A first point of a cell's unconditional space."""
    return {
        name: domain.choices[0] if isinstance(domain, Choice) else domain.low
        for name, domain in cell.space.items()
        if not domain.when
    }
