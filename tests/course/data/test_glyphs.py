import unicodedata

import numpy as np
import pytest
import torch

from cs330ray.course.data import glyphs, packed
from cs330ray.course.data.episodes import Classes, draw_episodes
from cs330ray.course.data.images import image_classes, images_digest

pytestmark = pytest.mark.usefixtures("warm_cache")


@pytest.mark.slow
def test_about_a_thousand_classes_have_twenty_drawings_each():
    images = glyphs.pack().arrays["images"]
    assert images.dtype == np.uint8
    assert 900 <= len(images) <= 1100
    assert images.shape[1:] == (20, 28, 28)


def test_every_drawing_has_ink_and_no_two_of_a_class_are_the_same():
    images = glyphs.pack().arrays["images"]
    assert images.max(axis=(2, 3)).min() > 100
    assert all(len({drawing.tobytes() for drawing in drawings}) == 20 for drawings in images)


def test_classes_are_letters_of_at_least_ten_scripts():
    names = glyphs.pack().arrays["names"]
    letters = [unicodedata.lookup(name) for name in names]
    assert len(set(letters)) == len(letters)
    assert all(unicodedata.category(letter)[0] == "L" and not unicodedata.decomposition(letter) for letter in letters)
    assert len({name.split()[0] for name in names} - {"MODIFIER", "TURNED", "CARON", "ROMAN"}) >= 10


def test_no_two_classes_have_the_same_shape():
    means = glyphs.pack().arrays["images"].mean(axis=1)
    correlation = np.corrcoef(means.reshape(len(means), -1))
    np.fill_diagonal(correlation, 0)
    assert correlation.max() < 0.95


def test_capitals_that_look_alike_across_scripts_are_one_class():
    names = glyphs.pack().arrays["names"]
    assert "LATIN CAPITAL LETTER A" in names
    assert not {"GREEK CAPITAL LETTER ALPHA", "CYRILLIC CAPITAL LETTER A"} & set(names)


def test_a_letter_is_drawn_the_same_each_time():
    letters = glyphs._letters()
    images = dict(zip(glyphs.pack().arrays["names"], glyphs.pack().arrays["images"], strict=True))
    for letter in "Agß":
        assert np.array_equal(glyphs._drawings(letter, letters[letter]), images[unicodedata.name(letter)])


def test_parts_are_disjoint_and_cover_all_classes():
    parts = [image_classes("glyphs", "course", 0, part) for part in ("train", "val", "test")]
    classes = [{drawings.numpy().tobytes() for drawings in part} for part in parts]
    total = len(glyphs.pack().arrays["images"])
    assert len(set.union(*classes)) == sum(map(len, classes)) == total
    assert [round(len(part) / total, 2) for part in parts] == [0.68, 0.08, 0.24]


def test_a_split_hangs_on_its_seed_alone():
    first, again, other = (image_classes("glyphs", "course", seed, "val") for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_digest_is_that_of_the_packed_content():
    assert images_digest("glyphs") == packed._digest(glyphs.pack().arrays)


def test_the_nearest_neighbour_in_pixels_is_as_good_as_the_docstring_says():
    classes = torch.from_numpy(np.asarray(glyphs.pack().arrays["images"]))
    generator = torch.Generator().manual_seed(0)
    episodes = draw_episodes(Classes.equal(classes), tasks=400, ways=5, shots=1, queries=15, generator=generator)
    distances = torch.cdist(episodes.query_TNQCHW.view(400, 75, 784), episodes.support_TNKCHW.view(400, 5, 784))
    right = distances.argmin(dim=2) == torch.arange(5).repeat_interleave(15)
    assert right.float().mean().item() == pytest.approx(0.61, abs=0.02)
