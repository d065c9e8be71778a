import gzip
import http.server
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import cs330ray
from cs330ray.data import store
from cs330ray.errors import DataError


def run_python(code, *args):
    """Start a Python process that can import cs330ray."""
    environment = os.environ | {"PYTHONPATH": str(Path(cs330ray.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_store_does_not_wait_for_torch():
    process = run_python("import cs330ray.data.store, sys; print('torch' in sys.modules)")
    assert process.communicate()[0].strip() == "False"


# Finding


def test_a_given_archive_comes_before_a_cached_one(given, cold_cache, archive):
    cold_cache.mkdir()
    (cold_cache / "thing.zip").touch()
    assert archive.found == store.fetch(archive) == cold_cache / "thing.zip"
    (given / "thing.zip").touch()
    assert archive.found == store.fetch(archive) == given / "thing.zip"


def test_the_list_of_archives_says_where_each_was_found(given):
    (given / "images_background.zip").touch()
    rows = {row.file: row for row in store.archives()}
    assert rows["images_background.zip"].found == given / "images_background.zip"
    assert rows["images_evaluation.zip"].found is None
    assert {(row.name, row.licence) for row in rows.values()} >= {("omniglot", "MIT")}
    assert all(row.url.startswith("https://") for row in rows.values())


def test_a_missing_archive_says_what_to_fetch_where_to_put_it_and_that_glyphs_needs_none(archive, cold_cache):
    with pytest.raises(DataError) as caught:
        store.fetch(archive)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("thing.zip", "CS330RAY_OFFLINE", archive.url, "$CS330RAY_DATA", str(cold_cache), "`glyphs`"):
        assert part in message


def test_an_archive_is_found_under_the_name_that_its_publisher_gives_it_too(given, archive):
    named = replace(archive, also="thing_v2.zip")
    assert named.found is None
    (given / "thing_v2.zip").touch()
    assert named.found == store.fetch(named) == given / "thing_v2.zip"
    (given / "thing.zip").touch()
    assert named.found == given / "thing.zip"


def test_a_missing_archive_says_under_which_name_to_put_it(archive):
    with pytest.raises(DataError, match=r"put it into one of them as thing_v2.zip"):
        store.fetch(replace(archive, also="thing_v2.zip"))


# Downloading


class Publisher(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        time.sleep(self.server.delay_s)
        status, headers, body = self.server.answer
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def publisher(monkeypatch, archive):
    """A web server that answers with `publisher.answer`, and the archive there as `publisher.archive`."""
    monkeypatch.setenv("CS330RAY_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), Publisher) as server:
        server.requests, server.delay_s = [], 0.0
        server.archive = replace(archive, url=f"http://127.0.0.1:{server.server_port}/thing.zip")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_download_stays_in_the_cache(publisher, cold_cache, monkeypatch):
    publisher.answer = 200, {"Content-Length": "7"}, b"content"
    assert store.fetch(publisher.archive).read_bytes() == b"content"
    monkeypatch.setenv("CS330RAY_OFFLINE", "1")
    assert store.fetch(publisher.archive) == cold_cache / "thing.zip"


def test_a_download_has_the_name_that_its_publisher_gives_it(publisher, cold_cache):
    publisher.answer = 200, {}, b"content"
    named = replace(publisher.archive, also="thing_v2.zip")
    assert store.fetch(named) == named.found == cold_cache / "thing_v2.zip"


def test_a_download_never_goes_to_the_given_directory(publisher, given):
    publisher.answer = 200, {}, b"content"
    store.fetch(publisher.archive)
    assert list(given.iterdir()) == []


def test_two_that_fetch_at_once_download_once(publisher):
    publisher.answer, publisher.delay_s = (200, {}, b"content"), 0.3
    with ThreadPoolExecutor(2) as both:
        paths = list(both.map(store.fetch, [publisher.archive] * 2))
    assert [path.read_bytes() for path in paths] == [b"content"] * 2
    assert publisher.requests == ["/thing.zip"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {}, b""), "404"),
        ((200, {"Content-Length": "9"}, b"content"), "after 7 of 9 bytes"),
        ((200, {}, bytes(100_001)), "longer than 100000 bytes"),
    ],
    ids=["not found", "cut short", "too long"],
)
def test_a_failed_download_leaves_nothing_and_says_why(publisher, cold_cache, answer, reason):
    publisher.answer = answer
    with pytest.raises(DataError, match=reason):
        store.fetch(publisher.archive)
    assert [path.name for path in cold_cache.iterdir() if "lock" not in path.name] == []


def test_no_network_is_one_line(archive, monkeypatch):
    monkeypatch.setenv("CS330RAY_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/thing.zip"
        with pytest.raises(DataError, match=r"the download failed \(.*`glyphs`") as caught:
            store.fetch(replace(archive, url=url))
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_one_line(archive, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"must be writable.*CS330RAY_CACHE"):
        store.pack("thing", dict)


# Reading zips


def zip_of(path, members):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that stands twice
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in members:
                zipped.writestr(name, content)
    return path


def test_a_zip_is_read_in_the_order_of_its_names_without_hidden_files(archive, tmp_path):
    path = zip_of(
        tmp_path / "thing.zip", [("b/2", b"two"), ("b/.DS_Store", b"x"), ("__MACOSX/b/1", b"x"), ("b/1", b"one")]
    )
    assert list(store.read_zip(archive, path, 10).items()) == [("b/1", b"one"), ("b/2", b"two")]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["thing.zip"]


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ([("../evil", b"x")], "names a place outside it"),
        ([("/etc/evil", b"x")], "names a place outside it"),
        ([("a\\..\\evil", b"x")], "names a place outside it"),
        ([("a", b"x"), ("a", b"y")], "stands in it twice"),
        ([("a", bytes(1001))], "beyond the bound"),
        ([(f"{at}", bytes(1000)) for at in range(101)], "beyond the bound"),
    ],
    ids=["parent", "absolute", "backslash", "twice", "large member", "large in all"],
)
def test_a_zip_that_must_not_be_read_is_refused_in_one_line(archive, tmp_path, members, rule):
    path = zip_of(tmp_path / "thing.zip", members)
    with pytest.raises(DataError, match=rule) as caught:
        store.read_zip(archive, path, 1000)
    assert str(path) in str(caught.value)
    assert archive.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_zip_bomb_whose_header_lies_about_its_size_does_not_unpack(archive, tmp_path):
    path = zip_of(tmp_path / "thing.zip", [("bomb", bytes(50_000_000))])
    content = path.read_bytes()
    assert content.count(struct.pack("<L", 50_000_000)) == 2  # in the local header and in the directory
    path.write_bytes(content.replace(struct.pack("<L", 50_000_000), struct.pack("<L", 100)))
    with pytest.raises(DataError, match="whole and plain zip"):
        store.read_zip(archive, path, 1000)


def test_a_member_shorter_than_its_header_says_is_refused(archive, tmp_path):
    path = zip_of(tmp_path / "thing.zip", [("a", os.urandom(500))])
    content = path.read_bytes()
    assert content.count(struct.pack("<L", 500)) == 2  # in the local header and in the directory
    path.write_bytes(content.replace(struct.pack("<L", 500), struct.pack("<L", 501)))
    with pytest.raises(DataError, match="'a' is cut short"):
        store.read_zip(archive, path, 1000)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_zip_is_refused(archive, tmp_path, share):
    path = zip_of(tmp_path / "thing.zip", [(f"{at}", os.urandom(500)) for at in range(20)])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="whole and plain zip"):
        store.read_zip(archive, path, 1000)


def test_a_zip_with_a_flipped_byte_is_refused(archive, tmp_path):
    path = zip_of(tmp_path / "thing.zip", [("a", os.urandom(500))])
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="whole and plain zip"):
        store.read_zip(archive, path, 1000)


# Reading tar.gz and gz


def tar_of(path, members):
    """Write a gzipped tar; a member is its name and its content, or what TarInfo shall say of it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
            else:
                for field, value in content.items():
                    setattr(info, field, value)
                tar.addfile(info)
    return path


def test_a_tar_is_read_in_the_order_of_its_names_from_one_folder_without_hidden_files(archive, tmp_path):
    members = [("a/en/2", b"two"), ("a/en/._2", b"x"), ("a/en-10k/1", b"x"), ("a/en/b/1", b"x"), ("a/en/1", b"one")]
    path = tar_of(tmp_path / "thing.tar.gz", [("a/en", {"type": tarfile.DIRTYPE}), *members])
    assert list(store.read_tar(archive, path, 10, "en").items()) == [("a/en/1", b"one"), ("a/en/2", b"two")]
    assert [item.name for item in tmp_path.iterdir()] == ["thing.tar.gz"]


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ([("../en/evil", b"x")], "names a place outside it"),
        ([("/en/evil", b"x")], "names a place outside it"),
        ([("en/..\\evil", b"x")], "names a place outside it"),
        ([("../en", {"type": tarfile.DIRTYPE})], "names a place outside it"),
        ([("en/a", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})], "is a link, a device or has holes"),
        ([("en/a", b"x"), ("en/b", {"type": tarfile.LNKTYPE, "linkname": "en/a"})], "is a link"),
        ([("en/a", {"type": tarfile.CHRTYPE})], "is a link, a device"),
        ([("en/a", {"type": tarfile.FIFOTYPE})], "is a link, a device"),
        ([("en/a", b"x"), ("en/a", b"y")], "stands in it twice"),
        ([("en/a", bytes(1001))], r"'en/a' \(1001 bytes\) is beyond the bound"),
        ([("other/a", bytes(100_001))], "unpacks beyond the bound of 100000 bytes"),
    ],
    ids=[
        "parent", "absolute", "backslash", "folder outside", "symbolic link", "hard link", "device", "pipe", "twice",
        "large member", "large in all",
    ],
)  # fmt: skip
def test_a_tar_that_must_not_be_read_is_refused_in_one_line(archive, tmp_path, members, rule):
    path = tar_of(tmp_path / "thing.tar.gz", members)
    with pytest.raises(DataError, match=rule) as caught:
        store.read_tar(archive, path, 1000, "en")
    assert str(path) in str(caught.value)
    assert archive.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tar_bomb_does_not_unpack_whatever_its_headers_say(archive, tmp_path, monkeypatch):
    """The size of an extended header is read into memory by tarfile itself: the bound holds below it."""
    info = tarfile.TarInfo("en/a")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    (tmp_path / "bomb").write_bytes(gzip.compress(info.tobuf() + bytes(50_000_000)))
    asked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda file, size=-1: asked.append(size) or read(file, size))
    with pytest.raises(DataError, match="more than 65536"):
        store.read_tar(archive, tmp_path / "bomb", 1000, "en")
    assert sum(asked) <= 2 * 100_001


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_tar_is_refused(archive, tmp_path, share):
    path = tar_of(tmp_path / "thing.tar.gz", [(f"en/{at}", os.urandom(500)) for at in range(20)])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"whole and plain tar\.gz"):
        store.read_tar(archive, path, 1000, "en")


@pytest.mark.parametrize("content", [b"PK\3\4 a zip", gzip.compress(b"no tar" * 200)], ids=["zip", "no tar"])
def test_what_is_no_gzipped_tar_is_refused(archive, tmp_path, content):
    (tmp_path / "thing.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"whole and plain tar\.gz"):
        store.read_tar(archive, tmp_path / "thing.tar.gz", 1000, "en")


def test_a_tar_with_a_wrong_checksum_at_its_end_is_refused(archive, tmp_path):
    path = tar_of(tmp_path / "thing.tar.gz", [("en/a", os.urandom(500))])
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the CRC-32, which stands before the length, at the end of the file
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC check failed"):
        store.read_tar(archive, path, 1000, "en")


def test_a_gzip_file_is_read_up_to_its_bound(archive, tmp_path):
    path = tmp_path / "thing.gz"
    path.write_bytes(gzip.compress(bytes(100_000)))
    assert store.read_gz(archive, path) == bytes(100_000)
    path.write_bytes(gzip.compress(bytes(100_001)))
    with pytest.raises(DataError, match="whole gzip file, but it unpacks beyond the bound of 100000 bytes"):
        store.read_gz(archive, path)


@pytest.mark.parametrize(
    "spoil",
    [lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole[:50], lambda whole: b"PK" + whole[2:]],
    ids=["empty", "last byte missing", "truncated", "other magic"],
)
def test_a_spoilt_gzip_file_is_refused_in_one_line(archive, tmp_path, spoil):
    path = tmp_path / "thing.gz"
    path.write_bytes(spoil(gzip.compress(os.urandom(500))))
    with pytest.raises(DataError, match="must be a whole gzip file") as caught:
        store.read_gz(archive, path)
    assert str(path) in str(caught.value)
    assert archive.url in str(caught.value)
    assert "\n" not in str(caught.value)


# Packing


def things():
    return {"images": np.arange(12, dtype=np.uint8).reshape(3, 4), "names": np.array(["a", "bc", "d"])}


def test_packed_arrays_come_back_from_the_disk_as_they_were():
    for _ in range(2):
        packed = store.pack("thing", things)
        assert {key: array.tolist() for key, array in packed.arrays.items()} == {
            "images": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
            "names": ["a", "bc", "d"],
        }
        assert all(isinstance(array, np.memmap) for array in packed.arrays.values())


def test_what_is_packed_is_not_built_again():
    def never():
        raise AssertionError

    assert store.pack("thing", things).digest == store.pack("thing", never).digest


def test_the_digest_tells_content_shape_type_and_name_apart():
    contents = [
        {"a": np.zeros(4, np.uint8)},
        {"a": np.array([0, 0, 0, 1], np.uint8)},
        {"a": np.zeros((2, 2), np.uint8)},
        {"a": np.zeros(4, np.int8)},
        {"b": np.zeros(4, np.uint8)},
    ]
    digests = [store.pack(f"thing{at}", lambda content=content: content).digest for at, content in enumerate(contents)]
    assert len(set(digests)) == len(contents)
    assert store.pack("again", lambda: contents[0]).digest == digests[0]


def test_writing_into_a_packed_array_does_not_reach_the_disk():
    store.pack("thing", things).arrays["images"][:] = 255
    packed = store.pack("thing", things)
    packed.verify()
    assert packed.arrays["images"][0, 0] == 0


def test_an_altered_byte_is_found_by_verify(cold_cache):
    path = store.pack("thing", things).path / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="were altered"):
        store.pack("thing", things).verify()


@pytest.mark.parametrize("file", ["images.npy", "manifest.json"])
def test_a_torn_file_is_packed_again(file):
    path = store.pack("thing", things).path / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    store.pack("thing", things).verify()
    assert path.read_bytes() == whole


def test_arrays_of_objects_are_never_packed(cold_cache):
    with pytest.raises(ValueError, match="Object arrays"):
        store.pack("thing", lambda: {"a": np.array([{}])})
    assert not (cold_cache / "packed" / "thing").exists()


PACK = """
import sys, time
from pathlib import Path
import numpy as np
from cs330ray.data import store

def build():
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    return {"images": np.full((1000, 1000), 7, np.uint8)}

Path(sys.argv[2]).touch()
while len(list(Path(sys.argv[2]).parent.glob("ready*"))) < 2:
    time.sleep(0.01)
print(store.pack("thing", build).digest)
"""


def test_two_processes_that_pack_at_once_build_one_whole_thing(tmp_path):
    processes = [run_python(PACK, tmp_path / "log", tmp_path / f"ready{at}") for at in range(2)]
    digests = [process.communicate(timeout=60)[0].strip() for process in processes]
    packed = store.pack("thing", things)
    assert digests == [packed.digest] * 2
    packed.verify()
    assert (tmp_path / "log").read_text() == "built\n"
    assert [path.name for path in packed.path.parent.iterdir() if "lock" not in path.name] == ["thing"]


KILL = """
import os, signal, sys
import numpy as np
from cs330ray.data import store

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, sys.argv[1], die)
store.pack("thing", lambda: {"images": np.zeros(1000)})
"""


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_process_killed_while_it_packs_leaves_nothing_that_is_taken_for_good(cold_cache, moment):
    process = run_python(KILL, moment)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    places = list((cold_cache / "packed").glob("[!.]*")), list((cold_cache / "packed").glob(".partial-*"))
    assert [len(place) for place in places] == [0, 1]
    packed = store.pack("thing", things)
    assert packed.arrays["images"].shape == (3, 4)
    assert list((cold_cache / "packed").glob(".partial-*")) == []
