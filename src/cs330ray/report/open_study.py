"""A study opened for reading: what it says, in frames and in words, and its figures."""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cs330ray.analysis import answer
from cs330ray.analysis.study import Snapshot
from cs330ray.errors import SpecError
from cs330ray.ledger.once import LedgerOnce
from cs330ray.spec.places import LEDGER

if TYPE_CHECKING:
    import altair as alt

    from cs330ray.report.figures.marks import Figure


class Opened(Snapshot):
    """A study as the ledger held it when each part was first asked for, with its answer and its figures.

    `trials`, `rows`, `confirmed` and `runs` are frames, `best` the configuration to use, `comparison` how sure the
    answer is, `answer` that in at most three sentences. `figure(name)` draws one of `figures`.
    """

    def __repr__(self) -> str:
        return f"<study {self.name}: {len(self.trials)} trials in {len(self.study.cells)} cells>"

    @cached_property
    def answer(self) -> str:
        """What was found, and how sure that is, in at most three sentences."""
        return answer.answer(self)

    @cached_property
    def figures(self) -> "dict[str, Figure]":
        """All figures that this study has, by name."""
        from cs330ray.report.figures.all import figures

        return {figure.name: figure for figure in figures(self)}

    def figure(self, name: str) -> "alt.TopLevelMixin":
        """One figure, an Altair chart. Raises SpecError where the study has none of that name."""
        return self._figure(name).chart

    def table(self, name: str) -> pd.DataFrame:
        """The numbers of one figure. Raises SpecError where the study has none of that name."""
        return self._figure(name).table

    def _figure(self, name: str) -> "Figure":
        if name not in self.figures:
            raise SpecError(f"{self.name}: one of the figures {', '.join(self.figures)} is needed, but got {name!r}")
        return self.figures[name]


def read_once(home: Path) -> LedgerOnce:
    """Open the ledger at `home` for reading. Raises SpecError where there is none; makes nothing."""
    if not os.path.exists(home / LEDGER) and not os.environ.get("CS330RAY_LEDGER"):  # noqa: PTH110 - False where it may not be seen
        raise SpecError(f"{home}: a ledger is needed, but there is none; run a study, or set CS330RAY_HOME")
    return LedgerOnce.at(home)


def opened(name: str, home: Path) -> Opened:
    """Open the study `name` of the ledger at `home`. Raises SpecError where there is none; makes nothing."""
    ledger = read_once(home)
    return Opened(ledger, ledger.study(name))
