import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cs330ray.course.data import omniglot
from cs330ray.course.data.images import image_classes, images_digest
from cs330ray.errors import DataError, SpecError
from tests.course.data.conftest import png, write_zip

REAL = os.environ.get("CS330RAY_DATA")  # read before any fixture takes it away
real = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "images_background.zip").is_file(),
    reason="CS330RAY_DATA holds no archives of Omniglot",
)


@pytest.fixture
def published(warm_cache, monkeypatch):
    monkeypatch.setenv("CS330RAY_DATA", str(REAL))


def rewrite(path, **changes):
    """Write the zip again with other members: a name given as None is left out."""
    with zipfile.ZipFile(path) as zipped:
        members = {name: zipped.read(name) for name in zipped.namelist()}
    write_zip(path, {name: content for name, content in (members | changes).items() if content is not None})


# Verifying


def test_drawings_are_packed_in_the_order_of_their_paths_with_ink_255(small_omniglot):
    images = omniglot.pack().arrays["images"]
    assert images.shape == (5, 20, 28, 28)
    pixels = small_omniglot["images_background.zip"]["images_background/A/character02/0002_07.png"]
    expected = 255 - np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.LANCZOS))
    assert np.array_equal(images[1, 6], expected)


def test_an_archive_zipped_anew_passes(small_omniglot, given):
    before = omniglot.verify()
    rewrite(given / "images_background.zip")
    assert omniglot.verify() == before


def test_one_wrong_pixel_is_found(small_omniglot, given):
    name, pixels = next(iter(small_omniglot["images_background.zip"].items()))
    pixels[50, 50] ^= 255
    rewrite(given / "images_background.zip", **{name: png(pixels)})
    with pytest.raises(DataError, match=r"images_background.zip: pixels must be the published ones.*glyphs"):
        images_digest("omniglot")


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("A/character01/0001_01.png", None, "3 characters, 20 drawings each, but got 2, 3, \\[19, 20\\]"),
        ("A/character09/0009_01.png", b"", "but got 2, 4"),
        ("notes.txt", b"", "members must be named"),
        ("A/character01/0001_01.png", b"no image", "must be a PNG"),
        ("A/character01/0001_01.png", png(np.zeros((28, 28), np.uint8)), "but got 28x28"),
    ],
    ids=["missing drawing", "further character", "other file", "no image", "other size"],
)
def test_an_archive_with_other_members_is_refused_in_one_line(small_omniglot, given, name, content, rule):
    rewrite(given / "images_background.zip", **{f"images_background/{name}": content})
    with pytest.raises(DataError, match=rule) as caught:
        images_digest("omniglot")
    assert "images_background.zip" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_archive_is_refused(small_omniglot, given):
    path = given / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"images_evaluation.zip: must be a whole"):
        images_digest("omniglot")


def test_a_missing_archive_says_so(given):
    with pytest.raises(DataError, match=r"images_background.zip: omniglot needs it.*https://"):
        images_digest("omniglot")


def test_what_is_packed_needs_the_archives_no_longer(small_omniglot, given):
    digest = images_digest("omniglot")
    shutil.rmtree(given)
    assert images_digest("omniglot") == digest


# Splitting

ALPHABETS = np.array([f"b{at % 30:02d}" for at in range(964)] + [f"e{at % 20:02d}" for at in range(659)])


@pytest.mark.parametrize(
    ("split", "sizes"), [("course", [1100, 100, 423]), ("paper", [1028, 172, 423]), ("lake", [None, None, 659])]
)
def test_parts_are_disjoint_and_cover_all_characters(split, sizes):
    parts = [omniglot.indices(split, 3, part, ALPHABETS) for part in ("train", "val", "test")]
    assert sorted(np.concatenate(parts)) == list(range(1623))
    assert all(size in (None, len(part)) for size, part in zip(sizes, parts, strict=True))


@pytest.mark.parametrize("split", ["course", "paper", "lake"])
def test_a_split_hangs_on_its_seed_alone(split):
    first, again, other = (omniglot.indices(split, seed, "val", ALPHABETS) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert set(first) != set(other)


def test_lake_keeps_alphabets_whole():
    train, val, test = (
        set(ALPHABETS[omniglot.indices("lake", 0, part, ALPHABETS)]) for part in ("train", "val", "test")
    )
    assert (len(train), len(val), len(test)) == (25, 5, 20)
    assert not train & val
    assert {name[0] for name in train | val} == {"b"}
    assert {name[0] for name in test} == {"e"}


def test_rotations_are_further_classes_of_the_same_part(small_omniglot, monkeypatch):
    monkeypatch.setitem(omniglot.PART_SIZES, "paper", (2, 1, 2))
    plain = omniglot.pack().arrays["images"]
    for part in ("train", "val", "test"):
        chosen = plain[omniglot.indices("paper", 0, part, ALPHABETS)]
        images = image_classes("omniglot", "paper", 0, part)
        assert len(images) == 4 * len(chosen)
        for quarters in range(4):
            rotated = images[quarters * len(chosen) : (quarters + 1) * len(chosen)]
            assert torch.equal(rotated, torch.from_numpy(chosen.copy()).rot90(quarters, (2, 3)))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("mnist", "course", 0, "train"), "dataset"),
        (("omniglot", "half", 0, "train"), "split"),
        (("glyphs", "half", 0, "train"), "split"),
        (("omniglot", "course", -1, "train"), "data_seed"),
        (("omniglot", "course", 0, "all"), "part"),
    ],
)
def test_an_unknown_name_is_refused_with_its_value(arguments, field):
    with pytest.raises(SpecError, match=f"{field}: .*but got"):
        image_classes(*arguments)


# The published archives


@real
@pytest.mark.slow
def test_the_published_archives_hold_what_was_published(published):
    assert omniglot.verify() == images_digest("omniglot")
    packed = omniglot.pack().arrays
    assert packed["images"].shape == (1623, 20, 28, 28)
    assert packed["images"].dtype == np.uint8
    assert len(set(packed["alphabets"])) == 50
    assert packed["images"].max(axis=(2, 3)).min() > 128  # every drawing has ink
    assert packed["images"].mean() < 64  # and is mostly paper


@real
@pytest.mark.parametrize(
    ("split", "sizes"), [("course", [1100, 100, 423]), ("paper", [4112, 688, 1692]), ("lake", [None, None, 659])]
)
def test_the_published_characters_split_as_agreed(published, split, sizes):
    parts = [image_classes("omniglot", split, 0, part) for part in ("train", "val", "test")]
    for part, size in zip(parts, sizes, strict=True):
        assert part.shape == (size or len(part), 20, 28, 28)
        assert part.dtype == torch.uint8
    assert sum(map(len, parts)) == (6492 if split == "paper" else 1623)


@real
def test_one_wrong_pixel_among_the_published_is_found(given):
    shutil.copy(Path(REAL) / "images_evaluation.zip", given)
    with zipfile.ZipFile(given / "images_evaluation.zip") as zipped:
        name = zipped.namelist()[7000]
        with Image.open(zipped.open(name)) as image:
            pixels = np.asarray(image.convert("L")).copy()
    pixels[52, 52] ^= 255
    rewrite(given / "images_evaluation.zip", **{name: png(pixels)})
    with pytest.raises(DataError, match="pixels must be the published ones"):
        omniglot._read("images_evaluation.zip")
