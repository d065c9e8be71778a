"""A Slurm of one machine: its controller and two nodes, whose daemons are Debian's, without systemd and cgroups.

Both nodes are this machine, so that two jobs, and two Rays of one job, meet on it as on a node that is shared.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun", "runuser")
NODES = ("n1", "n2")
START_S = 30
CONFIG = """
ClusterName=hosts
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=2
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why there can be no Slurm here."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"missing programs: {', '.join(missing)}; apt-get install slurm-wlm munge"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs, and a folder that its nodes share."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """That of a person who submits."""
        return {
            **os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PYTHONPATH": f"{ROOT}/src:{ROOT}",
            "PATH": f"{Path(sys.executable).parent}:{_path()}", "OMP_NUM_THREADS": "1",
            "CS330RAY_HOME": str(self.folder / "runs"),
        }  # fmt: skip

    def run(self, *words: str, check: bool = True, seconds: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a command as a person who submits does."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=seconds)
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def state(self, job: str) -> str:
        """The state of a job; empty where it is forgotten."""
        return self.run("squeue", "--noheader", "--format=%T", f"--jobs={job}", check=False).stdout.strip()


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    """A Slurm; afterwards nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="cs330ray-slurm-"))
    folder.chmod(0o755)
    made = Slurm(folder)
    try:
        _write(folder)
        _start(made)
        yield made
    finally:
        _end(made)
        shutil.rmtree(folder)


def _write(folder: Path) -> None:
    user = pwd.getpwnam("munge")
    (folder / "munge").mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    for path in (folder / "munge", key):
        os.chown(path, user.pw_uid, user.pw_gid)
    for name in ("state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, ports=ports))


def _start(made: Slurm) -> None:
    place = made.folder / "munge"
    options = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    made.run("runuser", "-u", "munge", "--", "munged", *(f"--{name}={place / file}" for name, file in options.items()))
    made.run("slurmctld")
    for node in NODES:
        made.run("slurmd", "-N", node)
    until = time.monotonic() + START_S
    while made.run("sinfo", "--noheader", "--format=%T %D", check=False).stdout.split() != ["idle", "2"]:
        assert time.monotonic() < until, (made.folder / "slurmctld.log").read_text()
        time.sleep(0.5)


def _end(made: Slurm) -> None:
    """End the jobs, the daemons, and whatever of either is left."""
    made.run("scancel", "--state=RUNNING", "--signal=KILL", "--full", "--user=root", check=False)
    made.run("scancel", "--user=root", check=False)
    until = time.monotonic() + 60
    while made.run("squeue", "--noheader", check=False).stdout.strip() and time.monotonic() < until:
        time.sleep(0.5)
    for name in (*(f"slurmd.{node}.pid" for node in NODES), "slurmctld.pid", "munge/pid"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((made.folder / name).read_text()), signal.SIGTERM)
    left = _mentioning(made.folder, 20)
    for process in left:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    assert not left, left


def _mentioning(folder: Path, seconds: float) -> Sequence[int]:
    """Wait until no process mentions a folder; those that still do."""
    until = time.monotonic() + seconds
    while (found := processes_of(folder)) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def processes_of(folder: Path) -> list[int]:
    """The processes whose command lines or environments name a folder, but this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes() + b"\0" + (process / "environ").read_bytes()
            if str(folder).encode() in words and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found
