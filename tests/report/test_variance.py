"""What the report says of replicates together: the units of each cell, and where their scatter comes from."""

from pathlib import Path
from typing import Any

import pytest

from cs330ray.analysis.table import Sheet
from cs330ray.ledger.writer import Writer
from cs330ray.report import variance
from cs330ray.report.figures.marks import Figure
from cs330ray.report.open_study import Opened, opened
from cs330ray.report.page import Drawn, Words, page
from cs330ray.spec.study import Study
from tests.analysis.test_replicates import EIGHT, Reached, fill, items, study


def told(home: Path, asked: Study, reached: Reached, scored: Any = ()) -> Opened:
    fill(Writer.at(home), asked, reached, scored)
    return opened(asked.name, home)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Two cells, two replicates, two seeds of the same two items."""
    return told(tmp_path_factory.mktemp("eight"), study(2), EIGHT, [items(0, 1), items(0, 1)])


def layers(figure: Figure) -> list[dict[str, Any]]:
    return list(figure.chart.to_dict()["layer"])


# The figures


def test_the_units_of_each_cell_stand_with_their_mean_the_best_cell_first(eight: Opened) -> None:
    """On test all are .01 less. Student's t of two: 12.706 times |.12 - .08| / 2."""
    table = eight.table("replicates")
    assert [tuple(row) for row in table[["cell", "what", "replicate", "value"]].itertuples(index=False)] == [
        ("cost=1.0", "search", "0", 0.12), ("cost=1.0", "search", "1", 0.08), ("cost=1.0", "mean", "all", 0.1),
        ("cost=2.0", "search", "0", 0.09), ("cost=2.0", "search", "1", 0.07), ("cost=2.0", "mean", "all", 0.08),
    ]  # fmt: skip
    mean = table[table["what"] == "mean"].iloc[0]
    assert (mean["low"], mean["high"]) == pytest.approx((0.1 - 0.25412, 0.1 + 0.25412), abs=1e-4)


def test_means_and_units_differ_in_shape_and_a_line_joins_the_cells_of_a_replicate(eight: Opened) -> None:
    line, unit, _, mean = layers(eight.figures["replicates"])
    assert (unit["mark"]["shape"], mean["mark"]["shape"]) == ("circle", "diamond")
    assert line["mark"]["type"] == "line"
    assert line["encoding"]["detail"]["field"] == "replicate"


def test_one_cell_has_its_units_without_lines(tmp_path: Path) -> None:
    one = told(tmp_path, study(2, compare={}, fixed={"cost": 1.0}), {1.0: EIGHT[1.0]})
    assert [layer["mark"]["type"] for layer in layers(one.figures["replicates"])] == ["point", "rule", "point"]


def test_of_many_cells_the_best_are_drawn_and_the_words_say_so(tmp_path: Path) -> None:
    many = {float(cost): [[0.01 * cost] * 2, [0.01 * cost + 0.001] * 2] for cost in range(22)}
    found = told(tmp_path, study(2, compare={"cost": list(many)}), many).figures["replicates"]
    assert "The best 20 of 22 are drawn." in found.says
    assert list(dict.fromkeys(found.table["cell"]))[-1] == "cost=2.0"


def test_lower_is_better_where_the_objective_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs330ray.ledger.ledger.Ledger.goals", lambda *_: ["min"])
    found = told(tmp_path, study(2), EIGHT)
    assert next(iter(found.table("replicates")["cell"])) == "cost=2.0"


def test_the_sources_stand_side_by_side_as_standard_deviations(eight: Opened) -> None:
    table = eight.table("variance")
    assert list(table["source"]) == ["replicate", "seed", "test items"]
    assert list(table["sd"]) == pytest.approx([0.02, 2e-4**0.5, 0.5], abs=1e-5)
    assert [(layer["mark"]["type"]) for layer in layers(eight.figures["variance"])] == ["rule", "point"]


def test_an_interval_that_is_far_wider_than_all_sources_ends_at_the_rim(tmp_path: Path) -> None:
    found = told(tmp_path, study(2), EIGHT).figures["variance"]
    assert found.table["high"].max() > 4 * found.table["sd"].max()
    assert layers(found)[1]["encoding"]["x"]["scale"]["domain"] == [0, pytest.approx(0.08)]
    assert "2 intervals end beyond the rim." in found.says


def test_one_search_has_no_figure_of_replicates_and_the_seeds_luck_alone(tmp_path: Path) -> None:
    one = told(tmp_path, study(1), {cost: values[:1] for cost, values in EIGHT.items()})
    assert "replicates" not in one.figures
    assert list(one.table("variance")["source"]) == ["seed"]


def test_one_seed_of_one_search_has_neither(tmp_path: Path) -> None:
    one = told(tmp_path, study(1, confirm={"top": 1, "seeds": 1}), {1.0: [[0.5]], 2.0: [[0.6]]})
    assert not {"replicates", "variance"} & set(one.figures)


# The table and its words


def test_the_page_has_the_sources_as_a_table_and_both_figures_and_each_once(eight: Opened) -> None:
    blocks = list(page(eight).blocks)
    (table,) = [block for block in blocks if isinstance(block, Sheet) and block.columns[0] == "source"]
    assert [row[:2] for row in table.rows] == [["replicate", "0.02"], ["seed", "0.0141"], ["test items", "0.5"]]
    assert [row[3] for row in table.rows] == ["2 searches", "4 seeds", "2 units of items"]
    drawn = [block.figure.name for block in blocks if isinstance(block, Drawn)]
    assert (drawn.count("replicates"), drawn.count("variance")) == (1, 1)
    assert drawn.index("confirmed") < drawn.index("replicates") < drawn.index("variance")
    assert any(isinstance(block, Words) and "Seeds and items are crossed" in block.text for block in blocks)


def test_what_a_claim_has_to_overcome_is_the_residual_of_a_cells_mean(eight: Opened) -> None:
    """Of EIGHT it is 2e-4 / 2 at its two seeds."""
    assert eight.sources is not None
    said = variance.words(eight.sources, eight.study)
    assert "beside its rivals a cell's mean over 2 seeds scatters by 0.01 [" in said
    assert "`cs330ray plan letters` says how much" in said


def test_each_source_is_one_plain_sentence(eight: Opened) -> None:
    assert eight.sources is not None
    assert [row[-1] for row in variance.sheet(eight.sources, eight.study).rows] == [
        "The whole search is done again, and makes another choice.",
        "The same configuration is trained again on another seed; for a mean over 2 seeds it is 0.01.",
        "The same models are tested on other items of the same kind. No more searches or seeds lessen it.",
    ]


def test_on_one_seed_each_its_luck_is_in_the_replicate_and_in_the_items(tmp_path: Path) -> None:
    once = study(
        2, confirm={"top": 1, "seeds": 1}, repeat={"searches": 2, "split": "data_seed"}, fixed={"data_seed": 0}
    )
    found = told(tmp_path, once, {1.0: [[0.5], [0.6]], 2.0: [[0.4], [0.3]]}, [items(0, 1)])
    assert found.sources is not None
    assert [row[-1] for row in variance.sheet(found.sources, once).rows] == [
        "The whole search is done again on another split of the data, and makes another choice; the luck of its one "
        "seed is in it.",
        "The same models are tested on other items of the same kind; what its one seed does to each is in it. More "
        "splits lessen it, more seeds do not.",
    ]


def test_of_one_search_it_is_said_that_another_ones_luck_is_not_known(tmp_path: Path) -> None:
    one = told(tmp_path, study(1), {cost: values[:1] for cost, values in EIGHT.items()})
    assert one.sources is not None
    said = variance.words(one.sources, one.study)
    assert "There is one whole search of each cell: how much another one would change is not known." in said
    assert "Nothing is said of the items of the test: test_accuracy was recorded without its items." in said


def test_of_cells_that_differ_by_the_same_it_is_said_that_nothing_can_be_claimed(tmp_path: Path) -> None:
    same = told(tmp_path, study(2), dict.fromkeys(EIGHT, EIGHT[1.0]))
    assert same.sources is not None
    assert "The cells differ by the same in each search: that says nothing of chance" in variance.words(
        same.sources, same.study
    )
