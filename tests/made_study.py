"""A study with a made history, one for all tests that only read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study

if TYPE_CHECKING:
    from cs330ray.report.open_study import Opened

MADE: dict[str, Any] = {
    "name": "made",
    "question": "How many ways may a task have?",
    "trainable": "benchmarks.sleeper",
    "objective": ["val_accuracy"],
    "compare": {"ways": [2, 5]},
    "search": {"lr": {"low": 1e-3, "high": 10.0, "log": True}, "body": ["course", "pooled"]},
    "sampler": {"kind": "random"},
    "budget": {"trials": 8, "steps": 80},
    "confirm": {"top": 2, "seeds": 3},
}


def made(**changes: Any) -> Study:
    """The made study with some of its tables replaced."""
    return parse(MADE | changes, "made")


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the made study; it is for reading alone."""
    from benchmarks.made import fill  # here, so that other tests do not wait for it

    home = tmp_path_factory.mktemp("made") / "runs"
    fill(home, made())
    return home


@pytest.fixture
def study(made_home: Path) -> "Opened":
    """The made study, opened."""
    from cs330ray.report.open_study import opened

    return opened("made", made_home)
