"""Homes that nobody wishes for: awkward names, links to other disks, no room. Each command ends as it should.

One study is run, in the most awkward home of all; the others are copies of that home.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import typer

from cs330ray.checkpoints import local
from cs330ray.cli import app
from cs330ray.errors import SpecError
from cs330ray.ledger import backup
from cs330ray.ledger.database import Database
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from cs330ray.spec import places
from cs330ray.spec.reading import parse
from tests import in_process
from tests import toy as toy_trainable
from tests.cli.test_cli import ran
from tests.studies_of_tests import toml, toy, whole

AWKWARD = "-odd ?#%41 &a=b+'\"\n\t;|*$~[x]{y}<z>!@:\\é日"


def link_to(home: Path, target: Path) -> Path:
    home.parent.mkdir(parents=True, exist_ok=True)
    home.symlink_to(target)
    return home


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ray_here: str) -> Path:
    """The most awkward home, alone in its folder, with a study that `cs330ray run` ran and the mirror showed."""
    base = tmp_path_factory.mktemp("prepared")
    home = base / "inside" / AWKWARD
    home.parent.mkdir()
    file = toml(toy(budget={"trials": 2, "steps": 5}, confirm={"top": 1, "seeds": 1}), base / "toy.toml")
    environment = {**os.environ, "CS330RAY_HOME": str(home), "RAY_ADDRESS": ray_here}
    for name in ("CS330RAY_LEDGER", "MLFLOW_TRACKING_URI", "CS330RAY_CHECKPOINTS"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "cs330ray", "run", str(file)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "MLflow is behind" not in done.stdout
    assert [path.name for path in home.parent.iterdir()] == [AWKWARD]
    return home


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder for a home, in which nothing else may appear, and which commands do not start in."""
    for name in ("CS330RAY_LEDGER", "MLFLOW_TRACKING_URI", "CS330RAY_CHECKPOINTS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "at").mkdir()
    yield tmp_path / "at"
    assert list((tmp_path / "cwd").iterdir()) == []


def copied(prepared: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(prepared, home, dirs_exist_ok=True)
    monkeypatch.setenv("CS330RAY_HOME", str(home))
    return home


MAIN = (["list"], ["show", "toy"], ["best", "toy"], ["sync", "toy"])
NO_CLUSTER = ["--address", "http://127.0.0.1:9"]  # where nobody answers: one line, exit code 2
EVERY: dict[str, tuple[int, list[str]]] = {  # in this order; the study is there until `delete`, and again after it
    "list": (0, []),
    "show": (0, ["toy", "1", "--log"]),
    "best": (0, ["toy"]),
    "reproduce": (0, ["toy", "1"]),
    "report": (0, ["toy"]),
    "sync": (0, ["toy"]),
    "ui": (0, ["--port", "5987"]),
    "pack": (0, ["toy", "-o", "../toy.zip"]),
    "delete": (0, ["toy", "--yes"]),
    "unpack": (0, ["../toy.zip"]),
    "restore": (0, ["--yes"]),
    "run": (0, ["../toy.toml", "--dry-run"]),
    "init": (2, ["no name"]),
    "data": (0, ["list"]),
    "schema": (0, []),
    "check": (2, ["no.such"]),
    "plan": (2, ["toy"]),  # it has one cell
    "submit": (2, ["../toy.toml", *NO_CLUSTER]),
    "status": (2, NO_CLUSTER),
    "logs": (2, ["toy", *NO_CLUSTER]),
    "stop": (2, ["toy", *NO_CLUSTER]),
    "cluster": (2, ["check", "nowhere.yaml"]),
}


@pytest.mark.slow
def test_each_command_works_in_the_most_awkward_home_and_writes_nothing_beside_it(
    prepared: Path, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(EVERY) == set(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
    home = copied(prepared, at / AWKWARD, monkeypatch)
    toml(toy(budget={"trials": 3, "steps": 5}, confirm={"top": 1, "seeds": 1}), at.parent / "toy.toml")
    served: list[dict[str, str]] = []
    monkeypatch.setattr("os.execve", lambda program, words, environment: served.append(environment))
    before = whole(home)
    for command, (code, words) in EVERY.items():
        ended, out, err = ran(capsys, command, *words)
        assert ended == code, (command, out, err)
        assert err.count("\n") <= 1, (command, err)
        assert (len(err.splitlines()) == 1) == (code == 2), (command, err)
        assert "Traceback" not in out + err
        assert [path.name for path in at.iterdir()] == [AWKWARD], command
        if command != "delete":
            assert whole(home) == before, command
    assert served[0]["MLFLOW_BACKEND_STORE_URI"].endswith("/mlflow.db")
    for path in home.iterdir():
        assert path.name == "toy" or places.is_own(path.name), path


@pytest.mark.parametrize("name", ["a?b", "p%41q", "-h", "x/../y", " new\nline "])
def test_the_main_commands_work_in_a_home_of_an_odd_name(
    prepared: Path, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (at / "x").mkdir()
    home = copied(prepared, at / name, monkeypatch)
    for words in MAIN[:3]:
        ended, _, err = ran(capsys, *words)
        assert (ended, err) == (0, ""), words
    monkeypatch.chdir(at)  # a relative path with whatever is in it
    monkeypatch.setenv("CS330RAY_HOME", name)
    assert whole(home) == whole(Path(name)) == whole(prepared)
    assert ran(capsys, "delete", "toy", "--yes")[0] == 0
    assert sorted(path.name for path in at.iterdir()) == sorted({"x", Path(name).name})
    monkeypatch.chdir(at.parent / "cwd")


def test_homes_that_differ_behind_a_question_mark_have_ledgers_of_their_own(at: Path) -> None:
    homes = [at / name for name in ("a?b", "a?c", "a", "p%41q", "pAq")]
    for number, home in enumerate(homes):
        Writer.at(home).open(toy(name=f"study-{number}"), {"tests.toy": toy_trainable.METRICS})
    assert [Ledger.at(home).names() for home in homes] == [[f"study-{number}"] for number in range(5)]
    assert sorted(path.name for path in at.iterdir()) == sorted(home.name for home in homes)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CS330RAY_HOME", os.fsdecode(b"/tmp/\xff\xfe"), "CS330RAY_HOME: expected a path in UTF-8"),
        ("CS330RAY_LEDGER", "sqlite:////tmp/a?b/ledger.db", "where a ? of the path is written %3F"),
        ("CS330RAY_LEDGER", "sqlite://", "memory is no place to keep it"),
        ("CS330RAY_LEDGER", "sqlite:///:memory:", "memory is no place to keep it"),
        ("CS330RAY_LEDGER", "/tmp/ledger.db", "the ledger must be sqlite:///FILE"),
    ],
)
def test_a_place_that_no_ledger_can_have_is_one_line(
    at: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(at / "home"))
    monkeypatch.setenv(variable, value)
    for words in (["list"], ["run", "quickstart"], ["unpack", "x.zip"]):
        code, _, err = ran(capsys, *words)
        if words[0] != "unpack":  # which looks at its file first
            assert (code, err.count("\n")) == (2, 1)
            assert said in err
    assert not Path(value).exists()


def test_a_ledger_at_an_address_of_any_characters_is_where_the_address_says(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (at / "a ?#%41").mkdir()
    monkeypatch.setenv("CS330RAY_LEDGER", f"sqlite:///{at}/a %3F#%2541/l.db")
    Writer.at(at / "home").open(toy(), {"tests.toy": toy_trainable.METRICS})
    assert (at / "a ?#%41" / "l.db").is_file()
    assert Ledger.at(at / "home").names() == ["toy"]


# Links to another disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def other_disk(at: Path) -> Iterator[Path]:
    """A folder on another device than the temporary folder's."""
    here = at.stat().st_dev
    mounted = [Path("/dev/shm"), *(Path(part.mountpoint) for part in psutil.disk_partitions(all=True))]
    for place in mounted:
        if place.is_dir() and os.access(place, os.W_OK) and place.stat().st_dev != here:
            folder = Path(tempfile.mkdtemp(prefix="cs330ray-other-disk-", dir=place))
            yield folder
            shutil.rmtree(folder)
            return
    pytest.skip("this machine has one disk that can be written")


@pytest.mark.parametrize("what", ["", "toy", "toy/checkpoints", "backups", "ledger.db"])
def test_a_home_and_its_parts_may_be_links_to_another_disk(
    prepared: Path,
    at: Path,
    other_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    home, there = at / "home", other_disk / "there"
    copied(prepared, home, monkeypatch)
    with Database(f"sqlite:///{home}/ledger.db", "write").engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(truncate)")
    shutil.move(home / what, there)
    link_to(home / what, there)
    assert there.stat().st_dev != at.stat().st_dev
    before = whole(home)
    for words in MAIN:
        code, _, err = ran(capsys, *words)
        assert (code, err) == (0, ""), words
    assert ran(capsys, "pack", "toy", "-o", str(at / "toy.zip"))[0] == 0
    assert backup.keep(home) is not None
    Writer.at(home).open(toy(name="later"), {"tests.toy": toy_trainable.METRICS})
    code, _, err = ran(capsys, "restore", "--yes")
    assert (code, err) == (0, "")
    assert (home / what).is_symlink()
    assert Ledger.at(home).names() == ["toy"]
    if what == "ledger.db":
        assert backup.damage(there) is None
    code, _, err = ran(capsys, "delete", "toy", "--yes")
    assert (code, err) == (0, "")
    assert not list(there.rglob("trial-*"))
    assert ran(capsys, "unpack", str(at / "toy.zip"))[0] == 0
    assert whole(home) == before


def test_a_study_runs_in_a_home_that_is_a_link_to_another_disk(at: Path, other_disk: Path) -> None:
    home = link_to(at / "home", other_disk)
    study = toy(budget={"trials": 1, "steps": 5})
    in_process.run(study, home, mirror=False)
    ledger = Ledger.at(home)
    kept = ledger.kept(study, study.cells[0], 0)
    assert kept is not None
    assert Path(kept.path).stat().st_dev == other_disk.stat().st_dev
    assert local.read(Path(kept.path)).digest == kept.digest
    assert [path.name for path in at.iterdir()] == ["home"]


def test_a_link_that_leads_nowhere_is_one_line(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(link_to(at / "home", at / "not mounted")))
    for words in (["list"], ["run", "quickstart"]):
        code, _, err = ran(capsys, *words)
        assert (code, err.count("\n")) == (2, 1)
    assert [path.name for path in at.iterdir()] == ["home"]


# No room ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_where_there_is_no_room_each_command_is_one_line_and_the_ledger_stays_whole(
    prepared: Path, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may grow beyond the ledger, which is what a full disk or a quota is to a writer; root can do no more."""
    home = copied(prepared, at / "home", monkeypatch)
    with Database(f"sqlite:///{home}/ledger.db", "write").engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(truncate)")
    ran_before = whole(home)
    packed = at.parent / "toy.zip"
    for words in (["pack", "toy", "-o", str(packed)],):
        assert limited(words, None).returncode == 0
    size = (home / "ledger.db").stat().st_size
    shutil.rmtree(home / "toy" / "report", ignore_errors=True)
    for words, most, code in (
        (["list"], size, 0),
        (["show", "toy"], size, 0),
        (["report", "toy"], size, 2),
        (["unpack", str(packed), "--as", "other"], 512, 2),
        (["unpack", str(packed), "--as", "other"], 4096, 2),
        (["pack", "toy", "-o", str(at.parent / "full.zip")], size, 0),
        (["restore", "--yes"], 4096, 2),
    ):
        done = limited(words, most)
        assert done.returncode == code, (words, done.stderr)
        assert done.stderr.count("\n") == (code == 2), (words, done.stderr)
        assert whole(home) == ran_before
        assert not list(home.glob(".partial-*"))
        assert not (home / "other").exists()
    assert [path.name for path in at.iterdir()] == ["home"]
    assert limited(["unpack", str(packed), "--as", "other"], None).returncode == 0


def limited(words: list[str], most_bytes: int | None) -> "subprocess.CompletedProcess[str]":
    """Run a command that may make no file larger than so many bytes."""

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    command = [sys.executable, "-m", "cs330ray", *words]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)


# Names of the home's own --------------------------------------------------------------------------------------------

OWN = [
    "backups",
    "Backups",
    "artifacts",
    "alone",
    "ledger.db",
    "ledger.db-wal",
    "LEDGER.DB.lock",
    "mlflow.db",
    "mlruns",
]


@pytest.mark.parametrize("name", OWN)
def test_no_new_study_has_the_name_of_a_file_of_the_home(
    at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(at / "home"))
    for words in (["run", "quickstart", "--fork", name], ["run", "quickstart", "--set", f"name='{name}'"]):
        code, _, err = ran(capsys, *words)
        assert (code, err.count("\n")) == (2, 1)
        assert f"name: the home keeps files of its own under {name!r}; choose another" in err
    with pytest.raises(SpecError, match="the home keeps files of its own"):
        Writer.at(at / "home").open(toy(name=name), {"tests.toy": toy_trainable.METRICS})


def test_two_studies_do_not_share_a_folder_where_the_disk_knows_no_case(at: Path) -> None:
    ledger, metrics = Writer.at(at), {"tests.toy": toy_trainable.METRICS}
    ledger.open(toy(), metrics)
    ledger.open(toy(name="Toy"), metrics)  # this disk tells them apart
    (at / "toy").mkdir()
    (at / "TOY").symlink_to("toy")  # and now it is as on one that does not
    with pytest.raises(SpecError, match=r"TOY: .* this disk takes it for that of toy"):
        ledger.open(toy(name="TOY"), metrics)


def test_a_study_of_such_a_name_from_before_is_read_and_deleted_and_harms_nothing_else(
    prepared: Path, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = copied(prepared, at / "home", monkeypatch)
    study = parse(toy().model_dump(mode="json") | {"name": "backups"}, "before")
    ledger = Writer.at(home)
    with monkeypatch.context() as before:
        before.setattr(places, "is_own", lambda _: False)
        ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    Mirror(ledger, "backups", home).sync()
    place = places.checkpoints_of(home, "backups", study.cells[0], 0)
    local.write(place, 1, lambda into: (into / "state").write_text("") and None)
    kept = [path.read_bytes() for path in backup.backups(home)]
    assert kept
    assert "backups" in ran(capsys, "list")[1]
    assert ran(capsys, "show", "backups")[0] == 0
    code, _, err = ran(capsys, "delete", "backups", "--yes")
    assert (code, err) == (0, "")
    assert [path.read_bytes() for path in backup.backups(home)] == kept
    assert sorted(path.name for path in (home / "backups").iterdir()) == [path.name for path in backup.backups(home)]
    assert Ledger.at(home).names() == ["toy"]


def test_a_file_of_yours_in_a_study_s_folder_is_not_deleted_with_it(
    prepared: Path, at: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = copied(prepared, at / "home", monkeypatch)
    (home / "toy" / "notes.txt").write_text("mine")
    code, _, err = ran(capsys, "delete", "toy", "--yes")
    assert (code, err) == (0, f"toy: 1 file stays that is not the study's: {home}/toy/notes.txt\n")
    assert [path.name for path in (home / "toy").iterdir()] == ["notes.txt"]
