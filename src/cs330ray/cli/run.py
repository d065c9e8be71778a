"""`run`: run, resume or extend a study, or say what that would do."""

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from cs330ray.cli.arguments import Overrides, prefix
from cs330ray.spec.places import home, study_file
from cs330ray.words import duration, redacted

if TYPE_CHECKING:
    from cs330ray.ledger.ledger import Ledger
    from cs330ray.spec.study import Study


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a study file, or the name of one in studies/")],
    fork: Annotated[str | None, typer.Option(metavar="NAME", help="run it as another study of this name")] = None,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would run and what it may cost; start nothing")
    ] = False,
) -> None:
    """Run, resume or extend a study: the same command does all three."""
    from cs330ray.spec import reading

    path = study_file(file)
    study = reading.read(path, set_ or (), fork)
    if dry_run:
        _dry_run(study, str(path))
    else:
        forked = ["--fork", fork] if fork else []
        sets = [word for text in set_ or () for word in ("--set", text)]
        run_study(study, str(path), shlex.join(["cs330ray", "run", file, *forked, *sets]))


def run_study(study: "Study", source: str, command: str) -> None:
    """Run a study with a live table, and end with its best trial and where to look. Exits with 130 after Ctrl-C."""
    from cs330ray.cli.live import StudyConsole
    from cs330ray.service import run as service
    from cs330ray.trial import check, named

    check.check(study, source)
    metrics = named.load(study.trainables()[0]).METRICS
    with StudyConsole(study, [metrics[name].goal for name in study.objective]) as console:
        outcome = service.run(study, home(), console)
    if outcome.interrupted:
        console.says(f"interrupted after {duration(outcome.seconds)}; nothing is lost")
        console.says(f"Go on with: {os.environ.get('CS330RAY_SUBMITTED') or prefix() + command}")
        raise SystemExit(130)
    console.says(f"{study.name}: done in {duration(outcome.seconds)} ({outcome.start_s:.1f}s until the first trial)")
    _print_answer(study, outcome.ledger)


def _print_answer(study: "Study", ledger: "Ledger") -> None:
    from rich.console import Console

    from cs330ray.mirror.runs import tracking_uri
    from cs330ray.report import tables
    from cs330ray.trial import named

    console = Console(highlight=False)
    for line in tables.answer(ledger, study, named.chance):
        console.print(line, soft_wrap=True, markup=False)
    console.print("Look closer:", markup=False)
    uri = shlex.quote(redacted(tracking_uri(home())))
    for line in (
        f"  {prefix()}cs330ray show {study.name}",
        f"  {prefix()}cs330ray ui      (the same as: mlflow ui --backend-store-uri {uri})",
    ):
        console.print(line, soft_wrap=True, markup=False)


def _dry_run(study: "Study", source: str) -> None:
    from rich.console import Console

    from cs330ray.service.estimate import plan
    from cs330ray.service.machines.machine import Machine
    from cs330ray.trial import check

    check.check(study, source)
    machine = Machine.here()
    slots = machine.slots(study)
    console = Console(highlight=False)
    for line in [*_grown(study), *plan(study, slots, machine.gpus_per_worker(study))]:
        console.print(line, soft_wrap=True, markup=False)


def _grown(study: "Study") -> list[str]:
    """What a study would add to the one of its name that is in the ledger."""
    from cs330ray.ledger.ledger import Ledger
    from cs330ray.ledger.lines import announced
    from cs330ray.spec import growth

    if not (home() / "ledger.db").exists() and not os.environ.get("CS330RAY_LEDGER"):
        return []
    ledger = Ledger.at(home())
    old = ledger.find(study.name)
    lines = [] if old is None else [*growth.growth(old, study), *announced(ledger, study)]
    return [f"{study.name}: grown: {line}" for line in lines]


COMMANDS = {"run": run}
