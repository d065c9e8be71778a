"""What every sampler promises: the same asks of the same history, inside the space, with draws that cells share."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cs330ray.ledger.ledger import directions
from cs330ray.service.search import points, samplers
from cs330ray.service.search.samplers import said
from cs330ray.spec.study import Cell, Study, hashed
from cs330ray.spec.tables import Choice, Range
from tests.asked import (
    KINDS,
    LEARNING,
    SPACE,
    STARTUP,
    TRIALS,
    UNCONDITIONAL,
    asked_in_turn,
    ended,
    history_of,
    next_of,
    params,
    study,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_conditional_kind = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qmc"])
SIDES = {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}


# The same


@every_kind
def test_a_study_asks_the_same_after_any_number_of_its_trials(kind: str) -> None:
    """So that one that is killed and resumed ends as an undisturbed one."""
    asked, history = study(kind), history_of(kind)
    for number in (0, 1, STARTUP - 1, STARTUP, TRIALS - 1):
        assert next_of(asked, history[:number]).params == history[number].params


@pytest.mark.parametrize("kind", LEARNING)
def test_a_sampler_chooses_what_it_chooses_of_trials_that_optuna_checked_and_copied(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every state, of numbers with gaps, and of one that runs; a trial that was seen is as it was before."""
    asked, history = study(kind), [copy.deepcopy(trial) for trial in history_of(kind)]
    for number, trial in enumerate(history):
        trial.number = trial._trial_id = 2 * number + 1
    history[1].state, history[1].values = TrialState.FAIL, None
    history[2].state, history[2].values, history[2].datetime_complete = TrialState.RUNNING, None, None
    if kind == "tpe":
        history[3].state, history[3].values, history[3].intermediate_values = TrialState.PRUNED, None, {5: 0.5}
    before = copy.deepcopy(history)
    chosen = next_of(asked, history)
    assert history == before

    def copied(of: Study, cell: Cell, goals: Sequence[str], seen: Sequence[FrozenTrial]) -> optuna.Study:
        sampler = samplers._sampler(of.sampler, hashed(of.seed, cell.key, len(seen)))
        memory = optuna.create_study(sampler=sampler, directions=directions(goals))
        memory.add_trials(seen)
        return memory

    monkeypatch.setattr(samplers, "_in_memory", copied)
    expected = next_of(asked, history)
    assert (chosen.params, chosen.distributions) == (expected.params, expected.distributions)
    assert (chosen.system_attrs, chosen.number) == (expected.system_attrs, expected.number)


def test_another_process_asks_the_same() -> None:
    held = {kind: [_as_json(trial) for trial in history_of(kind)] for kind in KINDS}
    code = "import sys; from tests.service.test_samplers import answer; answer(sys.stdin.read())"
    told = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(held), capture_output=True, text=True, timeout=120, check=True
    )
    here = {kind: next_of(study(kind), history_of(kind)).params for kind in KINDS}
    assert json.loads(told.stdout) == here


def answer(text: str) -> None:
    """Print what is asked next, by kind, of the histories that another process wrote."""
    held = {kind: [_from_json(trial) for trial in trials] for kind, trials in json.loads(text).items()}
    sys.stdout.write(json.dumps({kind: next_of(study(kind), history).params for kind, history in held.items()}))


def _as_json(trial: FrozenTrial) -> dict[str, Any]:
    distributions = {name: distribution_to_json(each) for name, each in trial.distributions.items()}
    return {"values": trial.values, "params": trial.params, "distributions": distributions, "system_attrs": trial.system_attrs}  # noqa: E501 # fmt: skip


def _from_json(told: dict[str, Any]) -> FrozenTrial:
    distributions = {name: json_to_distribution(each) for name, each in told["distributions"].items()}
    return create_trial(**{**told, "distributions": distributions})


@every_kind
def test_a_history_read_back_from_a_database_is_asked_the_same(kind: str, tmp_path: Any) -> None:
    asked, history = study(kind), history_of(kind)[:-1]
    directions = ["minimize", "maximize"][: len(asked.objective)]
    stored = optuna.create_study(storage=f"sqlite:///{tmp_path}/ledger.db", directions=directions)
    stored.add_trials(history)
    again = optuna.load_study(study_name=stored.study_name, storage=f"sqlite:///{tmp_path}/ledger.db").get_trials()
    assert next_of(asked, again).params == history_of(kind)[-1].params


@every_kind
def test_the_order_of_the_file_changes_no_ask(kind: str) -> None:
    names = [*reversed(UNCONDITIONAL), *(["filters"] if kind != "qmc" else [])]
    straight, turned = study(kind), study(kind, {name: SPACE[name] for name in names})
    assert straight.digest == turned.digest
    for number in (0, TRIALS - 1):
        assert next_of(turned, history_of(kind)[:number]).params == history_of(kind)[number].params


@every_kind
def test_an_ask_leaves_the_history_as_it_was(kind: str) -> None:
    history = history_of(kind)[:6]
    before = [(trial.state, dict(trial.params), dict(trial.system_attrs), trial.values) for trial in history]
    next_of(study(kind), history)
    assert [(trial.state, trial.params, trial.system_attrs, trial.values) for trial in history] == before


@every_kind
def test_other_numbers_and_other_seeds_are_asked_otherwise(kind: str) -> None:
    drawn = [trial.params["momentum"] for trial in history_of(kind)[: STARTUP + 1]]
    drawn += [trial.params["momentum"] for trial in asked_in_turn(study(kind, seed=1), STARTUP)]
    assert len(set(drawn)) == len(drawn) == 2 * STARTUP + 1


# Inside


def inside(domain: Choice | Range, value: Any) -> bool:
    if isinstance(domain, Choice):
        return any(value == choice and type(value) is type(choice) for choice in domain.choices)
    steps = 0 if domain.step is None else (value - domain.low) / domain.step
    within = domain.low <= value <= domain.high and abs(steps - round(steps)) < 1e-6
    return within and isinstance(value, int) is domain.whole


@every_kind
def test_all_that_is_asked_lies_inside_its_domain(kind: str) -> None:
    search: Any = study(kind).search
    assert all(inside(search[name], value) for trial in history_of(kind) for name, value in trial.params.items())


@every_conditional_kind
def test_a_conditional_parameter_is_asked_exactly_where_its_condition_holds(kind: str) -> None:
    history = [*history_of(kind), *asked_in_turn(study(kind, seed=1), STARTUP)]
    assert all(("filters" in trial.params) is (trial.params["body"] == "pooled") for trial in history)
    assert {trial.params["body"] for trial in history} == {"course", "pooled"}


@every_conditional_kind
@pytest.mark.parametrize(("body", "searched"), [("pooled", True), ("course", False)])
def test_a_condition_may_hang_on_what_is_fixed(kind: str, body: str, searched: bool) -> None:
    space = {name: domain for name, domain in SPACE.items() if name != "body"}
    history = asked_in_turn(study(kind, space, fixed={"body": body}), STARTUP + 1)
    assert all(("filters" in trial.params) is searched for trial in history)


@every_kind
def test_an_asked_trial_knows_its_distributions(kind: str) -> None:
    for number in (0, TRIALS - 1):
        trial = next_of(study(kind), history_of(kind)[:number])
        assert trial.distributions.keys() == trial.params.keys()
        assert trial.state == TrialState.RUNNING


@every_kind
def test_an_empty_space_is_asked_for_nothing(kind: str) -> None:
    asked, history = study(kind, {}), list[FrozenTrial]()
    for _ in range(STARTUP + 2):
        history.append(ended(next_of(asked, history), [1.0] * len(asked.objective)))
    assert params(history) == [{}] * (STARTUP + 2)


# What a sampler learns


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNING)
def test_a_sampler_that_learns_comes_nearer_than_chance(kind: str) -> None:
    """The mean distance to -2 of what is uniform over [-3, 0] is (1/2 + 2) / 3: two triangles of area 1/2 and 2."""
    seeds = 4 if kind != "gp" else 1
    history = [trial for seed in range(seeds) for trial in asked_in_turn(study(kind, seed=seed), 14)[8:]]
    assert fmean(trial.values[0] for trial in history if trial.values) < 5 / 6


@every_kind
def test_several_objectives_are_asked_for(kind: str) -> None:
    asked = study(kind, UNCONDITIONAL, objective=["val_loss", "val_speed"])
    history = asked_in_turn(asked, STARTUP + 2)
    assert len({json.dumps(trial.params) for trial in history}) == STARTUP + 2
    assert next_of(asked, history).params == next_of(asked, history).params


@pytest.mark.parametrize("kind", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
def test_where_trials_run_is_taken_into_account(kind: str) -> None:
    """The next one is another where the trial that runs is another, and the same where it is the same."""
    here, there = (points.placed(study().cells[0], point) for point in params(history_of("random")[:2]))
    one, same, other = (next_of(study(kind), [*history_of(kind), trial]).params for trial in (here, here, there))
    assert one == same != other


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"sampler": {"kind": "tpe", "startup": 4}}, []),
        ({"sampler": {"kind": "random"}, "budget": {"trials": 1, "steps": 1}}, []),
        ({"sampler": {"kind": "tpe", "startup": 9}}, [
            "the first 9 trials of a cell are drawn before tpe has learned anything, so that with 16 the search is "
            "mostly random",
        ]),
        ({"sampler": {"kind": "gp"}, "prune": {"kind": "asha"}}, [
            "gp draws what has a condition at random (filters); tpe learns that too",
            "gp learns from COMPLETE trials alone, and from no pruned one; tpe learns from both",
        ]),
    ],
)  # fmt: skip
def test_what_a_sampler_cannot_learn_is_said(changes: dict[str, Any], lines: list[str]) -> None:
    assert list(said(study(**changes))) == lines


# Common draws


def like_cells(kind: str, **changes: Any) -> Study:
    return study(kind, compare={"shots": [1, 5]}, **changes)


@every_kind
def test_cells_of_one_space_begin_with_the_same_draws(kind: str) -> None:
    asked = like_cells(kind)
    one, other = (params(asked_in_turn(asked, STARTUP, cell)) for cell in asked.cells)
    assert one == other
    assert len({json.dumps(point) for point in one}) == STARTUP


def running(trials: Sequence[FrozenTrial], but: Sequence[int], objectives: int) -> list[FrozenTrial]:
    """A history of which all trials run on but some, which are COMPLETE."""
    return [
        ended(trial, [1.0] * objectives) if number in but else ended(trial, state=TrialState.RUNNING)
        for number, trial in enumerate(trials)
    ]


@every_kind
@pytest.mark.parametrize("over", [[], [0], [1], [0, 1], [2, 0, 1]])
def test_what_is_drawn_does_not_depend_on_what_has_finished_meanwhile(kind: str, over: list[int]) -> None:
    asked, history = study(kind), history_of(kind)[: STARTUP - 1]
    assert next_of(asked, running(history, over, len(asked.objective))).params == history_of(kind)[STARTUP - 1].params


@pytest.mark.parametrize("kind", LEARNING)
def test_with_too_little_to_learn_from_later_trials_are_drawn_in_common_too(kind: str) -> None:
    asked = like_cells(kind)
    drawn: list[FrozenTrial] = []
    for _ in range(STARTUP + 3):
        trial = next_of(asked, running(drawn, range(STARTUP - 1), len(asked.objective)), asked.cells[0])
        other = next_of(asked, running(drawn, range(STARTUP - 1), len(asked.objective)), asked.cells[1])
        assert trial.params == other.params
        drawn.append(trial)
    assert len({json.dumps(trial.params) for trial in drawn}) == STARTUP + 3


@pytest.mark.parametrize("kind", LEARNING)
def test_with_enough_to_learn_from_each_cell_is_asked_for_itself(kind: str) -> None:
    asked = like_cells(kind, seed=3)
    history = [*asked_in_turn(asked, STARTUP)]
    one, other = (next_of(asked, history, cell) for cell in asked.cells)
    assert one.params != other.params


@every_kind
def test_replicates_draw_each_for_itself(kind: str) -> None:
    repeated = study(kind, confirm={"seeds": 2}, repeat={"searches": 3})
    drawn = [params(asked_in_turn(repeated, 2, cell)) for cell in repeated.cells]
    assert len({json.dumps(points) for points in drawn}) == 3
    assert drawn[0] == params(history_of(kind)[:2])


OF_TRAINABLES = {"x": SIDES["x"], "maml": {"inner_lr": {"low": 0.1, "high": 1.0}}, "protonet": {"a": SIDES["y"]}}


@every_kind
def test_what_two_spaces_share_is_drawn_the_same(kind: str) -> None:
    """Though one has a parameter of its own before it in the alphabet."""
    asked = study(kind, OF_TRAINABLES, trainable=None, compare={"trainable": ["maml", "protonet"]})
    one, other = (next_of(asked, [], cell).params for cell in asked.cells)
    assert one["x"] == other["x"]
    assert (one.keys(), other.keys()) == ({"x", "inner_lr"}, {"x", "a"})


@every_conditional_kind
def test_a_parameter_that_does_not_apply_shifts_no_other(kind: str) -> None:
    compared = {name: domain for name, domain in SPACE.items() if name != "body"}
    asked = study(kind, compared, compare={"body": ["course", "pooled"]})
    without, having = (asked_in_turn(asked, 3, cell) for cell in asked.cells)
    assert [{name: trial.params[name] for name in trial.params if name != "filters"} for trial in having] == params(
        without
    )


@pytest.mark.parametrize("kind", ["tpe", "gp", "qmc"])
def test_first_points_fill_every_box_once(kind: str) -> None:
    """Sixteen points of a scrambled Sobol sequence: one in each of 16 strips of x, of y, and of 4 x 4 boxes."""
    asked, history = study(kind, SIDES, sampler={"kind": kind, "startup": 16}), list[FrozenTrial]()
    for _ in range(16):
        history.append(ended(next_of(asked, history), [1.0]))
    xs, ys = ([trial.params[name] for trial in history] for name in "xy")
    assert sorted(int(x * 16) for x in xs) == sorted(int(y * 16) for y in ys) == list(range(16))
    assert {(int(x * 4), int(y * 4)) for x, y in zip(xs, ys, strict=True)} == {(i, j) for i in range(4) for j in range(4)}  # noqa: E501 # fmt: skip


def test_what_one_cell_searches_is_balanced_beside_what_another_does() -> None:
    """One sequence for all cells: of sequences apart, two can fall into two of the four quadrants."""
    asked = study("qmc", OF_TRAINABLES, trainable=None, compare={"trainable": ["maml", "protonet"]})
    blank = create_trial(value=0.0)
    pairs = [tuple(next_of(asked, [blank] * n, cell).params for cell in asked.cells) for n in range(16)]
    boxes = {(int((one["inner_lr"] - 0.1) / 0.9 * 4), int(other["a"] * 4)) for one, other in pairs}
    assert len(boxes) == 16


def test_independent_draws_are_uniform_and_independent_by_name() -> None:
    """Of 1,000 the share in each of 4 x 4 boxes is 1/16 within five standard errors, .0077 each."""
    asked, blank = study("random", SIDES), create_trial(value=0.0)
    drawn = [next_of(asked, [blank] * number).params for number in range(1000)]
    boxes = [(int(point["x"] * 4), int(point["y"] * 4)) for point in drawn]
    assert all(abs(boxes.count((i, j)) / 1000 - 1 / 16) < 5 * 0.0077 for i in range(4) for j in range(4))


# Generations of nsga2


GENERATION = "NSGAIISampler:generation"


def test_the_first_population_of_nsga2_is_marked_and_the_next_is_bred_from_it() -> None:
    history = history_of("nsga2")
    assert [trial.system_attrs[GENERATION] for trial in history] == [0] * 4 + [1] * 4 + [2] * 2
    assert [trial.system_attrs.keys() for trial in history[:STARTUP]] == [{GENERATION}] * STARTUP


# Starts


STARTS = [{"x": 0.25, "y": 0.5}, {"x": 0.75, "y": 0.5}]


@every_kind
def test_starts_come_first_and_the_draws_after_them_are_the_first_ones(kind: str) -> None:
    asked = study(kind, SIDES)
    objectives = len(asked.objective)
    history: list[FrozenTrial] = []
    for _ in range(STARTUP):
        trial = next_of(asked, running(history, [], objectives), starts=STARTS)
        history.append(trial)
    assert params(history[:2]) == STARTS
    assert [trial.user_attrs for trial in history] == [{"start": 0}, {"start": 1}, {}, {}]
    if kind in ("tpe", "gp", "qmc"):  # the sequence begins where the starts end
        assert params(history[2:]) == params([next_of(asked, history[:number]) for number in range(2)])
    else:
        assert params(history[2:]) == params([next_of(asked, history[:number]) for number in (2, 3)])


@pytest.mark.parametrize("kind", LEARNING)
def test_a_sampler_learns_from_starts(kind: str) -> None:
    starts = [{"x": (number + 0.5) / STARTUP, "y": 0.5} for number in range(STARTUP)]
    asked = study(kind, SIDES)
    history: list[FrozenTrial] = []
    for _ in range(STARTUP):
        trial = next_of(asked, history, starts=starts)
        history.append(ended(trial, [math.dist((trial.params["x"], trial.params["y"]), (0.4, 0.5))] * len(asked.objective)))  # noqa: E501 # fmt: skip
    assert params(history) == starts
    chosen, drawn = next_of(asked, history, starts=starts), next_of(asked, running(history, [], 1), starts=starts)
    assert chosen.params != drawn.params
