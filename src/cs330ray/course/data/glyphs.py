"""Glyphs: a stand-in for Omniglot that needs no archive, drawn from the fonts that matplotlib carries.

A class is a letter (Unicode category L*) that does not decompose into others, stands in at least three faces of DejaVu,
STIX General and Computer Modern (the last for ASCII alone), and has a shape of its own: letters that look alike across
scripts and cases (A, Alpha, A of Cyrillic) are one class. A drawing is the letter in one face, with its own stroke,
slant, turn, size and shift. Of about 1,000 classes a third are Canadian syllabics and a quarter Latin.

This is distorted type, not handwriting: easier than Omniglot, and no figure on it compares with a paper's. The baseline
to beat is .61 in 5-way 1-shot accuracy: each query gets the class of the nearest support drawing by the squared
distance of pixels; 15 queries a class, 2,000 episodes over all classes.
"""

import hashlib
import math
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

from cs330ray.course.data import packed
from cs330ray.errors import DataError

DRAWINGS = 20
SIDE = 28
PART_SHARES = (0.68, 0.08, 0.24)

VERSION = 1  # of the way of drawing below; a new one is packed anew
FACES_MIN = 3
ALIKE_PLAIN = 0.93  # correlation of plain, blurred drawings from which on two letters are one class
ALIKE_MEANS = 0.95  # correlation of mean drawings from which on two classes are one
NOT_LETTERS = ("cmex10", "cmsy10")  # faces that have symbols where ASCII has letters

FONT_PIXELS = 64
MARGIN = 32
FINE = 2  # drawn that much finer than SIDE, then averaged
FIT = 21  # pixels of SIDE that the longer edge of a plain letter takes
STROKE_MAX = 3
SLANT_MAX = 0.25
TURN_MAX = 0.2  # radians
SHIFT_MAX = 2.0  # pixels of SIDE
SIZES = (0.8, 1.1)

Fonts = list[ImageFont.FreeTypeFont]


@dataclass(frozen=True)
class Style:
    """How one drawing differs from the plain letter: all zero and one where it does not."""

    stroke: int = 0  # fine pixels added on each side
    slant: float = 0.0
    turn: float = 0.0
    size: tuple[float, float] = (1.0, 1.0)  # across, down
    shift: tuple[float, float] = (0.0, 0.0)


def classes(data_seed: int, part: str) -> NDArray[np.uint8]:
    """Read one part of the classes, shuffled by `data_seed`; its drawings, (classes, 20, 28, 28), ink 255."""
    images = pack().arrays["images"]
    ends = np.rint(np.cumsum(PART_SHARES) * len(images)).astype(int)
    shuffled = np.random.RandomState(data_seed).permutation(len(images))  # its streams never change
    parts = np.split(shuffled, ends[:-1])
    return np.asarray(images[parts[("train", "val", "test").index(part)]])


def pack() -> packed.Packed:
    """Draw all classes unless that is done: `images` (classes, 20, 28, 28) and `names` (classes,), those of Unicode.

    The same versions of matplotlib, FreeType, Pillow and Unicode draw the same; others are packed beside.
    """
    made_with = [
        VERSION,
        version("matplotlib"),
        features.version("freetype2"),
        version("pillow"),
        unicodedata.unidata_version,
    ]
    return packed.pack(f"glyphs-{hashlib.sha256(repr(made_with).encode()).hexdigest()[:12]}", _build)


def _build() -> dict[str, NDArray[Any]]:
    letters = _letters()
    plain = [_draw(letter, _upright(fonts)) for letter, fonts in letters.items()]
    blurred = np.stack([np.asarray(image.filter(ImageFilter.GaussianBlur(1))) for image in plain])
    apart = [list(letters)[at] for at in _distinct(blurred, ALIKE_PLAIN)]
    images = np.stack([_drawings(letter, letters[letter]) for letter in apart])
    kept = _distinct(images.mean(axis=1), ALIKE_MEANS)
    return {"images": images[kept], "names": np.array([unicodedata.name(apart[at]) for at in kept])}


def _letters() -> dict[str, Fonts]:
    """The letters in the order of their code points, each with the fonts that have it."""
    from matplotlib.ft2font import FT2Font

    fonts: dict[str, Fonts] = defaultdict(list)
    for face in _faces():
        font = ImageFont.truetype(str(face), FONT_PIXELS, layout_engine=ImageFont.Layout.BASIC)
        for letter in map(chr, FT2Font(str(face)).get_charmap()):
            if letter.isascii() or not face.stem.startswith("cm"):
                fonts[letter].append(font)
    return {letter: fonts[letter] for letter in sorted(fonts) if _simple(letter) and len(fonts[letter]) >= FACES_MIN}


def _faces() -> list[Path]:
    import matplotlib

    directory = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = [
        path
        for family in ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cm")
        for path in sorted(directory.glob(f"{family}*.ttf"))
    ]
    faces = [path for path in found if "Display" not in path.stem and path.stem not in NOT_LETTERS]
    if not faces:
        raise DataError(
            f"{directory}: glyphs are drawn from matplotlib's own fonts, but none is there; "
            "install matplotlib from its wheel"
        )
    return faces


def _simple(letter: str) -> bool:
    return unicodedata.category(letter).startswith("L") and not unicodedata.decomposition(letter)


def _upright(fonts: Fonts) -> ImageFont.FreeTypeFont:
    """The regular DejaVu Sans where it has the letter, else the first font."""
    return next((font for font in fonts if Path(str(font.path)).stem == "DejaVuSans"), fonts[0])


def _drawings(letter: str, fonts: Fonts) -> NDArray[np.uint8]:
    """Draw one letter 20 times, by turns in each of its fonts: (20, 28, 28)."""
    random = np.random.RandomState(ord(letter))
    order = random.permutation(len(fonts))
    drawings = [_draw(letter, fonts[order[at % len(fonts)]], _style(random)) for at in range(DRAWINGS)]
    return np.stack([np.asarray(drawing) for drawing in drawings])


def _style(random: np.random.RandomState) -> Style:
    return Style(
        stroke=int(random.randint(STROKE_MAX + 1)),
        slant=random.uniform(-SLANT_MAX, SLANT_MAX),
        turn=random.uniform(-TURN_MAX, TURN_MAX),
        size=(random.uniform(*SIZES), random.uniform(*SIZES)),
        shift=(random.uniform(-SHIFT_MAX, SHIFT_MAX), random.uniform(-SHIFT_MAX, SHIFT_MAX)),
    )


def _draw(letter: str, font: ImageFont.FreeTypeFont, style: Style = Style()) -> Image.Image:
    """Draw a letter, fitted and centred, then sheared, turned, sized and shifted; 28x28, ink 255."""
    canvas = Image.new("L", (3 * FONT_PIXELS, 2 * FONT_PIXELS + MARGIN))
    ImageDraw.Draw(canvas).text((FONT_PIXELS, MARGIN), letter, fill=255, font=font, stroke_width=style.stroke)
    left, top, right, bottom = canvas.getbbox() or (0, 0, 1, 1)
    fit = max(right - left, bottom - top) / (FIT * FINE)
    rotation = np.array([[math.cos(style.turn), -math.sin(style.turn)], [math.sin(style.turn), math.cos(style.turn)]])
    shear = np.array([[1 / style.size[0], style.slant], [0, 1 / style.size[1]]])
    matrix = fit * rotation @ shear  # from the drawing back to the canvas
    middle = np.array([left + right, top + bottom]) / 2
    offset = middle - matrix @ (np.array(style.shift) * FINE + SIDE * FINE / 2)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    fine = canvas.transform((SIDE * FINE,) * 2, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return fine.reduce(FINE)


def _distinct(images: NDArray[Any], alike: float) -> list[int]:
    """Keep each image that correlates less than `alike` with every one kept before it; their places."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    correlation = flat @ flat.T
    kept: list[int] = []
    for at, row in enumerate(correlation):
        if not kept or row[kept].max() < alike:
            kept.append(at)
    return kept
