"""The figures of a report, in its order: each is one view that fills a narrow or a wide page, with its numbers."""

from collections.abc import Iterator

from cs330ray.report import figures_answer, figures_course, figures_trials
from cs330ray.report.drawing import Figure, records
from cs330ray.report.searched import Search
from cs330ray.report.study import Snapshot

__all__ = ["Figure", "figures", "records"]

DRAWN = (
    figures_answer.confirmed,
    figures_answer.axes,
    figures_answer.front,
    figures_trials.parameters,
    figures_trials.importance,
    figures_course.curves,
    figures_course.progress,
    figures_trials.cost,
)


def figures(study: Snapshot) -> Iterator[Figure]:
    """Those figures that a study has data for, each when it is drawn."""
    search = Search(study)
    for draw in DRAWN:
        yield from draw(search)
