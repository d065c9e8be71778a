"""What MLflow is to say of a study at a glance, against a study whose answer is known by hand: see tests/filled.py."""

from pathlib import Path

import pytest

from cs330ray.analysis import frames, replicates
from cs330ray.analysis.standing import standings
from cs330ray.ledger.records import Trial
from cs330ray.ledger.writer import Writer
from cs330ray.mirror import captions
from cs330ray.mirror.description import NOTE_LIMIT, Answer
from cs330ray.report.figures.search import Search
from cs330ray.report.open_study import Opened
from cs330ray.spec.study import Study
from tests import filled
from tests.analysis.test_replicates import fill as fill_searches
from tests.analysis.test_replicates import study as study_of


def answer_of(ledger: Writer, study: Study) -> Answer:
    return Answer(study, standings(ledger, study))


def link(trial: Trial) -> str:
    return f"#{trial.cell.title}/{trial.number}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """The answer of the whole study."""
    ledger = Writer.at(tmp_path_factory.mktemp("letters"))
    return answer_of(ledger, filled.fill(ledger))


@pytest.fixture
def ledger(tmp_path: Path) -> Writer:
    return Writer.at(tmp_path)


def test_names_say_number_outcome_and_parameters_with_a_star_for_the_best(whole: Answer) -> None:
    one, other = whole.cells
    assert [captions.trial_name(one, trial) for trial in one.trials] == [
        "trial 0 · 0.6 val_accuracy · quality=0.3",
        "trial 1 · 0.72 ±0.05 val_accuracy confirmed · quality=0.45",
        "★ trial 2 · 0.83 ±0.05 val_accuracy confirmed · quality=0.4",
        "trial 3 · pruned at 0.5 val_accuracy · quality=0.25",
    ]
    assert captions.trial_name(other, other.trials[2]) == "trial 2 · failed · quality=0"
    assert captions.cell_name(one, star=True) == "★ cost=1.0 · 0.83 ±0.05 val_accuracy confirmed by trial 2"
    assert captions.cell_name(other, star=False) == "cost=2.0 · 0.74 ±0 val_accuracy confirmed by trial 1"
    assert captions.fresh_name(whole.study, one.candidates[0].runs[2]) == (
        "fresh seed 2 of trial 1 · 0.74 val_accuracy, 0.73 test_accuracy"
    )
    assert whole.title == (
        "Answer: trial 2, 0.83 ±0.05 val_accuracy confirmed, 0.82 ±0.05 test_accuracy · cost=1.0 · letters"
    )


def test_the_best_ten_of_a_cell_say_their_rank_and_one_is_marked(ledger: Writer) -> None:
    study = filled.opened(ledger, filled.letters(trials=12))
    cell = study.cells[0]
    for place in range(12):
        filled.search(ledger, study, cell, 0.4 + place / 100)
    (standing, _) = answer_of(ledger, study).cells
    ranks = [captions.marks(standing, trial)["rank"] for trial in standing.trials]
    assert ranks == ["none", "none", "10", "9", "8", "7", "6", "5", "4", "3", "2", "1"]
    assert [captions.marks(standing, trial)["best"] for trial in standing.trials] == ["none"] * 11 + ["search"]


def test_the_confirmed_choice_is_marked_and_not_the_lucky_one(whole: Answer) -> None:
    one = whole.cells[0]
    marks = [(marks["rank"], marks["best"]) for marks in (captions.marks(one, trial) for trial in one.trials)]
    assert marks == [("3", "none"), ("1", "none"), ("2", "confirmed"), ("none", "none")]


def test_figures_are_the_best_of_the_search_and_the_means_of_the_choice(whole: Answer) -> None:
    one, other = (captions.figures(cell) for cell in whole.cells)
    known = {"best_val_accuracy": 0.9, "confirmed_val_accuracy": 0.83, "confirmed_test_accuracy": 0.82}
    assert one == pytest.approx(known)
    assert other["best_val_accuracy"] == 0.75
    assert whole.figures() == pytest.approx(known)


def test_the_description_is_the_answer_in_two_sentences_and_a_table_with_links(whole: Answer) -> None:
    lines = whole.note(link, "#report").splitlines()
    assert lines == [
        "0.83 ±0.05 val_accuracy confirmed, 0.82 ±0.05 test_accuracy: "
        "[trial 2](#cost=1.0/2) of cost=1.0 at quality=0.4.",
        "It is chosen by the mean val_accuracy over 3 fresh seeds; the best of the search, trial 1, had promised 0.9.",
        "",
        "| trial | cell | val_accuracy, search | val_accuracy, fresh seeds | test_accuracy | parameters |",
        "| --- | --- | --- | --- | --- | --- |",
        "| ★ [trial 2](#cost=1.0/2) | cost=1.0 | 0.8 | 0.83 ±0.05 | 0.82 ±0.05 | quality=0.4 |",
        "| ★ [trial 1](#cost=2.0/1) | cost=2.0 | 0.75 | 0.74 ±0 | 0.73 ±0 | quality=0.375 |",
        "| [trial 1](#cost=1.0/1) | cost=1.0 | 0.9 | 0.72 ±0.05 | 0.71 ±0.05 | quality=0.45 |",
        "| [trial 0](#cost=2.0/0) | cost=2.0 | 0.7 | 0.7 ±0 | 0.69 ±0 | quality=0.35 |",
        "| [trial 3](#cost=2.0/3) | cost=2.0 | 0.65 |  |  | quality=0.325 |",
        "| [trial 0](#cost=1.0/0) | cost=1.0 | 0.6 |  |  | quality=0.3 |",
        "",
        "[The report](#report)",
    ]  # fmt: skip


def test_a_search_cut_short_whose_candidates_are_confirmed_has_its_answer_and_says_what_is_not_over(
    ledger: Writer,
) -> None:
    answer = answer_of(ledger, filled.fill(ledger, trials=5))
    assert answer.title.startswith("Answer: trial 2, 0.83 ±0.05 val_accuracy confirmed")
    assert answer.note(link).splitlines()[1] == (
        "It is chosen by the mean val_accuracy over 3 fresh seeds; the best of the search, trial 1, had promised 0.9. "
        "The search is not over: 8 of 10 trials have ended."
    )


def test_a_study_of_several_searches_has_no_answer_before_the_last_is_confirmed(ledger: Writer) -> None:
    asked, first = study_of(2), {1.0: [[0.5, 0.7]], 2.0: [[0.4, 0.4]]}
    fill_searches(ledger, asked, first)
    assert answer_of(ledger, asked).title.startswith("So far: trial 0, ")
    fill_searches(ledger, asked, {cost: [*values, [0.6, 0.6]] for cost, values in first.items()}, begin_at=1)
    assert answer_of(ledger, asked).title.startswith("Answer: trial 0, ")


def test_a_cell_of_fewer_steps_is_not_ranked_before_one_of_the_most(ledger: Writer) -> None:
    study = filled.opened(ledger, filled.letters())
    filled.search(ledger, study, study.cells[0], 0.9)
    grown = filled.opened(ledger, study.model_copy(update={"budget": study.budget.model_copy(update={"steps": 40})}))
    filled.search(ledger, grown, grown.cells[1], 0.7)
    answer = answer_of(ledger, grown)
    assert answer.title.startswith("So far: trial 0, 0.7 val_accuracy · cost=2.0")
    assert answer.figures()["best_val_accuracy"] == 0.7
    best = frames.best(ledger, replicates.read(ledger, grown))
    assert best is not None
    assert best.cell.title == "cost=2.0"
    assert next(iter(Search(Opened(ledger, grown)).best)) == "cost=2.0"


def test_a_search_that_is_over_says_how_many_runs_of_confirmation_are_not(ledger: Writer) -> None:
    """Two candidates on three fresh seeds."""
    study = filled.opened(ledger, filled.letters(trials=2))
    for cell, reached in zip(study.cells, ([0.6, 0.9], [0.7, 0.75]), strict=True):
        for value in reached:
            filled.search(ledger, study, cell, value)
    filled.confirm(ledger, study, study.cells[0], 1, [0.70])
    answer = answer_of(ledger, study)
    assert answer.title.startswith("So far: trial 1, 0.9 val_accuracy")
    assert answer.note(link).splitlines()[1] == "The confirmation is not over: 11 of its runs have not ended."


def test_a_study_that_is_not_over_says_so_and_one_without_a_trial_that_there_is_none(ledger: Writer) -> None:
    study = filled.opened(ledger, filled.letters())
    assert answer_of(ledger, study).title == "letters"
    assert answer_of(ledger, study).note(link) == "No trial of letters is COMPLETE."
    filled.search(ledger, study, study.cells[1], 0.7)
    running = filled.enter(ledger, study, study.cells[1], 0.1)
    answer = answer_of(ledger, study)
    assert answer.title == "So far: trial 0, 0.7 val_accuracy · cost=2.0 · letters"
    assert "The search is not over: 1 of 8 trials have ended." in answer.note(link)
    assert captions.trial_name(answer.cells[1], answer.cells[1].trials[running]) == "trial 1 · quality=0.1"


def test_a_long_description_loses_rows_and_a_long_name_its_end(whole: Answer) -> None:
    cut = whole.note(lambda trial: "#" + "x" * 1600)
    assert 3 <= cut.count("\n| ") < whole.note(link).count("\n| ")
    assert len(cut) <= NOTE_LIMIT
    assert captions.caption("a" * 150, "b" * 150) == "a" * 150 + " · " + "b" * 46 + "…"


def test_a_mean_over_seeds_has_student_s_interval() -> None:
    # s = sqrt((.03^2 + .02^2 + .01^2) / 2) = .026458, and t(.975, 2) s / sqrt(3) = 4.30265 * .015275 = .0657
    assert captions.mean([0.81, 0.86, 0.85]) == "0.84 ±0.066"
    assert captions.mean([0.5]) == "0.5"
