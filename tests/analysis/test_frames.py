"""A study opened for reading: its frames against what was entered, and its best."""

import math
import statistics
from pathlib import Path

import pytest
from benchmarks.made import ON, fill

import cs330ray
from cs330ray.analysis import frames
from cs330ray.errors import SpecError
from cs330ray.ledger import confirm
from cs330ray.ledger.importance import shares_of
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending, Row
from cs330ray.report import tables
from cs330ray.report.open_study import Opened, opened
from cs330ray.trial import check
from cs330ray.trial.contract import Metric
from tests import toy as toy_trainable
from tests.made_study import made
from tests.studies_of_tests import toy


def test_a_row_a_trial_with_what_it_was_and_what_it_reached(study: Opened) -> None:
    found = study.trials
    assert list(found["trial"]) == [*range(8), *range(8)]
    assert list(found["state"][:8]) == ["COMPLETE"] * 4 + ["PRUNED", "COMPLETE", "FAIL", "COMPLETE"]
    assert list(found["ways"]) == [2] * 8 + [5] * 8
    assert found["lr"].between(1e-3, 10).all()
    assert set(found["body"]) == {"course", "pooled"}
    assert found["val_accuracy"].isna().equals(found["state"] == "FAIL")
    assert list(found["steps"][:8]) == [80, 80, 80, 80, 20, 80, 0, 80]  # pruned after two of eight rows


def test_the_value_of_a_trial_is_that_of_its_last_row(study: Opened) -> None:
    last = study.rows.groupby(["cell", "trial"]).last()["val_accuracy"]
    for one in study.trials[study.trials["state"] != "FAIL"].itertuples():
        assert one.val_accuracy == last[one.cell, one.trial]


def test_a_parameter_with_the_name_of_another_column_keeps_both(tmp_path: Path) -> None:
    study = made(compare={}, search={"steps": {"low": 1, "high": 9}}, budget={"trials": 2, "steps": 8}, confirm=None)
    fill(tmp_path, study, ends=lambda cell, number: "COMPLETE")
    found = opened("made", tmp_path).trials
    assert list(found["steps"]) == [8, 8]
    assert found["param.steps"].between(1, 9).all()


def test_a_metric_with_the_name_of_a_column_keeps_both_and_the_curves_are_right(tmp_path: Path) -> None:
    """In a ledger of before: METRICS and what a row holds besides were not compared with the record's own names."""
    study = made(compare={}, search={"seed": {"low": 1, "high": 9}}, budget={"trials": 1, "steps": 8}, confirm=None)
    ledger = fill(tmp_path, study, ends=lambda cell, number: "COMPLETE")
    (cell,) = study.cells
    ledger.write_rows(study, cell, 0, [Row(9, {"val_accuracy": 0.5, "step": 7.0, "trial": 3.0, "cell": 1.0}, 5.0)])
    found = opened("made", tmp_path)
    last = found.rows.iloc[-1]
    assert (last["step"], last["trial"], last["cell"], last["wall_s"]) == (9, 0, "all", 5.0)
    assert (last["metric.step"], last["metric.trial"], last["metric.cell"]) == (7.0, 3.0, 1.0)
    assert found.table("curves")["step"].max() == 9
    assert found.trials["param.seed"].between(1, 9).all()
    assert list(found.trials["seed"]) == [ledger.trials(study, cell)[0].seed]


def test_a_parameter_with_a_name_that_figures_add_keeps_both(tmp_path: Path) -> None:
    study = made(compare={}, search={"best": {"low": 0.0, "high": 9.0}, "jitter": ["a", "b"]}, confirm=None)
    fill(tmp_path, study)
    found = opened("made", tmp_path)
    drawn = found.table("parameters/best")
    assert drawn["best"].isin([True, False]).all()
    assert set(drawn["param.best"]) <= {float(f"{value:.5g}") for value in found.trials["param.best"]}
    assert set(found.table("parameters/jitter")["param.jitter"]) == {"a", "b"}


def test_a_test_metric_with_the_name_of_an_objective_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, made(compare={}, confirm={"top": 1, "seeds": 2}))
    before = opened("made", tmp_path).runs
    monkeypatch.setattr(Ledger, "test_metrics", lambda *_: {"val_accuracy": -5.0, "seed": -6.0})
    found = opened("made", tmp_path).runs
    assert list(found["val_accuracy"]) == list(before["val_accuracy"])
    assert list(found["seed"]) == list(before["seed"])
    assert set(found["test.val_accuracy"]) == {-5.0}
    assert set(found["test.seed"]) == {-6.0}


def test_an_axis_with_the_name_of_a_column_of_its_figure_keeps_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, made(compare={}, confirm={"top": 1, "seeds": 2}))
    monkeypatch.setattr(Ledger, "test_metrics", lambda *_: {"test_accuracy/n/4": 0.5, "test_accuracy/n/8": 0.6})
    table = opened("made", tmp_path).table("axis/test_accuracy/axis.n")
    assert list(table["axis.n"]) == [4, 8]
    assert list(table["n"]) == [2, 2]
    assert list(table["test_accuracy"]) == [0.5, 0.6]


def test_one_trial_shows_its_parameters_beside_the_facts_of_their_names(tmp_path: Path) -> None:
    study = made(compare={}, search={"cell": ["lstm", "gru"], "seed": {"low": 1, "high": 9}}, confirm=None)
    ledger = fill(tmp_path, study)
    one = ledger.trials(study, study.cells[0])[0]
    facts = dict(tables.trial(ledger, study, one)[0].rows)
    assert (facts["cell"], facts["param.cell"]) == ("all", one.params["cell"])
    assert (facts["seed"], facts["param.seed"]) == (str(one.seed), str(one.params["seed"]))


def test_whole_numbers_stay_whole_where_not_every_trial_has_them(tmp_path: Path) -> None:
    width = {"low": 1, "high": 9, "when": {"body": "pooled"}}
    study = made(compare={}, search={"body": ["course", "pooled"], "width": width}, confirm=None)
    fill(tmp_path, study)
    found = opened("made", tmp_path).trials
    assert {type(value) for value in found["width"][found["body"] == "pooled"]} == {int}
    assert found["width"][found["body"] == "course"].isna().all()


def test_a_confirmed_candidate_has_the_mean_of_its_runs_and_the_optimism_of_the_search(study: Opened) -> None:
    for one in study.confirmed.itertuples():
        runs = study.runs[(study.runs["cell"] == one.cell) & (study.runs["trial"] == one.trial)]
        assert one.n == len(runs) == 3
        assert one.validation == pytest.approx(statistics.fmean(runs["val_accuracy"]))
        assert one.test == pytest.approx(statistics.fmean(runs["test_accuracy"]))
        assert one.optimism == pytest.approx(one.searched - one.validation)
        half = 4.302653 * statistics.stdev(runs["val_accuracy"]) / 3**0.5  # Student's t with two degrees of freedom
        assert one.validation_low == pytest.approx(one.validation - half)
        assert one.validation_high == pytest.approx(one.validation + half)
        assert one.test_tasks_low < one.test < one.test_tasks_high


def test_the_chosen_candidate_of_a_cell_is_its_best_by_mean_validation_over_fresh_seeds(study: Opened) -> None:
    for _, of_cell in study.confirmed.groupby("cell"):
        assert list(of_cell["chosen"]).count(True) == 1
        assert of_cell.loc[of_cell["chosen"], "validation"].iloc[0] == of_cell["validation"].max()


def test_the_best_is_the_best_of_the_cells_by_confirmation(study: Opened) -> None:
    best = study.best
    assert best is not None
    top = study.confirmed.loc[study.confirmed["validation"].idxmax()]
    assert (best.cell.title, best.trial) == (top["cell"], top["trial"])
    assert best.confirmed["val_accuracy"].mean == pytest.approx(top["validation"])
    assert best.test["test_accuracy"].mean == pytest.approx(top["test"])
    assert best.config["ways"] == best.cell.values["ways"]
    assert set(best.config) == {"ways", "lr", "body"}


def test_without_confirmation_the_best_is_that_of_the_search_and_says_so(tmp_path: Path) -> None:
    fill(tmp_path, made(confirm=None, compare={}))
    study = opened("made", tmp_path)
    best = study.best
    assert best is not None
    assert best.searched["val_accuracy"] == study.trials.loc[study.trials["state"] == "COMPLETE", "val_accuracy"].max()
    assert best.confirmed == {}
    assert "not confirmed" in study.answer
    assert study.comparison is None


def test_one_fresh_seed_has_no_interval(tmp_path: Path) -> None:
    fill(tmp_path, made(confirm={"top": 1, "seeds": 1}))
    study = opened("made", tmp_path)
    assert study.confirmed["validation_low"].isna().all()
    assert "±" not in study.answer
    assert any("one fresh seed" in note for note in words_of(study))


def words_of(study: Opened) -> list[str]:
    from cs330ray.analysis.notes import notes

    return notes(study)


def test_starts_say_on_what_each_trial_and_run_ran(study: Opened) -> None:
    assert len(study.starts) == 16 + 2 * 2 * 3
    assert set(study.starts["versions"]) == {"torch 2.13.0"}
    assert study.starts["fresh"].isna().sum() == 16


def test_axes_finds_the_families_of_metrics_over_an_axis() -> None:
    names = ["test_accuracy", "test_accuracy/shots/1", "test_accuracy/shots/10", "test_loss/shots/1", "a/b/c", "a/b/d"]
    assert list(frames.axes(names)) == [
        ("test_accuracy", "shots", {"test_accuracy/shots/1": 1.0, "test_accuracy/shots/10": 10.0})
    ]


def test_a_study_opens_by_its_name(made_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(cs330ray.open("made", made_home)) == "<study made: 16 trials in 2 cells>"
    monkeypatch.setenv("CS330RAY_HOME", str(made_home))
    assert cs330ray.open("made").name == "made"


def test_a_study_that_is_not_there_is_one_line_and_makes_nothing(made_home: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"other: a study in .* is needed \(there: made\)"):
        cs330ray.open("other", made_home)
    with pytest.raises(SpecError, match="a ledger is needed, but there is none"):
        cs330ray.open("made", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_study_with_no_complete_trial_has_no_best(tmp_path: Path) -> None:
    fill(tmp_path, made(compare={}), ends=lambda cell, number: "FAIL")
    study = opened("made", tmp_path)
    assert study.best is None
    assert study.answer == "No trial is COMPLETE yet. There is nothing to compare."
    assert study.trials["val_accuracy"].map(math.isnan).all()


def test_importance_finds_the_parameter_that_decides(tmp_path: Path) -> None:
    study = made(compare={}, confirm=None, budget={"trials": 40, "steps": 8})
    ledger = fill(tmp_path, study, ends=lambda cell, number: "COMPLETE", rows=1, luck=0.0)
    shares = shares_of(ledger, study, study.cells[0])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["lr"] > 0.9


def test_importance_of_few_trials_is_not_told(study: Opened) -> None:
    assert shares_of(study.ledger, study.study, study.study.cells[0]) == {}


def test_an_objective_with_the_name_of_a_column_of_the_record_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_trainable, "METRICS", {"steps": Metric("min")})
    with pytest.raises(SpecError, match="toy: objective: the record has a 'steps' of its own beside each value"):
        check.check(toy(objective=["steps"]), "toy")


def test_a_candidate_that_is_not_complete_on_every_seed_is_no_part_of_the_figure(tmp_path: Path) -> None:
    study = made(compare={}, confirm={"top": 2, "seeds": 2})
    ledger = fill(tmp_path, study, but="all")
    (first, number), *_ = confirm.pending(ledger, study, 0)
    ledger.write_attempt(study, first, number, ON)
    ledger.write_rows(study, first, number, [Row(80, {"val_accuracy": 0.99}, 1.0)])
    ledger.end(study, first, number, Ending("COMPLETE"))
    one = opened("made", tmp_path)
    assert list(one.confirmed["whole"]) == [False]
    assert "confirmed" not in one.figures
