"""A home on a shared disk: who holds it, by what Slurm says of a job, and whole copies of its ledger there and back."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import lease
from cs330ray.ledger.database import sqlite_url
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.shared import home as shared
from cs330ray.ledger.writer import Writer
from cs330ray.trial import named
from tests.cli.test_cli import ran
from tests.studies_of_tests import toy

SQUEUE = """#!/bin/sh
case "$*" in *--jobs=*) job="${*##*--jobs=}" ;; esac
job="${job%% *}"
[ -f "{folder}/silent" ] && exit 1
case "$*" in *--all*--states=all*) ;; *) exit 2 ;; esac
env | grep -q SQUEUE_ && exit 2
[ -f "{folder}/job-$job" ] && cat "{folder}/job-$job" && exit 0
echo "slurm_load_jobs error: Invalid job id specified" >&2
exit 1
"""

Says = Callable[[str, str], None]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """A `squeue` that says what a test has said of a job; and this process is job 7 of the cluster `here`."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "squeue").write_text(SQUEUE.replace("{folder}", str(folder)))
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    be(monkeypatch, "7")

    def says(job: str, state: str) -> None:
        (folder / (f"job-{job}" if job else "silent")).write_text(state)

    return says


def be(monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    """Go on as another job."""
    monkeypatch.setenv("SLURM_JOB_ID", job)


def taken(home: Path) -> shared.Claim:
    return shared.claim(home, lambda _: None, lambda: None)


def fetched(claim: shared.Claim, own: Path) -> Path:
    own.mkdir(exist_ok=True)
    return claim.fetch(own, lambda _: None, lambda: None)


def filled(url: str, home: Path) -> Writer:
    ledger = Writer(url, home)
    ledger.open(toy(), named.metrics(toy()))
    return ledger


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "RUNNING\nPENDING"])
def test_a_job_that_slurm_knows_to_be_at_work_holds_the_home_against_others(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(shared, "ENDING_S", 0.1)
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")  # a person's own, which would hide it
    taken(tmp_path / "home")
    slurm("7", state)
    be(monkeypatch, "8")
    lines: list[str] = []
    with pytest.raises(SpecError, match="one job at a time may work here, but job 7 of Slurm does"):
        shared.claim(tmp_path / "home", lines.append, lambda: None)
    assert lines == []  # Slurm has said so, and no beat was waited for
    with pytest.raises(SpecError, match="job 7 of Slurm does"):
        Writer.at(tmp_path / "home")
    assert not (tmp_path / "home" / "ledger.db").exists()


@pytest.mark.parametrize("state", ["PENDING", "FAILED", "TIMEOUT", "NODE_FAIL", ""])
def test_a_job_that_slurm_knows_not_to_be_at_work_is_succeeded_at_once(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    first = taken(tmp_path)
    if state:
        slurm("7", state)
    be(monkeypatch, "8")
    taken(tmp_path)
    with pytest.raises(LedgerError, match="another has taken the home over"):
        first._must_be_mine()


def test_no_backup_is_put_under_a_job_that_runs(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(tmp_path))
    taken(tmp_path)
    slurm("7", "RUNNING")
    be(monkeypatch, "8")
    code, _, err = ran(capsys, "restore", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert "job 7 of Slurm does" in err


def test_a_job_that_is_about_to_end_is_waited_for(slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(tmp_path)
    slurm("7", "COMPLETING")
    be(monkeypatch, "8")
    looks: list[None] = []

    def waits() -> None:
        looks.append(None)
        slurm("7", "CANCELLED")

    shared.claim(tmp_path, lambda _: None, waits).check()
    assert looks == [None]


def test_a_job_that_was_taken_for_dead_hears_of_it_with_its_next_beat(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "BEAT_S", 0.05)
    first = taken(tmp_path)
    be(monkeypatch, "8")
    taken(tmp_path)
    first._beating.join(5)
    with pytest.raises(LedgerError, match="another has taken the home over"):
        first.check()
    first.end(is_newest=False)


def test_a_claim_under_which_nothing_ran_leaves_the_home_as_it_was(slurm: Says, tmp_path: Path) -> None:
    for is_newest in (True, False):
        taken(tmp_path).end(is_newest=is_newest)
        taken(tmp_path).unused()
        newest = shared._newest(tmp_path)
        assert newest is not None
        assert newest.has_ended == is_newest


def test_a_copy_that_is_gone_is_not_begun_again_where_a_job_has_ended_in_order(slurm: Says, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = taken(home)
    filled(sqlite_url(fetched(first, tmp_path / "own")), home)
    first.put(tmp_path / "own" / "ledger.db")
    first.end(is_newest=True)
    (home / "ledger.db").unlink()
    with pytest.raises(LedgerError, match="it is gone; nothing was overwritten, the newest backup is"):
        fetched(taken(home), tmp_path / "own")


def test_no_copy_is_put_beside_the_log_of_another_writer(slurm: Says, tmp_path: Path) -> None:
    home = tmp_path / "home"
    claim = taken(home)
    filled(sqlite_url(fetched(claim, tmp_path / "own")), home)
    (home / "ledger.db-wal").touch()
    with pytest.raises(OSError, match="something writes the home outside of this job"):
        claim.put(tmp_path / "own" / "ledger.db")
    assert not (home / "ledger.db").exists()


def test_the_next_run_of_the_same_job_succeeds_the_one_before(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(tmp_path)
    slurm("7", "RUNNING")
    be(monkeypatch, "7")
    taken(tmp_path).check()


def test_a_home_that_was_let_go_is_free_though_its_job_still_runs(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm("7", "RUNNING")
    taken(tmp_path).end(is_newest=True)
    be(monkeypatch, "8")
    taken(tmp_path).end(is_newest=True)
    Writer.at(tmp_path)


@pytest.mark.parametrize("asked", ["no answer", "another cluster"])
def test_where_slurm_does_not_know_a_minute_without_a_beat_tells(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(shared, "SILENCE_S", 1.0)
    monkeypatch.setattr(shared, "LOOK_S", 0.05)
    monkeypatch.setattr(shared, "BEAT_S", 0.2)
    alive = taken(tmp_path)
    if asked == "no answer":
        slurm("", "")
    else:
        monkeypatch.setenv("SLURM_CLUSTER_NAME", "there")  # whose Slurm knows no job 7, which says nothing
    be(monkeypatch, "8")
    lines: list[str] = []
    with pytest.raises(SpecError, match="job 7 of Slurm does"):
        shared.claim(tmp_path, lines.append, lambda: None)
    assert len(lines) == 1
    assert "Slurm does not say whether that runs" in lines[0]
    alive._leaving.set()  # killed
    alive._beating.join()
    taken(tmp_path).check()


def test_a_lease_of_which_only_the_name_was_written_is_taken_over_in_the_end(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SILENCE_S", 0.2)
    (tmp_path / "lease-000004.json").touch()
    taken(tmp_path).check()
    assert [path.name for path in tmp_path.glob("lease-*")] == ["lease-000005.json"]


def test_a_number_that_a_successor_has_cleared_away_is_not_taken_for_the_newest(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shared._make

    def slow(home: Path, mine: shared.Holder) -> bool:
        """Between the look and the making others have come and gone."""
        monkeypatch.setattr(shared, "_make", made)
        for _ in range(2):
            taken(home).end(is_newest=True)
        return made(home, mine)

    monkeypatch.setattr(shared, "_make", slow)
    taken(tmp_path).check()
    assert max(path.name for path in tmp_path.glob("lease-*")) == "lease-000003.json"


def test_a_copy_is_one_whole_file_by_which_nobody_holds_a_study(slurm: Says, tmp_path: Path) -> None:
    home, own = tmp_path / "home", tmp_path / "own"
    claim = taken(home)
    ledger = filled(sqlite_url(fetched(claim, own)), home)
    with lease.held(ledger.database, "toy"):
        claim.put(own / "ledger.db")
    assert sorted(path.name for path in home.iterdir()) == ["lease-000001.json", "ledger.db"]
    assert Ledger.at(home).names() == ["toy"]
    with contextlib.closing(sqlite3.connect(home / "ledger.db")) as copy:
        assert copy.execute("select count(*) from cs330ray_leases").fetchone() == (0,)
        assert copy.execute("pragma journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize("ended", [True, False])
def test_what_was_put_there_is_fetched_and_is_another_for_mlflow_where_it_may_be_behind(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    home = tmp_path / "home"
    first = taken(home)
    ledger = filled(sqlite_url(fetched(first, tmp_path / "first")), home)
    first.put(tmp_path / "first" / "ledger.db")
    first.end(is_newest=ended)
    be(monkeypatch, "8")
    there = fetched(taken(home), tmp_path / "second")
    second = Writer(sqlite_url(there), home)
    assert second.names() == ["toy"]
    assert (second.uid("toy") == ledger.uid("toy")) == ended


def test_a_job_that_was_taken_for_dead_overwrites_nothing(
    slurm: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    first = taken(home)
    filled(sqlite_url(fetched(first, tmp_path / "first")), home)
    first.put(tmp_path / "first" / "ledger.db")
    be(monkeypatch, "8")
    taken(home)
    before = (home / "ledger.db").stat()
    with pytest.raises(LedgerError, match="another has taken the home over"):
        first.put(tmp_path / "first" / "ledger.db")
    assert (home / "ledger.db").stat() == before
    assert not list(home.glob(".partial-*"))


KILLED = """
import os, sys
from pathlib import Path
from cs330ray.ledger import lease
from cs330ray.ledger.writer import Writer
from cs330ray.trial import named
from tests.studies_of_tests import toy
ledger = Writer.at(Path(sys.argv[1]))
ledger.open(toy(), named.metrics(toy()))
with lease.held(ledger.database, "toy"):
    print("there", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def test_what_a_run_outside_of_slurm_left_in_its_log_is_fetched_too_and_one_that_lives_is_let_be(
    slurm: Says, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    outside = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert outside.stdout is not None
    assert outside.stdout.readline() == "there\n"
    claim = taken(home)
    with pytest.raises(SpecError, match="the ledger must be copied to a job's machine, and nobody else may write"):
        fetched(claim, tmp_path / "own")
    outside.communicate("")
    assert (home / "ledger.db-wal").exists()
    there = fetched(claim, tmp_path / "own")
    assert Ledger(sqlite_url(there), home).names() == ["toy"]
    assert not (home / "ledger.db-wal").exists()  # which belongs to no copy that takes its place
    assert (home / "ledger.db").read_bytes()[18:20] == b"\x01\x01"  # SQLite's word for: no log beside it
    claim.put(there)
    assert Ledger.at(home).names() == ["toy"]


def test_a_damaged_copy_is_refused_in_one_line(slurm: Says, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database" * 1000)
    with pytest.raises(LedgerError) as refused:
        fetched(taken(tmp_path), tmp_path / "own")
    assert "\n" not in str(refused.value)
