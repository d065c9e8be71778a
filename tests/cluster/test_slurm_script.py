"""`submit --slurm`: the batch script, what is refused, how a job is seen and stopped; Slurm's commands are made up."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cs330ray.cluster.slurm.script import Places, Wanted, script
from cs330ray.package import shipped
from cs330ray.spec import reading
from cs330ray.spec.study import Study
from tests.cluster.test_jobs import ran
from tests.studies_of_tests import toml, toy

ROOT = Path(__file__).parents[2]
PLACES = Places(Path("/shared/runs/slurm/toy/home"), Path("/shared/runs/slurm/toy/jobs/0001"))
FAKES = {  # what they were told stands in `asked`; the state of each job in a file of its name
    "sbatch": 'echo "sbatch $*" >> asked; [ -f refuses ] && { echo "sbatch: error: invalid partition" >&2; exit 1; }\n'
    "echo 41 >> sent; expr 40 + $(wc -l < sent)",
    "squeue": 'echo "squeue $*" >> asked; [ -f silent ] && { echo "slurm_load_jobs error: timed out" >&2; exit 1; }\n'
    'for file in job-*; do [ -f $file ] && echo "${file#job-}|$(cat $file)|cs330ray-toy"; done; true',
    "scancel": 'echo "scancel $*" >> asked; for job; do rm -f job-$job; done',
}
JobStates = Callable[[str, str], None]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which Slurm's commands write what they were told."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / name).write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CS330RAY_HOME", str(tmp_path / "runs"))
    for name in ("CS330RAY_LEDGER", "MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(toml(toy(), tmp_path / "toy.toml"))


def made(wanted: Wanted, study: Study | None = None, places: Places = PLACES) -> str:
    return script(study or toy(), wanted, places, ["run", "/shared/toy.toml"], "cs330ray submit toy.toml --slurm")


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_the_example_is_what_submit_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/home/you/cs330ray/.venv/bin/python")
    for name in ("CS330RAY_DATA", "CS330RAY_CACHE", "CS330RAY_OFFLINE", "CS330RAY_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    of_study = Path("/home/you/runs/slurm/protonet")
    text = script(
        reading.read(shipped() / "protonet.toml"),
        Wanted(nodes=2, gpus=4, cpus=16, time="8:00:00", partition="gpu", account="cs330"),
        Places(of_study / "home", of_study / "jobs" / "0001"),
        ["run", f"{of_study}/jobs/0001/protonet.toml", "--set", "resources.gpus=1", "--no-mirror"],
        "cs330ray submit protonet --set resources.gpus=1 --slurm --nodes=2 --gpus-per-node=4 --cpus-per-node=16 "
        "--time=8:00:00 --partition=gpu --account=cs330",
    )
    assert text == (ROOT / "clusters" / "slurm.sh").read_text()


def test_the_script_is_one_that_bash_reads_and_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS330RAY_LEDGER", "postgresql://ada:sesame@db/ledger")  # goes by the environment
    monkeypatch.setenv("CS330RAY_DATA", "/data/it's here")
    text = made(Wanted(gpus=1, more=["--qos=long"]))
    (tmp_path / "job.sh").write_text(text)
    subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], check=True)
    assert "sesame" not in text
    assert "CS330RAY_DATA='/data/it'\"'\"'s here'" in text
    assert "@" not in re.sub(r"B:TERM@120|\$\{\w+\[@\]\}", "", text)


def test_what_is_asked_of_slurm_and_an_option_of_ones_own_comes_last() -> None:
    wanted = Wanted(3, 2, 8, "1-0", "gpu", "cs330", 4, ["--qos=long", "--mem=32G"])
    assert options(made(wanted)) == [
        "--job-name=cs330ray-toy", "--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=8", "--gpus-per-node=2",
        "--time=1-0", "--partition=gpu", "--account=cs330", '--output="/shared/runs/slurm/toy/jobs/0001/log.txt"',
        "--open-mode=append", "--requeue", "--signal=B:TERM@120", "--dependency=singleton", "--qos=long", "--mem=32G",
    ]  # fmt: skip
    assert "requeues=4 " in made(wanted)


@pytest.mark.parametrize(
    ("resources", "wanted", "cpus"),
    [
        ({}, Wanted(), 4),
        ({"cpus": 2}, Wanted(), 8),
        ({"slots": 6}, Wanted(nodes=2), 3),
        ({"slots": 3, "workers": 2}, Wanted(nodes=4), 2),
        ({"gpus": 0.25, "cpus": 2}, Wanted(gpus=2), 16),
        ({"gpus": 1, "slots": 2}, Wanted(gpus=4), 4),
        ({}, Wanted(cpus=7), 7),
    ],
)
def test_a_node_has_cpus_for_the_trials_that_it_may_run(resources: dict[str, float], wanted: Wanted, cpus: int) -> None:
    assert wanted.cpus_for(toy(resources=resources)) == cpus


def test_a_path_keeps_its_blanks_and_its_percent_signs() -> None:
    places = Places(Path("/shared/my runs/100%/home"), Path("/shared/my runs/100%/jobs/0001"))
    text = made(Wanted(), places=places)
    assert '--output="/shared/my runs/100%%/jobs/0001/log.txt"' in options(text)
    assert "\nhome='/shared/my runs/100%/home' #" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes=0"], "--nodes: expected 1 or more, got 0"),
        (["--cpus-per-node=0"], "--cpus-per-node: expected 1 or more, got 0"),
        (["--gpus-per-node=-1"], "--gpus-per-node: expected 0 or more, got -1"),
        (["--requeue=-1"], "--requeue: expected 0 or more, got -1"),
        (["--partition=a b"], "--partition: expected one word without quotes, got 'a b'"),
        (["--account=x\n#SBATCH --uid=0"], "--account: expected one word"),
        (["--time="], "--time: expected one word without quotes, got ''"),
        (["--sbatch=qos"], "--sbatch: expected an option of sbatch such as --qos=long, got 'qos'"),
        (["--sbatch=--array=1-3"], "--sbatch: expected an option that the script does not set itself, got --array"),
        (["--address=http://127.0.0.1:9"], "--slurm: expected no address of a Ray cluster beside it"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_cannot_be_asked_is_one_line_and_nothing_is_sent(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str, dry: list[str]
) -> None:
    code, out, err = ran(capsys, "submit", file, "--slurm", *words, *dry)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (slurm / "asked").exists()
    assert not (slurm.parent / "runs").exists()


@pytest.mark.parametrize("words", [["--nodes=2"], ["--sbatch=--qos=long"], ["--dry-run"], ["--requeue=3"]])
def test_an_option_of_slurm_alone_is_refused(file: str, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, _, err = ran(capsys, "submit", file, *words)
    assert (code, err) == (2, f"{words[0]}: expected --slurm beside it; add that\n")


def test_a_dry_run_prints_the_script_where_there_is_no_slurm_and_leaves_nothing(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(slurm / "nothing"))
    code, out, err = ran(capsys, "submit", file, "--set", "budget.trials=3", "--slurm", "--nodes=2", "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("#!/usr/bin/env bash\n")
    assert "jobs/0001/toy.toml --set budget.trials=3 --no-mirror &" in out
    assert not (slurm.parent / "runs").exists()
    code, _, err = ran(capsys, "submit", file, "--slurm")
    assert code == 2
    assert err.startswith("submit: --slurm needs sbatch on this machine, but there is none; ")
    assert not (slurm.parent / "runs").exists()


def test_a_submission_that_slurm_refuses_leaves_nothing(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm / "refuses").touch()
    (slurm.parent / "empty").mkdir()
    monkeypatch.chdir(slurm.parent / "empty")
    monkeypatch.setenv("CS330RAY_HOME", "runs")
    code, _, err = ran(capsys, "submit", file, "--slurm")
    assert (code, err.count("\n")) == (2, 1)
    assert "Slurm refuses: sbatch: error: invalid partition" in err
    assert list((slurm.parent / "empty").iterdir()) == []  # which stays


def test_jobs_are_seen_with_what_slurm_says_of_them_or_with_what_they_left(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(9):
        assert ran(capsys, "submit", file, "--slurm")[0] == 0
    jobs = slurm.parent / "runs" / "slurm" / "toy" / "jobs"
    for number, state in ((41, "RUNNING"), (42, "PENDING"), (46, "COMPLETING"), (47, "COMPLETING"), (48, "COMPLETING")):
        (slurm / f"job-{number}").write_text(state)
    codes = {"0001": 130, "0003": 0, "0004": 2, "0006": 130, "0007": 130, "0008": 0}  # the first was requeued
    for name, code in codes.items():
        (jobs / name / "ended").write_text(str(code))
    for name in ("0007", "0009"):  # the last before it began
        (jobs / name / "stopped").touch()
    code, out, err = ran(capsys, "status")
    assert (code, err) == (0, "")
    assert [line.split()[1:3] for line in out.splitlines()[2:]] == [
        ["41", "RUNNING"], ["42", "PENDING"], ["43", "COMPLETED"], ["44", "FAILED"], ["45", "KILLED"],
        ["46", "COMPLETING"], ["47", "STOPPED"], ["48", "COMPLETED"], ["49", "STOPPED"],
    ]  # fmt: skip
    (slurm / "silent").touch()
    code, out, err = ran(capsys, "status")
    assert (code, out, err) == (
        2,
        "",
        "squeue: Slurm must answer, but says: slurm_load_jobs error: timed out; try again\n",
    )


@pytest.mark.parametrize("name", ["", "*", "t?y", "../slurm/toy", "/x"])
def test_a_name_is_no_pattern(slurm: Path, file: str, capsys: pytest.CaptureFixture[str], name: str) -> None:
    ran(capsys, "submit", file, "--slurm")
    (slurm / "job-41").write_text("RUNNING")
    for command in ("stop", "logs", "status"):
        code, _, err = ran(capsys, command, name, "--address", "http://127.0.0.1:9")
        assert (code, err.count("\n")) == (2, 1)
        code, _, err = ran(capsys, command, name)
        assert (code, err.count("\n")) == (2, 1)
    assert "scancel" not in (slurm / "asked").read_text()


def test_an_id_that_another_job_has_now_is_not_that_of_ours(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(capsys, "submit", file, "--slurm")
    (slurm / "job-41").write_text("RUNNING|somebody-else")
    _, out, _ = ran(capsys, "status")
    assert out.splitlines()[2].split()[1:3] == ["41", "KILLED"]
    assert ran(capsys, "stop", "toy")[0] == 2
    assert "scancel" not in (slurm / "asked").read_text()


def test_a_submit_that_was_killed_in_the_midst_is_in_nobodys_way(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = slurm.parent / "runs" / "slurm" / "toy" / "jobs"
    (jobs / "0003").mkdir(parents=True)
    assert ran(capsys, "submit", file, "--slurm")[0] == 0
    assert sorted(path.name for path in jobs.iterdir()) == ["0003", "0004"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CS330RAY_LEDGER", "sqlite:////shared/ledger.db", "CS330RAY_LEDGER: expected a PostgreSQL, or none"),
        ("CS330RAY_LEDGER", "postgresql://ada@db/ledger", ""),
    ],
)
def test_a_ledger_on_a_shared_disk_is_refused_and_a_server_is_not(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str,
    said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    code, _, err = ran(capsys, "submit", file, "--slurm", "--dry-run")
    assert (code, said in err) == (2 if said else 0, True)


@pytest.mark.parametrize(("uri", "mirrored"), [("", False), ("sqlite:///mlflow.db", False), ("https://flow", True)])
def test_a_job_tells_a_server_of_mlflow_and_writes_no_file_of_its(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uri: str,
    mirrored: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    _, out, _ = ran(capsys, "submit", file, "--slurm", "--dry-run")
    assert ("--no-mirror" in out) != mirrored


def test_a_submit_behind_another_says_so_and_its_file_is_as_it_was(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(capsys, "submit", file, "--slurm", "--cpus-per-node=2")
    assert "sbatch --parsable --export=ALL " in (slurm / "asked").read_text()  # whatever SBATCH_EXPORT says
    assert (code, out.splitlines()[0]) == (0, "toy: job 41 of Slurm, on 1 node of 2 CPUs and 0 GPUs")
    (slurm / "job-41").write_text("RUNNING")
    kept = slurm.parent / "runs" / "slurm" / "toy" / "jobs" / "0001" / "toy.toml"
    before = kept.read_text()
    toml(toy(budget={"trials": 9}), Path(file))
    _, out, _ = ran(capsys, "submit", file, "--slurm")
    assert out.splitlines()[0].endswith(", after job 41")
    assert kept.read_text() == before


def test_stop_signals_the_job_that_runs_and_cancels_the_one_that_waits(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for state in ("RUNNING", "PENDING"):
        ran(capsys, "submit", file, "--slurm")
        (slurm / f"job-{41 if state == 'RUNNING' else 42}").write_text(state)
    code, out, err = ran(capsys, "stop", "toy")
    assert (code, err) == (0, "")
    assert out == f"toy: stopped job 42; nothing is lost\nGo on with: cs330ray submit {file} --slurm\n"
    asked = [line for line in (slurm / "asked").read_text().splitlines() if line.startswith("scancel")]
    assert asked == ["scancel 42", "scancel --batch --signal=TERM 41"]
    jobs = slurm.parent / "runs" / "slurm" / "toy" / "jobs"
    assert [(path / "stopped").exists() for path in sorted(jobs.iterdir())] == [True, True]  # and none comes again
    code, _, err = ran(capsys, "stop", "toy")
    assert (code, err.count("\n")) == (2, 1)
    assert "a job that waits or runs is needed, but the last one, 42, has STOPPED" in err


def test_logs_are_those_of_the_last_job_and_a_followed_one_ends_with_its_code(
    slurm: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        ran(capsys, "submit", file, "--slurm")
    folder = slurm.parent / "runs" / "slurm" / "toy" / "jobs" / "0002"
    (folder / "log.txt").write_text("one\n\x1b[31mtwo\n")
    (folder / "ended").write_text("2")
    assert ran(capsys, "logs", "toy") == (0, "one\ntwo\n", "")
    assert ran(capsys, "logs", "toy", "--follow")[:2] == (2, "one\ntwo\n")
    (folder / "ended").unlink()
    code, _, err = ran(capsys, "logs", "toy", "--follow")
    assert (code, err) == (1, "toy: job 42 has ended without a word; the same submit resumes the study\n")
