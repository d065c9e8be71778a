"""The answer in two sentences, and the notes that weaken it."""

from pathlib import Path

import pytest
from benchmarks.made import fill

from cs330ray.report import words
from cs330ray.report.comparison import Alternative, compare
from cs330ray.report.opened import Opened, opened
from cs330ray.spec import Cell, Choice, Range
from tests.report.conftest import made


def alternative(name: str, *values: float) -> Alternative:
    return Alternative(name, dict(enumerate(values)))


def test_a_difference_whose_interval_leaves_zero_out_is_told() -> None:
    found = compare([alternative("a", 0.90, 0.91, 0.92), alternative("b", 0.80, 0.82, 0.81)], "max")
    # differences .10, .09, .11: mean .1, sd .01, half 4.303 * .01 / sqrt(3) = .0248
    said = words.how_sure(found, "val_accuracy")
    assert said == (
        "It is better than the second, b, by 0.1 [0.075, 0.12] of val_accuracy, paired over 3 seeds, and than every "
        "other."
    )


def test_for_a_loss_the_lower_one_is_better_and_the_difference_is_turned() -> None:
    found = compare([alternative("a", 0.90, 0.91, 0.92), alternative("b", 0.80, 0.82, 0.81)], "min")
    said = words.how_sure(found, "val_loss")
    assert said.startswith("It is better than the second, a, by 0.1 [0.075, 0.12] of val_loss")


def test_a_difference_whose_interval_holds_zero_is_not_distinguished_and_says_what_it_would_take() -> None:
    found = compare([alternative("a", 0.90, 0.80, 0.85), alternative("b", 0.80, 0.88, 0.84)], "max")
    said = words.how_sure(found, "val_accuracy")
    assert said.startswith("It is not distinguished from b: b is behind by 0.01 [-0.21, 0.23] of val_accuracy, paired")
    # mean .01, sd .09: (1.960 + .842)^2 * 81 = 635.8 by the normal, and about 1.96^2 / 2 more for Student's t
    assert said.endswith("would take about 638 seeds.")


def test_a_second_that_is_told_and_a_third_that_is_not_are_both_said() -> None:
    steady, wild = [0.80, 0.81, 0.82], [0.70, 0.95, 0.72]
    found = compare([alternative("a", 0.90, 0.91, 0.92), alternative("b", *steady), alternative("c", *wild)], "max")
    assert words.how_sure(found, "x").endswith("but not distinguished from c.")


def test_one_seed_tells_nothing() -> None:
    found = compare([alternative("a", 0.9), alternative("b", 0.1)], "max")
    assert "not distinguished from b" in words.how_sure(found, "x")


def test_of_many_rivals_three_are_named() -> None:
    many = [alternative(str(index), 0.5 + 0.001 * index, 0.5 - 0.001 * index) for index in range(6)]
    assert "2 more" in words.how_sure(compare(many, "max"), "x")


def cell(**space: Range | Choice) -> Cell:
    return Cell("{}", {}, "maml", {"body": "pooled"}, space)


@pytest.mark.parametrize(
    ("domain", "value", "wanted"),
    [
        (Range(low=0.001, high=1.0, log=True), 0.95, "upper"),  # .992 of the way on its scale
        (Range(low=0.001, high=1.0, log=True), 0.0011, "lower"),
        (Range(low=0.001, high=1.0, log=True), 0.5, None),  # .9 of the way
        (Range(low=0.0, high=1.0), 0.5, None),
        (Range(low=0.0, high=1.0), 0.985, "upper"),
        (Range(low=16, high=64, step=16), 64, "upper"),
        (Range(low=16, high=64, step=16), 48, None),
        (Range(low=16, high=64, step=16, when={"body": "course"}), 64, None),  # not searched here
        (Choice(choices=[1, 2]), 2, None),
    ],
)
def test_a_best_at_the_edge_of_its_range_is_found(domain: Range | Choice, value: float, wanted: str | None) -> None:
    assert words.edges(cell(lr=domain), {"lr": value}) == ({} if wanted is None else {"lr": wanted})


def test_the_note_on_an_edge_says_which_range_to_widen(tmp_path: Path) -> None:
    study = made(compare={}, search={"filters": {"low": 1, "high": 3}}, confirm=None)
    fill(tmp_path, study, lambda cell, params: params["filters"] / 10, rows=1, luck=0.0)
    (note,) = [note for note in words.notes(opened("made", tmp_path)) if "widen" in note]
    assert note == "The best filters, 3, lies at the upper end of its range [1, 3]: widen it."


def test_failures_are_counted_with_their_reason(study: Opened) -> None:
    assert "2 of 16 trials failed with: diverged: the loss is inf." in words.notes(study)


def test_an_unfinished_search_and_a_missing_confirmation_are_said(tmp_path: Path) -> None:
    ledger = fill(tmp_path, made(confirm=None))
    grown = made(budget={"trials": 9, "steps": 80})
    ledger.open(grown, {"benchmarks.sleeper": ledger.metrics(grown, "benchmarks.sleeper")})
    notes = words.notes(opened("made", tmp_path))
    assert "The search is not over: 16 of 18 trials have ended." in notes
    assert any(note.startswith("ways=2: not confirmed:") for note in notes)


def test_the_answer_names_the_choice_its_figures_and_how_sure_they_are(study: Opened) -> None:
    first, second = study.answer.split(". ", 1)
    best = study.best
    assert best is not None
    at = f"ways=2 with body={best.config['body']}, lr={best.config['lr']:.4g}"
    assert first.startswith(f"On 3 fresh seeds {at} reaches")
    assert f"val_accuracy {best.confirmed['val_accuracy'].mean:.4g} ±" in first
    assert f"test_accuracy {best.test['test_accuracy'].mean:.4g} ±" in first
    assert second.startswith("It is")


@pytest.mark.parametrize(
    ("trials", "wanted"), [(2, "The search was random"), (5, "The search was mostly random: 4 of 5"), (8, None)]
)
def test_a_search_that_had_little_to_go_by_says_so(trials: int, wanted: str | None) -> None:
    study = made(sampler={"kind": "tpe", "startup": 4}, budget={"trials": trials, "steps": 8})
    found = list(words.startup(study))
    assert len(found) == (wanted is not None)
    assert wanted is None or found[0].startswith(wanted)
