"""`run`: run, resume or extend a study, or say what that would do."""

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from cs330ray.cli import screen
from cs330ray.cli.arguments import Overrides, ledger_is_here, prefix
from cs330ray.errors import SpecError
from cs330ray.spec.places import home, study_file
from cs330ray.words import duration, printable, redacted

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
    no_mirror: Annotated[
        bool, typer.Option("--no-mirror", help="leave MLflow alone; `cs330ray sync` tells it later")
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
        without = ["--no-mirror"] if no_mirror else []
        command = shlex.join(["cs330ray", "run", file, *forked, *sets, *without])
        run_study(study, str(path), command, mirror=not no_mirror)


def run_study(study: "Study", source: str, command: str, *, mirror: bool = True) -> None:
    """Run a study with a live table, and end with its best trial and where to look. Exits with 130 after Ctrl-C."""
    from cs330ray.cli.live import StudyConsole
    from cs330ray.mirror.names import renamed
    from cs330ray.service import run as service
    from cs330ray.trial import named

    old_ways = _checked(study, source)
    metrics = named.of(study.compared[0]).METRICS
    screen.last()
    with StudyConsole(study, [metrics[name].goal for name in study.objective]) as console:
        declared = sorted({name for each in named.metrics(study).values() for name in each})
        for line in [*old_ways, *renamed(declared, declared)]:
            console.says(f"{study.name}: {line}")
        try:
            outcome = service.run(study, home(), console, mirror=mirror)
        except KeyboardInterrupt:  # before the first trial, or a second one
            outcome = None
    if outcome is None or outcome.interrupted:
        again = os.environ.get("CS330RAY_SUBMITTED") or prefix() + command
        after = "" if outcome is None else f" after {duration(outcome.seconds)}"
        screen.must_be_read(f"interrupted{after}; nothing is lost\nGo on with: {again}")
        raise SystemExit(130)
    took = f"{duration(outcome.seconds)} ({outcome.start_s:.1f}s until the first trial)"
    screen.must_be_read(f"{study.name}: done in {took}")
    _print_answer(outcome.ledger.study(study.name), outcome.ledger, mirror=mirror)


def _checked(study: "Study", source: str) -> list[str]:
    """What a study that is in the ledger as it is breaks of later rules, in lines. Raises SpecError for any other."""
    from cs330ray.ledger.ledger import Ledger
    from cs330ray.spec import growth
    from cs330ray.trial import check

    try:
        return check.check(study, source)
    except SpecError:
        recorded = Ledger.at(home()).find(study.name) if ledger_is_here() else None
        if recorded is None or recorded.digest != growth.as_recorded(recorded, study).digest:
            raise
    return [f"a new study may not do this: {line}" for line in check.check(study, source, recorded=True)]


def _print_answer(study: "Study", ledger: "Ledger", *, mirror: bool) -> None:
    from rich.console import Console

    from cs330ray.mirror.experiments import tracking_uri
    from cs330ray.report import tables
    from cs330ray.trial import named

    console = Console(highlight=False)
    for line in tables.answer(ledger, study, named.chance):
        console.print(printable(line), soft_wrap=True, markup=False)
    screen.must_be_read(f"Look closer:\n  {prefix()}cs330ray show {study.name}")
    if not mirror:
        console.print(f"  {prefix()}cs330ray sync {study.name}", soft_wrap=True, markup=False)
    uri = tracking_uri(home())
    same = f"      (the same as: mlflow ui --backend-store-uri {shlex.quote(uri)})" if redacted(uri) == uri else ""
    console.print(f"  {prefix()}cs330ray ui{same}", soft_wrap=True, markup=False)


def _dry_run(study: "Study", source: str) -> None:
    from rich.console import Console

    from cs330ray.service.estimate import plan
    from cs330ray.service.machines.machine import Machine

    old_ways = _checked(study, source)
    machine = Machine.here()
    slots = machine.slots(study)
    console = Console(highlight=False)
    completed, grown, ledger = _grown(study)
    estimated = plan(completed, slots, machine.gpus_per_worker(study), ledger)
    for line in [*old_ways, *grown, *_told(completed, source, ledger), *estimated]:
        console.print(printable(line), soft_wrap=True, markup=False)


def _told(study: "Study", source: str, ledger: "Ledger | None") -> list[str]:
    """What a study would tell of its cells, as it is asked, in a line; of one cell nothing."""
    from cs330ray.analysis.claims.advice import advice, obstacle

    if len(study.compared) < 2:
        return []
    why = obstacle(study)
    return [f"{study.name}: {f'no cells are told apart: {why}' if why else advice(study, source, ledger).line}"]


def _grown(study: "Study") -> tuple["Study", list[str], "Ledger | None"]:
    """Complete a study by the one of its name in the ledger: the study, what it would add in lines, the ledger."""
    from cs330ray.ledger.ledger import Ledger
    from cs330ray.ledger.lines import announced
    from cs330ray.service import unchanged
    from cs330ray.spec import growth

    if not ledger_is_here():
        return study, [], None
    ledger = Ledger.at(home())
    old = ledger.find(study.name)
    if old is None:
        return study, [], None
    unchanged.check(ledger, study)
    completed = growth.as_recorded(old, study)
    lines = [*growth.growth(old, completed, ledger.most_begun(old)), *announced(ledger, completed)]
    return completed, [*growth.kept(study, completed), *(f"{study.name}: grown: {line}" for line in lines)], ledger


COMMANDS = {"run": run}
