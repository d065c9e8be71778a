"""What opens something, over a whole study with real servers: no command shows it, and nothing that stays holds it."""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sql
from mlflow import MlflowClient

from cs330ray.ledger.database import Database
from tests.pair import free_port
from tests.postgres import Server

ROOT = Path(__file__).parents[1]
WORD = "s3cr3t-Word-of-the-tracker"
SMALL = ["budget.trials=1", "budget.steps=4", "sampler.startup=1", "confirm.top=1", "confirm.seeds=1",
         "fixed.eval_every_steps=2", "fixed.val_tasks=2", "fixed.test_tasks=2", "resources.slots=1"]  # fmt: skip


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[str]:
    """An MLflow server; its address."""
    port, quiet = free_port(), {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/tracker.db", "--port",
         str(port), "--workers", "1", "--default-artifact-root", str(tmp_path / "artifacts")],
        env={**os.environ, **quiet}, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
            process.kill()
        server.wait()


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=5).status == 200)
    except OSError:
        return False


class Lines:
    """The command lines of all processes, looked at again and again; those that hold a secret."""

    def __init__(self, secrets: list[str]) -> None:
        self.secrets, self.looks, self.found, self._over = secrets, 0, set[str](), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Lines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.looks += 1
            for process in psutil.process_iter():
                try:
                    line = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                self.found |= {line for secret in self.secrets if secret in line}


@pytest.mark.slow
def test_no_password_is_shown_or_left_by_a_study_of_servers_that_have_one(
    tmp_path: Path, postgres: Server, tracker: str
) -> None:
    ledger = postgres.create("secrets_left")
    secrets = [WORD, postgres.password]
    home, environment = tmp_path / "runs", {
        **os.environ, "CS330RAY_HOME": str(tmp_path / "runs"), "CS330RAY_LEDGER": ledger, "COLUMNS": "300",
        "MLFLOW_TRACKING_URI": f"http://user:{WORD}@{tracker}", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    shown = {}

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cs330ray", *words], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        shown[words[0]] = done.stdout + done.stderr
        assert done.returncode == 0, shown[words[0]]
        return done.stdout

    with Lines(secrets) as lines:
        command("run", "quickstart", *(word for each in SMALL for word in ("--set", each)))
        command("list")
        command("show", "quickstart", "0", "--log")
        command("best", "quickstart", "--export", str(tmp_path / "model"))
        command("report", "quickstart")
        command("report", "quickstart", "--to", str(tmp_path / "report"))
        command("sync", "quickstart")
        command("ui")
        command("pack", "quickstart", "-o", str(tmp_path / "study.zip"))
        environment["MLFLOW_TRACKING_URI"] = f"http://user:{WORD}@127.0.0.1:9"  # where nobody answers
        gone = subprocess.run(
            [sys.executable, "-m", "cs330ray", "sync", "quickstart"], env=environment, capture_output=True, text=True
        )
        shown["sync without a tracker"] = gone.stdout + gone.stderr
        assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    assert lines.looks > 20
    assert lines.found == set()
    for name, text in shown.items():
        assert not [secret for secret in secrets if secret in text], name
    files = [file for place in (home, tmp_path / "model", tmp_path / "report") for file in place.rglob("*")]
    files += [tmp_path / "study.zip", tmp_path / "tracker.db"]
    held = [file for file in files if file.is_file()]
    assert len(held) > 20
    assert not [file for file in held for secret in secrets if secret.encode() in file.read_bytes()]
    database = Database(ledger, "follow")
    for table in sql.inspect(database.engine).get_table_names():
        rows = database.select(sql.select(sql.text(f'"{table}"::text from "{table}"')))
        assert not [row for row in rows for secret in secrets if secret in str(row)], table
    database.engine.dispose()
    client = MlflowClient(f"http://{tracker}")
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) > 2
    assert not [run for run in runs for secret in secrets if secret in str(run.to_dictionary())]
