"""Who is best: a cell's ranks, front, star and kept checkpoints, against trials whose order is known by hand."""

from collections.abc import Sequence

from cs330ray.analysis.replicates import Replicates
from cs330ray.analysis.standing import Standing, by_search, choices, comparable, first_searched
from cs330ray.ledger.confirm import Confirmed, Run
from cs330ray.ledger.records import Trial
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study

BOTH = ("max", "min")


def study_of(objective: Sequence[str] = ("val_accuracy",), **budget: int) -> Study:
    return parse(
        {
            "name": "stands", "trainable": "tests.noisy", "objective": list(objective), "prune": {"kind": "none"},
            "compare": {"cost": [1.0, 2.0]}, "search": {"quality": {"low": 0.0, "high": 1.0}},
            "budget": {"trials": 4, "steps": 20} | budget, "resources": {"keep": 1},
            "confirm": {"top": 2, "seeds": 2} if len(objective) == 1 else {"seeds": 2},
        },
        "stands",
    )  # fmt: skip


STUDY, TWO = study_of(), study_of(["val_accuracy", "val_cost"])
ONE, OTHER = STUDY.cells


def trial(
    number: int,
    *values: float,
    state: str = "COMPLETE",
    steps: int = 20,
    continues: int | None = None,
    continued_as: int | None = None,
    cell: Cell = ONE,
) -> Trial:
    return Trial(cell, number, state, {}, 7, values or None, "", None, "", 0.0, 1.0, steps, continues, continued_as)


def standing(*trials: Trial, cell: Cell = ONE, candidates: Sequence[Confirmed] = ()) -> Standing:
    return Standing(STUDY, ["max"], cell, trials, candidates)


def candidate(searched: Trial, *reached: float) -> Confirmed:
    runs = [
        Run(trial(searched.number, value, cell=searched.cell.under(index)), {}) for index, value in enumerate(reached)
    ]
    return Confirmed(searched, runs, 2)


def numbers(trials: Sequence[Trial]) -> list[int]:
    return [each.number for each in trials]


def test_the_better_value_is_ranked_first_and_of_equals_the_earlier_trial() -> None:
    cell = standing(trial(0, 0.5), trial(1, 0.9), trial(2, 0.9), trial(3, 0.7, state="PRUNED"))
    assert numbers(cell.ranked) == numbers(cell.placed) == [1, 2, 0]
    assert cell.best == cell.best_of_search == cell.trials[1]
    assert numbers(cell.starred) == [1]


def test_a_cell_without_a_complete_trial_has_no_best() -> None:
    cell = standing(trial(0, state="FAIL"), trial(1, state="RUNNING"))
    assert cell.best is None
    assert list(cell.starred) == []
    assert by_search([cell]) == []
    assert first_searched([cell]) is None


def test_the_confirmed_choice_is_best_whatever_the_search_had_promised() -> None:
    lucky, steady = trial(0, 0.9), trial(1, 0.8)
    cell = standing(lucky, steady, candidates=[candidate(lucky, 0.5, 0.6), candidate(steady, 0.7, 0.8)])
    assert cell.best == steady
    assert cell.best_of_search == lucky
    assert numbers(cell.starred) == [1]
    assert numbers(cell.ranked) == [0, 1]
    assert list(choices([cell, standing(cell=OTHER)])) == [ONE.key]


def test_while_a_run_is_to_come_nothing_is_chosen() -> None:
    lucky, steady = trial(0, 0.9), trial(1, 0.8)
    cell = standing(lucky, steady, candidates=[candidate(lucky, 0.5), candidate(steady, 0.7, 0.8)])
    assert cell.chosen is None
    assert cell.best == lucky
    assert cell.confirmed(0) is None
    assert cell.confirmed(1) == cell.candidates[1]


def test_of_two_objectives_the_star_is_on_the_whole_front() -> None:
    """Trial 1 is worse than trial 0 in both; trials 0 and 2 are better than one another in one each."""
    trials = [trial(0, 0.8, 2.0), trial(1, 0.7, 3.0), trial(2, 0.9, 4.0), trial(3, 0.6, 1.0)]
    cell = Standing(TWO, BOTH, TWO.cells[0], trials)
    assert numbers(cell.ranked) == [2, 0, 1, 3]
    assert numbers(cell.front) == numbers(cell.placed) == numbers(cell.starred) == [2, 0, 3]


def test_only_trials_of_the_most_steps_are_ranked_and_those_left_out_are_counted() -> None:
    cell = standing(
        trial(0, 0.9, steps=10),
        trial(1, 0.8, steps=10, continued_as=2),
        trial(2, 0.7, steps=20, continues=1),
    )
    assert numbers(cell.ranked) == [2]
    assert cell.of_fewer_steps == 1


def test_between_cells_the_best_choice_comes_first_whatever_its_search() -> None:
    one = standing(trial(0, 0.9), candidates=[candidate(trial(0, 0.9), 0.5, 0.5)])
    searched = trial(0, 0.8, cell=OTHER)
    other = standing(searched, cell=OTHER, candidates=[candidate(searched, 0.7, 0.7)])
    assert Replicates(STUDY, [one, other]).use is other
    assert first_searched([one, other]) is one


def test_values_of_searches_after_other_numbers_of_steps_are_not_compared() -> None:
    short, long = standing(trial(0, 0.9, steps=10)), standing(trial(0, 0.1, steps=20, cell=OTHER), cell=OTHER)
    assert comparable([short, long]) == [long]
    assert first_searched([short, long]) is long
    assert by_search([short, long]) == [long, short]


def test_the_best_keep_their_checkpoints_and_so_do_trials_that_have_not_ended() -> None:
    cell = standing(trial(0, 0.5), trial(1, 0.9), trial(2, 0.7), trial(3, state="RUNNING"), trial(4, state="FAIL"))
    assert cell.to_keep(1) == {1, 3}
    assert cell.to_keep(2) == {1, 2, 3}


def test_a_trial_that_waits_for_more_steps_keeps_its_checkpoint_and_the_one_that_a_running_trial_began_at() -> None:
    cell = standing(
        trial(0, 0.1, steps=10),
        trial(1, 0.2, steps=10, continued_as=3),
        trial(2, 0.3),
        trial(3, state="RUNNING", continues=1),
        trial(4, 0.9),
    )
    assert cell.to_keep(1) == {0, 1, 3, 4}


def test_of_two_objectives_the_ends_of_the_front_are_kept_before_what_is_dominated() -> None:
    """The best accuracy and the least cost are the ends; trial 1 lies between them, trial 3 is dominated."""
    trials = [trial(0, 0.9, 9.0), trial(1, 0.6, 4.0), trial(2, 0.5, 1.0), trial(3, 0.4, 5.0)]
    cell = Standing(TWO, BOTH, TWO.cells[0], trials)
    assert cell.to_keep(2) == {0, 2}
    assert cell.to_keep(3) == {0, 1, 2}
    assert cell.to_keep(4) == {0, 1, 2, 3}
