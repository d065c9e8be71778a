import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from cs330ray.course.data import movielens
from cs330ray.course.systems import multitask
from cs330ray.errors import Diverged
from cs330ray.training.device import generator
from cs330ray.trial.contract import Progress, Scores

USERS, ITEMS = 20, 30
SIZES = {"train": 240, "val": 40, "test": 40}
SMALL = {"dim": 4, "layers": "8", "batch": 32, "lr": 0.02, "eval_every_steps": 2}


def config(**changes: object) -> multitask.Config:
    return multitask.Config(**(SMALL | changes))


@pytest.fixture(autouse=True)
def parts_read(monkeypatch) -> Iterator[list[str]]:
    """Ratings of twenty users that hang on the item alone, with noise; the parts that were read."""
    read: list[str] = []

    def ratings(dataset: str, split: str, data_seed: int, part: str) -> movielens.Ratings:
        read.append(part)
        random = np.random.RandomState(data_seed + 10 * len(split))
        pairs = random.permutation(USERS * ITEMS)[: sum(SIZES.values())]
        stars = (pairs % ITEMS % 5 + 1 + random.normal(0, 0.5, len(pairs))).astype(np.float32)
        ends = np.cumsum(list(SIZES.values()))
        chosen = slice(ends[list(SIZES).index(part)] - SIZES[part], ends[list(SIZES).index(part)])
        return movielens.Ratings(pairs[chosen] // ITEMS, pairs[chosen] % ITEMS, stars[chosen])

    monkeypatch.setattr(multitask.movielens, "ratings", ratings)
    monkeypatch.setattr(multitask.movielens, "sizes", lambda _: (USERS, ITEMS))
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are tiny, and the machine may be busy
    yield read
    torch.set_num_threads(threads)


def rows(history: Sequence[Progress]) -> list[tuple[int, dict[str, float]]]:
    return [(progress.step, dict(progress.metrics)) for progress in history]


def run(
    settings: multitask.Config, seed: int, steps: int, home: Path, resume: Path | None = None
) -> list[tuple[int, dict[str, float]]]:
    """Train, and write the last moment into `home`; its rows."""
    history = []
    for progress in multitask.train(settings, seed, steps, resume):
        history.append(progress)
        last = progress
    home.mkdir()
    last.save(home)
    return rows(history)


def same_state(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "state.safetensors") for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Training


@pytest.mark.parametrize("changes", [{}, {"sharing": "separate", "dropout": 0.3, "regression_bias": True}])
def test_a_resumed_trial_ends_exactly_where_an_unbroken_one_does(changes, tmp_path):
    settings = config(**changes)
    whole = run(settings, 0, 6, tmp_path / "whole")
    half = run(settings, 0, 2, tmp_path / "half")
    rest = run(settings, 0, 6, tmp_path / "rest", resume=tmp_path / "half")
    assert half + rest == whole
    assert [step for step, _ in whole] == [2, 4, 6]
    assert same_state(tmp_path / "rest", tmp_path / "whole")


@pytest.mark.parametrize("keep_best_by", ["val_mse", "val_mrr"])
@pytest.mark.parametrize("cut", [1, 3, 5, 9])
def test_a_budget_that_ends_between_two_validations_changes_nothing_later(cut, keep_best_by, tmp_path):
    settings = config(keep_best_by=keep_best_by, lr=0.1)  # so fast that the best moments come early
    whole = run(settings, 0, 12, tmp_path / "whole")
    run(settings, 0, cut, tmp_path / "cut")
    rest = run(settings, 0, 12, tmp_path / "rest", resume=tmp_path / "cut")
    assert rest == [row for row in whole if row[0] > cut]
    assert same_state(tmp_path / "rest", tmp_path / "whole")


def test_a_finished_trial_has_nothing_left_to_do(tmp_path):
    run(config(), 0, 2, tmp_path / "done")
    assert list(multitask.train(config(), 0, 2, tmp_path / "done")) == []


def test_every_row_holds_the_promised_metrics_within_their_range(tmp_path):
    for _, metrics in run(config(), 0, 4, tmp_path / "home"):
        assert metrics.keys() == {name for name in multitask.METRICS if not name.startswith("test_")}
        assert all(
            multitask.METRICS[name].low <= value <= multitask.METRICS[name].high for name, value in metrics.items()
        )


def test_it_learns_what_can_be_learned(tmp_path):
    """The stars hang on the item: their variance is 2, their noise .25."""
    *_, (_, metrics) = run(config(regression_bias=True), 0, 60, tmp_path / "home")
    assert metrics["val_mse"] < 0.6
    assert metrics["train_factorization_loss"] < 0.35  # half were guessing


@pytest.mark.parametrize(("keep_best_by", "best"), [("val_mse", min), ("val_mrr", max), ("val_mrr_first", max)])
def test_a_row_shows_the_best_moment_so_far_by_the_metric_that_is_named(keep_best_by, best, tmp_path):
    history = run(config(keep_best_by=keep_best_by, lr=0.1, eval_every_steps=1), 0, 25, tmp_path / "home")
    by_step = dict(history)
    for step, metrics in history:
        reached = {earlier: by_step[earlier][f"{keep_best_by}_last"] for earlier in range(1, step + 1)}
        expected = best(reached, key=reached.__getitem__)
        assert metrics["best_step"] == expected
        for name in ("val_mse", "val_mrr", "val_mrr_first"):
            assert metrics[name] == by_step[expected][f"{name}_last"]
    assert 1 < history[-1][1]["best_step"] < 25


def test_the_losses_of_a_row_are_weighted_into_one(tmp_path):
    for settings, weight in ((config(factorization_weight=0.7), 0.3), (config(regression_weight=0.2), 0.2)):
        home = tmp_path / str(weight)
        *_, (_, metrics) = run(settings, 0, 2, home)
        expected = settings.factorization_weight * metrics["train_factorization_loss"]
        assert metrics["train_loss"] == pytest.approx(expected + weight * metrics["train_regression_loss"])


def test_patience_ends_a_trial_that_no_longer_gets_better_whatever_its_budget(tmp_path):
    settings = config(patience=6, lr=0.1)
    (*_, last), longer = (run(settings, 0, steps, tmp_path / str(steps)) for steps in (100, 200))
    assert last[0] < 100
    assert last[0] - last[1]["best_step"] == 6
    assert longer[-1] == last
    assert list(multitask.train(settings, 0, 200, tmp_path / "100")) == []


def test_patience_counts_validations_that_are_due_alone(tmp_path):
    settings = config(patience=3, lr=0.1)  # as good as 4, since validations come every 2
    whole = run(settings, 0, 100, tmp_path / "whole")
    end, metrics = whole[-1]
    assert end - metrics["best_step"] == 4
    run(settings, 0, end - 1, tmp_path / "cut")
    assert run(settings, 0, 100, tmp_path / "rest", resume=tmp_path / "cut") == whole[-1:]


def test_a_loss_that_is_not_finite_ends_the_trial_before_its_step_is_reported(monkeypatch):
    losses = iter([[(0.5, 1.0)], [(0.5, 1.0)], [(0.5, math.inf)]])
    monkeypatch.setattr(multitask.descent, "train_epoch_many", lambda *_, **__: next(losses))
    trial = multitask.train(config(eval_every_steps=1), 0, 5)
    assert [next(trial).step, next(trial).step] == [1, 2]
    with pytest.raises(Diverged, match="inf at step 3"):
        next(trial)


@pytest.mark.parametrize("name", ["mse", "mrr"])
def test_a_validation_that_is_not_finite_ends_the_trial(name, monkeypatch):
    evaluate = multitask.ranking.evaluate
    nothing = {name: torch.full((3,), math.nan)}
    monkeypatch.setattr(multitask.ranking, "evaluate", lambda *given: evaluate(*given) | nothing)
    with pytest.raises(Diverged, match="nan at step 2"):
        list(multitask.train(config(), 0, 4))


def test_validation_ranks_without_the_items_of_training_and_test_without_those_of_validation_too(monkeypatch, tmp_path):
    known, evaluate = [], multitask.ranking.evaluate

    def spy(params, held_out, known_ratings):
        known.append((len(held_out), len(known_ratings)))
        return evaluate(params, held_out, known_ratings)

    monkeypatch.setattr(multitask.ranking, "evaluate", spy)
    run(config(), 0, 2, tmp_path / "home")
    assert known == [(40, 240)]
    known.clear()
    multitask.test(config(), 0, tmp_path / "home")
    assert known == [(40, 280)] * 4


# The test split


def test_training_never_opens_the_test_part(tmp_path, parts_read):
    run(config(), 0, 2, tmp_path / "home")
    assert set(parts_read) == {"train", "val"}
    multitask.test(config(), 0, tmp_path / "home")
    assert "test" in parts_read


def scored(settings: multitask.Config, seed: int, steps: int, home: Path) -> Scores:
    run(settings, seed, steps, home)
    return multitask.test(settings, seed, home)


WEIGHTS = ("", "_last", "_refit", "_refit_last")


def test_test_scores_best_and_last_weights_and_their_refits_with_the_items_behind_them(tmp_path):
    scores = scored(config(), 0, 6, tmp_path / "home")
    named = [f"test_{name}{weights}" for weights in WEIGHTS for name in ("mse", "mrr", "mrr_first")]
    assert set(scores.items) == set(named)
    assert set(scores.metrics) == {*named, *(f"test_rmse{weights}" for weights in WEIGHTS)}
    assert set(scores.metrics) <= multitask.METRICS.keys()
    held_out = movielens.ratings("movielens", "course", 0, "test")
    for name in named:
        values = [item.score for item in scores.items[name]]
        units = [item.unit for item in scores.items[name]]
        assert scores.metrics[name] == pytest.approx(sum(values) / len(values))
        users = held_out.users if "mse" in name else np.unique(held_out.users)
        assert units == [str(user) for user in users]
    for weights in WEIGHTS:
        assert scores.metrics[f"test_rmse{weights}"] ** 2 == pytest.approx(scores.metrics[f"test_mse{weights}"])


def test_the_best_weights_are_those_of_a_trial_that_ends_at_the_best_moment(tmp_path):
    settings = config(lr=0.1, eval_every_steps=1)
    long, short = tmp_path / "long", tmp_path / "short"
    *_, (_, metrics) = run(settings, 0, 25, long)
    assert metrics["best_step"] < 25
    run(settings, 0, int(metrics["best_step"]), short)
    by_long, by_short = (multitask.test(settings, 0, home).items for home in (long, short))
    for name in ("test_mse", "test_mrr"):
        assert by_long[name] == by_short[f"{name}_last"] != by_long[f"{name}_last"]
        assert by_long[f"{name}_refit"] == by_short[f"{name}_refit_last"] != by_long[f"{name}_refit_last"]


def test_a_refit_is_a_trial_of_the_same_seed_on_train_and_validation_together(tmp_path, monkeypatch):
    settings = config(lr=0.1, dropout=0.2, regression_bias=True)
    scores = scored(settings, 3, 4, tmp_path / "home")
    parts = {part: movielens.ratings("movielens", "course", 0, part) for part in movielens.PARTS}
    both = movielens.Ratings(
        *(np.concatenate(pair) for pair in zip(*(vars(parts[part]).values() for part in ("train", "val")), strict=True))
    )
    # a trial that trains on both, and whose validation is the test part
    monkeypatch.setattr(multitask.movielens, "ratings", lambda *given: {"train": both, "val": parts["test"]}[given[-1]])
    *_, (_, metrics) = run(settings, 3, 4, tmp_path / "refit")
    for name in ("mse", "mrr", "mrr_first"):
        assert scores.metrics[f"test_{name}_refit_last"] == pytest.approx(metrics[f"val_{name}_last"], rel=1e-6)


def test_another_seed_is_another_refit(tmp_path):
    run(config(), 0, 2, tmp_path / "home")
    one, other = (multitask.test(config(), seed, tmp_path / "home").metrics for seed in (0, 1))
    assert one["test_mse_refit"] != other["test_mse_refit"]
    assert one["test_mse"] == other["test_mse"]


def test_every_part_is_split_by_the_data_seed_and_no_other(tmp_path, monkeypatch):
    asked, ratings = [], multitask.movielens.ratings
    monkeypatch.setattr(multitask.movielens, "ratings", lambda *given: asked.append(given) or ratings(*given))
    scored(config(dataset="planted", split="u2", data_seed=3), 7, 2, tmp_path / "home")
    assert set(asked) == {("planted", "u2", 3, part) for part in movielens.PARTS}


# The configuration

CHANGES = {
    "dim": 5, "embedding_std": 0.5, "layers": "8-4", "dropout": 0.2, "regression_bias": True, "sharing": "separate",
    "pairwise": "bpr", "factorization_weight": 0.5, "regression_weight": 0.5, "lr": 0.01, "weight_decay": 0.1,
    "candidates": 3, "batch": 16, "keep_best_by": "val_mrr", "patience": 1, "eval_every_steps": 1, "data_seed": 1,
    "split": "u1",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_hyperparameter_changes_the_rows(name, value):
    of_own = {"data", "user_column", "item_column", "rating_column", "time_column"}  # see test_multitask_own.py
    assert CHANGES.keys() | {"dataset"} | of_own == multitask.Config.model_fields.keys()
    one, other = (
        rows(list(multitask.train(settings, 0, 30)))
        for settings in (config(lr=0.1), config(**({"lr": 0.1} | {name: value})))
    )
    assert one != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factorization_weight": 0.0, "regression_weight": 0.0}, "one must be above 0"),
        ({"factorization_weight": 1.1}, "less than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"layers": "64-0"}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": [64, 0.5]}, "layers"),
        ({"lambda": 0.1}, "lambda"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("written", "widths"),
    [("96-64", [96, 64]), ([96, 64], [96, 64]), (64, [64]), ("64", [64]), ((32, 16, 8), [32, 16, 8])],
)
def test_layers_are_written_as_text_or_as_numbers(written, widths):
    settings = config(layers=written)
    assert settings.widths == widths
    assert settings.layers == "-".join(map(str, widths))


def test_the_defaults_are_the_course_s():
    default = multitask.Config()
    assert (default.dim, default.widths, default.lr, default.batch) == (32, [64], 1e-3, 256)
    assert default.algorithm == multitask.multitask.Multitask("sigmoid", 0.99, pytest.approx(0.01), 0.0)


def test_the_first_embeddings_deviate_by_one_over_their_size_unless_told_otherwise():
    for settings, expected in ((config(dim=50), 0.02), (config(dim=50, embedding_std=0.3), 0.3)):
        state = multitask._State.fresh(settings, 0, None, torch.device("cpu"))
        assert state.weights.params["user"].std().item() == pytest.approx(expected, rel=0.1)


def test_by_chance_the_mean_reciprocal_rank_is_that_of_a_random_order():
    assert multitask.chance(config())["val_mrr"] == pytest.approx(sum(1 / rank for rank in range(1, 31)) / 30)


# The planted ratings, real ones of their kind


@pytest.fixture
def planted(monkeypatch):
    """The ratings as they are read, not those of the other tests."""
    monkeypatch.undo()
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")


def test_the_planted_floor_is_reached_within_five_percent(planted, tmp_path):
    settings = multitask.Config(
        dataset="planted", dim=2, layers="64", regression_bias=True, factorization_weight=0.01, lr=0.01,
        weight_decay=5e-4, batch=1024,
    )  # fmt: skip
    scores = scored(settings, 0, 20, tmp_path / "home").metrics
    floor = movielens.planted_floor("course", 0, "test")
    assert floor < scores["test_mse"] < 1.05 * floor
    assert floor < scores["test_mse_refit"] < 1.05 * floor
    random_mrr = multitask.chance(settings)["val_mrr"]
    assert scores["test_mrr"] > 2 * random_mrr


def test_the_stream_of_training_is_that_of_the_trial_s_seed():
    state = multitask._State.fresh(config(), 4, None, torch.device("cpu"))
    stream = generator("train", 4)
    torch.testing.assert_close(state.weights.params["user"], torch.randn(USERS, 4, generator=stream) / 4)


def test_weights_that_decay_do_not_become_denormals(tmp_path):
    """On MovieLens they did after four epochs, each of which then took eight times as long."""
    told = config(weight_decay=1e-3, factorization_weight=0.84, batch=8, eval_every_steps=100)
    *_, last = multitask.train(told, 0, 100)
    last.save(tmp_path)
    held = load_file(tmp_path / "state.safetensors")
    assert not any(((each != 0) & (each.abs() < 1.17e-38)).any() for each in held.values() if each.is_floating_point())
    assert (torch.tensor(2e-38) * 0.25).item() > 0  # what others compute here is left alone
