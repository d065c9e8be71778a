"""A PostgreSQL of the tests' own: a server that starts when a test wants it, and a fresh database for each test."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

DEBIAN = Path("/usr/lib/postgresql")


class Server:
    """A private server, reached through a Unix socket in a directory of its own, with a password."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.folder, self.binaries = folder, binaries
        self.password = secrets.token_urlsafe(16)
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # which the server refuses
            user, group = _unprivileged()
            os.chown(folder, user, group)
            self._as = {"user": user, "group": group, "extra_groups": []}
        (folder / "password").write_text(self.password)
        (folder / "password").chmod(0o644)  # the directory is closed
        self._do("initdb", "-D", str(folder / "data"), "-U", "tester", "-A", "scram-sha-256", "--no-locale",
                 "-E", "UTF8", "--no-sync", "--pwfile", str(folder / "password"))  # fmt: skip

    def _do(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.binaries / program), *arguments], **self._as, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        settings = {"unix_socket_directories": str(self.folder), "listen_addresses": "", "fsync": "off",
                    "shared_buffers": "16MB", "max_connections": "60"}  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.folder / "data"), *options],
                **self._as, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._until_it_answers()

    def _until_it_answers(self, seconds: float = 60) -> None:
        import psycopg

        until = time.monotonic() + seconds
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        """Close every connection and end."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def url(self, database: str) -> str:
        return f"postgresql://tester:{quote(self.password, safe='')}@/{database}?host={self.folder}"

    @contextlib.contextmanager
    def password_changed(self, password: str) -> Iterator[None]:
        """Another password for a while."""
        before = self.password
        self._set_password(password)
        try:
            yield
        finally:
            self._set_password(before)

    def _set_password(self, password: str) -> None:
        text = password.replace("'", "''")
        self._execute(f"alter role tester password '{text}'")
        self.password = password

    def create(self, database: str) -> str:
        """A new, empty database; its address."""
        self._execute(f'create database "{database}" template template0')
        return self.url(database)

    def drop(self, database: str) -> None:
        self._execute(f'drop database "{database}" with (force)')

    def _execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


def _unprivileged() -> tuple[int, int]:
    known = {entry.pw_name: (entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall()}
    return known.get("postgres", known["nobody"])


def programs() -> Path | None:
    """The folder of the server's programs, or None where it is not installed."""
    found = shutil.which("initdb")
    installed = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda program: float(program.parts[-3]))
    return Path(found).parent if found else installed[-1].parent if installed else None


@contextlib.contextmanager
def serving(binaries: Path) -> Iterator[Server]:
    """A server in a directory of its own, which goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="cs330ray-postgres-"))
    try:
        server = Server(binaries, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server of the run."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'cs330ray[postgres]'")
    binaries = programs()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    with serving(binaries) as server:
        yield server


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """The address of a fresh database."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres.create(name)
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ledger of every home of this test lies in a file, or in a fresh database."""
    if request.param == "postgresql":
        monkeypatch.setenv("CS330RAY_LEDGER", request.getfixturevalue("database"))
    else:
        monkeypatch.delenv("CS330RAY_LEDGER", raising=False)
    return str(request.param)
