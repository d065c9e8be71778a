"""Studies on a cluster, as Ray Jobs: sent with the code that runs them, then seen, followed and stopped."""

import asyncio
import contextlib
import getpass
import secrets
import shlex
import shutil
import socket
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs330ray import package
from cs330ray.cluster.jobserver import ANSWER_S, JobServer, line_of, trouble
from cs330ray.errors import SpecError, StudyError
from cs330ray.files import Scratch
from cs330ray.spec.command import CODE
from cs330ray.spec.places import home
from cs330ray.spec.study import Study
from cs330ray.trial import named
from cs330ray.trial.child import folder as code
from cs330ray.words import plural

SILENCE_S = 60.0  # a log that says nothing for so long may have lost its connection
LOST_S = 120.0  # a cluster that does not answer for so long is lost from sight
AGAIN_S = 1.0
STOP_S = 60  # a study may take so long to end well; Ray's own 3 s are short for a last pass of the mirror
SHIPPED = "shipped"  # the folder of the package for the studies that come with it
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """A study that was sent to a cluster."""

    id: str
    study: str
    state: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    began_s: float  # wall time of the cluster
    ended_s: float | None
    exit_code: int | None  # of the study, where Ray knows it
    message: str
    sent: Mapping[str, str]  # study, digest, code, by, command

    @property
    def has_ended(self) -> bool:
        """Whether it is over, in whatever way."""
        return self.state in ENDED

    @property
    def code(self) -> int:
        """The exit code for whoever waited for it."""
        if self.state == "STOPPED":
            return INTERRUPTED
        if self.exit_code is None or self.exit_code < 0:
            return 0 if self.state == "SUCCEEDED" else 1
        return self.exit_code


@dataclass(frozen=True)
class Parcel:
    """A study on its way: what `cs330ray run` is to be told on the cluster."""

    study: Study
    file: Path
    words: Sequence[str]  # its --set and --fork
    command: str  # what a person typed

    @property
    def entrypoint(self) -> str:
        """What the job runs. A stop's SIGTERM reaches the study itself, whose home outlives the job."""
        there = ["--set", f"command.folder={CODE}"] if self.study.command is not None else []
        run = shlex.join(["python", "-m", "cs330ray", "run", f"{self.study.name}.toml", *self.words, *there])
        return f'export CS330RAY_HOME="${{CS330RAY_HOME:-$HOME/cs330ray-runs}}"; exec {run}'


class Cluster:
    """A cluster, through its job server."""

    def __init__(self, server: JobServer) -> None:
        self._server = server

    def nodes(self) -> str:
        """What lives of the cluster, in words."""
        found = self._server.ask("GET", "/api/v0/nodes?limit=10000")["data"]["result"]["result"]
        alive = [node.get("resources_total") or {} for node in found if node["state"] == "ALIVE"]
        cpus, gpus = (sum(float(node.get(kind, 0)) for node in alive) for kind in ("CPU", "GPU"))
        return f"{plural(len(alive), 'node')}, {cpus:g} CPUs, {gpus:g} GPUs"

    def jobs(self, study: str | None = None) -> list[Job]:
        """The jobs of all studies, or of one, in the order in which they were sent."""
        found = [_job(details) for details in self._server.ask("GET", "/api/jobs/") if _is_study(details)]
        return sorted((job for job in found if study in (None, job.study)), key=lambda job: job.began_s)

    def last(self, study: str) -> Job:
        """The last job of a study. Raises SpecError where there is none."""
        found = self.jobs(study)
        if not found:
            known = ", ".join(sorted({job.study for job in self.jobs()})) or "none"
            raise SpecError(
                f"{study}: a study that was sent to {self._server.address} is needed, but there are only: {known}; "
                "`cs330ray submit FILE` sends one"
            )
        return found[-1]

    def job(self, name: str) -> Job:
        """One job by its id, as it stands now."""
        return _job(self._server.ask("GET", f"/api/jobs/{urllib.parse.quote(name)}"))

    def log(self, name: str) -> str:
        """All that a job has written."""
        return str(self._server.ask("GET", f"/api/jobs/{urllib.parse.quote(name)}/logs")["logs"] or "")

    def send(self, parcel: Parcel, shipped: Path) -> str:
        """Start a checked study as a job, with the running package and the study files of `shipped`; the job's id.

        Raises SpecError, among others where a job of this study still runs.
        """
        study = parcel.study
        for job in self.jobs(study.name):
            if not job.has_ended:
                raise SpecError(
                    f"{study.name}: a study runs once at a time, but job {job.id} is {job.state}; "
                    f"`cs330ray logs {study.name} --follow` shows it, `cs330ray stop {study.name}` ends it"
                )
        with Scratch("submit") as scratch:
            folder = scratch / "study"
            folder.mkdir()
            shutil.copyfile(parcel.file, folder / f"{study.name}.toml")
            if study.command is not None:
                _copy_code(Path(study.command.folder), folder / CODE)
            try:
                sent = self._server.client().submit_job(
                    entrypoint=parcel.entrypoint,
                    submission_id=f"{study.name}-{secrets.token_hex(3)}",
                    runtime_env={
                        "working_dir": str(folder),
                        "py_modules": [str(running_package(shipped, scratch)), *map(str, own_packages(study))],
                        "excludes": ["__pycache__"],
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), "CS330RAY_SUBMITTED": parcel.command},
                    },
                    metadata=_metadata(parcel),
                )
            except trouble() as error:
                at = self._server.address
                raise SpecError(
                    f"{study.name}: the study must reach {at}, but {line_of(error)}; nothing was started"
                ) from None
        return str(sent)

    def follow(self, name: str, write: Callable[[str], None]) -> Job | None:
        """Write what a job has said, and says, until it ends; the ended job. None where the cluster fell silent."""
        reader, answered_s = _Reader(write), time.monotonic()
        while time.monotonic() - answered_s < LOST_S:
            with contextlib.suppress(*trouble()):
                reader.begin()
                asyncio.run(_tail(self._server.client(), name, reader))
            try:
                job = self.job(name)
                reader.begin()
                reader.take(self.log(name))
            except SpecError:
                pass
            else:
                if job.has_ended:
                    return job
                answered_s = time.monotonic()
            time.sleep(AGAIN_S)
        return None

    def stop(self, study: str) -> Job:
        """Stop a study by a SIGTERM, and wait until it has ended; its job. Raises SpecError where none runs."""
        job = self.last(study)
        if job.has_ended:
            raise SpecError(f"{study}: a job that runs is needed, but the last one, {job.id}, has {job.state}")
        self._server.ask("POST", f"/api/jobs/{urllib.parse.quote(job.id)}/stop")
        until = time.monotonic() + STOP_S + ANSWER_S
        while not (job := self.job(job.id)).has_ended:
            if time.monotonic() > until:
                raise StudyError(
                    f"{study}: job {job.id} must end when it is stopped, but after {STOP_S + ANSWER_S:.0f} s it is "
                    f"{job.state}; see `cs330ray logs {study}`"
                )
            time.sleep(AGAIN_S / 4)
        return job


def running_package(shipped: Path, into: Path) -> Path:
    """Copy the running package and the study files of `shipped` into a directory; the folder that Ray is to send.

    Ray puts it before whatever is installed on a node. It names the upload after the content, so the same code is sent
    once: only files are copied, no bytecode and nothing hidden.
    """
    root, folder = package.source(), into / package.NAME
    files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    sent = {name: path for name, path in files.items() if name.parts[0] != SHIPPED and not _stays_here(name)}
    sent |= {Path(SHIPPED, path.name): path for path in shipped.glob("*.toml")}
    for name, path in sent.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return folder


def _stays_here(name: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in name.parts)


def _copy_code(folder: Path, into: Path) -> None:
    """Copy the files that are the code of a command's folder. Raises DataError where they are too large to travel."""
    for name in code.files(folder, home()):
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / name, into / name)


def own_packages(study: Study) -> list[Path]:
    """The top folders of a checked study's trainables that are not this package's."""
    folders = {}
    for name in study.trainables():
        top = name.partition(".")[0]
        module = sys.modules.get(name)
        if name not in named.names() and top != package.NAME and module is not None and module.__file__:
            above = name.count(".") - (0 if hasattr(module, "__path__") else 1)
            folders[top] = Path(module.__file__).absolute().parents[above]
    return list(folders.values())


def _metadata(parcel: Parcel) -> dict[str, str]:
    by = socket.gethostname()
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        by = f"{getpass.getuser()}@{by}"
    digest = named.code_digest(parcel.study.trainables()[0], parcel.study.command)  # as the ledger records it
    return {
        "study": parcel.study.name,
        "digest": parcel.study.digest,
        "code": f"{package.VERSION} {digest[:16]}",
        "by": by,
        "command": parcel.command,
    }


def _is_study(details: Mapping[str, Any]) -> bool:
    return bool(details.get("submission_id")) and "study" in (details.get("metadata") or {})


def _job(details: Mapping[str, Any]) -> Job:
    sent = details.get("metadata") or {}
    ended_ms = details.get("end_time")
    return Job(
        id=str(details["submission_id"]),
        study=str(sent.get("study", "")),
        state=str(details["status"]),
        began_s=(details.get("start_time") or 0) / 1000,
        ended_s=ended_ms / 1000 if ended_ms else None,
        exit_code=details.get("driver_exit_code"),
        message=str(details.get("message") or ""),
        sent=sent,
    )


class _Reader:
    """Writes once what comes again from its beginning after every interruption."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written, self._at = write, 0, 0

    def begin(self) -> None:
        """The text begins again."""
        self._at = 0

    def take(self, text: str) -> None:
        """Write what of the next piece was not written before."""
        new = text[max(self._written - self._at, 0) :]
        self._at += len(text)
        self._written = max(self._written, self._at)
        if new:
            self._write(new)


async def _tail(client: Any, name: str, reader: _Reader) -> None:
    """Read until the log ends, or its connection does."""
    from aiohttp import ClientError

    async with contextlib.aclosing(client.tail_job_logs(name)) as pieces:
        with contextlib.suppress(ClientError):
            while True:
                async with asyncio.timeout(SILENCE_S):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                reader.take(piece)
