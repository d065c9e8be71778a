import gzip
import os
import struct
import tarfile
import warnings
import zipfile
from io import BytesIO

import pytest

from cs330ray.course.data import unpack
from cs330ray.errors import DataError

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
    assert list(unpack.read_zip(archive, path, 10).items()) == [("b/1", b"one"), ("b/2", b"two")]
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
        unpack.read_zip(archive, path, 1000)
    assert str(path) in str(caught.value)
    assert archive.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_zip_bomb_whose_header_lies_about_its_size_does_not_unpack(archive, tmp_path):
    path = zip_of(tmp_path / "thing.zip", [("bomb", bytes(50_000_000))])
    content = path.read_bytes()
    assert content.count(struct.pack("<L", 50_000_000)) == 2  # in the local header and in the directory
    path.write_bytes(content.replace(struct.pack("<L", 50_000_000), struct.pack("<L", 100)))
    with pytest.raises(DataError, match="whole and plain zip"):
        unpack.read_zip(archive, path, 1000)


def test_a_member_shorter_than_its_header_says_is_refused(archive, tmp_path):
    path = zip_of(tmp_path / "thing.zip", [("a", os.urandom(500))])
    content = path.read_bytes()
    assert content.count(struct.pack("<L", 500)) == 2  # in the local header and in the directory
    path.write_bytes(content.replace(struct.pack("<L", 500), struct.pack("<L", 501)))
    with pytest.raises(DataError, match="'a' is cut short"):
        unpack.read_zip(archive, path, 1000)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_zip_is_refused(archive, tmp_path, share):
    path = zip_of(tmp_path / "thing.zip", [(f"{at}", os.urandom(500)) for at in range(20)])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="whole and plain zip"):
        unpack.read_zip(archive, path, 1000)


def test_a_zip_with_a_flipped_byte_is_refused(archive, tmp_path):
    path = zip_of(tmp_path / "thing.zip", [("a", os.urandom(500))])
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="whole and plain zip"):
        unpack.read_zip(archive, path, 1000)


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
    assert list(unpack.read_tar(archive, path, 10, "en").items()) == [("a/en/1", b"one"), ("a/en/2", b"two")]
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
        unpack.read_tar(archive, path, 1000, "en")
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
        unpack.read_tar(archive, tmp_path / "bomb", 1000, "en")
    assert sum(asked) <= 2 * 100_001


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_tar_is_refused(archive, tmp_path, share):
    path = tar_of(tmp_path / "thing.tar.gz", [(f"en/{at}", os.urandom(500)) for at in range(20)])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"whole and plain tar\.gz"):
        unpack.read_tar(archive, path, 1000, "en")


@pytest.mark.parametrize("content", [b"PK\3\4 a zip", gzip.compress(b"no tar" * 200)], ids=["zip", "no tar"])
def test_what_is_no_gzipped_tar_is_refused(archive, tmp_path, content):
    (tmp_path / "thing.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"whole and plain tar\.gz"):
        unpack.read_tar(archive, tmp_path / "thing.tar.gz", 1000, "en")


def test_a_tar_with_a_wrong_checksum_at_its_end_is_refused(archive, tmp_path):
    path = tar_of(tmp_path / "thing.tar.gz", [("en/a", os.urandom(500))])
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the CRC-32, which stands before the length, at the end of the file
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC check failed"):
        unpack.read_tar(archive, path, 1000, "en")


def test_a_gzip_file_is_read_up_to_its_bound(archive, tmp_path):
    path = tmp_path / "thing.gz"
    path.write_bytes(gzip.compress(bytes(100_000)))
    assert unpack.read_gz(archive, path) == bytes(100_000)
    path.write_bytes(gzip.compress(bytes(100_001)))
    with pytest.raises(DataError, match="whole gzip file, but it unpacks beyond the bound of 100000 bytes"):
        unpack.read_gz(archive, path)


@pytest.mark.parametrize(
    "spoil",
    [lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole[:50], lambda whole: b"PK" + whole[2:]],
    ids=["empty", "last byte missing", "truncated", "other magic"],
)
def test_a_spoilt_gzip_file_is_refused_in_one_line(archive, tmp_path, spoil):
    path = tmp_path / "thing.gz"
    path.write_bytes(spoil(gzip.compress(os.urandom(500))))
    with pytest.raises(DataError, match="must be a whole gzip file") as caught:
        unpack.read_gz(archive, path)
    assert str(path) in str(caught.value)
    assert archive.url in str(caught.value)
    assert "\n" not in str(caught.value)
