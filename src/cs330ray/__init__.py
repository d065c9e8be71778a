"""Hyperparameter studies of multi-task, meta- and few-shot learning.

A study is a file, a trial is a generator, a learner is mathematics.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cs330ray.report.opened import Opened

__version__ = "0.1.0"


def open(study: str, home: "Path | str | None" = None) -> "Opened":  # noqa: A001 - as one says it: cs330ray.open
    """Open a study of the ledger for reading; its trials, rows and confirmation as frames, its best, its figures.

    `home` is where studies live: CS330RAY_HOME, else `runs`. Raises SpecError where there is no such study.
    """
    from pathlib import Path

    from cs330ray.home import home as default
    from cs330ray.report.opened import opened

    return opened(study, default() if home is None else Path(home))
