"""The cells of a study over its replicates: which are whole, what is left out, and which choice is to be used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cs330ray.analysis import frames, replicates
from cs330ray.analysis.replicates import Replicates
from cs330ray.ledger.tables import SCORES
from cs330ray.ledger.writer import Writer
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.trial.contract import Item
from tests import filled

Reached = Mapping[float, Sequence[Sequence[float]]]  # by cost, of each replicate what the choice has on its fresh seeds


def study(searches: int, **changes: Any) -> Study:
    raw = filled.letters(trials=1).model_dump(mode="json", exclude_none=True)
    return parse({**raw, "confirm": {"top": 1, "seeds": 2}, "repeat": {"searches": searches}, **changes}, "letters")


@pytest.fixture
def ledger(tmp_path: Path) -> Writer:
    return Writer.at(tmp_path)


def fill(
    ledger: Writer, asked: Study, reached: Reached, items: Sequence[Sequence[Item]] = (), begin_at: int = 0
) -> Replicates:
    """Search and confirm every cell of as many replicates as there are values; how the cells stand."""
    filled.opened(ledger, asked)
    for cell in asked.cells:
        own = reached[float(cell.fixed["cost"])]  # type: ignore[arg-type]
        if begin_at <= cell.replicate < len(own):
            number = filled.search(ledger, asked, cell, 0.9)
            for _ in range(asked.budget.trials - 1):
                filled.search(ledger, asked, cell, 0.5)
            filled.confirm(ledger, asked, cell, number, list(own[cell.replicate]), items)
    return replicates.read(ledger, asked)


def test_the_value_of_a_replicate_is_its_choices_mean_over_the_fresh_seeds(ledger: Writer) -> None:
    found = fill(ledger, study(2), {1.0: [[0.5, 0.7], [0.6, 0.8]], 2.0: [[0.4, 0.4], [0.9, 0.9]]})
    assert (found.whole, found.compared, found.left_out) == ([0, 1], ["cost=1.0", "cost=2.0"], {})
    assert {title: pytest.approx(values) for title, values in found.validation().items()} == {
        "cost=1.0": [0.6, 0.7], "cost=2.0": [0.4, 0.9],
    }  # fmt: skip
    assert found.test()["cost=1.0"] == pytest.approx([0.59, 0.69])


def test_cells_whose_values_read_the_same_stay_apart(ledger: Writer) -> None:
    """A study of before may compare 1.0 with "1.0"; a new one may not."""
    found = fill(ledger, study(2, compare={"cost": [1.0, "1.0", 2.0]}), {1.0: [[0.5, 0.7]] * 2, 2.0: [[0.4, 0.4]] * 2})
    assert found.whole == [0, 1]
    assert found.compared == ["cost=1.0", 'cost="1.0"', "cost=2.0"]
    assert list(found.validation()) == found.compared


def test_a_replicate_counts_when_every_cell_of_it_is_whole(ledger: Writer) -> None:
    found = fill(ledger, study(3), {1.0: [[0.5, 0.7], [0.6, 0.8]], 2.0: [[0.4, 0.4]]})
    assert found.whole == [0]
    assert found.validation()["cost=1.0"] == pytest.approx([0.6])


def test_a_cell_that_has_no_choice_in_a_replicate_is_left_out_and_named(ledger: Writer) -> None:
    asked = study(2, compare={"cost": [1.0, 2.0, 3.0]})
    filled.opened(ledger, asked)
    for cell in asked.cells:
        if cell.fixed["cost"] == 2.0 and cell.replicate == 1:
            filled.search(ledger, asked, cell, 0.0, "FAIL")
            continue
        number = filled.search(ledger, asked, cell, 0.9)
        value = {1.0: 0.5, 2.0: 0.9, 3.0: 0.6}[float(cell.fixed["cost"])]  # type: ignore[arg-type]
        filled.confirm(ledger, asked, cell, number, [value, value])
    found = replicates.read(ledger, asked)
    assert found.whole == [0, 1]
    assert found.left_out == {"cost=2.0": "1 of 2 searches found nothing"}
    assert found.use is not None
    assert found.use.cell.title == "cost=3.0"  # cost=2.0 is the best where it has a choice


def test_a_choice_that_was_not_tested_on_a_seed_leaves_its_cell_out(ledger: Writer) -> None:
    asked = study(2)
    found = fill(ledger, asked, {1.0: [[0.5, 0.7], [0.6, 0.8]], 2.0: [[0.4, 0.4], [0.9, 0.9]]})
    ledger.database.execute(filled_scores_of(asked))
    found = replicates.read(ledger, asked)
    assert found.left_out == {"cost=2.0": "1 of 2 choices could not be tested"}


def test_where_no_choice_could_be_tested_every_cell_is_left_out_and_none_is_judged_on_validation(
    ledger: Writer,
) -> None:
    asked = study(2)
    fill(ledger, asked, {1.0: [[0.5, 0.7], [0.6, 0.8]], 2.0: [[0.4, 0.4], [0.9, 0.9]]})
    ledger.database.execute(SCORES.delete())
    assert not replicates.read(ledger, asked).tests  # a trainable that has no test says nothing of one
    for cell in asked.cells:
        for index in range(2):
            ledger.write_untested(asked, cell.under(index), 0, "raised RuntimeError: no file", "")
    found = replicates.read(ledger, asked)
    assert found.tests
    assert found.left_out == dict.fromkeys(["cost=1.0", "cost=2.0"], "2 of 2 choices could not be tested")


def filled_scores_of(asked: Study) -> Any:
    """Delete what one run of the second cell's second replicate reached on test."""
    return SCORES.delete().where(SCORES.c.cell == asked.replicate(1)[1].under(1).key)


def test_the_cell_to_use_is_the_best_over_all_replicates_and_its_best_choice_is_taken(ledger: Writer) -> None:
    found = fill(ledger, study(2), {1.0: [[0.6, 0.6], [0.7, 0.7]], 2.0: [[0.9, 0.9], [0.1, 0.1]]})
    assert found.use is not None
    assert (found.use.cell.title, found.use.cell.replicate) == ("cost=1.0", 1)
    best = frames.best(ledger, found)
    assert best is not None
    assert best.cell.label == "cost=1.0, replicate 1"
    assert [one.cell.replicate for one in found.used.values()] == [1, 0]


def test_of_several_splits_the_first_choice_is_used_since_their_scores_cannot_be_compared(ledger: Writer) -> None:
    split = {"repeat": {"searches": 2, "split": "data_seed"}, "fixed": {"data_seed": 3}}
    found = fill(ledger, study(2, **split), {1.0: [[0.6, 0.6], [0.7, 0.7]], 2.0: [[0.4, 0.4], [0.1, 0.1]]})
    assert found.use is not None
    assert (found.use.cell.title, found.use.cell.replicate) == ("cost=1.0", 0)


def test_fresh_seeds_are_the_units_where_nothing_is_searched_and_no_split_is_named(ledger: Writer) -> None:
    asked = study(1, search={})
    filled.unsearched(ledger, asked, [[0.5, 0.7], [0.4, 0.9]])
    found = replicates.read(ledger, asked)
    assert found.by_seed
    assert found.validation() == {"cost=1.0": [0.5, 0.7], "cost=2.0": [0.4, 0.9]}
    assert found.test()["cost=2.0"] == pytest.approx([0.39, 0.89])


# Where the scatter comes from

EIGHT = {1.0: [[0.12, 0.14], [0.08, 0.10]], 2.0: [[0.09, 0.11], [0.07, 0.09]]}  # see test_variance, by a hundred


def items(*scores: float) -> list[Item]:
    return [Item(str(place), score) for place, score in enumerate(scores)]


def test_the_scatter_of_the_whole_replicates_on_test_is_told_apart(ledger: Writer) -> None:
    found = fill(ledger, study(3), EIGHT).sources(ledger)
    assert found is not None
    assert (found.metric, found.layout.replicates, found.layout.seeds) == ("test_accuracy", 2, 2)
    assert {one.source: one.variance for one in found.components} == {
        "replicate": pytest.approx(4e-4), "seed": pytest.approx(2e-4)
    }  # fmt: skip
    assert found.without_items == "test_accuracy was recorded without its items"


def test_items_are_a_source_where_all_seeds_scored_the_same(ledger: Writer) -> None:
    """Both seeds score 0 and 1: the mean of such a pair has a variance of .5^2 * 2 / 2^2 * 2 / 1 = .25."""
    found = fill(ledger, study(2), EIGHT, [items(0, 1), items(0, 1)]).sources(ledger)
    assert found is not None
    assert found.without_items == ""
    assert [(one.source, one.n) for one in found.components][2] == ("test items", 2)
    assert found.components[2].variance == pytest.approx(0.25)


def test_why_nothing_is_said_of_items_that_differ_between_seeds(ledger: Writer) -> None:
    found = fill(ledger, study(2), EIGHT, [items(0, 1), items(0, 1, 1)]).sources(ledger)
    assert found is not None
    assert len(found.components) == 2
    assert found.without_items == "expected the same items on every seed of a replicate"


def test_one_replicate_has_the_seed_alone_and_one_seed_of_it_nothing(ledger: Writer) -> None:
    found = fill(ledger, study(1), {cost: values[:1] for cost, values in EIGHT.items()}).sources(ledger)
    assert found is not None
    assert [one.source for one in found.components] == ["seed"]
    single = study(1, name="single", confirm={"top": 1, "seeds": 1})
    assert fill(ledger, single, {1.0: [[0.5]], 2.0: [[0.6]]}).sources(ledger) is None


def test_before_a_replicate_is_whole_there_are_no_sources(ledger: Writer) -> None:
    assert fill(ledger, study(2), {1.0: [], 2.0: [[0.5, 0.6]]}).sources(ledger) is None
