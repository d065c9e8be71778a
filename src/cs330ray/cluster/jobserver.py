"""The job server of a cluster, asked over HTTP: with the cluster's token, and with one line for all that goes wrong.

The token is read from a file; it is in no command line, no job and no message.
"""

import contextlib
import http.client
import json
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cs330ray.errors import SpecError
from cs330ray.quiet import quiet
from cs330ray.words import redacted

ADDRESS = "http://127.0.0.1:8265"  # where `ray dashboard cluster.yaml` brings a cluster's dashboard
ANSWER_S = 30.0  # for one answer of the cluster


def trouble() -> tuple[type[Exception], ...]:
    """What Ray's client raises where a cluster refuses, or is gone."""
    import ray

    return (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError)


class JobServer:
    """A job server that has answered, and whose Ray is this one."""

    def __init__(self, address: str | None = None, token_file: Path | None = None) -> None:
        """Reach the job server at an address, by default the end of a tunnel here. Raises SpecError."""
        quiet()  # before Ray is imported
        self.address = _address(address)
        self._token_file, token = _token(token_file)
        # An empty one, where there is none, keeps Ray's client from adding the token of this process's own Ray.
        self._headers = {"Authorization": f"Bearer {token}" if token else ""}
        self._check()

    def _check(self) -> None:
        import ray

        found = self.ask("GET", "/api/version")
        theirs = found.get("ray_version") if isinstance(found, dict) else None
        if theirs is None:
            raise SpecError(self._is_not_ray("other JSON"))
        if theirs != ray.__version__:
            raise SpecError(
                f"{self.address}: the cluster must run the Ray of this machine, {ray.__version__}, but it runs "
                f"{theirs}; install ray=={theirs} here, or start the cluster with this one"
            )

    def client(self) -> Any:
        """Ray's own client, at this very address. Raises SpecError where Ray was installed without it."""
        try:
            from ray.job_submission import JobSubmissionClient

            for name in _CHATTY:
                logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
            with _environment("RAY_API_SERVER_ADDRESS", self.address):  # goes before any argument
                return JobSubmissionClient(self.address, headers=dict(self._headers))
        except ImportError as error:
            raise SpecError(_INSTALL.format(line_of(error))) from None
        except RuntimeError as error:
            if "ray[default]" not in str(error):
                raise
            raise SpecError(_INSTALL.format("parts are missing")) from None

    def ask(self, method: str, path: str) -> Any:
        """The JSON that the cluster answers. Raises SpecError in one line."""
        request = urllib.request.Request(self.address + path, method=method, headers=self._headers)  # noqa: S310
        try:
            with _OPENER.open(request, timeout=ANSWER_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise SpecError(self._refusal(error.code, path, error.read(1000).decode(errors="replace"))) from None
        except http.client.HTTPException as error:
            raise SpecError(self._is_not_ray(line_of(error))) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise SpecError(
                f"{self.address}: a cluster must answer here, but {getattr(reason, 'strerror', None) or reason}; "
                "`ray dashboard cluster.yaml` opens a tunnel to it, --address names another place"
            ) from None
        except ValueError:
            raise SpecError(self._is_not_ray("no JSON")) from None

    def _refusal(self, code: int, path: str, body: str) -> str:
        if code == HTTPStatus.UNAUTHORIZED:
            return (
                f"{self.address}: the cluster asks for its token, but there is none in {self._token_file}; put "
                "there what `ray get-auth-token` prints on the head, or name a copy with --token-file"
            )
        if code == HTTPStatus.FORBIDDEN:
            return (
                f"{self.address}: the cluster must know the token in {self._token_file}, but refuses it; put "
                "there what `ray get-auth-token` prints on the head, or name another with --token-file"
            )
        if path == "/api/version":
            return self._is_not_ray(f"status {code}")
        return f"{self.address}: Ray must answer {path}, but says {code}: {' '.join(body.split())[:200]}"

    def _is_not_ray(self, got: str) -> str:
        return (
            f"{self.address}: the job server of a Ray cluster is needed, but what answers is another one ({got}); "
            "name its address with --address"
        )


def _address(text: str | None) -> str:
    address = text or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS
    try:
        parts = urllib.parse.urlsplit(address)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        known = False
    if not known:
        raise SpecError(f"--address: an address such as {ADDRESS} is needed, but got {redacted(address)!r}")
    if "@" in parts.netloc:  # a job's description, which all may read, holds the command
        raise SpecError(
            f"--address: expected an address without a name and password, got {redacted(address)}; the cluster's token "
            "is read from a file, see --token-file"
        )
    return address.rstrip("/")


def _token(file: Path | None) -> tuple[Path, str | None]:
    """Where the token is read from, and the token; None where nobody named a file and Ray's own is not there."""
    named = file or (Path(path) if (path := os.environ.get("RAY_AUTH_TOKEN_PATH")) else None)
    place = named or Path.home() / ".ray" / "auth_token"
    try:
        token = place.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named is None and isinstance(error, FileNotFoundError):
            return place, None
        reason = error.strerror if isinstance(error, OSError) else "what it holds is no token"
        raise SpecError(
            f"{place}: the cluster's token must be in this file, but {reason}; name it with --token-file"
        ) from None
    if not token or not token.isprintable() or " " in token:
        raise SpecError(f"{place}: the cluster's token, one word, must be in this file, but what it holds is not one")
    return place, token


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _NoDetours(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token is for one address."""

    def redirect_request(self, *_: Any) -> None:
        """Take none."""


_CHATTY = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
_OPENER = urllib.request.build_opener(_NoDetours)
_INSTALL = "submit: Ray's own client is needed, but {}; install it: pip install 'cs330ray[cluster]'"


def line_of(error: BaseException) -> str:
    """What an error says, in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]}..."
