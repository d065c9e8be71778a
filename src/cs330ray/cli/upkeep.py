"""What keeps a home in order: `restore`, `delete`, `sync`, `ui`."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from cs330ray.cli.arguments import Name, ledger_here, writer_here
from cs330ray.errors import SpecError
from cs330ray.spec.places import home
from cs330ray.words import redacted

UI_STUDIES = 10


def restore(
    backup: Annotated[
        Path | None, typer.Argument(metavar="[BACKUP]", help="by default the newest that is whole")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Put a backup in the place of the ledger; the old one is moved aside, and the same commands then go on."""
    from cs330ray.ledger import backup as backups
    from cs330ray.ledger.ledger import Ledger

    ledger = backups.file_of(home())
    whole = ledger is not None and ledger.exists() and ledger.stat().st_size and backups.damage(ledger) is None
    if whole and not yes and not typer.confirm(f"{ledger} is whole; replace it by an older backup?"):
        raise SystemExit(1)
    chosen, aside = backups.restore(home(), backup)
    studies = ", ".join(Ledger.at(home()).names()) or "none"
    typer.echo(f"restored {chosen}" + (f"; what was there lies in {aside}" if aside else ""))
    typer.echo(f"studies: {studies}. The same commands go on; what was recorded after the backup is made again")


def delete(study: Name, yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False) -> None:
    """Delete a study: its trials, checkpoints and MLflow runs."""
    import shutil

    ledger = writer_here()
    found = ledger.study(study)
    trials = sum(len(ledger.history(found, cell)) for cell in found.cells)
    if not yes and not typer.confirm(f"delete {study} with {trials} trials, their checkpoints and MLflow runs?"):
        raise SystemExit(1)
    from cs330ray.ledger.lease import held
    from cs330ray.mirror.sync import MirrorError, forget
    from cs330ray.service.thin import remove_copies

    with held(ledger.database, study):
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


def sync(
    study: Name,
    follow: Annotated[bool, typer.Option("--follow", help="keep on until stopped")] = False,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,
) -> None:
    """Make MLflow agree with the ledger."""
    from cs330ray.mirror import sync
    from cs330ray.mirror.runs import tracking_uri

    ledger = ledger_here(follow=True)
    ledger.study(study)
    if follow:
        raise SystemExit(0 if sync.follow(ledger, study, home(), until_eof=until_eof) else 3)
    changes = sync.Mirror(ledger, study, home()).sync()
    at = redacted(tracking_uri(home()))
    typer.echo(f"{study}: {changes} changes; MLflow at {at} agrees with the ledger")


def ui(port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 5000) -> None:
    """Open MLflow's UI on this machine."""
    from cs330ray.mirror import sync
    from cs330ray.mirror.runs import tracking_uri

    if not 1 <= port <= 65535:
        raise SpecError(f"--port: a number from 1 to 65535 is needed, but got {port}")
    uri = tracking_uri(home())
    if uri.startswith("http"):
        typer.echo(f"MLflow runs at {redacted(uri)}")
        _print_pages(sync.pages(home()), redacted(uri))
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SpecError(f"ui: port {port} must be free, but {error.strerror}; use --port") from None
    typer.echo(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    _print_pages(sync.pages(home()), f"http://127.0.0.1:{port}")
    sys.stdout.flush()
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {**os.environ, **quiet, "MLFLOW_BACKEND_STORE_URI": uri}  # its password is nothing for `ps`
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    os.execve(sys.executable, [*server, "--port", str(port), "--workers", "1"], environment)


def _print_pages(pages: dict[str, str], server: str) -> None:
    """Print where the newest studies are: MLflow's own start page leads to traces, which they have none of."""
    for name, page in list(pages.items())[:UI_STUDIES]:
        typer.echo(f"  {name}: {server.rstrip('/')}/{page}")


COMMANDS = {"restore": restore, "delete": delete, "sync": sync, "ui": ui}
