"""Drawings as models read them: ink on paper, whatever the file; what is none is one line."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cs330ray.course.data import omniglot
from cs330ray.course.models.drawings import image, stacked
from cs330ray.errors import Cs330rayError, DataError, SpecError

CPU = torch.device("cpu")


def barred(side: int = 56) -> np.ndarray:
    """White paper whose left half is black: scaled to 28 pixels, the first 14 columns are ink."""
    paper = np.full((side, side), 255, np.uint8)
    paper[:, : side // 2] = 0
    return paper


def test_dark_ink_on_white_becomes_ink_255_on_paper_0():
    found = image(barred())
    assert found.shape == (28, 28)
    assert found.dtype == np.uint8
    assert (found[:, :12] > 250).all()
    assert (found[:, 16:] < 5).all()  # Lanczos rings


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_a_file_gives_the_same(tmp_path: Path, mode: str):
    Image.fromarray(barred()).convert(mode).save(tmp_path / "a.png")
    assert (image(tmp_path / "a.png") == image(barred())).all()
    assert (image(str(tmp_path / "a.png")) == image(barred())).all()


def test_arrays_of_bytes_floats_booleans_and_colours_give_the_same():
    grey = barred()
    for same in (grey / 255, grey > 0, np.stack([grey] * 3, axis=2)):
        assert (image(same) == image(grey)).all()


def test_what_is_transparent_is_paper(tmp_path: Path):
    colours = np.zeros((56, 56, 4), np.uint8)  # black throughout,
    colours[:, :28, 3] = 255  # and seen on the left alone
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert (image(tmp_path / "a.png") == image(barred())).all()


def test_a_drawing_that_is_not_square_gets_paper_on_both_sides():
    drawing = np.zeros((56, 28), np.uint8)  # half as wide as high: ink above,
    drawing[28:] = 255  # paper below
    tall = image(drawing)
    assert (tall[:12, 10:18] > 250).all()
    assert (tall[16:] < 5).all()
    assert (tall[:, :4] < 5).all()
    assert (tall[:, 24:] < 5).all()


@pytest.mark.skipif(not os.environ.get("CS330RAY_DATA"), reason="needs the Omniglot archives at CS330RAY_DATA")
def test_a_published_drawing_becomes_what_the_systems_have_learned_from(tmp_path: Path):
    with zipfile.ZipFile(Path(os.environ["CS330RAY_DATA"]) / "images_background.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png") and "__MACOSX" not in name)
        for at, name in enumerate(names[:3]):
            (tmp_path / f"{at}.png").write_bytes(archive.read(name))
    first_character = omniglot.pack().arrays["images"][0]
    for at in range(3):
        assert (image(tmp_path / f"{at}.png") == first_character[at]).all()


def test_a_drawing_is_read_the_way_up_that_its_camera_says(tmp_path: Path):
    turned = Image.fromarray(barred()).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    assert (image(tmp_path / "a.png") == image(barred())).all()


def test_a_drawing_whose_square_would_take_all_memory_is_one_line(tmp_path: Path):
    Image.new("1", (100_000, 1)).save(tmp_path / "a.png")
    for drawing, name in ((tmp_path / "a.png", tmp_path / "a.png"), (np.zeros((1, 100_000), np.uint8), "image")):
        with pytest.raises(DataError) as caught:
            image(drawing)
        told = "expected a drawing of at most 8192 pixels a side, got 100000x1; make it smaller"
        assert str(caught.value) == f"{name}: {told}"


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "No such file"),
        (b"", "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
    ],
)
def test_a_file_that_is_no_drawing_is_one_line(tmp_path: Path, content: bytes | None, fragment: str):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=fragment) as caught:
        image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'a.png'}: ")


@pytest.mark.parametrize(
    "array",
    [np.zeros(9, np.uint8), np.zeros((9, 9, 2), np.uint8), np.zeros((0, 9), np.uint8), np.zeros((9, 9), np.int64),
     np.full((9, 9), 1.5), np.full((9, 9), np.nan)],
)  # fmt: skip
def test_an_array_that_is_no_drawing_is_refused(array: np.ndarray):
    with pytest.raises(DataError, match=r"^image: "):
        image(array)


def test_images_are_stacked_as_floats_with_ink_1(tmp_path: Path):
    Image.fromarray(barred()).save(tmp_path / "a.png")
    ink = image(barred())
    rows = [tmp_path / "a.png", ink, ink.astype(np.float32) / 255, torch.from_numpy(ink)[None]]
    found = stacked("asked", rows, CPU)
    assert found.shape == (4, 1, 28, 28)
    assert found.dtype == torch.float32
    assert (found == torch.from_numpy(ink).float() / 255).all()
    assert stacked("asked", [], CPU).shape == (0, 1, 28, 28)


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        (np.zeros((9, 9), np.uint8), "28x28 pixels, got (9, 9)"),
        (np.zeros((28, 28), np.int64), "got int64"),
        (np.full((28, 28), 2.0), "expected floats in [0, 1]"),
        (np.full((28, 28), np.nan), "expected floats in [0, 1]"),
        (np.zeros((28, 28), np.float32), "expected ink, got 0.00 at most"),
        (255 - image(barred(224)) // 2, "`image` turns dark ink on white"),
    ],
)
def test_what_a_model_cannot_read_is_named_by_its_place(row: np.ndarray, fragment: str):
    with pytest.raises(SpecError) as caught:
        stacked("asked", [image(barred()), row], CPU)
    assert str(caught.value).startswith("asked[1]: ")
    assert fragment in str(caught.value)
    assert isinstance(caught.value, Cs330rayError)


# What people draw, brought to what omniglot's own drawings are like


def letter() -> np.ndarray:
    """A page as large as omniglot's with an L of .66 of it, three pixels thick, in the middle."""
    page = np.full((105, 105), 255, np.uint8)
    page[18:87, 30:33] = 0
    page[84:87, 30:75] = 0
    return page


def similar(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two images, after the blur of a pixel."""
    blurred = [np.asarray(Image.fromarray(each).resize((14, 14), Image.Resampling.BOX)) for each in (one, other)]
    return float(np.corrcoef(*(each.ravel().astype(float) for each in blurred))[0, 1])


KINDS = [
    ("tif", "1"), ("tif", "L"), ("tif", "RGB"), ("tif", "CMYK"), ("tif", "LAB"), ("png", "I;16"), ("tif", "I;16"),
    ("tif", "F"), ("tif", "I"), ("webp", "RGB"), ("webp", "RGBA"), ("gif", "P"), ("bmp", "RGB"), ("jpg", "CMYK"),
    ("jpg", "YCbCr"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "mode"), KINDS, ids=map("-".join, KINDS))
def test_a_drawing_is_read_from_every_kind_of_file(tmp_path: Path, suffix: str, mode: str):
    drawn = Image.fromarray(letter())
    deep = {
        "I;16": letter().astype(np.uint16) * 257,
        "I": letter().astype(np.int32) * 257,
        "F": letter() / np.float32(255),
    }
    if mode == "LAB":
        converted = Image.merge("LAB", [drawn, *[Image.new("L", drawn.size, 128)] * 2])
    else:
        converted = Image.fromarray(deep[mode]) if mode in deep else drawn.convert(mode)
    assert converted.mode == mode
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    converted.save(tmp_path / f"a.{suffix}", **options)
    found = image(tmp_path / f"a.{suffix}").astype(int)
    assert abs(found - image(letter())).max() <= (40 if suffix == "jpg" or mode == "LAB" else 1)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp", "png"])
def test_every_kind_of_file_is_read_the_way_up_that_its_camera_says(tmp_path: Path, suffix: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(letter()).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / f"a.{suffix}", exif=exif)
    assert similar(image(tmp_path / f"a.{suffix}"), image(letter())) > 0.99


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path):
    frames = [Image.fromarray(letter()), Image.fromarray(letter().T.copy())]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert (image(tmp_path / "a.gif") == image(letter())).all()


def test_an_image_of_pillow_and_tensors_give_the_same():
    expected = image(letter())
    for same in (
        Image.fromarray(letter()), torch.from_numpy(letter()), torch.from_numpy(letter())[None],
        torch.from_numpy(letter() / 255).to(torch.bfloat16), letter().astype(np.uint16) * 257, letter()[:, :, None],
    ):  # fmt: skip
        assert (image(same) == expected).all()
    found = stacked("asked", [Image.fromarray(letter())], CPU)
    assert (found[0, 0] == torch.from_numpy(expected) / 255).all()


def test_white_ink_on_what_is_transparent_is_ink(tmp_path: Path):
    colours = np.full((105, 105, 4), 255, np.uint8)
    colours[:, :, 3] = 255 - letter()
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert (image(tmp_path / "a.png") == image(letter())).all()


@pytest.mark.parametrize("grey", [100, 200, 230])
def test_faint_ink_and_yellowed_paper_give_what_black_on_white_does(grey: int):
    faint = np.where(letter() == 0, grey, 250).astype(np.uint8)
    assert abs(image(faint).astype(int) - image(letter())).max() <= 1


def test_thin_lines_on_a_fine_page_are_as_dark_as_others():
    fine = np.full((2100, 2100), 255, np.uint8)
    fine[360:1740, 627:633] = 0
    fine[1707:1713, 600:1500] = 0
    assert image(fine).max() == 255
    assert similar(image(fine), image(letter())) > 0.8


@pytest.mark.parametrize(("top", "left", "page"), [(0, 0, 1000), (880, 20, 1000), (400, 450, 1000), (0, 300, 500)])
def test_a_small_drawing_on_a_large_page_is_found_centred_and_scaled(top: int, left: int, page: int):
    large = np.full((page, page), 255, np.uint8)
    large[top : top + 105, left : left + 105] = letter()
    found = image(large)
    assert similar(found, image(letter())) > 0.9
    rows, columns = (np.flatnonzero((found > 128).any(axis=axis)) for axis in (1, 0))
    assert 0.55 < max(np.ptp(rows) + 1, np.ptp(columns) + 1) / 28 < 0.75
    assert abs(rows[0] + rows[-1] - 27) <= 2
    assert abs(columns[0] + columns[-1] - 27) <= 2


def pencilled(grey: int, side: int = 1000) -> np.ndarray:
    """A page whose L is as grey as that, and as thick and large as `letter` is."""
    at = np.arange(side) * 105 // side
    return np.where(letter()[np.ix_(at, at)] == 0, grey, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [105, 1000])
@pytest.mark.parametrize("grey", [100, 190, 230])
@pytest.mark.parametrize(
    "place",
    [(0.01, 0.01), (0.99, 0.5), (0.5, 0.5), (0.3, 0.3)],
    ids=["in a corner", "at the edge", "beside the ink", "on the ink"],
)
def test_a_black_speck_takes_nothing_from_grey_ink(side: int, grey: int, place: tuple[float, float]):
    speckled = pencilled(grey, side)
    row, column = (int(side * part) for part in place)
    speckled[row, column : column + 2] = 0
    assert similar(image(speckled), image(letter())) > 0.99


def test_a_small_drawing_is_cut_out_from_among_dust():
    dusty = np.full((1000, 1000), 255, np.uint8)
    dusty[100:205, 650:755] = np.where(letter() == 0, 230, 255)
    rows, columns = np.random.RandomState(0).randint(0, 499, (2, 60)) * 2  # no two touch
    dusty[rows, columns] = 0
    assert similar(image(dusty), image(letter())) > 0.9


def test_a_small_drawing_is_cut_out_whatever_specks_and_grain_its_page_has():
    page = np.full((1000, 1000), 225.0)
    page[100:205, 650:755] = np.where(letter() == 0, 60, 225)
    grainy = (page + np.random.RandomState(0).normal(0, 6, page.shape)).clip(0, 255).astype(np.uint8)
    grainy[990, 5], grainy[5, 5] = 0, 255
    assert similar(image(grainy), image(letter())) > 0.9


@pytest.mark.parametrize(("strong", "faint"), [(0, 190), (60, 200), (150, 215)])
def test_what_the_pencil_barely_touched_belongs_to_the_drawing(strong: int, faint: int):
    """A small L, faint but for its upper fifth: cut to that, it would be a bar."""
    page = np.full((1000, 1000), 255, np.uint8)
    page[100:205, 100:205] = np.where(letter() == 0, faint, 255)
    page[100:133, 100:205][letter()[:33] == 0] = strong
    found = image(page)
    rows, columns = (np.flatnonzero((found > 25).any(axis=axis)) for axis in (1, 0))
    assert 0.55 < (np.ptp(rows) + 1) / 28 < 0.75
    assert 0.35 < (np.ptp(columns) + 1) / 28 < 0.55  # the foot of the L too


def test_a_bright_speck_does_not_make_yellowed_paper_grey():
    yellowed = np.where(letter() == 0, 80, 200).astype(np.uint8)
    yellowed[100, 100] = 255
    assert abs(image(yellowed).astype(int) - image(letter())).max() <= 1


def test_a_dot_of_the_pen_is_ink_and_dust_alone_is_a_blank_page():
    page = np.full((105, 105), 255, np.uint8)
    page[10, 10:12] = 0
    with pytest.raises(DataError, match="got a page of one shade"):
        image(page)
    page[50:53, 50:53] = 0
    rows, columns = (np.flatnonzero((image(page) > 128).any(axis=axis)) for axis in (1, 0))
    for extent in (np.ptp(rows) + 1, np.ptp(columns) + 1):
        assert abs(extent - 28 * 3 / 5) <= 1  # cut out without the speck: 3 pixels of a page of 5


def test_white_ink_on_what_is_transparent_is_ink_beside_a_dark_speck():
    colours = np.full((105, 105, 4), 255, np.uint8)
    colours[:, :, 3] = 255 - letter()
    colours[5, 5] = (0, 0, 0, 255)
    assert similar(image(Image.fromarray(colours)), image(letter())) > 0.99


def noisy() -> np.ndarray:
    return np.random.RandomState(0).randint(245, 256, (105, 105)).astype(np.uint8)


@pytest.mark.parametrize("page", [np.full((99, 99), 255, np.uint8), np.zeros((99, 99, 4), np.uint8), noisy()])
def test_a_page_without_ink_is_refused(tmp_path: Path, page: np.ndarray):
    Image.fromarray(page).save(tmp_path / "a.png")
    for drawing, name in ((tmp_path / "a.png", tmp_path / "a.png"), (Image.fromarray(page), "image")):
        with pytest.raises(DataError) as caught:
            stacked("asked", [drawing], CPU)
        assert str(caught.value).startswith(f"{name}: expected dark ink on light paper, got a page of one shade")


def test_light_ink_on_dark_paper_is_told_to_invert_the_file(tmp_path: Path):
    Image.fromarray(255 - letter()).save(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        stacked("asked", [tmp_path / "a.png"], CPU)
    assert str(caught.value).startswith(f"{tmp_path / 'a.png'}: expected dark ink on light paper, got 0.9")
    assert str(caught.value).endswith("invert it (PIL.ImageOps.invert)")


def test_an_array_of_faint_ink_is_made_darker_and_a_dark_one_stays():
    ink = image(letter())
    faint = stacked("asked", [(ink // 5).astype(np.uint8), ink], CPU)
    assert faint[0].max() == 1
    assert torch.equal(faint[1, 0], torch.from_numpy(ink).float() / 255)


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), Image.new("L", (28, 28)), b"x", None, 3])
def test_one_image_in_place_of_a_list_is_one_line(one: object):
    with pytest.raises(SpecError, match=r"^asked: expected a list of images, got .*; put \[ \] around it$"):
        stacked("asked", one, CPU)


@pytest.mark.skipif(not os.environ.get("CS330RAY_DATA"), reason="needs the Omniglot archives at CS330RAY_DATA")
def test_published_drawings_stay_as_they_are():
    with zipfile.ZipFile(Path(os.environ["CS330RAY_DATA"]) / "images_background.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png") and "__MACOSX" not in name)
        changed = 0
        for name in names[::19]:
            with archive.open(name) as file, Image.open(file) as published:
                plain = 255 - np.asarray(published.convert("L").resize((28, 28), Image.Resampling.LANCZOS))
                changed += bool((image(published) != plain).any())
    assert changed / len(names[::19]) < 0.01  # a dot on an empty page, or what stands at the edge
