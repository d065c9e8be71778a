"""The version of a ledger's tables, and the numbered steps from each version to the next.

A step runs in one transaction together with the number that it reaches, so that it is taken whole or not at all. Only
a driver takes steps. Readers read every version: what a step adds is derived while reading, by the functions that the
step itself uses.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sql

from cs330ray.ledger.records import Cause
from cs330ray.ledger.tables import CHECKPOINTS, ENDS, LOSSES, STUDIES, TABLES, TESTS

VERSION = 1
LOCK_S = 60
SCHEMA = sql.Table("cs330ray_schema", sql.MetaData(), sql.Column("version", sql.Integer, nullable=False))
LATER = (ENDS.c.cause, LOSSES.c.nodes)  # columns that a ledger of version 0 lacks
CAUSES: Mapping[str, Cause] = {  # by how a reason began in version 0
    "diverged: ": "diverged",
    "raised: ": "raised",
    "out of memory": "memory",
    "worker lost": "lost",
}


def version_of(engine: sql.Engine) -> int | None:
    """Read the version of a ledger; None where there is none yet."""
    tables = set(sql.inspect(engine).get_table_names())
    if SCHEMA.name not in tables:
        return 0 if STUDIES.name in tables else None
    with engine.connect() as connection:
        return int(connection.execute(sql.select(SCHEMA.c.version)).scalar_one())


def make(engine: sql.Engine) -> None:
    """Make the tables of a new ledger, in the newest version."""
    with transaction(engine) as connection:
        TABLES.create_all(connection)
        SCHEMA.create(connection)
        connection.execute(SCHEMA.insert().values(version=VERSION))


def upgrade(engine: sql.Engine, version: int) -> None:
    """Take a ledger from `version` to the newest, one transaction a step."""
    for number in range(version + 1, VERSION + 1):
        with transaction(engine) as connection:
            STEPS[number](connection)
            connection.execute(SCHEMA.update().values(version=number))


def missing(engine: sql.Engine) -> frozenset[sql.Column[Any] | sql.Table]:
    """List the columns and the tables that an older ledger lacks; it is only read."""
    inspector = sql.inspect(engine)
    names = set(inspector.get_table_names())
    tables = frozenset(table for table in TABLES.sorted_tables if table.name not in names)
    return tables | {
        column
        for column in LATER
        if column.table in tables
        or column.name not in {each["name"] for each in inspector.get_columns(column.table.name)}
    }


@contextmanager
def transaction(engine: sql.Engine) -> Iterator[sql.Connection]:
    """Begin a transaction that holds changes of tables too, and writes from its first statement on.

    SQLite's driver commits before it changes a table, unless the transaction is begun by hand.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else "BEGIN")
        try:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_S}s'")  # else a reader holds everybody up
            yield connection
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")


# Version 0: causes and nodes stand in the words of reasons alone, and paths are absolute --------------------------


def cause_of(reason: str, state: str) -> Cause | None:
    """Read the cause of an end from the words of its reason, as version 0 has it."""
    if state in ("COMPLETE", "PRUNED"):
        return "pruned" if state == "PRUNED" else None
    return next((cause for words, cause in CAUSES.items() if reason.startswith(words)), "unscored")


def nodes_of(reason: str) -> frozenset[str]:
    """Read the nodes of a loss from the words of its reason, as version 0 has them."""
    named = re.search(r" \[on ([0-9a-z ]+)\]$", reason)
    return frozenset(named[1].split()) if named else frozenset()


def relative(path: str) -> str:
    """Make the place of a checkpoint relative to the home, wherever that was; an address in a store stays.

    A home holds `STUDY/checkpoints/CELL/TRIAL/STEP` and `alone/SYSTEM/DIGEST/STEP`.
    """
    parts = PurePosixPath(path).parts
    if "://" in path or len(parts) < 4:
        return path
    if parts[-4] == "checkpoints" and len(parts) > 4:
        return str(PurePosixPath(*parts[-5:]))
    return str(PurePosixPath(*parts[-4:])) if parts[-4] == "alone" else path


def _to_version_1(connection: sql.Connection) -> None:
    """Give ends their cause and losses their nodes, make paths relative to the home, and begin to count versions."""
    TABLES.create_all(connection)  # a table that came later than the ledger
    inspector = sql.inspect(connection)
    for column in LATER:
        if column.name not in {each["name"] for each in inspector.get_columns(column.table.name)}:
            connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} TEXT")
    _fill(connection, ENDS, ENDS.c.cause, lambda row: cause_of(row.reason, row.state))
    _fill(connection, LOSSES, LOSSES.c.nodes, lambda row: json.dumps(sorted(nodes_of(row.reason))))
    _fill(connection, CHECKPOINTS, CHECKPOINTS.c.path, lambda row: relative(row.path))
    _fill(connection, TESTS, TESTS.c.checkpoint, lambda row: relative(row.checkpoint))
    SCHEMA.create(connection)
    connection.execute(SCHEMA.insert().values(version=0))


def _fill(
    connection: sql.Connection, table: sql.Table, column: sql.Column[Any], value: Callable[[sql.Row[Any]], str | None]
) -> None:
    """Set a column of every row to what `value` makes of the row, by its key."""
    keys = list(table.primary_key.columns)
    rows = [
        {**{f"key_{key.name}": getattr(row, key.name) for key in keys}, "made": value(row)}
        for row in connection.execute(sql.select(table)).all()
    ]
    if rows:
        where = sql.and_(*(key == sql.bindparam(f"key_{key.name}") for key in keys))
        connection.execute(table.update().where(where).values({column: sql.bindparam("made")}), rows)


STEPS: Mapping[int, Callable[[sql.Connection], None]] = {1: _to_version_1}
