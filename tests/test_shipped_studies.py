"""Every file of studies/ loads, fits its trainable, says what it asks and costs, and trains two steps, shrunk."""

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cs330ray.package import shipped
from cs330ray.spec import reading, tables
from cs330ray.spec.places import study_file
from cs330ray.spec.study import Study, first_values
from cs330ray.spec.tables import applies
from cs330ray.trial import check, named

FILES = sorted(shipped().glob("*.toml"))
EMBEDDED = {"multitask": "planted"}  # else glyphs
SHRUNK: dict[str, Any] = {"filters": 4, "tasks": 2, "val_tasks": 2, "eval_every_steps": 1}
LANGUAGE = ("finetune", "icl")
SHRUNK_LANGUAGE: dict[str, Any] = {
    "dataset": "rooms", "questions": "all", "model": "tiny", "shots": 1, "batch": 2, "eval_examples": 2,
    "max_new_tokens": 2,
}  # fmt: skip
SHRUNK_CLASSES: dict[str, Any] = {"model": "tiny-encoder", "answers": "classes", "layers": 1}
each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_there_are_shipped_studies_and_every_trainable_has_one_of_its_name() -> None:
    assert {*named.names(), "quickstart"} <= {file.stem for file in FILES}


@each
def test_a_shipped_study_fits_its_trainable_and_is_found_by_its_name(file: Path) -> None:
    study = reading.read(file)
    check.check(study, str(file))
    assert study.name == file.stem
    assert study_file(file.stem) == file


@each
def test_a_shipped_study_is_valid_by_the_schema_that_editors_get(file: Path) -> None:
    validator = jsonschema.Draft202012Validator(Study.model_json_schema())
    assert list(validator.iter_errors(tomllib.loads(file.read_text()))) == []


def test_the_schema_takes_times_as_text_and_refuses_an_unknown_key() -> None:
    study = tomllib.loads(FILES[0].read_text())
    study["budget"]["time"] = "2h"
    jsonschema.validate(study, Study.model_json_schema())
    study["budget"]["tme"] = "2h"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(study, Study.model_json_schema())


@each
def test_a_shipped_study_says_first_what_it_asks(file: Path) -> None:
    lines = file.read_text().splitlines()
    header = lines[: lines.index(next(line for line in lines if not line.startswith("#")))]
    assert len(header) >= 2
    assert "?" in "".join(header)


@each
def test_the_cost_that_a_shipped_study_says_is_that_of_its_budget(file: Path) -> None:
    study = reading.read(file)
    for trials, steps in re.findall(r"(\d+) trials of at most (\d+) steps", file.read_text()):
        assert (int(trials), int(steps)) == (study.budget.trials * len(study.cells), study.budget.steps)


@each
def test_a_shipped_study_trains_two_steps_in_every_cell(file: Path) -> None:
    study = reading.read(file)
    for cell in study.cells:
        trainable = named.load(cell.trainable)
        small = SHRUNK | {"dataset": EMBEDDED.get(cell.trainable, "glyphs")}
        if cell.trainable in LANGUAGE:
            small |= SHRUNK_LANGUAGE
            small |= SHRUNK_CLASSES if cell.trainable == "finetune" and cell.fixed["dataset"] == "amazon" else {}
        shrunk = {name: value for name, value in small.items() if name in trainable.Config.model_fields}
        config = named.configuration(trainable, cell, {**first_values(cell), **shrunk})
        rows = list(trainable.train(config, 0, 2))
        assert [row.step for row in rows] == [1, 2]
        assert set(study.objective) <= set(rows[-1].metrics)


@each
def test_every_end_of_every_range_is_a_valid_configuration(file: Path) -> None:
    for cell in reading.read(file).cells:
        trainable = named.load(cell.trainable)
        base = first_values(cell)
        for name, domain in cell.space.items():
            ends = domain.choices if isinstance(domain, tables.Choice) else [domain.low, domain.high]
            for value in ends:
                if applies(domain, {**cell.fixed, **base}):
                    config = named.configuration(trainable, cell, {**base, name: value})
                    assert getattr(config, name) == value
