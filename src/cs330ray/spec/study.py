"""A study is a file: the typed TOML question, its cells, its identity, and what may grow.

Neither Ray nor torch is known here; whether a trainable has a parameter or a metric is checked by `service.trainables`.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeGuard

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from cs330ray.spec.command import Command, is_function, is_own_process, problems
from cs330ray.spec.strict import Strict
from cs330ray.spec.tables import (
    Budget,
    Choice,
    Confirm,
    Domain,
    Prune,
    Repeat,
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
IDENTITY = ("name", "trainable", "objective", "seed", "fixed", "search", "sampler", "prune")
MOST_CELLS = 1000
MOST_OF_GP = 250  # trials of a search: its model of all of them is fitted for each ask
MOST_BY_DEFAULT = 32  # trials for which gp was measured to be the best; an ask takes a second and more after 50
NESTED = "a parameter is one field of Config, not one of a model within it; add a field, such as optimizer_lr"
LONGEST_CELL = 400  # characters of a cell's key; with the study's name they are a column of 512


@dataclass(frozen=True)
class Cell:
    """One combination of the compared values; its key is its canonical JSON, never an index.

    A cell's search in a further replicate is a cell of its own, and so is one under one of confirmation's fresh seeds:
    they have keys that no other search has.
    """

    key: str
    values: Mapping[str, Value]
    trainable: str
    fixed: Mapping[str, Value]  # [fixed] and the compared values, without `trainable`
    space: Mapping[str, Domain]
    replicate: int = 0  # which search of the same values
    fresh: int | None = None  # which of the fresh seeds; None in a search
    command: Command | None = None  # how its trainable is started, where that is a process of its own
    quoted: bool = False  # whether its title quotes texts: those of two cells would be the same without

    @property
    def title(self) -> str:
        """What is compared, in words: `inner_steps=1 body=pooled`; `all` where nothing is compared."""
        said = json.dumps if self.quoted else str
        return " ".join(f"{key}={said(value)}" for key, value in self.values.items()) or "all"

    @property
    def label(self) -> str:
        """The title, with the replicate where it is not the first."""
        return f"{self.title}, replicate {self.replicate}" if self.replicate else self.title

    def again(self, replicate: int, split: str | None) -> "Cell":
        """The cell in replicate number `replicate`, on a split of its own where `split` names the split's seed."""
        if replicate == 0:
            return self
        fixed = dict(self.fixed)
        if split is not None:
            seed = fixed[split]
            assert isinstance(seed, int)
            fixed[split] = seed + replicate
        return replace(self, key=f"{self.key} replicate {replicate}", fixed=fixed, replicate=replicate)

    def under(self, fresh: int) -> "Cell":
        """The cell under fresh seed number `fresh`."""
        return replace(self, key=f"{self.key} fresh {fresh}", fresh=fresh)

    @property
    def searched(self) -> "Cell":
        """The cell of the search that this one, under a fresh seed, belongs to."""
        return replace(self, key=self.key.removesuffix(f" fresh {self.fresh}"), fresh=None)


def _start(value: object) -> object:
    """Refuse a start that is neither a table nor "default"."""
    if value != "default" and not isinstance(value, dict):
        raise ValueError(f'expected "default" or a table such as {{ inner_lr = 0.1 }}, got {short(value)}')
    return value


def _listed(value: object) -> object:
    """Read one objective as a list of it."""
    return [value] if isinstance(value, str) else value


class Study(Strict):
    """A question, and what may be spent on its answer."""

    name: str = Field(pattern=NAME)
    question: str | None = Field(None, description="what the study asks, for its report; may change")
    trainable: str | None = Field(
        None, description='a system of cs330ray, package.module, "command", or a function of a file: train.py:train'
    )
    objective: Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=list[str] | str)] = Field(
        min_length=1
    )
    seed: int = Field(0, ge=0)
    fixed: dict[str, Value | dict[str, Value]] = Field({})
    compare: dict[str, list[Scalar]] = Field({})
    search: Annotated[Space, BeforeValidator(search_tables, json_schema_input_type=WrittenSpace)] = Field({})
    sampler: Sampler = Sampler()
    prune: Prune = Prune()
    budget: Budget
    resources: Resources = Resources()
    confirm: Confirm | None = None
    repeat: Repeat = Repeat()
    command: Command | None = None
    start: list[Annotated[Literal["default"] | dict[str, Scalar], BeforeValidator(_start)]] = Field(
        [], description='configurations that every search tries first; "default" is that of Config'
    )

    @model_validator(mode="after")
    def _settled(self) -> "Study":
        """Take tpe where the file names no sampler, and gp is not known to be better."""
        if "kind" not in self.sampler.model_fields_set and not _suits_gp(self):
            given = self.sampler.model_fields_set
            settled = Sampler.model_construct(_fields_set=given, **self.sampler.model_dump() | {"kind": "tpe"})
            object.__setattr__(self, "sampler", settled)  # a frozen table, which is not finished
        return self

    @model_validator(mode="after")
    def _coherent(self) -> "Study":
        for problem in _incoherent(self):
            raise ValueError(problem)
        return self

    @property
    def compared(self) -> list[Cell]:
        """Every combination of the compared values, in the order of the file: the cells of replicate 0.

        Each has a title of its own, which tables and commands know it by.
        """
        combinations = itertools.product(*self.compare.values())
        cells = [self._cell(dict(zip(self.compare, values, strict=True))) for values in combinations]
        if len({cell.title for cell in cells}) == len(cells):
            return cells
        return [replace(cell, quoted=True) for cell in cells]

    def replicate(self, number: int) -> list[Cell]:
        """The cells of one replicate, in the order of the file."""
        return [cell.again(number, self.repeat.split) for cell in self.compared]

    @property
    def cells(self) -> list[Cell]:
        """Every search of the study: the cells of all replicates, one replicate after the other."""
        return [cell for number in range(self.repeat.searches) for cell in self.replicate(number)]

    @property
    def searched(self) -> list[str]:
        """The names of the parameters that any cell searches."""
        return sorted({name for cell in self.compared for name in cell.space})

    @property
    def unit(self) -> Literal["replicate", "split", "seed"]:
        """What every cell is done again in, so that cells are paired: fresh seeds where there are no replicates."""
        if self.searched:
            return "replicate"
        return "seed" if self.repeat.split is None else "split"

    def _cell(self, values: dict[str, Scalar]) -> Cell:
        trainable = str(values.get("trainable", self.trainable))
        fixed = {key: value for key, value in self.fixed.items() if not isinstance(value, dict)}
        space = {key: domain for key, domain in self.search.items() if not isinstance(domain, dict)}
        own_fixed, own_space = self.fixed.get(trainable, {}), self.search.get(trainable, {})
        fixed |= own_fixed if isinstance(own_fixed, dict) else {}
        space |= own_space if isinstance(own_space, dict) else {}
        fixed |= {key: value for key, value in values.items() if key != "trainable"}
        command = self.command if is_own_process(trainable) else None
        return Cell(canonical(values), values, trainable, fixed, space, command=command)

    @property
    def digest(self) -> str:
        """The study's identity: what, when changed, makes it another study."""
        dumped = self.model_dump(mode="json")
        identity = {key: value for key, value in dumped.items() if key in IDENTITY}
        if self.repeat.split is not None:  # what came later counts where it is used: older digests stay
            identity["split"] = self.repeat.split
        if self.start:
            identity["start"] = dumped["start"]
        if self.command is not None:
            identity["command"] = self.command.identity
        return hashlib.sha256(canonical(identity).encode()).hexdigest()

    def trainables(self) -> list[str]:
        """The names of the trainables that take part."""
        return list(dict.fromkeys(cell.trainable for cell in self.compared))


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _suits_gp(study: Study) -> bool:
    """Whether a study is one of those for which gp was measured: it learns nothing from pruned trials or conditions."""
    tables = [each if isinstance(each, dict) else {"": each} for each in study.search.values()]  # cells may be too many
    is_conditional = any(domain.when for table in tables for domain in table.values())
    is_small = study.budget.trials <= MOST_BY_DEFAULT
    is_plain = study.prune.kind == "none" and len(study.objective) == 1
    return bool(tables) and is_small and is_plain and not is_conditional


def _incoherent(study: Study) -> Iterator[str]:
    if study.resources.workers > 1 and study.resources.gpus % 1:
        yield (
            f"resources.gpus: each of workers={study.resources.workers} needs whole GPUs, "
            f"but got {study.resources.gpus:g}; write 1"
        )
    if study.resources.workers > 1 and study.resources.fuse > 1:
        yield (
            f"resources.fuse: one process trains several trials together, but got fuse={study.resources.fuse} with "
            f"workers={study.resources.workers}; write 1 for one of them"
        )
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
    if longest := [cell.key for cell in study.compared if len(cell.key) > LONGEST_CELL]:
        yield f"compare: a cell's values have at most {LONGEST_CELL} characters, but got {short(longest[0])}"
    yield from _misplaced(study)
    if len(study.objective) > 1 and study.prune.kind != "none":
        yield f'prune.kind: several objectives cannot be pruned, but got {study.prune.kind!r}; write kind = "none"'
    if study.sampler.kind == "nsga2" and len(study.objective) < 2:
        yield "sampler.kind: nsga2 needs two objectives or more; use tpe"
    if study.resources.gpus > 1 and study.resources.gpus != int(study.resources.gpus):
        yield f"resources.gpus: more than one GPU must be a whole number, but got {study.resources.gpus}"
    if (cap := study.budget.cap) is not None and cap.of == "gpu" and not study.resources.gpus:
        yield (
            f"budget.cost: expected trials that take a GPU, but resources.gpus is 0, got {study.budget.cost!r}; write "
            "cpu-hours, or give trials a GPU"
        )
    for name in study.confirm.bounds if study.confirm else ():
        if len(study.objective) < 2 or name not in study.objective:
            yield f"confirm.bounds.{name}: a bound is for one of several objectives, but they are {study.objective}"
    if study.sampler.kind == "gp" and study.budget.trials > MOST_OF_GP:
        yield (
            f"sampler.kind: expected at most {MOST_OF_GP} trials with gp, which slows with each, got "
            f"{study.budget.trials}; begin a study with tpe, such as by `--fork NAME`"
        )
    if study.start and not study.searched:
        yield "start: expected something to search, got no [search]; remove it"
    for cell in study.compared:
        yield from _incoherent_cell(study, cell)
    yield from _not_repeatable(study)
    yield from _not_to_be_started(study)


def _not_repeatable(study: Study) -> Iterator[str]:
    """Yield why a study cannot be done again in replicates."""
    searches, split = study.repeat.searches, study.repeat.split
    if (searches > 1 or split is not None) and study.confirm is None:
        yield "repeat: replicates are compared by what confirmation gives, but there is no [confirm]; add one"
    if searches > 1 and split is None and not study.searched:
        yield (
            f"repeat.searches: expected 1 where nothing is searched and no split is named, got {searches}; raise "
            "confirm.seeds"
        )
    if (cells := searches * len(study.compared)) > MOST_CELLS:
        yield f"repeat.searches: expected at most {MOST_CELLS} searches in all, got {cells}; compare or repeat less"
    if split is None:
        return
    if split in study.compare or split in study.searched:
        where = "compare" if split in study.compare else "search"
        yield f"repeat.split: expected a fixed parameter, got {split!r} of [{where}]; put it into [fixed]"
        return
    for cell in study.compared:
        value = cell.fixed.get(split)
        if not isinstance(value, int) or isinstance(value, bool):
            got = "none there" if value is None else short(value)
            yield (
                f"repeat.split: expected a whole number in [fixed] for {split!r} (replicate r takes it + r), got {got};"
                f" write {split} = 0 there"
            )
            return


def _not_to_be_started(study: Study) -> Iterator[str]:
    """Yield why a process of one's own cannot be started as [command] says."""
    own = [cell for cell in study.compared if is_own_process(cell.trainable)]
    command = study.command
    if command is None:
        for cell in own[:1]:
            yield f"command: expected a table for trainable {cell.trainable!r}, got none; add one with metrics"
        return
    if not own:
        yield '[command]: expected trainable = "command" or a function such as train.py:train, got neither; remove it'
        return
    for cell in own:
        tables = {name: "compare" if name in cell.values else "fixed" for name in cell.fixed}
        tables |= dict.fromkeys(cell.space, "search")
        yield from problems(command, cell.trainable, tables, study.repeat.split)
        for name, domain in cell.space.items():
            if domain.when and not is_function(cell.trainable):
                yield f"search.{name}.when: a command always has all its arguments; use a function, or remove `when`"


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
            known = ", ".join(study.trainables())
            yield f"{where}.{name}: a table here must name a trainable of the study ({known}); {NESTED}"


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


def trial_seed(study_seed: int, number: int, replicate: int = 0) -> int:
    """The training seed of draw `number` of a replicate, the same in every cell: common random numbers."""
    return hashed(study_seed, "replicate", replicate, number) if replicate else hashed(study_seed, number)


def fresh_seed(study_seed: int, index: int, replicate: int = 0) -> int:
    """Seed number `index` of a replicate's confirmation, the same for every candidate of every cell."""
    again = ("replicate", replicate) if replicate else ()  # replicate 0 has the seeds of a study without replicates
    return hashed("confirm", study_seed, *again, index)


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
