import itertools
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cs330ray.course.data import movielens
from cs330ray.errors import DataError, SpecError
from tests.course.data.conftest import write_zip

REAL = os.environ.get("CS330RAY_DATA")  # read before any fixture takes it away
real = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "ml-100k.zip").is_file(), reason="CS330RAY_DATA holds no archive of MovieLens"
)
PAIRS = [(user, item) for user in range(1, 7) for item in range(1, 11) if (user + item) % 3]  # 40 of 6 users, 10 items
ROWS = [(user, item, 1 + (2 * user + item) % 5, 880_000_000 + item) for user, item in PAIRS]
FOLDS = np.random.RandomState(0).permutation(40) % 5


@pytest.fixture
def small_movielens(given, monkeypatch):
    """An archive of 40 ratings in the publishers' layout, and its facts; its members by name."""
    monkeypatch.setattr(movielens, "FACTS", movielens.Facts(ratings=40, users=6, items=10, fold=8))
    members = {"u.data": text(np.random.RandomState(1).permutation(ROWS)), "README": "Terms of use."}
    for fold in range(5):
        members[f"u{fold + 1}.base"] = text(row for row, at in zip(ROWS, FOLDS, strict=True) if at != fold)
        members[f"u{fold + 1}.test"] = text(row for row, at in zip(ROWS, FOLDS, strict=True) if at == fold)
    write(given, members)
    return members


def text(rows) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def write(given, members):
    write_zip(given / "ml-100k.zip", {f"ml-100k/{name}": content for name, content in members.items()})


def triples(ratings: movielens.Ratings) -> list[tuple[int, int, float]]:
    return list(zip(ratings.users.tolist(), ratings.items.tolist(), ratings.stars.tolist(), strict=True))


@pytest.fixture
def published(warm_cache, monkeypatch):
    monkeypatch.setenv("CS330RAY_DATA", str(REAL))


# Verifying


def test_ratings_are_packed_by_user_and_item_counted_from_zero(small_movielens):
    packed = movielens.pack("movielens").arrays
    expected = [(user - 1, item - 1, stars) for user, item, stars, _ in ROWS]
    assert list(zip(*(packed[name].tolist() for name in ("users", "items", "stars")), strict=True)) == expected
    assert packed["folds"].tolist() == FOLDS.tolist()


def test_an_archive_zipped_anew_in_another_order_passes(small_movielens, given):
    before = movielens.verify()
    small_movielens["u.data"] = text(reversed(ROWS)).rstrip("\n")
    write(given, dict(reversed(small_movielens.items())))
    assert movielens.verify() == before


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("u.data", lambda rows: rows[:-1], "u.data must hold as many ratings, users and items"),
        ("u.data", lambda rows: [(*rows[0][:2], 6, 0), *rows[1:]], "stars from 1 to 5 alone"),
        ("u.data", lambda rows: [*rows[:-1], rows[0]], "each pair of user and item once"),
        ("u.data", lambda rows: [(7, *rows[0][1:]), *rows[1:]], "u.data must hold as many"),
        ("u.data", lambda rows: [(u + 1, *rest) for u, *rest in rows], "users and items counted from 1"),
        ("u.data", lambda rows: [rows[0][:3], *rows[1:]], "four whole numbers a line"),
        ("u.data", lambda rows: [("one", *rows[0][1:]), *rows[1:]], "four whole numbers a line"),
        ("u3.base", lambda rows: rows[1:], "u3 must hold as many ratings to train and test"),
        ("u3.base", lambda rows: [(*rows[0][:2], rows[0][2] % 5 + 1, 0), *rows[1:]], "u3 must hold the ratings of"),
        ("u3.test", lambda rows: [(*rows[0][:2], rows[0][2] % 5 + 1, 0), *rows[1:]], "u3 must hold the ratings of"),
    ],
    ids=[
        "missing rating", "six stars", "doubled rating", "further user", "users from 2", "missing column", "no number",
        "missing in a fold", "other stars to train", "other stars to test",
    ],
)  # fmt: skip
def test_an_archive_with_other_content_is_refused_in_one_line(small_movielens, given, name, change, rule):
    rows = [tuple(map(int, line.split())) for line in small_movielens[name].splitlines()]
    write(given, small_movielens | {name: text(change(rows))})
    with pytest.raises(DataError, match=rule) as caught:
        movielens.pack("movielens")
    assert "ml-100k.zip" in str(caught.value)
    assert "planted" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rating_in_two_test_parts_is_found(small_movielens, given):
    same = {f"u2.{part}": small_movielens[f"u1.{part}"] for part in ("base", "test")}
    write(given, small_movielens | same)
    with pytest.raises(DataError, match=r"u1-u5 must hold each rating in one test part: 40, but got 32"):
        movielens.pack("movielens")


def test_a_missing_file_of_the_archive_is_named(small_movielens, given):
    del small_movielens["u4.test"]
    write(given, small_movielens)
    with pytest.raises(DataError, match=r"u4.test must be in it"):
        movielens.pack("movielens")


def test_a_missing_archive_says_so(given):
    with pytest.raises(DataError, match=r"ml-100k.zip: movielens needs it.*https://.*planted"):
        movielens.pack("movielens")


def test_what_is_packed_needs_the_archive_no_longer(small_movielens, given):
    digest = movielens.pack("movielens").digest
    shutil.rmtree(given)
    assert movielens.pack("movielens").digest == digest


# Splitting


@pytest.mark.parametrize("split", movielens.SPLITS)
def test_parts_are_disjoint_and_cover_all_ratings(small_movielens, split):
    parts = [triples(movielens.ratings("movielens", split, 3, part)) for part in movielens.PARTS]
    assert sorted(itertools.chain(*parts)) == [(user - 1, item - 1, stars) for user, item, stars, _ in ROWS]
    assert [len(part) for part in parts] == ([36, 2, 2] if split == "course" else [30, 2, 8])


@pytest.mark.parametrize("split", ["course", "u2"])
def test_a_split_hangs_on_its_seed_alone(small_movielens, split):
    first, again, other = (set(triples(movielens.ratings("movielens", split, seed, "val"))) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("fold", range(5))
def test_the_test_part_of_a_fold_is_the_publishers_whatever_the_seed(small_movielens, fold):
    lines = small_movielens[f"u{fold + 1}.test"].splitlines()
    expected = {(int(u) - 1, int(i) - 1, int(stars)) for u, i, stars, _ in map(str.split, lines)}
    for seed in (0, 1):
        assert set(triples(movielens.ratings("movielens", f"u{fold + 1}", seed, "test"))) == expected


def test_each_fold_cuts_a_validation_part_of_its_own(small_movielens):
    cut = [tuple(sorted(triples(movielens.ratings("movielens", f"u{fold}", 0, "val")))) for fold in range(1, 6)]
    assert len(set(cut)) > 1


def test_reading_a_part_looks_at_no_other_part_s_stars(small_movielens, monkeypatch):
    packed = movielens.pack("movielens")
    chosen = movielens.indices("course", 0, "val", packed.arrays["folds"])
    hidden = np.full(40, 99, np.uint8)
    hidden[chosen] = packed.arrays["stars"][chosen]
    monkeypatch.setattr(
        movielens, "pack", lambda _: movielens.packed.Packed(packed.path, {**packed.arrays, "stars": hidden}, "")
    )
    assert 99 not in movielens.ratings("movielens", "course", 0, "val").stars


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("netflix", "course", 0, "train"), "dataset"),
        (("planted", "u6", 0, "train"), "split"),
        (("planted", "course", 0, "all"), "part"),
    ],
)
def test_an_unknown_name_is_refused_with_its_value(arguments, field):
    with pytest.raises(SpecError, match=f"{field}: .*but got"):
        movielens.ratings(*arguments)


# The planted ratings


def test_the_planted_ratings_have_the_shape_that_is_said(warm_cache):
    users, items = movielens.sizes("planted")
    parts = [movielens.ratings("planted", "course", 0, part) for part in movielens.PARTS]
    assert [len(part.users) for part in parts] == [54_000, 3_000, 3_000]
    everything = list(itertools.chain(*map(triples, parts)))
    assert len({(user, item) for user, item, _ in everything}) == 60_000
    per_user = np.bincount([user for user, _, _ in everything])
    assert per_user.tolist() == [200] * users
    assert {item for _, item, _ in everything} <= set(range(items))
    assert 3.5 < np.mean([stars for *_, stars in everything]) < 4.2  # what is liked is rated more often


@pytest.mark.parametrize("split", ["course", "u4"])
def test_the_noise_of_the_planted_ratings_is_the_floor(warm_cache, split):
    for part, ratings in (("test", 3_000), ("train", 45_000)):
        deviation = movielens.PLANTED_FLOOR * (2 / ratings) ** 0.5
        assert abs(movielens.planted_floor(split, 0, part) - movielens.PLANTED_FLOOR) < 4 * deviation


def test_the_planted_noise_is_of_no_user_and_no_item(warm_cache):
    """What remains has no mean by user or by item beyond chance: there is nothing left to learn."""
    packed = movielens.pack("planted").arrays
    noise = packed["stars"] - packed["exact"]
    for groups, each in (("users", 200), ("items", 200)):
        counts = np.bincount(packed[groups])
        means = np.bincount(packed[groups], weights=noise) / counts
        assert np.mean(means**2 * counts) == pytest.approx(movielens.PLANTED_FLOOR, rel=0.4), each


def test_the_planted_ratings_without_noise_are_of_low_rank(warm_cache):
    """A constant with a bias for the item, a bias for the user, and a product of PLANTED.rank: that many dimensions."""
    packed = movielens.pack("planted").arrays
    table = np.full(movielens.sizes("planted"), np.nan)
    table[packed["users"], packed["items"]] = packed["exact"]
    block = table[:6]
    block = block[:, ~np.isnan(block).any(axis=0)]  # what all of six users have rated
    assert block.shape[1] > 6
    assert np.linalg.matrix_rank(block, tol=1e-6) == 2 + movielens.PLANTED.rank


# The published archive


@real
def test_the_published_archive_holds_what_was_published(published):
    packed = movielens.pack("movielens")
    assert movielens.verify() == packed.digest
    assert np.bincount(packed.arrays["stars"]).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert np.bincount(packed.arrays["folds"]).tolist() == [20_000] * 5
    assert np.bincount(packed.arrays["users"]).min() == 20  # each user has rated at least 20 films


@real
@pytest.mark.parametrize(("split", "sizes"), [("course", [90_000, 5_000, 5_000]), ("u1", [75_000, 5_000, 20_000])])
def test_the_published_ratings_split_as_agreed(published, split, sizes):
    parts = [movielens.ratings("movielens", split, 0, part) for part in movielens.PARTS]
    assert [len(part.users) for part in parts] == sizes
    assert len({pair for part in parts for pair in zip(part.users, part.items, strict=True)}) == 100_000


@real
def test_one_wrong_rating_among_the_published_is_found(given):
    shutil.copy(Path(REAL) / "ml-100k.zip", given)
    with zipfile.ZipFile(given / "ml-100k.zip") as zipped:
        members = {name: zipped.read(name) for name in zipped.namelist()}
    assert b"\n22\t377\t1\t" in members["ml-100k/u.data"]
    members["ml-100k/u.data"] = members["ml-100k/u.data"].replace(b"\n22\t377\t1\t", b"\n22\t377\t2\t")
    write_zip(given / "ml-100k.zip", members)
    with pytest.raises(DataError, match=r"u1 must hold the ratings of u.data"):
        movielens.pack("movielens")
