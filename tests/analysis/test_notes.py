"""What a reader must mind: edges of ranges, failures, what is missing."""

from pathlib import Path

import pytest
from benchmarks.made import fill

from cs330ray.analysis import notes
from cs330ray.ledger.records import Row
from cs330ray.report.open_study import Opened, opened
from cs330ray.report.page import Words, page
from cs330ray.spec.study import Cell
from cs330ray.spec.tables import Choice, Range
from tests.made_study import made


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
        (Range(low=1, high=2), 2, None),  # each of two values is an end
        (Choice(choices=[1, 2]), 2, None),
    ],
)
def test_a_best_at_the_edge_of_its_range_is_found(domain: Range | Choice, value: float, wanted: str | None) -> None:
    assert notes.edges(cell(lr=domain), {"lr": value}) == ({} if wanted is None else {"lr": wanted})


def test_the_note_on_an_edge_says_which_range_to_widen(tmp_path: Path) -> None:
    study = made(compare={}, search={"filters": {"low": 1, "high": 3}}, confirm=None)
    fill(tmp_path, study, lambda cell, params: params["filters"] / 10, rows=1, luck=0.0)
    (note,) = [note for note in notes.notes(opened("made", tmp_path)) if "widen" in note]
    assert note == "The best filters, 3, lies at the upper end of its range [1, 3]: widen it, where it can be."


def test_failures_are_counted_with_their_reason(study: Opened) -> None:
    assert "2 of 16 trials failed with: diverged: the loss is inf." in notes.notes(study)


def test_values_outside_declared_bounds_are_said_with_their_first_trial(tmp_path: Path) -> None:
    study = made(compare={}, confirm=None)
    ledger = fill(tmp_path, study)
    for number in (0, 2):
        ledger.write_rows(study, study.cells[0], number, [Row(81, {"val_accuracy": 1.5, "other": -9.0}, 1.0)])
    said = "val_accuracy is 1.5 in trial 0 (and so in 1 other trial), outside its declared bounds [0, 1]; correct"
    assert [note for note in notes.notes(opened("made", tmp_path)) if "bounds" in note] == [
        f"{said} METRICS or the metric."
    ]


def test_an_unfinished_search_and_a_missing_confirmation_are_said(tmp_path: Path) -> None:
    ledger = fill(tmp_path, made(confirm=None))
    grown = made(budget={"trials": 9, "steps": 80})
    ledger.open(grown, {"benchmarks.sleeper": ledger.metrics(grown, "benchmarks.sleeper")})
    found = notes.notes(opened("made", tmp_path))
    assert "The search is not over: 16 of 18 trials have ended." in found
    assert any(note.startswith("ways=2: not confirmed:") for note in found)


@pytest.mark.parametrize(
    ("trials", "wanted"), [(2, "The search was random"), (5, "The search was mostly random: 4 of 5"), (8, None)]
)
@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_a_search_that_had_little_to_go_by_says_so(kind: str, trials: int, wanted: str | None) -> None:
    study = made(sampler={"kind": kind, "startup": 4}, budget={"trials": trials, "steps": 8})
    found = list(notes.startup(study))
    assert len(found) == (wanted is not None)
    assert wanted is None or found[0].startswith(wanted)


def test_what_the_pruner_saved_stands_beside_what_was_asked_for(tmp_path: Path) -> None:
    """Of eight trials of a cell the fifth is pruned, in the middle of its eight rows."""
    fill(tmp_path, made(prune={"kind": "asha", "min_steps": 10}, compare={}, fixed={"ways": 2}))
    study = opened("made", tmp_path)
    pruned = study.trials[study.trials["state"] == "PRUNED"]
    spared = int((80 - pruned["steps"]).sum())
    assert spared > 0
    assert notes.saved(study) == (
        f"Pruning by asha ended {len(pruned)} of 8 trials early: {spared} of 640 steps that were asked for "
        f"({spared / 640:.0%}) were not taken."
    )
    assert any(isinstance(block, Words) and block.text == notes.saved(study) for block in page(study).blocks)
    fill(tmp_path / "whole", made())
    assert notes.saved(opened("made", tmp_path / "whole")) == ""
