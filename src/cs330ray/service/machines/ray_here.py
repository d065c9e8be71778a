"""What this machine's environment says of Ray: whose it is, and where it may keep its sockets."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from cs330ray.errors import SpecError
from cs330ray.words import first_line, redacted, short

USUAL = Path("/tmp")  # noqa: S108 - where Ray is by default, too
# Linux takes 107 bytes as the path of a socket, and Ray adds to its folder, for example,
# /ray/session_2026-11-29_09-31-10_839123_4194304/sockets/plasma_store
LONGEST = 107 - 68
ANSWER_S = 10.0  # so long may a cluster take to answer
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, 3.4
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # RFC 9113, 6.5: no settings; the fourth byte is the type of the frame


def folder() -> str | None:
    """Where a Ray of ours is to keep its sockets; None where its own choice will do. Raises SpecError.

    Ray cannot have them in a folder with a long name, or with other letters than those of ASCII.
    """
    try:
        wanted = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    except FileNotFoundError:
        raise SpecError(
            "TMPDIR: expected a directory that this user can write, got none, nor can this user write /tmp; set TMPDIR"
        ) from None
    if _fits(wanted) and _may_write(wanted):
        return None
    if _may_write(USUAL):
        return str(USUAL / "ray")
    raise SpecError(
        f"TMPDIR: expected a directory that this user can write, of at most {LONGEST} ASCII letters, for the sockets "
        f"of Ray, got {short(str(wanted), 200)}; set TMPDIR to such a one"
    )


def _fits(folder: Path) -> bool:
    return folder.is_absolute() and str(folder).isascii() and len(str(folder)) <= LONGEST


def _may_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Turn what Ray raises where there is no cluster at an address into a SpecError of one line.

    Something else at that address is found first: Ray would ask it for ever.
    """
    try:
        _greet(address)
        yield
    except (OSError, ValueError, OverflowError, RuntimeError, ray.exceptions.RayError) as error:
        raise SpecError(
            f"RAY_ADDRESS: expected the address of a Ray cluster that runs, got {short(redacted(address), 200)}: "
            f"{redacted(first_line(error))[:200].rstrip('.')}; start it, or unset RAY_ADDRESS"
        ) from None


def _greet(address: str) -> None:
    """Make sure that something at `host:port` speaks gRPC, as Ray does. Raises OSError or ValueError where not.

    Every server of gRPC begins with its settings, a frame of HTTP/2. `auto` and the like are for Ray to read.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal() or os.environ.get("RAY_USE_TLS") == "1":
        return
    with socket.create_connection((host.strip("[]") or "127.0.0.1", int(port)), ANSWER_S) as connection:
        connection.sendall(HELLO + SETTINGS)
        answer = connection.makefile("rb").read(len(SETTINGS))
    if answer[3:4] != SETTINGS[3:4]:
        raise ConnectionError("what answers there is no Ray")


def hush() -> None:
    """Keep Ray from printing what its raylet says, in colours, into the study's lines: the recorder says it."""
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
