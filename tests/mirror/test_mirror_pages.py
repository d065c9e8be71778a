"""MLflow's own pages on a finished study, in a headless browser: the best trial is found in two clicks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror, attach
from tests import filled
from tests.browser import Page, browser

pytestmark = pytest.mark.slow
START_S = 240
REPORT = "<!doctype html><title>report</title><h1>The report</h1><script>console.log('drawn')</script>"
KNOWN_ERRORS = ("/ajax-api/2.0/mlflow/users/current",)  # MLflow asks who is there, and without accounts nobody is
TAG = "trial 2, 0.83 ±0.05 val_accuracy confirmed, 0.82 ±0.05 test_accuracy"
ANSWER = "The configuration to use is trial 2 of cost=1.0 at quality=0.4."


class Served(NamedTuple):
    """A running `cs330ray ui`: its address, and the address that it printed for the study."""

    start: str
    study: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    elsewhere = ("MLFLOW_TRACKING_URI", "CS330RAY_LEDGER")
    with pytest.MonkeyPatch.context() as patch:
        for name in elsewhere:
            patch.delenv(name, raising=False)
        ledger = Writer.at(home)
        filled.fill(ledger)
        (home / "letters").mkdir(exist_ok=True)
        (home / "letters" / "report.html").write_text(REPORT)
        Mirror(ledger, "letters", home).sync()
        attach(ledger, "letters", home, [home / "letters" / "report.html"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: text for key, text in os.environ.items() if key not in elsewhere}
    with (home / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "cs330ray", "ui", "--port", str(port)],
            env={**environment, "CS330RAY_HOME": str(home)}, start_new_session=True,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _until_it_answers(server, f"http://127.0.0.1:{port}/health", home / "ui.log")
        printed = dict(line.strip().split(": ", 1) for line in (home / "ui.log").read_text().splitlines()[1:2])
        yield Served(f"http://127.0.0.1:{port}", printed["letters"])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _until_it_answers(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        else:
            return


def says(text: str) -> str:
    return f"document.body.innerText.includes({json.dumps(text)})"


def must_be_quiet(page: Page, start: str) -> None:
    """No error but those that MLflow's pages always have, and no request to anywhere else."""
    errors = [text for level, text in page.console if level in ("error", "exception", "assert")]
    assert [text for text in errors if not text.endswith(KNOWN_ERRORS)] == []
    own = (f"{start}/", "data:", f"blob:{start}/")
    assert [url[:200] for url in page.requests if not url.startswith(own)] == []
    assert page.requests


def test_one_click_from_the_start_page_shows_which_trial_is_best(served: Served, tmp_path: Path) -> None:
    with browser(width=1500) as here:
        page = here.open(served.start, wait_for="document.querySelector('a[title=letters]')", timeout_s=120)
        assert TAG in page.text()  # the tag of the experiment, before any click
        page.click("a[title=letters]")
        page.wait(says(ANSWER), 120)
        must_be_quiet(page, served.start)


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_that_is_printed_names_the_best_and_one_click_opens_its_run(served: Served, dark: bool) -> None:
    with browser(width=1500, dark=dark) as here:
        page = here.open(served.study, wait_for="document.querySelector('a[href*=\"/runs/\"]')", timeout_s=120)
        page.wait(says("Answer: trial 2, 0.83"), 120)
        assert ANSWER in page.text()
        named = says("★ trial 2 · 0.83 ±0.05 val_accuracy confirmed · quality=0.4")
        run = page.follow("a[target=_blank][href*='/runs/']", named, 120)
        run.wait(says("fresh seed 1 of trial 2 · 0.83 val_accuracy"), 120)
        for one in (page, run):
            must_be_quiet(one, served.start)


def test_the_attached_report_is_drawn_on_the_study_s_run(served: Served) -> None:
    with browser(width=1500) as here:
        page = here.open(served.study, wait_for="document.querySelector('a[href*=\"report.html\"]')", timeout_s=120)
        address = page.eval("document.querySelector('a[href*=\"report.html\"]').href")
        report = here.open(address, wait_for="document.querySelector('iframe')", timeout_s=120)
        until = time.monotonic() + 60
        while ("log", "drawn") not in report.console:
            assert time.monotonic() < until, report.console
            report.eval("0")
        must_be_quiet(report, served.start)
