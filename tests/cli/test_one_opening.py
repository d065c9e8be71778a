"""A command opens the ledger once, whatever it says of it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cs330ray.cli import app, run
from cs330ray.cli.live import StudyConsole
from cs330ray.ledger.database import Database
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.process import NoMirror
from cs330ray.service import run as service
from cs330ray.spec import growth
from tests import in_process
from tests.filled import fill
from tests.studies_of_tests import toy


class Calls:
    """How often something was called."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.times, original = 0, getattr(owner, name)

        def counted(*given: Any, **named: Any) -> Any:
            self.times += 1
            return original(*given, **named)

        patch.setattr(owner, name, counted)


@pytest.fixture
def filled(home: Path) -> Path:
    """A home with two studies that have ended."""
    ledger = Writer.at(home)
    for name in ("letters", "others"):
        fill(ledger, name)
    return home


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["show", "letters"],
        ["show", "letters", "1", "--cell", "cost=1.0"],
        ["best", "letters"],
        ["report", "letters", "--markdown"],
        ["plan", "letters"],
        ["delete", "letters", "--yes"],
    ],
    ids=" ".join,
)
def test_a_command_opens_the_ledger_once(filled: Path, monkeypatch: pytest.MonkeyPatch, command: Sequence[str]) -> None:
    openings = Calls(monkeypatch, Database, "__init__")
    monkeypatch.setattr("sys.argv", ["cs330ray", *command])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code in (0, None)
    assert openings.times == 1


def test_a_run_opens_the_ledger_once_compares_the_study_once_and_hears_what_had_ended(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openings, comparisons = Calls(monkeypatch, Database, "__init__"), Calls(monkeypatch, growth, "growth")
    heard: list[list[tuple[int, str]]] = []
    hear = StudyConsole.had_ended

    def had_ended(console: StudyConsole, trials: Any) -> None:
        heard.append([(trial.number, trial.state) for trial in trials])
        hear(console, trials)

    monkeypatch.setattr(StudyConsole, "had_ended", had_ended)
    monkeypatch.setattr(service, "mirrored", lambda *_, **__: contextlib.nullcontext(NoMirror()))  # it opens its own
    for trials in (1, 2):
        study = toy(budget={"trials": trials, "steps": 5})
        with in_process.without_ray():
            run.run_study(study, "toy.toml", "cs330ray run toy.toml")
    assert openings.times == 2
    assert comparisons.times == 1  # the first time there was nothing to compare with
    assert heard == [[], [(0, "COMPLETE")]]
