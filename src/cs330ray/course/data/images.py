"""Datasets of images, by name: Omniglot, and `glyphs`, its stand-in.

A dataset has the shape (classes, drawings, height, width) and is uint8, paper 0 and ink 255.
"""

from typing import TYPE_CHECKING, Literal

from cs330ray.course.data import glyphs, omniglot
from cs330ray.errors import SpecError

if TYPE_CHECKING:
    import torch

Part = Literal["train", "val", "test"]

PARTS = ("train", "val", "test")
DATASETS = ("omniglot", "glyphs")
SEED_MAX = 2**32 - 1


def image_classes(dataset: str, split: str, data_seed: int, part: Part) -> "torch.Tensor":
    """Read one part of a dataset of images, and only that part; uint8, (classes, 20, 28, 28), ink 255.

    `split` is `course`, `paper` or `lake` (see `omniglot`); `glyphs` has one way to split and takes any of the three.
    Raises SpecError for an unknown name, DataError where the data cannot be had.
    """
    import torch  # here, so that listing or fetching archives does not wait for it

    _known("dataset", dataset, DATASETS)
    _known("split", split, omniglot.SPLITS)
    _known("part", part, PARTS)
    if not 0 <= data_seed <= SEED_MAX:
        raise SpecError(f"data_seed: `0 <= data_seed <= {SEED_MAX}` must hold, but got {data_seed}")
    images = omniglot.classes(split, data_seed, part) if dataset == "omniglot" else glyphs.classes(data_seed, part)
    return torch.from_numpy(images)


def images_digest(dataset: str) -> str:
    """Find, verify and pack a dataset of images unless that is done; the digest of what is packed. Raises DataError."""
    _known("dataset", dataset, DATASETS)
    return (omniglot.pack() if dataset == "omniglot" else glyphs.pack()).digest


def _known(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SpecError(f"{field}: must be one of {', '.join(choices)}, but got {value!r}")
