"""What `cs330ray plan` prints, and what a dry run says of the cells: from one function, and nothing is written."""

from pathlib import Path

import pytest

from cs330ray.ledger.writer import Writer
from tests.analysis.test_advice import VALUES, study
from tests.analysis.test_replicates import fill
from tests.cli.test_cli import ran
from tests.studies_of_tests import toml, toy

COMPARED = {"compare": {"data_seed": [0, 1]}, "confirm": {"top": 1, "seeds": 2}}


def test_a_file_is_planned_in_a_table_and_two_sentences_and_nothing_is_written(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(toml(toy(**COMPARED), tmp_path / "toy.toml"))
    code, out, err = ran(capsys, "plan", file)
    assert (code, err) == (0, "")
    title, columns, *rows, basis, advised = out.splitlines()
    assert title == (
        "toy: the lead of one of 2 cells over all others that is told, at 4 trials a search, with power 0.8"
    )
    assert columns.split("  ")[0] == "searches"
    assert [row.split()[0] for row in rows] == ["3", "4", "5", "6", "8", "10", "15", "20"]
    assert rows[2].endswith("advised")
    assert basis.startswith("sd is the standard deviation of what one search of a cell scores")
    assert advised.endswith(f"`cs330ray run {file} --set repeat.searches=5`.")
    assert not home.exists()


def test_a_recorded_study_is_planned_by_its_record(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(Writer.at(home), study(3), {cost: values[:3] for cost, values in VALUES.items()})
    before = (home / "ledger.db").read_bytes()
    code, out, err = ran(capsys, "plan", "letters")
    assert (code, err) == (0, "")
    assert "lead told, test_accuracy" in out
    assert "The scatter is that of 3 searches of each cell; an hour is one of one slot" in out
    assert "`cs330ray run FILE --set repeat.searches=5`" in out
    assert (home / "ledger.db").read_bytes() == before


def test_a_study_that_is_nowhere_one_cell_and_hours_that_say_nothing_are_one_line_each(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = str(toml(toy(confirm={"top": 1, "seeds": 2}), tmp_path / "single.toml"))
    several = str(toml(toy(**COMPARED), tmp_path / "several.toml"))
    for words, message in [
        (["nowhere"], "nowhere: expected a study of this home or a study file, got neither; see `cs330ray list`"),
        ([single], f"{single}: compare: expected two cells or more to tell apart, got 1; "),
        ([several, "--hours", "5"], "--hours: expected a study with recorded trials, which say what one costs, got "),
        ([several, "--hours", "0"], "--hours: expected a number above 0, got 0"),
        ([several, "--hours", "nan"], "--hours: expected a number above 0, got nan"),
    ]:
        code, out, err = ran(capsys, "plan", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(message)
    assert not home.exists()


def test_a_dry_run_says_what_the_study_as_asked_would_tell_of_its_cells(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(toml(toy(**COMPARED), tmp_path / "toy.toml"))
    code, out, _ = ran(capsys, "run", file, "--dry-run")
    assert code == 0
    assert "toy: 1 search of each cell tells no cells apart; 5 tell a lead of " in out
    code, out, _ = ran(capsys, "run", file, "--dry-run", "--set", "repeat.searches=5")
    assert code == 0
    assert "toy: 5 searches of each cell tell a lead of " in out
    assert not home.exists()


def test_a_dry_run_of_one_cell_says_nothing_of_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capsys, "run", str(toml(toy(), tmp_path / "toy.toml")), "--dry-run")
    assert code == 0
    assert " tell" not in out
