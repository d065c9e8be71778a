"""What the regrets of the samplers rest on: the measured tables, the surface between their points, and the choice."""

import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks.grids import SYSTEMS, Surface

from benchmarks import grids, samplers
from cs330ray.spec.reading import parse
from cs330ray.spec.tables import Choice
from cs330ray.trial import named

every_system = pytest.mark.parametrize("name", sorted(SYSTEMS))


def surface(reached: list[object]) -> Surface:
    """A surface over a rate, measured at .01, .1 and 1, and a body of two kinds, with two seeds each."""
    raw = {
        "name": "small", "trainable": "maml", "objective": "val_accuracy", "budget": {"trials": 1, "steps": 1},
        "search": {"lr": {"low": 0.01, "high": 1.0, "log": True}, "body": ["course", "pooled"]},
    }  # fmt: skip
    values = {"lr": [0.01, 0.1, 1.0], "body": ["course", "pooled"]}
    return Surface(parse(raw, "here").cells[0], values, np.array(reached))


SMALL = [[[0.0, 0.2], [0.5, 0.5]], [[0.4, 0.6], [0.9, 0.9]], [[0.2, 0.2], [0.7, 0.7]]]


@every_system
def test_a_table_holds_forty_points_or_more_of_the_grid_that_stands_in_the_code(name: str) -> None:
    found = grids.surface(name)  # which refuses any other
    text = (grids.MEASURED / f"{name}.csv").read_text()
    assert math.prod(map(len, grids.axes(name).values())) >= 40
    assert 0 < found.noise < found.best - found.worst <= 1
    assert f"# python benchmarks/samplers.py --measure {name}\n" in text
    assert len(text) < 8000


@every_system
def test_a_grid_spans_the_whole_space_that_is_searched(name: str) -> None:
    (cell,) = grids.study(name).cells
    for parameter, values in grids.axes(name).items():
        domain = cell.space[parameter]
        if isinstance(domain, Choice):
            assert values == domain.choices
        else:
            assert values == sorted(values)
            assert (values[0], values[-1]) == (domain.low, domain.high)


@every_system
def test_more_is_better_of_what_is_measured(name: str) -> None:
    assert named.load(name).METRICS[SYSTEMS[name].objective].goal == "max"


def test_a_table_of_another_grid_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (grids.MEASURED / "maml.csv").read_text()
    monkeypatch.setattr(grids, "MEASURED", tmp_path)
    (tmp_path / "maml.csv").write_text(text.rsplit("\n", 2)[0] + "\n")
    with pytest.raises(SystemExit, match=r"measured/maml\.csv: expected the grid of SYSTEMS, got another; write"):
        grids.surface("maml")


def test_a_point_of_the_grid_has_the_mean_of_its_seeds_and_their_standard_deviation() -> None:
    mean, sd = surface(SMALL).at({"lr": 0.01, "body": "course"})
    assert (mean, sd) == pytest.approx((0.1, 0.1 * 2**0.5))


def test_between_points_the_logarithm_of_a_rate_counts_and_a_choice_is_exact() -> None:
    """Halfway in the logarithm from .1 to 1 are the mean of the means, and that of the variances."""
    mean, sd = surface(SMALL).at({"lr": 10**-0.5, "body": "course"})
    assert (mean, sd) == pytest.approx(((0.5 + 0.2) / 2, (0.02 / 2) ** 0.5))
    assert surface(SMALL).at({"lr": 10**-1.5, "body": "pooled"}) == pytest.approx((0.7, 0.0))


def test_the_best_and_the_worst_are_those_of_the_means() -> None:
    found = surface(SMALL)
    assert (found.best, found.worst) == pytest.approx((0.9, 0.1))
    assert found.noise == pytest.approx((2 * 0.02 / 6) ** 0.5)


def test_a_search_chooses_by_its_noisy_values_and_is_judged_by_the_truth() -> None:
    assert samplers.chosen([0.5, 0.7, 0.6], [0.8, 0.7, 0.9], (1, 2, 3)) == [0.5, 0.5, 0.6]


def test_samplers_that_have_learned_nothing_yet_share_draws_and_noise() -> None:
    first = [samplers.search("maml", kind, 3, (1, 4)).regrets for kind in ("qmc", "tpe")]
    assert first[0] == first[1]


def test_a_regret_counts_as_a_share_of_its_grid_and_errors_are_those_of_the_repetitions() -> None:
    """Two systems whose spreads are 1 and .5: a repetition's share is the mean of its regrets, the second doubled."""
    wide, narrow = surface([[[0.0] * 2, [1.0] * 2]] * 3), surface([[[0.25] * 2, [0.75] * 2]] * 3)
    one = {kind: np.array([[0.1], [0.3]]) for kind in samplers.KINDS} | {"gp": np.array([[0.0], [0.0]])}
    two = {kind: np.array([[0.2], [0.1]]) for kind in samplers.KINDS} | {"gp": np.array([[0.1], [0.0]])}
    told = samplers.figures({"one": one, "two": two}, {"one": wide, "two": narrow}, (16,))
    assert told["regret"] == {kind: {"16": 0.25} for kind in ("random", "qmc", "tpe")} | {"gp": {"16": 0.05}}
    assert told["se"]["gp"] == {"16": 0.05}  # .1 and 0: a standard deviation of .1 / 2**.5, over 2**.5
    assert told["over_tpe"]["gp"] == {"16": -0.2}  # -.15 and -.25
    assert told["over_tpe_se"]["gp"] == {"16": 0.05}
    assert told["systems"]["two"]["regret"]["tpe"] == {"16": 0.15}
