"""Hyperparameter studies of multi-task, meta- and few-shot learning.

A study is a file, a trial is a generator, a learner is mathematics.
"""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs330ray.package import VERSION

if TYPE_CHECKING:
    from cs330ray.report.open_study import Opened

__version__ = VERSION


def open(study: str, home: str | PathLike[str] | None = None) -> "Opened":  # noqa: A001 - as one says it: cs330ray.open
    """Open a study of the ledger for reading; its trials, rows and confirmation as frames, its best, its figures.

    `home` is where studies live: CS330RAY_HOME, else `runs`. Raises SpecError where there is no such study.
    """
    from cs330ray.report.open_study import opened
    from cs330ray.spec.places import home as default  # here, so that `import cs330ray` is quick

    return opened(study, default() if home is None else Path(home))


def load(directory: str | PathLike[str], trainable: str | None = None, base: str | PathLike[str] | None = None) -> Any:
    """Make the model that `cs330ray best STUDY --export DIRECTORY` wrote, ready to use.

    Nothing in the directory is run. A trainable of your own is imported only where you name it: `package.module`.
    `base` is where the pre-trained model below it is, if that is not where it was when it was exported.
    Raises DataError where the directory is not as it was written, and SpecError where the model cannot be made here.
    """
    from cs330ray.export import directory as exported  # here, so that `import cs330ray` is quick

    return exported.load(Path(directory), trainable, None if base is None else str(base))


def log(step: int, checkpoint: str | PathLike[str] | None = None, **metrics: float) -> None:
    """Report what your training has reached after `step` steps; does nothing where no study runs this process.

    Report each step once, with all its metrics, in rising order. `checkpoint` names a directory below
    CS330RAY_CHECKPOINTS_DIR that is written whole and stays as it is. Raises TypeError.
    """
    from cs330ray.trial.child import report  # here, so that `import cs330ray` is quick

    report.log(step, checkpoint, **metrics)
