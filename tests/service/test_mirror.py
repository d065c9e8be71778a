"""The mirror's process, as a study's driver holds it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from cs330ray.service.ledger import Ledger
from tests import toy as toy_trainable
from tests.studies_of_tests import toy


@pytest.mark.slow
def test_a_mirror_that_is_held_by_a_pipe_outlives_a_sigterm_that_was_for_all(home: Path) -> None:
    Ledger.at(home).open(toy(), {"tests.toy": toy_trainable.METRICS})
    mirror = subprocess.Popen(
        [sys.executable, "-m", "cs330ray", "sync", "toy", "--follow", "--until-eof"],
        env={**os.environ, "CS330RAY_HOME": str(home)}, stdin=subprocess.PIPE,
    )  # fmt: skip
    client, until = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db"), time.monotonic() + 90
    while client.get_experiment_by_name("toy") is None:
        assert time.monotonic() < until
        time.sleep(0.2)
    mirror.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        mirror.wait(4)
    assert mirror.stdin is not None
    mirror.stdin.close()
    assert mirror.wait(30) == 0
