"""What Slurm says of its jobs, by `squeue`: it may be slow, busy or not there."""

import os
import subprocess
from collections.abc import Sequence

ANSWER_S = 30.0
NOT_AT_WORK = {  # any other state may be that of one that is
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "SPECIAL_EXIT", "TIMEOUT", "CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD",
}  # fmt: skip
ENDING = "COMPLETING"


def asked(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run `squeue` with these words, whatever a person has set for it. Raises OSError or TimeoutExpired."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    command = ["squeue", "--noheader", "--all", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ANSWER_S)


def is_unknown(done: "subprocess.CompletedProcess[str]") -> bool:
    """Whether Slurm has said that it knows no such job."""
    return done.returncode != 0 and "nvalid job id" in done.stderr


def states(job: str) -> Sequence[str] | None:
    """The states that a job of this id has, none where Slurm knows no such job; None where it does not answer."""
    try:
        done = asked("--states=all", f"--jobs={job}", "--format=%T")
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = done.stdout.split()
    if is_unknown(done):
        return []
    return found if done.returncode == 0 and found else None


def cluster() -> str:
    """The name of the Slurm cluster that is asked here; empty where there is none."""
    if named := os.environ.get("SLURM_CLUSTER_NAME"):
        return named
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = [line.partition("=")[2].strip() for line in done.stdout.splitlines() if line.startswith("ClusterName")]
    return found[0] if found else ""
