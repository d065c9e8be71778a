"""A report as one HTML file that asks the network for nothing."""

import functools
import html
import itertools
import json
import re
from concurrent.futures import Future, ThreadPoolExecutor
from functools import singledispatch
from importlib import resources
from typing import Any

from cs330ray.analysis.table import Sheet
from cs330ray.report.page import Code, Drawn, Heading, Page, Points, Words

# What the file may load, whatever stands in it: nothing. Vega compiles its expressions.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
SHORT = 36  # characters that stay on one line of a table


def text(page: Page) -> str:
    """The whole file."""
    specs = {slug(block.figure.name): block.specification for block in page.blocks if isinstance(block, Drawn)}
    code = library().result() if specs else ""
    parts = []
    for are_figures, blocks in itertools.groupby(page.blocks, key=lambda block: isinstance(block, Drawn)):
        inner = "\n".join(_html(block) for block in blocks)
        parts.append(f'<div class="figures">{inner}</div>' if are_figures else inner)
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(page.title)}</title>
<link rel="icon" href="data:,">
<style>
{_own("page.css")}</style>
</head>
<body>
<h1>{html.escape(page.title)}</h1>
<p class="question">{_words(page.question)}</p>
{body}
<script type="application/json" id="figures">{_inert(specs)}</script>
<script>{_in_script(code)}</script>
<script>
{_own("page.js")}</script>
</body>
</html>
"""


@functools.cache
def library() -> Future[str]:
    """Vega's own code, put together beside what else is to be done: it takes more than a second."""
    import vl_convert

    beside = ThreadPoolExecutor(1)
    code = beside.submit(lambda: vl_convert.javascript_bundle())  # type: ignore[call-arg] # its stub lacks a default
    beside.shutdown(wait=False)
    return code


def slug(name: str) -> str:
    """A figure's name for a file or an element: `axis/test_accuracy/shots` becomes `axis-test_accuracy-shots`."""
    return re.sub(r"[^\w.-]+", "-", name)


@singledispatch
def _html(block: Any) -> str:
    raise TypeError(f"no such block: {type(block)}")


@_html.register
def _(block: Heading) -> str:
    return f"<h2>{html.escape(block.text)}</h2>"


@_html.register
def _(block: Words) -> str:
    return f'<p class="answer">{_words(block.text)}</p>' if block.strong else f"<p>{_words(block.text)}</p>"


@_html.register
def _(block: Points) -> str:
    return "<ul>" + "".join(f"<li>{_words(each)}</li>" for each in block.texts) + "</ul>"


@_html.register
def _(block: Code) -> str:
    return f"<pre><code>{html.escape(block.text)}</code></pre>"


@_html.register
def _(block: Sheet) -> str:
    caption = f"<caption>{html.escape(block.title)}</caption>" if block.title else ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in block.columns)
    rows = "".join("<tr>" + "".join(_cell(each) for each in row) + "</tr>" for row in block.rows)
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


@_html.register
def _(block: Drawn) -> str:
    name = slug(block.figure.name)
    return f"""<figure>
<h3>{html.escape(block.figure.title)}</h3>
<div class="chart" id="figure-{name}" role="img" aria-label="{html.escape(block.figure.title)}"></div>
<figcaption><p class="says">{_words(block.figure.says)}</p>
<details data-of="{name}"><summary>Its numbers</summary><div class="wide"></div>
<p class="again">Again: <code>{html.escape(block.again)}</code></p></details></figcaption>
</figure>"""


def _cell(value: str) -> str:
    number = re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", value)
    kind = "number" if number else "long" if len(value) > SHORT else "text"
    return f'<td class="{kind}">{_words(value)}</td>'


def _words(words: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(words, quote=False))


def _inert(value: object) -> str:
    """JSON that no browser takes for the end of its element, whatever a name in it says."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _in_script(code: str) -> str:
    return re.sub(r"</(script)", r"<\\/\1", code, flags=re.IGNORECASE)


def _own(name: str) -> str:
    return (resources.files("cs330ray.report") / name).read_text()
