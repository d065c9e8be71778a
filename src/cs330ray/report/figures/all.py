"""The figures of a report, in its order: each is one view that fills a narrow or a wide page, with its numbers."""

from collections.abc import Iterator
from dataclasses import replace

from cs330ray.analysis.study import Snapshot
from cs330ray.report.figures import answer, learning, trials, variance
from cs330ray.report.figures.marks import Figure, records
from cs330ray.report.figures.search import Search

__all__ = ["Figure", "figures", "records"]

OF_ALL = (variance.replicates, variance.sources)  # of all replicates together
DRAWN = (
    answer.axes,
    answer.front,
    trials.parameters,
    trials.importance,
    learning.curves,
    learning.progress,
    trials.cost,
)


def figures(study: Snapshot) -> Iterator[Figure]:
    """Those figures that a study has data for, each when it is drawn; searches and confirmations of replicate 0."""
    one = study if study.study.repeat.searches == 1 else Snapshot(study.ledger, study.study, 0)
    search = Search(one)
    yield from _of_one(study, answer.confirmed(search))
    for draw_all in OF_ALL:
        yield from draw_all(study)
    for draw in DRAWN:
        yield from _of_one(study, draw(search))


def _of_one(study: Snapshot, drawn: Iterator[Figure]) -> Iterator[Figure]:
    """Figures of one replicate, which say so where there are several."""
    searches = study.study.repeat.searches
    for figure in drawn:
        yield replace(figure, says=f"{figure.says} Of replicate 0 of {searches}.") if searches > 1 else figure
