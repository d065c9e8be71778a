"""Where the scatter of a result comes from, against arithmetic by hand, exact intervals and simulated studies."""

import numpy as np
import pytest
from scipy import stats

from cs330ray.analysis.variance import Component, Layout, Values, layout, of_items
from cs330ray.trial.contract import Item

# Two cells, two replicates, two seeds; the grand mean is 10.
EIGHT: Values = {"a": [[12, 14], [8, 10]], "b": [[9, 11], [7, 9]]}


def study(cells: int, replicates: int, seeds: int, rng: np.random.Generator, sd: tuple[float, ...]) -> Values:
    """Draw a study; `sd` of replicate, cell x replicate, seed and cell x seed."""
    shapes = [(1, replicates, 1), (cells, replicates, 1), (1, replicates, seeds), (cells, replicates, seeds)]
    values = sum(scale * rng.normal(size=shape) for scale, shape in zip(sd, shapes, strict=True))
    assert isinstance(values, np.ndarray)
    return {str(cell): column for cell, column in enumerate(values.tolist())}


def squares(found: Layout) -> list[tuple[float, int]]:
    parts = (found.replicate, found.own_replicate, found.seed, found.own_seed)
    return [(part.value, part.freedom) for part in parts]


# Replicates and seeds


def test_mean_squares_are_those_of_arithmetic_by_hand() -> None:
    """Cell means are 11 and 9; those of a's replicates 13 and 9, of b's 10 and 8; a second seed is 2 above the first.

    Replicates' means are 11.5 and 8.5: 4 (1.5^2 + 1.5^2) = 18. A cell's own: a is 13 - 11.5 - 11 + 10 = .5 off, so all
    are, 2 * 4 * .25 = 2. Seeds are 1 above or below their replicate's mean in both cells: 2 * 4 = 8 on 2 degrees.
    """
    assert squares(layout(EIGHT)) == [(pytest.approx(18), 1), (pytest.approx(2), 1), (pytest.approx(4), 2), (0.0, 2)]


def test_components_solve_the_expected_mean_squares() -> None:
    """Seed: (4 + 0) / 2 = 2. Replicate: (18 + 2) / 4 - 2 / 2 = 4."""
    replicate, seed = layout(EIGHT).components
    assert (replicate.source, replicate.variance, replicate.n) == ("replicate", pytest.approx(4), 2)
    assert (seed.source, seed.variance, seed.n) == ("seed", pytest.approx(2), 4)


def test_components_of_one_cell_are_those_of_a_nested_layout() -> None:
    """Values 12, 14 | 8, 10: within 2, between 16 = 2 + 2 * 7."""
    replicate, seed = layout({"a": EIGHT["a"]}).components
    assert (replicate.variance, seed.variance) == (pytest.approx(7), pytest.approx(2))


def test_components_are_right_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cs330ray.analysis.variance.DRAWS", 1)  # of intervals, which do not matter here
    rng = np.random.default_rng(0)
    made = [layout(study(3, 4, 3, rng, (2.0, 1.0, 0.5, 1.5))).components for _ in range(400)]
    replicate, seed = (np.mean([each.variance for each in one]) for one in zip(*made, strict=True))
    assert (replicate, seed) == (pytest.approx(5, rel=0.15), pytest.approx(2.5, rel=0.05))


def test_an_estimate_below_zero_is_zero() -> None:
    (replicate, _) = layout({"a": [[0.0, 2.0], [0.8, 2.8], [-0.6, 1.4]]}).components
    assert (replicate.variance, replicate.low) == (0.0, 0.0)
    assert replicate.high > 0


def test_the_interval_of_one_mean_square_is_the_chi_squares() -> None:
    """Of one cell the seeds' variance is one mean square, 2 on 3 degrees of freedom."""
    values = {"a": [[1.0, 3.0], [5.0, 7.0], [8.0, 10.0]]}
    _, seed = layout(values).components
    low, high = (2 * 3 / stats.chi2.ppf(share, 3) for share in (0.975, 0.025))
    assert (seed.variance, seed.low, seed.high) == pytest.approx((2, low, high), rel=0.03)


@pytest.mark.parametrize("sd", [(2.0, 1.0, 0.5, 1.0), (0.0, 0.5, 0.0, 1.0)])
def test_intervals_hold_the_true_variance_in_about_95_of_100_small_studies(
    sd: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 studies of three replicates: a share of .95 has a standard error of .013."""
    monkeypatch.setattr("cs330ray.analysis.variance.DRAWS", 2000)
    rng, held = np.random.default_rng(1), []
    for _ in range(300):
        found = layout(study(4, 3, 3, rng, sd))
        true = [sd[0] ** 2 + sd[1] ** 2, sd[2] ** 2 + sd[3] ** 2, sd[1] ** 2 + sd[3] ** 2 / 3]
        ends = [(one.low, one.high) for one in found.components] + [found.residual(3)[1:]]
        held.append([low <= value <= high for value, (low, high) in zip(true, ends, strict=True)])
    assert (np.mean(held, axis=0) >= 0.91).all()


def test_one_replicate_has_no_component_and_one_seed_none_of_its_own() -> None:
    assert [one.source for one in layout({"a": [[1.0, 2.0]], "b": [[1.0, 3.0]]}).components] == ["seed"]
    assert [one.source for one in layout({"a": [[1.0], [2.0]], "b": [[1.0], [3.0]]}).components] == ["replicate"]
    assert layout({"a": [[1.0]]}).components == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "as many replicates and seeds"),
        ({"a": [[]]}, "as many replicates and seeds"),
        ({"a": [[1.0, 2.0]], "b": [[1.0]]}, "as many replicates and seeds"),
        ({"a": [[1.0], [2.0]], "b": [[1.0]]}, "as many replicates and seeds"),
        ({"a": [[float("inf")]]}, "finite"),
    ],
)
def test_values_that_are_not_balanced_or_finite_are_refused(values: Values, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        layout(values)


# What a claim must overcome


def test_the_residual_of_the_studys_own_seeds_is_that_of_the_rule() -> None:
    """A cell's own mean square, 2, is that of means over two seeds times two."""
    assert layout(EIGHT).residual(2)[0] == pytest.approx(1)


def test_more_seeds_leave_the_luck_of_the_replicate() -> None:
    """Of one cell: 7 of the replicate and 2 of the seed."""
    found = layout({"a": EIGHT["a"]})
    assert [found.residual(seeds)[0] for seeds in (1, 2, 4, 1000)] == pytest.approx([9, 8, 7.5, 7.002])


def test_more_seeds_than_were_seen_leave_no_less_than_their_own_luck() -> None:
    values = {"a": [[0.0, 2.0], [0.0, 2.1], [0.0, 2.0]]}  # less between replicates than seeds explain
    found = layout(values)
    assert found.residual(10)[0] == pytest.approx(found.seed.value / 10)


def test_without_several_seeds_nothing_is_known_of_other_numbers_of_them() -> None:
    found = layout({"a": [[1.0], [2.0]], "b": [[1.0], [4.0]]})  # apart by 0 and 2: residuals of .5
    assert found.residual(1)[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="expected one seed, as the study has in each replicate, got 3"):
        found.residual(3)


def test_of_one_replicate_the_residual_is_that_of_a_seed() -> None:
    """Apart by 0 and 2, as above."""
    assert layout({"a": [[1.0, 2.0]], "b": [[1.0, 4.0]]}).residual(1)[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="two replicates or two seeds, got one of each"):
        layout({"a": [[1.0]], "b": [[2.0]]}).residual(1)


# The items of the test


def scored(values: np.ndarray) -> dict[str, list[list[list[Item]]]]:
    """Scores by cell, replicate, seed and item, each item a unit of its own."""
    return {
        str(cell): [[[Item(f"u{n}", score) for n, score in enumerate(seed)] for seed in one] for one in of_cell]
        for cell, of_cell in enumerate(values.tolist())
    }


def test_items_of_0_and_1_add_the_variance_of_a_share() -> None:
    """60 of 100: p (1 - p) / (n - 1)."""
    found = of_items(scored(np.array([[[[1.0] * 60 + [0.0] * 40]]])))
    assert (found.source, found.variance, found.n) == ("test items", pytest.approx(0.6 * 0.4 / 99), 100)


def test_several_items_of_one_unit_count_as_one() -> None:
    """Four units of two equal items each scatter as four items of their own."""
    doubled = [Item(f"u{n}", score) for n, score in enumerate([0.1, 0.5, 0.4, 0.9]) for _ in range(2)]
    single = of_items(scored(np.array([[[[0.1, 0.5, 0.4, 0.9]]]])))
    found = of_items({"a": [[doubled]]})
    assert (found.variance, found.low, found.high, found.n) == pytest.approx(
        (single.variance, single.low, single.high, 4)
    )
    assert single.variance == pytest.approx(np.var([0.1, 0.5, 0.4, 0.9], ddof=1) / 4)


def test_what_seeds_do_to_single_items_is_not_counted_to_items() -> None:
    """Items of sd 1, and noise of sd 2 on each seed and item: the variance that 80 items give a mean is 1 / 80."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        items, noise = rng.normal(size=80), 2 * rng.normal(size=(2, 1, 3, 80))
        found.append(of_items(scored(items + noise)))
    assert np.mean([one.variance for one in found]) == pytest.approx(1 / 80, rel=0.06)
    assert np.mean([one.low <= 1 / 80 <= one.high for one in found]) >= 0.91


def test_replicates_may_score_items_of_their_own() -> None:
    rng = np.random.default_rng(0)
    runs = [[[Item(f"r{replicate}u{n}", float(rng.normal())) for n in range(300)]] for replicate in range(2)]
    apart, together = of_items({"a": runs}), of_items({"a": runs[:1]})
    assert (apart.n, together.n) == (600, 300)
    assert apart.high - apart.low < together.high - together.low


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_items_that_are_all_the_same_add_nothing(score: float) -> None:
    assert of_items(scored(np.full((1, 2, 2, 5), score))) == Component("test items", 0.0, 0.0, 0.0, 5)


def test_other_items_on_a_seed_and_a_single_unit_are_refused() -> None:
    with pytest.raises(ValueError, match="the same items on every seed"):
        of_items({"a": [[[Item("u", 1.0), Item("v", 0.0)], [Item("u", 1.0), Item("w", 0.0)]]]})
    with pytest.raises(ValueError, match="items of two units or more, got 1"):
        of_items({"a": [[[Item("u", 1.0), Item("u", 0.0)]]]})


def test_sources_are_of_one_scale() -> None:
    """A result's variance is their sum: 400 studies that score 40 fresh items on a fresh seed in a fresh replicate."""
    rng = np.random.default_rng(2)
    results = rng.normal(size=400) + 0.5 * rng.normal(size=400) + 2 * rng.normal(size=(40, 400)).mean(axis=0)
    whole = rng.normal(size=(1, 60, 1, 1)) + 0.5 * rng.normal(size=(1, 60, 4, 1)) + 2 * rng.normal(size=(1, 1, 1, 40))
    replicate, seed = layout({"a": whole.mean(axis=3)[0].tolist()}).components
    parts = replicate.variance + seed.variance + of_items(scored(whole)).variance
    assert parts == pytest.approx(np.var(results), rel=0.35)
