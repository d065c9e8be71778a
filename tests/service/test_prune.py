"""The pruning rules, held against Optuna's own pruners on random histories."""

import math
import random

import optuna
import pytest
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from cs330ray.service.search.prune import asha_stops, last_rung, median_stops
from cs330ray.spec.tables import Prune

GOALS = {"min": 1.0, "max": -1.0}  # a loss is the objective times this sign
STEPS = 27
TRIALS = 14

# Rungs


@pytest.mark.parametrize(
    ("prune", "rungs"),
    [
        (Prune(kind="none", min_steps=10), []),
        (Prune(kind="median", min_steps=10), [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (Prune(kind="median", min_steps=40), [40, 80]),
        (Prune(kind="asha", min_steps=10, reduction=3), [10, 30, 90]),
        (Prune(kind="asha", min_steps=10, reduction=2), [10, 20, 40, 80]),
        (Prune(kind="asha", min_steps=7, reduction=4), [7, 28]),
        (Prune(kind="asha", min_steps=101), []),
    ],
)
def test_rungs_lie_at_multiples_of_min_steps_and_for_asha_at_its_powers(prune, rungs):
    assert [step for step in range(1, 101) if last_rung(prune, step) == step] == rungs
    assert [last_rung(prune, step) for step in range(1, 101)] == [
        max([rung for rung in rungs if rung <= step], default=0) for step in range(1, 101)
    ]


# By hand


@pytest.mark.parametrize(
    ("loss", "rivals", "reduction", "stops"),
    [
        (5.0, [], 3, False),  # the first of a rung
        (5.0, [4.0], 3, True),  # of two, one goes on
        (5.0, [6.0], 3, False),
        (5.0, [5.0], 3, False),  # an equal is as good
        (2.0, [1.0, 3.0, 4.0, 5.0, 6.0], 3, False),  # second of six: 6 // 3 go on
        (3.0, [1.0, 2.0, 4.0, 5.0, 6.0], 3, True),
        (3.0, [1.0, 2.0, 4.0, 5.0, 6.0], 2, False),
        (-0.9, [-0.8, -0.7], 3, False),  # an objective to maximise comes with its sign turned
        (math.inf, [1.0, 2.0], 3, True),
        (math.nan, [], 3, True),
        (2.0, [math.nan, 1.0, math.nan], 2, True),  # two numbers, one goes on
        (1.0, [math.nan, 2.0, math.nan], 2, False),
    ],
)
def test_asha_lets_the_best_of_each_reduction_go_on(loss, rivals, reduction, stops):
    assert asha_stops(loss, rivals, reduction) is stops


@pytest.mark.parametrize(
    ("best", "rivals", "startup", "stops"),
    [
        (9.0, [], 1, False),
        (9.0, [1.0, 2.0], 3, False),  # too few to judge by
        (9.0, [1.0, 2.0, 3.0], 3, True),
        (2.0, [1.0, 2.0, 3.0], 3, False),  # the median itself goes on
        (2.6, [1.0, 2.0, 3.0, 4.0], 4, True),  # the median is 2.5
        (2.4, [1.0, 2.0, 3.0, 4.0], 4, False),
        (-0.4, [-0.9, -0.5, -0.1], 3, True),
        (math.nan, [], 1, True),
        (9.0, [1.0, 2.0, math.nan], 3, False),
    ],
)
def test_the_median_rule_stops_what_never_was_as_good_as_half_of_the_others(best, rivals, startup, stops):
    assert median_stops(best, rivals, startup) is stops


# Against Optuna: the same curves, reported in the same order


def drawn_curves(seed: int) -> list[list[float]]:
    """A curve a trial, around a level of its own; in eighths, which make medians exact and ties frequent."""
    draw = random.Random(seed)
    levels = [draw.randrange(-16, 16) for _ in range(TRIALS)]
    return [[(level + draw.randrange(-4, 4)) / 8 for _ in range(STEPS)] for level in levels]


def decisions(seed, goal, pruner: BasePruner, ours):
    """Train all trials side by side, a random one a step at a time; what Optuna and `ours` say at each step."""
    draw = random.Random(seed + 1)
    study = optuna.create_study(direction={"min": "minimize", "max": "maximize"}[goal], pruner=pruner)
    curves, trials, done = drawn_curves(seed), [study.ask() for _ in range(TRIALS)], [0] * TRIALS
    live, complete, optunas, own = list(range(TRIALS)), set(), [], []
    while live:
        number = draw.choice(live[:4])  # four slots
        done[number] += 1
        step = done[number]
        trials[number].report(curves[number][step - 1], step)
        losses = [
            [GOALS[goal] * value for value in curve[:reached]] for curve, reached in zip(curves, done, strict=True)
        ]
        own.append((number, step, ours(number, step, losses, complete)))
        optunas.append((number, step, trials[number].should_prune()))
        if optunas[-1][-1] or step == STEPS:
            pruned = optunas[-1][-1]
            study.tell(trials[number], None if pruned else curves[number][-1], TrialState.PRUNED if pruned else None)
            live.remove(number)
            complete |= set() if pruned else {number}
    return own, optunas


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("goal", ["min", "max"])
@pytest.mark.parametrize(("min_steps", "reduction"), [(1, 3), (2, 2), (3, 4)])
def test_asha_stops_the_trials_that_optunas_successive_halving_prunes(seed, goal, min_steps, reduction):
    prune = Prune(kind="asha", min_steps=min_steps, reduction=reduction)

    def ours(number, step, losses, complete):
        rivals = [loss[step - 1] for other, loss in enumerate(losses) if other != number and len(loss) >= step]
        return last_rung(prune, step) == step and asha_stops(losses[number][-1], rivals, reduction)

    pruner = SuccessiveHalvingPruner(min_resource=min_steps, reduction_factor=reduction)
    own, optunas = decisions(seed, goal, pruner, ours)
    assert own == optunas
    assert {said for *_, said in optunas} == {True, False}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("goal", ["min", "max"])
@pytest.mark.parametrize(("min_steps", "startup"), [(1, 2), (3, 4), (5, 1)])
def test_the_median_rule_stops_the_trials_that_optunas_median_pruner_prunes(seed, goal, min_steps, startup):
    prune = Prune(kind="median", min_steps=min_steps, startup=startup)

    def ours(number, step, losses, complete):
        rivals = [losses[other][step - 1] for other in complete]
        return last_rung(prune, step) == step and median_stops(min(losses[number]), rivals, startup)

    pruner = MedianPruner(n_startup_trials=startup, n_warmup_steps=min_steps, interval_steps=min_steps)
    own, optunas = decisions(seed, goal, pruner, ours)
    assert own == optunas
    assert {said for *_, said in optunas} == {True, False}
