"""The table [command] of a study file: how one's own training is started as a process, and what it reports."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from cs330ray.spec.strict import Strict
from cs330ray.words import short

PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")  # {{name}} stands for {name} itself
FILE_AND_FUNCTION = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*\.py:[A-Za-z_]\w*")
PARAMETER = re.compile(r"[A-Za-z]\w*")
METRIC = r"^\S(.{0,98}\S)?$"  # as MLflow and a table show it
CODE = "code"  # the folder of a command where it has travelled to
GIVEN = ("seed", "steps")  # what the service gives a command besides its parameters
GIVEN_TO_TEST = (*GIVEN, "checkpoint")


class Command(Strict):
    """Your own training, as a process: how to start it, and what it reports."""

    run: list[str] = Field(
        [], description='for trainable = "command": program and arguments, with {parameter}, {seed} and {steps}'
    )
    test: list[str] = Field(
        [], description="program and arguments that score {checkpoint} on the test split; none: nothing is tested"
    )
    metrics: dict[Annotated[str, Field(pattern=METRIC)], Literal["max", "min"]] = Field(
        min_length=1, description="what it reports, and what is better"
    )
    folder: str = Field(".", description="where it starts, relative to the study file: its code; may change")

    @property
    def identity(self) -> dict[str, object]:
        """What, when changed, makes it another study."""
        return self.model_dump(mode="json", exclude={"folder"})


def is_own_process(trainable: str) -> bool:
    """Whether a trainable runs as a process of its own: a command, or a function of a file."""
    return trainable == "command" or is_function(trainable)


def is_function(trainable: str) -> bool:
    """Whether a trainable is a function of a file: `train.py:train`."""
    return ".py:" in trainable


def placeholders(words: Sequence[str]) -> list[str]:
    """List the names in braces of a command, each once."""
    found = [match[2] for word in words for match in PLACEHOLDER.finditer(word) if match[2]]
    return list(dict.fromkeys(found))


def filled(words: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """Put values in the places of a command's names."""

    def written(match: re.Match[str]) -> str:
        return f"{{{match[1]}}}" if match[1] else as_text(values[match[2]])

    return [PLACEHOLDER.sub(written, word) for word in words]


def as_text(value: object) -> str:
    """Write a value as an argument of a program: true and false as in TOML, a list with commas."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value))
    return str(value)


def problems(command: Command, trainable: str, tables: Mapping[str, str], split: str | None) -> Iterator[str]:
    """Yield why a trainable cannot be started with the parameters of a cell, by the table that each stands in."""
    for name in command.metrics:
        if name in ("step", "checkpoint"):
            yield f"command.metrics.{name}: a line has a {name!r} of its own; give the metric another name"
    for name, table in tables.items():
        if PARAMETER.fullmatch(name) is None or hasattr(BaseModel, name):
            yield f"{table}.{name}: expected letters, digits and _, and no name of pydantic's; give it another name"
    if is_function(trainable):
        if FILE_AND_FUNCTION.fullmatch(trainable) is None:
            yield f"trainable: expected a file in the folder and a function, train.py:train, got {short(trainable)}"
        for key in ("run", "test"):
            if getattr(command, key):
                yield f"command.{key}: {trainable} is a function, which takes no command; remove it"
        return
    if not command.run:
        yield 'command.run: expected program and arguments, got none; write ["python", "train.py", "--lr", "{lr}"]'
        return
    for key, given in (("run", GIVEN), ("test", GIVEN_TO_TEST)):
        for name in placeholders(getattr(command, key)):
            if name not in tables and name not in given:
                yield (
                    f"command.{key}: expected declared names in braces, got {{{name}}}; declare {name} under [search], "
                    f"[fixed] or [compare], or write {{{{{name}}}}} for the braces themselves"
                )
    used = {*placeholders(command.run), split}
    for name, table in tables.items():
        if name in GIVEN_TO_TEST:
            yield f"{table}.{name}: the service gives {{{name}}} itself; give the parameter another name"
        if name not in used:
            yield f"{table}.{name}: expected {{{name}}} in command.run, got none; add it there, or remove {name}"
