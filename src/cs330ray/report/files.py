"""A report as files: one HTML page, a Markdown summary, and its figures."""

from pathlib import Path

from cs330ray import files
from cs330ray.errors import SpecError
from cs330ray.report import html, markdown
from cs330ray.report.page import Page

PAGE, SUMMARY, FIGURES = "report.html", "report.md", "figures"


def write(page: Page, folder: Path, *, with_page: bool = True) -> list[Path]:
    """Write `report.html`, `report.md` and `figures/*.svg` into `folder`; an earlier report there gives way.

    Without the page it is small enough to be kept with code. Each file takes its name when it is whole. Raises
    SpecError where the folder cannot be written.
    """
    texts = {**({PAGE: html.text(page)} if with_page else {}), SUMMARY: markdown.text(page)}
    texts |= {f"{FIGURES}/{name}": svg for name, svg in markdown.drawings(page).items()}
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for former in (folder / FIGURES).glob("*.svg"):
            if f"{FIGURES}/{former.name}" not in texts:
                former.unlink()
        return [files.write_text(folder / name, text) for name, text in texts.items()]
    except OSError as error:
        raise SpecError(
            f"{folder}: a folder for the report is needed, but {error.strerror}; name another with --to"
        ) from None
