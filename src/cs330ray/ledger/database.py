"""The database of a ledger: its address, its three ways of opening, and its errors.

*Read*: an SQLite ledger is copied whole into a temporary directory and read there, so that reading needs no right to
write, takes no lock and leaves no file behind. *Follow*: read in place while a driver writes. *Write*: make what is not
there yet. A PostgreSQL ledger is read in place; a role that may only SELECT is enough.
"""

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import filelock
import optuna
import sqlalchemy as sql
from optuna.storages import RDBStorage
from sqlalchemy.dialects import postgresql, sqlite

from cs330ray.errors import LedgerError
from cs330ray.files import Scratch
from cs330ray.ledger import backup, schema
from cs330ray.spec import places
from cs330ray.words import redacted, typed_first_line

optuna.logging.set_verbosity(optuna.logging.WARNING)

OPEN_S = 60
LOCK = 330_330  # PostgreSQL's name for the lock under which the tables are made
ENGINE: Mapping[str, Mapping[str, Any]] = {  # a connection that the server has closed meanwhile is opened again
    "sqlite": {"connect_args": {"timeout": 60}},
    "postgresql": {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True},
}

Access = Literal["read", "follow", "write"]


def url_of(home: Path) -> str:
    """The address of the ledger of a home: CS330RAY_LEDGER, else `ledger.db` there."""
    return os.environ.get("CS330RAY_LEDGER") or sqlite_url(home.resolve() / places.LEDGER)


def sqlite_url(file: Path) -> str:
    """The address of an SQLite file, whatever characters its path has: `?` and `%` mean something in an address."""
    return sql.URL.create("sqlite", database=str(file)).render_as_string()


class Database:
    """A connection to the ledger at `url`, for example `sqlite:////home/me/runs/ledger.db`. Raises LedgerError."""

    def __init__(self, url: str, access: Access) -> None:
        address = _address(url)
        self.url = address.render_as_string(hide_password=False)
        self.file = Path(address.database or "") if address.get_backend_name() == "sqlite" else None
        self.failure: LedgerError | None = None  # the first, for callers whose framework wraps it
        self._open = threading.local()  # the connection of the transaction that this thread is in, if it is in one
        with self.guarded():
            self._must_not_be_lost()
            if access != "write":
                self._must_be_there()
            if access == "read" and self.file is not None:
                address = address.set(database=str(self._copy(self.file)))
            self.engine = _engine(address)
            weakref.finalize(self, self.engine.dispose)  # a server counts the connections that are left open
            if access == "write":
                self._make()
            version = schema.version_of(self.engine)
            if version is None:
                raise LedgerError(
                    f"{redacted(self.url)}: a ledger is needed here, but there is none; run a study first"
                )
            self.version = self._known(version)
            self.storage = self._optuna(address.render_as_string(hide_password=False))
            self.lacks = schema.missing(self.engine)

    def _copy(self, file: Path) -> Path:
        """Copy an SQLite file with its log to a temporary directory that goes with this object; the copy."""
        try:
            self._scratch = Scratch("ledger")
        except OSError as error:
            raise backup.no_room(file, error) from None
        return backup.copied_whole(file, self._scratch.path)

    def _make(self) -> None:
        """Make the tables where there are none. Two processes that find none must not both make them."""
        with alone(self.engine):
            self._must_be_ours()
            if self.engine.dialect.name == "sqlite":
                with self.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if schema.version_of(self.engine) is None:
                _optuna_storage(self.engine.url.render_as_string(hide_password=False), create=True).engine.dispose()
                schema.make(self.engine)

    def _known(self, version: int) -> int:
        if version > schema.VERSION:
            raise LedgerError(
                f"{redacted(self.url)}: the ledger must have version {schema.VERSION} or less, but got {version}: a "
                "newer cs330ray made it; install that one"
            )
        return version

    def upgrade(self) -> None:
        """Take the ledger to the newest version, Optuna's own tables included; one transaction a step.

        The caller has made sure that nobody else writes, and has backed the ledger up.
        """
        with self.guarded(), alone(self.engine):
            if self._optuna_is_old():
                with _silent():
                    self.storage.upgrade()
            schema.upgrade(self.engine, schema.version_of(self.engine) or 0)
        self.look_again()

    def look_again(self) -> None:
        """Read the version again: another driver may have upgraded the ledger."""
        with self.guarded():
            self.version = self._known(schema.version_of(self.engine) or 0)
            self.lacks = schema.missing(self.engine)

    @property
    def is_old(self) -> bool:
        """Whether a driver has to upgrade the ledger before it writes."""
        with self.guarded():
            return self.version < schema.VERSION or self._optuna_is_old()

    def _optuna_is_old(self) -> bool:
        return self.storage.get_current_version() != self.storage.get_head_version()

    def _optuna(self, url: str) -> RDBStorage:
        storage = _optuna_storage(url, create=False)
        weakref.finalize(self, storage.engine.dispose)
        if (version := storage.get_current_version()) not in storage.get_all_versions():
            raise LedgerError(
                f"{redacted(self.url)}: Optuna's tables must be of a version that is installed, but got {version}; "
                "install the newer Optuna that made them"
            )
        return storage

    def _must_be_there(self) -> None:
        """Refuse to read what is not there: SQLite would make an empty file. Raises LedgerError."""
        if self.file is not None and not os.path.isfile(self.file):  # noqa: PTH113 - False where it may not be seen
            raise self._none_here()

    def _none_here(self) -> LedgerError:
        return LedgerError(
            f"{redacted(self.url)}: a ledger is needed here, but there is none that this user may see; run a study "
            "first, or set CS330RAY_HOME"
        )

    def _must_not_be_lost(self) -> None:
        """Refuse to start over where there was a ledger: SQLite takes an empty file for an empty database."""
        if self.file is None or self.file.name != places.LEDGER or not backup.copies(self.file.parent):
            return
        if not self.file.exists() or self.file.stat().st_size == 0:
            raise LedgerError(backup.damaged(self.file, "it is empty" if self.file.exists() else "it is gone"))

    def _must_be_ours(self) -> None:
        """Refuse a database of another program, MLflow for one, before a table is made in it. Raises LedgerError."""
        tables = set(sql.inspect(self.engine).get_table_names())
        if "alembic_version" in tables and "version_info" not in tables:  # the second is Optuna's
            raise LedgerError(
                f"{redacted(self.url)}: the ledger needs a database of its own, but another program keeps its tables "
                "here; set CS330RAY_LEDGER"
            )

    # Statements --------------------------------------------------------------------------------------------------

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Make one transaction of all statements of this thread that are executed inside."""
        if getattr(self._open, "connection", None) is not None:
            yield
            return
        with self.guarded():
            connection = self.engine.connect()
        try:
            with self.guarded():
                transaction = connection.begin()
            self._open.connection = connection
            try:
                yield
            except BaseException:
                with contextlib.suppress(sql.exc.SQLAlchemyError):  # what went wrong is said
                    transaction.rollback()
                raise
            with self.guarded():
                transaction.commit()
        finally:
            self._open.connection = None
            connection.close()

    def _executed(self, statement: sql.Executable, rows: Any = None) -> sql.CursorResult[Any]:
        """Execute a statement in the transaction that this thread is in."""
        with self.guarded():
            return self._open.connection.execute(statement, rows)  # type: ignore[no-any-return]

    def insert(self, table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert rows; those whose key is there already stay as they are; how many were inserted."""
        return self.execute(self._insert(table).on_conflict_do_nothing(), rows) if rows else 0

    def put(self, table: sql.Table, row: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Insert a row, or set the one that has its keys to it."""
        self.execute(self._insert(table).on_conflict_do_update(index_elements=keys, set_=row), [row])

    def add(self, table: sql.Table, row: Mapping[str, Any]) -> int:
        """Insert a row of a table that numbers its rows; its number."""
        with self.at_once():
            key = self._executed(table.insert().values(row)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def _insert(self, table: sql.Table) -> Any:
        return (postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert)(table)

    def execute(self, statement: sql.Executable, rows: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Execute a statement; how many rows it touched."""
        with self.at_once():
            return int(self._executed(statement, rows).rowcount)

    def replace(self, deleted: Sequence[sql.Delete], table: sql.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Delete, and insert rows into a table, in one transaction."""
        with self.at_once():
            for statement in deleted:
                self.execute(statement)
            if rows:
                self.execute(table.insert(), rows)

    def select(self, statement: sql.Select[Any]) -> Sequence[sql.Row[Any]]:
        """Execute a query; its rows, none where an older ledger lacks its table."""
        if self.lacks and any(table in self.lacks for table in statement.get_final_froms()):
            return []
        if getattr(self._open, "connection", None) is not None:
            return self._executed(statement).all()
        with self.guarded(), self.engine.connect() as connection:
            return connection.execute(statement).all()

    def all_of(self, table: sql.Table) -> sql.Select[Any]:
        """Select the columns of a table that this ledger has: an older one lacks some."""
        return sql.select(*(column for column in table.columns if column not in self.lacks))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn what a database or its driver raises into a LedgerError of one line."""
        try:
            yield
        except (sql.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            reason = redacted(typed_first_line(cause))
            if self.file is not None and ("malformed" in reason or "not a database" in reason):
                self.failure = LedgerError(backup.damaged(self.file, reason))
            else:
                self.failure = LedgerError(
                    f"{redacted(self.url)}: the ledger must be readable and writable, but {reason}; nothing was "
                    "overwritten"
                )
            raise self.failure from error


def _address(url: str) -> sql.URL:
    """The address of a ledger, its driver named. Raises LedgerError where no such ledger can be."""
    said = f"{redacted(url)}: the ledger must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        address = sql.make_url(url)
    except (sql.exc.ArgumentError, ValueError):
        raise LedgerError(f"{said}, but that is neither; set CS330RAY_LEDGER") from None
    if address.get_backend_name() not in ENGINE:
        raise LedgerError(f"{said}, but got {address.drivername}; set CS330RAY_LEDGER")
    if "@" in (address.host or ""):
        raise LedgerError(f"{said}, where an @ of the password is written %40; set CS330RAY_LEDGER")
    if address.get_backend_name() == "sqlite":
        if "?" in url:  # all that follows would be dropped without a word, and two ledgers be one file
            raise LedgerError(
                f"{said}, where a ? of the path is written %3F and a % is written %25; set CS330RAY_LEDGER"
            )
        if address.database in (None, "", ":memory:"):
            raise LedgerError(f"{said}, and memory is no place to keep it; set CS330RAY_LEDGER")
    return address.set(drivername="postgresql+psycopg") if address.drivername == "postgresql" else address


def _engine(address: sql.URL) -> sql.Engine:
    try:
        options = {"preserve_rowcount": True}  # psycopg's cursor is closed when it is asked
        return sql.create_engine(address, execution_options=options, **ENGINE[address.get_backend_name()])
    except ImportError as error:
        raise LedgerError(
            f"{redacted(str(address))}: the ledger's driver must be installed, but there is no {error.name}; "
            "pip install 'cs330ray[postgres]' brings psycopg"
        ) from None


def _optuna_storage(url: str, *, create: bool) -> RDBStorage:
    """Open Optuna's tables, which are made only where `create` says so; an older schema of theirs is read as it is."""
    kind = sql.make_url(url).get_backend_name()
    return RDBStorage(
        url, engine_kwargs=dict(ENGINE[kind]), skip_compatibility_check=not create, skip_table_creation=not create
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Optuna's migrations from setting up the logging of this process, which they do where nobody has."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def alone(engine: sql.Engine) -> Iterator[None]:
    """Hold a ledger while its tables are made or changed."""
    place = engine.url.database
    try:
        if engine.dialect.name == "postgresql":
            with engine.connect() as connection:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{OPEN_S}s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
                yield
        elif place:
            with filelock.FileLock(f"{place}.lock", timeout=OPEN_S):
                yield
        else:
            yield
    except filelock.Timeout:
        raise LedgerError(
            f"{place}.lock: the ledger must open within {OPEN_S} s, but another process holds it"
        ) from None
    except OSError as error:
        raise LedgerError(
            f"{place}: the ledger must be readable and writable, but {error.strerror or error}; nothing was overwritten"
        ) from None
