"""The version of a ledger's tables, and the numbered steps from each version to the next.

A step runs in one transaction together with the number that it reaches, so that it is taken whole or not at all. Only
a driver takes steps. Readers read every version: what a step adds is derived while reading, by the functions that the
step itself uses.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sql

from cs330ray.ledger.records import cause_of, nodes_of
from cs330ray.ledger.tables import CHECKPOINTS, ENDS, LOSSES, STUDIES, TABLES, TESTS

VERSION = 4
LOCK_S = 60
SCHEMA = sql.Table("cs330ray_schema", sql.MetaData(), sql.Column("version", sql.Integer, nullable=False))
LATER = (ENDS.c.cause, LOSSES.c.nodes, STUDIES.c.asking)  # columns that some older ledger lacks
OF_VERSION_1 = (ENDS.c.cause, LOSSES.c.nodes)


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
    for column in OF_VERSION_1:
        _add(connection, column)
    _fill(connection, ENDS, ENDS.c.cause, lambda row: cause_of(row.reason, row.state))
    _fill(connection, LOSSES, LOSSES.c.nodes, lambda row: json.dumps(sorted(nodes_of(row.reason))))
    _fill(connection, CHECKPOINTS, CHECKPOINTS.c.path, lambda row: relative(row.path))
    _fill(connection, TESTS, TESTS.c.checkpoint, lambda row: relative(row.checkpoint))
    SCHEMA.create(connection)
    connection.execute(SCHEMA.insert().values(version=0))


def _add(connection: sql.Connection, column: sql.Column[Any]) -> None:
    """Add a column of texts to its table, unless that was made with it."""
    if column.name not in {each["name"] for each in sql.inspect(connection).get_columns(column.table.name)}:
        connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} TEXT")


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


def _to_version_2(connection: sql.Connection) -> None:
    """Make the table in which a driver is asked to stop."""
    TABLES.create_all(connection)


def _to_version_3(connection: sql.Connection) -> None:
    """Note of every study so far that its cells ask each for itself."""
    TABLES.create_all(connection)  # tables that this version adds
    _add(connection, STUDIES.c.asking)
    connection.execute(STUDIES.update().values(asking="own"))


def _to_version_4(connection: sql.Connection) -> None:
    """Make the table of rows that a later attempt of a trial has superseded."""
    TABLES.create_all(connection)


STEPS: Mapping[int, Callable[[sql.Connection], None]] = {
    1: _to_version_1,
    2: _to_version_2,
    3: _to_version_3,
    4: _to_version_4,
}
