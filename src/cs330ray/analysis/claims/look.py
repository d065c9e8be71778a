"""What a look at a study saw: the values that a claim about its cells rests on, as the ledger keeps them for ever."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Goal = Literal["max", "min"]
Unit = Literal["replicate", "split", "seed"]
Values = Mapping[str, Sequence[float]]  # of each cell by its title, one value a unit; the units are the same for all

_VALUES = ("validation", "test")
_TABLES = (*_VALUES, "left_out", "held")


@dataclass(frozen=True)
class Look:
    """One look: the cells in the order of the file, and their values, unit by unit.

    A replicate's value is the mean over its fresh seeds. Where it is the unit, something is searched; splits and seeds
    are the unit where nothing is. All values are finite and in the metric's own sense. Raises ValueError for values
    that do not fit together.
    """

    number: int  # 1 is the first: each has a level of its own; 0 where none was taken yet, and nothing is claimed
    unit: Unit
    searches: int  # replicates, or splits, that were asked for
    trials: int  # of each search
    seeds: int  # fresh ones that a value is the mean of; where seeds are the unit, how many were asked for
    metric: str  # the first objective, on validation: it says which cell to use
    goal: Goal
    validation: Values
    tested: str | None = None  # the metric on test, which the claim is about; None where nothing was tested
    test: Values = field(default_factory=dict)  # of the same cells and units; empty where nothing was tested
    sampler: str | None = None  # its kind, where something is searched
    searched: tuple[str, ...] = ()  # the parameters that a search chose, in any cell
    held: Mapping[str, Any] = field(default_factory=dict)  # where nothing is searched: what might have been, as JSON
    split: str | None = None  # the field whose value each replicate moves, so that each has its own split of the data
    left_out: Mapping[str, str] = field(default_factory=dict)  # cells that are not compared, and why
    objectives: Mapping[str, Values] = field(default_factory=dict)  # the further ones, on test where it was tested

    def __post_init__(self) -> None:
        for name in _VALUES:
            object.__setattr__(self, name, _columns(getattr(self, name)))
        object.__setattr__(self, "objectives", {name: _columns(values) for name, values in self.objectives.items()})
        object.__setattr__(self, "searched", tuple(self.searched))
        for problem in _incoherent(self):
            raise ValueError(problem)

    @property
    def cells(self) -> tuple[str, ...]:
        """The titles of the cells that are compared, in the order of the file."""
        return tuple(self.validation)

    @property
    def units(self) -> int:
        """How many values each cell has."""
        return len(next(iter(self.validation.values()), ()))

    @property
    def values(self) -> Values:
        """What the claim is about: the values on test, or on validation where nothing was tested."""
        return self.test if self.tested else self.validation

    @property
    def about(self) -> str:
        """The name of the metric of `values`."""
        return self.tested or self.metric

    @property
    def trials_of_search(self) -> int | None:
        """Trials of each search; None where nothing is searched."""
        return self.trials if self.searched else None

    def to_json(self) -> str:
        """Write the look as JSON, tables as pairs: nothing promises the order of an object's keys."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        found |= {name: list(found[name].items()) for name in _TABLES}
        found["objectives"] = [(name, list(values.items())) for name, values in self.objectives.items()]
        return json.dumps(found, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Look":
        """Read what `to_json` wrote. Raises ValueError for anything else."""
        found = json.loads(text)
        try:
            found |= {name: dict(found[name]) for name in _TABLES}
            found["objectives"] = {name: dict(values) for name, values in found["objectives"]}
            return cls(**found)
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a look at cells as JSON, got {text[:60]!r}") from error


def _columns(values: Values) -> Values:
    return {cell: tuple(float(value) for value in column) for cell, column in values.items()}


def _incoherent(look: Look) -> Iterator[str]:
    if look.number < 0:
        yield f"expected the number of a look, or 0 before the first, got {look.number}"
    if bool(look.searched) != (look.unit == "replicate"):
        yield f"expected replicates where something is searched and there alone, got {look.unit}s of {look.searched}"
    if bool(look.tested) != bool(look.test) and look.validation:
        yield f"expected test values under the name of their metric, got {look.tested} with {len(look.test)} cells"
    for name, values in (("validation", look.validation), ("test", look.test), *look.objectives.items()):
        if name != "validation" and values and tuple(values) != look.cells:
            yield f"{name}: expected the cells {', '.join(look.cells)}, got {', '.join(values)}"
        for cell, column in values.items():
            if len(column) != look.units or look.units == 0:
                yield f"{name} of {cell}: expected {look.units or 'some'} values, got {len(column)}"
            if not all(math.isfinite(value) for value in column):
                yield f"{name} of {cell}: expected finite values, got {list(column)}"
    if both := [cell for cell in look.left_out if cell in look.validation]:
        yield f"expected a cell to be compared or left out, got both for {', '.join(both)}"
