"""What goes into the file, whatever else is there: requests, trials of Optuna's tools, secrets, locked files."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from cs330ray.checkpoints import local
from cs330ray.errors import Cs330rayError, DataError, SpecError
from cs330ray.ledger import confirm, lease
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Row
from cs330ray.ledger.tables import TABLES
from cs330ray.ledger.writer import Writer
from cs330ray.spec import places
from cs330ray.travel import archive, record
from cs330ray.travel.pack import pack
from cs330ray.travel.unpack import unpack
from tests import filled
from tests.cli.test_cli import ran
from tests.finished import STARTED
from tests.travel.test_travel import packed, recorded

STARTED_HERE = {**STARTED, "threads": 1, "code": "c0de", "data": "da7a"}


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """A ledger with `letters`, of whose first cell trial 0 is COMPLETE."""
    monkeypatch.delenv("CS330RAY_LEDGER", raising=False)
    ledger = Writer.at(tmp_path / "first")
    study = filled.opened(ledger, filled.letters())
    filled.search(ledger, study, study.cells[0], 0.8)
    return ledger


def test_every_table_travels_or_stays() -> None:
    travel = list(record.TRAVELS.values())
    assert sorted(table.name for table in [*travel, *record.STAYS]) == sorted(TABLES.tables)


def test_what_a_driver_is_asked_stays(first: Writer, home: Path, tmp_path: Path) -> None:
    lease.ask_to_stop(first.database, "letters", "nobody")
    lease.ask_to_stop(first.database, "letters", "nobody", first.study("letters").cells[0].key, 0)
    unpack(packed(first.home, "letters", tmp_path / "x.zip"), home, None)
    with lease.held(Writer.at(home).database, "letters") as held:
        assert held.asked() == []


def test_trials_of_optunas_tools_travel_and_change_no_number(first: Writer, home: Path, tmp_path: Path) -> None:
    """They are 0 < 1, 2, 3 < 4: waiting, ended with words of ours that mean nothing there, and failed."""
    study = first.study("letters")
    (cell, other) = study.cells
    opened = optuna.load_study(study_name=f"letters {cell.key}", storage=first.database.storage)
    opened.enqueue_trial({"quality": 0.5}, user_attrs={"seed": "mine"})
    opened.add_trial(
        optuna.trial.create_trial(
            params={"quality": 0.9}, distributions={"quality": FloatDistribution(0.0, 1.0)}, value=0.9,
            user_attrs={"seed": "mine", "continues": 7}, intermediate_values={-1: 0.5},
        )
    )  # fmt: skip
    opened.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    number = filled.enter(first, study, cell, 0.25)
    assert number == 4
    first.write_rows(study, cell, number, [Row(10, {"val_accuracy": 0.5}, 0.0)])
    place = places.checkpoints_of(first.home, "letters", cell, number)
    kept = local.write(place, 10, lambda into: (into / "state.json").write_text("{}") and None)
    first.write_checkpoint(study, cell, number, 10, str(kept.path), kept.digest)
    places.log_of(first.home, "letters", cell, number).write_text("it spoke")

    done = pack(Ledger.at(first.home), study, first.home, tmp_path / "x.zip")
    arrived = unpack(tmp_path / "x.zip", home, None)
    assert (done.trials, done.checkpoints) == (arrived.trials, arrived.checkpoints) == (2, 1)
    there = Ledger.at(home)
    assert recorded(home, "letters") == recorded(first.home, "letters")
    assert [trial.number for trial in there.history(study, cell)] == [0, 4]
    assert there.foreign(study, cell) == [1, 2, 3]
    assert there.in_optuna(study, other) == []
    for before, now in zip(Ledger.at(first.home).in_optuna(study, cell), there.in_optuna(study, cell), strict=True):
        assert (now.state, now.values, now.params, now.user_attrs) == (
            before.state, before.values, before.params, before.user_attrs,
        )  # fmt: skip
        assert (now.system_attrs, now.intermediate_values) == (before.system_attrs, before.intermediate_values)
    assert places.log_of(home, "letters", cell, number).read_text() == "it spoke"
    assert there.kept(study, cell, number) is not None


def test_what_is_secret_where_a_study_arrives_changes_nothing_of_it(
    first: Writer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = first.study("letters")
    config = {"affine": True, "optimizer": "adam", "token": "word", "api_key": None, "path": "//a@b", "odd": "\ud83d"}
    first.write_attempt(study, study.cells[0], 0, {**STARTED_HERE, "config": config})
    file = packed(first.home, "letters", tmp_path / "x.zip")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")
    monkeypatch.setenv("DB_PASSWORD", "adam")
    unpack(file, home, None)
    assert recorded(home, "letters") == recorded(first.home, "letters")
    (start,) = Ledger.at(home).attempts(study, study.cells[0], 0)
    assert start["config"] == config


def test_the_cells_of_a_study_are_made_once_a_table_and_not_once_a_row(
    first: Writer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = first.study("letters")
    (cell, _), made, original = study.cells, [], confirm.fresh_cells

    def counted(*given: Any) -> Any:
        made.append(given)
        return original(*given)

    monkeypatch.setattr(confirm, "fresh_cells", counted)
    unpack(packed(first.home, "letters", tmp_path / "few.zip"), home, "few")
    few = len(made)
    first.write_rows(study, cell, 0, [Row(step, {"val_accuracy": 0.5}, 0.0) for step in range(21, 121)])
    for step in range(10):
        place = places.checkpoints_of(first.home, "letters", cell, 0)
        kept = local.write(place, step, lambda into: (into / "state.json").write_text("{}") and None)
        first.write_checkpoint(study, cell, 0, step, str(kept.path), kept.digest)
    made.clear()
    unpack(packed(first.home, "letters", tmp_path / "many.zip"), home, "many")
    assert len(made) == few


# Files that cannot be read -------------------------------------------------------------------------------------------


def refusing(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, *refused: Path) -> None:
    """Have a function of files refuse some paths, as it does where this user has no right to them."""
    original: Callable[..., Any] = getattr(target, name)

    def refuses(path: Any, *given: Any, **named: Any) -> Any:
        if Path(path) in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *given, **named)

    monkeypatch.setattr(target, name, refuses)


def test_a_log_that_cannot_be_read_is_left_out_and_said(
    first: Writer, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = first.study("letters")
    filled.search(first, study, study.cells[0], 0.7)
    logs = [places.log_of(first.home, "letters", study.cells[0], number) for number in (0, 1)]
    for log in logs:
        log.parent.mkdir(parents=True)
        log.write_text("it spoke")
    report = first.home / "letters" / "report"
    report.mkdir()
    refusing(monkeypatch, Path, "open", logs[0])
    refusing(monkeypatch, os, "listdir", report)
    monkeypatch.setenv("CS330RAY_HOME", str(first.home))
    code, _, err = ran(capsys, "pack", "letters", "-o", str(tmp_path / "x.zip"))
    assert (code, err.count("\n")) == (0, 1)
    assert f"letters: 2 files left out that cannot be read, {logs[0]} (Permission denied) for one" in err
    unpack(tmp_path / "x.zip", home, None)
    there = [places.log_of(home, "letters", study.cells[0], number).exists() for number in (0, 1)]
    assert there == [False, True]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (OSError(errno.EACCES, "Permission denied", "/else/where"), DataError, "/else/where: expected a file that can"),
        (OSError(errno.EACCES, "Permission denied", b"/else/where"), DataError, "/else/where: expected a file that"),
        (OSError(errno.ENOSPC, "No space left on device"), SpecError, "-o .*x.zip: expected a file that can be writ"),
    ],
    ids=["another file", "in bytes", "a full disk"],
)
def test_a_fault_of_a_disk_names_the_file_that_it_is_about(
    tmp_path: Path, fault: OSError, kind: type[Cs330rayError], said: str
) -> None:
    with pytest.raises(kind, match=said), archive.packing(tmp_path / "x.zip"):
        raise fault
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_breaks_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name = "/a/log.txt"

        def read(self, _: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    broken: Any = Broken()
    with pytest.raises(DataError, match=r"/a/log.txt: expected .* but Input/output error"):  # noqa: SIM117
        with archive.packing(tmp_path / "x.zip") as packing:
            packing.file("files/report/a.md", broken)
    assert list(tmp_path.iterdir()) == []
