"""One's own images as a model reads them: as its training did, of the same size and colours, black 0 and white 1."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cs330ray.course.data.folder.image import pixels
from cs330ray.course.models.drawings import as_array, from_array
from cs330ray.errors import SpecError


@dataclass(frozen=True)
class Pictures:
    """How images are read: C channels, stretched to squares of S pixels a side."""

    size: int
    channels: int

    def image(self, drawing: Any) -> NDArray[np.uint8]:
        """Turn an image into what a model reads: (C, S, S), uint8, black 0.

        `drawing` is the path of a PNG, JPEG, BMP, GIF, TIFF or WebP file, an image of Pillow, or an array or tensor
        (height, width), with 3 or 4 colours behind: uint8 with white 255, uint16 with white 65535, floats with white 1,
        or booleans. Raises DataError.
        """
        if isinstance(drawing, str | Path):
            return pixels(str(drawing), drawing, self.size, self.channels)
        source = drawing if isinstance(drawing, Image.Image) else from_array(as_array(drawing))
        return pixels("image", source, self.size, self.channels)

    def stacked(self, name: str, drawings: Iterable[Any], device: torch.device) -> Tensor:
        """Stack what a model reads: (B, C, S, S), float32, white 1. All but arrays (C, S, S) are turned by `image`.

        Raises SpecError, which begins with `name`, for what is no list, and DataError for an image that is none.
        """
        if isinstance(drawings, str | bytes | Path | Image.Image) or not isinstance(drawings, Iterable):
            raise SpecError(f"{name}: expected a list of images, got {str(drawings)!r:.80}; put [ ] around it")
        shape = (self.channels, self.size, self.size)
        rows = [self._read(drawing, shape) for drawing in drawings]
        return torch.stack(rows).to(device) if rows else torch.zeros(0, *shape, device=device)

    def _read(self, drawing: Any, shape: tuple[int, int, int]) -> Tensor:
        if not isinstance(drawing, str | Path | Image.Image) and (array := as_array(drawing)).shape == shape:
            if np.issubdtype(array.dtype, np.floating) and bool(((array >= 0) & (array <= 1)).all()):
                return torch.from_numpy(array.astype(np.float32))
            if array.dtype == np.uint8:
                return torch.from_numpy(array.astype(np.float32) / np.float32(255))
        return torch.from_numpy(self.image(drawing).astype(np.float32) / np.float32(255))
