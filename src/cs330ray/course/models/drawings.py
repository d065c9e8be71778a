"""Drawings as the image systems read them: 28x28 pixels, paper 0 and ink 255, or 1 where they are floats."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from cs330ray.course.data.omniglot import SIDE
from cs330ray.errors import DataError, SpecError

FORMATS = ["PNG", "JPEG", "BMP", "GIF"]  # some others have programs of their own run
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
SIDE_MOST = 8192  # pixels of a drawing's longer side: its square is made before it is scaled down
INK_MOST = 0.6  # the mean of the darkest drawing of omniglot is .23, of glyphs .52


def image(drawing: Any) -> NDArray[np.uint8]:
    """Turn a drawing with dark ink on white paper into what a model reads: (28, 28), uint8, ink 255.

    `drawing` is the path of a PNG, JPEG, BMP or GIF file, or an array (height, width) or (height, width, 3 or 4): uint8
    with paper 255, floats with paper 1, or booleans. As omniglot's own are: paper is added to make it square, then it
    is scaled down, nothing is centred. There a line is three pixels wide where the side has 105. Raises DataError.
    """
    if isinstance(drawing, str | Path):
        grey = _grey(str(drawing), _opened(drawing))
    else:
        grey = _grey("image", _of_array(np.asarray(drawing)))
    side = max(grey.size)
    square = Image.new("L", (side, side), 255)
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    return 255 - np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def stacked(name: str, drawings: Iterable[Any], device: torch.device) -> Tensor:
    """Stack what a model reads: (B, 1, 28, 28), float32, ink 1. A path is turned by `image` first.

    Raises SpecError, which begins with `name`, where one is no such image, and DataError for a file that is none.
    """
    rows = [_read(f"{name}[{at}]", drawing) for at, drawing in enumerate(drawings)]
    return torch.stack(rows)[:, None].to(device) if rows else torch.zeros(0, 1, SIDE, SIDE, device=device)


def _read(name: str, drawing: Any) -> Tensor:
    array = image(drawing) if isinstance(drawing, str | Path) else np.asarray(drawing)
    if array.shape not in ((SIDE, SIDE), (1, SIDE, SIDE)):
        raise SpecError(f"{name}: an image of {SIDE}x{SIDE} pixels is needed, but got {array.shape}; `image` makes one")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise SpecError(f"{name}: uint8 with ink 255, or floats with ink 1, are needed, but got {array.dtype}")
    scaled = torch.from_numpy(array.reshape(SIDE, SIDE).astype(np.float32))
    scaled = scaled.div_(255) if array.dtype == np.uint8 else scaled
    if not bool(((scaled >= 0) & (scaled <= 1)).all()):  # nor NaN
        raise SpecError(f"{name}: floats must lie in [0, 1], ink 1, but do not; divide by 255, or give uint8")
    if scaled.mean() > INK_MOST:
        raise SpecError(
            f"{name}: paper must be 0, ink high, but the mean is {scaled.mean():.2f}; `image` turns dark ink on white"
        )
    return scaled


def _opened(path: str | Path) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as opened:
            _check_size(str(path), *opened.size)
            return ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: a drawing as {', '.join(FORMATS)} is needed, but {error}") from None


def _check_size(name: str, width: int, height: int) -> None:
    """Raise DataError, before it is decoded, for a drawing whose square would take the machine's memory."""
    if max(width, height) > SIDE_MOST:
        raise DataError(
            f"{name}: a drawing of at most {SIDE_MOST} pixels a side is needed, but it has {width}x{height}"
        )


def _of_array(array: NDArray[Any]) -> Image.Image:
    deep = array.ndim == 3 and array.shape[2] in (3, 4)
    if (array.ndim != 2 and not deep) or 0 in array.shape:
        raise DataError(f"image: an array (height, width) or with 3 or 4 colours is needed, but got {array.shape}")
    _check_size("image", array.shape[1], array.shape[0])
    if array.dtype == bool or np.issubdtype(array.dtype, np.floating):
        if not bool(((array >= 0) & (array <= 1)).all()):
            raise DataError("image: floats must lie in [0, 1], paper 1, but do not; divide by 255, or give uint8")
        array = np.rint(array * 255.0).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"image: uint8, floats in [0, 1] or booleans are needed, but got {array.dtype}")
    return Image.fromarray(array)


def _grey(name: str, drawing: Image.Image) -> Image.Image:
    """The drawing in grey, and what is transparent as paper."""
    if drawing.mode not in MODES:
        raise DataError(f"{name}: a drawing of 8 bits a colour is needed, but this one is of mode {drawing.mode!r}")
    if drawing.has_transparency_data:
        seen = drawing.convert("RGBA")
        drawing = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return drawing.convert("L")
