"""What arrives of a study, row by row: what no ledger could hold, or no reader could take, is a ValueError.

It may be anybody's. All is checked before anything is written.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self, get_args

import optuna
import sqlalchemy as sql
from optuna.distributions import json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from cs330ray.analysis.claims.look import Look
from cs330ray.ledger.records import Cause, Ended, Ending, cause_of
from cs330ray.ledger.tables import ATTEMPTS, ENDS, LOOKS, LOSSES, METRICS, ROWS, SCORES, SUPERSEDED
from cs330ray.spec.study import Study
from cs330ray.travel import record
from cs330ray.trial.contract import Metric
from cs330ray.trial.environment import storable
from cs330ray.words import first_line, short

LARGEST = 2**31 - 1  # of whole numbers in a column
LATEST_S = 1e11  # since the epoch, some 3,000 years: within all that a calendar takes


class _Scored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    units: list[str]
    scores: list[float]

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if len(self.units) != len(self.scores):
            raise ValueError(f"expected a score of each unit, got {len(self.scores)} of {len(self.units)}")
        return self


class _Circumstances(BaseModel):
    """What readers take from the start of a trial; every version has recorded those without a default."""

    model_config = ConfigDict(extra="allow", strict=True)

    host: str
    device: str
    threads: int = Field(ge=0, le=LARGEST)
    python: str
    versions: dict[str, str]
    code: str
    data: str
    nodes: list[str] = []
    config: dict[str, Any] = {}
    workers: list[str] = [""]
    resumed_from_step: int | None = Field(None, ge=0, le=LARGEST)
    began_s: float = Field(0.0, ge=0, le=LATEST_S)


def _strict(kind: Any) -> Callable[[Any], object]:
    """A check that converts nothing: a text of digits is no number, but a whole number is one."""
    return partial(TypeAdapter(kind).validate_python, strict=True)


def _metric(found: dict[str, Any]) -> object:
    return TypeAdapter(Metric).validate_json(json.dumps(vars(Metric(**found))), strict=True)


# What the texts hold that a reader takes apart.
SHAPES: Mapping[sql.Column[Any], Callable[[Any], object]] = {
    METRICS.c.description: _metric,
    ROWS.c.metrics: _strict(dict[str, float]),
    SUPERSEDED.c.metrics: _strict(dict[str, float]),
    ATTEMPTS.c.circumstances: _Circumstances.model_validate,
    LOSSES.c.nodes: _strict(list[str]),
    ENDS.c.worth: _strict(list[float] | None),
    LOOKS.c.seen: lambda found: Look.from_json(json.dumps(found)),
    SCORES.c.metrics: _strict(dict[str, float]),
    SCORES.c.scored: TypeAdapter(dict[str, _Scored]).validate_python,
}
OBJECTIVES = _strict(list[float] | None)
REACHED = _strict(dict[str, float])  # by step


class Checks:
    """What arrives of one study, checked against the study itself. Every method raises ValueError.

    Trials that somebody added with Optuna's own tools arrive too, as they are. `Ledger.history` says which are ours.
    """

    def __init__(self, study: Study) -> None:
        self._searched = record.searched_by_cell(study)
        self._objectives = len(study.objective)
        self._studies: set[str] = set()
        self._trials: dict[str, int] = {}  # how many of Optuna's each cell has
        self._seeded: dict[tuple[str, int], tuple[str, int | None]] = {}  # what is wrong with each, what it continues
        self._wanted: set[tuple[str, int]] = set()  # trials that a run of confirmation or another trial goes back to
        self.own: set[tuple[str, int]] = set()  # our trials, by cell and number
        self.described: set[tuple[str, str]] = set()  # metrics, by their trainables

    def optuna_study(self, found: Any) -> tuple[str, list[StudyDirection]]:
        """An Optuna study: its cell and its directions."""
        if set(_table(found)) != {"cell", "directions", "user_attrs", "system_attrs"}:
            raise ValueError(f"it has other keys than an Optuna study: {short(list(found))}")
        cell, directions = found["cell"], found["directions"]
        if self._searched.get(_text(cell)) != cell or cell in self._studies:
            raise ValueError(f"{short(cell)} is no cell of the study, or there twice")
        if not isinstance(directions, list) or len(directions) != self._objectives:
            raise ValueError(f"expected a direction of each objective, got {short(directions)}")
        _table(found["user_attrs"]), _table(found["system_attrs"])
        self._studies.add(cell)
        try:
            return cell, [StudyDirection[name] for name in directions]
        except (KeyError, TypeError):
            raise ValueError(f"{short(directions)} are no directions") from None

    def trial(self, found: Any) -> tuple[str, FrozenTrial]:
        """A trial of Optuna's, in the order of its cell: the cell and the trial."""
        cell = _text(_table(found).get("cell"))
        number = self._trials.get(cell, 0)
        if cell not in self._studies or found.get("number") != number:
            raise ValueError(f"expected trial {number} of {short(cell)}, got {short(found.get('number'))}")
        try:
            OBJECTIVES(found["values"])
            made = optuna.trial.create_trial(
                state=TrialState[found["state"]],
                values=found["values"],
                params=_table(found["params"]),
                distributions={name: json_to_distribution(each) for name, each in found["distributions"].items()},
                user_attrs=_table(found["user_attrs"]),
                system_attrs=_table(found["system_attrs"]),
                intermediate_values={_step(step): value for step, value in found["intermediate"].items()},
            )
            REACHED(found["intermediate"])
            made.datetime_start, made.datetime_complete = _moment(found["start"]), _moment(found["complete"])
        except ValidationError as error:
            raise ValueError(f"trial {number} of {short(cell)}: {error.errors()[0]['msg']}") from None
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, OSError) as error:
            raise ValueError(f"trial {number} of {short(cell)}: {first_line(error)}") from None
        if made.state != TrialState.WAITING and made.datetime_start is None:
            raise ValueError(f"trial {number} has begun at no time")
        if made.state.is_finished() != (made.datetime_complete is not None):
            raise ValueError(f"trial {number}: expected the time of its end where it has ended, and only there")
        self._trials[cell] = number + 1
        if "seed" in made.user_attrs:
            self._seeded[cell, number] = _wrong(made.user_attrs, number), made.user_attrs.get("continues")
            if made.state == TrialState.RUNNING:
                self._is_own(cell, number)
        return cell, made

    def _is_own(self, cell: str, number: int) -> None:
        """Note that a trial is ours, of which only then anything is expected."""
        wrong, before = self._seeded[cell, number]
        if wrong:
            raise ValueError(wrong)
        if before is not None:
            self._wanted.add((cell, before))
        self.own.add((cell, number))

    def row(self, table: sql.Table, found: Any) -> dict[str, Any]:
        """A row of a table, but for the study and what is of a home alone."""
        columns = [column for column in table.columns if column not in record.OF_HOME and column.name != "study"]
        if odd := set(_table(found)) - {column.name for column in columns}:
            raise ValueError(f"a column {short(min(odd))} is not known here; a newer cs330ray may have packed it")
        row = {column.name: _value(column, found.get(column.name)) for column in columns}
        if "cell" in row and self._searched.get(row["cell"]) is None:
            raise ValueError(f"{short(row['cell'])} is no cell of the study")
        if "trial" in row:
            cell, number = self._searched[row["cell"]], row["trial"]
            if number >= self._trials.get(cell, 0):
                raise ValueError(f"{short(row['cell'])} has no trial {number}")
            if cell != row["cell"]:
                self._wanted.add((cell, number))
            elif table is ENDS and (cell, number) in self._seeded:
                self._is_own(cell, number)
        if table is ENDS:
            self._end(row)
        return row

    def _end(self, row: Mapping[str, Any]) -> None:
        """Check the end of a trial, which a version of before may have recorded without its cause."""
        cause, worth = row["cause"], json.loads(row["worth"])
        if row["state"] not in get_args(Ended):
            raise ValueError(f"{short(row['state'])} is no end of a trial")
        if cause not in (None, *get_args(Cause)):
            raise ValueError(f"{short(cause)} is no cause of an end; a newer cs330ray may have packed it")
        Ending(row["state"], row["reason"], row["traceback"], cause or cause_of(row["reason"], row["state"]))
        if worth is not None and len(worth) != self._objectives:
            raise ValueError(f"worth: expected a value of each objective, got {short(worth)}")

    def end(self) -> None:
        """Check what can be told only when all is read."""
        for cell, number in sorted(self._wanted - self.own):
            raise ValueError(f"trial {number} of {short(cell)} is continued or confirmed, but is none of the search's")


def _wrong(told: Mapping[str, Any], number: int) -> str:
    """What is wrong with what the service itself would have written on a trial; empty where nothing is."""
    for name, largest in {"seed": 2**63 - 1, "steps": LARGEST, "continues": LARGEST, "start": LARGEST}.items():
        value = told.get(name, 0)
        if type(value) is not int or not 0 <= value <= largest:
            return f"trial {number}: {name}: expected a whole number from 0 to {largest}, got {short(value)}"
    before = told.get("continues")
    return f"trial {number} cannot continue trial {before}" if before is not None and before >= number else ""


def _value(column: sql.Column[Any], value: Any) -> Any:
    if value is None and column.nullable:
        return None
    if isinstance(column.type, sql.Integer):
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise ValueError(f"{column.name}: expected a whole number from 0 to {LARGEST}, got {short(value)}")
        return value
    if isinstance(column.type, sql.Double):
        return _time_s(value, column.name)
    text = _text(value)
    if (shape := SHAPES.get(column)) is not None:
        try:
            shape(json.loads(text))
        except (ValueError, TypeError, RecursionError, ValidationError) as error:
            raise ValueError(f"{column.name}: {short(value)} is not of its kind ({type(error).__name__})") from None
    return text


def _text(value: Any) -> str:
    """A text that every database takes."""
    if not isinstance(value, str) or storable(value) != value:
        raise ValueError(f"{short(value)} is no text")
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table, got {short(value)}")
    return value


def _time_s(value: Any, name: str) -> float:
    """Seconds since the epoch."""
    if type(value) not in (int, float) or not 0 <= value <= LATEST_S:
        raise ValueError(f"{name}: expected seconds from 0 to {LATEST_S:.0e}, got {short(value)}")
    return float(value)


def _moment(at: Any) -> datetime.datetime | None:
    """A time as Optuna keeps it: naive, local."""
    return None if at is None else datetime.datetime.fromtimestamp(_time_s(at, "a time"))


def _step(text: str) -> int:
    """A step of Optuna's, which somebody else may have counted from below 0."""
    if abs(step := int(text)) > LARGEST:
        raise ValueError(f"a step is at most {LARGEST}, got {short(text)}")
    return step
