"""The figures of a report, in its order: each is one view that fills a narrow or a wide page, with its numbers."""

from collections.abc import Iterator

from cs330ray.analysis.study import Snapshot
from cs330ray.report.figures import answer, learning, trials
from cs330ray.report.figures.marks import Figure, records
from cs330ray.report.figures.search import Search

__all__ = ["Figure", "figures", "records"]

DRAWN = (
    answer.confirmed,
    answer.axes,
    answer.front,
    trials.parameters,
    trials.importance,
    learning.curves,
    learning.progress,
    trials.cost,
)


def figures(study: Snapshot) -> Iterator[Figure]:
    """Those figures that a study has data for, each when it is drawn."""
    search = Search(study)
    for draw in DRAWN:
        yield from draw(search)
