"""The recommender on ratings of one's own: as on published ones, in one's own ids, and without the data in the end."""

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import cs330ray
from cs330ray.course.data import movielens
from cs330ray.course.data.ratings import own
from cs330ray.course.models.catalogues import Own
from cs330ray.course.systems import multitask
from cs330ray.errors import DataError, SpecError
from cs330ray.package import source
from cs330ray.spec import reading
from cs330ray.spec.study import first_values
from cs330ray.trial import check, named
from tests.export.test_load import sign
from tests.packed import pack
from tests.trial.test_contract import TINY_MULTITASK

SEED = 5
RANKING = {"regression_weight": 0.0, "factorization_weight": 1.0, "keep_best_by": "val_mrr"}
Rows = list[tuple[int, dict[str, float]]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def warm_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CS330RAY_CACHE", str(cache))
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The planted ratings as a person would have them: with other ids, in no order, beside titles of most items."""
    arrays = movielens.pack("planted").arrays
    order = np.random.RandomState(0).permutation(len(arrays["users"]))
    rows = [f"{arrays['users'][at] + 1},{arrays['items'][at] + 100},{arrays['stars'][at]!r},{at}\n" for at in order]
    path = tmp_path / "mine"
    path.mkdir()
    text = "".join(rows).replace("np.float32(", "").replace(")", "")
    (path / "ratings.csv").write_text("user,item,rating,time\n" + text)
    (path / "titles.csv").write_text(
        "item,title\n" + "".join(f'{item},"Film, the {item}th"\n' for item in range(100, 390))
    )
    return path


def config(folder: Path, **changes: Any) -> multitask.Config:
    return multitask.Config(**TINY_MULTITASK | {"dataset": "ratings", "data": str(folder)} | changes)


def rows(settings: multitask.Config, steps: int, home: Path | None = None, resume: Path | None = None) -> Rows:
    found = []
    for progress in multitask.train(settings, SEED, steps, resume):
        found.append((progress.step, dict(progress.metrics)))
    if home is not None:
        home.mkdir()
        progress.save(home)
    return found


def test_ratings_in_a_file_are_learned_as_the_same_ratings_packed_by_us(folder: Path, tmp_path: Path) -> None:
    """Bit for bit: the split, the training, and the test."""
    ours = multitask.Config(**TINY_MULTITASK | {"candidates": 3})
    mine = config(folder, candidates=3)
    assert rows(mine, 2, tmp_path / "mine-last") == rows(ours, 2, tmp_path / "our-last")
    assert multitask.test(mine, SEED, tmp_path / "mine-last") == multitask.test(ours, SEED, tmp_path / "our-last")
    assert multitask.chance(mine) == multitask.chance(ours)


def test_a_resumed_trial_ends_exactly_where_an_unbroken_one_does(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, split="time")
    whole = rows(settings, 4, tmp_path / "whole")
    assert rows(settings, 2, tmp_path / "half") + rows(settings, 4, tmp_path / "rest", tmp_path / "half") == whole
    one, other = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "rest"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_digest_is_that_of_the_ratings_and_the_columns_that_are_read(folder: Path) -> None:
    digest = multitask.prepare(config(folder))
    assert multitask.prepare(config(folder / "ratings.csv")) == multitask.prepare(config(folder)) == digest
    assert multitask.prepare(config(folder, split="time")) != digest
    assert multitask.prepare(config(folder, rating_column="", **RANKING)) != digest
    text = (folder / "ratings.csv").read_text().replace("\n", "\r\n")
    (folder / "ratings.csv").write_text(text)
    assert multitask.prepare(config(folder)) == digest
    assert multitask.prepare(config(folder, data_seed=1)) == digest


# Without stars


def test_without_stars_only_the_ranking_is_learned_and_scored(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, rating_column="", **RANKING)
    found = rows(settings, 2, tmp_path / "last")
    assert {name for name in found[-1][1] if "mse" in name or "regression" in name} == set()
    assert found[-1][1]["val_mrr"] > 0
    scores = multitask.test(settings, SEED, tmp_path / "last")
    assert set(scores.metrics) == set(scores.items)
    assert set(scores.metrics) == {
        f"test_{name}{weights}" for name in ("mrr", "mrr_first") for weights in ("", "_last", "_refit", "_refit_last")
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "regression_weight: expected 0, since .*mine is read without ratings, .* got 0.01; write 0, or name"),
        (
            {"regression_weight": 0.0},
            'keep_best_by: expected val_mrr or val_mrr_first, since .*, got val_mse; write "val_mrr"',
        ),
    ],
)
def test_without_stars_what_would_learn_or_choose_by_them_is_refused(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    settings = config(folder, rating_column="", **changes)
    for ask in (lambda: multitask.prepare(settings), lambda: next(multitask.train(settings, SEED, 2))):
        with pytest.raises(SpecError, match=said):
            ask()


# A model of them


@pytest.fixture
def exported(folder: Path, tmp_path: Path) -> Path:
    return pack(tmp_path / "model", "multitask", dict(config(folder)), steps=2)


def test_an_export_answers_in_one_s_own_ids_and_titles_without_the_data(
    folder: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the recommender of the same ratings packed by us does, row by row."""
    ours = multitask.Config(**TINY_MULTITASK)
    theirs = cs330ray.load(pack(exported.parent / "ours", "multitask", dict(ours), steps=2))
    wanted = {user: theirs.recommend(user, n=300) for user in (1, 17, 300)}
    stars = theirs.predict(17, 5)
    shutil.rmtree(folder)
    monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / "nothing"))
    model = cs330ray.load(exported)
    for user, expected in wanted.items():
        ids = [str(int(row.title.removeprefix("item ")) + 99) for row in expected]
        found = model.recommend(user, n=300, titles=False)
        assert [row.title for row in found] == ids
        assert [row[1:] for row in found] == [row[1:] for row in expected]
        named = [row.title for row in model.recommend(str(user), n=300)]
        assert named == [f"Film, the {item}th" if int(item) < 390 else item for item in ids]
        assert len(model.recommend(user, n=300, known_removed=False)) == 300
    assert 100 < len(wanted[1]) < 125  # of 300 without the 200 that are rated, but for those of the test
    assert model.predict("17", 104) == stars
    assert not (tmp_path / "nothing").exists()


def test_a_card_says_that_ids_travel_and_what_stars_may_be(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "model.recommend(user='1', n=10)" in card
    assert "holds all ids and titles, and which items each user rated" in card
    assert "1 to 5" not in card


def test_an_id_that_training_did_not_have_is_one_line(exported: Path) -> None:
    model = cs330ray.load(exported)
    for ask in (lambda: model.recommend("anna"), lambda: model.recommend(0), lambda: model.predict(1, 99)):
        with pytest.raises(SpecError, match=r"^(user|item): expected an id of the ratings, such as '1(00)?', got "):
            ask()


def test_a_model_without_stars_recommends_and_predicts_none(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, rating_column="", **RANKING)
    model = cs330ray.load(pack(tmp_path / "model", "multitask", dict(settings), steps=2))
    assert {row.stars for row in model.recommend(1)} == {None}
    with pytest.raises(SpecError, match="expected a model trained on stars"):
        model.predict(1, 100)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "stars mean nothing" not in card
    assert "print(title, round(score, 1))" in card


# Other ratings than those of the trial


def test_ratings_that_changed_since_are_neither_resumed_on_nor_tested_nor_exported(
    folder: Path, tmp_path: Path
) -> None:
    """One line of as many: users, items and ratings are the same in number, but a row is another's."""
    settings = config(folder)
    rows(settings, 2, tmp_path / "last")
    text = (folder / "ratings.csv").read_text()
    (folder / "ratings.csv").write_text(text.replace("\n300,", "\n301,"))
    for ask in (
        lambda: next(multitask.train(settings, SEED, 4, tmp_path / "last")),
        lambda: multitask.test(settings, SEED, tmp_path / "last"),
        lambda: multitask.export(settings, SEED, tmp_path / "last"),
    ):
        with pytest.raises(DataError, match=r"data: expected the ratings that .*last was trained on, got others; put"):
            ask()
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="got nothing at"):
        multitask.export(settings, SEED, tmp_path / "last")


def spoil(model: Path, name: str, change: Any) -> None:
    tensors = load_file(model / "model.safetensors")
    changed = change(tensors.pop(name))
    save_file(tensors | ({} if changed is None else {name: changed}), model / "model.safetensors")
    sign(model)


def as_bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


SPOILT: dict[str, tuple[str, Any]] = {
    "no names": ("own/names", lambda _: None),
    "an object": ("own/names", lambda _: as_bytes("{}")),
    "numbers": ("own/names", lambda _: as_bytes("[1, 2, 3]")),
    "no end": ("own/names", lambda _: as_bytes("[" * 9999)),
    "few": ("own/names", lambda _: as_bytes('[["a"], ["b"], ["c"]]')),
    "no JSON": ("own/names", lambda held: held.flip(0)),
    "names in floats": ("own/names", lambda held: held.float()),
    "items beyond": ("own/items", lambda held: held + 1000),
    "items below": ("own/items", lambda held: held - 1),
    "an item less": ("own/items", lambda held: held[:-1]),
    "ends backwards": ("own/ends", lambda held: held.flip(0)),
    "an end less": ("own/ends", lambda held: held[:-1]),
    "early ends": ("own/ends", lambda held: held - 1),
    "a user less": ("user", lambda held: held[:-1]),
}


def test_a_catalogue_that_is_none_is_one_line(exported: Path, tmp_path: Path) -> None:
    for case, (name, change) in SPOILT.items():
        model = Path(shutil.copytree(exported, tmp_path / case))
        spoil(model, name, change)
        with pytest.raises(DataError, match=r"export the model (again|anew)$") as caught:
            cs330ray.load(model)
        assert "\n" not in str(caught.value)


def test_who_rated_what_takes_four_bytes_a_rating() -> None:
    users_B, items_B = torch.tensor([2, 0, 2, 2]), torch.tensor([1, 3, 0, 2])
    kept = Own.of(["a", "b", "c"], ["w", "x", "y", "z"], [None] * 4, users_B, items_B)
    assert kept.tensors["own/items"].tolist() == [3, 0, 1, 2]
    assert kept.tensors["own/items"].element_size() == 4
    assert [kept.known(row).tolist() for row in range(3)] == [[3], [], [0, 1, 2]]


# The configuration


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "ratings"}, 'data: expected the path of ratings with dataset = "ratings", got none'),
        ({"data": "mine.csv"}, "data: expected dataset = \"ratings\" beside it, got 'movielens'"),
        ({"rating_column": "stars"}, 'rating_column: expected dataset = "ratings" beside it'),
        ({"dataset": "ratings", "data": "x", "split": "u1"}, "split: expected one of course, time with .* got 'u1'"),
        ({"dataset": "planted", "split": "time"}, "split: expected one of course, u1, .* got 'time'"),
        ({"dataset": "ratings", "data": ""}, "data"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        multitask.Config(**values)


def test_the_template_asks_a_study_of_ratings_that_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (source() / "templates" / "ratings" / "study.toml").read_text()
    study = reading.parse(tomllib.loads(text.replace('"NAME"', '"mine"').replace('"DATA"', f'"{folder}"')), "mine")
    check.check(study, "study.toml")
    (cell,) = study.cells
    config = named.configuration(named.load("multitask"), cell, first_values(cell))
    assert multitask.prepare(config)
    for line in re.findall(r"^# (\w+_column = .*?)  ", text, re.MULTILINE):
        assert tomllib.loads(line).keys() <= multitask.Config.model_fields.keys()


def test_columns_and_the_split_reach_the_ratings() -> None:
    named = {"user_column": "a", "item_column": "b", "rating_column": "c", "time_column": "d"}
    read = multitask.Config(dataset="ratings", data="x", split="time", **named).source
    assert read == own.Source("x", own.Columns("a", "b", "c", "d", by_time=True))


def test_items_behind_a_metric_are_left_out_where_they_are_many(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 3,000 ratings and 300 users of the test."""
    settings = config(folder)
    rows(settings, 2, tmp_path / "last")
    whole = multitask.test(settings, SEED, tmp_path / "last")
    monkeypatch.setattr(multitask, "MOST_ITEMS", 1000)
    few = multitask.test(settings, SEED, tmp_path / "last")
    assert few.metrics == whole.metrics
    assert few.items == {name: items for name, items in whole.items.items() if "mse" not in name}
