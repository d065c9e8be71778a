"""A report as Markdown, with its figures as files beside it."""

from functools import singledispatch
from typing import Any

import pandas as pd

from cs330ray.analysis.table import Sheet
from cs330ray.report.figures.marks import Figure
from cs330ray.report.html import slug
from cs330ray.report.page import Code, Drawn, Heading, Page, Points, Words
from cs330ray.words import number

MOST_NUMBERS = 60  # rows of a figure's numbers that stand in the text


def text(page: Page) -> str:
    """The Markdown; its figures are named `figures/NAME.svg`."""
    blocks = "\n\n".join(_markdown(block) for block in page.blocks)
    return f"# {_line(page.title)}\n\n{_line(page.question)}\n\n{blocks}\n"


def drawings(page: Page) -> dict[str, str]:
    """Every figure as SVG on white, by file name."""
    drawn = [block for block in page.blocks if isinstance(block, Drawn)]
    return {f"{slug(block.figure.name)}.svg": block.picture.result() for block in drawn}


@singledispatch
def _markdown(block: Any) -> str:
    raise TypeError(f"no such block: {type(block)}")


@_markdown.register
def _(block: Heading) -> str:
    return f"## {_line(block.text)}"


@_markdown.register
def _(block: Words) -> str:
    return f"**{_line(block.text)}**" if block.strong else _line(block.text)


@_markdown.register
def _(block: Points) -> str:
    return "\n".join(f"- {_line(each)}" for each in block.texts)


@_markdown.register
def _(block: Code) -> str:
    return f"```{block.language}\n{block.text}\n```"


@_markdown.register
def _(block: Sheet) -> str:
    title = f"{_line(block.title)}:\n\n" if block.title else ""
    lines = [_row(block.columns), _row(["---"] * len(block.columns)), *(_row(row) for row in block.rows)]
    return title + "\n".join(lines)


@_markdown.register
def _(block: Drawn) -> str:
    figure = block.figure
    title, file = _line(figure.title), f"figures/{slug(figure.name)}.svg"
    return f"![{title}]({file})\n\n*{title}.* {_line(figure.says)} `{block.again}`{_numbers(figure)}"


def _numbers(figure: Figure) -> str:
    """The numbers of a figure, folded away, where they are few."""
    if len(figure.table) > MOST_NUMBERS:
        return f" It draws {len(figure.table)} rows of numbers, which the page has."
    lines = [_row(list(figure.table)), _row(["---"] * len(figure.table.columns))]
    lines += [_row([_number(value) for value in row]) for row in figure.table.itertuples(index=False)]
    table = "\n".join(lines)
    return f"\n\n<details><summary>Its numbers</summary>\n\n{table}\n\n</details>"


def _number(value: Any) -> str:
    return "" if pd.isna(value) else number(value, 5) if isinstance(value, float) else str(value)


def _row(values: Any) -> str:
    return "| " + " | ".join(_in_cell(value) for value in values) + " |"


def _in_cell(value: str) -> str:
    """A text that ends no cell."""
    return _line(value).replace("|", "\\|")


def _line(text: str) -> str:
    """A text that stays in its line and opens no element, whatever an error message says."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
