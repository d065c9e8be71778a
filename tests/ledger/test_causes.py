"""How a trial failed, as a field of its end: written with each, and read from the words of ledgers of before."""

import json
import os
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending, Loss, Row, cause_of, nodes_of
from cs330ray.ledger.writer import Writer
from cs330ray.service.search import ask
from cs330ray.spec.study import Cell, Study
from tests import toy as toy_trainable
from tests.studies_of_tests import toy

ENDS = [
    Ending("COMPLETE"),
    Ending("PRUNED", "asha at step 5, 3 rivals", cause="pruned"),
    Ending("FAIL", "raised: RuntimeError: planted", "Traceback", "raised"),
    Ending("FAIL", "diverged: the loss is inf at step 3", "Traceback", "diverged"),
    Ending("FAIL", "out of memory: MemoryError", "Traceback", "memory"),
    Ending("FAIL", "out of memory: worker ended 4 times: OutOfMemoryError", cause="memory"),
    Ending("FAIL", "worker lost 4 times: died", cause="lost"),
    Ending("FAIL", "val_loss must be finite, but got (nan,)", cause="unscored"),
    Ending("FAIL", "no row holds val_loss", cause="unscored"),
]
LOSSES = [Loss("died", frozenset()), Loss("died [on node1 node2]", frozenset({"node1", "node2"}))]


def entered(ledger: Writer, study: Study, cell: Cell) -> int:
    return ledger.enter(study, cell, ask.ask(study, cell, ["min"], []), seed=1)


@pytest.fixture
def study() -> Study:
    return toy(budget={"trials": len(ENDS), "steps": 20})


@pytest.fixture
def home(tmp_path: Path, study: Study, backend: str) -> Path:
    """A ledger with a trial of each end, the last of which lost its worker twice."""
    ledger, cell = Writer.at(tmp_path), study.cells[0]
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    for ending in ENDS:
        number = entered(ledger, study, cell)
        ledger.write_rows(study, cell, number, [Row(5, {"val_loss": 0.5}, 1.0)])
        ledger.end(study, cell, number, ending)
    for loss in LOSSES:
        ledger.write_loss(study, cell, number, loss)
    return tmp_path


def execute(home: Path, statement: str) -> list[Any]:
    """Say a statement to the ledger, past our code; what it returns."""
    url = os.environ.get("CS330RAY_LEDGER", f"sqlite:///{home}/ledger.db")
    engine = sql.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as connection:
            result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


ENDS_WRITTEN = "select state, reason, traceback, cause from cs330ray_ends order by trial"
LOSSES_WRITTEN = "select reason, nodes from cs330ray_losses order by attempt"


@pytest.fixture
def of_before(home: Path) -> Path:
    """The same ledger as it was before ends had causes and losses nodes."""
    execute(home, "ALTER TABLE cs330ray_ends DROP COLUMN cause")
    execute(home, "ALTER TABLE cs330ray_losses DROP COLUMN nodes")
    execute(home, "DROP TABLE cs330ray_schema")
    return home


def ends(ledger: Ledger, study: Study) -> list[Ending]:
    found = ledger.trials(study, study.cells[0])
    return [Ending(trial.state, trial.reason, trial.traceback, trial.cause) for trial in found]  # type: ignore[arg-type]


def test_each_kind_of_end_has_its_cause_in_the_ledgers_own_table(home: Path) -> None:
    assert execute(home, ENDS_WRITTEN) == [astuple(ending) for ending in ENDS]


def test_each_loss_has_its_nodes_in_the_ledgers_own_table(home: Path) -> None:
    written = execute(home, LOSSES_WRITTEN)
    assert [(reason, json.loads(nodes)) for reason, nodes in written] == [
        ("died", []),
        ("died [on node1 node2]", ["node1", "node2"]),
    ]


def test_the_trials_that_lost_their_workers_are_known_by_their_cause(home: Path, study: Study) -> None:
    assert Writer.at(home).lost(study, study.cells[0]) == {6}


def test_a_cause_is_no_matter_of_the_words_beside_it(home: Path, study: Study) -> None:
    execute(home, "UPDATE cs330ray_ends SET reason = 'worker lost, they say' WHERE trial = 2")
    execute(home, "UPDATE cs330ray_ends SET reason = 'it was gone' WHERE trial = 6")
    ledger = Writer.at(home)
    assert [ending.cause for ending in ends(ledger, study)] == [ending.cause for ending in ENDS]
    assert ledger.lost(study, study.cells[0]) == {6}


def test_a_ledger_of_before_is_read_as_it_is_with_the_same_causes_and_nodes(of_before: Path, study: Study) -> None:
    ledger, cell = Ledger.at(of_before), study.cells[0]
    assert ends(ledger, study) == ENDS
    assert ledger.losses(study, cell, len(ENDS) - 1) == LOSSES
    assert ledger.lost(study, cell) == {6}
    with pytest.raises(sql.exc.DatabaseError, match="cause"):
        execute(of_before, ENDS_WRITTEN)  # reading has added nothing


def test_a_driver_gives_a_ledger_of_before_causes_and_nodes_and_continues_it(of_before: Path, study: Study) -> None:
    ledger, cell, said = Writer.at(of_before), study.cells[0], list[str]()
    ledger.upgrade(study.name, said.append)
    assert execute(of_before, ENDS_WRITTEN) == [astuple(ending) for ending in ENDS]
    assert [(reason, json.loads(nodes)) for reason, nodes in execute(of_before, LOSSES_WRITTEN)] == [
        ("died", []),
        ("died [on node1 node2]", ["node1", "node2"]),
    ]
    assert ends(ledger, study) == ENDS
    number = entered(ledger, study, cell)
    assert ledger.write_loss(study, cell, number, LOSSES[1]) == [LOSSES[1]]
    ledger.end(study, cell, number, ENDS[6])
    assert ledger.lost(study, cell) == {6, number}
    assert ends(Ledger.at(of_before), study) == [*ENDS, ENDS[6]]
    assert len(said) == 1
    assert "upgraded from version 0 to 4" in said[0]


def test_a_ledger_is_upgraded_once(of_before: Path, study: Study) -> None:
    said = list[str]()
    for _ in range(2):
        Writer.at(of_before).upgrade(study.name, said.append)
    assert len(said) == 1
    assert ends(Ledger.at(of_before), study) == ENDS


@pytest.mark.parametrize("ending", ENDS, ids=lambda ending: ending.reason or "complete")
def test_the_cause_stands_in_the_words_of_a_reason_of_before(ending: Ending) -> None:
    assert cause_of(ending.reason, ending.state) == ending.cause


@pytest.mark.parametrize(
    ("reason", "nodes"),
    [("died", set()), ("died [on first]", {"first"}), ("died [on 1 2]", {"1", "2"}), ("[on it goes] it said", set())],
)
def test_the_nodes_stand_in_the_words_of_a_loss_of_before(reason: str, nodes: set[str]) -> None:
    assert nodes_of(reason) == nodes
