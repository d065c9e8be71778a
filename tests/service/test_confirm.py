"""Confirmation: who is confirmed, on which seeds, who is chosen, the winner's curse; a kill changes nothing."""

import contextlib
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cs330ray.analysis import answer, confirmed
from cs330ray.analysis.standing import choices, standings
from cs330ray.cli.app import main
from cs330ray.errors import SpecError
from cs330ray.ledger import confirm
from cs330ray.ledger.confirm import Confirmed, Run, candidates, choice, fresh_cells
from cs330ray.ledger.records import Trial
from cs330ray.ledger.trials.fronts import by_crowding
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from cs330ray.report import tables
from cs330ray.service.run import run
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study, fresh_seed, trial_seed
from cs330ray.spec.tables import Budget
from tests import in_process
from tests import noisy as noisy_trainable
from tests.noisy import luck
from tests.studies_of_tests import toml, whole


def noisy(**changes: Any) -> Study:
    """Configurations of one quality: what the search prefers is luck."""
    raw: dict[str, Any] = {
        "name": "noisy", "trainable": "tests.noisy", "objective": ["val_accuracy"], "sampler": {"kind": "random"},
        "budget": {"trials": 8, "steps": 2}, "resources": {"slots": 2}, "confirm": {"top": 1, "seeds": 3},
    }  # fmt: skip
    return parse(raw | changes, "noisy")


def trial(number: int, *values: float, state: str = "COMPLETE", quality: float | None = None) -> Trial:
    params = {"quality": number if quality is None else quality}
    return Trial(
        noisy().cells[0], number, state, params, 0, values or None, "", None, "", 0.0, 1.0, steps=noisy().budget.steps
    )


def candidate(number: int, *fresh: tuple[float, ...], seeds: int | None = None, state: str = "COMPLETE") -> Confirmed:
    runs = [Run(trial(number, *values, state=state), {}) for values in fresh]
    return Confirmed(trial(number, *fresh[0]), runs, len(fresh) if seeds is None else seeds)


def confirmations(home: Path, name: str = "noisy") -> list[tuple[Any, ...]]:
    """All that a study's confirmations are, without times."""
    ledger = Writer.at(home)
    study = ledger.study(name)
    return [
        (
            cell.key, one.number, one.state, one.reason, one.seed, one.values,
            [(row.step, dict(row.metrics)) for row in ledger.rows(study, cell, one.number)],
            ledger.test_metrics(study, cell, one.number), ledger.test_items(study, cell, one.number),
        )
        for cell in fresh_cells(study)
        for one in ledger.trials(study, cell)
    ]  # fmt: skip


# Who is confirmed ----------------------------------------------------------------------------------------------------


def test_the_best_complete_trials_are_confirmed_the_best_first() -> None:
    found = [trial(0, 0.5), trial(1, 0.9), trial(2, 0.99, state="PRUNED"), trial(3, state="FAIL"), trial(4, 0.7)]
    chosen = candidates(noisy(confirm={"top": 2}), ["max"], {"{}": found})
    assert [one.number for one in chosen["{}"]] == [1, 4]
    assert [one.number for one in candidates(noisy(confirm={"top": 2}), ["min"], {"{}": found})["{}"]] == [0, 4]


def test_fewer_are_confirmed_where_there_are_fewer_and_three_where_none_is_said() -> None:
    found = [trial(number, 0.1 * number) for number in range(5)]
    assert len(candidates(noisy(confirm={"top": 9}), ["max"], {"{}": found})["{}"]) == 5
    assert len(candidates(noisy(confirm={}), ["max"], {"{}": found})["{}"]) == 3
    assert candidates(noisy(confirm={}), ["max"], {"{}": []}) == {"{}": []}


BOTH = {"bonus": [0.0, 0.05]}
A, B = (cell.key for cell in noisy(compare=BOTH).cells)


def numbers(chosen: Mapping[str, Sequence[Trial]]) -> list[list[int]]:
    """Who of each cell is confirmed."""
    return [[one.number for one in chosen[key]] for key in (A, B)]


def test_cells_are_compared_on_the_first_trials_that_every_cell_finished() -> None:
    study = noisy(compare=BOTH, confirm={"top": 1})
    ahead = [trial(0, 0.1), trial(1, 0.2), trial(2, 0.9)]
    behind = [trial(0, 0.1), trial(1, 0.3)]
    assert numbers(candidates(study, ["max"], {A: ahead, B: behind})) == [[1], [1]]
    cut = [trial(0, 0.1), trial(1, state="RUNNING")]
    assert candidates(study, ["max"], {A: ahead, B: cut})[A][0].number == 0
    assert numbers(candidates(study, ["max"], {A: ahead, B: []})) == [[2], []]


def test_a_trial_that_has_not_ended_hides_none_of_those_behind_it() -> None:
    cut = [trial(0, 0.1), trial(1, state="RUNNING"), trial(2, 0.3), trial(3, 0.9)]
    chosen = candidates(noisy(confirm={"top": 2}), ["max"], {"{}": cut})["{}"]
    assert [one.number for one in chosen] == [3, 2]
    behind = [trial(0, 0.1), trial(1, 0.2), trial(2, state="RUNNING")]
    study = noisy(compare=BOTH, confirm={"top": 1})
    assert numbers(candidates(study, ["max"], {A: cut, B: behind})) == [[2], [1]]


def test_a_configuration_is_confirmed_once_by_its_best_trial() -> None:
    found = [trial(0, 0.5, quality=0.1), trial(1, 0.6, quality=0.1), trial(2, 0.55, quality=0.2)]
    chosen = candidates(noisy(confirm={"top": 2}), ["max"], {"{}": found})["{}"]
    assert [one.number for one in chosen] == [1, 2]


def test_with_bounds_those_that_keep_them_are_confirmed_before_the_ends_of_the_front() -> None:
    places = [(0.9, 9.0), (0.8, 1.4), (0.7, 1.3), (0.6, 1.2), (0.1, 0.1)]
    found = [trial(number, *values) for number, values in enumerate(places)]
    study = noisy(objective=["val_accuracy", "val_cost"], confirm={"top": 2, "bounds": {"val_cost": 1.5}})
    assert [one.number for one in candidates(study, ["max", "min"], {"{}": found})["{}"]] == [1, 2]


def test_of_two_objectives_the_whole_front_is_confirmed_or_its_loneliest_members() -> None:
    """Maximise the first, minimise the second; 3 is dominated by 1."""
    places = [(0.9, 9.0), (0.8, 2.0), (0.3, 1.0), (0.7, 3.0), (0.78, 1.9)]
    found = [trial(number, *values) for number, values in enumerate(places)]
    study = noisy(objective=["val_accuracy", "val_cost"], confirm={})
    chosen = candidates(study, ["max", "min"], {"{}": found})["{}"]
    assert sorted(one.number for one in chosen) == [0, 1, 2, 4]
    few = noisy(objective=["val_accuracy", "val_cost"], confirm={"top": 3})
    assert {one.number for one in candidates(few, ["max", "min"], {"{}": found})["{}"]} >= {0, 2}


def test_crowding_distance_by_hand() -> None:
    """Of 1: (3 - 0) / 4 + (9 - 1) / 9; of 2: (4 - 1) / 4 + (3 - 0) / 9; the ends are first."""
    places = [(0.0, 9.0), (1.0, 3.0), (3.0, 1.0), (4.0, 0.0)]
    front = [trial(number, *values) for number, values in enumerate(places)]
    assert [one.number for one in by_crowding(front, ["min", "min"])] == [0, 3, 1, 2]


def test_fresh_seeds_are_the_same_for_all_differ_from_each_other_and_from_every_trial_s() -> None:
    fresh = [fresh_seed(0, index) for index in range(20)]
    assert len({*fresh, *(trial_seed(0, number) for number in range(1000))}) == 1020
    assert fresh != [fresh_seed(1, index) for index in range(20)]


# Who is chosen -------------------------------------------------------------------------------------------------------


def test_the_choice_is_by_the_mean_over_fresh_seeds_and_neither_by_the_search_nor_by_the_luckiest() -> None:
    one, other = candidate(0, (0.99,), (0.1,), (0.1,)), candidate(1, (0.5,), (0.5,), (0.5,))
    assert choice(noisy(), ["max"], [one, other]) is other
    assert choice(noisy(), ["min"], [one, other]) is one


def test_nobody_is_chosen_before_all_runs_are_over() -> None:
    whole, half = candidate(0, (0.5,), (0.5,), (0.5,)), candidate(1, (0.1,), (0.1,), seeds=3)
    assert choice(noisy(), ["max"], [whole, half]) is None
    running = Confirmed(trial(1, 0.5), [Run(trial(1, state="RUNNING"), {})] * 3, 3)
    assert choice(noisy(), ["max"], [whole, running]) is None


def test_who_failed_on_a_fresh_seed_cannot_be_chosen() -> None:
    well, failed = candidate(0, (0.1,), (0.1,)), candidate(1, (0.9,), (0.9,), state="FAIL")
    assert choice(noisy(), ["max"], [well, failed]) is well
    assert choice(noisy(), ["max"], [failed]) is None


def test_bounds_leave_the_first_objective_to_choose_among_those_that_keep_them() -> None:
    study = noisy(objective=["val_accuracy", "val_cost"], confirm={"bounds": {"val_cost": 2.0}})
    dear, cheap, worse = (
        candidate(number, *[values] * 2) for number, values in enumerate([(0.9, 3.0), (0.7, 2.0), (0.6, 1.0)])
    )
    assert choice(study, ["max", "min"], [dear, cheap, worse]) is cheap
    assert choice(study, ["max", "min"], [dear]) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"confirm": {"bounds": {"val_accuracy": 0.5}}},
        {"objective": ["val_accuracy", "val_cost"], "confirm": {"bounds": {"val_speed": 1.0}}},
    ],
)
def test_a_bound_on_a_metric_that_is_no_objective_or_the_only_one_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"confirm\.bounds\.val_"):
        noisy(**changes)


# On Ray --------------------------------------------------------------------------------------------------------------


CURSED = 17  # a study's seed by whose draws the luckiest of 8 trials is one of the worse configuration


@pytest.fixture(scope="module")
def cursed(tmp_path_factory: pytest.TempPathFactory, ray_here: str) -> Path:
    """Two cells. In the first the worse configuration, .55 against .6, has the luckiest trial; mirrored."""
    home = tmp_path_factory.mktemp("cursed")
    study = noisy(
        seed=CURSED, compare={"bonus": [0.0, 0.05]}, search={"quality": [0.55, 0.6]}, fixed={"on_test": "opposite"},
        confirm={"top": 2, "seeds": 3},
    )  # fmt: skip
    run(study, home, mirror=False)
    Mirror(Writer.at(home), "noisy", home).sync()
    return home


def of_table(home: Path, name: str = "noisy") -> list[dict[str, str]]:
    ledger = Writer.at(home)
    table = confirmed.table(ledger, ledger.study(name))
    assert table is not None
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def words(home: Path, name: str = "noisy") -> list[str]:
    ledger = Writer.at(home)
    return confirmed.lines(ledger, ledger.study(name))


def fresh_luck() -> float:
    return statistics.fmean(luck(fresh_seed(CURSED, index), 0.1) for index in range(3))


def test_a_planted_winner_s_curse_is_found_and_reported(cursed: Path) -> None:
    """The search's best promised what its luck gave; fresh seeds say what it is worth, and that another is better."""
    ledger = Writer.at(cursed)
    study = ledger.study("noisy")
    best = max(ledger.trials(study, study.cells[0]), key=lambda one: one.values or (0.0,))
    assert best.params == {"quality": 0.55}
    promised, reached = 0.55 + luck(trial_seed(CURSED, best.number), 0.1), 0.55 + fresh_luck()
    assert promised - reached > 0.05
    first, other = of_table(cursed)[:2]
    assert first["trial"] == str(best.number)
    assert float(first["search"]) == pytest.approx(promised, abs=1e-3)
    assert float(first["fresh seeds, ci95_seeds"].split()[0]) == pytest.approx(reached, abs=1e-3)
    assert float(first["optimism"]) == pytest.approx(promised - reached, abs=2e-3)
    assert (first["state"], other["state"]) == ("", "chosen")
    assert f"bonus=0.0: confirmed: trial {other['trial']}, val_accuracy {0.6 + fresh_luck():.4g}" in words(cursed)[0]


def test_the_optimism_of_a_loss_is_positive_where_it_rose_on_fresh_seeds() -> None:
    assert confirm.optimism("min", promised=0.2, reached=0.5) == pytest.approx(0.3)
    assert confirm.optimism("max", promised=0.2, reached=0.5) == pytest.approx(-0.3)


def test_the_gap_from_validation_to_test_stands_beside_it_with_both_intervals(cursed: Path) -> None:
    """On test each reaches 1 - quality: three equal seeds; two tasks, .1 above and below, 1.96 s / sqrt(2) = .196."""
    for row, bonus in zip(of_table(cursed), (0.0, 0.0, 0.05, 0.05), strict=True):
        quality = 0.6 if row["state"] == "chosen" else 0.55
        assert row["test, ci95_seeds"] == f"{1 - quality:.4g} ±0 (n 3)"
        assert row["ci95_tasks"] == "±0.2 (n 2)"
        gap = quality + bonus + fresh_luck() - (1 - quality)
        assert float(row["val - test"]) == pytest.approx(gap, abs=2e-3)


def test_of_one_search_each_the_better_choice_is_picked_and_nothing_is_claimed_of_the_cells(cursed: Path) -> None:
    """The seeds' luck is the same in both: by their seeds, the choices would differ by .05 without width."""
    ledger = Writer.at(cursed)
    (said,) = answer.lines(ledger, ledger.study("noisy"))[len(words(cursed)) :]
    assert said.startswith("One search each, so whether the cells differ is not known. Validation picks bonus=0.05: ")


def test_all_candidates_of_all_cells_share_the_fresh_seeds(cursed: Path) -> None:
    found = confirmations(cursed)
    assert len(found) == 2 * 2 * 3
    for key, _, _, _, seed, *_ in found:
        assert seed == fresh_seed(CURSED, int(key.rpartition(" ")[2]))


def test_best_is_the_confirmed_choice_and_says_so(cursed: Path) -> None:
    ledger = Writer.at(cursed)
    study = ledger.study("noisy")
    text = tables.best_toml(ledger, study)
    chosen = of_table(cursed)[1]
    assert f"trial {chosen['trial']}, " in text.splitlines()[0]
    assert text.count("quality = 0.6") == 2
    assert text.count("confirmed on 3 fresh seeds: mean val_accuracy") == 2
    listed = tables.studies(ledger)
    assert float(listed.rows[0][listed.columns.index("confirmed")]) == pytest.approx(0.65 + fresh_luck(), abs=1e-3)


def test_show_prints_every_candidate_with_its_intervals(
    cursed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(cursed))
    monkeypatch.setattr(sys, "argv", ["cs330ray", "show", "noisy"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "noisy: confirmation on fresh seeds; chosen by the mean val_accuracy over them" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("bonus=") and "(n 3)" in line]
    assert [row[-1] for row in rows[:4]].count("chosen") == 2
    assert "Validation picks bonus=0.05: " in printed


def test_a_trial_is_shown_with_its_fresh_runs_and_their_checkpoints(cursed: Path) -> None:
    ledger = Writer.at(cursed)
    study = ledger.study("noisy")
    number = int(of_table(cursed)[0]["trial"])
    one = ledger.trials(study, study.cells[0])[number]
    sheet = tables.trial(ledger, study, one)[-1]
    assert sheet.title == "confirmation"
    assert [row[1] for row in sheet.rows] == [str(fresh_seed(CURSED, index)) for index in range(3)]
    assert all(Path(row[-1]).is_dir() for row in sheet.rows)


def test_who_is_no_longer_among_the_best_of_a_grown_study_is_shown_and_not_chosen(home: Path) -> None:
    """Trials of one seed each: more of them find a luckier one."""
    quality: dict[str, Any] = {"search": {"quality": {"low": 0.59, "high": 0.6}}}
    few = noisy(**quality, seed=2, budget={"trials": 2, "steps": 1}, confirm={"top": 1, "seeds": 2})
    many = noisy(**quality, seed=2, budget={"trials": 8, "steps": 1}, confirm={"top": 1, "seeds": 2})
    in_process.run(few, home, mirror=False)
    in_process.run(many, home, mirror=False)
    ledger = Writer.at(home)
    found = confirm.confirmed(ledger, many)["{}"]
    assert [one.current for one in found] == [True, False]
    assert choices(standings(ledger, many))["{}"] == found[0]
    table = confirmed.table(ledger, many)
    assert table is not None
    assert [row[-1] for row in table.rows] == ["chosen", "not among the candidates now"]


def test_mlflow_follows_the_choice_of_a_study_that_grows(home: Path) -> None:
    few = noisy(search={"quality": [0.55, 0.6]}, budget={"trials": 1, "steps": 1}, confirm={"top": 1, "seeds": 1})
    in_process.run(few, home, mirror=False)
    ledger = Writer.at(home)
    Mirror(ledger, "noisy", home).sync()
    grown = few.model_copy(update={"budget": Budget(trials=8, steps=1)})
    ledger.open(grown, {"tests.noisy": noisy_trainable.METRICS})
    Mirror(ledger, "noisy", home).sync()
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (cell,) = client.search_runs(["1"], "tags.`cs330ray.kind` = 'cell'")
    assert (cell.info.status, cell.data.tags["cs330ray.confirmed_trial"]) == ("RUNNING", "0")
    in_process.run(grown, home, mirror=False)
    Mirror(ledger, "noisy", home).sync()
    (cell,) = client.search_runs(["1"], "tags.`cs330ray.kind` = 'cell'")
    chosen = choices(standings(ledger, grown))["{}"]
    assert (cell.info.status, cell.data.tags["cs330ray.confirmed_trial"]) == ("FINISHED", str(chosen.searched.number))
    assert Mirror(ledger, "noisy", home).sync() == 0


def test_mlflow_shows_confirmations_under_their_trial_with_test_metrics_and_a_second_sync_changes_nothing(
    cursed: Path,
) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{cursed}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("noisy").experiment_id], max_results=1000)
    by_id = {one.info.run_id: one for one in found}
    fresh = [one for one in found if "cs330ray.fresh_seed" in one.data.tags]
    assert len(fresh) == 12
    assert len(found) == 1 + 2 + 16 + 12
    for one in fresh:
        parent = by_id[one.data.tags["mlflow.parentRunId"]]
        assert f"trial {one.data.tags['cs330ray.confirms']} · " in parent.info.run_name
        assert parent.data.tags["cs330ray.cell"] == one.data.tags["cs330ray.cell"].split(" fresh ")[0]
        assert one.data.metrics["test_accuracy"] == pytest.approx(1 - float(one.data.params["quality"]))
        assert one.info.status == "FINISHED"
        assert float(parent.data.tags["cs330ray.confirmed_val_accuracy"]) > 0
    cells = [one for one in found if one.data.tags["cs330ray.kind"] == "cell"]
    assert all("cs330ray.confirmed_trial" in one.data.tags for one in cells)
    assert Mirror(Writer.at(cursed), "noisy", cursed).sync() == 0


def test_a_trainable_whose_test_split_raises_when_read_goes_through_a_whole_search_unharmed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And through confirmation too, on validation; what failed is the test, and it is said so."""
    in_process.run(noisy(fixed={"on_test": "raises"}), home, mirror=False)
    assert {state for _, _, state, *_ in whole(home, "noisy")} == {"COMPLETE"}
    assert [(state, test) for _, _, state, _, _, _, _, test, _ in confirmations(home)] == [("COMPLETE", {})] * 3
    (row,) = of_table(home)
    assert row["test, ci95_seeds"] == "failed: raised: RuntimeError: the test split was read"
    assert row["state"] == "chosen"
    assert "test_accuracy is not known" in words(home)[0]
    monkeypatch.setenv("CS330RAY_HOME", str(home))
    monkeypatch.setattr(sys, "argv", ["cs330ray", "show", "noisy", row["trial"], "--log"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert shown.count("Traceback") == 3, shown


@pytest.mark.parametrize(
    ("on_test", "tested", "tasks"),
    [
        ("nan", "failed: raised: ValueError: test_accuracy must be finite, but got nan", ""),
        ("numpy", "0.5 ±0 (n 3)", "±0.2 (n 2)"),
        ("uneven", "0.5 ±0 (n 3)", "the seeds scored other items"),
    ],
)
def test_whatever_a_test_returns_the_study_ends_and_is_shown(home: Path, on_test: str, tested: str, tasks: str) -> None:
    in_process.run(noisy(budget={"trials": 1, "steps": 1}, fixed={"on_test": on_test}), home, mirror=False)
    (row,) = of_table(home)
    assert (row["test, ci95_seeds"], row["ci95_tasks"], row["state"]) == (tested, tasks, "chosen")


@pytest.mark.slow
def test_a_worker_that_dies_in_the_test_of_a_trial_that_ended_early_tests_the_same_weights(
    home: Path, ray_here: str
) -> None:
    study = noisy(budget={"trials": 1, "steps": 9}, fixed={"on_test": "kills", "stops_at": 4}, confirm={"seeds": 1})
    run(study, home, mirror=False)
    ((_, _, state, _, _, _, rows, test, _),) = confirmations(home)
    assert (state, [step for step, _ in rows], test["test_accuracy"]) == ("COMPLETE", [1, 2, 3, 4], 0.5)
    ledger = Writer.at(home)
    cell = study.cells[0].under(0)
    assert [on["resumed_from_step"] for on in ledger.attempts(study, cell, 0)] == [None, 4]


def test_one_fresh_seed_has_no_interval_anywhere(home: Path) -> None:
    study = noisy(compare={"bonus": [0.0, 0.1]}, budget={"trials": 1, "steps": 1}, confirm={"top": 1, "seeds": 1})
    in_process.run(study, home, mirror=False)
    assert all("±" not in line for line in words(home))
    assert all("(n 1, no interval)" in line for line in words(home) if "between" not in line)
    ledger = Writer.at(home)
    assert "confirmed on 1 fresh seed:" in tables.best_toml(ledger, study)


def test_confirmation_is_neither_pruned_nor_seen_by_the_sampler_of_a_study_that_grows(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "sampler": {"kind": "tpe", "startup": 2}, "search": {"quality": {"low": 0.1, "high": 0.9}},
        "prune": {"kind": "asha", "min_steps": 1, "reduction": 2}, "resources": {"slots": 1},
    }  # fmt: skip
    grown = {"budget": {"trials": 8, "steps": 4}}
    in_process.run(
        noisy(**raw, confirm={"top": 2, "seeds": 2}, budget={"trials": 4, "steps": 4}), tmp_path / "a", mirror=False
    )
    assert {state for _, _, state, *_ in confirmations(tmp_path / "a")} == {"COMPLETE"}
    assert len(confirmations(tmp_path / "a")) == 4
    in_process.run(noisy(**raw, confirm={"top": 2, "seeds": 2}, **grown), tmp_path / "a", mirror=False)
    in_process.run(noisy(**raw, confirm=None, **grown), tmp_path / "b", mirror=False)
    assert whole(tmp_path / "a", "noisy") == whole(tmp_path / "b", "noisy")


def test_a_test_that_raises_for_the_best_on_validation_alone_does_not_change_the_choice(home: Path) -> None:
    study = noisy(
        fixed={"noise": 0.0, "raises_below": 0.58}, search={"quality": [0.55, 0.6]}, objective=["val_accuracy"],
        confirm={"top": 2, "seeds": 1},
    )  # fmt: skip
    in_process.run(study, home, mirror=False)
    by_quality = {row["state"]: row["test, ci95_seeds"] for row in of_table(home)}
    assert by_quality["chosen"].startswith("0.6")
    assert by_quality[""].startswith("failed: raised")


def test_it_is_said_why_nobody_is_chosen(home: Path) -> None:
    study = noisy(
        objective=["val_accuracy", "val_cost"], fixed={"cost": 2.0}, budget={"trials": 1, "steps": 1},
        confirm={"seeds": 1, "bounds": {"val_cost": 1.0}},
    )  # fmt: skip
    in_process.run(study, home, mirror=False)
    why = "no candidate keeps confirm.bounds (trial 0 breaks val_cost <= 1); see `cs330ray show`"
    assert words(home) == [f"not confirmed: {why}"]
    assert {row["state"] for row in of_table(home)} == {"breaks val_cost <= 1"}
    assert f"# the best of the search; not confirmed: {why}" in tables.best_toml(Writer.at(home), study)


def test_test_chooses_nothing(home: Path) -> None:
    """On test the order is the opposite; the choice is by validation."""
    study = noisy(
        fixed={"noise": 0.0, "on_test": "opposite"}, search={"quality": {"low": 0.1, "high": 0.9}},
        confirm={"top": 8, "seeds": 2},
    )  # fmt: skip
    in_process.run(study, home, mirror=False)
    ledger = Writer.at(home)
    chosen = choices(standings(ledger, study))["{}"]
    assert chosen.searched.values == max(one.values for one in ledger.trials(study, study.cells[0]) if one.values)
    assert chosen.runs[0].test["test_accuracy"] == min(one[7]["test_accuracy"] for one in confirmations(home))


def test_a_diverged_fresh_seed_is_recorded_and_takes_its_candidate_out(home: Path) -> None:
    in_process.run(noisy(fixed={"diverges_on": fresh_seed(0, 1)}), home, mirror=False)
    assert [state for _, _, state, *_ in confirmations(home)] == ["COMPLETE", "FAIL", "COMPLETE"]
    ledger = Writer.at(home)
    assert choices(standings(ledger, ledger.study("noisy"))) == {}


def test_confirmation_may_be_added_and_grown_later_and_runs_what_is_missing_alone(home: Path) -> None:
    two: dict[str, Any] = {"search": {"quality": [0.55, 0.6]}}
    in_process.run(noisy(**two, confirm=None), home, mirror=False)
    assert confirmations(home) == []
    in_process.run(noisy(**two, confirm={"top": 1, "seeds": 2}), home, mirror=False)
    first = confirmations(home)
    assert len(first) == 2
    in_process.run(noisy(**two, confirm={"top": 2, "seeds": 3}), home, mirror=False)
    after = confirmations(home)
    assert len(after) == 6
    assert [one for one in after if one in first] == first
    in_process.run(noisy(**two, confirm={"top": 2, "seeds": 3}), home, mirror=False)
    assert confirmations(home) == after


def test_how_confirmation_chooses_may_not_change_once_it_is_there(home: Path) -> None:
    two = {"objective": ["val_accuracy", "val_cost"], "search": {"cost": {"low": 0.0, "high": 1.0}}}
    in_process.run(noisy(**two, confirm={"seeds": 2, "bounds": {"val_cost": 0.5}}), home, mirror=False)
    before = whole(home, "noisy"), confirmations(home)
    with pytest.raises(SpecError, match=r"confirm\.bounds"):
        in_process.run(noisy(**two, confirm={"seeds": 2, "bounds": {"val_cost": 0.9}}), home, mirror=False)
    assert (whole(home, "noisy"), confirmations(home)) == before


def test_time_ends_the_search_and_confirmation_comes_after_it(home: Path) -> None:
    study = noisy(budget={"trials": 1000, "steps": 2, "time": 0.5}, confirm={"top": 1, "seeds": 2})
    in_process.run(study, home, mirror=False)
    assert 0 < len(whole(home, "noisy")) < 1000
    assert [state for _, _, state, *_ in confirmations(home)] == ["COMPLETE", "COMPLETE"]


def test_deleting_a_study_deletes_its_confirmations(cursed: Path, tmp_path: Path) -> None:
    import shutil

    home = Path(shutil.copytree(cursed, tmp_path / "runs"))
    ledger = Writer.at(home)
    study = ledger.study("noisy")
    ledger.delete("noisy")
    assert all(ledger.trials(study, cell) == [] for cell in fresh_cells(study))
    assert all(ledger.test_metrics(study, cell, n) == {} for cell in fresh_cells(study) for n in range(8))


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL])
def test_a_driver_that_ends_in_the_middle_of_confirmation_goes_on_as_if_it_had_not(
    home: Path, tmp_path: Path, ray_here: str, sign: signal.Signals
) -> None:
    study = noisy(
        budget={"trials": 2, "steps": 30}, fixed={"sleep_s": 0.05}, resources={"slots": 1, "checkpoint": 0.3},
        search={"quality": {"low": 0.1, "high": 0.9}},
        confirm={"top": 2, "seeds": 2},
    )  # fmt: skip
    run(study, tmp_path / "undisturbed", mirror=False)
    file = toml(study, tmp_path / "noisy.toml")
    environment = {**os.environ, "RAY_ADDRESS": ray_here, "CS330RAY_HOME": str(home)}
    driver = subprocess.Popen(
        [sys.executable, "-m", "cs330ray", "run", str(file)], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(home, rows=5)
    finally:
        driver.send_signal(sign)
        driver.wait(60)
    cut = confirmations(home)
    assert any(state == "RUNNING" for _, _, state, *_ in cut)
    run(study, home, mirror=False)
    assert whole(home, "noisy") == whole(tmp_path / "undisturbed", "noisy")
    assert confirmations(home) == confirmations(tmp_path / "undisturbed")


def _wait_for(home: Path, rows: int) -> None:
    """Until a confirmation that runs has so many rows; looks often, so that it does not end meanwhile."""
    running = """
        SELECT 1 FROM cs330ray_rows AS row LEFT JOIN cs330ray_ends AS done USING (study, cell, trial)
        WHERE row.cell LIKE '%fresh%' AND done.state IS NULL GROUP BY row.cell, row.trial HAVING count(*) >= ?
    """
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(sqlite3.OperationalError),  # not there yet
            contextlib.closing(sqlite3.connect(f"file:{home}/ledger.db?mode=ro", uri=True)) as ledger,
        ):
            if ledger.execute(running, [rows]).fetchone():
                return
        time.sleep(0.05)
    raise AssertionError("no confirmation got so far")


def test_two_objectives_end_to_end(home: Path) -> None:
    """The front is confirmed, tagged, shown, and `best --by` and the choice within bounds agree with it."""
    study = noisy(
        objective=["val_accuracy", "val_cost"], sampler={"kind": "nsga2", "population": 4}, fixed={"noise": 0.0},
        search={"quality": {"low": 0.1, "high": 0.9}, "cost": {"low": 0.0, "high": 2.0}},
        budget={"trials": 12, "steps": 1}, confirm={"seeds": 2, "bounds": {"val_cost": 1.5}},
    )  # fmt: skip
    in_process.run(study, home, mirror=False)
    ledger = Writer.at(home)
    Mirror(ledger, "noisy", home).sync()
    trials = ledger.trials(study, study.cells[0])
    front = {
        one.number
        for one in trials
        if not any(
            other.values != one.values and other.values[0] >= one.values[0] and other.values[1] <= one.values[1]
            for other in trials
        )
    }
    distinct = {json.dumps(dict(one.params)): one.number for one in reversed(trials) if one.number in front}
    assert {number for _, number, *_ in confirmations(home)} == set(distinct.values())
    assert {row[1] for row in tables.trials(ledger, study, front=True).rows} == {str(number) for number in front}
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    tagged = client.search_runs(["1"], "tags.`cs330ray.front` = 'true' and tags.`cs330ray.kind` = 'trial'")
    assert {int(one.data.tags["cs330ray.trial"]) for one in tagged} == front
    cheapest = min(trials, key=lambda one: one.values[1])
    assert f"trial {cheapest.number}," in tables.best_toml(ledger, study, "val_cost")
    kept = [one for one in trials if one.number in front and one.values[1] <= 1.5]
    assert choices(standings(ledger, study))["{}"].searched.number == max(kept, key=lambda one: one.values[0]).number
    assert confirm.pending(ledger, study, 0) == []
