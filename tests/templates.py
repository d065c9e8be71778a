"""What every new database costs is paid once a process: its tables are copied, and migrations are read once."""

import functools
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from optuna.storages import RDBStorage
from optuna.storages._rdb.storage import _VersionManager

from cs330ray.ledger import database as ledger_database


@pytest.fixture(scope="session", autouse=True)
def quick_databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have Optuna and MLflow make their tables in a template, of which every new database in SQLite is a copy.

    Both look through their migrations whenever a database is opened, to learn the newest: here, once.
    """
    folder = tmp_path_factory.mktemp("templates")
    with pytest.MonkeyPatch.context() as patch:
        opened = ledger_database._optuna_storage
        patch.setattr(ledger_database, "_optuna_storage", copying_optuna(opened, folder / "optuna.db"))
        patch.setattr(_VersionManager, "_create_alembic_script", once(_VersionManager._create_alembic_script))
        if "mlflow" in sys.modules:  # where no test needs it, none waits for it
            from mlflow.store.db import utils

            patch.setattr(utils, "_initialize_tables", copying_mlflow(utils._initialize_tables, folder / "mlflow.db"))
            patch.setattr(utils, "_get_latest_schema_revision", functools.cache(utils._get_latest_schema_revision))
        yield


def once(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A method that answers every object what it answered the first."""
    answers: list[Any] = []

    def answered(self: Any) -> Any:
        if not answers:
            answers.append(method(self))
        return answers[0]

    return answered


def copying_optuna(opened: Callable[..., RDBStorage], template: Path) -> Callable[..., RDBStorage]:
    """The ledger's way to open Optuna's tables, which in SQLite finds them made."""

    def copied(url: str, *, create: bool) -> RDBStorage:
        address = sql.make_url(url)
        if create and address.get_backend_name() == "sqlite":
            if not template.exists():
                opened(f"sqlite:///{template}", create=True).engine.dispose()
            assert address.database is not None
            with closing(sqlite3.connect(template)) as source, closing(sqlite3.connect(address.database)) as target:
                source.backup(target)
        return opened(url, create=create)

    return copied


def copying_mlflow(make: Callable[[sql.Engine], None], template: Path) -> Callable[[sql.Engine], None]:
    """MLflow's way to make its tables, which in SQLite copies them."""

    def copied(engine: sql.Engine) -> None:
        if engine.dialect.name != "sqlite":
            make(engine)
            return
        if not template.exists():
            first = sql.create_engine(f"sqlite:///{template}")
            make(first)
            first.dispose()
        with closing(sqlite3.connect(template)) as source, engine.connect() as target:
            source.backup(target.connection.driver_connection)

    return copied
