"""The browser of the tests sees what a person's would: text, colours, errors, and what a page asks the network for."""

import struct
import time
from pathlib import Path

import pytest

from tests.browser import browser

PAGE = """<!doctype html><meta charset="utf-8"><title>A page</title>
<style>body { margin: 0; height: 2000px; background: white }
@media (prefers-color-scheme: dark) { body { background: black } }</style>
<button onclick="this.textContent = 'pressed'">press me</button>
<img src="picture.png"><img src="https://outside.example/far.png">
<script>
  console.error("something", "is wrong");
  setTimeout(() => { throw new Error("nobody catches this") });
  new Worker(URL.createObjectURL(new Blob(["fetch('https://outside.example/from-a-worker')"])));
  setTimeout(() => { document.title = "done" }, 300);
</script>"""


@pytest.fixture
def page_of_errors(tmp_path: Path) -> str:
    (tmp_path / "page.html").write_text(PAGE)
    return (tmp_path / "page.html").as_uri()


def test_a_page_tells_what_it_logs_throws_and_requests(page_of_errors: str, tmp_path: Path) -> None:
    with browser() as here:
        page = here.open(page_of_errors, wait_for="document.title === 'done'")
        page.click("button")
        assert page.text().strip() == "pressed"
        assert ("error", "something is wrong") in page.console
        assert any(level == "exception" and "nobody catches this" in text for level, text in page.console)
        assert any(level == "error" and "picture.png" in text for level, text in page.console)
        assert [url.rpartition("/")[2] for url in page.requests if url.startswith(("file", "https"))] == [
            "page.html", "picture.png", "far.png", "from-a-worker",
        ]  # fmt: skip
        with pytest.raises(RuntimeError, match="ReferenceError: nothing is not defined"):
            page.eval("nothing")
        with pytest.raises(TimeoutError, match="false is not true"):
            page.wait("false", 0.2)


@pytest.mark.parametrize(("dark", "colour"), [(False, "rgb(255, 255, 255)"), (True, "rgb(0, 0, 0)")])
def test_a_page_has_the_colours_and_the_size_that_were_asked_for(
    page_of_errors: str, tmp_path: Path, dark: bool, colour: str
) -> None:
    with browser(width=700, height=500, dark=dark) as here:
        page = here.open(page_of_errors)
        assert page.eval("getComputedStyle(document.body).backgroundColor") == colour
        page.screenshot(tmp_path / "window.png", full=False)
        page.screenshot(tmp_path / "whole.png")
    assert [_size(tmp_path / name) for name in ("window.png", "whole.png")] == [(700, 500), (700, 2000)]


def test_a_page_that_never_comes_to_rest_ends_in_time_and_takes_its_browser_with_it(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<script>setTimeout(() => { while (true); }, 200)</script>")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="does not answer"), browser() as here:
        here.open((tmp_path / "page.html").as_uri(), wait_for="false", timeout_s=2)
    assert time.monotonic() - began < 60


def test_a_sandboxed_frame_and_a_link_in_a_new_tab_are_seen_too(tmp_path: Path) -> None:
    inner = "data:text/html,<script>console.log('from the frame')</script>"
    (tmp_path / "page.html").write_text(
        f"""<a href="other.html" target="_blank">other</a><iframe sandbox="allow-scripts" src="{inner}"></iframe>"""
    )
    (tmp_path / "other.html").write_text("<title>other</title>the other page")
    with browser() as here:
        page = here.open((tmp_path / "page.html").as_uri())
        other = page.follow("a", wait_for="document.title === 'other'")
        assert (other.text(), other.eval("innerWidth")) == ("the other page", 1200)
        assert ("log", "from the frame") in page.console


def _size(png: Path) -> tuple[int, int]:
    return struct.unpack(">II", png.read_bytes()[16:24])  # type: ignore[return-value]
