"""A whole study whose ledger lies on PostgreSQL: run, killed, cut off from its server, mirrored."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from cs330ray.service.run import run
from cs330ray.spec.study import Study
from tests.service.conftest import Server
from tests.studies_of_tests import toml, toy, whole

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.slow]


def slow() -> Study:
    return toy(
        fixed={"sleep_s": 0.05},
        budget={"trials": 3, "steps": 40},
        prune={"kind": "asha", "min_steps": 10},
        resources={"slots": 1, "checkpoint": 1},
    )


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory, ray_here: str) -> list[tuple[Any, ...]]:
    """The same study, undisturbed, with its ledger in a file."""
    home = tmp_path_factory.mktemp("on-sqlite")
    run(slow(), home, mirror=False)
    return whole(home)


@pytest.fixture
def ledger(home: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    """The ledger of `home` on PostgreSQL."""
    monkeypatch.setenv("CS330RAY_LEDGER", database)
    yield Writer.at(home)
    left = [name for name in ("ledger.db", "ledger.db.lock") if (home / name).exists()]
    assert left == []


class Driver:
    """`cs330ray run` in a process of its own, on the run's Ray."""

    def __init__(self, home: Path, address: str) -> None:
        file = toml(slow(), home.parent / "slow.toml")
        self._log = home.parent / "driver.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cs330ray", "run", str(file)],
                env={**os.environ, "RAY_ADDRESS": address}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def until_checkpoint(self, ledger: Writer, seconds: float = 90) -> None:
        """Wait until the first trial has left a checkpoint and runs on."""
        until, study = time.monotonic() + seconds, slow()
        while ledger.find("toy") is None or ledger.checkpoint(study, study.cells[0], 0) is None:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < until, self.text
            time.sleep(0.05)

    @property
    def text(self) -> str:
        return self._log.read_text()

    def end(self, seconds: float = 120) -> int:
        return self.process.wait(seconds)


def test_a_killed_driver_goes_on_as_if_nothing_had_been_and_the_mirror_shows_it(
    home: Path, ledger: Writer, ray_here: str, on_sqlite: list[tuple[Any, ...]]
) -> None:
    first = Driver(home, ray_here)
    first.until_checkpoint(ledger)
    first.process.send_signal(signal.SIGKILL)
    first.end()
    second = Driver(home, ray_here)
    assert second.end() == 0, second.text
    assert "goes on from its checkpoint at step" in second.text
    assert whole(home) == on_sqlite
    Mirror(ledger, "toy", home).sync()
    assert Mirror(ledger, "toy", home).sync() == 0
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    tags = [run.data.tags for run in runs if run.data.tags["cs330ray.kind"] == "trial"]
    shown = {(int(tag["cs330ray.trial"]), tag["cs330ray.state"]) for tag in tags}
    assert len(tags) == 3
    assert shown == {(number, state) for _, number, state, *_ in on_sqlite}


def test_a_server_that_goes_away_ends_the_run_in_one_line_and_the_same_command_goes_on(
    home: Path, ledger: Writer, postgres: Server, ray_here: str, on_sqlite: list[tuple[Any, ...]]
) -> None:
    first = Driver(home, ray_here)
    first.until_checkpoint(ledger)
    shown = "\n".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    postgres.stop()
    try:
        assert first.end() == 2, first.text
    finally:
        postgres.start()
    assert first.text.splitlines()[-1].startswith("postgresql+psycopg://***@")
    assert "Traceback" not in first.text
    second = Driver(home, ray_here)
    assert second.end() == 0, second.text
    assert whole(home) == on_sqlite
    logs = [file.read_text(errors="replace") for file in home.rglob("*.log")]
    assert logs
    assert not [text for text in [shown, first.text, second.text, *logs] if postgres.password in text]
