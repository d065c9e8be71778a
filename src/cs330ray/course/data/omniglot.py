"""Omniglot (Lake et al. 2015): 1,623 handwritten characters of 50 alphabets, 20 drawings each.

The publishers' two archives are verified by CONTENT: their numbers, and one sha256 over the decoded pixels, so that a
zip packed anew passes and a single wrong pixel does not. Packed as 28x28 bytes, ink 255.
"""

import hashlib
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cs330ray.course.data import archives, packed, unpack
from cs330ray.errors import DataError

SIDE = 28
DRAWINGS = 20
PUBLISHED_SIZE = (105, 105)
MEMBER_BYTES = 1 << 16  # the published images have 580 bytes at most
LAYOUT = re.compile(r"[^/]+/(?P<alphabet>[^/]+)/(?P<character>character\d\d)/\d{4}_\d\d\.png")

SPLITS = ("course", "paper", "lake")
PART_SIZES = {"course": (1100, 100, 423), "paper": (1028, 172, 423)}  # characters, before rotations
LAKE_VAL_ALPHABETS = 5


@dataclass(frozen=True)
class Facts:
    """What an archive must hold.

    `sha256` is over the pixels of all drawings as bytes, ink 0 and paper 255, row by row, in the order of the paths.
    """

    alphabets: int
    characters: int
    sha256: str


FACTS = {
    "images_background.zip": Facts(30, 964, "f32435a80e3966c7aa29e20298c2c9ec9947dbf555cecea37d51cfc8e1365fa0"),
    "images_evaluation.zip": Facts(20, 659, "eb68a59f8009779aa59cff308d7af8e3b946a55d740dad6a8ed9364f7c20fa27"),
}


def classes(split: str, data_seed: int, part: str) -> NDArray[np.uint8]:
    """Read one part of a split; its drawings, (classes, 20, 28, 28), ink 255.

    `paper` adds the rotations by 90, 180 and 270 degrees of its characters as classes of their own, behind them.
    """
    arrays = pack().arrays
    images = arrays["images"][indices(split, data_seed, part, arrays["alphabets"])]
    if split != "paper":
        return np.asarray(images)
    return np.concatenate([np.rot90(images, quarters, axes=(2, 3)) for quarters in range(4)])


def indices(split: str, data_seed: int, part: str, alphabets: NDArray[np.str_]) -> NDArray[np.intp]:
    """Choose the characters of one part of a split; their places in the packed order.

    `course` and `paper` shuffle all characters and have the same test characters; `lake` keeps alphabets whole: test
    is the evaluation archive, val five alphabets of the background archive.
    """
    at = ("train", "val", "test").index(part)
    random = np.random.RandomState(data_seed)  # its streams never change, unlike those of default_rng
    if split in PART_SIZES:
        ends = np.cumsum(PART_SIZES[split])
        return np.split(random.permutation(ends[-1]), ends[:-1])[at]
    background = np.arange(len(alphabets)) < FACTS["images_background.zip"].characters
    held_out = random.permutation(np.unique(alphabets[background]))[:LAKE_VAL_ALPHABETS]
    val = background & np.isin(alphabets, held_out)
    return np.flatnonzero((background & ~val, val, ~background)[at])


def pack() -> packed.Packed:
    """Pack the archives unless that is done: `images` (1623, 20, 28, 28), `alphabets` and `characters` (1623,).

    Raises DataError where an archive is missing or not what was published.
    """
    return packed.pack(f"omniglot-{hashlib.sha256(repr(FACTS).encode()).hexdigest()[:12]}", _build)


def verify() -> str:
    """Check both archives and what is packed from them, reading all of it; the packed digest. Raises DataError."""
    for file in FACTS:
        _read(file)
    kept = pack()
    kept.verify()
    return kept.digest


def _build() -> dict[str, NDArray[Any]]:
    archives = [_read(file) for file in FACTS]
    return {key: np.concatenate([archive[key] for archive in archives]) for key in archives[0]}


def _read(file: str) -> dict[str, NDArray[Any]]:
    """Read and verify one archive; its images and the names of their characters. Raises DataError."""
    archive = archives.ARCHIVES[file]
    path = archives.fetch(archive)
    members = unpack.read_zip(archive, path, MEMBER_BYTES)
    names = _characters(path, list(members), archive.remedy)
    digest = hashlib.sha256()
    images = []
    for name, content in members.items():
        drawing = _decode(path, name, content, archive.remedy)
        digest.update(drawing.tobytes())
        images.append(255 - np.asarray(drawing.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    if digest.hexdigest() != FACTS[file].sha256:
        raise DataError(
            f"{path}: pixels must be the published ones (sha256 {FACTS[file].sha256[:12]}...), "
            f"but got {digest.hexdigest()[:12]}...; {archive.remedy}"
        )
    return {
        "images": np.stack(images).reshape(-1, DRAWINGS, SIDE, SIDE),
        "alphabets": np.array([alphabet for alphabet, _ in names]),
        "characters": np.array([character for _, character in names]),
    }


def _characters(path: Path, members: list[str], remedy: str) -> list[tuple[str, str]]:
    """The (alphabet, character) pairs that sorted members draw; raises DataError where their numbers are wrong."""
    matches = [(name, LAYOUT.fullmatch(name)) for name in members]
    for name, match in matches:
        if match is None:
            raise DataError(
                f"{path}: members must be named DIR/ALPHABET/characterNN/NNNN_NN.png, but got {name!r}; {remedy}"
            )
    drawings = Counter((match["alphabet"], match["character"]) for _, match in matches if match)
    facts = FACTS[path.name]
    got = len({alphabet for alphabet, _ in drawings}), len(drawings), set(drawings.values())
    if got != (facts.alphabets, facts.characters, {DRAWINGS}):
        raise DataError(
            f"{path}: must hold {facts.alphabets} alphabets, {facts.characters} characters, {DRAWINGS} drawings each, "
            f"but got {got[0]}, {got[1]}, {sorted(got[2])} ({len(members)} images); {remedy}"
        )
    return list(drawings)


def _decode(path: Path, name: str, content: bytes, remedy: str) -> Image.Image:
    """Decode one drawing, ink 0 on 255."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if (image.size, image.mode) == (PUBLISHED_SIZE, "1"):
                return image.convert("L")
            problem = f"got {image.size[0]}x{image.size[1]} of mode {image.mode}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = str(error)
    raise DataError(f"{path}: {name} must be a PNG of 105x105 pixels of 1 bit, but {problem}; {remedy}")
