"""Studies on a cluster: what is sent, and what a person reads where a cluster is not there, not Ray, or refuses."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
import tomli_w

from cs330ray.cluster import jobs, jobserver
from cs330ray.cluster.jobs import Cluster, Job, Parcel, own_packages
from cs330ray.cluster.jobserver import JobServer
from cs330ray.errors import SpecError
from cs330ray.package import VERSION as OURS
from cs330ray.package import shipped, source
from cs330ray.spec.command import Command
from cs330ray.spec.reading import read
from cs330ray.trial import named
from cs330ray.trial.check import check
from tests.cli.test_cli import ran
from tests.studies_of_tests import toml, toy

TOKEN = "not-the-token-of-any-cluster"
VERSION = {"ray_version": ray.__version__}
NODES = {"data": {"result": {"result": [
    {"state": "ALIVE", "resources_total": {"CPU": 2.0, "memory": 1.0}}, {"state": "DEAD", "resources_total": {}},
    {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 1.0}}]}}}  # fmt: skip


class StandIn:
    """A job server with given answers: by method and path, a status and a body."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {"GET /api/version": (200, VERSION)}
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                place = f"{self.command} {self.path}"
                server.asked.append((place, self.headers.get("Authorization")))
                status, body = server.answers.get(place, (404, "nothing here"))
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())

            do_POST = do_GET  # noqa: N815 - the name is http.server's

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def has(self, *found: dict[str, Any]) -> None:
        """Let these be the jobs."""
        self.answers["GET /api/jobs/"] = (200, list(found))
        self.answers["GET /api/v0/nodes?limit=10000"] = (200, NODES)
        for details in found:
            self.answers[f"GET /api/jobs/{details['submission_id']}"] = (200, details)
            self.answers[f"GET /api/jobs/{details['submission_id']}/logs"] = (200, {"logs": "one\ntwo\n"})


def details(study: str, name: str, status: str, began_s: int, **more: Any) -> dict[str, Any]:
    """A job in Ray's words."""
    return {
        "type": "SUBMISSION", "submission_id": name, "status": status, "start_time": 1000 * began_s, "message": "",
        "metadata": {"study": study, "by": "ada@desk", "command": f"cs330ray submit {study}.toml"}, **more,
    }  # fmt: skip


@pytest.fixture
def server() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.close()


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with a token in Ray's own place."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / ".ray" / "auth_token"
    place.parent.mkdir()
    place.write_text(f"{TOKEN}\n")
    return place


# What is sent ----------------------------------------------------------------------------------------------------


def entered(tmp_path: Path, words: list[str], **environment: str) -> list[str]:
    """What the entrypoint of a study runs: the home, the arguments of Python, and whether it is the shell's process."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$CS330RAY_HOME" "$$" "$@"\n')
    python.chmod(0o755)
    parcel = Parcel(toy(), tmp_path / "toy.toml", words, "cs330ray submit toy.toml")
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    shell = subprocess.Popen(
        parcel.entrypoint, shell=True, stdout=subprocess.PIPE, text=True, env={"PATH": path, **environment}
    )
    home, process, *arguments = shell.communicate()[0].splitlines()
    return [home, "the job's" if int(process) == shell.pid else "a child", *arguments]


def test_the_entrypoint_becomes_the_study_in_the_home_directory_of_the_head(tmp_path: Path) -> None:
    assert entered(tmp_path, [], HOME="/home/ada") == [
        "/home/ada/cs330ray-runs", "the job's", "-m", "cs330ray", "run", "toy.toml"
    ]  # fmt: skip


def test_the_environment_of_the_head_decides_where_the_study_lives(tmp_path: Path) -> None:
    assert entered(tmp_path, [], HOME="/home/ada", CS330RAY_HOME="/disk of all")[0] == "/disk of all"


def test_the_words_of_an_override_arrive_as_they_were_typed(tmp_path: Path) -> None:
    words = ["--set", "fixed.body='it''s $HOME; rm'", "--fork", "other"]
    assert entered(tmp_path, words, HOME="/home/ada")[-4:] == words


def test_a_trainable_of_ones_own_travels_with_its_top_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab" / "deep").mkdir(parents=True)
    for name in ("lab/__init__.py", "lab/deep/__init__.py"):
        (tmp_path / name).touch()
    (tmp_path / "lab" / "deep" / "net.py").write_text("from tests.toy import METRICS, Config, prepare, test, train")
    monkeypatch.syspath_prepend(tmp_path)
    study = toy(trainable=None, compare={"trainable": ["lab.deep.net", "tests.toy", "maml"]})
    for name in ("lab.deep.net", "tests.toy"):
        named.load(name)
    assert own_packages(study) == [tmp_path / "lab", Path(__file__).parents[1]]


class Sent(Exception):  # noqa: N818
    """What would have been sent."""


def test_a_study_is_sent_under_a_readable_id_with_its_digest_and_the_package(
    server: StandIn, token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.has()
    study = toy()
    file = toml(study, tmp_path / "any name.toml")
    sent: dict[str, Any] = {}

    class Client:
        def submit_job(self, **all_of_it: Any) -> str:
            environment = all_of_it["runtime_env"]
            folder, package = Path(environment["working_dir"]), Path(environment["py_modules"][0])
            sent.update(
                all_of_it,
                files={path.name: path.read_text() for path in folder.iterdir()},
                package=sorted(path.name for path in package.glob("*.py")),
            )
            return str(all_of_it["submission_id"])

    monkeypatch.setattr(JobServer, "client", lambda _: Client())
    check(study, "toy")
    name = Cluster(JobServer(server.address)).send(
        Parcel(study, file, [], "cs330ray submit 'any name.toml'"), shipped()
    )
    assert name.startswith("toy-")
    assert len(name) == len("toy-123abc")
    assert sent["files"] == {"toy.toml": file.read_text()}
    assert sent["package"] == sorted(path.name for path in source().glob("*.py"))
    assert sent["runtime_env"]["py_modules"][1:] == [str(Path(__file__).parents[1])]
    assert sent["metadata"]["study"] == "toy"
    assert sent["metadata"]["digest"] == study.digest
    assert sent["metadata"]["code"] == f"{OURS} {named.code_digest('tests.toy')[:16]}"
    assert TOKEN not in str(sent)


def test_the_folder_of_a_command_travels_beside_its_study_without_what_git_ignores(
    server: StandIn, token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.has()
    files = {"train.py": "print()", "lib/net.py": "", "data/big.bin": "", ".gitignore": "data/", ".env": "secret"}
    for name, text in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    raw = {
        "name": "own", "trainable": "command", "objective": "val_loss", "budget": {"trials": 1, "steps": 1},
        "command": {"run": ["python", "train.py"], "metrics": {"val_loss": "min"}},
    }  # fmt: skip
    file = tmp_path / "mine" / "study.toml"
    file.write_text(tomli_w.dumps(raw))
    study = read(file)
    sent: dict[str, Any] = {}

    class Client:
        def submit_job(self, **all_of_it: Any) -> str:
            folder = Path(all_of_it["runtime_env"]["working_dir"])
            sent.update(all_of_it, files=sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")))
            arrived = Command(**study.command.identity, folder=str(folder / "code")) if study.command else None
            sent["code"] = named.code_digest("command", arrived)
            return str(all_of_it["submission_id"])

    monkeypatch.setattr(JobServer, "client", lambda _: Client())
    Cluster(JobServer(server.address)).send(Parcel(study, file, [], "cs330ray submit study.toml"), shipped())
    assert sent["files"] == ["code/lib/net.py", "code/train.py", "own.toml"]
    assert sent["entrypoint"].endswith("run own.toml --set command.folder=code")
    assert sent["code"] == named.code_digest("command", study.command)


def test_a_study_that_cannot_be_meant_is_refused_before_anything_is_asked(
    server: StandIn, token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = toml(toy(), tmp_path / "toy.toml")
    code, _, err = ran(capsys, "submit", str(file), "--set", "fixed.wdth=3", "--address", server.address)
    assert code == 2
    assert err.count("\n") == 1
    assert "fixed.wdth: tests.toy has no such parameter; did you mean 'width'?" in err
    assert server.asked == []


def test_a_study_whose_job_still_runs_is_not_sent_again(
    server: StandIn, token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.has(details("other", "other-1", "RUNNING", 1), details("toy", "toy-2", "PENDING", 2))
    file = toml(toy(), tmp_path / "toy.toml")
    code, _, err = ran(capsys, "submit", str(file), "--address", server.address)
    assert code == 2
    assert err.count("\n") == 1
    assert "job toy-2 is PENDING" in err
    assert "cs330ray stop toy" in err
    assert all(place.startswith("GET") for place, _ in server.asked)


# What a person reads ---------------------------------------------------------------------------------------------

REFUSALS: list[tuple[str, tuple[int, Any], str]] = [
    ("asks for a token", (401, "Unauthorized: Missing authentication token"), "the cluster asks for its token"),
    ("refuses the token", (403, "Forbidden: Invalid authentication token"), "must know the token in"),
    ("is another server", (404, "<html>"), "what answers is another one (status 404)"),
    ("is a page", (200, "<html>"), "what answers is another one (no JSON)"),
    ("is another service", (200, ["ok"]), "what answers is another one (other JSON)"),
    ("sends elsewhere", (302, ""), "what answers is another one (status 302)"),
    ("is another version", (200, {"ray_version": "2.9.3"}), "but it runs 2.9.3; install ray==2.9.3 here"),
]


@pytest.mark.parametrize(("answer", "fragment"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_a_server_that_will_not_do_is_one_line_with_the_next_step(
    server: StandIn,
    token: Path,
    capsys: pytest.CaptureFixture[str],
    answer: tuple[int, Any],
    fragment: str,
) -> None:
    server.answers["GET /api/version"] = answer
    code, out, err = ran(capsys, "status", "--address", server.address)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"{server.address}: ")
    assert fragment in err
    assert TOKEN not in err


def test_nobody_at_an_address_is_one_line_with_the_next_step(token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ran(capsys, "logs", "toy", "--address", "http://127.0.0.1:9")
    assert code == 2
    assert err == (
        "http://127.0.0.1:9: a cluster must answer here, but Connection refused; `ray dashboard cluster.yaml` opens a "
        "tunnel to it, --address names another place\n"
    )


def test_a_server_that_takes_the_question_and_never_answers_is_one_line(
    token: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobserver, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code, _, err = ran(capsys, "status", "--address", address)
    assert code == 2
    assert err.startswith(f"{address}: a cluster must answer here, but timed out; ")
    assert err.count("\n") == 1


def test_the_token_is_sent_whatever_a_netrc_says_of_the_host(server: StandIn, token: Path) -> None:
    netrc = Path.home() / ".netrc"
    netrc.write_text("machine 127.0.0.1 login ada password hers\n")
    netrc.chmod(0o600)
    JobServer(server.address)
    assert [header for _, header in server.asked] == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://head:10001", "http://", "http://head:port", "auto"])
def test_an_address_that_is_none_of_a_dashboard_is_one_line(
    token: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    code, _, err = ran(capsys, "status", "--address", address)
    assert code == 2
    assert err == f"--address: an address such as http://127.0.0.1:8265 is needed, but got {address!r}\n"


def test_the_token_is_that_of_the_file_that_was_named(server: StandIn, token: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("another\n")
    JobServer(server.address, tmp_path / "other")
    JobServer(server.address)
    assert [header for _, header in server.asked] == ["Bearer another", f"Bearer {TOKEN}"]


def test_without_a_token_file_no_token_is_sent_not_even_that_of_this_machines_own_ray(
    server: StandIn, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token.unlink()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another Ray")
    JobServer(server.address).client()
    assert {header or "" for _, header in server.asked} == {""}


@pytest.mark.parametrize(
    ("content", "fragment"),
    [(None, "No such file or directory"), (b"", "one word"), (b"two words", "one word"), (b"\xff", "no token")],
)
def test_a_token_file_that_holds_no_token_is_one_line_that_does_not_show_what_it_holds(
    server: StandIn,
    token: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    fragment: str,
) -> None:
    file = tmp_path / "named"
    if content is not None:
        file.write_bytes(content)
    code, _, err = ran(capsys, "status", "--address", server.address, "--token-file", str(file))
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith(f"{file}: the cluster's token")
    assert fragment in err
    assert "two words" not in err
    assert server.asked == []


def test_a_ray_that_was_installed_without_its_client_is_one_line(
    server: StandIn, token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.has()
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    code, _, err = ran(capsys, "submit", str(toml(toy(), tmp_path / "toy.toml")), "--address", server.address)
    assert code == 2
    assert err.count("\n") == 1
    assert "pip install 'cs330ray[cluster]'" in err


def test_status_shows_the_jobs_of_studies_and_what_lives_of_the_cluster(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    server.has(
        details("two", "two-2", "RUNNING", 2_000),
        details("one", "one-1", "FAILED", 1_000, end_time=1_090_000, driver_exit_code=2),
        {"type": "DRIVER", "submission_id": None, "status": "RUNNING", "metadata": {}, "start_time": 5},
        {**details("", "another", "RUNNING", 5), "metadata": {"job_name": "of somebody else"}},
    )
    code, out, _ = ran(capsys, "status", "--address", server.address)
    title, _, one, two = out.splitlines()
    assert code == 0
    assert title == f"{server.address}: 2 nodes, 6 CPUs, 1 GPUs"
    assert one.split()[:3] == ["one", "one-1", "FAILED"]
    assert one.split()[-4:] == ["1m", "30s", "2", "ada@desk"]
    assert two.split()[:3] == ["two", "two-2", "RUNNING"]


def test_status_of_one_study_ends_with_its_last_lines(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.has(details("toy", "toy-1", "SUCCEEDED", 1), details("toy", "toy-2", "RUNNING", 2))
    code, out, _ = ran(capsys, "status", "toy", "--address", server.address)
    assert code == 0
    assert "toy-1" not in out
    assert out.endswith("one\ntwo\n")


@pytest.mark.parametrize("command", ["status", "logs", "stop"])
def test_a_study_that_was_never_sent_is_one_line_with_those_that_were(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    server.has(details("toy", "toy-1", "RUNNING", 1))
    code, _, err = ran(capsys, command, "tyo", "--address", server.address)
    assert code == 2
    assert err.count("\n") == 1
    assert "there are only: toy" in err


def test_stop_says_that_the_same_submit_goes_on(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.has(details("toy", "toy-1", "RUNNING", 1))
    server.answers["POST /api/jobs/toy-1/stop"] = (200, {"stopped": True})
    ended = details("toy", "toy-1", "STOPPED", 1, end_time=2_000)
    threading.Timer(0.5, lambda: server.answers.update({"GET /api/jobs/toy-1": (200, ended)})).start()
    code, out, _ = ran(capsys, "stop", "toy", "--address", server.address)
    assert code == 0
    assert out == "toy: stopped job toy-1; nothing is lost\nGo on with: cs330ray submit toy.toml\n"


def test_there_is_nothing_to_stop_where_the_last_job_has_ended(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.has(details("toy", "toy-1", "SUCCEEDED", 1, end_time=2_000))
    code, _, err = ran(capsys, "stop", "toy", "--address", server.address)
    assert code == 2
    assert err == "toy: a job that runs is needed, but the last one, toy-1, has SUCCEEDED\n"


@pytest.mark.parametrize(
    ("state", "exit_code", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 130, 130), ("STOPPED", None, 130), ("FAILED", None, 1),
     ("FAILED", -9, 1)],
)  # fmt: skip
def test_whoever_follows_a_job_gets_the_studys_exit_code(state: str, exit_code: int | None, code: int) -> None:
    assert Job("toy-1", "toy", state, 1.0, 2.0, exit_code, "", {}).code == code


# Following -------------------------------------------------------------------------------------------------------

Tail = Callable[[str], AsyncIterator[str]]


def follows(monkeypatch: pytest.MonkeyPatch, tail: Tail) -> None:
    class Client:
        tail_job_logs = staticmethod(tail)

    monkeypatch.setattr(JobServer, "client", lambda _: Client())
    monkeypatch.setattr(jobs, "AGAIN_S", 0.01)


def test_a_log_whose_connection_breaks_is_shown_once_and_whole(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.has(details("toy", "toy-1", "RUNNING", 1))
    ended = details("toy", "toy-1", "FAILED", 1, end_time=2_000, driver_exit_code=2)
    times = iter(range(10))

    async def tail(_: str) -> AsyncIterator[str]:
        yield "on"
        if next(times) == 0:
            raise ConnectionResetError
        yield "e\n"
        server.answers["GET /api/jobs/toy-1"] = (200, ended)

    follows(monkeypatch, tail)
    code, out, _ = ran(capsys, "logs", "toy", "--follow", "--address", server.address)
    assert out == "one\ntwo\n"
    assert code == 2


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A SIGINT that interrupts; what is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_after_a_ctrl_c_the_job_goes_on_and_a_person_reads_how_to_come_back(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.has(details("toy", "toy-1", "RUNNING", 1))

    async def tail(_: str) -> AsyncIterator[str]:
        yield "one\n"
        os.kill(os.getpid(), 2)
        await asyncio.sleep(5)

    follows(monkeypatch, tail)
    code, out, _ = ran(capsys, "logs", "toy", "--follow", "--address", server.address, "--token-file", str(token))
    assert code == 130
    place = f"--address {server.address} --token-file {token}"
    assert f"toy: goes on as job toy-1\nCome back with: cs330ray logs toy --follow {place}\n" in out
    assert f"cs330ray stop toy {place}" in out
    assert all(place.startswith("GET") for place, _ in server.asked)


def test_a_cluster_that_vanishes_is_given_up_after_a_while(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.has(details("toy", "toy-1", "RUNNING", 1))

    async def tail(_: str) -> AsyncIterator[str]:
        yield "one\n"
        server.answers["GET /api/jobs/toy-1"] = (500, "no head")

    follows(monkeypatch, tail)
    monkeypatch.setattr(jobs, "LOST_S", 0.2)
    code, out, err = ran(capsys, "logs", "toy", "--follow", "--address", server.address)
    assert code == 1
    assert out == "one\n"
    assert err.startswith("toy: the cluster no longer answers, and job toy-1 may go on; come back with: cs330ray logs")


def test_a_job_that_failed_before_its_study_began_says_why(
    server: StandIn, token: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "runtime_env setup failed: pip is missing\nTraceback"
    server.has(details("toy", "toy-1", "FAILED", 1, end_time=2_000, message=message))

    async def tail(_: str) -> AsyncIterator[str]:
        return
        yield ""

    follows(monkeypatch, tail)
    code, _, err = ran(capsys, "logs", "toy", "--follow", "--address", server.address)
    assert code == 1
    assert err == "toy: job toy-1 has failed: runtime_env setup failed: pip is missing\n"


def test_a_driver_that_is_told_a_clusters_address_uses_the_token_that_lies_there(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    said = (
        "import os; from cs330ray.quiet import quiet; quiet(); "
        "print(os.environ.get('RAY_AUTH_MODE'), os.environ.get('RAY_AUTH_TOKEN'))"
    )
    for home, wanted in ((tmp_path, "token None\n"), (tmp_path / "without", "None None\n")):
        done = subprocess.run(
            [sys.executable, "-c", said], env={**kept, "HOME": str(home), "RAY_ADDRESS": "10.0.0.1:6379"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == wanted


def test_a_cluster_whose_answer_is_no_use_is_a_spec_error_that_names_what_was_asked(
    server: StandIn, token: Path
) -> None:
    server.answers["GET /api/jobs/"] = (500, "Traceback\n of the dashboard")
    with pytest.raises(SpecError, match=r"Ray must answer /api/jobs/, but says 500: Traceback of the dashboard"):
        Cluster(JobServer(server.address)).jobs()
