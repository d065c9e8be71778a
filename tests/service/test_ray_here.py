"""What the environment says of Ray, looked at before anything starts."""

import contextlib
import http.server
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from cs330ray.errors import SpecError
from cs330ray.quiet import cluster_address
from cs330ray.service.machines import ray_here


@pytest.fixture(autouse=True)
def unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python remembers its directory for temporary files, which pytest has asked for."""
    for name in ("RAY_TMPDIR", "TMPDIR", "TEMP", "TMP", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_ray_s_own_choice_stays_where_its_sockets_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as short:
        monkeypatch.setenv("TMPDIR", short)
        assert ray_here.folder() is None


@pytest.mark.parametrize("name", ["d" * 60, "é", "missing"])
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_that_sockets_cannot_be_in_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    if name != "missing":
        (tmp_path / name).mkdir()
    monkeypatch.setenv(variable, str(tmp_path / name))
    found = ray_here.folder()
    assert found == "/tmp/ray" or (found is None and (name, variable) == ("missing", "TMPDIR"))  # Python takes /tmp


def test_where_nothing_fits_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ("d" * 60)).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("d" * 60)))
    monkeypatch.setattr(ray_here, "USUAL", tmp_path / "nowhere")
    with pytest.raises(SpecError, match="TMPDIR: expected a directory that this user can write, of at most 39 ASCII"):
        ray_here.folder()


def test_the_longest_folder_leaves_room_for_the_longest_socket() -> None:
    """As Ray names it: a session has a time in microseconds and a process id of at most seven digits."""
    socket = "/ray/session_2026-11-29_09-31-10_839123_4194304/sockets/plasma_store"
    assert len("d" * ray_here.LONGEST + socket) == 107


def test_where_no_directory_can_be_written_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(SpecError, match="TMPDIR: expected a directory that this user can write, got none"):
        ray_here.folder()


@pytest.mark.parametrize(("address", "cluster"), [("", None), ("local", None), ("auto", "auto"), ("h:1", "h:1")])
def test_an_address_that_says_local_names_no_cluster(
    monkeypatch: pytest.MonkeyPatch, address: str, cluster: str | None
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() == cluster


@pytest.mark.parametrize("error", [ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError])
def test_what_ray_raises_of_an_address_is_one_line(error: type[Exception]) -> None:
    with pytest.raises(SpecError) as refused, ray_here.reached("ray://me:secret@nonsense"):
        raise error("no such thing as ray://me:secret@nonsense\nmore of it")
    assert str(refused.value).startswith(
        "RAY_ADDRESS: expected the address of a Ray cluster that runs, got 'ray://***@nonsense': no such thing"
    )
    assert "more of it" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_ray_has_the_function_that_is_hushed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A raylet's word on a lost worker goes through it."""
    loud = ray._private.worker.print_to_stdstream
    monkeypatch.setattr(ray._private.worker, "print_to_stdstream", loud)  # put back at the end
    word = {"lines": ["A worker died"], "pid": "raylet", "is_err": False}
    if loud.__module__ == "ray._private.worker":
        loud(word, ignore_prefix=False)
        assert "A worker died" in capsys.readouterr().out
    ray_here.hush()
    ray._private.worker.print_to_stdstream(word, ignore_prefix=False)
    assert capsys.readouterr().out == ""


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def mute() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def closed() -> Iterator[int]:
    with mute() as port:
        pass
    yield port


@pytest.mark.parametrize(
    ("there", "why"), [(web_server, "what answers there is no Ray"), (mute, "timed out"), (closed, "refused")]
)
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_what_is_no_ray_at_an_address_is_one_line_before_ray_asks_it_for_ever(
    monkeypatch: pytest.MonkeyPatch, there: Callable[[], contextlib.AbstractContextManager[int]], why: str, scheme: str
) -> None:
    monkeypatch.setattr(ray_here, "ANSWER_S", 0.3)
    with there() as port, pytest.raises(SpecError, match=why), ray_here.reached(f"{scheme}127.0.0.1:{port}"):
        pytest.fail("Ray was asked")


@pytest.mark.usefixtures("ray_here")
def test_a_ray_at_an_address_is_reached(request: pytest.FixtureRequest) -> None:
    came = False
    with ray_here.reached(request.getfixturevalue("ray_here")):
        came = True
    assert came
