"""The tables of the ledger that are ours; those of Optuna lie beside them."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sql

from cs330ray.spec.study import Cell, Study

TABLES = sql.MetaData()


def _table(name: str, keys: Sequence[str], *columns: sql.Column[Any]) -> sql.Table:
    """A table of ours, keyed by texts and, under the names `trial`, `step`, `attempt` and `look`, by integers."""
    integers = {"trial", "step", "attempt", "look"}
    key_columns = [sql.Column(key, sql.Integer if key in integers else sql.Text, primary_key=True) for key in keys]
    return sql.Table(f"cs330ray_{name}", TABLES, *key_columns, *columns)


def _text(name: str) -> sql.Column[Any]:
    return sql.Column(name, sql.Text, nullable=False)


def _later(name: str) -> sql.Column[Any]:
    """A column that older ledgers lack; see `schema.missing`."""
    return sql.Column(name, sql.Text, nullable=True)


def _time(name: str = "wall_s") -> sql.Column[Any]:
    return sql.Column(name, sql.Double, nullable=False)


TRIAL = ("study", "cell", "trial")
STUDIES = _table("studies", ["name"], _text("uid"), _text("digest"), _text("spec"), _time(), _later("asking"))
METRICS = _table("metrics", ["study", "trainable", "metric"], _text("description"))
SESSIONS = _table("sessions", ["study", "session"], _time("started_s"), _time("seen_s"))
LEASES = _table("leases", ["study"], _text("owner"), _text("holder"), sql.Column("beats", sql.Integer, nullable=False))
REQUESTS = _table("requests", ["study", "owner", "cell", "trial"], _time())  # to the driver that owns the lease
STORES = _table("stores", ["study"], _text("name"))
ROWS = _table("rows", [*TRIAL, "step"], _text("metrics"), _time())
SUPERSEDED = _table(
    "superseded", [*TRIAL, "attempt", "step"], _text("metrics"), _time()
)  # rows of an attempt that began anew
CHECKPOINTS = _table("checkpoints", [*TRIAL, "step"], _text("path"), _text("digest"), _time())
ATTEMPTS = _table("attempts", [*TRIAL, "attempt"], _text("circumstances"), _time())
LOSSES = _table("losses", [*TRIAL, "attempt"], _text("reason"), _time(), _later("nodes"))
ENDS = _table(
    "ends", TRIAL, _text("state"), _text("reason"), _text("traceback"), _text("worth"), _time(), _later("cause")
)
SCORES = _table("scores", TRIAL, _text("metrics"), _text("scored"), _time())
UNTESTED = _table("untested", TRIAL, _text("reason"), _text("traceback"), _time())
LOOKS = _table("looks", ["study", "look"], _text("seen"), _time())  # when it was said whether cells differ, from what
TESTS = _table(
    "tests", ["opening"], _text("trainable"), _text("config"), _text("checkpoint"), _text("metrics"), _time()
)


def of_trial(table: sql.Table, study: Study, cell: Cell, number: int) -> sql.ColumnElement[bool]:
    """Select the rows of one trial; the condition."""
    return (table.c.study == study.name) & (table.c.cell == cell.key) & (table.c.trial == number)
