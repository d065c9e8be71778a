"""The command line. Rooms with heavy dependencies are entered inside the commands, so that `--help` is quick."""

import os
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cs330ray import remote
from cs330ray.errors import Cs330rayError, Diverged, SpecError
from cs330ray.home import home, study_file
from cs330ray.words import duration, redacted

if TYPE_CHECKING:
    from cs330ray.service.ledger import Ledger
    from cs330ray.service.records import Trial
    from cs330ray.spec import Cell, Study

LOG_END_BYTES = 20_000
UI_STUDIES = 10

app = typer.Typer(
    help="Hyperparameter studies of multi-task, meta- and few-shot learning on Ray, Optuna and MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
cluster_app = typer.Typer(help="Look at a file for `ray up`.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")
Name = Annotated[str, typer.Argument(metavar="STUDY", help="a study's name, as in `cs330ray list`")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override the file, e.g. budget.trials=32")
]


def main() -> None:
    """Run the command line: what a person can act on is one line and exit code 2."""
    guarded(app)


def guarded(command: Any, *arguments: Any) -> None:
    """Run `command`; an error of ours becomes its one line on stderr and exit code 2."""
    try:
        command(*arguments)
    except (Cs330rayError, Diverged) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def study_main(trainable: str, arguments: list[str] | None = None) -> None:
    """What `python -m cs330ray.studies.NAME` does: run studies/NAME.toml, or one trial alone with `--trial`."""
    from cs330ray.lone import study_command

    guarded(study_command, trainable, sys.argv[1:] if arguments is None else arguments, run_study)


@app.command()
def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a study file, or the name of one in studies/")],
    fork: Annotated[str | None, typer.Option(metavar="NAME", help="run it as another study of this name")] = None,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would run and what it may cost; start nothing")
    ] = False,
) -> None:
    """Run, resume or extend a study: the same command does all three."""
    from cs330ray import spec

    path = study_file(file)
    study = spec.read(path, set_ or (), fork)
    if dry_run:
        _dry_run(study, str(path))
    else:
        forked = ["--fork", fork] if fork else []
        sets = [word for text in set_ or () for word in ("--set", text)]
        run_study(study, str(path), shlex.join(["cs330ray", "run", file, *forked, *sets]))


def run_study(study: "Study", source: str, command: str) -> None:
    """Run a study with a live table, and end with its best trial and where to look. Exits with 130 after Ctrl-C."""
    from cs330ray.console import StudyConsole
    from cs330ray.service import run as service
    from cs330ray.service import trainables

    trainables.check(study, source)
    metrics = trainables.load(study.trainables()[0]).METRICS
    with StudyConsole(study, [metrics[name].goal for name in study.objective]) as console:
        outcome = service.run(study, home(), console)  # type: ignore[arg-type]
    if outcome.interrupted:
        console.says(f"interrupted after {duration(outcome.seconds)}; nothing is lost")
        console.says(f"Go on with: {os.environ.get('CS330RAY_SUBMITTED') or _prefix() + command}")
        raise SystemExit(130)
    console.says(f"{study.name}: done in {duration(outcome.seconds)} ({outcome.start_s:.1f}s until the first trial)")
    _print_answer(study, outcome.ledger)


def _prefix() -> str:
    """What makes a command find this home from another shell."""
    return f"CS330RAY_HOME={shlex.quote(str(home()))} " if home() != Path("runs") else ""


def _print_answer(study: "Study", ledger: "Ledger") -> None:
    from rich.console import Console

    from cs330ray.report import summary
    from cs330ray.service import trainables
    from cs330ray.service.mlflow_runs import tracking_uri

    console = Console(highlight=False)
    for line in summary.answer(ledger, study, trainables.chance):
        console.print(line, soft_wrap=True, markup=False)
    console.print("Look closer:", markup=False)
    for line in (
        f"  {_prefix()}cs330ray show {study.name}",
        f"  {_prefix()}cs330ray ui      (the same as: mlflow ui --backend-store-uri {redacted(tracking_uri(home()))})",
    ):
        console.print(line, soft_wrap=True, markup=False)


def _dry_run(study: "Study", source: str) -> None:
    from rich.console import Console

    from cs330ray.service import trainables
    from cs330ray.service.estimate import plan
    from cs330ray.service.machine import Machine

    trainables.check(study, source)
    machine = Machine.here()
    slots = machine.slots(study)
    console = Console(highlight=False)
    for line in [*_grown(study), *plan(study, slots, machine.gpus_per_worker(study))]:
        console.print(line, soft_wrap=True, markup=False)


def _grown(study: "Study") -> list[str]:
    """What a study would add to the one of its name that is in the ledger."""
    from cs330ray import growth
    from cs330ray.service.ledger import Ledger
    from cs330ray.service.lines import announced

    if not (home() / "ledger.db").exists() and not os.environ.get("CS330RAY_LEDGER"):
        return []
    ledger = Ledger.at(home())
    old = ledger.find(study.name)
    lines = [] if old is None else [*growth.growth(old, study), *announced(ledger, study)]
    return [f"{study.name}: grown: {line}" for line in lines]


@app.command()
def restore(
    backup: Annotated[
        Path | None, typer.Argument(metavar="[BACKUP]", help="by default the newest that is whole")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Put a backup in the place of the ledger; the old one is moved aside, and the same commands then go on."""
    from cs330ray.service import backup as backups
    from cs330ray.service.ledger import Ledger

    ledger = backups.file_of(home())
    whole = ledger is not None and ledger.exists() and ledger.stat().st_size and backups.damage(ledger) is None
    if whole and not yes and not typer.confirm(f"{ledger} is whole; replace it by an older backup?"):
        raise SystemExit(1)
    chosen, aside = backups.restore(home(), backup)
    studies = ", ".join(Ledger.at(home()).names()) or "none"
    typer.echo(f"restored {chosen}" + (f"; what was there lies in {aside}" if aside else ""))
    typer.echo(f"studies: {studies}. The same commands go on; what was recorded after the backup is made again")


@app.command()
def delete(study: Name, yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False) -> None:
    """Delete a study: its trials, checkpoints and MLflow runs."""
    import shutil

    ledger = _ledger()
    found = ledger.study(study)
    trials = sum(len(ledger.history(found, cell)) for cell in found.cells)
    if not yes and not typer.confirm(f"delete {study} with {trials} trials, their checkpoints and MLflow runs?"):
        raise SystemExit(1)
    from cs330ray.service.lease import held
    from cs330ray.service.mirror import MirrorError, forget
    from cs330ray.service.thin import remove_copies

    with held(ledger, study):
        left = remove_copies(ledger, found)
        try:
            forget(study, ledger.uid(study), home())
        except MirrorError as error:
            sys.stderr.write(f"{error}\n")
        ledger.delete(study)
    shutil.rmtree(home() / study, ignore_errors=True)
    typer.echo(f"{study}: deleted, {trials} trials")
    if left:
        sys.stderr.write(
            f"{study}: {len(left)} checkpoints stay, {left[0]} for one: CS330RAY_CHECKPOINTS is not there\n"
        )


@app.command("list")
def list_() -> None:
    """List the studies."""
    from cs330ray.report import summary

    _print_table(summary.studies(_ledger()))


@app.command()
def show(
    study: Name,
    trial: Annotated[int | None, typer.Argument(help="one trial, with its rows")] = None,
    cell: Annotated[str | None, typer.Option(help='the cell of TRIAL, e.g. "inner_steps=1"')] = None,
    log: Annotated[
        bool, typer.Option("--log", help="with TRIAL: attempts, reason, traceback and what it wrote")
    ] = False,
    diff: Annotated[Path | None, typer.Option(help="what a study file changes against the study")] = None,
    front: Annotated[bool, typer.Option("--front", help="only the Pareto front")] = False,
) -> None:
    """Show a study's trials, or one trial."""
    from cs330ray import growth, spec
    from cs330ray.report import confirmation, summary

    if trial is None and (log or cell is not None):
        raise SpecError(f"show {study}: --log and --cell are of one trial, but none is named; add its number")
    ledger = _ledger()
    found = ledger.study(study)
    if diff is not None:
        typer.echo("\n".join(growth.difference(found, spec.read(study_file(str(diff))))) or f"{study}: no difference")
    elif trial is None:
        _print_table(summary.trials(ledger, found, front=front))
        if (confirmed := confirmation.table(ledger, found)) is not None:
            _print_table(confirmed)
        if lines := confirmation.lines(ledger, found):
            typer.echo("\n".join(lines))
    else:
        one = _pick(ledger, found, trial, cell)
        for table in summary.trial(ledger, found, one, log=log):
            _print_table(table)
        if one.state != "RUNNING":
            which = f" --cell {shlex.quote(one.cell.title)}" if one.cell.values else ""
            typer.echo(f"Run it again: {_prefix()}cs330ray reproduce {found.name} {one.number}{which}")
        if log:
            typer.echo("\n".join(summary.tracebacks(ledger, found, one)), nl=False)
            _print_log(found, one)


def _print_log(study: "Study", trial: "Trial") -> None:
    """Print the end of what a trial and its runs of confirmation wrote."""
    from cs330ray.service import confirm
    from cs330ray.service.places import log_of

    fresh = [cell for cell in confirm.fresh_cells(study) if cell.searched.key == trial.cell.key]
    for file in (log_of(home(), study.name, cell, trial.number) for cell in [trial.cell, *fresh]):
        if file.exists():
            with file.open("rb") as log:
                log.seek(max(file.stat().st_size - LOG_END_BYTES, 0))
                text = log.read().decode(errors="replace")
            typer.echo(f"{file}:\n{text}" if text else f"{file}: nothing was written")


@app.command()
def best(
    study: Name,
    by: Annotated[str | None, typer.Option(metavar="METRIC", help="rank by this metric of the last row")] = None,
    cell: Annotated[str | None, typer.Option(metavar="TITLE", help='one cell alone, e.g. "inner_steps=1"')] = None,
    to: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="write the model into an empty or new directory")
    ] = None,
) -> None:
    """Print the best configuration of each cell as TOML, and its checkpoint; or export the best as a model."""
    from cs330ray.report import summary

    ledger = _ledger()
    found = ledger.study(study)
    one = None if cell is None else _cell(found, cell)
    if to is None:
        typer.echo(summary.best_toml(ledger, found, by, one))
    else:
        _export(ledger, found, one, by, to)


def _export(ledger: "Ledger", study: "Study", cell: "Cell | None", by: str | None, directory: Path) -> None:
    """Write the picked run's weights as a model, and say which they are."""
    from cs330ray.report import model_card
    from cs330ray.service import export, trainables

    export.vacant(directory)
    picked = model_card.pick(ledger, study, cell, by)
    model = export.take(ledger, study, picked.run)
    name, said = model.described.trainable, model.weights.card
    card = model_card.card(ledger, study, picked, trainable=name, said=said, provenance=model.provenance)
    export.write(directory, model, model_card.metrics(ledger, study, picked), card)
    typer.echo(f"{study.name}: {picked.run.cell.title}: trial {picked.run.number}, {picked.chosen}")
    typer.echo(f"  weights: {picked.weights}")
    if picked.not_confirmed:
        typer.echo(f"  not confirmed: {picked.not_confirmed}")
    named = "" if name in trainables.names() else f", trainable={name!r}"
    typer.echo(f"{directory}: written; model = cs330ray.load({str(directory)!r}{named})")


@app.command()
def reproduce(
    study: Name,
    trial: Annotated[int, typer.Argument(help="its number, as in `cs330ray show`")],
    cell: Annotated[str | None, typer.Option(help='the cell of TRIAL, e.g. "inner_steps=1"')] = None,
    fresh: Annotated[
        int | None, typer.Option(metavar="N", help="its run of confirmation on fresh seed N, as in `show STUDY TRIAL`")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="with --fresh: compare test too; it is read, and the ledger says so")
    ] = False,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="keep the checkpoints here")] = None,
) -> None:
    """Run one trial again, here and without Ray, and compare it; exits with 1 where it is not reproduced."""
    from cs330ray import lone
    from cs330ray.service import reproduce as service

    ledger = _ledger()
    found = ledger.study(study)
    one = _pick(ledger, found, trial, cell)
    one = one if fresh is None else service.under(ledger, found, one, fresh)
    raise SystemExit(0 if lone.reproduce(ledger, found, one, test=test, keep=keep) else 1)


@app.command()
def report(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="several: one question on several splits")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="where to (default: HOME/STUDY/report)")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="without the HTML page: small enough to commit")] = False,
) -> None:
    """Write the answer: one HTML page that needs no network, a Markdown summary, and the figures."""
    from cs330ray.report import html, page, splits
    from cs330ray.report.opened import Opened, read_once
    from cs330ray.report.write import write

    if not markdown:
        html.library()
    ledger = read_once(home())
    found = [Opened(ledger, ledger.study(name)) for name in studies]
    whole = page.page(found[0]) if len(found) == 1 else splits.page(found)
    beside = "report" if len(found) == 1 else f"report-over-{len(found)}-splits"
    files = write(whole, to or home() / found[0].name / beside, with_page=not markdown)
    typer.echo(f"{whole.title}: {whole.answer}")
    shown = files[: 1 if markdown else 2]
    for file in shown:
        typer.echo(str(file))
    if len(found) == 1 and not markdown:
        ledger.forget()  # a study that runs has gone on meanwhile
        _attach(ledger, found[0].name, shown)


def _attach(ledger: "Ledger", study: str, files: list[Path]) -> None:
    """Put a report on the study's run in MLflow, where a mirror has shown the study there."""
    from cs330ray.service.mirror import Mirror, MirrorError, was_shown

    if not was_shown(home(), study):
        return
    try:
        Mirror(ledger, study, home()).attach(files)
    except MirrorError as error:
        sys.stderr.write(f"the report is written, but not attached: {error}\n")


@app.command()
def sync(
    study: Name,
    follow: Annotated[bool, typer.Option("--follow", help="keep on until stopped")] = False,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,
) -> None:
    """Make MLflow agree with the ledger."""
    from cs330ray.service import mirror
    from cs330ray.service.mlflow_runs import tracking_uri

    ledger = _ledger()
    ledger.study(study)
    if follow:
        raise SystemExit(0 if mirror.follow(ledger, study, home(), until_eof=until_eof) else 3)
    changes = mirror.Mirror(ledger, study, home()).sync()
    at = redacted(tracking_uri(home()))
    typer.echo(f"{study}: {changes} changes; MLflow at {at} agrees with the ledger")


@app.command()
def ui(port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 5000) -> None:
    """Open MLflow's UI on this machine."""
    from cs330ray.service import mirror
    from cs330ray.service.mlflow_runs import tracking_uri

    if not 1 <= port <= 65535:
        raise SpecError(f"--port: a number from 1 to 65535 is needed, but got {port}")
    uri = tracking_uri(home())
    if uri.startswith("http"):
        typer.echo(f"MLflow runs at {redacted(uri)}")
        _print_pages(mirror.pages(home()), redacted(uri))
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SpecError(f"ui: port {port} must be free, but {error.strerror}; use --port") from None
    typer.echo(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    _print_pages(mirror.pages(home()), f"http://127.0.0.1:{port}")
    sys.stdout.flush()
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {**os.environ, **quiet, "MLFLOW_BACKEND_STORE_URI": uri}  # its password is nothing for `ps`
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    os.execve(sys.executable, [*server, "--port", str(port), "--workers", "1"], environment)


def _print_pages(pages: dict[str, str], server: str) -> None:
    """Print where the newest studies are: MLflow's own start page leads to traces, which they have none of."""
    for name, page in list(pages.items())[:UI_STUDIES]:
        typer.echo(f"  {name}: {server.rstrip('/')}/{page}")


@app.command()
def data(action: Annotated[str, typer.Argument(help="list, fetch or verify")] = "list") -> None:
    """List, fetch or verify the publishers' archives and the weights of language models."""
    from cs330ray.data import archives
    from cs330ray.pretrained import known, wheels

    if action not in ("list", "fetch", "verify"):
        raise SpecError(f"data: one of list, fetch, verify is needed, but got {action!r}")
    if action == "fetch":
        for archive in archives.archives():
            typer.echo(f"{archive.file}: {archives.fetch(archive)}")
        from cs330ray.pretrained import models

        for model in known.KNOWN:
            models.digest(model)
            typer.echo(f"{model}: {wheels.found(model)}")
    elif action == "verify":
        from cs330ray.data import movielens, omniglot, text

        omniglot.verify()
        typer.echo("omniglot: 1,623 characters of 50 alphabets, pixel for pixel the published ones")
        movielens.verify()
        typer.echo("movielens: 100,000 ratings of 1,682 films by 943 users, divided by each of u1-u5 as published")
        text.verify("babi")
        typer.echo("babi: 20 tasks with 1,000 questions to train and 1,000 to test, in as many stories as published")
        text.verify("amazon")
        typer.echo("amazon: 10,261 reviews, of each number of stars as many as published")
        text.verify("xsum")
        typer.echo("xsum: each pair has a document, a summary and an id of its own")
        for model in known.KNOWN:
            kept = wheels.verify(model)
            typer.echo(f"{model}: {'not fetched' if kept is None else 'as converted from what was published'}")
    else:
        from cs330ray.report.sheet import Sheet

        columns = ["name", "file", "licence", "found", "from"]
        rows = [[row.name, row.file, row.licence, str(row.found or "missing"), row.url] for row in archives.archives()]
        for name, carried in known.KNOWN.items():
            files = " ".join(wheel.file for wheel in carried.wheels)
            rows.append([name, files, carried.licence, str(wheels.found(name) or "missing"), "the package index"])
        _print_table(Sheet(None, columns, rows))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    import json

    from cs330ray.spec import Study

    typer.echo(json.dumps(Study.model_json_schema(), indent=2))


for _command in remote.COMMANDS:
    app.command()(_command)


@cluster_app.command("check")
def cluster_check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="for example cluster.yaml; call it where `ray up` will be")
    ],
) -> None:
    """Check a cluster file before `ray up`, and say what that would start and what costs."""
    from cs330ray.service import clusterfile

    typer.echo("\n".join(clusterfile.check(file)))


def _ledger() -> "Ledger":
    from cs330ray.service.ledger import Ledger

    if not os.environ.get("CS330RAY_LEDGER") and not (home() / "ledger.db").exists():
        raise SpecError(f"{home()}: a ledger is needed here, but there is none; run a study, or set CS330RAY_HOME")
    return Ledger.at(home())


def _cell(study: "Study", name: str) -> "Cell":
    """The cell of this title, or key."""
    found = [cell for cell in study.cells if name in (cell.title, cell.key)]
    if not found:
        cells = ", ".join(repr(cell.title) for cell in study.cells)
        raise SpecError(f"--cell: one of {cells} is needed, but got {name!r}")
    return found[0]


def _pick(ledger: "Ledger", study: "Study", number: int, cell: str | None) -> "Trial":
    chosen = study.cells if cell is None else [_cell(study, cell)]
    found = [trial for each in chosen for trial in ledger.trials(study, each) if trial.number == number]
    cells = ", ".join(repr(each.title) for each in study.cells)
    if len(found) != 1:
        why = (
            f"{len(found)} cells have it; add --cell with one of {cells}"
            if found
            else "there is none; see `cs330ray show`"
        )
        raise SpecError(f"{study.name}: trial {number} must be one trial, but {why}")
    return found[0]


def _print_table(sheet: Any) -> None:
    from cs330ray.console import print_table

    print_table(sheet.title, sheet.columns, sheet.rows)
