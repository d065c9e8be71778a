"""What is recorded of a study, as values of JSON: our tables row by row, and Optuna's trials.

`checks` takes them where they arrive.
"""

import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sql
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

from cs330ray.ledger import confirm
from cs330ray.ledger.database import Database
from cs330ray.ledger.tables import (
    ATTEMPTS,
    CHECKPOINTS,
    ENDS,
    LEASES,
    LOOKS,
    LOSSES,
    METRICS,
    REQUESTS,
    ROWS,
    SCORES,
    SESSIONS,
    STORES,
    STUDIES,
    SUPERSEDED,
    TESTS,
    UNTESTED,
)
from cs330ray.spec.study import Study

# Of this home alone: the study itself, who runs it, what that one is asked, where the study's copies lie, and what was
# tested outside any study. A new table belongs in one of the two.
STAYS = (STUDIES, LEASES, REQUESTS, STORES, TESTS)
TRAVELS: Mapping[str, sql.Table] = {
    table.name.removeprefix("cs330ray_"): table
    for table in (METRICS, SESSIONS, ROWS, SUPERSEDED, CHECKPOINTS, ATTEMPTS, LOSSES, ENDS, SCORES, UNTESTED, LOOKS)
}
OF_HOME = {CHECKPOINTS.c.path}  # columns that are made where a study arrives


@contextmanager
def one_moment(database: Database) -> Iterator[sql.Connection]:
    """Connect so that all that is read is of one moment: an SQLite ledger opened for reading is a copy anyway."""
    with database.guarded(), database.engine.connect() as connection:
        if database.engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


def rows(
    database: Database, connection: sql.Connection, table: sql.Table, study: Study, trials: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Read a study's rows of a table, without what is of this home alone, of the `trials` that each cell has."""
    if table in database.lacks:
        return
    kept = [
        column.name
        for column in table.columns
        if column not in OF_HOME and column not in database.lacks and column.name != "study"
    ]
    searched = searched_by_cell(study)
    query = sql.select(*(table.c[name] for name in kept)).where(table.c.study == study.name)
    for row in connection.execute(query.order_by(*table.primary_key.columns)):
        found = dict(zip(kept, row, strict=True))
        if "trial" not in found or found["trial"] < trials.get(searched.get(found["cell"], ""), 0):
            yield found


def trial(cell: str, frozen: FrozenTrial) -> dict[str, Any]:
    """A trial of Optuna's."""
    return {
        "cell": cell,
        "number": frozen.number,
        "state": frozen.state.name,
        "values": frozen.values,
        "params": frozen.params,
        "distributions": {name: distribution_to_json(each) for name, each in frozen.distributions.items()},
        "user_attrs": frozen.user_attrs,
        "system_attrs": frozen.system_attrs,
        "intermediate": {str(step): value for step, value in frozen.intermediate_values.items()},
        "start": _time(frozen.datetime_start),
        "complete": _time(frozen.datetime_complete),
    }


def optuna_study(database: Database, study: str, cell: str) -> dict[str, Any]:
    """The Optuna study of a cell that has been asked, but for its trials."""
    study_id = database.storage.get_study_id_from_name(f"{study} {cell}")
    return {
        "cell": cell,
        "directions": [direction.name for direction in database.storage.get_study_directions(study_id)],
        "user_attrs": database.storage.get_study_user_attrs(study_id),
        "system_attrs": database.storage.get_study_system_attrs(study_id),
    }


def _time(moment: datetime.datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def searched_by_cell(study: Study) -> dict[str, str]:
    """Name for each cell, searched or under a fresh seed, the searched one: only that has trials of Optuna's."""
    return {cell.key: cell.searched.key for cell in [*study.cells, *confirm.fresh_cells(study)]}
