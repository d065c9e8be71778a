"""Drawings as models read them: ink on paper, whatever the file; what is none is one line."""

import io
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
    tall = image(np.zeros((56, 28), np.uint8))  # all ink, half as wide as high
    assert (tall[:, 10:18] > 250).all()
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
        told = "a drawing of at most 8192 pixels a side is needed, but it has 100000x1"
        assert str(caught.value) == f"{name}: {told}"


def sixteen_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "No such file"),
        (b"", "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
        (sixteen_bits(), "8 bits"),
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
        (np.zeros((9, 9), np.uint8), "28x28 pixels is needed, but got (9, 9)"),
        (np.zeros((28, 28), np.int64), "but got int64"),
        (np.full((28, 28), 2.0), "floats must lie in [0, 1]"),
        (np.full((28, 28), np.nan), "floats must lie in [0, 1]"),
        (255 - image(barred(224)) // 2, "`image` turns dark ink on white"),
    ],
)
def test_what_a_model_cannot_read_is_named_by_its_place(row: np.ndarray, fragment: str):
    with pytest.raises(SpecError) as caught:
        stacked("asked", [np.zeros((28, 28), np.uint8), row], CPU)
    assert str(caught.value).startswith("asked[1]: ")
    assert fragment in str(caught.value)
    assert isinstance(caught.value, Cs330rayError)
