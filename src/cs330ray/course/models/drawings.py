"""Drawings as the image systems read them: 28x28 pixels, paper 0 and ink 255, or 1 where they are floats.

What people draw is brought to what omniglot's own drawings are like; those stay as they are. There a page has 105
pixels a side, ink is black on white, a line is 3 pixels wide, and the longer side of what is drawn takes .66 of the
page (98 of 100 between .32 and .92), its middle at most .25 of the page from the page's.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from cs330ray.course.data.folder.image import FORMATS, UNREADABLE, check_size, in_eight_bits
from cs330ray.course.data.omniglot import SIDE
from cs330ray.errors import DataError, SpecError

INK_MOST = 0.6  # the mean of the darkest drawing of omniglot is .23, of glyphs .52
INK_LEAST = 16  # levels of 255 between ink and its paper: scanners and JPEG have as much on blank paper
INK_FAINTEST = 0.2  # of the darkest ink's contrast: a pencil's pressure is uneven
SPECK_MOST = 4  # pixels of what is dust and no ink, on pages from 200 a side; a dot of omniglot's pen has 9
FAINT = 0.5  # the darkest of 28x28 pixels below which all are made darker; of omniglot's it is .67 or more
FILLS = 0.64  # of the page, by the longer side of what is drawn
FILLS_LEAST = 0.25  # below it, or further off the middle, the page is cut down to the drawing
OFF_MOST = 0.25  # of the page


def image(drawing: Any) -> NDArray[np.uint8]:
    """Turn a drawing with dark ink on light paper into what a model reads: (28, 28), uint8, ink 255.

    `drawing` is the path of a PNG, JPEG, BMP, GIF, TIFF or WebP file, of which the first frame is read, an image of
    Pillow, or an array or tensor (height, width), with 3 or 4 colours behind or 1 before or behind: uint8 with paper
    255, uint16 with paper 65535, floats with paper 1, or booleans. Its darkest ink becomes black and its paper white; a
    speck of a few pixels is no ink. A small drawing, or one far off the middle, is cut out and centred; any other is
    only made square by paper. Then it is scaled down. Raises DataError, also where there is no ink or more of it than
    paper.
    """
    if isinstance(drawing, str | Path):
        name, grey = str(drawing), _grey(_opened(drawing), str(drawing))
    elif isinstance(drawing, Image.Image):
        name, grey = "image", _grey(ImageOps.exif_transpose(drawing), "image")
    else:
        name, grey = "image", _grey(from_array(as_array(drawing)), "image")
    levels = np.asarray(grey)
    ink = _ink(levels)
    square = _square(_contrasted(name, levels, ink), ink)
    return _darkened(255 - np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))


def stacked(name: str, drawings: Iterable[Any], device: torch.device) -> Tensor:
    """Stack what a model reads: (B, 1, 28, 28), float32, ink 1. Paths and images of Pillow are turned by `image` first.

    Raises SpecError, which begins with `name`, where one is no such image, and DataError for a file that is none.
    """
    if isinstance(drawings, str | bytes | Path | Image.Image) or not isinstance(drawings, Iterable):
        raise SpecError(f"{name}: expected a list of images, got {str(drawings)!r:.80}; put [ ] around it")
    rows = [_read(f"{name}[{at}]", drawing) for at, drawing in enumerate(drawings)]
    return torch.stack(rows)[:, None].to(device) if rows else torch.zeros(0, 1, SIDE, SIDE, device=device)


def _read(name: str, drawing: Any) -> Tensor:
    array = image(drawing) if isinstance(drawing, str | Path | Image.Image) else as_array(drawing)
    if array.shape not in ((SIDE, SIDE), (1, SIDE, SIDE)):
        raise SpecError(f"{name}: expected an image of {SIDE}x{SIDE} pixels, got {array.shape}; `image` makes one")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise SpecError(f"{name}: expected uint8 with ink 255, or floats with ink 1, got {array.dtype}")
    scaled = array.reshape(SIDE, SIDE).astype(np.float32) / np.float32(255 if array.dtype == np.uint8 else 1)
    if not bool(((scaled >= 0) & (scaled <= 1)).all()):  # nor NaN
        raise SpecError(f"{name}: expected floats in [0, 1], ink 1, got others; divide by 255, or give uint8")
    if scaled.max() < np.float32(INK_LEAST / 255):
        raise SpecError(f"{name}: expected ink, got {scaled.max():.2f} at most; leave out what is blank")
    if scaled.mean() > INK_MOST:
        raise SpecError(
            f"{name}: expected paper 0 and ink high, got a mean of {scaled.mean():.2f}; `image` turns dark ink on white"
        )
    return torch.from_numpy(_darkened(scaled))


def _darkened(ink: NDArray[Any]) -> NDArray[Any]:
    """Make the ink of a faint image darker, up to the most: thin lines on a large page are faint once small."""
    most = 255 if ink.dtype == np.uint8 else 1
    darkest = float(ink.max())
    return ink if darkest >= FAINT * most else (ink * (most / darkest)).astype(ink.dtype)


def _opened(path: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as opened:
            check_size(str(path), *opened.size, "a drawing")
            return ImageOps.exif_transpose(opened)
    except UNREADABLE as error:
        raise DataError(f"{path}: expected a drawing as {', '.join(FORMATS)}, got none: {error}") from None


def as_array(drawing: Any) -> NDArray[Any]:
    """An array of what may be a tensor, on any device; floats of another width as numpy knows them."""
    if isinstance(drawing, Tensor):
        drawing = drawing.detach().cpu()
        drawing = (drawing.float() if drawing.is_floating_point() else drawing).numpy()
    return np.asarray(drawing)


def from_array(array: NDArray[Any]) -> Image.Image:
    """An image of Pillow of an array (height, width), maybe with colours, as `image` takes it. Raises DataError."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    deep = array.ndim == 3 and array.shape[2] in (3, 4)
    if (array.ndim != 2 and not deep) or 0 in array.shape:
        raise DataError(f"image: expected an array (height, width) or with 3 or 4 colours, got {array.shape}")
    check_size("image", array.shape[1], array.shape[0], "a drawing")
    if array.dtype == bool or np.issubdtype(array.dtype, np.floating):
        if not bool(((array >= 0) & (array <= 1)).all()):
            raise DataError("image: expected floats in [0, 1], paper 1, got others; divide by 255, or give uint8")
        array = np.rint(array * 255.0).astype(np.uint8)
    if array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"image: expected uint8, uint16, floats in [0, 1] or booleans, got {array.dtype}")
    return Image.fromarray(array)


def _grey(drawing: Image.Image, name: str) -> Image.Image:
    """The drawing in grey, and what is transparent as paper; where all that is seen is white, what is seen as ink."""
    check_size(name, *drawing.size, "a drawing")
    if drawing.mode.startswith(("I", "F")):
        return in_eight_bits(name, np.asarray(drawing))
    if not drawing.has_transparency_data:
        return drawing.convert("L") if drawing.mode in ("1", "L", "P") else drawing.convert("RGB").convert("L")
    seen = drawing.convert("RGBA")
    grey = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("L")
    return grey if _ink(np.asarray(grey)).any() else ImageOps.invert(seen.getchannel("A"))


def _paper(grey: NDArray[np.uint8]) -> float:
    """The level of the paper, whatever a few pixels are; of a page that is dark for the most part, between the two."""
    return max(float(np.percentile(grey, 75)), (float(grey.min()) + float(grey.max())) / 2)


def _ink(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a drawing has ink, (height, width): dark against its paper, and no speck; nowhere on a blank page."""
    paper, speck = _paper(grey), min(max(grey.shape) // 50, SPECK_MOST)
    while (contrast := paper - float(grey.min())) >= INK_LEAST:
        dark = grey <= paper - max(INK_FAINTEST * contrast, INK_LEAST)
        parts, _ = ndimage.label(dark, structure=np.ones((3, 3)))
        ink: NDArray[np.bool_] = (np.bincount(parts[dark]) > speck)[parts]
        if ink.any():
            return ink
        grey = np.where(dark, np.uint8(paper), grey)  # specks alone: what is drawn may be fainter than they are
    return np.zeros(grey.shape, np.bool_)


def _contrasted(name: str, grey: NDArray[np.uint8], ink: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The drawing from black to white. Raises DataError where there is no ink, or more of it than paper."""
    if not ink.any():
        raise DataError(
            f"{name}: expected dark ink on light paper, got a page of one shade; draw darker, or leave it out"
        )
    black, white = float(grey[ink].min()), _paper(grey)
    scaled = (np.arange(256) - black) * (255 / (white - black))
    light: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)[grey]  # by level: pages are large
    if (share := 1 - light.mean() / 255) > INK_MOST:
        raise DataError(
            f"{name}: expected dark ink on light paper, got {share:.2f} of it dark; invert it (PIL.ImageOps.invert)"
        )
    return light


def _square(grey: NDArray[np.uint8], ink: NDArray[np.bool_]) -> Image.Image:
    """The drawing on a square page: its own with paper added, or cut to the ink where that is small or far off."""
    height, width = grey.shape
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    page, longer = max(height, width), max(bottom - top, right - left)
    off = max(abs(top + bottom - height), abs(left + right - width)) / 2
    if longer < FILLS_LEAST * page or off > OFF_MOST * page:
        grey = grey[top:bottom, left:right]
        page = max(round(longer / FILLS), 1)
    square = Image.new("L", (page, page), 255)
    square.paste(Image.fromarray(grey), ((page - grey.shape[1]) // 2, (page - grey.shape[0]) // 2))
    return square
