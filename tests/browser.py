"""A page in headless Chromium, as a person would see it: what it shows, logs and asks the network for.

    with browser(width=1200, height=900, dark=True) as b:
        page = b.open(path.as_uri(), wait_for="document.querySelector('svg') !== null")
        assert page.console == []

Spoken to over the DevTools protocol's own pipe: no port, and a browser whose test is gone ends by itself.
It reaches this machine alone: every other name fails to resolve, and is in `page.requests` nevertheless.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--no-default-browser-check", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--mute-audio", "--password-store=basic", "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost", "--remote-debugging-pipe",
)  # fmt: skip
ON_PIPE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
START_S = 60.0
AUTO_ATTACH: dict[str, Any] = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}


@dataclass
class Browser:
    """A running browser, all of whose pages have one size and one colour scheme."""

    width: int
    height: int
    dark: bool
    _to: int
    _of: int
    pages: list["Page"] = field(default_factory=list)  # in the order of their opening, those of links in new tabs too
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _rest: bytes = b""
    _sessions: dict[str, "Page"] = field(default_factory=dict)  # a worker and a frame belong to a page

    def open(self, url: str, wait_for: str = "document.readyState === 'complete'", timeout_s: float = 30) -> "Page":
        """Open a page; return once it is loaded and `wait_for`, a JavaScript expression, is true there."""
        target, ends_s = self.call("Target.createTarget", url="about:blank")["targetId"], time.monotonic() + timeout_s
        while not (found := [page for page in self.pages if page.target == target]):
            self.hear(ends_s, "a new page")
        found[0].eval("0")  # it runs, and has heard that it is listened to
        answer = self.call("Page.navigate", found[0].session, url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        found[0].wait(f"document.readyState === 'complete' && ({wait_for})", timeout_s)
        return found[0]

    def call(self, method: str, session: str = "", timeout_s: float = 30, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its answer; TimeoutError where the browser hangs."""
        number, ends_s = self._send(method, session, params), time.monotonic() + timeout_s
        while True:
            message = self._read(ends_s, method)
            if message.get("id") != number:
                self._event(message)
            elif "error" in message:
                raise RuntimeError(f"{method}: {message['error']['message']}")
            else:
                return message["result"]  # type: ignore[no-any-return]

    def hear(self, ends_s: float, waiting_for: str) -> None:
        """Take in the next thing that happens; TimeoutError where nothing does until then."""
        self._event(self._read(ends_s, waiting_for))

    def _send(self, method: str, session: str, params: dict[str, Any]) -> int:
        message = {"id": next(self._numbers), "method": method, "params": params}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        return message["id"]  # type: ignore[return-value]

    def _read(self, ends_s: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._of], [], [], max(0.0, ends_s - time.monotonic()))[0]:
                raise TimeoutError(f"the browser does not answer {waiting_for}")
            if not (more := os.read(self._of, 1 << 20)):
                raise EOFError(f"the browser ended before it answered {waiting_for}")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]

    def _attach(self, session: str, info: dict[str, Any], page: "Page | None") -> None:
        """Hear a new page, or a worker or frame of one, which waits for that; nobody waits for the answers."""
        if info["type"] == "page":
            page = Page(self, session, info["targetId"])
            self.pages.append(page)
            size: dict[str, Any] = {"width": self.width, "height": self.height, "deviceScaleFactor": 1, "mobile": False}
            self._send("Emulation.setDeviceMetricsOverride", session, size)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
            self._send("Emulation.setEmulatedMedia", session, {"features": [scheme]})
        self._sessions[session] = page or self.pages[-1]  # one worker may be shared by pages
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable", session, {})
        self._send("Target.setAutoAttach", session, AUTO_ATTACH)
        self._send("Runtime.runIfWaitingForDebugger", session, {})

    def _event(self, message: dict[str, Any]) -> None:
        page, about = self._sessions.get(message.get("sessionId", "")), message.get("params", {})
        match message.get("method"):
            case "Target.attachedToTarget":
                self._attach(about["sessionId"], about["targetInfo"], page)
            case "Network.requestWillBeSent" | "Network.webSocketCreated" if page:
                page.requests.append(about["request"]["url"] if "request" in about else about["url"])
            case "Runtime.consoleAPICalled" if page:
                said = [str(each.get("value", each.get("description", each["type"]))) for each in about["args"]]
                page.console.append((about["type"], " ".join(said)))
            case "Runtime.exceptionThrown" if page:
                page.console.append(("exception", _described(about["exceptionDetails"])))
            case "Log.entryAdded" if page:
                entry = about["entry"]
                page.console.append((entry["level"], f"{entry['text']} {entry.get('url', '')}".strip()))


@dataclass
class Page:
    """An open page: all that it has logged (level and text) and requested (URLs, its workers' too) so far."""

    browser: Browser
    session: str
    target: str
    console: list[tuple[str, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def eval(self, js: str, timeout_s: float = 30) -> Any:
        """What a JavaScript expression, or the promise that it is, comes to; RuntimeError if it throws."""
        asked: dict[str, Any] = {"expression": js, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.browser.call("Runtime.evaluate", self.session, timeout_s, **asked)
        if "exceptionDetails" in answer:
            raise RuntimeError(_described(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, js: str, timeout_s: float = 30) -> None:
        """Return once an expression is true; TimeoutError, with what is seen and logged, if it never is."""
        ends_s = time.monotonic() + timeout_s
        while not self.eval(f"Boolean({js})", timeout_s):
            if time.monotonic() > ends_s:
                raise TimeoutError(
                    f"{js} is not true after {timeout_s} s; {self.console}; the page says: {self.text()[:2000]}"
                )
            time.sleep(0.1)

    def text(self) -> str:
        """The text that is visible."""
        return str(self.eval("document.body ? document.body.innerText : ''"))

    def click(self, selector: str, timeout_s: float = 30) -> None:
        """Click with the mouse on the middle of the first element that a CSS selector finds, once it is there."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(found, timeout_s)
        at = self.eval(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return {{x: r.x + r.width / 2, y: r.y + r.height / 2}} }})({found})"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            pressed: dict[str, Any] = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.browser.call("Input.dispatchMouseEvent", self.session, type=kind, **at, **pressed)

    def follow(self, selector: str, wait_for: str, timeout_s: float = 30) -> "Page":
        """Click on a link that opens a new tab; its page, once `wait_for` is true there."""
        known, ends_s = len(self.browser.pages), time.monotonic() + timeout_s
        self.click(selector, timeout_s)
        while len(self.browser.pages) == known:
            self.browser.hear(ends_s, "a new tab")
        self.browser.pages[-1].wait(f"document.readyState === 'complete' && ({wait_for})", timeout_s)
        return self.browser.pages[-1]

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        """Write a PNG of the whole page, or of what the window shows."""
        what: dict[str, Any] = {}
        if full:
            size = self.browser.call("Page.getLayoutMetrics", self.session)["cssContentSize"]
            what = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        shot = self.browser.call("Page.captureScreenshot", self.session, **what, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(width: int = 1200, height: int = 900, *, dark: bool = False) -> Iterator[Browser]:
    """A headless Chromium for the time of a test, which is skipped where there is none; killed if it does not go."""
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip(f"there is no browser here: none of {', '.join(NAMES)} is on PATH")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        (its_in, to), (of, its_out) = _pipe(), _pipe()
        command = [sys.executable, "-S", "-c", ON_PIPE, str(its_in), str(its_out), binary, *FLAGS]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"], pass_fds=(its_in, its_out), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(its_in)
        os.close(its_out)
        try:
            started = Browser(width, height, dark, to, of)
            started.call("Browser.getVersion", timeout_s=START_S)
            kinds = [{"type": kind} for kind in ("page", "shared_worker", "service_worker")]
            started.call("Target.setAutoAttach", **AUTO_ATTACH, filter=kinds)
            yield started
        finally:
            os.close(to)  # which is how one asks it to leave
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(of)


def _pipe() -> tuple[int, int]:
    """The ends to read and to write of a pipe, beyond the numbers that the browser's own ends must have."""
    low = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return read, write


def _described(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description", details["text"]))
