"""Hyperparameter studies of multi-task, meta- and few-shot learning.

A study is a file, a trial is a generator, a learner is mathematics.
"""

from os import PathLike
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def load(directory: str | PathLike[str], trainable: str | None = None) -> Any:
    """Make the model that `cs330ray best STUDY --export DIRECTORY` wrote, ready to use.

    Nothing in the directory is run. A trainable of your own is imported only where you name it: `package.module`.
    Raises DataError where the directory is not as it was written, and SpecError where the model cannot be made here.
    """
    from cs330ray.service import exported  # here, so that `import cs330ray` is quick

    return exported.load(Path(directory), trainable)
