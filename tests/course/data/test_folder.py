"""A folder of one's own images: what is read, how it splits, and what is refused in one line."""

import io
import os
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cs330ray.course.data import omniglot
from cs330ray.course.data.episodes import draw_episodes
from cs330ray.course.data.folder import images, split
from cs330ray.course.data.folder.image import pixels
from cs330ray.course.data.folder.images import Folder, Need
from cs330ray.errors import DataError
from tests.own_images import SEVEN, write

NEEDS = {part: Need(1, 2, 3) for part in ("train", "val", "test")}


@pytest.fixture(autouse=True)
def root(tmp_path: Path) -> Path:
    """A folder of seven classes with six images each."""
    return write(tmp_path / "photos")


def asked(root: Path, **changes: object) -> Folder:
    given = {"data": str(root), "size": 16, "channels": 1, "split": "seed", "data_seed": 0}
    return Folder(**given | changes)


def prepared(root: Path, **changes: object) -> str:
    return asked(root, **changes).prepare(NEEDS)


# One image


def halves(left: object = 0, right: object = 255, mode: str = "L", size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Two halves of one level or colour each."""
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return io.BytesIO(content.getvalue())


def deep() -> Image.Image:
    levels = np.zeros((16, 16), np.uint16)
    levels[:, 8:] = 65535
    return Image.fromarray(levels)


def palette() -> Image.Image:
    return halves((0, 0, 0), (255, 255, 255), "RGB").quantize(2)


def transparent() -> Image.Image:
    """Black throughout, seen on the left alone."""
    return halves((0, 0, 0, 255), (0, 0, 0, 0), "RGBA")


def transparent_palette() -> io.BytesIO:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 90, 90, 90])
    image.paste(0, (0, 0, 8, 16))
    return saved(image, transparency=1)


def turned() -> io.BytesIO:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return saved(halves().transpose(Image.Transpose.ROTATE_90), exif=exif)


def animated() -> io.BytesIO:
    return saved(halves(), "GIF", save_all=True, append_images=[halves(255, 0)], duration=100)


HALVES = {
    "1 bit": lambda: saved(halves().convert("1")),
    "8 bits of grey": lambda: saved(halves()),
    "16 bits of grey": lambda: saved(deep()),
    "16 bits of grey in TIFF": lambda: saved(deep(), "TIFF"),
    "a palette": lambda: saved(palette()),
    "a palette with a transparent colour": transparent_palette,
    "RGB": lambda: saved(halves().convert("RGB")),
    "RGBA on white": lambda: saved(transparent()),
    "grey with transparency": lambda: saved(transparent().convert("LA")),
    "WebP with transparency": lambda: saved(transparent(), "WEBP", lossless=True),
    "CMYK in TIFF": lambda: saved(halves().convert("RGB").convert("CMYK"), "TIFF"),
    "CMYK in JPEG": lambda: saved(halves().convert("RGB").convert("CMYK"), "JPEG", quality=100),
    "JPEG": lambda: saved(halves(), "JPEG", quality=100),
    "BMP": lambda: saved(halves(), "BMP"),
    "WebP": lambda: saved(halves(), "WEBP", lossless=True),
    "GIF": lambda: saved(halves(), "GIF"),
    "the first frame of an animated GIF": animated,
    "turned by EXIF": turned,
    "an image of Pillow": halves,
    "floats": lambda: Image.fromarray(np.asarray(halves(), dtype=np.float32) / 255),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", HALVES)
def test_black_and_white_halves_of_every_kind_are_read_as_0_and_255(kind: str, channels: int):
    found = pixels("x", HALVES[kind](), 16, channels).astype(int)
    assert found.shape == (channels, 16, 16)
    assert found[..., :8].max() <= (2 if "JPEG" in kind else 0)
    assert found[..., 8:].min() >= (253 if "JPEG" in kind else 255)


def test_colours_are_kept_and_grey_is_their_luminance():
    """ITU-R 601: .299 R + .587 G + .114 B."""
    image = Image.new("RGB", (5, 9), (200, 100, 50))
    assert pixels("x", image, 16, 3)[:, 3, 3].tolist() == [200, 100, 50]
    assert pixels("x", image, 16, 1)[0, 3, 3] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=1)


def test_an_image_of_another_shape_is_stretched_to_a_square():
    found = pixels("x", halves(size=(64, 32)), 16, 1).astype(int)
    assert found[0, :, :6].max() <= 10  # Lanczos rings
    assert found[0, :, 10:].min() >= 245


def test_an_image_of_one_pixel_is_one_level():
    assert (pixels("x", Image.new("L", (1, 1), 77), 16, 1) == 77).all()


# Good and bad folders


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, of one bit each, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def truncated(kind: str) -> bytes:
    content = saved(Image.effect_noise((64, 64), 50).convert("RGB"), kind).getvalue()
    return content[: len(content) // 2]


def broken_png() -> bytes:
    content = bytearray((saved(Image.effect_noise((64, 64), 50))).getvalue())
    content[60:90] = bytes(30)
    return bytes(content)


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: (root / "class 1" / name).write_bytes(content) and None


def gone(root: Path) -> None:
    shutil.rmtree(root)


def a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_bytes(b"")


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def one_class(root: Path) -> None:
    for path in sorted(root.iterdir())[1:]:
        shutil.rmtree(path)


def flat(root: Path) -> None:
    shutil.copy(root / "class 1" / "000.png", root / "a.png")


def small_classes(root: Path) -> None:
    for path in root.glob("class [1-6]/00[45].png"):
        path.unlink()


def few_classes(root: Path) -> None:
    for path in sorted(root.iterdir())[2:]:
        shutil.rmtree(path)


def same_case(root: Path) -> None:
    write(root, {"CLASS 1": 2}, side=24)


def same_accents(root: Path) -> None:
    write(root, {"caf\u00e9": 2, "cafe\u0301": 2}, side=24)


def not_utf8(root: Path) -> None:
    (root / "class 1").rename(os.fsdecode(os.fsencode(root) + b"/\xff"))


def copied(root: Path) -> None:
    shutil.copy(root / "class 1" / "000.png", root / "class 2" / "copy.png")
    shutil.copy(root / "class 1" / "001.png", root / "class 3" / "copy.png")


def cycle(root: Path) -> None:
    (root / "class 1" / "up").symlink_to(root)


def link_to_nothing(root: Path) -> None:
    (root / "class 9").symlink_to(root / "class 99")


def pipe(root: Path) -> None:
    os.mkfifo(root / "class 1" / "a.png")


BAD = {
    "no such path": (gone, r"photos: expected a folder with a folder of images for each class, got nothing; check"),
    "a file": (a_file, r"photos: expected a folder with a folder of images for each class, got a file; check `data`"),
    "empty": (empty, r"photos: expected a folder of images for each of two classes or more, got 0 with images; .*png"),
    "one class": (one_class, r"two classes or more, got 1 with images"),
    "images in the folder itself": (flat, r"a\.png: expected each image in the folder of its class, got one beside"),
    "small classes": (
        small_classes,
        r"photos: train: expected 5 images or more of each class \(2 shots \+ 3 queries\), got 4 of 'class 1' "
        r"\(and too few in [23] more\); add images, remove such classes, or lower shots or queries",
    ),
    "few classes": (few_classes, r"photos: test: expected 1 classes or more, as a task has \(1 ways\), got 0 by split"),
    "a broken PNG": (put("b.png", broken_png()), r"class 1/b\.png: expected a whole image .*, got none: "),
    "a text named PNG": (put("b.png", b"a cat"), r"class 1/b\.png: .* got none: its content is of no such kind; "),
    "nothing named JPEG": (put("b.jpg", b""), r"class 1/b\.jpg: .* got none: its content is of no such kind; replace"),
    "a truncated JPEG": (put("b.jpg", truncated("JPEG")), r"class 1/b\.jpg: .* got none: image file is truncated"),
    "a truncated PNG": (put("b.png", truncated("PNG")), r"class 1/b\.png: .* got none: .*truncated"),
    "a bomb": (put("b.png", bomb(20_000, 20_000)), r"class 1/b\.png: .* got none: it is too large: .*400000000 pixels"),
    "too wide": (put("b.png", bomb(9_000, 10)), r"b\.png: expected an image of at most 8192 pixels a side, got 9000x"),
    "another kind of image": (put("b.heic", b""), r"class 1/b\.heic: expected images \(.*\), got \.heic; convert or"),
    "names that differ in case": (same_case, r"expected names that differ in more than case .*'CLASS 1' and 'class 1'"),
    "names that differ in the storing of accents": (same_accents, r"the way accents are stored"),
    "a name that is not UTF-8": (not_utf8, r"photos: expected class names in UTF-8, got '\\+udcff'; rename"),
    "an image in two classes": (
        copied,
        r"class 2/copy\.png: expected each image in one class, got a copy of .*class 1/000\.png "
        r"\(and 1 more such copies\); remove one",
    ),
    "a link that leads back up": (cycle, r"class 1/up: expected a folder, got a link to one that holds it; remove"),
    "a link to nothing": (link_to_nothing, r"class 9: expected a file or a folder, got neither, or a link to nothing"),
    "a pipe named PNG": (pipe, r"class 1/a\.png: expected a file or a folder, got neither, or a link to nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), BAD.values(), ids=BAD)
def test_a_bad_folder_is_one_line_with_place_rule_value_and_next_step(
    root: Path, spoil: Callable[[Path], None], said: str
):
    spoil(root)
    with pytest.raises(DataError, match=said) as caught:
        prepared(root)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def hidden(root: Path) -> None:
    (root / ".git").mkdir()
    shutil.copy(root / "class 1" / "000.png", root / ".git" / "a.png")
    shutil.copy(root / "class 1" / "000.png", root / "class 1" / "._000.png")
    (root / "class 1" / ".DS_Store").write_bytes(b"\0")


def clutter(root: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini"):
        (root / "class 1" / name).write_bytes(b"\0")
    (root / "__MACOSX").mkdir()
    shutil.copy(root / "class 1" / "000.png", root / "__MACOSX" / "a.png")


def texts(root: Path) -> None:
    (root / "README.md").write_text("cats")
    (root / "LICENSE").write_text("mine")
    (root / "class 1" / "labels.csv").write_text("a,b")


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize("add", [hidden, clutter, texts], ids=lambda add: add.__name__)
def test_what_is_no_image_of_a_class_is_left_out(root: Path, add: Callable[[Path], None]):
    before = prepared(root)
    add(root)
    assert prepared(root) == before
    assert asked(root).pack().arrays["counts"].tolist() == [6] * 7


def odd_names(root: Path) -> None:
    (root / "class 1").rename(root / "b\u00e4r und \u732b\u3000x")


def linked(root: Path) -> None:
    (root / "class 1").rename(root.parent / "elsewhere")
    (root / "class 1").symlink_to(root.parent / "elsewhere")


def deeper(root: Path) -> None:
    (root / "group" / "of").mkdir(parents=True)
    (root / "class 1").rename(root / "group" / "of" / "class 1")


def another_ending(root: Path) -> None:
    (root / "class 1" / "000.png").rename(root / "class 1" / "000.PNG")


@pytest.mark.parametrize(
    ("change", "name"),
    [(odd_names, "b\u00e4r und \u732b\u3000x"), (linked, "class 1"), (deeper, "group/of/class 1"),
     (another_ending, "class 1")],
)  # fmt: skip
def test_a_class_is_named_by_its_path_whatever_that_is(root: Path, change: Callable[[Path], None], name: str):
    change(root)
    kept = asked(root).pack()
    assert set(kept.arrays["names"].tolist()) == {*SEVEN} - {"class 1"} | {name}
    assert kept.arrays["counts"].sum() == 42


def test_omniglot_s_own_layout_is_read_as_omniglot_is_but_for_ink(small_omniglot, given: Path, tmp_path: Path):
    """Five characters of twenty drawings in two archives; there ink is 255, here what the file says: 0."""
    for file in small_omniglot:
        with zipfile.ZipFile(given / file) as archive:
            archive.extractall(tmp_path / "omniglot")
    kept = asked(tmp_path / "omniglot", size=28).pack()
    theirs = omniglot.pack()
    alphabets, characters = (theirs.arrays[key].tolist() for key in ("alphabets", "characters"))
    names = [f"{alphabet}/{character}" for alphabet, character in zip(alphabets, characters, strict=True)]
    assert [name.partition("/")[2] for name in kept.arrays["names"].tolist()] == names
    assert kept.arrays["counts"].tolist() == [20] * 5
    assert np.array_equal(255 - kept.arrays["images"].reshape(5, 20, 28, 28), theirs.arrays["images"])


def test_a_folder_is_found_below_this_directory_and_at_home(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root.parent))
    assert prepared(root) == prepared(Path("photos")) == prepared(Path("~/photos"))
    with pytest.raises(DataError, match=r"data: expected a folder, got '~nobody-here/x'"):
        prepared(Path("~nobody-here/x"))


# Packed once


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are decoded from here on."""
    names: list[str] = []

    def spy(name: str, *given: object) -> object:
        names.append(name)
        return pixels(name, *given)

    monkeypatch.setattr(images, "pixels", spy)
    return names


def test_the_same_contents_are_decoded_once_wherever_they_are(root: Path, decoded: list[str]):
    first = prepared(root)
    assert len(decoded) == 42
    assert prepared(root) == first
    shutil.copytree(root, root.parent / "copy")
    assert prepared(root.parent / "copy") == first
    assert len(decoded) == 42


def changed(root: Path) -> None:
    Image.new("RGB", (20, 20), (9, 9, 9)).save(root / "class 1" / "000.png")


def added(root: Path) -> None:
    Image.new("RGB", (20, 20), (9, 9, 9)).save(root / "class 1" / "006.png")


def removed(root: Path) -> None:
    (root / "class 1" / "005.png").unlink()


def moved(root: Path) -> None:
    (root / "class 1" / "005.png").rename(root / "class 2" / "006.png")


def renamed(root: Path) -> None:
    (root / "class 1").rename(root / "class 8")


@pytest.mark.parametrize("change", [changed, added, removed, moved, renamed], ids=lambda change: change.__name__)
@pytest.mark.parametrize("settled", [True, False])
def test_another_content_has_another_digest(
    root: Path, change: Callable[[Path], None], settled: bool, monkeypatch: pytest.MonkeyPatch
):
    """Also where the files' times were trusted already."""
    monkeypatch.setattr(images, "SETTLED_NS", 0 if settled else images.SETTLED_NS)
    before = prepared(root)
    assert any((images.packed.cache() / "folders").glob("*.json")) is settled
    change(root)
    assert prepared(root) != before


@pytest.mark.parametrize("changes", [{"size": 17}, {"channels": 3}])
def test_another_size_or_colours_are_packed_beside(root: Path, changes: dict[str, int], decoded: list[str]):
    assert prepared(root) != prepared(root, **changes)
    assert len(decoded) == 84


def test_a_file_of_which_the_times_are_known_is_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "SETTLED_NS", 0)
    read, paths = images._read, list[Path]()
    monkeypatch.setattr(images, "_read", lambda path: paths.append(path) or read(path))
    first = prepared(root)
    assert len(paths) == 84  # to tell what they are, and to decode them
    assert prepared(root) == first
    assert len(paths) == 84


def test_times_are_trusted_once_every_file_is_older_than_two_seconds(root: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that changes twice within one tick of the clock would keep its times."""
    now = time.time_ns()
    monkeypatch.setattr(images.time, "time_ns", lambda: now)
    newest = max(path.stat().st_ctime_ns for path in root.rglob("*.png"))
    for age_s, trusted in ((0.0, False), (1.9, False), (2.1, True)):
        now = newest + int(age_s * 1e9)
        prepared(root)
        assert any((images.packed.cache() / "folders").glob("*.json")) is trusted


def test_images_that_change_while_they_are_read_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    def spy(name: str, *given: object) -> object:
        (root / "class 6" / "005.png").write_bytes((root / "class 6" / "004.png").read_bytes())
        return pixels(name, *given)

    monkeypatch.setattr(images, "pixels", spy)
    with pytest.raises(DataError, match=r"photos: expected images that stay as they are, got one that changed; run"):
        prepared(root)


def test_more_than_is_packed_is_refused_with_its_size(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "BYTES_MOST", 10_000)
    with pytest.raises(
        DataError, match=r"photos: expected at most .* GiB of packed images, got .* \(42 of 16x16x1\); low"
    ):
        prepared(root)


# Split


def test_the_seed_splits_by_the_shares_and_every_class_is_in_one_part():
    names = [f"{at:03}" for at in range(100)]
    parts = split.by_seed(names, 3)
    assert [len(parts[part]) for part in ("train", "val", "test")] == [64, 16, 20]
    assert sorted(name for part in parts.values() for name in part) == names
    assert split.by_seed(names, 3) == parts != split.by_seed(names, 4)


def lists(root: Path, **parts: str) -> None:
    given = {"train": "class 0\nclass 1\n", "val": "class 2", "test": "class 3\n"} | parts
    for part, text in given.items():
        (root / f"{part}.txt").write_bytes(text.encode())


def test_lists_name_classes_and_folders_of_classes(root: Path):
    deeper(root)
    (root / "class 2").rename(root / "group" / "of" / "e\u0301")
    lists(root, train="\ufeffgroup\r\n\r\n  class 0/  \r\n", val="class 3", test="class 4\nclass 5")
    folder = asked(root, split="lists")
    folder.prepare(NEEDS)
    assert folder._parts(folder.pack()) == {
        "train": ["class 0", "group/of/class 1", "group/of/\u00e9"], "val": ["class 3"], "test": ["class 4", "class 5"],
    }  # fmt: skip


def test_other_lists_have_another_digest(root: Path):
    lists(root)
    before = prepared(root, split="lists")
    lists(root, test="class 4")
    assert prepared(root, split="lists") != before


@pytest.mark.parametrize(
    ("part", "text", "said"),
    [
        ("val", "class 9", r"val\.txt: expected the name of a class or of a folder of classes, got 'class 9'; correct"),
        ("val", "class", r"val\.txt: expected the name of a class or of a folder of classes, got 'class'; correct"),
        (
            "test",
            "class 1",
            r"test\.txt: expected each class in one list, got 'class 1', also in train\.txt; remove one",
        ),
        ("val", " \n", r"val\.txt: expected the names of its classes, one a line, got none; add some"),
        ("val", None, r"val\.txt: expected the names of its classes, one a line \(split = lists\), got No such file"),
    ],
)
def test_a_bad_list_is_one_line(root: Path, part: str, text: str | None, said: str):
    lists(root)
    (root / f"{part}.txt").unlink()
    if text is not None:
        lists(root, **{part: text})
    with pytest.raises(DataError, match=said):
        prepared(root, split="lists")


def test_a_list_that_is_not_utf8_is_one_line(root: Path):
    lists(root)
    (root / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"val\.txt: .* got text that is not UTF-8; write it"):
        prepared(root, split="lists")


# Classes of different sizes


def numbered(root: Path) -> Path:
    """Classes of 4 to 9 images, each of one level: 20 times its class and its number."""
    for name in range(6):
        (root / f"{name}").mkdir(parents=True)
        for number in range(4 + name):
            Image.new("L", (16, 16), 20 * (name + 1) + number).save(root / f"{name}" / f"{number}.png")
    return root


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_a_part_has_its_own_classes_each_with_all_its_images(tmp_path: Path, where: str):
    folder = asked(numbered(tmp_path / "numbered"), split="seed")
    names = folder._parts(folder.pack())
    for part in ("train", "val", "test"):
        classes = folder.classes(part)
        if where == "meta":  # what moves to another device: nothing of other parts goes with it
            assert len(classes.to("meta").images_ICHW) == int(classes.counts_M.sum())
            continue
        assert classes.counts_M.tolist() == [4 + int(name) for name in names[part]]
        for name, first, count in zip(names[part], classes.firsts_M, classes.counts_M, strict=True):
            levels = classes.images_ICHW[first : first + count, 0, 0, 0].tolist()
            assert levels == [20 * (int(name) + 1) + number for number in range(4 + int(name))]


def test_every_image_of_a_class_is_equally_likely_however_many_it_has(tmp_path: Path):
    """A count of n draws with probability p has deviation sqrt(n p (1 - p)); five of them bound all."""
    lists(numbered(tmp_path / "numbered"), train="0\n1\n5", val="2\n3", test="4")
    classes = asked(tmp_path / "numbered", split="lists").classes("train")
    draws = torch.Generator().manual_seed(0)
    episodes = draw_episodes(classes, tasks=4000, ways=2, shots=1, queries=3, generator=draws)
    drawn = torch.cat([episodes.support_TNKCHW, episodes.query_TNQCHW], dim=2)[..., 0, 0, 0]
    levels = (drawn * 255).round().long()
    assert all(len(set(row)) == 4 for row in levels.flatten(0, 1).tolist())
    for place, count in ((0, 4), (1, 5), (2, 9)):
        of_class = levels[episodes.classes_TN == place]  # (n, 4): the support's image first
        n = len(of_class)
        assert abs(n - 4000 * 2 / 3) < 5 * (4000 * (2 / 3) * (1 / 3)) ** 0.5
        for column in of_class.T:
            counts = column.bincount()[column.bincount() > 0]
            assert len(counts) == count
            assert (counts - n / count).abs().max() < 5 * (n * (1 / count) * (1 - 1 / count)) ** 0.5
