"""One image as training reads it: upright, grey or in colour, stretched to a square; (C, S, S), uint8.

Levels stay as they are in the file, black 0 and white 255: nothing is inverted, and no contrast is changed. What is
transparent is white, of an animation the first frame is read, and 16 bits a pixel become 8.
"""

import struct
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cs330ray.errors import DataError

FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"]  # some others have programs of their own run
SIDE_MOST = 8192  # pixels of an image's longer side: a small file may unpack to more than the memory holds
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip


def pixels(name: str, source: str | Path | IO[bytes] | Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """Read an image as training does: (channels, size, size), uint8, black 0.

    Raises DataError, which begins with `name`, for what is no whole image, or has more than SIDE_MOST pixels a side.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            if isinstance(source, Image.Image):
                return _square(name, source, size, channels)
            with Image.open(source, formats=FORMATS) as opened:
                return _square(name, opened, size, channels)
    except UnidentifiedImageError:
        why = "its content is of no such kind"
    except Image.DecompressionBombError as error:
        why = f"it is too large: {error}"
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or str(error)
    raise DataError(f"{name}: expected a whole image ({', '.join(FORMATS)}), got none: {why}; replace or remove it")


def check_size(name: str, width: int, height: int, kind: str = "an image") -> None:
    """Raise DataError, before it is decoded, for an image whose square would take the machine's memory."""
    if max(width, height) > SIDE_MOST:
        raise DataError(
            f"{name}: expected {kind} of at most {SIDE_MOST} pixels a side, got {width}x{height}; make it smaller"
        )


def in_eight_bits(name: str, levels: NDArray[Any]) -> Image.Image:
    """Turn an image of 16 bits a pixel, or of floats in [0, 1], into one of 8. Raises DataError for other levels."""
    most = 1.0 if np.issubdtype(levels.dtype, np.floating) else 65535.0
    if not bool(((levels >= 0) & (levels <= most)).all()):
        raise DataError(f"{name}: expected 8 or 16 bits a pixel, or floats in [0, 1], got others; save it as PNG")
    return Image.fromarray(np.rint(levels * (255 / most)).astype(np.uint8))


def _square(name: str, image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    check_size(name, *image.size)
    flat = _flat(name, ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    square = np.asarray(flat.resize((size, size), Image.Resampling.LANCZOS))
    return square[None] if channels == 1 else np.ascontiguousarray(square.transpose(2, 0, 1))


def _flat(name: str, image: Image.Image) -> Image.Image:
    """The image without transparency: on white where it has any; in 8 bits, grey or RGB."""
    if image.mode.startswith(("I", "F")):
        return in_eight_bits(name, np.asarray(image))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
