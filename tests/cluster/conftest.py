"""A cluster on one machine: `ray up` from a desk to a head and a worker, with the head's databases beside them."""

import contextlib
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.hosts import ROOT, Hosts, hosts, why_not
from tests.postgres import DEBIAN, Server

NAMES = ("desk", "head", "worker")
BOOT_S = 120
MLFLOW = "http://127.0.0.1:5000"
START = "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0"
PROFILE = f"""
export PATH={Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
case $(hostname) in
  desk) export PYTHONPATH={ROOT}/src:{ROOT} ;;
  head) export CS330RAY_HOME={{home}} CS330RAY_LEDGER='{{ledger}}' MLFLOW_TRACKING_URI={MLFLOW} ;;
esac
"""


@dataclass(frozen=True)
class UpCluster:
    """A cluster that was started by `ray up`."""

    hosts: Hosts
    file: Path  # what `ray up` was given
    token: Path
    home: Path  # of studies, on the disk of all
    ledger: str
    mlflow: str  # MLflow's database

    def submit(self, *words: str) -> list[str]:
        """The words of a submit from the desk."""
        return ["cs330ray", "submit", *words, "--token-file", str(self.token)]

    def up(self) -> None:
        """Bring it up, from a head that has just booted: its MLflow, Ray, and a tunnel from the desk to it."""
        desk, head = self.hosts["desk"], self.hosts["head"]
        head.start(
            "env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "mlflow", "server", "--backend-store-uri", self.mlflow,
            "--host", "127.0.0.1", "--workers", "1", log=self.hosts.folder / "mlflow.log",
        )  # fmt: skip
        desk.run("ray", "up", "-y", "--no-config-cache", str(self.file), seconds=BOOT_S)
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ServerAliveInterval=2"]
        desk.start(
            "ssh", "-N", "-i", str(self.hosts.key), *(word for option in options for word in ("-o", option)),
            "-L", "8265:127.0.0.1:8265", f"root@{head.address}", log=self.hosts.folder / "tunnel.log",
        )  # fmt: skip
        self._until_joined()

    def _until_joined(self) -> None:
        until = time.monotonic() + BOOT_S
        while True:
            done = self.hosts["desk"].run("cs330ray", "status", "--token-file", str(self.token), check=False)
            if ": 2 nodes, 4 CPUs" in done.stdout:
                return
            assert time.monotonic() < until, f"{done.stdout}{done.stderr}"
            time.sleep(1)


def cluster_file(made: Hosts, token: Path) -> dict[str, Any]:
    """What `ray up` is to start."""
    return {
        "cluster_name": "hosts",
        "max_workers": 1,
        "provider": {
            "type": "local", "head_ip": made.address("head"), "worker_ips": [made.address("worker")],
        },
        "auth": {"ssh_user": "root", "ssh_private_key": str(made.key)},
        "file_mounts": {"~/.ray/auth_token": str(token)},
        "head_start_ray_commands": [
            "ray stop",
            f"{START} RAY_enable_autoscaler_v2=0 ray start --head --port=6379 --num-cpus=2 "
            "--dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop", f"{START} ray start --address=$RAY_HEAD_IP:6379 --num-cpus=2"
        ],
    }  # fmt: skip


def _without() -> str | None:
    """What is missing here for a cluster of hosts."""
    found = sorted(DEBIAN.glob("*/bin/initdb"))
    if not found and not shutil.which("initdb"):
        return "no PostgreSQL server is installed: apt-get install postgresql"
    parts = [name for name in ("psycopg", "aiohttp_cors", "opencensus") if find_spec(name) is None]
    if parts:
        return f"{', '.join(parts)} missing: pip install 'cs330ray[cluster,postgres]'"
    return why_not()


@pytest.fixture(scope="session")
def cluster() -> Iterator[UpCluster]:
    """The cluster of the run; afterwards nothing of it is left."""
    if (reason := _without()) is not None:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(hosts(NAMES))
        folder = made.folder / "postgres"
        folder.mkdir()
        installed = shutil.which("initdb")
        binaries = Path(installed).parent if installed else max(DEBIAN.glob("*/bin"))
        databases = Server(binaries, folder)
        databases.start()
        stack.callback(databases.stop)
        ledger, mlflow = databases.create("ledger"), databases.create("mlflow").replace("://", "+psycopg://", 1)
        home, token = made.folder / "runs", made.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        made.furnish(PROFILE.format(home=home, ledger=ledger))
        for name in NAMES:
            made.boot(name)
        file = made.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(cluster_file(made, token)))
        up = UpCluster(made, file, token, home, ledger, mlflow)
        up.up()
        yield up
