"""The batch script of a study: what is asked of Slurm, and `job.sh` with the places of this job."""

import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cs330ray.errors import SpecError
from cs330ray.spec.study import Study
from cs330ray.words import short

TRIALS = 4  # at a time on a node, where the study says nothing of it
LEAVES_S = 120  # before its time is over a job is told
PLACE = re.compile(r"@([a-z]+)@")


@dataclass(frozen=True)
class Wanted:
    """What a job asks of Slurm; what is None is left to the cluster."""

    nodes: int = 1
    gpus: int = 0  # of a node
    cpus: int | None = None  # of a node
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    requeues: int = 10
    more: Sequence[str] = ()  # options of sbatch

    @property
    def words(self) -> list[str]:
        """The options of `submit` that ask for it."""
        given = [(option, getattr(self, field), getattr(Wanted, field)) for field, option in _ASKED.items()]
        return [
            *(f"{option}={value}" for option, value, usual in given if value != usual),
            *(f"--sbatch={option}" for option in self.more),
        ]

    def cpus_for(self, study: Study) -> int:
        """The CPUs of a node: those that are asked for, or enough for the trials that its GPUs or slots hold."""
        if self.cpus is not None:
            return self.cpus
        wanted = study.resources
        trials: float = TRIALS
        if wanted.gpus and self.gpus:
            trials = self.gpus / wanted.gpus
        elif wanted.slots is not None:
            trials = wanted.slots * wanted.workers / self.nodes
        return max(math.ceil(trials) * math.ceil(wanted.cpus), 1)


@dataclass(frozen=True)
class Places:
    """Where a job finds what is its own, on the shared disk."""

    home: Path  # of the study: a copy of its ledger, checkpoints, logs of trials
    folder: Path  # of this job: the study file, the script, the log


def script(study: Study, wanted: Wanted, places: Places, words: Sequence[str], command: str) -> str:
    """The batch script that runs `cs330ray` with these words; `command` is what a person typed. Raises SpecError."""
    kept = "".join(f" {name}={shlex.quote(os.environ[name])}" for name in _KEPT if name in os.environ)
    values = {
        "options": "\n".join(f"#SBATCH {option}" for option in _options(study, wanted, places)),
        "folder": shlex.quote(str(places.folder)),
        "home": shlex.quote(str(places.home)),
        "requeues": str(wanted.requeues),
        "gpus": str(wanted.gpus),
        "bin": shlex.quote(str(Path(sys.executable).parent)),
        "command": shlex.quote(command),
        "variables": kept,
        "run": shlex.join(words),
    }
    template = (Path(__file__).parent / "job.sh").read_text(encoding="utf-8")
    return PLACE.sub(lambda found: values[found[1]], template)


def _options(study: Study, wanted: Wanted, places: Places) -> Iterator[str]:
    """The options of sbatch. Raises SpecError where one cannot stand in a line of the script."""
    for name, value in (("nodes", wanted.nodes), ("cpus-per-node", wanted.cpus), ("requeue", wanted.requeues + 1)):
        if value is not None and value < 1:
            least = 0 if name == "requeue" else 1
            raise SpecError(f"--{name}: expected {least} or more, got {value - (name == 'requeue')}")
    if wanted.gpus < 0:
        raise SpecError(f"--gpus-per-node: expected 0 or more, got {wanted.gpus}")
    yield f"--job-name={job_name(study.name)}"
    yield f"--nodes={wanted.nodes}"
    yield "--ntasks-per-node=1"
    yield f"--cpus-per-task={wanted.cpus_for(study)}"
    if wanted.gpus:
        yield f"--gpus-per-node={wanted.gpus}"
    for name, text in (("time", wanted.time), ("partition", wanted.partition), ("account", wanted.account)):
        if text is not None:
            yield f"--{name}={_word(f'--{name}', text)}"
    yield f"--output={_path(places.folder / 'log.txt')}"
    yield "--open-mode=append"
    yield "--requeue"
    yield f"--signal=B:TERM@{LEAVES_S}"
    yield "--dependency=singleton"
    for text in wanted.more:
        if not text.startswith("--"):
            raise SpecError(f"--sbatch: expected an option of sbatch such as --qos=long, got {short(text)}")
        if (name := text.partition("=")[0]) in _OWN:
            raise SpecError(f"--sbatch: expected an option that the script does not set itself, got {name}")
        yield _word("--sbatch", text)


def job_name(study: str) -> str:
    """What the jobs of a study are called: Slurm runs one of a name at a time, as --dependency=singleton says."""
    return f"cs330ray-{study}"


def _word(option: str, text: str) -> str:
    if not text.isprintable() or not text or " " in text or set(text) & set("\"'\\#"):
        raise SpecError(f"{option}: expected one word without quotes, got {short(text)}")
    return text


def _path(path: Path) -> str:
    """A path as a line of #SBATCH has it, where a % begins a pattern. Raises SpecError."""
    text = str(path)
    if not text.isprintable() or set(text) & set("\"'\\"):
        raise SpecError(f"CS330RAY_HOME: expected a path that a batch script can name, got {short(text, 200)}")
    return '"' + text.replace("%", "%%") + '"'


_ASKED = {
    "nodes": "--nodes", "gpus": "--gpus-per-node", "cpus": "--cpus-per-node", "time": "--time",
    "partition": "--partition", "account": "--account", "requeues": "--requeue",
}  # fmt: skip
_OWN = {
    "--array", "--clusters", "--dependency", "--export", "--job-name", "--no-requeue", "--nodes", "--ntasks",
    "--ntasks-per-node", "--output", "--open-mode", "--requeue", "--wrap",
}  # fmt: skip
_KEPT = ("CS330RAY_DATA", "CS330RAY_CACHE", "CS330RAY_OFFLINE", "CS330RAY_DEVICE")  # which hold no secret
