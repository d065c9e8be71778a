"""Folders of images for tests: each class a coarse pattern of its own, each image of it with noise."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SEVEN = {f"class {at}": 6 for at in range(7)}


def write(root: Path, counts: Mapping[str, int] = SEVEN, *, side: int = 20, colours: int = 3) -> Path:
    """Write so many PNGs of each class; the folder. All pixels of a class are near its own pattern of 4x4 levels."""
    for at, (name, images) in enumerate(counts.items()):
        random = np.random.default_rng(at)
        pattern = random.integers(40, 216, (4, 4, colours)).repeat(side // 4, 0).repeat(side // 4, 1)
        (root / name).mkdir(parents=True)
        for number in range(images):
            levels = (pattern + random.integers(-40, 41, pattern.shape)).astype(np.uint8)
            Image.fromarray(levels.squeeze()).save(root / name / f"{number:03}.png")
    return root
