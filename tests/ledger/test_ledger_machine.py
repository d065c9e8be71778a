"""The ledger against a model of plain dictionaries: any order of writes, repeated, in conflict, cut off and healed.

`agrees(url)` runs the same machine on any database that SQLAlchemy reaches; each example has a study of its own in it.
"""

import itertools
import math
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending, Loss, Row
from cs330ray.ledger.writer import Writer
from cs330ray.spec.study import Cell
from tests import toy as toy_trainable
from tests.studies_of_tests import toy

SPACE = {"lr": FloatDistribution(1e-3, 1.0, log=True), "body": CategoricalDistribution(("small", "large"))}
NUMBERS = itertools.count()  # of the examples, whose studies share a database

steps = st.integers(1, 6)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)  # PostgreSQL's
losses = st.floats(0, 10) | st.sampled_from([math.nan, math.inf])
metrics = st.fixed_dictionaries({}, optional={"val_loss": losses, "val_speed": st.floats(0, 1)})
rows = st.lists(st.tuples(steps, metrics, st.floats(0, 1e9)), max_size=4)
CAUSES = {"COMPLETE": [None], "PRUNED": ["pruned"], "FAIL": ["raised", "diverged", "memory", "lost", "unscored"]}
endings = st.sampled_from([(state, cause) for state, causes in CAUSES.items() for cause in causes]).flatmap(
    lambda way: st.builds(Ending, st.just(way[0]), texts, texts, st.just(way[1]))
)
places = st.tuples(st.integers(0, 1), st.integers(0, 9))  # which cell, and which of its trials


@dataclass
class Model:
    """What the ledger must say of one trial."""

    params: dict[str, Any]
    seed: int
    rows: dict[int, tuple[dict[str, float], float]] = field(default_factory=dict)
    reported: dict[int, float] = field(default_factory=dict)  # to Optuna
    checkpoints: dict[int, tuple[str, str]] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    losses: int = 0
    ending: Ending | None = None
    worth: float | None = None  # when it ended
    told: bool = False  # whether Optuna knows of the end

    def value(self) -> float | None:
        """The objective of the last row that holds it."""
        return next(iter(self.last().values()), None)

    def last(self) -> dict[int, float]:
        """The step of the last row that holds the objective, and that, or nothing."""
        held = {step: row["val_loss"] for step, (row, _) in self.rows.items() if "val_loss" in row}
        return {max(held): held[max(held)]} if held else {}

    def ends(self, ending: Ending, told: bool) -> Ending:
        """End it, once: an end without a finite value is a failure."""
        worth = self.value()
        if ending.state != "FAIL" and worth is None:
            ending = Ending("FAIL", "no row holds val_loss", cause="unscored")
        elif ending.state != "FAIL" and not math.isfinite(worth):
            ending = Ending("FAIL", f"val_loss must be finite, but got ({worth},)", cause="unscored")
        if self.ending is None:
            self.ending, self.worth = ending, worth
        if told and not self.told:
            self.reported |= self.last()
        self.told = self.told or told
        return ending


class LedgerMachine(RuleBasedStateMachine):
    """One writer, which is now and then another object, and one reader that stays."""

    url: str

    @initialize()
    def open(self) -> None:
        self.study = toy(name=f"toy-{next(NUMBERS)}", compare={"data_seed": [0, 1]})
        self.ledger = Writer(self.url)
        self.reader = Ledger(self.url, access="follow")
        self.ledger.open(self.study, {"tests.toy": toy_trainable.METRICS})
        self.cells = self.study.cells
        self.models: tuple[list[Model], list[Model]] = ([], [])

    def teardown(self) -> None:
        if hasattr(self, "study"):
            self.ledger.delete(self.study.name)
            assert self.reader.find(self.study.name) is None

    def at(self, place: tuple[int, int]) -> tuple[Cell, int, Model]:
        """A trial that is there, and its model."""
        cell, number = place[0] if self.models[place[0]] else 1 - place[0], place[1]
        number %= len(self.models[cell])
        return self.cells[cell], number, self.models[cell][number]

    def some(self) -> bool:
        return any(self.models)

    @rule(
        cell=st.integers(0, 1),
        lr=st.floats(1e-3, 1.0),
        body=st.sampled_from(["small", "large"]),
        seed=st.integers(0, 2**31),
    )
    def enter(self, cell: int, lr: float, body: str, seed: int) -> None:
        params = {"lr": lr, "body": body}
        asked = optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=SPACE)
        assert self.ledger.enter(self.study, self.cells[cell], asked, seed) == len(self.models[cell])
        self.models[cell].append(Model(params, seed))

    @precondition(some)
    @rule(place=places, written=rows)
    def write_rows(self, place: tuple[int, int], written: list[tuple[int, dict[str, float], float]]) -> None:
        cell, number, model = self.at(place)
        self.ledger.write_rows(self.study, cell, number, [Row(*row) for row in written])
        for step, row, wall_s in written:
            model.rows.setdefault(step, (row, wall_s))

    @precondition(some)
    @rule(place=places, step=steps, value=losses)
    def report(self, place: tuple[int, int], step: int, value: float) -> None:
        cell, number, model = self.at(place)
        if not model.told:  # Optuna holds a finished trial to be immutable
            self.ledger.report(self.study, cell, number, step, value)
            model.reported[step] = value

    @precondition(some)
    @rule(place=places, step=steps, path=texts, digest=texts)
    def write_checkpoint(self, place: tuple[int, int], step: int, path: str, digest: str) -> None:
        """Record one that lies under the home, or in a store, whose addresses are kept as they are."""
        cell, number, model = self.at(place)
        under = "s3://bucket" if len(path) % 2 else str(self.ledger.home)
        path = f"{under}/{self.study.name}/checkpoints/cell/trial/step-{path.encode().hex()}"
        self.ledger.write_checkpoint(self.study, cell, number, step, path, digest)
        model.checkpoints.setdefault(step, (path, digest))

    @precondition(some)
    @rule(
        place=places,
        circumstances=st.dictionaries(texts, st.integers() | texts, max_size=2),
    )
    def write_attempt(self, place: tuple[int, int], circumstances: dict[str, Any]) -> None:
        cell, number, model = self.at(place)
        self.ledger.write_attempt(self.study, cell, number, circumstances)
        model.attempts.append(circumstances)

    @precondition(some)
    @rule(place=places, reason=texts, nodes=st.frozensets(texts, max_size=2))
    def write_loss(self, place: tuple[int, int], reason: str, nodes: frozenset[str]) -> None:
        cell, number, model = self.at(place)
        model.losses += 1
        assert len(self.ledger.write_loss(self.study, cell, number, Loss(reason, nodes))) == model.losses
        assert self.ledger.losses(self.study, cell, number)[-1] == Loss(reason, nodes)

    @precondition(some)
    @rule(place=places, ending=endings)
    def end(self, place: tuple[int, int], ending: Ending) -> None:
        cell, number, model = self.at(place)
        first = model.ending is None
        wanted = model.ends(ending, told=True)
        assert self.ledger.end(self.study, cell, number, ending) == wanted or not first

    @precondition(some)
    @rule(place=places, ending=endings)
    def end_and_be_killed_before_optuna_hears_of_it(self, place: tuple[int, int], ending: Ending) -> None:
        cell, number, model = self.at(place)
        with mock.patch.object(Writer, "_tell"):
            self.ledger.end(self.study, cell, number, ending)
        model.ends(ending, told=False)
        self.reopen()

    @rule()
    def reopen(self) -> None:
        self.ledger = Writer(self.url)
        assert self.ledger.open(self.study, {"tests.toy": toy_trainable.METRICS}) == []

    @rule(cell=st.integers(0, 1))
    def heal(self, cell: int) -> None:
        interrupted = [number for number, model in enumerate(self.models[cell]) if model.ending is None]
        assert self.ledger.heal(self.study, self.cells[cell]) == interrupted
        for model in self.models[cell]:
            if model.ending is not None and not model.told:
                model.reported |= model.last()
                model.told = True

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        for ledger, cell, models in self.seen():
            for trial, model in zip(ledger.trials(self.study, cell), models, strict=True):
                ended = (trial.state, trial.reason, trial.traceback, trial.cause)
                assert ended == (astuple(model.ending) if model.ending else ("RUNNING", "", "", None))
                finite = model.worth is not None and math.isfinite(model.worth)
                assert trial.values == ((model.worth,) if finite else None)
                assert (trial.params, trial.seed) == (model.params, model.seed)
                assert (trial.ended_s is None) is (model.ending is None)

    @invariant()
    def rows_checkpoints_and_attempts_stay_as_they_were_first_written(self) -> None:
        for ledger, cell, models in self.seen():
            for number, model in enumerate(models):
                found = [(row.step, (row.metrics, row.wall_s)) for row in ledger.rows(self.study, cell, number)]
                assert repr(found) == repr(sorted(model.rows.items()))
                assert ledger.last_step(self.study, cell, number) == max(model.rows, default=0)
                newest = model.checkpoints[max(model.checkpoints)][0] if model.checkpoints else None
                assert ledger.checkpoint(self.study, cell, number) == newest
                assert ledger.attempts(self.study, cell, number) == model.attempts

    @invariant()
    def optuna_says_what_the_model_says(self) -> None:
        for ledger, cell, models in self.seen():
            history = ledger.history(self.study, cell)
            assert [trial.number for trial in history] == list(range(len(models)))
            for trial, model in zip(history, models, strict=True):
                assert trial.state.name == (model.ending.state if model.ending and model.told else "RUNNING")
                valued = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
                assert trial.values == ([model.worth] if valued else None)
                assert repr(sorted(trial.intermediate_values.items())) == repr(sorted(model.reported.items()))

    def seen(self) -> list[tuple[Writer, Cell, list[Model]]]:
        """Both cells, one through the writer and one through the reader."""
        return (
            list(zip((self.ledger, self.reader), self.cells, self.models, strict=True))
            if hasattr(self, "study")
            else []
        )


def agrees(url: str, examples: int = 8) -> None:
    """Run the machine on the database at `url`."""
    machine = type("LedgerMachineAt", (LedgerMachine,), {"url": url})
    checks = settings(
        max_examples=examples, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=checks)


def test_the_ledger_on_sqlite_agrees_with_a_model_of_dictionaries(tmp_path: Path) -> None:
    agrees(f"sqlite:///{tmp_path}/ledger.db")
