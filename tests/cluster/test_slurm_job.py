"""What runs in a job of Slurm: the script's signals, clean-up and requeue, the keeper; Slurm and Ray are made up."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cs330ray.cluster.slurm import keeper
from cs330ray.cluster.slurm.script import Places, Wanted, script
from cs330ray.errors import LedgerError
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.shared import home as shared
from tests.ledger.test_shared import filled
from tests.studies_of_tests import toy

WORKS = """import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[3])
def leaves(number, frame):
    (folder / "heard").write_text(signal.Signals(number).name)
    (folder / "ended").write_text("130")
    raise SystemExit(130)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, leaves)
(folder / "up").touch()
while not (folder / "code").exists():
    time.sleep(0.02)
(folder / "ended").write_text((folder / "code").read_text())
"""
FAKES = {
    "python": f'case "$*" in *keeper*) shift 2; exec {sys.executable} {{folder}}/works.py "$@" ;; '
    f'*) exec {sys.executable} "$@" ;; esac',
    "ray": "sleep 60 & wait",
    "srun": 'while [[ $1 == --* ]]; do shift; done; export SLURM_PROCID=0; echo $$ > {folder}/srun-$3; exec "$@"',
    "squeue": '[ -s {folder}/silent ] && sed -i 1d {folder}/silent && exit 1; cat {folder}/state',
    "scontrol": 'echo "$*" >> {folder}/asked',
    "hostname": "echo 127.0.0.1",
}  # fmt: skip


class Job:
    """A job whose script runs here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder / "jobs" / "0001", f"test-{uuid.uuid4().hex[:8]}"
        self.own = Path(f"/tmp/cs330ray-{self.number}")
        self._fakes, self._process = folder / "bin", None
        self.folder.mkdir(parents=True)
        self._fakes.mkdir()
        (self._fakes / "works.py").write_text(WORKS)
        (self._fakes / "state").write_text("RUNNING")
        for name, text in FAKES.items():
            (self._fakes / name).write_text(f"#!/bin/bash\n{text.replace('{folder}', str(self._fakes))}\n")
            (self._fakes / name).chmod(0o755)
        text = script(toy(), Wanted(requeues=2), Places(folder / "home", self.folder), ["run", "toy.toml"], "submit")
        text = text.replace(f"PATH={Path(sys.executable).parent}:", f"PATH={self._fakes}:").replace(
            "sleep 3", "sleep 0.1"
        )
        (self.folder / "job.sh").write_text(text)

    def begin(self, restarts: int = 0) -> "subprocess.Popen[str]":
        environment = {**os.environ, "SLURM_JOB_ID": self.number, "SLURM_CPUS_PER_TASK": "1"}
        if restarts:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        self._process = subprocess.Popen(
            ["bash", str(self.folder / "job.sh")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        until((self.folder / "up").exists)
        until((self._fakes / "srun-node").exists)
        until(self.own.exists)
        return self._process

    def slurm_says(self, state: str, refusals: int = 0) -> None:
        (self._fakes / "state").write_text(state)
        (self._fakes / "silent").write_text("x\n" * refusals)

    def ends(self) -> tuple[int, str]:
        assert self._process is not None
        said, _ = self._process.communicate(timeout=20)
        return self._process.returncode, said

    @property
    def was_requeued(self) -> bool:
        asked = self._fakes / "asked"
        return asked.exists() and asked.read_text() == f"requeue {self.number}\n"

    def preempt(self) -> None:
        """Signal the task, as Slurm does, and not the script."""
        os.kill(int((self._fakes / "srun-node").read_text()), signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
        shutil.rmtree(self.own, ignore_errors=True)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.kill()


def test_a_study_that_is_done_ends_its_job_and_leaves_neither_token_nor_folder(job: Job) -> None:
    job.begin()
    token = job.folder / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert job.own.stat().st_mode & 0o777 == 0o700
    (job.folder / "code").write_text("0")
    assert job.ends()[0] == 0
    assert not job.was_requeued
    assert not token.exists()
    assert not job.own.exists()


@pytest.mark.parametrize(("restarts", "comes_again"), [(0, True), (1, True), (2, False)])
def test_a_job_whose_time_is_over_queues_itself_again_so_often_as_it_may(
    job: Job, restarts: int, comes_again: bool
) -> None:
    job.begin(restarts).terminate()
    code, said = job.ends()
    assert (code, job.was_requeued) == (130, comes_again)
    assert (job.folder / "heard").read_text() == "SIGUSR1"
    assert ("it resumes when its turn comes again" in said) == comes_again
    assert ("and it has begun 3 times; the same submit resumes it" in said) == (not comes_again)


def test_a_job_that_is_preempted_hears_of_it_by_its_task(job: Job) -> None:
    job.begin()
    job.preempt()
    assert job.ends()[0] == 130
    assert (job.folder / "heard").read_text() == "SIGTERM"
    assert job.was_requeued


@pytest.mark.parametrize("state", ["COMPLETING", ""])
def test_a_job_that_was_cancelled_does_not_come_again(job: Job, state: str) -> None:
    job.slurm_says(state)
    job.begin().terminate()
    assert job.ends()[0] == 130
    assert not job.was_requeued


def test_nor_does_one_that_was_stopped(job: Job) -> None:
    process = job.begin()
    (job.folder / "stopped").touch()
    process.terminate()
    assert job.ends()[0] == 130
    assert not job.was_requeued


def test_nor_does_one_whose_study_was_stopped_through_its_ledger(job: Job) -> None:
    job.begin()
    (job.folder / "code").write_text("130")
    assert job.ends()[0] == 130
    assert not job.was_requeued  # though the script ends the tasks, which pass that on


def test_slurm_is_asked_again_where_it_does_not_answer(job: Job) -> None:
    job.slurm_says("RUNNING", refusals=3)
    job.begin().terminate()
    job.ends()
    assert job.was_requeued


def test_a_signal_that_comes_before_the_keeper_hears_any_costs_no_requeue(job: Job) -> None:
    job.begin()
    (job.folder / "ended").unlink(missing_ok=True)
    (works,) = [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if f"works.py\0{job.folder.parents[1]}".encode() in _words(process)
    ]
    assert job._process is not None
    os.kill(works, signal.SIGSTOP)
    job._process.terminate()
    time.sleep(0.2)
    os.kill(works, signal.SIGKILL)
    assert job.ends()[0] == 130
    assert job.was_requeued


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_ledger_that_could_not_be_copied_stays_where_it_is(job: Job) -> None:
    job.begin()
    (job.own / "not-copied").touch()
    (job.folder / "code").write_text("1")
    assert job.ends()[0] == 1
    assert job.own.exists()


# The keeper ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Keeps a home while a study, which is a function of the ledger's address, runs; its exit code and its lease."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    monkeypatch.delenv("CS330RAY_LEDGER", raising=False)
    monkeypatch.setattr(keeper, "AGAIN_S", 0.01)
    own, folder = tmp_path / "own", tmp_path / "folder"
    own.mkdir()
    folder.mkdir()

    def keeps(study: Callable[[str], int]) -> tuple[int, str]:
        def run(
            module: Sequence[str], environment: dict[str, str], signals: keeper.Signals, tends: Callable[[], None] = int
        ) -> int:
            tends()
            return 0 if "meet" in module[0] else study(environment["CS330RAY_LEDGER"])

        monkeypatch.setattr(keeper, "_run", run)
        before = {number: signal.getsignal(number) for number in keeper.LEAVES_S}
        try:
            code = keeper.main(tmp_path / "home", own, folder, ["run", "toy.toml"])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return code, (folder / "ended").read_text()

    return keeps


def test_the_newest_ledger_is_in_the_home_when_a_job_ends(kept: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    def study(url: str) -> int:
        filled(url, tmp_path / "home")
        return 130

    assert kept(study) == (130, "130")
    assert Ledger.at(tmp_path / "home").names() == ["toy"]
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["backups", "lease-000001.json", "ledger.db"]


def test_a_last_copy_that_the_shared_disk_does_not_take_ends_with_1_and_stays_on_the_machine(
    kept: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tried: list[Path] = []

    def full(claim: shared.Claim, ledger: Path) -> None:
        tried.append(ledger)
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(shared.Claim, "put", full)

    def study(url: str) -> int:
        filled(url, tmp_path / "home")
        return 0

    assert kept(study) == (1, "1")
    assert len(tried) == keeper.TRIES
    assert (tmp_path / "own" / "not-copied").exists()
    assert f"the newest ledger stays at {os.uname().nodename}:{tmp_path}/own/ledger.db" in capsys.readouterr().out
    newest = shared._newest(tmp_path / "home")
    assert newest is not None
    assert not newest.has_ended


def test_what_another_job_has_taken_over_ends_in_one_line(
    kept: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def lost(claim: shared.Claim, ledger: Path) -> None:
        raise LedgerError("another has taken the home over")

    monkeypatch.setattr(shared.Claim, "put", lost)

    def study(url: str) -> int:
        filled(url, tmp_path / "home")
        return 0

    assert kept(study) == (2, "2")
    assert capsys.readouterr().err == "another has taken the home over\n"


def test_a_study_whose_home_another_job_has_taken_over_is_ended(
    kept: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(claim: shared.Claim) -> None:
        raise LedgerError("another has taken the home over")

    monkeypatch.setattr(shared.Claim, "check", lost)
    assert kept(lambda _: pytest.fail("it runs on")) == (2, "2")


def test_a_copy_that_cannot_be_fetched_leaves_the_home_as_it_was_found(
    kept: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    def study(url: str) -> int:
        filled(url, tmp_path / "home")
        return 0

    assert kept(study) == (0, "0")
    (tmp_path / "home" / "ledger.db").write_bytes(b"no database" * 1000)
    assert kept(study) == (2, "2")
    newest = shared._newest(tmp_path / "home")
    assert newest is not None
    assert (newest.number, newest.has_ended) == (2, True)
    assert (tmp_path / "home" / "ledger.db").read_bytes().startswith(b"no database")


@pytest.mark.parametrize("number", list(keeper.LEAVES_S))
def test_a_study_that_is_told_to_end_is_told_once_and_then_killed(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(keeper.LEAVES_S, number, 1.0)
    (tmp_path / "deaf.py").write_text(
        "import signal, pathlib, time\n"
        "heard = []\n"
        "def hears(*_):\n"
        "    heard.append(1)\n"
        "    pathlib.Path('heard').write_text(str(len(heard)))\n"
        "signal.signal(signal.SIGTERM, hears)\n"
        "pathlib.Path('up').touch()\n"
        "while True: time.sleep(0.05)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = {each: signal.getsignal(each) for each in keeper.LEAVES_S}
    try:
        signals, began_s = keeper.Signals(), time.monotonic()

        def tends() -> None:
            if (tmp_path / "up").exists() and signals.leaves_by_s is None:
                os.kill(os.getpid(), number)

        code = keeper._run(["deaf"], {**os.environ, "PYTHONPATH": str(tmp_path)}, signals, tends)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert code == 130
    assert (tmp_path / "heard").read_text() == "1"
    assert time.monotonic() - began_s < 10
