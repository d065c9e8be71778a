"""Trials that train together: the same record as alone, whatever becomes of one of them or of their worker."""

import re
from pathlib import Path
from typing import Any

import pytest

from cs330ray.errors import SpecError
from cs330ray.ledger.confirm import fresh_cells
from cs330ray.ledger.writer import Writer
from cs330ray.service.listener import Silent
from cs330ray.service.run import run
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study, fresh_seed
from cs330ray.trial.check import check
from tests.studies_of_tests import whole

STEPS = 20


class Ear(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def says(self, line: str) -> None:
        self.said.append(line)


def company(fuse: int, **changes: Any) -> Study:
    raw: dict[str, Any] = {
        "name": "company", "trainable": "tests.company", "objective": ["val_loss"],
        "search": {"lr": {"low": 0.01, "high": 0.5}},
        "sampler": {"kind": "random"}, "budget": {"trials": 3, "steps": STEPS}, "confirm": {"top": 2, "seeds": 3},
        "resources": {"slots": 1, "fuse": fuse, "checkpoint": "1s"},
    }  # fmt: skip
    return parse({**raw, **changes}, "company")


def confirmed(home: Path) -> list[tuple[Any, ...]]:
    """All that confirmation found, without times."""
    ledger = Writer.at(home)
    study = ledger.study("company")
    return [
        (cell.fresh, one.number, one.state, one.reason, one.seed, one.values,
         [(row.step, dict(row.metrics)) for row in ledger.rows(study, cell, one.number)],
         ledger.test_metrics(study, cell, one.number), ledger.test_items(study, cell, one.number))
        for cell in fresh_cells(study)
        for one in ledger.trials(study, cell)
    ]  # fmt: skip


def attempts(home: Path) -> list[list[dict[str, Any]]]:
    ledger = Writer.at(home)
    study = ledger.study("company")
    return [
        ledger.attempts(study, cell, one.number) for cell in fresh_cells(study) for one in ledger.trials(study, cell)
    ]


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        ({}, None),
        ({"stops_at": 13}, None),
        ({"diverges_on": "one"}, None),
        ({"together": "unequal"}, "together they would not be equal to the bit on this machine"),
        ({"together": "raises"}, "out of memory: MemoryError: together they do not fit"),
        ({"together": "dies", "sleep_s": 0.03}, "their worker is gone"),
    ],
    ids=["well", "ends itself", "one diverges", "unequal", "raises", "dies"],
)
def test_confirmation_finds_together_what_it_finds_alone(
    fixed: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    if fixed.get("diverges_on") == "one":
        fixed = {"diverges_on": fresh_seed(company(1).seed, 1, 0)}
    ear = Ear()
    run(company(1, fixed=fixed), tmp_path / "alone", mirror=False)
    run(company(6, fixed=fixed), tmp_path / "together", ear, mirror=False)
    assert confirmed(tmp_path / "together") == confirmed(tmp_path / "alone")
    assert whole(tmp_path / "together", "company") == whole(tmp_path / "alone", "company")
    parted = [line for line in ear.said if "go on alone" in line]
    if said is None:
        assert parted == []
    else:
        [line] = parted
        assert re.match(r"trials (\d on fresh seed \d(, )?){6} go on alone: ", line)
        assert said in line
    beside = [each[0].get("together") for each in attempts(tmp_path / "together")]
    if fixed.get("together") != "unequal":
        assert all(each[-1].get("together") is None for each in attempts(tmp_path / "together"))  # the end is alone's
        assert [len(one["seeds"]) for one in beside] == [5] * 6
        assert {one["proof"] for one in beside} == {"bits"}
    else:
        assert beside == [None] * 6


def test_what_cannot_train_together_is_refused_in_one_line() -> None:
    with pytest.raises(SpecError, match=r"resources.fuse: one process trains several .* got fuse=2 with workers=2"):
        company(2, resources={"fuse": 2, "workers": 2})
    with pytest.raises(SpecError, match=r"resources.fuse: tests.toy has no train_many, .* 1 is needed, but got 3"):
        check(company(3, trainable="tests.toy"), "company")
    with pytest.raises(SpecError, match=r"resources.fuse"):
        company(0)
    assert company(1).digest == company(8).digest
