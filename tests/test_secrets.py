"""What opens something is shown nowhere: each kind of address, in each form in which a library may quote it."""

import logging
import os
import sys
import time
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from cs330ray.checkpoints import store
from cs330ray.cli.screen import Screen
from cs330ray.cluster.jobserver import JobServer
from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger.ledger import Ledger
from cs330ray.mirror.process import MirrorProcess
from cs330ray.trial.environment import LONGEST_TRACEBACK, reason_of, traceback_of
from cs330ray.words import printable, redacted, secrets

WORD = "s3cr3t-Word"
ODD = "p@ss/w:rd#1 %é"  # in an address as quote() writes it

ADDRESSES = [
    ("MLFLOW_TRACKING_URI", f"http://user:{WORD}@host:5000", WORD),
    ("MLFLOW_TRACKING_URI", f"https://{WORD}@host", WORD),
    ("MLFLOW_TRACKING_URI", f"postgresql://user:{quote(ODD, safe='')}@host/db", ODD),
    ("CS330RAY_LEDGER", f"postgresql://user:{WORD}@host/db?sslmode=require", WORD),
    ("CS330RAY_LEDGER", f"postgresql://host/db?user=me&password={WORD}", WORD),
    ("CS330RAY_LEDGER", "postgresql://user:half@other/half@host/db", "half@other/half"),
    ("CS330RAY_CHECKPOINTS", f"s3://AKIAKEY:{quote(ODD, safe='')}@bucket/folder?region=eu", ODD),
    ("CS330RAY_CHECKPOINTS", f"s3://bucket/folder?secret_key={WORD}", WORD),
    ("CS330RAY_CHECKPOINTS", f"sftp://me:{WORD}@host/folder", WORD),
    ("CS330RAY_CHECKPOINTS", f"abfs://container@account.host/x?sig={WORD}", WORD),
    ("MLFLOW_TRACKING_PASSWORD", WORD, WORD),
    ("MLFLOW_TRACKING_TOKEN", ODD, ODD),
    ("AWS_SECRET_ACCESS_KEY", WORD, WORD),
    ("PGPASSWORD", WORD, WORD),
]


@pytest.mark.parametrize(("variable", "value", "secret"), ADDRESSES, ids=[f"{v}={a}" for v, a, _ in ADDRESSES])
def test_no_form_of_a_secret_of_the_environment_is_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, secret: str
) -> None:
    monkeypatch.setenv(variable, value)
    raw = value.rpartition("@")[0].rpartition("://")[2].partition(":")[2] if "@" in value else secret
    for form in {secret, unquote(secret), quote(secret, safe=""), raw or secret}:
        for said in (
            f"could not connect to {value}: refused", f'password "{form}" is wrong', f"bad URL part {form!r}",
            f"for user:{form}@host", f"KeyError: {form}", f"/api/2.0?x={form}",
        ):  # fmt: skip
            assert form not in redacted(said), said
    assert value not in redacted(f"{variable}={value}") or variable.startswith("abfs")


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS330RAY_LEDGER", "postgresql://postgres:postgres@localhost/db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:ab@host")  # too short to be looked for in any text
    assert redacted("postgresql://postgres:postgres@localhost/db: no") == "postgresql://***@localhost/db: no"
    for said in (
        "max_tokens=5 pad_token=3 eos_token='x'", "design=3 signature_dim=2", "mail me@home.org", "about a cab",
        "https://host/a?x=1 for me@host", "RAY_AUTH_MODE=token",
    ):  # fmt: skip
        assert redacted(said) == said
    assert "ab" not in secrets()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('{"password": "abc", "x": 1}', '{"password": "***", "x": 1}'),
        ("host=h password='se cret' user=me", "host=h password='***' user=me"),
        ("AccountKey=abc==;EndpointSuffix=x", "AccountKey=***;EndpointSuffix=x"),
        ("https://h/x?X-Amz-Signature=abc&y=1", "https://h/x?X-Amz-Signature=***&y=1"),
        ("MLFLOW_TRACKING_TOKEN=abc", "MLFLOW_TRACKING_TOKEN=***"),
    ],
)
def test_a_parameter_that_is_named_as_a_secret_is_hidden_wherever_it_comes_from(said: str, shown: str) -> None:
    assert redacted(said) == shown


HIDDEN = [
    ("http://me:pa/ss@host/x", "http://***@host/x"),
    ("postgresql+psycopg://me:12@3/4@host:5432/db", "postgresql+psycopg://***@host:5432/db"),
    ("redis://:pw@host", "redis://***@host"),
    ("from git+https://abc@github.com/me/code@v1.0", "from git+https://***@github.com/me/code@v1.0"),
    ("http://u:pw@one,http://v:wp@two", "http://***@one,http://***@two"),
    ("http://[::1]:80 s3://KEY:a/b#c@bucket", "http://[::1]:80 s3://***@bucket"),
    ('{"url":"http://u:pw@host","mail":"me@home.org"}', '{"url":"http://***@host","mail":"me@home.org"}'),
    ("f" * 9_000 + "_password=hunter2", "f" * 9_000 + "_password=***"),
    ("connect(user='me', password=hunter2)", "connect(user='me', password=***)"),
    ("""password="it's one" x""", """password="***" x"""),
    (r'{"password": "a\"b", "x": 1}', '{"password": "***", "x": 1}'),
    ("password=123 secret=4096 api_key=7", "password=*** secret=*** api_key=***"),
    ("password='no end\nand another line", "password='***\nand another line"),
]

KEPT = [
    "sqlite:////data/me@lab/ledger.db", "file:///home/me@lab", "sqlite:///C:/me:you@lab/x", "http://host:5000/me@lab",
    "http://[::1]:5000/me@lab", "https://host/x?mail=me@home.org", "What is 7//2@3?", "// a comment by me@home",
    "pip install git+https://github.com/me/code@v1.0", '{"url":"http://host/a","mail":"me@home.org"}',
    "n_secret=4", "n_secret=4096 num_credentials=12", "secret=4, token=17", "f(password=None)", "use_auth_token=True",
    "password='' user='me'", '{"password": "null"}', "token='", "acc@1=0.5", "pip install 'cs330ray[postgres]'",
    "cs330ray list", "expected true or false, got None", "a user of postgres", "adam",
]  # fmt: skip


@pytest.mark.parametrize(("said", "shown"), HIDDEN)
def test_what_opens_something_is_hidden_and_no_more_than_that(said: str, shown: str) -> None:
    assert redacted(said) == shown


@pytest.mark.parametrize("said", KEPT)
def test_an_ordinary_text_comes_out_unchanged_whatever_common_word_is_a_password(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "CS330RAY_LEDGER": "postgresql://postgres:postgres@localhost/db",
        "MLFLOW_TRACKING_URI": "sqlite:////data/me@lab/x:y@z",
        "http_proxy": "http://user:cs330ray@proxy:3128",
        "https_proxy": "http://host:5000/me@lab",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "true",
        "DB_PASSWORD": "adam",
    }.items():
        monkeypatch.setenv(name, value)
    assert redacted(said) == said


def test_each_password_is_known_of_several_addresses_and_of_one_whose_path_holds_an_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://u:first@a/me@x https://v:second@b")
    assert redacted("first and second") == "*** and ***"


def test_a_secret_that_is_no_text_hides_nothing_else_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DB_PASSWORD", "half\udcffbyte")
    assert redacted("not half\udcffbyte") == "not ***"


ENDLESS = ["a", "0f", "/", "a://", "a://b:c", "a://b:c@", "x://a:@", "password=", "password=)", 'password="', "\\",
           '"token":"', "access_token", "secret.", "\r", "\x1b[", "\x1b]", "\0"]  # fmt: skip


@pytest.mark.parametrize("part", ENDLESS, ids=repr)
def test_a_text_of_a_megabyte_is_hidden_and_made_printable_at_once(part: str) -> None:
    """About a second where time grows as the text does; hours where it grows as its square."""
    started_s = time.process_time()
    text = part * (1_000_000 // len(part))
    redacted(text)
    printable(text)
    redacted(f"x://u:{text}")
    assert time.process_time() - started_s < 30


def test_a_secret_on_the_edge_of_what_is_kept_shows_no_half_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", WORD)
    half = LONGEST_TRACEBACK // 2
    for cut in range(2, len(WORD)):  # so many of its characters are kept where the text is simply cut
        assert "s3" not in reason_of(ValueError("." * (497 - len("ValueError: ") - cut) + WORD + "." * 50))
        for parts in (["." * (half - cut), WORD, "." * 2 * half], ["." * 2 * half, WORD, "." * (half - cut)]):
            monkeypatch.setattr("traceback.format_exception", lambda _, parts=parts: parts)
            text = traceback_of(ValueError())
            assert set(text.partition("\n")[0] + text.rpartition("\n")[2]) <= set(".*")


def test_the_record_the_screen_and_the_messages_of_libraries_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{WORD}@127.0.0.1:9")
    assert WORD not in reason_of(RuntimeError(f"no answer for {WORD}"))  # the ledger, the tags, the report, the export
    monkeypatch.setattr(sys, "stderr", Screen(sys.stderr, lasting=True, hides=True))
    handler = logging.StreamHandler(sys.stderr)
    handler.emit(logging.LogRecord("urllib3", 30, "", 0, f"retrying {WORD}", None, None))
    assert capsys.readouterr().err == "retrying ***\n"
    monkeypatch.setenv("CS330RAY_CHECKPOINTS", f"sftp://me:{WORD}@nowhere.invalid/folder")
    with pytest.raises(SpecError) as refused:
        store.tried(str(store.wanted()))
    assert WORD not in str(refused.value)
    pytest.importorskip("psycopg")
    monkeypatch.setenv("CS330RAY_LEDGER", f"postgresql://me:{WORD}@127.0.0.1:9/db")
    with pytest.raises(LedgerError) as failed:
        Ledger.at(tmp_path)
    assert WORD not in str(failed.value)


def test_a_job_s_command_which_all_may_read_holds_no_password() -> None:
    with pytest.raises(SpecError, match="without a name and password, got http://\\*\\*\\*@host:8265") as refused:
        JobServer(f"http://me:{WORD}@host:8265")
    assert WORD not in str(refused.value)


def test_a_mirror_s_log_is_its_owner_s_alone_and_holds_no_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own that dies at once, for want of a ledger: what it says, and how the file is kept."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{WORD}@127.0.0.1:9")
    monkeypatch.setenv("CS330RAY_LEDGER", f"postgresql://me:{WORD}@127.0.0.1:9/db")
    (home / "toy").mkdir(parents=True)
    (home / "toy" / "mirror.log").touch(mode=0o644)  # of an earlier version
    mirror = MirrorProcess("toy", home)
    mirror.tend()
    assert mirror._process is not None
    assert mirror._process.wait(120) == 2
    assert not mirror.cut()
    assert mirror.log.stat().st_mode & 0o777 == 0o600
    assert mirror.log.read_text()
    assert WORD not in mirror.log.read_text()


def test_a_mirror_starts_where_the_modes_of_its_log_cannot_be_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a log of another owner, or on a disk that knows no modes."""

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.fchmod", refused)
    (home / "toy").mkdir(parents=True)
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda command, **_: started.append(command))
    MirrorProcess("toy", home).tend()
    assert len(started) == 1


# What is printed in colour, or is not to be seen


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m and \x1b[1;38;5;9mbold\x1b[m", "red and bold"),
        ("\x1b]0;title\x07after \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "after link"),
        ("\x1b[2J\x1b[H\x1bcgone", "gone"),
        (" 1%\r 2%\r100%\ndone\r\n", "100%\ndone\n"),
        (" 1%\r100%\r", "100%"),
        (" 1%\r100%\r\r\n\rdone\r\r", "100%\ndone"),
        ("a\x07b\0c\x9bd", "a\\x07b\\x00c\\x9bd"),
        ("lone \x1b", "lone \\x1b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("half \ud83d", "half \\ud83d"),
        ("tab\tand é 日本 🙂\n", "tab\tand é 日本 🙂\n"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out_or_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
