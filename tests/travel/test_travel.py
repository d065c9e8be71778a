"""A study as one file: what arrives is what was packed, wherever to and under whichever name, and it goes on there."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sql

from cs330ray.checkpoints import copies, local
from cs330ray.checkpoints import store as stores
from cs330ray.checkpoints.copies import Copies
from cs330ray.errors import SpecError
from cs330ray.ledger import confirm, schema
from cs330ray.ledger.database import Database
from cs330ray.ledger.lease import held
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending, Loss, Row
from cs330ray.ledger.tables import CHECKPOINTS
from cs330ray.ledger.writer import Writer
from cs330ray.service.search.ask import ask
from cs330ray.spec import places, reading
from cs330ray.spec.study import Study
from cs330ray.travel import record
from cs330ray.travel import unpack as unpacking
from cs330ray.travel.archive import MANIFEST, Arrived
from cs330ray.travel.pack import pack
from cs330ray.travel.unpack import unpack
from tests import filled, finished, in_process
from tests.cli.test_cli import ran
from tests.finished import finish, study_of
from tests.studies_of_tests import toy, whole


def packed(home: Path, name: str, file: Path) -> Path:
    ledger = Ledger.at(home)
    pack(ledger, ledger.study(name), home, file)
    return file


def recorded(home: Path, name: str) -> dict[str, Any]:
    """All that a ledger holds of a study, but its name and where its checkpoints are."""
    ledger = Ledger.at(home)
    study, found = ledger.study(name), {}
    with ledger.database.engine.connect() as connection:
        for table in record.TRAVELS.values():
            rows = connection.execute(sql.select(table).where(table.c.study == name)).mappings().all()
            found[table.name] = sorted(
                json.dumps({key: value for key, value in row.items() if key not in ("study", "path")}) for row in rows
            )
    for cell in study.cells:
        for frozen in ledger.history(study, cell):
            found[cell.key, frozen.number] = {
                key.lstrip("_"): value for key, value in vars(frozen).items() if key != "_trial_id"
            }
    return found | {"spec": study.model_copy(update={"name": ""})}


def files_of(home: Path, name: str) -> dict[str, bytes]:
    """The files of a study that travel."""
    folder = home / name
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for kind in (places.CHECKPOINTS, places.REPORT)
        for path in sorted((folder / kind).rglob("*"))
        if path.is_file()
    }


def contents(file: Path) -> dict[str, list[bytes]]:
    """The lines of each member, but of the manifest."""
    with zipfile.ZipFile(file) as archive:
        return {name: sorted(archive.read(name).splitlines()) for name in archive.namelist() if name != MANIFEST}


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


BEFORE = Path(__file__).parents[1] / "before" / "home"
BUDGET = {"trials": 6, "steps": 2}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with `done`, confirmed, with logs and a report, a lost worker, a trial that failed and one that runs."""
    home = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CS330RAY_LEDGER", raising=False)
        patch.setitem(finished.STARTED, "threads", 1)
        widths, asked = {"width": [2, 4]}, {"lr": [0.1, 0.2]}
        study = study_of("tests.toy", {"eval_every_steps": 1}, compare=widths, search=asked, budget=BUDGET)
        ledger = finish(home, study, [{"lr": 0.1}, {"lr": 0.2}])
        (cell, _), goals = study.cells, ledger.goals(study)
        for ending in (Ending("FAIL", "raised: it fell é", "Traceback", cause="raised"), None):
            asked = ask(study, cell, goals, ledger.history(study, cell))
            number = ledger.enter(study, cell, asked, seed=7)
            ledger.write_attempt(study, cell, number, {**finished.STARTED, "code": "c0de", "data": "da7a"})
            ledger.write_rows(study, cell, number, [Row(1, {"val_loss": 0.25, "val_speed": float("nan")}, 0.0)])
            ledger.report(study, cell, number, 1, 0.25)
            ledger.write_loss(study, cell, number, Loss("killed", frozenset({"ab1"})))
            if ending is not None:
                ledger.end(study, cell, number, ending)
        place = places.checkpoints_of(home, "done", cell, 3)
        kept = local.write(place, 1, lambda into: (into / "state.json").write_text("{}") and None)
        ledger.write_checkpoint(study, cell, 3, 1, str(kept.path), kept.digest)
        ledger.seen(study, "session", 12.5)
        places.log_of(home, "done", cell, 0).write_text("it spoke")
        (home / "done" / "report" / "figures").mkdir(parents=True)
        (home / "done" / "report" / "report.html").write_text("<p>it")
        (home / "done" / "report" / "figures" / "a figure é.svg").write_text("<svg/>")
        (home / "done" / "mirror.uids").write_text("of this home alone")
    return home


def test_all_of_it_arrives_and_nothing_of_the_first_home_changes(
    done: Path, home: Path, tmp_path: Path, backend: str
) -> None:
    """The second home is a file here, and a database on PostgreSQL there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CS330RAY_LEDGER", raising=False)
        before, all_before = recorded(done, "done"), tree(done)
        file = packed(done, "done", tmp_path / "done.zip")
        assert tree(done) == all_before
    arrived = unpack(file, home, None)
    assert (arrived.trials, arrived.checkpoints) == (6, 4 + 8 + 1)
    assert recorded(home, "done") == before
    assert files_of(home, "done") == files_of(done, "done")
    assert sorted(path.name for path in (home / "done").iterdir()) == ["checkpoints", "report", "study.toml"]
    assert Ledger.at(home).names() == ["done"]
    assert reading.read(arrived.file) == Ledger.at(home).study("done")
    again = packed(home, "done", tmp_path / "again.zip")  # from there too
    assert contents(again) == contents(file)


def test_studies_of_one_name_arrive_beside_each_other_and_each_shows_as_the_first(
    done: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(packed(done, "done", tmp_path / "done.zip"))
    for name in ("ada", "ben"):
        code, out, err = ran(capsys, "unpack", file, "--as", name)
        assert (code, err) == (0, "")
        assert f"{name}: unpacked (packed as done), 6 trials, 13 checkpoints" in out
        assert f"cs330ray run {home / name / 'study.toml'}" in out
    shown = {}
    for name in ("done", "ada", "ben"):
        monkeypatch.setenv("CS330RAY_HOME", str(done if name == "done" else home))
        code, out, err = ran(capsys, "show", name)
        assert (code, err) == (0, "")
        shown[name] = out.replace(f"{name}: ", "NAME: ")
        code, out, _ = ran(capsys, "reproduce", name, "1", "--cell", "width=4")
        assert (code, out.splitlines()[-1].split(":")[0]) == (0, "equal")
        assert ran(capsys, "report", name, "--markdown", "--to", str(tmp_path / name))[0] == 0
    assert shown["ada"] == shown["ben"] == shown["done"]
    texts = [
        [
            line.replace(name, "NAME")
            for line in (tmp_path / name / "report.md").read_text().splitlines()
            if not line.startswith("| study |")  # the digest, of which the name is a part
        ]
        for name in ("done", "ada", "ben")
    ]
    assert texts[0] == texts[1] == texts[2]
    ledger = Ledger.at(home)
    assert ledger.uid("ada") != ledger.uid("ben")
    study = ledger.study("ada")
    for cell in [*study.cells, *confirm.fresh_cells(study)]:
        kept = ledger.kept(study, cell, 0)
        assert kept is not None
        assert local.read(Path(kept.path)).digest == kept.digest


def test_a_study_goes_on_elsewhere_as_it_would_have_here(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Extended, and with a trial that had been asked and not begun; the name changes nothing that is asked."""
    study = toy(budget={"trials": 2}, resources={"slots": 1}, confirm={"top": 1, "seeds": 1})
    first = tmp_path / "first"
    in_process.run(study, first, mirror=False)
    ledger = Writer.at(first)
    (cell,) = study.cells
    grown = toy(budget={"trials": 5}, resources={"slots": 1}, confirm={"top": 1, "seeds": 1})
    ledger.enter(grown, cell, ask(grown, cell, ["min"], ledger.history(study, cell)), seed=99)
    file = packed(first, "toy", tmp_path / "toy.zip")
    assert ran(capsys, "unpack", str(file), "--as", "ada")[0] == 0
    in_process.run(grown, first, mirror=False)
    there = reading.read(home / "ada" / "study.toml", ["budget.trials=5"])
    assert there == reading.parse(grown.model_dump(mode="json") | {"name": "ada"}, "grown")
    in_process.run(there, home, mirror=False)
    assert whole(home, "ada") == whole(first)
    assert [trial.state for trial in Ledger.at(home).trials(there, cell)] == ["COMPLETE"] * 5


def test_checkpoints_are_packed_from_the_store_that_has_them(
    done: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(shutil.copytree(done, tmp_path / "first"))
    monkeypatch.setenv(stores.VARIABLE, str(tmp_path / "a store"))
    ledger, store = Writer.at(first), stores.tried(str(stores.wanted()))
    study = ledger.study("done")
    copies.mark(store, "done-1")
    moved = 0
    for cell in [*study.cells, *confirm.fresh_cells(study)]:
        for number in ledger.checkpoints(study, cell):
            kept = ledger.kept(study, cell, number)
            assert kept is not None
            there = Copies(store, places.copies_of("done-1", cell, number))
            there.push(local.read(Path(kept.path)), keep=1)
            ledger.forget_checkpoints(study, cell, number)
            ledger.write_checkpoint(study, cell, number, kept.step, there.address(kept.step), kept.digest)
            moved += 1
    shutil.rmtree(first / "done" / "checkpoints")
    file = packed(first, "done", tmp_path / "done.zip")
    monkeypatch.delenv(stores.VARIABLE)
    shutil.rmtree(tmp_path / "a store")
    assert unpack(file, home, None).checkpoints == moved == 13
    assert files_of(home, "done").keys() == {name for name in files_of(done, "done") if not name.endswith(places.LOG)}


def test_a_checkpoint_that_is_not_here_is_left_out_and_said(
    done: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done, home)
    (cell, _) = (study := Ledger.at(home).study("done")).cells
    shutil.rmtree(places.checkpoints_of(home, "done", cell, 0) / "step-00000002")
    file = tmp_path / "done.zip"
    code, out, err = ran(capsys, "pack", "done", "-o", str(file))
    assert (code, err.count("\n")) == (0, 1)
    assert out.startswith(f"{file}: done, 6 trials, 12 checkpoints")
    assert "1 recorded checkpoint left out, of trial 0 of width=2 for one" in err
    unpack(file, tmp_path / "second", None)
    ledger = Ledger.at(tmp_path / "second")
    assert ledger.kept(study, cell, 0) is None
    assert ledger.kept(study, cell, 1) is not None


def test_a_study_without_a_trial_and_one_under_way_travel(home: Path, tmp_path: Path) -> None:
    ledger = Writer.at(tmp_path / "first")
    filled.opened(ledger, filled.letters("new"))
    study = filled.opened(ledger, filled.letters("live"))
    filled.enter(ledger, study, study.cells[0], 0.25)
    with held(ledger.database, "live"):
        for name in ("new", "live"):
            unpack(packed(tmp_path / "first", name, tmp_path / f"{name}.zip"), home, None)
    there = Ledger.at(home)
    assert there.names() == ["new", "live"]
    assert [trial.state for trial in there.trials(study, study.cells[0])] == ["RUNNING"]


# Refused ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CS330RAY_LEDGER", raising=False)
        return packed(done, "done", tmp_path_factory.mktemp("packed") / "done.zip")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a study of two cells, a trial each."""
    home = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CS330RAY_LEDGER", raising=False)
        patch.setitem(finished.STARTED, "threads", 1)
        study = study_of("tests.toy", {"eval_every_steps": 1}, compare={"width": [2, 4]}, confirm=None)
        finish(home, study, confirmed=False)
        return packed(home, "done", home / "small.zip")


def taken(home: Path) -> None:
    unpacking.unpack(home.parent / "done.zip", home, None)


def linked(home: Path) -> None:
    home.mkdir()
    (home.parent / "elsewhere").mkdir()
    (home / "done").symlink_to(home.parent / "elsewhere")


def holding(home: Path) -> None:
    (home / "done").mkdir(parents=True)
    (home / "done" / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("before", "words", "said"),
    [
        (taken, [], "done: a study of this name is here; unpack it as another with `--as NAME`"),
        (linked, [], "expected no folder of this name"),
        (holding, [], "expected no folder of this name"),
        (None, ["--as", "Backups"], "the home keeps files of its own under 'Backups'"),
        (None, ["--as", "../x"], "--as: name: string should match pattern"),
    ],
)
def test_a_name_that_cannot_be_had_is_one_line_and_nothing_is_written(
    file: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    before: Callable[[Path], None] | None,
    words: list[str],
    said: str,
) -> None:
    shutil.copy(file, home.parent / "done.zip")
    if before is not None:
        before(home)
    held_before = {name for name in tree(home.parent) if "ledger.db" not in name}
    code, _, err = ran(capsys, "unpack", str(file), *words)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert {name for name in tree(home.parent) if "ledger.db" not in name} == held_before
    if (home / "ledger.db").exists():
        assert Ledger.at(home).names() == (["done"] if before is taken else [])


def test_a_file_that_is_there_is_not_packed_over(
    done: Path, home: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(done))
    before = file.read_bytes()
    for target in (file, done / "ledger.db", done / "nowhere" / "x.zip"):
        code, _, err = ran(capsys, "pack", "done", "-o", str(target))
        assert (code, err.count("\n")) == (2, 1)
        assert f"-o {target}" in err
    assert file.read_bytes() == before
    assert ran(capsys, "pack", "nobody", "-o", str(file.with_name("x")))[0] == 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# Killed -------------------------------------------------------------------------------------------------------------

MOMENTS: dict[str, tuple[Any, str, int]] = {  # at which call of what
    "between Optuna's studies": (unpacking, "_optuna_study", 2),
    "between rows": (Database, "insert", 3),  # the first is the lease
    "in the midst of the files": (Arrived, "extract", 2),
    "before the folder has its name": (Path, "rename", 1),
    "before the rows have theirs": (unpacking, "_reveal", 1),
    "in that transaction": (record.TRAVELS["scores"], "update", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_unpacking_that_is_killed_leaves_no_study_and_the_next_one_clears_up(
    small: Path, home: Path, moment: str
) -> None:
    Writer.at(home)
    assert killed_at(*MOMENTS[moment], small, home) == 9
    ledger = Ledger.at(home)
    assert ledger.names() == []
    assert not ledger.database.select(sql.select(CHECKPOINTS).where(CHECKPOINTS.c.study == "done"))
    unpack(small, home, "ada")  # clears up after another that nobody is at work on
    assert hidden_in(home) == {"ada"}
    assert [path.name for path in home.iterdir() if path.name.startswith(".partial")] == []


def test_one_that_is_killed_after_that_has_a_whole_study_whatever_one_before_had_left(small: Path, home: Path) -> None:
    assert killed_at(unpacking, "_reveal", 1, small, home) == 9
    assert killed_at(Path, "unlink", 1, small, home) == 9
    unpack(small, home, "ada")
    assert recorded(home, "done") == recorded(home, "ada")
    assert files_of(home, "done") == files_of(home, "ada")


def hidden_in(home: Path) -> set[str]:
    """The studies that are not seen, by what Optuna's tables and ours hold."""
    ledger = Ledger.at(home)
    held = {name.partition(" ")[0] for name in optuna.get_all_study_names(ledger.database.storage)}
    for table in record.TRAVELS.values():
        held |= {row.study for row in ledger.database.select(sql.select(table.c.study).distinct())}
    return held


def killed_at(target: Any, name: str, which: int, file: Path, home: Path) -> int:
    """Unpack in a process that ends without a word at a call; its exit code."""
    child = os.fork()
    if child != 0:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls, original = [], getattr(target, name)

    def ends(*given: Any, **named: Any) -> Any:
        calls.append(given)
        return os._exit(9) if len(calls) == which else original(*given, **named)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, name, ends)
            unpack(file, home, None)
    finally:
        os._exit(1)


def test_two_do_not_unpack_one_name_at_once(file: Path, home: Path) -> None:
    with held(Writer.at(home).database, "done"), pytest.raises(SpecError, match="a study runs once at a time"):
        unpack(file, home, None)
    assert not (home / "done").exists()


def test_the_file_is_a_plain_zip_of_json_and_files(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        told = json.loads(archive.read("manifest.json"))
        assert (told["kind"], told["form"], told["study"]) == ("cs330ray study", 2, "done")
        assert Study.model_validate(json.loads(archive.read("study.json"))).name == "done"


def test_a_study_of_an_older_ledger_arrives_in_a_new_one(home: Path, tmp_path: Path) -> None:
    """Its tables lack columns, and its paths are absolute."""
    first = Path(shutil.copytree(BEFORE, tmp_path / "first"))
    old = Ledger.at(first)
    assert old.database.version == 0
    arrived = unpack(packed(first, "interrupted", tmp_path / "old.zip"), home, None)
    new = Ledger.at(home)
    assert (new.database.version, arrived.trials, arrived.checkpoints) == (schema.VERSION, 2, 2)
    assert new.asking(arrived.study) == "own"  # as it began
    for cell in arrived.study.cells:
        assert new.trials(arrived.study, cell) == old.trials(arrived.study, cell)
        for number, place in new.checkpoints(arrived.study, cell).items():
            assert local.read(Path(place)).path.is_relative_to(home / "interrupted"), number
