"""The figures of a report, in its order: each one view that fills a narrow or a wide page, with its numbers."""

from typing import TYPE_CHECKING

from cs330ray.report import found, searched
from cs330ray.report.drawing import Figure
from cs330ray.report.searched import Search

if TYPE_CHECKING:
    from cs330ray.report.opened import Opened

__all__ = ["Figure", "figures"]

DRAWN = (
    found.confirmed,
    found.axes,
    found.front,
    searched.parameters,
    searched.importance,
    searched.curves,
    searched.progress,
    searched.cost,
)


def figures(study: "Opened") -> list[Figure]:
    """Those figures that a study has data for."""
    search = Search(study)
    return [figure for draw in DRAWN for figure in draw(search)]
