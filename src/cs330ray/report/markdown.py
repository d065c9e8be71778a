"""A report as Markdown, with its figures as files beside it."""

from functools import singledispatch
from typing import Any

from cs330ray.report.html import slug
from cs330ray.report.page import Code, Drawn, Heading, Page, Points, Words
from cs330ray.report.sheet import Sheet

WIDTH = 640  # of a figure, in pixels


def text(page: Page) -> str:
    """The Markdown; its figures are named `figures/NAME.svg`."""
    blocks = "\n\n".join(_markdown(block) for block in page.blocks)
    return f"# {page.title}\n\n{page.question}\n\n{blocks}\n"


def drawings(page: Page) -> dict[str, str]:
    """Every figure as SVG on white, by file name."""
    import vl_convert

    found = {}
    for block in page.blocks:
        if isinstance(block, Drawn):
            spec = {**block.figure.chart.to_dict(), "width": WIDTH, "background": "white"}
            found[f"{slug(block.figure.name)}.svg"] = vl_convert.vegalite_to_svg(spec)
    return found


@singledispatch
def _markdown(block: Any) -> str:
    raise TypeError(f"no such block: {type(block)}")


@_markdown.register
def _(block: Heading) -> str:
    return f"## {block.text}"


@_markdown.register
def _(block: Words) -> str:
    return f"**{block.text}**" if block.strong else block.text


@_markdown.register
def _(block: Points) -> str:
    return "\n".join(f"- {each}" for each in block.texts)


@_markdown.register
def _(block: Code) -> str:
    return f"```{block.language}\n{block.text}\n```"


@_markdown.register
def _(block: Sheet) -> str:
    title = f"{block.title}:\n\n" if block.title else ""
    lines = [_row(block.columns), _row(["---"] * len(block.columns)), *(_row(row) for row in block.rows)]
    return title + "\n".join(lines)


@_markdown.register
def _(block: Drawn) -> str:
    figure = block.figure
    return f"![{figure.title}](figures/{slug(figure.name)}.svg)\n\n*{figure.title}.* {figure.says} `{block.again}`"


def _row(values: Any) -> str:
    return "| " + " | ".join(_in_cell(value) for value in values) + " |"


def _in_cell(value: str) -> str:
    """A text that ends no cell and opens no element, whatever an error message says."""
    return value.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
