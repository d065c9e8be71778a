"""The table [command]: what may stand in it, what it makes of a study's identity, and how arguments are written."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cs330ray.errors import SpecError
from cs330ray.spec import growth
from cs330ray.spec.command import Command, as_text, filled
from cs330ray.spec.reading import parse, read
from cs330ray.spec.study import Study

RUN = ["python", "train.py", "{lr}", "{width}", "{seed}"]


def raw(**changes: Any) -> dict[str, Any]:
    given = {
        "name": "own",
        "trainable": "command",
        "objective": ["val_accuracy"],
        "command": {"run": RUN, "metrics": {"val_accuracy": "max"}},
        "search": {"lr": {"low": 0.1, "high": 1.0}},
        "fixed": {"width": 8},
        "budget": {"trials": 2, "steps": 10},
    }
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def study(**changes: Any) -> Study:
    return parse(raw(**changes), "own")


def command(**changes: Any) -> dict[str, Any]:
    return {"run": RUN, "metrics": {"val_accuracy": "max"}, **changes}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"command": None}, "command: expected a table for trainable 'command', got none; add one with metrics"),
    (
        {"trainable": "maml"},
        '[command]: expected trainable = "command" or a function such as train.py:train, got neither',
    ),
    ({"command": command(run=[])}, "command.run: expected program and arguments, got none"),
    ({"command": command(metrics={})}, "command.metrics: dictionary should have at least 1 item"),
    (
        {"command": command(metrics={"val_accuracy": "up"})},
        "command.metrics.val_accuracy: input should be 'max' or 'min'",
    ),
    ({"command": command(runs=[])}, "command.runs: unknown key (did you mean 'run'?)"),
    (
        {"command": command(run=[*RUN, "{wdth}"])},
        "command.run: expected declared names in braces, got {wdth}; declare wdth",
    ),
    (
        {"command": command(run=[*RUN, "{checkpoint}"])},
        "command.run: expected declared names in braces, got {checkpoint}",
    ),
    ({"command": command(test=["{no}"])}, "command.test: expected declared names in braces, got {no}; declare no"),
    ({"command": command(run=RUN[:3])}, "fixed.width: expected {width} in command.run, got none; add it there"),
    ({"search": {"lr": [1], "decay": [0, 1]}}, "search.decay: expected {decay} in command.run, got none; add it there"),
    ({"compare": {"depth": [1, 2]}}, "compare.depth: expected {depth} in command.run, got none; add it there"),
    (
        {"fixed": {"width": 8, "seed": 3}},
        "fixed.seed: the service gives {seed} itself; give the parameter another name",
    ),
    (
        {"search": {"lr": {"low": 0.1, "high": 1.0, "when": {"width": 8}}}},
        "search.lr.when: a command always has all its arguments; use a function, or remove `when`",
    ),
    (
        {"trainable": "../train.py:train", "command": command(run=[])},
        "trainable: expected a file in the folder and",
    ),
    ({"trainable": "train.py:", "command": command(run=[])}, "trainable: expected a file in the folder and"),
    ({"fixed": {"width": 8, "copy": 1}}, "fixed.copy: expected letters, digits and _, and no name of pydantic's"),
    ({"fixed": {"width": 8, "a-b": 1}}, "fixed.a-b: expected letters, digits and _, and no name of pydantic's"),
    (
        {"command": command(metrics={"checkpoint": "max"})},
        "command.metrics.checkpoint: a line has a 'checkpoint' of its own",
    ),
    ({"trainable": "train.py:train"}, "command.run: train.py:train is a function, which takes no command; remove it"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_be_started_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        study(**changes)
    assert str(refused.value).startswith(f"own: {said}"), str(refused.value)


def test_the_split_of_replicates_needs_no_place_in_the_command() -> None:
    asked = study(fixed={"width": 8, "fold": 0}, repeat={"searches": 2, "split": "fold"}, confirm={"seeds": 1})
    assert [cell.fixed["fold"] for cell in asked.cells] == [0, 1]


def test_a_function_may_have_conditional_parameters() -> None:
    search = {"kind": ["a", "b"], "lr": {"low": 0.1, "high": 1.0, "when": {"kind": "b"}}}
    asked = study(trainable="train.py:train", command={"metrics": {"val_accuracy": "max"}}, search=search)
    assert asked.cells[0].command is not None


@pytest.mark.parametrize(
    ("changes", "is_another"),
    [
        ({"run": [*RUN, "--more"]}, True),
        ({"test": ["python", "test.py"]}, True),
        ({"metrics": {"val_accuracy": "min"}}, True),
        ({"folder": "elsewhere"}, False),
    ],
)
def test_all_but_the_folder_is_the_study_s_identity(changes: dict[str, Any], is_another: bool) -> None:
    before, after = study(), study(command=command(**changes))
    assert (before.digest != after.digest) == is_another
    if is_another:
        with pytest.raises(SpecError, match="a study of this name exists and differs: command"):
            growth.growth(before, after)
    else:
        assert growth.growth(before, after) == []


def test_a_study_without_a_command_has_the_digest_that_it_had() -> None:
    asked = study(trainable="maml", command=None, sampler={"kind": "tpe"})
    assert asked.digest == "5083877be8e8de82d38c40df4752c0c72a76b41ac49796969c209f22bbade794"


def test_the_folder_is_relative_to_the_study_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "study.toml"
    for folder, found in {".": tmp_path / "deep", "..": tmp_path, str(tmp_path / "x"): tmp_path / "x"}.items():
        file.write_text(tomli_w.dumps(raw(command=command(folder=folder))))
        asked = read(file)
        assert asked.command is not None
        assert asked.command.folder == str(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-05, "1e-05"), (0.1, "0.1"), (3, "3"), (True, "true"), (False, "false"), ("a b", "a b"), ([64, 32], "64,32")],
)
def test_values_are_written_as_arguments(value: Any, text: str) -> None:
    assert as_text(value) == text


def test_only_names_in_braces_are_places() -> None:
    words = ["{lr}", "x={lr},{lr}", "{{lr}}", "${HOME}"[1:].replace("HOME", "1a"), '{"a": {"b": {lr}}}', "{}"]
    assert filled(words, {"lr": 0.5}) == ["0.5", "x=0.5,0.5", "{lr}", "{1a}", '{"a": {"b": 0.5}}', "{}"]


def test_a_command_is_frozen_and_strict() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Command(metrics={"a": "max"}).run = ["x"]  # type: ignore[misc]
