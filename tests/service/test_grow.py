"""More steps: a finished trial goes on as a trial of its own, and the study is as if it had had them from the first."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cs330ray.analysis.cost.forecast import forecast
from cs330ray.analysis.standing import Standing, best_by
from cs330ray.checkpoints import local
from cs330ray.ledger import confirm
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.lines import enter, finished, rankable, standing, waiting
from cs330ray.ledger.records import Trial
from cs330ray.ledger.trials.fronts import pareto_front
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from cs330ray.report import tables
from cs330ray.service.run import run
from cs330ray.spec.places import checkpoints_of
from cs330ray.spec.study import Cell, Study
from tests import in_process
from tests.service.test_run import Ear, runs_of
from tests.studies_of_tests import toy, whole

ONE_SLOT = {"slots": 1}


def short(**changes: Any) -> Study:
    return toy(resources=ONE_SLOT, **changes)


def long(**changes: Any) -> Study:
    budget = {"trials": 4, "steps": 40, **changes.pop("budget", {})}
    return toy(resources=ONE_SLOT, budget=budget, **changes)


def standing_of(ledger: Writer, study: Study, cell: Cell) -> Standing:
    return Standing(study, ledger.goals(study), cell, ledger.trials(study, cell))


def lines(home: Path) -> list[Trial]:
    """The trials of the one cell that none continues."""
    ledger = Writer.at(home)
    study = ledger.study("toy")
    (cell,) = study.cells
    return standing(ledger.trials(study, cell))


def curve(home: Path, *numbers: int) -> list[tuple[int, dict[str, float]]]:
    ledger = Writer.at(home)
    study = ledger.study("toy")
    (cell,) = study.cells
    return [(row.step, dict(row.metrics)) for number in numbers for row in ledger.rows(study, cell, number)]


@pytest.fixture(scope="module")
def four_short_trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("short")
    in_process.run(short(), home, mirror=False)
    return home


@pytest.fixture(scope="module")
def six_long_trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("long")
    in_process.run(long(budget={"trials": 6}), home, mirror=False)
    return home


@pytest.fixture
def home_of_four(four_short_trials: Path, tmp_path: Path) -> Path:
    """A copy whose checkpoints lie where its ledger says: at the place of the original, which nothing changes."""
    return Path(shutil.copytree(four_short_trials, tmp_path / "runs"))


def test_grown_steps_and_trials_give_what_an_undisturbed_study_gives(
    home_of_four: Path, six_long_trials: Path, ray_here: str
) -> None:
    run(long(budget={"trials": 6}), home_of_four, mirror=False)  # on Ray; the others in this process
    grown, undisturbed = lines(home_of_four), lines(six_long_trials)
    assert len(grown) == 6
    for ours, theirs in zip(grown, undisturbed, strict=True):
        assert (ours.params, ours.seed, ours.values) == (theirs.params, theirs.seed, theirs.values)


def test_a_continuation_is_a_trial_of_its_own_with_the_rows_after_those_of_the_first(
    home_of_four: Path, six_long_trials: Path
) -> None:
    before = whole(home_of_four)
    in_process.run(long(), home_of_four, mirror=False)
    after = whole(home_of_four)
    assert after[:4] == before
    assert [trial.continues for trial in lines(home_of_four)] == [0, 1, 2, 3]
    assert [trial.number for trial in lines(home_of_four)] == [4, 5, 6, 7]
    assert curve(home_of_four, 0, 4) == curve(six_long_trials, 0)
    assert curve(home_of_four, 4)[0][0] == 25


def test_what_goes_on_is_said_before_it_starts_and_the_same_again_does_nothing(home_of_four: Path) -> None:
    ear = Ear()
    in_process.run(long(), home_of_four, ear, mirror=False)
    said = [line for line in ear.lines if line.startswith("grown")]
    assert said == [
        "grown: budget.steps: 20 -> 40",
        "grown: all: 4 COMPLETE trials of 20 steps go on to 40, as trials of their own",
    ]
    before = whole(home_of_four)
    in_process.run(long(), home_of_four, mirror=False)
    assert whole(home_of_four) == before


def test_a_continuation_whose_checkpoint_is_gone_trains_again_and_says_so(
    home_of_four: Path, six_long_trials: Path
) -> None:
    ledger = Writer.at(home_of_four)
    study = ledger.study("toy")
    (cell,) = study.cells
    ledger.forget_checkpoints(study, cell, 2)
    ear = Ear()
    in_process.run(long(), home_of_four, ear, mirror=False)
    assert any("1 of them have no checkpoint any more and train again from the start" in line for line in ear.lines)
    assert any("trial 6 continues trial 2, of which no checkpoint is left" in line for line in ear.lines)
    assert ledger.attempts(study, cell, 6)[0]["resumed_from_step"] is None
    assert ledger.attempts(study, cell, 5)[0]["resumed_from_step"] == 20
    assert curve(home_of_four, 2, 6) == curve(six_long_trials, 2)


def test_a_study_cut_between_growing_and_continuing_goes_on(home_of_four: Path, six_long_trials: Path) -> None:
    ledger = Writer.at(home_of_four)
    metrics = ledger.metrics(ledger.study("toy"), "tests.toy")
    ledger.open(long(), {"tests.toy": metrics})
    study = ledger.study("toy")
    (cell,) = study.cells
    assert [trial.number for trial in waiting(ledger, study)] == [0, 1, 2, 3]
    assert finished(study, ledger.trials(study, cell)) == []
    best = standing_of(ledger, study, cell).best_of_search
    assert best is not None
    enter(ledger, study)
    assert waiting(ledger, study) == []
    assert len(ledger.trials(study, cell)) == 8
    in_process.run(long(), home_of_four, mirror=False)
    assert [trial.values for trial in lines(home_of_four)] == [trial.values for trial in lines(six_long_trials)][:4]


def test_an_interrupted_trial_of_fewer_steps_goes_on_to_the_new_ones_under_its_own_number(
    home: Path, six_long_trials: Path
) -> None:
    ledger = Writer.at(home)
    ledger.open(short(), {"tests.toy": Writer.at(six_long_trials).metrics(short(), "tests.toy")})
    study = ledger.study("toy")
    (cell,) = study.cells
    first = Writer.at(six_long_trials).history(study, cell)[0]
    ledger.enter(study, cell, first, int(first.user_attrs["seed"]))
    in_process.run(long(), home, mirror=False)
    assert [trial.number for trial in lines(home)] == [0, 1, 2, 3]
    assert lines(home)[0].steps == 40
    assert curve(home, 0) == curve(six_long_trials, 0)


def trial(number: int, state: str, loss: float | None, steps: int, *line: int | None) -> Trial:
    (cell,) = toy().cells
    continues, continued_as = line or (None, None)
    values = None if loss is None else (loss,)
    return Trial(cell, number, state, {"lr": number}, 1, values, "", None, "", 0.0, 1.0, steps, continues, continued_as)


def test_values_of_different_numbers_of_steps_are_never_ranked_together() -> None:
    found = [
        trial(0, "COMPLETE", 0.1, 20, None, 3),
        trial(1, "COMPLETE", 0.2, 20),
        trial(2, "PRUNED", 0.05, 20),
        trial(3, "COMPLETE", 0.3, 40, 0, None),
    ]
    assert [one.number for one in rankable(found)] == [3]
    study = toy(budget={"steps": 40}, confirm={"top": 3, "seeds": 1})
    (chosen,) = confirm.candidates(study, ["min"], {study.cells[0].key: found}).values()
    assert [one.number for one in chosen] == [3]


def test_one_that_failed_with_more_steps_is_not_the_best_with_fewer() -> None:
    found = [
        trial(0, "COMPLETE", 0.1, 20, None, 2),
        trial(1, "COMPLETE", 0.2, 20),
        trial(2, "FAIL", None, 40, 0, None),
    ]
    assert [one.number for one in rankable(found)] == [1]


def test_a_trial_that_goes_on_just_now_is_shown_by_what_it_had_reached() -> None:
    found = [trial(0, "COMPLETE", 0.1, 20, None, 1), trial(1, "RUNNING", None, 40, 0, None)]
    assert [one.number for one in rankable(found)] == [0]


def test_confirmation_is_of_the_continuations_and_runs_all_steps(home_of_four: Path) -> None:
    in_process.run(long(confirm={"top": 1, "seeds": 2}), home_of_four, mirror=False)
    ledger = Writer.at(home_of_four)
    study = ledger.study("toy")
    (found,) = confirm.confirmed(ledger, study).values()
    best = min(lines(home_of_four), key=lambda one: one.values or ())
    assert [(one.searched.number, one.whole) for one in found] == [(best.number, True)]
    assert all(ledger.last_step(study, run.trial.cell, best.number) == 40 for run in found[0].runs)


def test_show_and_mlflow_say_which_trial_continues_which(home_of_four: Path) -> None:
    in_process.run(long(), home_of_four, mirror=False)
    ledger = Writer.at(home_of_four)
    reasons = {row[1]: row[-1] for row in tables.trials(ledger, ledger.study("toy")).rows}
    assert (reasons["0"], reasons["4"]) == ("continued as 4", "continues 0")
    Mirror(ledger, "toy", home_of_four).sync()
    tags = {found.data.tags["cs330ray.trial"]: found.data.tags for found in runs_of(home_of_four)}
    assert tags["4"]["cs330ray.continues"] == "0"
    (cell,) = (found for found in runs_of(home_of_four) if found.data.tags["cs330ray.kind"] == "cell")
    assert int(cell.data.tags["cs330ray.best_trial"]) >= 4
    assert cell.info.status == "FINISHED"


def test_the_checkpoints_of_those_that_were_continued_go_when_their_successors_have_ended(home_of_four: Path) -> None:
    in_process.run(long(), home_of_four, mirror=False)
    ledger = Writer.at(home_of_four)
    study = ledger.study("toy")
    (cell,) = study.cells
    assert sorted(ledger.checkpoints(study, cell)) == [4, 5, 6, 7]
    assert not list(checkpoints_of(home_of_four, "toy", cell, 0).glob("step-*"))


def test_a_trial_that_had_ended_early_by_itself_is_continued_at_once_with_its_values_and_its_checkpoint(
    home: Path, ray_here: str
) -> None:
    early = {"ends": "early", "ends_at": 10}
    in_process.run(toy(resources=ONE_SLOT, fixed=early, budget={"trials": 1}), home, mirror=False)
    in_process.run(toy(resources=ONE_SLOT, fixed=early, budget={"trials": 1, "steps": 40}), home, mirror=False)
    ledger = Writer.at(home)
    study = ledger.study("toy")
    (cell,) = study.cells
    before, after = ledger.trials(study, cell)
    assert (after.state, after.values, after.continues) == ("COMPLETE", before.values, 0)
    assert curve(home, 1) == []
    assert list(ledger.checkpoints(study, cell)) == [1]
    held = ledger.checkpoint(study, cell, 1)
    assert held is not None
    assert local.read(Path(held)).step == 10
    assert best_by(ledger, standing_of(ledger, study, cell), "val_speed") is not None
    assert {row[1]: row[4] for row in tables.trials(ledger, study).rows} == {"0": "10", "1": "10"}


def test_the_pruner_is_asked_where_a_trial_goes_on_what_it_was_not_asked_at_its_end(home: Path) -> None:
    """With rungs at 20 and 40, 20 was the last step before: of three, asha keeps one."""
    prune = {"kind": "asha", "min_steps": 20, "reduction": 3}
    in_process.run(toy(resources=ONE_SLOT, prune=prune, budget={"trials": 3}), home, mirror=False)
    in_process.run(toy(resources=ONE_SLOT, prune=prune, budget={"trials": 3, "steps": 60}), home, mirror=False)
    ended = lines(home)
    (best,) = [trial for trial in ended if trial.state == "COMPLETE"]
    assert [trial.reason for trial in ended if trial is not best] == ["asha at step 20, 2 rivals"] * 2
    ledger = Writer.at(home)
    (cell,) = ledger.study("toy").cells
    first = {trial.number: (trial.values or (9.0,))[0] for trial in ledger.trials(ledger.study("toy"), cell)[:3]}
    assert best.continues == min(first, key=lambda number: first[number])


def test_fronts_are_of_the_most_steps_alone() -> None:
    found = [
        trial(0, "COMPLETE", 0.1, 20, None, 2),
        trial(1, "COMPLETE", 0.2, 20, None, 3),
        trial(2, "COMPLETE", 0.4, 40, 0, None),
        trial(3, "COMPLETE", 0.3, 40, 1, None),
    ]
    assert [one.number for one in pareto_front(rankable(found), ["min"])] == [3]


def test_no_trial_goes_on_after_the_time_is_spent(home: Path) -> None:
    in_process.run(short(budget={"trials": 2, "steps": 20, "time": 3600.0}), home, mirror=False)
    ledger = Writer.at(home)
    study = ledger.study("toy")
    (cell,) = study.cells
    ledger.seen(study, "a long one", 3600.0)
    ear = Ear()
    in_process.run(long(budget={"trials": 2, "time": 3600.0}), home, ear, mirror=False)
    assert any("budget.time is spent" in line for line in ear.lines)
    assert [one.state for one in ledger.trials(study, cell)] == ["COMPLETE"] * 2 + ["RUNNING"] * 2
    assert not any(ledger.begun(study, cell, number) for number in (2, 3))
    in_process.run(long(budget={"trials": 2, "time": 9000.0}), home, mirror=False)
    assert [one.state for one in ledger.trials(study, cell)] == ["COMPLETE"] * 4


@pytest.mark.slow
def test_a_study_that_its_cap_cut_ends_without_it_as_an_undisturbed_one_and_each_session_is_counted(
    home: Path, ray_here: str, tmp_path: Path
) -> None:
    """A cap of 1.1 s of one CPU, where a trial takes two seconds and more."""
    asked: dict[str, Any] = {"fixed": {"sleep_s": 0.1}, "resources": {"slots": 1, "checkpoint": 0.1}}
    ear = Ear()
    run(toy(**asked, budget={"trials": 3, "steps": 20, "cost": "0.0003 cpu-hours"}), home, ear, mirror=False)
    assert "toy: budget.cost is spent before all trials have ended; raise it to resume" in ear.lines
    spent = forecast(Ledger.at(home), cut := Ledger.at(home).study("toy")).spent_s
    states = [trial.state for trial in Ledger.at(home).trials(cut, cut.cells[0])]
    assert 1.08 <= spent < 1.08 + 30
    assert states.count("COMPLETE") < 3
    run(toy(**asked, budget={"trials": 3}), home, mirror=False)
    assert forecast(Ledger.at(home), cut).spent_s >= spent + 2 * (3 - states.count("COMPLETE") - 1)
    run(toy(**asked, budget={"trials": 3}), tmp_path / "undisturbed", mirror=False)
    assert whole(home) == whole(tmp_path / "undisturbed")
