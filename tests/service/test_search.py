"""Asking: a pure function of study, cell and history."""

import math
from collections import Counter
from itertools import pairwise
from statistics import fmean

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from cs330ray.service.ask import as_seen_by_sampler, ask
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study, trial_seed
from cs330ray.spec.tables import Choice, Range

SPACE = {
    "inner_lr": {"low": 1e-3, "high": 1.0, "log": True},
    "momentum": {"low": -1.0, "high": 1.0},
    "dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
    "ways": {"low": 2, "high": 7},
    "hidden": {"low": 1, "high": 100, "log": True},
    "body": ["course", "pooled"],
    "first_order": [True, False],
    "filters": {"low": 16, "high": 64, "step": 16, "when": {"body": "pooled"}},
}
UNCONDITIONAL = {name: domain for name, domain in SPACE.items() if name != "filters"}
KINDS = ["random", "tpe", "qmc", "nsga2"]


def study(kind="tpe", space=None, **changes) -> Study:
    raw = {
        "name": "asked",
        "trainable": "toy",
        "objective": ["val_loss", "val_speed"] if kind == "nsga2" else ["val_loss"],
        "search": (UNCONDITIONAL if kind == "qmc" else SPACE) if space is None else space,
        "sampler": {"kind": kind, "startup": 4, "population": 4},
        "budget": {"trials": 16, "steps": 10},
    }
    return parse(raw | changes, "here")


def goals(asked: Study) -> list[str]:
    return ["min", "max"][: len(asked.objective)]


def ended(trial: FrozenTrial, values=None, state=TrialState.COMPLETE) -> FrozenTrial:
    return create_trial(
        state=state,
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


def worth(trial: FrozenTrial, objectives: int) -> list[float]:
    """Small steps are good, and many classes are fast: a truth for the samplers to find."""
    return [abs(math.log10(trial.params["inner_lr"]) + 2), float(trial.params["ways"])][:objectives]


def asked_in_turn(asked: Study, trials: int, cell: Cell | None = None) -> list[FrozenTrial]:
    """The history of a cell whose trials all complete, one after another."""
    history: list[FrozenTrial] = []
    for _ in range(trials):
        trial = ask(asked, cell or asked.cells[0], goals(asked), history)
        history.append(ended(trial, worth(trial, len(asked.objective))))
    return history


def params(history):
    return [trial.params for trial in history]


def points(space, trials, **changes) -> list[dict[str, object]]:
    """The first points of a cell's scrambled Sobol sequence."""
    asked = study("qmc", space, **changes)
    blank = create_trial(value=0.0)
    return [ask(asked, asked.cells[0], ["min"], [blank] * number).params for number in range(trials)]


# The same


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_asks_the_same_twice(kind):
    assert params(asked_in_turn(study(kind), 10)) == params(asked_in_turn(study(kind), 10))


@pytest.mark.parametrize("kind", KINDS)
def test_a_history_read_back_from_a_database_is_asked_the_same(kind, tmp_path):
    asked = study(kind)
    history = asked_in_turn(asked, 9)
    directions = ["minimize", "maximize"][: len(asked.objective)]
    stored = optuna.create_study(storage=f"sqlite:///{tmp_path}/ledger.db", directions=directions)
    stored.add_trials(history)
    again = optuna.load_study(study_name=stored.study_name, storage=f"sqlite:///{tmp_path}/ledger.db").get_trials()
    assert params([ask(asked, asked.cells[0], goals(asked), again)]) == params(
        [ask(asked, asked.cells[0], goals(asked), history)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_file_changes_no_ask(kind):
    straight, turned = study(kind), study(kind, {name: SPACE[name] for name in reversed(UNCONDITIONAL)})
    if kind != "qmc":
        turned = study(kind, {name: SPACE[name] for name in [*reversed(UNCONDITIONAL), "filters"]})
    assert straight.digest == turned.digest
    assert params(asked_in_turn(straight, 10)) == params(asked_in_turn(turned, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_an_ask_leaves_the_history_as_it_was(kind):
    asked = study(kind)
    history = asked_in_turn(asked, 6)
    before = [(trial.state, dict(trial.params), dict(trial.system_attrs), trial.values) for trial in history]
    ask(asked, asked.cells[0], goals(asked), history)
    assert [(trial.state, trial.params, trial.system_attrs, trial.values) for trial in history] == before


# Other


@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers_other_cells_and_other_seeds_are_asked_otherwise(kind):
    asked = study(kind, compare={"shots": [1, 5]})
    one, other = (asked_in_turn(asked, 4, cell) for cell in asked.cells)
    reseeded = asked_in_turn(study(kind, compare={"shots": [1, 5]}, seed=1), 4, asked.cells[0])
    drawn = [trial.params["momentum"] for trial in [*one, *other, *reseeded]]
    assert len(set(drawn)) == 12


def test_a_trials_seed_hangs_on_the_studys_seed_and_its_number_alone():
    seeds = {trial_seed(study_seed, number) for study_seed in range(10) for number in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)  # what NumPy, torch and Optuna all take
    assert trial_seed(3, 7) == trial_seed(3, 7)


def test_numbers_and_seeds_that_read_alike_together_are_told_apart():
    assert trial_seed(1, 11) != trial_seed(11, 1)


# Inside


def inside(domain, value) -> bool:
    if isinstance(domain, Choice):
        return any(value == choice and type(value) is type(choice) for choice in domain.choices)
    assert isinstance(domain, Range)
    steps = 0 if domain.step is None else (value - domain.low) / domain.step
    within = domain.low <= value <= domain.high and abs(steps - round(steps)) < 1e-6
    return within and isinstance(value, int) is domain.whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_all_that_is_asked_lies_inside_its_domain(kind, seed):
    asked = study(kind, seed=seed)
    for trial in asked_in_turn(asked, 12):
        assert all(inside(asked.search[name], value) for name, value in trial.params.items())


@pytest.mark.parametrize("kind", ["random", "tpe", "nsga2"])
def test_a_conditional_parameter_is_asked_exactly_where_its_condition_holds(kind):
    history = asked_in_turn(study(kind), 16)
    assert all(("filters" in trial.params) is (trial.params["body"] == "pooled") for trial in history)
    assert {trial.params["body"] for trial in history} == {"course", "pooled"}


@pytest.mark.parametrize(("body", "searched"), [("pooled", True), ("course", False)])
def test_a_condition_may_hang_on_what_is_fixed(body, searched):
    space = {name: domain for name, domain in SPACE.items() if name != "body"}
    history = asked_in_turn(study("tpe", space, fixed={"body": body}), 5)
    assert all(("filters" in trial.params) is searched for trial in history)


def test_an_asked_trial_knows_its_distributions():
    asked = study("tpe")
    trial = ask(asked, asked.cells[0], ["min"], [])
    assert trial.distributions.keys() == trial.params.keys()
    assert trial.state == TrialState.RUNNING


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_space_is_asked_for_nothing(kind):
    asked = study(kind, {})
    assert ask(asked, asked.cells[0], goals(asked), []).params == {}


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_a_sampler_that_learns_comes_nearer_than_chance(kind):
    """The mean distance to -2 of what is uniform over [-3, 0] is (1/2 + 2) / 3: two triangles of area 1/2 and 2."""
    late = [trial.values[0] for seed in range(4) for trial in asked_in_turn(study(kind, seed=seed), 24)[12:]]
    assert fmean(late) < 5 / 6


# What a sampler sees of failures


def seen(history, *wanted, lost=()):
    return [(trial.state, trial.values) for trial in as_seen_by_sampler(history, wanted, lost)]


def failed(number):
    trial = create_trial(state=TrialState.FAIL)
    trial.number = number
    return trial


@pytest.mark.parametrize(("goal", "worst"), [("min", 3.0), ("max", 1.0)])
def test_a_failed_trial_is_seen_at_the_cells_worst_value(goal, worst):
    history = [create_trial(value=1.0), failed(1), create_trial(value=3.0)]
    assert seen(history, goal)[1] == (TrialState.COMPLETE, [worst])


def test_the_worst_is_taken_objective_by_objective():
    history = [create_trial(values=[1.0, 5.0]), create_trial(values=[2.0, 7.0]), failed(2)]
    assert seen(history, "min", "max")[2] == (TrialState.COMPLETE, [2.0, 5.0])


def test_a_lost_trial_says_nothing():
    history = [create_trial(value=1.0), failed(1), failed(2)]
    assert seen(history, "min", lost={1}) == [
        (TrialState.COMPLETE, [1.0]),
        (TrialState.FAIL, None),
        (TrialState.COMPLETE, [1.0]),
    ]


def test_before_any_trial_is_complete_there_is_no_worst():
    assert seen([failed(0)], "min") == [(TrialState.FAIL, None)]


def test_what_is_complete_pruned_or_running_is_seen_as_it_is():
    others = [
        create_trial(value=1.0),
        create_trial(state=TrialState.PRUNED, intermediate_values={3: 0.5}),
        create_trial(state=TrialState.RUNNING),
    ]
    assert as_seen_by_sampler([*others, failed(3)], ["min"], set())[:3] == others


def history_with(last):
    """Eight complete trials, and one that ended as `last` says."""
    history = asked_in_turn(study(), 9)
    return [*history[:8], last(history[8], max(trial.value for trial in history[:8]))]


def next_of(history, lost=()):
    asked = study()
    return ask(asked, asked.cells[0], ["min"], history, lost).params


def test_a_failure_teaches_what_the_worst_value_teaches():
    diverged = history_with(lambda trial, worst: ended(trial, None, TrialState.FAIL))
    bad = history_with(lambda trial, worst: ended(trial, [worst]))
    assert next_of(diverged) == next_of(bad)


def test_a_loss_of_a_worker_teaches_nothing():
    here = history_with(lambda trial, worst: ended(trial, None, TrialState.FAIL))
    elsewhere = history_with(lambda trial, worst: ended(asked_in_turn(study(seed=9), 1)[0], None, TrialState.FAIL))
    here[8].number = elsewhere[8].number = 8
    assert next_of(here, lost={8}) == next_of(elsewhere, lost={8})


# qmc: a scrambled Sobol sequence is balanced, every 2^k points of it


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize(
    ("domain", "quantile"),
    [
        ({"low": -1.0, "high": 1.0}, lambda value: (value + 1) / 2),
        ({"low": 1.0, "high": 16.0, "log": True}, lambda value: math.log2(value) / 4),
    ],
)
def test_one_point_lies_in_each_dyadic_interval(count, domain, quantile):
    values = [point["x"] for point in points({"x": domain}, count)]
    assert sorted(int(quantile(value) * count) for value in values) == list(range(count))


def test_one_point_lies_in_each_box_of_two_dimensions():
    side = {"low": 0.0, "high": 1.0}
    boxes = {(int(point["x"] * 4), int(point["y"] * 4)) for point in points({"x": side, "y": side}, 16)}
    assert boxes == {(i, j) for i in range(4) for j in range(4)}


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        ({"low": 1, "high": 8}, range(1, 9)),
        ({"low": 16, "high": 128, "step": 16}, range(16, 129, 16)),
        (["a", "b", "c", "d", True, False, 1.5, -7], ["a", "b", "c", "d", True, False, 1.5, -7]),
    ],
)
def test_each_of_eight_values_comes_once_in_eight_points(domain, values):
    drawn = [point["x"] for point in points({"x": domain}, 8)]
    assert Counter(map(repr, drawn)) == Counter(map(repr, values))


def test_each_of_four_steps_comes_twice_in_eight_points():
    drawn = [round(point["x"], 9) for point in points({"x": {"low": 0.0, "high": 0.3, "step": 0.1}}, 8)]
    assert Counter(drawn) == {0.0: 2, 0.1: 2, 0.2: 2, 0.3: 2}


def test_integers_on_a_log_scale_come_as_often_as_their_share_of_it():
    """Integer v owns [v - 1/2, v + 1/2] of [1/2, 8 + 1/2], on a log scale; balanced points miss by one at each end."""
    count = Counter(point["x"] for point in points({"x": {"low": 1, "high": 8, "log": True}}, 128))
    shares = {value: math.log((value + 0.5) / (value - 0.5)) / math.log(8.5 / 0.5) for value in range(1, 9)}
    assert all(abs(count[value] - 128 * share) <= 2 for value, share in shares.items())


def test_every_cell_and_every_seed_has_a_sequence_of_its_own():
    side = {"x": {"low": 0.0, "high": 1.0}}
    asked = study("qmc", side, compare={"shots": [1, 5]})
    one, other = (ask(asked, cell, ["min"], []).params["x"] for cell in asked.cells)
    assert len({one, other, points(side, 1, seed=1)[0]["x"]}) == 3


def test_no_point_comes_twice():
    values = sorted(point["x"] for point in points({"x": {"low": 0.0, "high": 1.0}}, 64))
    assert all(low < high for low, high in pairwise(values))
