"""What a study has come to: `list`, `show`, `best`, `reproduce`, `report`."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cs330ray.cli.arguments import Name, Replicate, cell_of, cells_of, ledger_here, prefix, read_once, trial_of
from cs330ray.cli.tables import print_sheet
from cs330ray.errors import SpecError
from cs330ray.spec.places import home, study_file
from cs330ray.words import printable

if TYPE_CHECKING:
    from cs330ray.ledger.ledger import Ledger
    from cs330ray.ledger.records import Trial
    from cs330ray.spec.study import Study


LOG_END_BYTES = 20_000


def list_() -> None:
    """List the studies."""
    from cs330ray.report import tables

    with read_once() as ledger:
        print_sheet(tables.studies(ledger))


def show(
    study: Name,
    trial: Annotated[int | None, typer.Argument(help="one trial, with its rows")] = None,
    cell: Annotated[str | None, typer.Option(help='the cell of TRIAL, e.g. "inner_steps=1"')] = None,
    replicate: Replicate = 0,
    log: Annotated[
        bool, typer.Option("--log", help="with TRIAL: attempts, reason, traceback and what it wrote")
    ] = False,
    diff: Annotated[Path | None, typer.Option(help="what a study file changes against the study")] = None,
    front: Annotated[bool, typer.Option("--front", help="only the Pareto front")] = False,
) -> None:
    """Show a study's trials, or one trial."""
    from cs330ray.analysis import answer
    from cs330ray.analysis import confirmed as confirmation
    from cs330ray.analysis.cost.forecast import forecast
    from cs330ray.ledger.lines import left_alone
    from cs330ray.report import tables
    from cs330ray.spec import growth, reading

    if trial is None and (log or cell is not None or replicate):
        raise SpecError(
            f"show {study}: --log, --cell and --replicate are of one trial, but none is named; add its number"
        )
    with read_once() as ledger:
        found = ledger.study(study)
        if diff is not None:
            file = growth.as_recorded(found, reading.read(study_file(str(diff))))
            typer.echo(printable("\n".join(growth.difference(found, file))) or f"{study}: no difference")
        elif trial is None:
            print_sheet(tables.trials(ledger, found, front=front))
            if (confirmed := confirmation.table(ledger, found)) is not None:
                print_sheet(confirmed)
            lines = [*tables.outside(ledger, found), *answer.lines(ledger, found), *left_alone(ledger, found)]
            typer.echo(printable("\n".join([*lines, forecast(ledger, found).said])))
        else:
            _show_one(ledger, found, trial_of(ledger, found, trial, cell, replicate), log=log)


def _show_one(ledger: "Ledger", study: "Study", one: "Trial", *, log: bool) -> None:
    """Show one trial, and how to run it again."""
    from cs330ray.report import tables

    for table in tables.trial(ledger, study, one, log=log):
        print_sheet(table)
    for line in tables.outside(ledger, study, one):
        typer.echo(line)
    if one.state != "RUNNING":
        which = f" --cell {shlex.quote(one.cell.title)}" if one.cell.values else ""
        which += f" --replicate {one.cell.replicate}" if one.cell.replicate else ""
        typer.echo(f"Run it again: {prefix()}cs330ray reproduce {study.name} {one.number}{which}")
    if log:
        typer.echo(printable("\n".join(tables.tracebacks(ledger, study, one))), nl=False)
        _print_log(study, one)


def _print_log(study: "Study", trial: "Trial") -> None:
    """Print the end of what a trial and its runs of confirmation wrote."""
    from cs330ray.ledger import confirm
    from cs330ray.spec.places import log_of

    fresh = [cell for cell in confirm.fresh_cells(study) if cell.searched.key == trial.cell.key]
    for file in (log_of(home(), study.name, cell, trial.number) for cell in [trial.cell, *fresh]):
        if os.path.exists(file):  # noqa: PTH110 - False where it may not be seen
            with file.open("rb") as log:
                log.seek(max(file.stat().st_size - LOG_END_BYTES, 0))
                text = printable(log.read().decode(errors="replace"))
            typer.echo(f"{file}:\n{text}" if text else f"{file}: nothing was written")


def best(
    study: Name,
    by: Annotated[str | None, typer.Option(metavar="METRIC", help="rank by this metric of the last row")] = None,
    cell: Annotated[str | None, typer.Option(metavar="TITLE", help='one cell alone, e.g. "inner_steps=1"')] = None,
    replicate: Annotated[
        int | None, typer.Option(metavar="R", help="one replicate alone; by default of each cell the one to use")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="write the model into an empty or new directory")
    ] = None,
) -> None:
    """Print the best configuration of each cell as TOML, and its checkpoint; or export the best as a model."""
    from cs330ray.report import tables

    ledger = ledger_here()
    found = ledger.study(study)
    cells_of(found, replicate or 0)
    title = None if cell is None else cell_of(found, cell).title
    if to is None:
        typer.echo(tables.best_toml(ledger, found, by, title, replicate))
    else:
        _export(ledger, found, title, replicate, by, to)


def _export(
    ledger: "Ledger", study: "Study", title: str | None, replicate: int | None, by: str | None, directory: Path
) -> None:
    """Write the picked run's weights as a model, and say which they are."""
    from cs330ray.export import card as model_card
    from cs330ray.export import write as export
    from cs330ray.trial import named as trainables

    export.vacant(directory)
    picked = model_card.pick(ledger, study, title, replicate, by)
    model = export.take(ledger, study, picked.run)
    name, said = model.described.trainable, model.weights.card
    card = model_card.card(ledger, study, picked, trainable=name, said=said, provenance=model.provenance)
    export.write(directory, model, model_card.metrics(ledger, study, picked), card)
    typer.echo(f"{study.name}: {picked.run.cell.label}: trial {picked.run.number}, {picked.chosen}")
    typer.echo(f"  weights: {picked.weights}")
    if picked.not_confirmed:
        typer.echo(f"  not confirmed: {picked.not_confirmed}")
    named = "" if name in trainables.names() else f", trainable={name!r}"
    typer.echo(f"{directory}: written; model = cs330ray.load({str(directory)!r}{named})")


def reproduce(
    study: Name,
    trial: Annotated[int, typer.Argument(help="its number, as in `cs330ray show`")],
    cell: Annotated[str | None, typer.Option(help='the cell of TRIAL, e.g. "inner_steps=1"')] = None,
    replicate: Replicate = 0,
    fresh: Annotated[
        int | None, typer.Option(metavar="N", help="its run of confirmation on fresh seed N, as in `show STUDY TRIAL`")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="with --fresh: compare test too; it is read, and the ledger says so")
    ] = False,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="keep the checkpoints here")] = None,
) -> None:
    """Run one trial again, here and without Ray, and compare it; exits with 1 where it is not reproduced."""
    from cs330ray.cli import trial as lone
    from cs330ray.reproduce import rerun as service

    ledger = ledger_here()
    found = ledger.study(study)
    one = trial_of(ledger, found, trial, cell, replicate)
    one = one if fresh is None else service.under(ledger, found, one, fresh)
    raise SystemExit(0 if lone.reproduce(ledger, found, one, test=test, keep=keep) else 1)


def report(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="several: one question on several splits")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", "-o", metavar="DIR", help="where to; by default HOME/STUDY/report, and MLflow shows it too"
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="without the HTML page: small enough to commit")] = False,
) -> None:
    """Write the answer: one HTML page that needs no network, a Markdown summary, and the figures."""
    from cs330ray.report import html, page, splits
    from cs330ray.report.files import write
    from cs330ray.report.open_study import Opened, read_once

    if not markdown:
        html.library()
    attached = to is None and not markdown and len(studies) == 1
    ledger = read_once(home())
    found = [Opened(ledger, ledger.study(name)) for name in studies]
    whole = page.page(found[0]) if len(found) == 1 else splits.page(found)
    beside = "report" if len(found) == 1 else f"report-over-{len(found)}-splits"
    files = write(whole, to or home() / found[0].name / beside, with_page=not markdown)
    typer.echo(printable(f"{whole.title}: {whole.answer}"))
    shown = files[: 1 if markdown else 2]
    for file in shown:
        typer.echo(str(file))
    if attached:
        _attach(found[0].name, shown)


def _attach(study: str, files: list[Path]) -> None:
    """Put a report on the study's run in MLflow, where a mirror has shown the study there."""
    from cs330ray.mirror.sync import Mirror, MirrorError, was_shown

    if not was_shown(home(), study):
        return
    try:
        Mirror(ledger_here(follow=True), study, home()).attach(files)  # a study that runs has more by now
    except MirrorError as error:
        sys.stderr.write(f"the report is written, but not attached: {error}\n")


COMMANDS = {"list": list_, "show": show, "best": best, "reproduce": reproduce, "report": report}
