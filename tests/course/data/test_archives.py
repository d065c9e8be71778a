import http.server
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cs330ray.course.data import archives, packed
from cs330ray.errors import DataError

# Finding


def test_a_given_archive_comes_before_a_cached_one(given, cold_cache, archive):
    cold_cache.mkdir()
    (cold_cache / "thing.zip").touch()
    assert archive.found == archives.fetch(archive) == cold_cache / "thing.zip"
    (given / "thing.zip").touch()
    assert archive.found == archives.fetch(archive) == given / "thing.zip"


def test_the_list_of_archives_says_where_each_was_found(given):
    (given / "images_background.zip").touch()
    rows = {row.file: row for row in archives.archives()}
    assert rows["images_background.zip"].found == given / "images_background.zip"
    assert rows["images_evaluation.zip"].found is None
    assert {(row.name, row.licence) for row in rows.values()} >= {("omniglot", "MIT")}
    assert all(row.url.startswith("https://") for row in rows.values())


def test_a_missing_archive_says_what_to_fetch_where_to_put_it_and_that_glyphs_needs_none(archive, cold_cache):
    with pytest.raises(DataError) as caught:
        archives.fetch(archive)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("thing.zip", "CS330RAY_OFFLINE", archive.url, "$CS330RAY_DATA", str(cold_cache), "`glyphs`"):
        assert part in message


def test_an_archive_is_found_under_the_name_that_its_publisher_gives_it_too(given, archive):
    named = replace(archive, also="thing_v2.zip")
    assert named.found is None
    (given / "thing_v2.zip").touch()
    assert named.found == archives.fetch(named) == given / "thing_v2.zip"
    (given / "thing.zip").touch()
    assert named.found == given / "thing.zip"


def test_a_missing_archive_says_under_which_name_to_put_it(archive):
    with pytest.raises(DataError, match=r"put it into one of them as thing_v2.zip"):
        archives.fetch(replace(archive, also="thing_v2.zip"))


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
    assert archives.fetch(publisher.archive).read_bytes() == b"content"
    monkeypatch.setenv("CS330RAY_OFFLINE", "1")
    assert archives.fetch(publisher.archive) == cold_cache / "thing.zip"


def test_a_download_has_the_name_that_its_publisher_gives_it(publisher, cold_cache):
    publisher.answer = 200, {}, b"content"
    named = replace(publisher.archive, also="thing_v2.zip")
    assert archives.fetch(named) == named.found == cold_cache / "thing_v2.zip"


def test_a_download_never_goes_to_the_given_directory(publisher, given):
    publisher.answer = 200, {}, b"content"
    archives.fetch(publisher.archive)
    assert list(given.iterdir()) == []


def test_two_that_fetch_at_once_download_once(publisher):
    publisher.answer, publisher.delay_s = (200, {}, b"content"), 0.3
    with ThreadPoolExecutor(2) as both:
        paths = list(both.map(archives.fetch, [publisher.archive] * 2))
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
        archives.fetch(publisher.archive)
    assert [path.name for path in cold_cache.iterdir() if "lock" not in path.name] == []


def test_no_network_is_one_line(archive, monkeypatch):
    monkeypatch.setenv("CS330RAY_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/thing.zip"
        with pytest.raises(DataError, match=r"the download failed \(.*`glyphs`") as caught:
            archives.fetch(replace(archive, url=url))
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_one_line(archive, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"must be writable.*CS330RAY_CACHE"):
        packed.pack("thing", dict)
