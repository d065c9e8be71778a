import zipfile
from dataclasses import replace
from hashlib import sha256
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cs330ray.course.data import archives, omniglot


@pytest.fixture(autouse=True)
def cold_cache(tmp_path, monkeypatch):
    """An empty cache, no directory of archives, no downloads: the cache's path."""
    monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CS330RAY_OFFLINE", "1")
    monkeypatch.delenv("CS330RAY_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def warm_cache(session_cache, cold_cache, monkeypatch):
    """A cache that all tests of one session share, so that each dataset is packed once."""
    monkeypatch.setenv("CS330RAY_CACHE", str(session_cache))
    return session_cache


@pytest.fixture
def given(tmp_path, monkeypatch):
    """An empty directory that CS330RAY_DATA points to."""
    directory = tmp_path / "given"
    directory.mkdir()
    monkeypatch.setenv("CS330RAY_DATA", str(directory))
    return directory


def png(pixels):
    """Encode bytes 0 and 255 as a PNG of one bit."""
    content = BytesIO()
    Image.fromarray(pixels).convert("1", dither=Image.Dither.NONE).save(content, "PNG")
    return content.getvalue()


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)


@pytest.fixture
def small_omniglot(given, monkeypatch):
    """Archives of 3 and 2 characters in 2 alphabets each, and their facts; the pixels by file and member."""
    pixels = {}
    for file, characters in {"images_background.zip": "AAB", "images_evaluation.zip": "CD"}.items():
        random = np.random.default_rng(len(characters))
        drawings = {
            f"{file[:-4]}/{alphabet}/character{at:02d}/{at:04d}_{drawing:02d}.png": np.where(
                random.random((105, 105)) < 0.1, 0, 255
            ).astype(np.uint8)
            for at, alphabet in enumerate(characters, start=1)
            for drawing in range(1, 21)
        }
        write_zip(given / file, {name: png(drawing) for name, drawing in reversed(drawings.items())})
        expected = sha256(b"".join(drawings[name].tobytes() for name in sorted(drawings))).hexdigest()
        facts = omniglot.Facts(alphabets=2, characters=len(characters), sha256=expected)
        monkeypatch.setitem(omniglot.FACTS, file, facts)
        pixels[file] = drawings
    return pixels


@pytest.fixture
def archive(monkeypatch):
    """An archive of no publisher, `thing.zip` of at most 100,000 bytes."""
    thing = replace(archives.ARCHIVES["images_background.zip"], file="thing.zip", max_bytes=100_000)
    monkeypatch.setitem(archives.ARCHIVES, "thing.zip", thing)
    return thing
