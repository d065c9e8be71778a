"""The figures of a report: there when their data are, their numbers right, every mark drawn, told apart in grey."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import vl_convert
from benchmarks.made import METRICS, fill

from cs330ray.ledger import confirm
from cs330ray.ledger.importance import shares_of
from cs330ray.ledger.records import Cause, Ended, Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.report.figures import marks as drawing
from cs330ray.report.figures.marks import Figure, records
from cs330ray.report.open_study import Opened, opened
from cs330ray.service.search import points
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from cs330ray.trial.contract import Metric, Scores
from tests.analysis import test_replicates as replicates
from tests.made_study import made

RATE = {"lr": {"low": 0.001, "high": 1.0}}


@dataclass
class Told:
    """A trial as a test tells it: its parameters, its objective by step, how it ended."""

    params: Mapping[str, Any]
    curve: Mapping[int, float]
    state: Ended | None = "COMPLETE"  # None while it runs
    reason: str = ""
    cause: Cause | None = None
    continues: int | None = None
    other: Mapping[int, float] = field(default_factory=dict)  # the second objective


def told(**changes: Any) -> Study:
    """A study of one cell whose trials a test tells."""
    raw = {
        "name": "told", "trainable": "benchmarks.sleeper", "objective": ["val_accuracy"],
        "search": {"lr": {"low": 0.001, "high": 1.0, "log": True}, "body": ["small", "large"]},
        "sampler": {"kind": "tpe"}, "budget": {"trials": 8, "steps": 20},
    }  # fmt: skip
    raw["search"]["width"] = {"low": 1, "high": 8, "when": {"body": "large"}}
    return parse(raw | changes, "told")


def enter(home: Path, study: Study, trials: Mapping[int, Sequence[Told]], metrics: Any = None) -> Writer:
    """A ledger with the told trials of each cell, by its place."""
    ledger = Writer.at(home)
    ledger.open(study, dict.fromkeys(study.trainables(), metrics or METRICS))
    for place, several in trials.items():
        cell = study.cells[place]
        for one in several:
            domains = {name: points.distribution(cell.space[name]) for name in one.params}
            asked = optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING, params=dict(one.params), distributions=domains
            )
            number = ledger.enter(study, cell, asked, seed=1, continues=one.continues)
            rows = [
                Row(step, dict(zip(study.objective, (value, one.other.get(step, 0.0)), strict=False)), 1.8e9 + step)
                for step, value in one.curve.items()
            ]
            ledger.write_rows(study, cell, number, rows)
            if one.state is not None:
                ledger.end(study, cell, number, Ending(one.state, one.reason, cause=one.cause))
    return ledger


def confirm_with(
    ledger: Writer, study: Study, fresh: Mapping[tuple[str, int], Sequence[tuple[float, Mapping[str, float]]]]
) -> None:
    """The runs of confirmation by cell and trial: validation and test metrics of each fresh seed."""
    for cell, number in confirm.pending(ledger, study, 0):
        assert cell.fresh is not None
        value, test = fresh[cell.searched.title, number][cell.fresh]
        ledger.write_attempt(study, cell, number, {})
        ledger.write_rows(study, cell, number, [Row(20, dict.fromkeys(study.objective, value), 1.8e9)])
        ledger.end(study, cell, number, Ending("COMPLETE"))
        ledger.write_scores(study, cell, number, Scores(test, {}))


SMALL = [
    Told({"lr": 0.01, "body": "small"}, {10: 0.5, 20: 0.6}),
    Told({"lr": 0.1, "body": "large", "width": 3}, {10: 0.7, 20: 0.8}),
    Told({"lr": 1.0, "body": "large", "width": 5}, {}, "FAIL", "the loss is inf at step 7", "diverged"),
    Told({"lr": 0.03, "body": "small"}, {10: 0.3}, "PRUNED", "asha at step 10", "pruned"),
    Told({"lr": 0.2, "body": "small"}, {10: 0.4, 20: 0.7000049}),
    Told({"lr": 0.5, "body": "small"}, {10: 0.1}, None),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Six trials that ended in every way, the best two confirmed on two seeds."""
    home = tmp_path_factory.mktemp("small")
    study = told(prune={"kind": "asha"}, confirm={"top": 2, "seeds": 2})
    ledger = enter(home, study, {0: SMALL})
    tests = [
        {"test_accuracy": value, "test_accuracy/shots/1": value, "test_accuracy/shots/4": value + 0.1}
        for value in (0.6, 0.62)
    ]
    confirm_with(ledger, study, {
        ("all", 1): [(0.7, tests[0]), (0.72, tests[1])],
        ("all", 4): [(0.74, tests[0]), (0.76, tests[1])],
    })  # fmt: skip
    return opened("told", home)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Two cells with titles of their own, 24 trials each, confirmed."""
    home = tmp_path_factory.mktemp("cells")
    fill(home, made(budget={"trials": 30, "steps": 80}, sampler={"kind": "random"}, prune={"kind": "median"}))
    return opened("made", home)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Two cells searched twice each, confirmed on two seeds of the same items."""
    home = tmp_path_factory.mktemp("repeated")
    replicates.fill(
        Writer.at(home), replicates.study(2), replicates.EIGHT, [replicates.items(0, 1), replicates.items(0, 1)]
    )
    return opened("letters", home)


def layers(figure: Figure) -> list[dict[str, Any]]:
    return list(figure.chart.to_dict()["layer"])


def marks(figure: Figure) -> list[str]:
    return [layer["mark"]["type"] for layer in layers(figure)]


def drawn_of(figure: Figure, state: str) -> dict[str, Any]:
    """The layer of the trials of one state."""
    (found,) = [
        one for one in layers(figure) if json.dumps(state) in json.dumps(one.get("transform", "")).replace('\\"', '"')
    ]
    return found


def rows_of(table: pd.DataFrame, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in table[list(names)].itertuples(index=False)]


# All figures ----------------------------------------------------------------------------------------------------------


def test_a_study_has_the_figures_that_it_has_data_for_in_the_order_of_the_report(small: Opened) -> None:
    assert list(small.figures) == [
        "confirmed", "axis/test_accuracy/shots", "parameters/lr", "parameters/body", "parameters/width", "curves",
        "progress", "cost",
    ]  # fmt: skip


def test_cells_with_enough_trials_have_the_importance_too(cells: Opened) -> None:
    assert "importance" in cells.figures


@pytest.mark.parametrize("of", ["small", "cells", "repeated"])
def test_every_chart_is_valid_of_one_view_as_wide_as_its_place_with_its_table_as_its_one_data_set(
    of: str, request: pytest.FixtureRequest
) -> None:
    for figure in request.getfixturevalue(of).figures.values():
        spec = figure.chart.to_dict()
        assert spec["width"] == "container"
        assert spec["height"] >= 100
        assert not {"facet", "hconcat", "vconcat", "concat", "repeat"} & set(json.dumps(spec).split('"'))
        assert list(spec["datasets"].values()) == [records(figure.table)]
        assert list(spec["datasets"]) == [spec["data"]["name"]]
        assert not any("data" in layer for layer in spec["layer"])


@pytest.mark.parametrize("of", ["small", "cells", "repeated"])
def test_every_chart_is_drawn_with_a_mark_of_every_layer(of: str, request: pytest.FixtureRequest) -> None:
    for figure in request.getfixturevalue(of).figures.values():
        spec = {**figure.chart.to_dict(), "width": 360}
        svg = vl_convert.vegalite_to_svg(spec)
        assert "NaN" not in svg, figure.name
        assert svg.count("<path") > len(spec["layer"])


@pytest.mark.parametrize("of", ["small", "cells", "repeated"])
def test_no_figure_sets_a_theme_or_black_or_white(of: str, request: pytest.FixtureRequest) -> None:
    for figure in request.getfixturevalue(of).figures.values():
        spec = json.dumps({**figure.chart.to_dict(), "data": {}, "config": {}}).lower()
        assert not any(word in spec for word in ("background", '"black"', '"white"', "#000", "#fff"))


def test_numbers_have_five_digits_and_no_more(small: Opened) -> None:
    assert records(small.table("parameters/lr"))[-1]["val_accuracy"] == 0.7


def test_what_is_no_finite_number_is_null_in_the_data() -> None:
    table = drawing.rounded(pd.DataFrame({"a": [1.23456789, math.nan, math.inf], "b": ["x", "y", "z"]}))
    assert records(table) == [{"a": 1.2346, "b": "x"}, {"a": None, "b": "y"}, {"a": None, "b": "z"}]


def test_the_command_line_starts_without_altair() -> None:
    code = "import cs330ray.cli.app, cs330ray.report.open_study, sys; print('altair' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Confirmation ---------------------------------------------------------------------------------------------------------


def test_candidates_of_one_cell_stand_the_best_validation_first_with_test_seeds_and_promise(small: Opened) -> None:
    table = small.table("confirmed")
    assert list(dict.fromkeys(table["alternative"])) == ["trial 4 (chosen)", "trial 1"]
    half = 0.12706  # t(.975, 1) = 12.706 times .014142 / sqrt(2)
    means = table[table["what"] == "mean over fresh seeds"]
    assert rows_of(means, "split", "value", "n") == [
        ("validation", 0.75, 2), ("test", 0.61, 2), ("validation", 0.71, 2), ("test", 0.61, 2),
    ]  # fmt: skip
    assert list(means["low"]) == pytest.approx([0.75 - half, 0.61 - half, 0.71 - half, 0.61 - half], abs=1e-4)
    assert list(means["high"]) == pytest.approx([0.75 + half, 0.61 + half, 0.71 + half, 0.61 + half], abs=1e-4)
    seeds = table[table["what"].str.startswith("fresh seed") & (table["split"] == "validation")]
    assert list(seeds["value"]) == [0.74, 0.76, 0.7, 0.72]
    assert list(table[table["what"] == "the search's value"]["value"]) == [0.7, 0.8]


def test_validation_and_test_differ_in_shape_and_not_in_colour_alone(small: Opened) -> None:
    shapes = layers(small.figures["confirmed"])[-1]["encoding"]["shape"]
    assert shapes["scale"] == {"domain": ["validation", "test"], "range": ["circle", "diamond"]}


def test_compared_cells_stand_with_their_choices_and_their_titles(cells: Opened) -> None:
    chosen = cells.confirmed[cells.confirmed["chosen"]].set_index("cell")
    table = cells.table("confirmed")
    means = table[(table["what"] == "mean over fresh seeds") & (table["split"] == "validation")]
    order = sorted(chosen.index, key=lambda title: -chosen.loc[title, "validation"])
    assert list(means["alternative"]) == order
    assert list(means["trial"]) == [chosen.loc[title, "trial"] for title in order]


def test_several_objectives_have_a_figure_each_and_one_seed_has_no_interval(two: Opened) -> None:
    assert [name for name in two.figures if name.startswith("confirmed")] == [
        "confirmed/val_accuracy",
        "confirmed/val_loss",
    ]
    assert two.figures["confirmed/val_loss"].says.endswith("One seed has no interval.")
    assert two.table("confirmed/val_loss")["low"].isna().all()


# Parameters -----------------------------------------------------------------------------------------------------------


def test_a_parameter_has_a_row_for_each_ended_trial_with_its_value_and_the_best_marked(small: Opened) -> None:
    table = small.table("parameters/lr")
    assert rows_of(table.fillna(-1), "trial", "state", "lr", "val_accuracy", "best") == [
        (0, "COMPLETE", 0.01, 0.6, False),
        (1, "COMPLETE", 0.1, 0.8, True),
        (2, "FAIL", 1.0, -1, False),
        (3, "PRUNED", 0.03, 0.3, False),
        (4, "COMPLETE", 0.2, 0.7, False),
    ]
    assert table["reason"][2] == "the loss is inf at step 7"


def test_a_range_on_a_log_scale_is_drawn_on_one_and_a_whole_one_on_a_linear_one(small: Opened) -> None:
    for name, kind in (("lr", "log"), ("width", "linear")):
        assert all(
            layer["encoding"]["x"]["scale"]["type"] == kind for layer in layers(small.figures[f"parameters/{name}"])
        )


def test_a_conditional_parameter_has_only_the_trials_that_it_was_searched_in(small: Opened) -> None:
    assert rows_of(small.table("parameters/width"), "trial", "width") == [(1, 3), (2, 5)]


def test_choices_are_strips_in_the_order_of_the_file(small: Opened) -> None:
    x = layers(small.figures["parameters/body"])[0]["encoding"]["x"]
    assert (x["type"], x["sort"]) == ("nominal", ["small", "large"])


def test_whole_choices_that_not_every_trial_has_are_strips_in_the_order_of_the_file(tmp_path: Path) -> None:
    filters = {"choices": [32, 16], "when": {"body": "large"}}
    study = told(search={**RATE, "body": ["small", "large"], "filters": filters})
    trials = [
        Told({"lr": 0.1, "body": "large", "filters": 16}, {20: 0.5}),
        Told({"lr": 0.1, "body": "small"}, {20: 0.6}),
        Told({"lr": 0.1, "body": "large", "filters": 32}, {20: 0.7}),
    ]
    enter(tmp_path, study, {0: trials})
    figure = opened("told", tmp_path).figures["parameters/filters"]
    assert rows_of(figure.table, "trial", "filters") == [(0, "16"), (2, "32")]
    assert layers(figure)[0]["encoding"]["x"]["sort"] == ["32", "16"]


def test_a_parameter_of_choices_in_one_cell_and_a_range_in_another_has_the_choices_first(tmp_path: Path) -> None:
    tables = {"benchmarks.sleeper": {"lr": [0.5, 0.25]}, "tests.toy": {"lr": {"low": 0.1, "high": 1.0}}}
    study = told(trainable=None, compare={"trainable": list(reversed(tables))}, search=tables)
    enter(tmp_path, study, {0: [Told({"lr": 0.75}, {20: 0.5})], 1: [Told({"lr": 0.25}, {20: 0.6})]})
    assert layers(opened("told", tmp_path).figures["parameters/lr"])[0]["encoding"]["x"]["sort"] == ["0.25", "0.75"]


def test_failed_trials_are_an_x_at_the_rim_and_pruned_ones_hollow_and_the_words_say_so(small: Opened) -> None:
    figure = small.figures["parameters/lr"]
    assert drawn_of(figure, "FAIL")["encoding"]["y"] == {"value": "height"}  # the bottom: higher is better
    assert drawn_of(figure, "FAIL")["mark"]["shape"] == drawing.FAILED
    assert drawn_of(figure, "PRUNED")["mark"]["filled"] is False
    assert drawn_of(figure, "COMPLETE")["mark"]["filled"] is True
    assert "hollow was pruned, at its last value; an x at the rim failed and has no value" in figure.says


def test_failed_trials_stand_at_the_top_where_lower_is_better(tmp_path: Path) -> None:
    study = told(objective=["val_loss"])
    enter(tmp_path, study, {0: SMALL[:3]})
    assert drawn_of(opened("told", tmp_path).figures["parameters/lr"], "FAIL")["encoding"]["y"] == {"value": 0}


def test_cells_differ_in_shape_as_in_colour_and_have_the_same_in_every_figure(cells: Opened) -> None:
    for name in ("parameters/lr", "cost"):
        encoding = layers(cells.figures[name])[0]["encoding"]
        assert encoding["shape"]["scale"] == {"domain": ["ways=2", "ways=5"], "range": ["circle", "square"]}
        assert encoding["color"]["scale"] == {"domain": ["ways=2", "ways=5"], "range": list(drawing.PALETTE[:2])}


def test_the_best_of_each_cell_is_ringed_where_a_cell_has_trials_enough(cells: Opened) -> None:
    """Thirty each, so two rings; with two trials each every other mark would have one: only the best of all has."""
    assert list(cells.table("cost").groupby("cell")["best"].sum()) == [1, 1]
    assert "a ring is the search's best of a cell" in cells.figures["cost"].says


def test_only_the_best_of_all_is_ringed_where_cells_have_few_trials(tmp_path: Path) -> None:
    study = told(compare={"ways": [2, 5]}, search=RATE)
    trials = [[Told({"lr": 0.1}, {20: value}) for value in values] for values in ((0.5, 0.6), (0.7, 0.4))]
    enter(tmp_path, study, dict(enumerate(trials)))
    table = opened("told", tmp_path).table("cost")
    assert rows_of(table[table["best"]], "cell", "trial") == [("ways=5", 0)]


def test_more_cells_than_can_be_told_apart_are_not(tmp_path: Path) -> None:
    study = made(compare={"ways": list(range(2, 11))}, budget={"trials": 1, "steps": 80}, confirm=None)
    fill(tmp_path, study)
    figure = opened("made", tmp_path).figures["parameters/lr"]
    assert "color" in layers(figure)[0]["encoding"]
    assert "scale" not in layers(figure)[0]["encoding"]["color"]
    assert figure.says.endswith("The 9 cells are too many to be told apart here.")


def test_values_far_off_do_not_squeeze_the_others_and_are_said(tmp_path: Path) -> None:
    study = told(objective=["val_loss"])
    trials = [Told({"lr": 0.1, "body": "small"}, {20: value}) for value in (1.0, 1.1, 1.2, 1.3, 1.4, 1e6)]
    enter(tmp_path, study, {0: trials})
    figure = opened("told", tmp_path).figures["parameters/lr"]
    low, high = layers(figure)[0]["encoding"]["y"]["scale"]["domain"]
    assert low < 1.0
    assert 1.4 < high < 3
    assert "1 far off stands at the rim." in figure.says
    assert figure.table["val_accuracy" if "val_accuracy" in figure.table else "val_loss"].max() == 1e6


def test_a_parameter_of_the_name_of_a_column_is_read_from_its_own(tmp_path: Path) -> None:
    study = told(search={"steps": {"low": 1, "high": 9}})
    enter(tmp_path, study, {0: [Told({"steps": 4}, {20: 0.5}), Told({"steps": 7}, {20: 0.6})]})
    figure = opened("told", tmp_path).figures["parameters/steps"]
    assert list(figure.table["param.steps"]) == [4, 7]
    assert layers(figure)[0]["encoding"]["x"]["field"] == "param\\.steps"


# Importance -----------------------------------------------------------------------------------------------------------


def test_importance_is_the_ledgers_share_of_each_parameter(cells: Opened) -> None:
    table = cells.table("importance")
    for cell in cells.study.cells:
        own = table[table["cell"] == cell.title].set_index("parameter")["share"]
        assert own.to_dict() == pytest.approx(shares_of(cells.ledger, cells.study, cell), rel=1e-4)
        assert own.sum() == pytest.approx(1, abs=1e-4)


def test_importance_has_bars_from_zero(cells: Opened) -> None:
    (layer,) = layers(cells.figures["importance"])
    assert (layer["mark"]["type"], layer["encoding"]["x"]["scale"]["zero"]) == ("bar", True)


# Curves ---------------------------------------------------------------------------------------------------------------


def test_curves_are_those_of_the_best_and_of_the_pruned_trials(small: Opened) -> None:
    assert rows_of(small.table("curves"), "trial", "line", "step", "val_accuracy") == [
        (1, "best", 10, 0.7), (1, "best", 20, 0.8),
        (4, "top", 10, 0.4), (4, "top", 20, 0.7),
        (0, "top", 10, 0.5), (0, "top", 20, 0.6),
        (3, "pruned", 10, 0.3),
    ]  # fmt: skip
    assert small.figures["curves"].says == "The best 3 trials, the very best thick; faint are 1 of 1 pruned ones."


def test_a_trial_that_continues_another_goes_on_from_its_curve(tmp_path: Path) -> None:
    first = told()
    trials = [Told({"lr": 0.1, "body": "small"}, {10: 0.5, 20: 0.6}), Told({"lr": 0.2, "body": "small"}, {20: 0.4})]
    ledger = enter(tmp_path, first, {0: trials})
    longer = told(budget={"trials": 8, "steps": 40})
    ledger.open(longer, {"benchmarks.sleeper": METRICS})
    enter(tmp_path, longer, {0: [Told({"lr": 0.1, "body": "small"}, {30: 0.7, 40: 0.8}, continues=0)]})
    study = opened("told", tmp_path)
    assert rows_of(study.table("curves"), "trial", "step", "val_accuracy") == [
        (2, 10, 0.5), (2, 20, 0.6), (2, 30, 0.7), (2, 40, 0.8),
    ]  # fmt: skip
    assert list(study.table("parameters/lr")["trial"]) == [2]
    assert "1 of fewer steps is left out." in study.figures["parameters/lr"].says


def test_pruned_curves_are_a_few_evenly_chosen_and_long_ones_are_thinned(tmp_path: Path) -> None:
    study = told(prune={"kind": "asha"}, search=RATE, budget={"trials": 99, "steps": 900})
    long = Told({"lr": 0.5}, {step: step / 1000 for step in range(1, 901)})
    enter(tmp_path, study, {0: [long] + [Told({"lr": 0.1}, {9: 0.1}, "PRUNED", cause="pruned") for _ in range(50)]})
    figure = opened("told", tmp_path).figures["curves"]
    best = figure.table[figure.table["line"] == "best"]
    assert (len(best), best["step"].min(), best["step"].max()) == (100, 1, 900)
    pruned = figure.table[figure.table["line"] == "pruned"]["trial"]
    assert (len(pruned), pruned.min(), pruned.max()) == (40, 1, 50)
    assert "faint are 40 of 50 pruned ones" in figure.says


def test_the_best_trial_of_each_compared_cell_has_its_dash(cells: Opened) -> None:
    figure = cells.figures["curves"]
    top = figure.table[figure.table["line"] != "pruned"].drop_duplicates(["cell", "trial"])
    best = cells.trials[cells.trials["state"] == "COMPLETE"].sort_values("val_accuracy").groupby("cell").last()["trial"]
    assert {row.cell: row.trial for row in top.itertuples()} == best.to_dict()
    dashes = [layer["encoding"]["strokeDash"] for layer in layers(figure) if "strokeDash" in layer["encoding"]]
    assert dashes[0]["scale"] == {"domain": ["ways=2", "ways=5"], "range": [[1, 0], [7, 3]]}


# The best so far ------------------------------------------------------------------------------------------------------


def test_the_best_so_far_grows_where_a_trial_was_better_and_ends_with_the_last(small: Opened) -> None:
    figure = small.figures["progress"]
    assert rows_of(figure.table, "trials", "best", "trial") == [(1, 0.6, 0), (2, 0.8, 1), (6, 0.8, 1)]
    assert "a band needs random search without pruning, since it assumes independent, complete draws" in figure.says


def test_two_trials_are_no_progress(tmp_path: Path) -> None:
    enter(tmp_path, told(search=RATE), {0: [Told({"lr": 0.1}, {20: value}) for value in (0.2, 0.6)]})
    assert "progress" not in opened("told", tmp_path).figures


def random_search(home: Path, trials: Sequence[Told]) -> Figure:
    study = told(sampler={"kind": "random"}, search=RATE)
    enter(home, study, {0: trials})
    return opened("told", home).figures["progress"]


def test_random_search_without_pruning_has_the_band_of_the_median_best(tmp_path: Path) -> None:
    """Of .2, .6 and .4 the median is .4; half of all pairs have a best at F = 1 / sqrt(2) = .707 or more: .6."""
    figure = random_search(tmp_path, [Told({"lr": 0.1}, {20: value}) for value in (0.2, 0.6, 0.4)])
    assert rows_of(figure.table, "trials", "best", "median") == [(1, 0.2, 0.4), (2, 0.6, 0.6), (3, 0.6, 0.6)]
    assert list(figure.table["high"]) == [1.0, 1.0, 1.0]  # of an accuracy, where three trials cannot say more
    assert "area" in marks(figure)
    assert "95 of 100" in figure.says


def test_a_failed_trial_is_the_worst_draw_of_random_search_and_a_lost_one_is_none(tmp_path: Path) -> None:
    trials = [Told({"lr": 0.1}, {20: value}) for value in (0.2, 0.6)]
    failed = [
        Told({"lr": 0.9}, {}, "FAIL", "the loss is inf", "diverged"),
        Told({"lr": 0.9}, {}, "FAIL", "the worker was lost twice", "lost"),
    ]
    figure = random_search(tmp_path, [*failed, *trials])
    assert rows_of(figure.table.fillna(-1), "trials", "best", "median") == [(1, -1, 0.2), (2, 0.2, 0.6), (3, 0.6, 0.6)]


# The front ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Two objectives, an accuracy to be high and a loss to be low; one fresh seed."""
    home = tmp_path_factory.mktemp("two")
    study = told(
        objective=["val_accuracy", "val_loss"], search=RATE,
        sampler={"kind": "nsga2"}, confirm={"top": 1, "seeds": 1},
    )  # fmt: skip
    points = [(0.5, 1.0), (0.9, 3.0), (0.4, 2.0), (0.7, 1.5)]
    ledger = enter(home, study, {0: [Told({"lr": 0.1}, {20: one}, other={20: other}) for one, other in points]})
    ((_, number),) = confirm.pending(ledger, study, 0)
    confirm_with(ledger, study, {("all", number): [(0.8, {"test_accuracy": 0.7, "test_loss": 1.6})]})
    return opened("told", home)


def test_the_front_holds_the_trials_that_no_other_dominates_and_marks_the_choice(two: Opened) -> None:
    table = two.table("front")
    assert rows_of(table, "trial", "val_accuracy", "val_loss", "front") == [
        (0, 0.5, 1.0, True), (1, 0.9, 3.0, True), (2, 0.4, 2.0, False), (3, 0.7, 1.5, True),
    ]  # fmt: skip
    chosen = two.confirmed[two.confirmed["chosen"]]["trial"].unique()
    assert list(table[table["chosen"]]["trial"]) == list(chosen)


def test_the_line_of_the_front_bounds_what_it_dominates(two: Opened) -> None:
    """Where more is better along x, what lies before a member has that member's y: the step comes before."""
    (line,) = [layer for layer in layers(two.figures["front"]) if layer["mark"]["type"] == "line"]
    assert line["mark"]["interpolate"] == "step-before"


def test_one_objective_has_no_front(small: Opened) -> None:
    assert "front" not in small.figures


# Metrics over an axis


def test_a_family_of_metrics_has_the_choices_mean_and_interval_at_each_place(small: Opened) -> None:
    table = small.table("axis/test_accuracy/shots")
    assert rows_of(table, "trial", "shots", "test_accuracy", "n") == [(4, 1.0, 0.61, 2), (4, 4.0, 0.71, 2)]
    assert list(table["high"] - table["test_accuracy"]) == pytest.approx([0.12706] * 2, abs=1e-4)


def test_an_axis_that_spans_much_is_logarithmic_with_a_tick_at_each_place(small: Opened) -> None:
    x = layers(small.figures["axis/test_accuracy/shots"])[0]["encoding"]["x"]
    assert (x["scale"]["type"], x["scale"]["base"], x["axis"]["values"]) == ("log", 2, [1.0, 4.0])


# Cost -----------------------------------------------------------------------------------------------------------------


def test_cost_has_the_seconds_of_each_trial_and_says_where_they_went(cells: Opened) -> None:
    table = cells.table("cost")
    ended = cells.trials[cells.trials["state"] != "RUNNING"]
    assert list(table["seconds"]) == pytest.approx(list(ended["seconds"]), rel=1e-4)
    assert cells.figures["cost"].says.startswith("60 trials took ")
    assert "on pruned" in cells.figures["cost"].says


# Little, or nothing


def test_a_study_without_a_trial_has_no_figure(tmp_path: Path) -> None:
    enter(tmp_path, told(), {})
    assert opened("told", tmp_path).figures == {}


def test_a_study_whose_trials_all_failed_has_no_figure(tmp_path: Path) -> None:
    enter(tmp_path, told(), {0: [SMALL[2], SMALL[2]]})
    assert opened("told", tmp_path).figures == {}


def test_one_trial_has_its_figures(tmp_path: Path) -> None:
    enter(tmp_path, told(), {0: [SMALL[0]]})
    figures = opened("told", tmp_path).figures
    assert list(figures) == ["parameters/lr", "parameters/body", "curves", "cost"]
    for figure in figures.values():
        assert "NaN" not in vl_convert.vegalite_to_svg({**figure.chart.to_dict(), "width": 300})


def test_one_cell_of_many_that_has_data_is_drawn_alone(tmp_path: Path) -> None:
    study = told(compare={"ways": list(range(40))}, search=RATE)
    enter(tmp_path, study, {7: [Told({"lr": 0.1}, {20: value}) for value in (0.5, 0.6, 0.4)]})
    figures = opened("told", tmp_path).figures
    assert list(figures) == ["parameters/lr", "curves", "progress", "cost"]
    assert {title for figure in figures.values() for title in figure.table["cell"]} == {"ways=7"}


def test_rows_that_are_not_finite_are_no_part_of_a_curve(tmp_path: Path) -> None:
    enter(tmp_path, told(), {0: [Told({"lr": 0.1, "body": "small"}, {5: math.nan, 10: math.inf, 20: 0.5})]})
    assert rows_of(opened("told", tmp_path).table("curves"), "step", "val_accuracy") == [(20, 0.5)]


def test_a_study_that_searches_nothing_has_no_figure_of_parameters(tmp_path: Path) -> None:
    enter(tmp_path, told(search={}), {0: [Told({}, {20: 0.5})]})
    assert list(opened("told", tmp_path).figures) == ["curves", "cost"]


# Large studies, long words


def test_a_figure_of_a_large_study_draws_the_best_half_of_what_it_has_room_for_and_the_others_evenly(
    small: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cs330ray.report.figures import search as searched

    monkeypatch.setattr(searched, "LEAST_DRAWN", 100)
    monkeypatch.setattr(searched, "MOST_DRAWN", 0)
    frame = pd.DataFrame({"val_accuracy": [index / 1000 for index in range(1000)]})
    shown, said = searched.Search(small).thinned(frame)
    assert list(shown["val_accuracy"][-50:]) == [index / 1000 for index in range(950, 1000)]
    assert (len(shown), shown.index[0], shown.index[49]) == (100, 0, 949)
    assert said == " 100 of 1000 trials are drawn: the best 50, and of the others evenly many."


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("all", ["all"]),
        ("sharing=separate factorization_weight=0.99", ["sharing=separate", "factorization_weight=", "0.99"]),
        ("prompt=" + "x" * 30, ["prompt=", "x" * 24, "x" * 6]),
        ("a" * 20 + " " + "b" * 20 + " " + "c" * 20 + " " + "d" * 20, ["a" * 20, "b" * 20, "c" * 20 + "…"]),
    ],
)
def test_a_long_label_is_broken_at_spaces_else_behind_signs_into_three_lines(label: str, lines: list[str]) -> None:
    assert drawing.lines(label) == lines


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 2, [0, 1, 2]),
        (1, 8, [2, 4, 6, 8]),
        (3, 3, [3]),
        (1, 64, [20, 40, 60]),
        (0, 2000, [0, 500, 1000, 1500, 2000]),
    ],
)
def test_ticks_of_whole_numbers_are_whole_and_round(low: int, high: int, ticks: list[int]) -> None:
    assert drawing.whole_ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (Metric("max", 0, 1), "name (higher is better)"),
        (Metric("min", unit="stars^2"), "name in stars^2 (lower is better)"),
        (None, "name"),
    ],
)
def test_an_axis_says_the_unit_and_which_way_is_better(metric: Metric | None, said: str) -> None:
    assert drawing.said("name", metric) == said
