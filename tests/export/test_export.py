"""`cs330ray best --export`: the confirmed choice becomes a directory, whole or not at all, with honest figures."""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import cs330ray
from cs330ray.checkpoints import copies, local
from cs330ray.checkpoints import store as stores
from cs330ray.checkpoints.copies import Copies
from cs330ray.export.card import _in_a_line
from cs330ray.ledger import confirm
from cs330ray.ledger.writer import Writer
from cs330ray.spec.study import Study, fresh_seed
from cs330ray.trial.contract import Weights
from tests import portable
from tests.cli.test_cli import ran
from tests.finished import finish, study_of
from tests.noisy import luck

FILES = ["README.md", "config.json", "manifest.json", "metrics.json", "model.safetensors", "provenance.json"]
QUALITIES = [{"quality": 0.2}, {"quality": 0.8}, {"quality": 0.5}]


def noisy(**changes: Any) -> Study:
    """Three qualities, of which the two best are confirmed on three fresh seeds."""
    raw: dict[str, Any] = {
        "search": {"quality": [0.2, 0.5, 0.8]}, "budget": {"trials": 3, "steps": 2}, "confirm": {"top": 2, "seeds": 3},
    }  # fmt: skip
    return study_of("tests.portable", {"noise": 0.05}, **raw | changes)


@pytest.fixture(scope="module")
def done_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("done") / "runs"
    finish(home, noisy(), QUALITIES)
    return home


@pytest.fixture
def done(done_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of that study, which is over; to be read alone."""
    monkeypatch.setenv("CS330RAY_HOME", str(done_once))
    monkeypatch.delenv("CS330RAY_LEDGER", raising=False)
    return done_once


def read(directory: Path, name: str) -> Any:
    return json.loads((directory / name).read_text())


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_confirmed_choice_is_written_whole_and_loads(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(capsys, "best", "done", "--export", str(tmp_path / "deep" / "model"))
    assert code == 0
    assert "trial 1, the choice by the mean val_accuracy over 3 fresh seeds" in out
    assert "fresh seed 0's, the first of 3" in out
    assert files(tmp_path / "deep") == ["model"]
    assert files(tmp_path / "deep" / "model") == FILES
    assert len({(tmp_path / "deep" / "model" / name).stat().st_mode for name in FILES}) == 1
    first = fresh_seed(0, 0)
    assert cs330ray.load(tmp_path / "deep" / "model", "tests.portable") == (0.8, first)
    tensors = load_file(tmp_path / "deep" / "model" / "model.safetensors")
    assert tensors["quality"].tolist() == pytest.approx([0.8, first % 1000])


def test_the_figures_are_those_of_the_very_run_and_the_means_those_of_all(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run reaches its quality plus its seed's luck on validation, and its quality on test."""
    ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    found = read(tmp_path / "model", "metrics.json")
    fresh = [0.8 + luck(fresh_seed(0, index), 0.05) for index in range(3)]
    weights = found["run"]
    assert (weights["trial"], weights["fresh"], weights["seed"]) == (1, 0, fresh_seed(0, 0))
    assert weights["validation"] == {"val_accuracy": pytest.approx(fresh[0])}
    assert weights["test"] == {"test_accuracy": 0.8, "test_cost": 1.0}
    assert weights["test_ci95_items"]["test_accuracy"]["n"] == 2
    assert found["search"] == {"seed": 101, "validation": {"val_accuracy": pytest.approx(0.8 + luck(101, 0.05))}}
    confirmed = found["confirmed"]
    assert confirmed["validation"]["val_accuracy"]["values"] == pytest.approx(fresh)
    assert confirmed["validation"]["val_accuracy"]["mean"] == pytest.approx(statistics.fmean(fresh))
    low, high = (confirmed["validation"]["val_accuracy"][end] for end in ("low", "high"))
    half = 4.302653 * statistics.stdev(fresh) / 3**0.5  # Student's t, two degrees of freedom
    assert (low, high) == pytest.approx((statistics.fmean(fresh) - half, statistics.fmean(fresh) + half))
    assert "not_confirmed" not in found


def test_the_seed_that_is_taken_is_the_first_and_not_the_best(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = next(seed for seed in range(100) if luck(fresh_seed(seed, 0), 1) < luck(fresh_seed(seed, 1), 1))
    finish(home, noisy(seed=seeds), QUALITIES)
    ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert read(tmp_path / "model", "config.json")["seed"] == fresh_seed(seeds, 0)


def test_the_card_says_what_it_is_how_it_was_chosen_and_where_it_comes_from(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = noisy()
    ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# done: a model of `tests.portable`" in card
    assert "trial 1, the choice by the mean val_accuracy over 3 fresh seeds" in card
    assert f"| val_accuracy | {0.8 + luck(101, 0.05):.4g} |" in card
    assert "| test_accuracy | 0.8 | ±0.2 (n 2) | 0.8 ±0 (n 3) |" in card
    assert "- quality = 0.8" in card
    assert study.digest in card


def test_where_it_ran_is_told_without_the_names_of_machines(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = noisy()
    ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    told = read(tmp_path / "model", "provenance.json")
    assert (told["study"], told["study_digest"], told["cell"], told["trial"], told["fresh"]) == (
        "done", study.digest, "all", 1, 0,
    )  # fmt: skip
    assert told["data"] == "noisy"
    assert told["starts"][0]["versions"] == {"torch": "2.13"}
    assert all("a-host" not in (tmp_path / "model" / name).read_text() for name in FILES if "tensors" not in name)


def test_an_export_made_twice_is_the_same(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "other"):
        ran(capsys, "best", "done", "--export", str(tmp_path / name))
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in FILES)


# Where to ---------------------------------------------------------------------------------------------------------


def test_an_empty_directory_is_taken_and_one_that_holds_something_is_not(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert ran(capsys, "best", "done", "--export", str(tmp_path / "empty"))[0] == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, why in (("empty", "it holds something"), ("full", "it holds something"), ("file", "it is a file")):
        code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / name))
        assert (code, err.count("\n")) == (2, 1)
        assert f"an empty or new directory is needed, but {why}" in err
    assert files(tmp_path / "full") == ["mine"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_names_nobody_s_home_is_one_line(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ran(capsys, "best", "done", "--export", "~nosuchuser/model")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("--export ~nosuchuser/model: an empty or new directory is needed, but ")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_write_that_fails_leaves_nothing(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    (tmp_path / "here").mkdir()
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "here" / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert "a directory that can be written is needed, but No space left on device" in err
    assert files(tmp_path / "here") == []


@pytest.mark.parametrize(
    ("answer", "fragment"),
    [
        (Weights({"shared": torch.zeros(2)[:1].expand(2), "b": "no tensor"}), "must answer tensors by name"),
        (Weights({}, {"seed": {1, 2}}), "notes as JSON has them, but Object of type set is not JSON serializable"),
        (None, "must answer a cs330ray.trial.Weights, but answered None"),
    ],
)
def test_an_answer_of_export_that_cannot_be_written_is_one_line_and_leaves_nothing(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    answer: Any, fragment: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(portable, "export", lambda *_: answer)
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("tests.portable: `export` must answer ")
    assert fragment in err
    assert files(tmp_path) == []


# Which ------------------------------------------------------------------------------------------------------------

CELLS = {"compare": {"quality": [0.3, 0.7]}, "search": {}, "budget": {"trials": 1, "steps": 2}}


def test_of_several_confirmed_cells_the_best_by_validation_is_taken_and_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(home, noisy(**CELLS))
    code, out, _ = ran(capsys, "best", "done", "--export", str(tmp_path / "best"))
    assert code == 0
    assert out.startswith("done: quality=0.7: trial 0, the choice of the best of 2 cells, all by the mean val_accuracy")
    assert read(tmp_path / "best", "config.json")["config"]["quality"] == 0.7
    code, out, _ = ran(capsys, "best", "done", "--cell", "quality=0.3", "--export", str(tmp_path / "other"))
    assert code == 0
    assert read(tmp_path / "other", "config.json")["config"]["quality"] == 0.3


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ([], "not every one is confirmed; add --cell with one of 'quality=0.3', 'quality=0.7'"),
        (["--by", "val_cost"], "--by val_cost ranks within one; add --cell with one of 'quality=0.3', 'quality=0.7'"),
        (["--cell", "quality=9"], "--cell: one of 'quality=0.3', 'quality=0.7' is needed, but got 'quality=9'"),
    ],
)
def test_of_several_cells_that_are_not_confirmed_one_must_be_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], fragment: str
) -> None:
    finish(home, noisy(**CELLS), confirmed=False)
    code, _, err = ran(capsys, "best", "done", *options, "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert fragment in err
    assert files(tmp_path) == ["runs"]


def test_one_cell_alone_can_be_printed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(home, noisy(**CELLS))
    out = ran(capsys, "best", "done", "--cell", "quality=0.3")[1]
    assert "quality = 0.3" in out
    assert "quality = 0.7" not in out


def test_the_best_by_another_metric_that_was_not_confirmed_is_the_search_s_and_says_so(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = noisy(search={"quality": [0.2, 0.8], "cost": [1.0, 9.0]}, confirm={"top": 1, "seeds": 2})
    ledger = finish(home, study, [{"quality": 0.2, "cost": 1.0}, {"quality": 0.8, "cost": 9.0}], confirmed=False)
    assert ledger.trials(study, study.cells[0])[1].state == "COMPLETE"
    code, out, _ = ran(capsys, "best", "done", "--by", "val_cost", "--export", str(tmp_path / "model"))
    assert code == 0
    assert "trial 0, the best of the search by its val_cost, which promises too much" in out
    assert "not confirmed: it is none of those that were confirmed" in out
    found = read(tmp_path / "model", "metrics.json")
    assert found["confirmed"] is None
    assert (found["run"]["fresh"], found["run"]["seed"], found["run"]["test"]) == (None, 100, {})
    assert "were not scored on test" in (tmp_path / "model" / "README.md").read_text()


def test_a_candidate_by_another_metric_whose_runs_are_to_come_is_not_called_one_of_no_confirmation(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(home, noisy(confirm={"top": 3, "seeds": 2}), QUALITIES, confirmed=False)
    out = ran(capsys, "best", "done", "--by", "val_accuracy", "--export", str(tmp_path / "model"))[1]
    assert "not confirmed: 2 of 2 runs are still to come" in out


def test_a_study_with_confirmation_and_no_candidate_yet_is_not_said_to_have_none(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(home, noisy(), QUALITIES, confirmed=False)
    monkeypatch.setattr(confirm, "candidates", lambda study, *_: {cell.key: [] for cell in study.cells})
    out = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))[1]
    assert "not confirmed: no trial is COMPLETE among those that cells are compared on" in out


def test_a_card_names_what_is_on_this_machine_by_its_last_part_and_keeps_lines_whole(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").touch()
    assert _in_a_line(str(tmp_path)) == f"{tmp_path.name} (a folder)"
    assert _in_a_line(f"{tmp_path}/ratings.csv") == "ratings.csv (a file)"
    assert _in_a_line("{text}\nAnswer:") == r"'{text}\nAnswer:'"
    assert _in_a_line("a/model") == "a/model"


def test_where_no_candidate_keeps_the_bounds_the_search_s_best_is_taken_and_it_says_so(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first fresh seed's weights are there, and were chosen by nobody."""
    changes = {"objective": ["val_accuracy", "val_cost"], "confirm": {"seeds": 2, "bounds": {"val_cost": 0.5}}}
    finish(home, noisy(**changes), QUALITIES)
    code, out, _ = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert code == 0
    assert "not confirmed: no candidate keeps confirm.bounds" in out
    assert "trial 1, the best of the search by its val_accuracy" in out
    assert read(tmp_path / "model", "metrics.json")["run"]["fresh"] == 0


def test_without_confirmation_the_search_s_best_is_taken_with_its_own_seed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(home, noisy(confirm=None), QUALITIES)
    code, out, _ = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert code == 0
    assert "not confirmed: the study has no [confirm]" in out
    assert read(tmp_path / "model", "config.json")["seed"] == 101


def test_while_confirmation_is_under_way_the_search_s_best_is_taken_and_it_says_what_is_to_come(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(home, noisy(), QUALITIES, confirmed=False)
    out = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))[1]
    assert "not confirmed: 6 of 6 runs are still to come" in out
    assert read(tmp_path / "model", "config.json")["seed"] == 101


def test_a_study_without_a_complete_trial_has_no_model(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Writer.at(home).open(noisy(), {"tests.portable": portable.METRICS})
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert "no trial is COMPLETE yet" in err


def test_a_trainable_that_cannot_be_exported_says_what_it_lacks(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(home, study_of("tests.noisy", {}))
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert "a trainable needs `export(config, seed, checkpoint)`, but this one has none" in err


# The checkpoint ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_was_let_go_is_one_line_that_names_resources_keep(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = noisy(confirm=None)
    finish(home, study, QUALITIES).forget_checkpoints(study, study.cells[0], 1)
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert "trial 1 of all: its checkpoint is needed, but only the best 5 of a cell keep theirs (resources.keep)" in err


def test_a_checkpoint_on_another_machine_is_one_line_that_names_the_machine(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(home, noisy(), QUALITIES)
    shutil.rmtree(home / "done")
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert "where a-host wrote it, but is not to be seen here; export there, or" in err


def test_a_torn_checkpoint_is_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(home, noisy(), QUALITIES)
    for state in home.rglob("state.json"):
        state.write_text("{}")
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert "state.json must match its digest" in err
    assert files(tmp_path) == ["runs"]


@pytest.mark.parametrize("changed", ["weights", "step"])
def test_a_whole_checkpoint_that_is_not_the_recorded_one_is_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    """As another ledger's study of this name would leave it in the same place."""
    study = noisy()
    ledger = finish(home, study, QUALITIES)
    place = Path(str(ledger.checkpoint(study, study.cells[0].under(0), 1)))
    shutil.rmtree(place)
    other = "{}" if changed == "weights" else '{"step": 2}'
    step = 2 if changed == "weights" else 1
    found = local.write(place.parent, step, lambda into: (into / "state.json").write_text(other) and None)
    found.path.replace(place)
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert f"its checkpoint at {place} must be the recorded one (step 2, digest " in err
    assert f"but it is another (step {step}, digest {found.digest[:12]})" in err
    assert files(tmp_path) == ["runs"]


def test_a_copy_in_a_store_that_is_not_the_recorded_one_is_one_line(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = local.write(tmp_path / "other", 2, lambda into: (into / "state.json").write_text("{}") and None)
    (held,) = stored.rglob("step-00000002")
    shutil.rmtree(held)
    shutil.copytree(other.path, held)
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert "must be the recorded one" in err


@pytest.fixture
def stored(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose checkpoints lie in a store alone; the folder of the store."""
    study = noisy()
    ledger = finish(home, study, QUALITIES)
    monkeypatch.setenv("CS330RAY_CHECKPOINTS", f"file://{tmp_path}/store")
    store = stores.at(f"file://{tmp_path}/store")
    copies.mark(store, "done")
    first = study.cells[0].under(0)
    written = local.read(Path(str(ledger.checkpoint(study, first, 1))))
    held = Copies(store, "done/first/trial-00001")
    held.push(written, keep=2)
    ledger.forget_checkpoints(study, first, 1)
    ledger.write_checkpoint(study, first, 1, written.step, held.address(written.step), written.digest)
    shutil.rmtree(home / "done")
    return tmp_path / "store"


def test_a_checkpoint_in_a_store_is_fetched(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran(capsys, "best", "done", "--export", str(tmp_path / "model"))[0] == 0
    assert cs330ray.load(tmp_path / "model", "tests.portable")[0] == 0.8
    monkeypatch.delenv("CS330RAY_CHECKPOINTS")  # the address alone will do where it needs no key
    assert ran(capsys, "best", "done", "--export", str(tmp_path / "again"))[0] == 0


def test_a_checkpoint_that_is_gone_from_the_store_is_one_line(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(stored)
    code, _, err = ran(capsys, "best", "done", "--export", str(tmp_path / "model"))
    assert (code, err.count("\n")) == (2, 1)
    assert "step-00000002" in err
    assert not (tmp_path / "model").exists()
