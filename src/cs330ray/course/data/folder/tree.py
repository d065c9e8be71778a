"""The classes of a folder: each directory that holds images is one, named by its path within the folder.

Left out are hidden files and folders, `Thumbs.db`, `desktop.ini`, `__MACOSX`, and files of text such as a README. Any
other file that is no image by its ending is refused: a class would be smaller than it looks.
"""

import os
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from cs330ray.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
TEXTS = ("", ".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".html", ".pdf")
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")
IMAGES_MOST = 1_000_000

Tree = dict[str, list[Path]]  # the files of each class, both sorted by name


def place(data: str) -> Path:
    """The folder that a configuration names: absolute, of a `~`, or below the directory where the command runs."""
    try:
        return Path(data).expanduser().absolute()
    except RuntimeError as error:  # `~` names nobody
        raise DataError(f"data: expected a folder, got {data!r}: {error}; write its whole path") from None


def read(root: Path) -> Tree:
    """Find the classes of a folder with their files. Raises DataError for a folder that holds no two classes."""
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        raise DataError(f"{root}: expected a folder with a folder of images for each class, got {what}; check `data`")
    found: list[tuple[str, list[Path]]] = []
    images = 0
    for name, files in _classes(root, root, frozenset()):
        found.append((name, files))
        images += len(files)
        if images > IMAGES_MOST:
            raise DataError(f"{root}: expected at most {IMAGES_MOST} images, got more; check `data`, or take a part")
    if found and found[0][0] == ".":
        raise DataError(
            f"{found[0][1][0]}: expected each image in the folder of its class, got one beside those folders; move it"
        )
    if len(found) < 2:
        raise DataError(
            f"{root}: expected a folder of images for each of two classes or more, got {len(found)} with images; "
            f"images end in {' '.join(ENDINGS)}"
        )
    _check_names(root, [name for name, _ in found])
    return dict(sorted(found))


def plain(name: str) -> str:
    """A class's name as every system writes it: some take letters and their accents apart."""
    return unicodedata.normalize("NFC", name)


def _classes(root: Path, directory: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, list[Path]]]:
    """The classes in a directory and below it; raises DataError where a link leads back up, or a file is no image."""
    try:
        identity = directory.stat()
        with os.scandir(directory) as scanned:
            entries = sorted((entry for entry in scanned if not _is_left_out(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{directory}: expected a readable folder, got {error.strerror}; check its permissions"
        ) from None
    itself = (identity.st_dev, identity.st_ino)
    if itself in above:
        raise DataError(f"{directory}: expected a folder, got a link to one that holds it; remove the link")
    folders = [Path(entry.path) for entry in entries if entry.is_dir()]
    if images := [Path(entry.path) for entry in entries if not entry.is_dir() and _is_image(entry)]:
        yield plain(directory.relative_to(root).as_posix()), images
    yield from chain.from_iterable(_classes(root, folder, above | {itself}) for folder in folders)


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file is an image, and not text. Raises DataError where it is neither."""
    ending = Path(entry.name).suffix.lower()
    if not entry.is_file():
        raise DataError(f"{entry.path}: expected a file or a folder, got neither, or a link to nothing; remove it")
    if ending not in (*ENDINGS, *TEXTS):
        raise DataError(f"{entry.path}: expected images ({' '.join(ENDINGS)}), got {ending}; convert or remove it")
    return ending in ENDINGS


def _check_names(root: Path, names: list[str]) -> None:
    """Raise DataError for two classes that other systems take for one, and for a name that is no text."""
    known: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{root}: expected class names in UTF-8, got {name!r}; rename that folder") from None
        if (other := known.setdefault(name.casefold(), name)) is not name:
            raise DataError(
                f"{root}: expected names that differ in more than case or the way accents are stored, got {other!r} "
                f"and {name!r}; rename one"
            )
