"""The answer in at most three sentences."""

from pathlib import Path

from benchmarks.made import fill

from cs330ray.analysis import answer
from cs330ray.analysis.comparison import Alternative, compare
from cs330ray.report.open_study import Opened, opened
from tests.made_study import made


def alternative(name: str, *values: float) -> Alternative:
    return Alternative(name, dict(enumerate(values)))


def test_a_difference_whose_interval_leaves_zero_out_is_told() -> None:
    found = compare([alternative("a", 0.90, 0.91, 0.92), alternative("b", 0.80, 0.82, 0.81)], "max")
    # differences .10, .09, .11: mean .1, sd .01, half 4.303 * .01 / sqrt(3) = .0248
    said = answer.how_sure(found, "val_accuracy")
    assert said == "It is better than b by 0.1 [0.075, 0.12] of val_accuracy, paired over 3 seeds."


def test_for_a_loss_the_lower_one_is_better_and_the_difference_is_turned() -> None:
    found = compare([alternative("a", 0.90, 0.91, 0.92), alternative("b", 0.80, 0.82, 0.81)], "min")
    said = answer.how_sure(found, "val_loss")
    assert said.startswith("It is better than a by 0.1 [0.075, 0.12] of val_loss")


def test_a_difference_whose_interval_holds_zero_is_not_distinguished_and_says_what_it_would_take() -> None:
    found = compare([alternative("a", 0.90, 0.80, 0.85), alternative("b", 0.80, 0.88, 0.84)], "max")
    said = answer.how_sure(found, "val_accuracy")
    assert said.startswith("It is not distinguished from b: b is behind by 0.01 [-0.21, 0.23] of val_accuracy, paired")
    # mean .01, sd .09: (1.960 + .842)^2 * 81 = 635.8 by the normal, and about 1.96^2 / 2 more for Student's t
    assert said.endswith("would take about 638 seeds.")


def test_a_second_that_is_told_and_a_third_that_is_not_are_both_said() -> None:
    steady, wild = [0.80, 0.81, 0.83], [0.70, 0.95, 0.72]
    found = compare([alternative("a", 0.90, 0.91, 0.92), alternative("b", *steady), alternative("c", *wild)], "max")
    assert answer.how_sure(found, "x").endswith("but not distinguished from c.")


def test_the_others_are_told_too_where_all_are() -> None:
    many = [alternative("a", 0.90, 0.91, 0.92), alternative("b", 0.80, 0.81, 0.83), alternative("c", 0.70, 0.70, 0.72)]
    assert answer.how_sure(compare(many, "max"), "x").endswith("paired over 3 seeds, and than each of the 1 others.")


def test_a_distance_that_is_the_same_on_every_seed_tells_nothing_of_chance() -> None:
    found = compare([alternative("a", 0.5, 0.6, 0.7), alternative("b", 0.495, 0.595, 0.695)], "max")
    assert not found.distinguished
    assert answer.how_sure(found, "x") == (
        "It is not distinguished from b: b is behind by 0.005 of x on each of the 3 seeds, so that they tell nothing "
        "of chance."
    )


def test_equal_means_that_scatter_are_said_to_be_equal() -> None:
    found = compare([alternative("a", 0.5, 0.6), alternative("b", 0.6, 0.5)], "max")
    assert answer.how_sure(found, "x") == (
        "It is not distinguished from b: their means are equal, [-1.3, 1.3] over 2 paired seeds."
    )  # 12.71 times .1


def test_equal_ones_are_said_to_be_equal() -> None:
    found = compare([alternative("a", 0.5, 0.6), alternative("b", 0.5, 0.6)], "max")
    assert answer.how_sure(found, "x") == "It is not distinguished from b: they are equal on each of the 2 seeds."


def test_one_seed_tells_nothing() -> None:
    found = compare([alternative("a", 0.9), alternative("b", 0.1)], "max")
    assert "not distinguished from b" in answer.how_sure(found, "x")


def test_of_many_rivals_three_are_named() -> None:
    many = [alternative(str(index), 0.5 + 0.001 * index, 0.5 - 0.001 * index) for index in range(6)]
    assert "2 more" in answer.how_sure(compare(many, "max"), "x")


def test_the_answer_names_the_choice_its_figures_and_how_sure_they_are(study: Opened) -> None:
    first, second = study.answer.split(". ", 1)
    best = study.best
    assert best is not None
    at = f"body={best.config['body']} lr={best.config['lr']:.4g}"
    assert first == "One search each, so whether the cells differ is not known"
    assert second.startswith("Validation picks ways=2: its search of 8 trials by random over body and lr chose ")
    assert (
        f"chose {at}, with which 3 fresh seeds average test_accuracy {best.test['test_accuracy'].mean:.4g} (" in second
    )


def test_where_a_cell_is_not_confirmed_the_answer_is_one_so_far(tmp_path: Path) -> None:
    study = made(compare={"ways": [2, 5, 7]}, budget={"trials": 2, "steps": 8}, confirm={"top": 1, "seeds": 2})
    fill(tmp_path, study, lambda cell, params: float(cell.values["ways"]) / 10, rows=1, but="ways=7")
    said = opened("made", tmp_path).answer
    assert said.startswith("So far, with ways=7 not confirmed, on 2 fresh seeds ways=5 with ")


def test_a_candidate_that_breaks_the_bounds_is_not_compared(tmp_path: Path) -> None:
    study = made(
        compare={}, objective=["val_accuracy", "val_loss"], search={"lr": {"low": 0.01, "high": 1.0, "log": True}},
        budget={"trials": 4, "steps": 8}, confirm={"top": 2, "seeds": 2, "bounds": {"val_accuracy": 0.99}},
    )  # fmt: skip
    fill(tmp_path, study, ends=lambda cell, number: "COMPLETE", rows=1)
    one = opened("made", tmp_path)
    assert one.comparison is None
    assert one.answer.endswith("No candidate is the confirmed choice: see what is to be minded.")
