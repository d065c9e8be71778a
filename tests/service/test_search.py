"""What a sampler sees of failures, and the points of its first draws: a pure function of study, cell and number."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from optuna.trial import TrialState, create_trial

from cs330ray.service.search.ask import ask
from cs330ray.service.search.samplers import as_seen_by_sampler
from cs330ray.spec.study import trial_seed
from tests.asked import asked_in_turn, ended, study


def points(space, trials, **changes) -> list[dict[str, object]]:
    """The first points of a scrambled Sobol sequence."""
    asked = study("qmc", space, **changes)
    blank = create_trial(value=0.0)
    return [ask(asked, asked.cells[0], ["min"], [blank] * number).params for number in range(trials)]


# Seeds


def test_a_trials_seed_hangs_on_the_studys_seed_and_its_number_alone():
    seeds = {trial_seed(study_seed, number) for study_seed in range(10) for number in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)  # what NumPy, torch and Optuna all take
    assert trial_seed(3, 7) == trial_seed(3, 7)


def test_numbers_and_seeds_that_read_alike_together_are_told_apart():
    assert trial_seed(1, 11) != trial_seed(11, 1)


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


@pytest.mark.parametrize("kind", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "random"])
def test_what_a_trial_reported_before_its_last_row_changes_no_ask(kind):
    """So Optuna need not be told of every row: samplers read the last one of a pruned trial, and no other."""
    asked, states = study(kind), [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]

    def history(told):
        found = []
        for number, trial in enumerate(asked_in_turn(asked, 12)):
            state = states[number % 4]
            rows = (5, 10) if state == TrialState.RUNNING else (5, 10, 15)  # one that runs has told of a rung
            made = create_trial(
                state=state, params=trial.params, distributions=trial.distributions, system_attrs=trial.system_attrs,
                values=[1 / (15 + number)] if state == TrialState.COMPLETE else None,
                intermediate_values={step: 1 / (step + number) for step in rows if step in told},
            )  # fmt: skip
            made.number = number
            found.append(made)
        return found

    all_rows, last_alone = (ask(asked, asked.cells[0], ["min"], history(told)).params for told in [(5, 10, 15), (15,)])
    assert all_rows == last_alone


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


def test_every_seed_has_a_sequence_of_its_own():
    side = {"x": {"low": 0.0, "high": 1.0}}
    assert points(side, 1)[0] != points(side, 1, seed=1)[0]


def test_no_point_comes_twice():
    values = sorted(point["x"] for point in points({"x": {"low": 0.0, "high": 1.0}}, 64))
    assert all(low < high for low, high in pairwise(values))
