"""Studies that were sent to Slurm: each with a folder of its jobs on the shared disk, by which they are found again.

slurm/STUDY/home/          the study's home: CS330RAY_HOME=slurm/STUDY/home cs330ray show STUDY
slurm/STUDY/jobs/0001/     of one submission: job.sh, STUDY.toml, log.txt, submitted.json, id, and ended, its exit code
"""

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cs330ray import files
from cs330ray.cluster.slurm.keeper import ENDED, INTERRUPTED
from cs330ray.cluster.slurm.script import Places, Wanted, job_name, script
from cs330ray.errors import SpecError, StudyError
from cs330ray.ledger.shared import slurm
from cs330ray.spec.places import SLURM
from cs330ray.spec.study import Study
from cs330ray.words import redacted

AGAIN_S = 2.0
FOLLOW_S = 5.0
STOP_S = 120.0
ID, SUBMITTED, STOPPED = "id", "submitted.json", "stopped"


@dataclass(frozen=True)
class SlurmJob:
    """A study that was sent to Slurm."""

    study: str
    folder: Path
    id: str
    state: (
        str  # Slurm's, while it knows the job; then COMPLETED, STOPPED or FAILED, or KILLED where it left no exit code
    )
    code: int | None  # the exit code of the study
    sent: Mapping[str, str]  # by, command
    sent_s: float  # wall time

    @property
    def lives(self) -> bool:
        """Whether Slurm still has it, and it has not ended."""
        return self.state not in ("COMPLETED", "STOPPED", "FAILED", "KILLED")

    @property
    def home(self) -> Path:
        """The home of its study."""
        return places(self.folder.parents[1], 1).home

    def log(self) -> str:
        """All that it has written."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        return ""


def places(of_study: Path, number: int) -> Places:
    """Where the home of a study and the folder of a submission lie."""
    return Places(of_study / "home", of_study / "jobs" / f"{number:04d}")


def next_places(home: Path, study: str) -> Places:
    """The places of the next submission of a study."""
    of_study = (home / SLURM / study).absolute()
    made = [int(path.name) for path in (of_study / "jobs").glob("[0-9]*") if path.name.isdecimal()]
    return places(of_study, max(made, default=0) + 1)


def has_jobs(home: Path, study: str | None = None) -> bool:
    """Whether a study, or any, was sent to Slurm from this home."""
    return bool(_sent(home, study))


def submit(study: Study, file: Path, wanted: Wanted, found: Places, words: Sequence[str], command: str) -> SlurmJob:
    """Send a checked study to Slurm. Raises SpecError where it refuses; then nothing is left."""
    if shutil.which("sbatch") is None:
        raise SpecError(
            "submit: --slurm needs sbatch on this machine, but there is none; submit where jobs are submitted, or see "
            "the script with --dry-run"
        )
    text = script(study, wanted, found, words, command)
    made = [path for path in (found.folder, *found.folder.parents) if not path.exists()]
    try:
        found.folder.mkdir(parents=True)
    except OSError as error:
        raise SpecError(f"{found.folder}: a folder for the job is needed, but {error.strerror}; try again") from None
    try:
        shutil.copyfile(file, study_in(found, study))
        files.write_text(found.folder / "job.sh", text)
        sent = {"by": _who(), "command": command}
        files.write_text(found.folder / SUBMITTED, json.dumps(sent))
        number = _slurm("sbatch", "--parsable", "--export=ALL", str(found.folder / "job.sh")).strip()
    except SpecError:  # whatever else ends this leaves the folder to a job that may be there
        shutil.rmtree(found.folder)
        with contextlib.suppress(OSError):
            for folder in made[1:]:
                folder.rmdir()
        raise
    files.write_text(found.folder / ID, number)
    return SlurmJob(study.name, found.folder, number, "PENDING", None, sent, time.time())


def run_words(study: Study, found: Places, words: Sequence[str]) -> list[str]:
    """The words of the `cs330ray run` of a job, with the `words` of its submit.

    SQLite must not be written on the shared disk. Raises SpecError where CS330RAY_LEDGER would have it there; MLflow is
    told of the study only where that is a server.
    """
    uri, ledger = (os.environ.get(name, "") for name in ("MLFLOW_TRACKING_URI", "CS330RAY_LEDGER"))
    if ledger and not ledger.startswith("postgres"):
        raise SpecError(
            f"CS330RAY_LEDGER: expected a PostgreSQL, or none: a job keeps its SQLite itself, got {redacted(ledger)}"
        )
    is_server = "://" in uri and not uri.startswith(("sqlite", "file"))
    there = ["--set", f"command.folder={study.command.folder}"] if study.command is not None else []
    return ["run", str(study_in(found, study)), *words, *there, *([] if is_server else ["--no-mirror"])]


def study_in(found: Places, study: Study) -> Path:
    """The study file that a job runs: an edit after the submit does not count."""
    return found.folder / f"{study.name}.toml"


def jobs(home: Path, study: str | None = None) -> list[SlurmJob]:
    """The jobs of all studies that were sent from a home, or of one, the first first. Raises SpecError."""
    folders = _sent(home, study)
    known = _known(folders)
    return sorted((_job(folder, known) for folder in folders), key=lambda job: job.sent_s)


def last(home: Path, study: str) -> SlurmJob:
    """The last job of a study. Raises SpecError where there is none."""
    found = jobs(home, study)
    if not found:
        raise SpecError(f"{study}: a study that was sent to Slurm is needed; `cs330ray submit FILE --slurm` sends one")
    return found[-1]


def follow(job: SlurmJob, write: Callable[[str], None]) -> SlurmJob:
    """Write what a job has said, and says, until it ends; the ended job."""
    at = 0
    while True:
        now = as_now(job)
        text = now.log()
        if text[at:]:
            write(text[at:])
        at = len(text)
        if not now.lives:
            return now
        time.sleep(FOLLOW_S)


def as_now(job: SlurmJob) -> SlurmJob:
    """A job as it stands now. Raises SpecError where Slurm does not answer."""
    return _job(job.folder, _known([job.folder]))


def stop(home: Path, study: str) -> SlurmJob:
    """Stop the jobs of a study, and wait until they have ended; the last one. Raises SpecError where none is there."""
    living = [job for job in jobs(home, study) if job.lives]
    if not living:
        job = last(home, study)
        raise SpecError(f"{study}: a job that waits or runs is needed, but the last one, {job.id}, has {job.state}")
    for job in reversed(living):  # what waits begins where the one before it ends
        files.write_text(job.folder / STOPPED, "")
        signal = ["--batch", "--signal=TERM"] if job.state == "RUNNING" else []
        _slurm("scancel", *signal, job.id)
    until = time.monotonic() + STOP_S
    while any(as_now(job).lives for job in living):
        if time.monotonic() > until:
            raise StudyError(
                f"{study}: job {living[-1].id} must end when it is stopped, but after {STOP_S:.0f} s it is there; see "
                f"`cs330ray logs {study}`"
            )
        time.sleep(AGAIN_S)
    return as_now(living[-1])


def _sent(home: Path, study: str | None) -> list[Path]:
    """The folders of the jobs of a study, or of all."""
    at = home / SLURM
    studies = sorted(path for path in at.iterdir() if study in (None, path.name)) if at.is_dir() else []
    found = [path for each in studies for path in sorted((each / "jobs").glob("[0-9]*"))]
    return [path for path in found if (path / ID).is_file()]


def _job(folder: Path, known: Mapping[str, str]) -> SlurmJob:
    number = (folder / ID).read_text(encoding="utf-8")
    sent = json.loads((folder / SUBMITTED).read_text(encoding="utf-8"))
    code = _code(folder)
    state = known.get(number)
    stopped = (folder / STOPPED).exists()
    if state is None or (state == "COMPLETING" and (stopped or code not in (None, INTERRUPTED))):  # others come again
        if code is None and stopped:  # before it began
            code = INTERRUPTED
        state = {None: "KILLED", 0: "COMPLETED", INTERRUPTED: "STOPPED"}.get(code, "FAILED")
    sent_s = (folder / SUBMITTED).stat().st_mtime
    return SlurmJob(folder.parents[1].name, folder, number, state, code, sent, sent_s)


def _code(folder: Path) -> int | None:
    try:
        return int((folder / ENDED).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _known(folders: Sequence[Path]) -> dict[str, str]:
    """The states of those jobs that Slurm has, by their ids; one of another name has the id of an earlier one."""
    names = {(folder / ID).read_text(encoding="utf-8"): job_name(folder.parents[1].name) for folder in folders}
    if not names:
        return {}
    try:
        done = slurm.asked(f"--jobs={','.join(names)}", "--format=%A|%T|%j")
    except FileNotFoundError:
        raise SpecError("squeue: Slurm's commands are needed on this machine, but there are none") from None
    except subprocess.TimeoutExpired:
        raise SpecError(
            f"squeue: Slurm must answer within {slurm.ANSWER_S:.0f} s, but it does not; try again"
        ) from None
    if slurm.is_unknown(done):
        return {}
    if done.returncode:
        raise SpecError(f"squeue: Slurm must answer, but says: {' '.join(done.stderr.split())[:500]}; try again")
    found = [line.strip().split("|", 2) for line in done.stdout.splitlines()]
    return {number: state for number, state, name in found if names.get(number) == name}


def _slurm(*words: str) -> str:
    """What a command of Slurm prints. Raises SpecError where it refuses. It may take its time: it may be obeyed yet."""
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise SpecError(f"{words[0]}: Slurm's commands are needed on this machine, but there are none") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise SpecError(f"{words[0]}: Slurm refuses: {said[:500]}")
    return done.stdout


def _who() -> str:
    by = socket.gethostname()
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        by = f"{getpass.getuser()}@{by}"
    return by
