"""What keeps a home in order: `restore`, `delete`, `pack`, `unpack`, `sync`, `ui`."""

import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from cs330ray.cli import screen
from cs330ray.cli.arguments import Name, ledger_here, prefix, writer_here
from cs330ray.errors import SpecError
from cs330ray.spec.places import home
from cs330ray.words import plural, printable, redacted

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
    from cs330ray.ledger.shared.home import must_be_free

    must_be_free(home())
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
    ledger = writer_here()
    found = ledger.study(study)
    trials = sum(len(ledger.history(found, cell)) for cell in found.cells)
    if not yes and not typer.confirm(f"delete {study} with {trials} trials, their checkpoints and MLflow runs?"):
        raise SystemExit(1)
    from cs330ray.ledger.lease import held
    from cs330ray.mirror.sync import MirrorError, forget
    from cs330ray.service.thin import remove_copies, remove_folder

    with held(ledger.database, study):
        left = remove_copies(ledger, found)
        try:
            forget(study, ledger.uid(study), home())
        except MirrorError as error:
            sys.stderr.write(f"{error}\n")
        ledger.delete(study)
        stays = remove_folder(home(), study)
    typer.echo(f"{study}: deleted, {trials} trials")
    if left:
        sys.stderr.write(
            f"{study}: {len(left)} checkpoints stay, {left[0]} for one: CS330RAY_CHECKPOINTS is not there\n"
        )
    if stays:
        count = "1 file stays that is" if len(stays) == 1 else f"{len(stays)} files stay that are"
        sys.stderr.write(f"{study}: {count} not the study's: {', '.join(map(str, stays))}\n")


def pack(
    study: Name,
    to: Annotated[Path, typer.Option("--to", "-o", metavar="FILE", help="a new file")],
) -> None:
    """Pack a study into one file for another home: its record, checkpoints, logs and report."""
    from cs330ray.travel.pack import pack as pack_

    ledger = ledger_here()
    packed = pack_(ledger, ledger.study(study), home(), to)
    typer.echo(f"{to}: {study}, {plural(packed.trials, 'trial')}, {plural(packed.checkpoints, 'checkpoint')}")
    if packed.without:
        sys.stderr.write(
            f"{study}: {plural(len(packed.without), 'recorded checkpoint')} left out, of {packed.without[0]} for one: "
            "not here, or not whole\n"
        )
    if packed.unread:
        sys.stderr.write(
            f"{study}: {plural(len(packed.unread), 'file')} left out that cannot be read, {packed.unread[0]} for one\n"
        )


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="what `cs330ray pack` made")],
    as_: Annotated[str | None, typer.Option("--as", metavar="NAME", help="call the study so here")] = None,
) -> None:
    """Unpack a study into this home; nothing in the file is run."""
    from cs330ray.travel.unpack import unpack as unpack_

    done = unpack_(file, home(), as_)
    was = f" (packed as {done.packed_as})" if done.packed_as != done.study.name else ""
    counts = f"{plural(done.trials, 'trial')}, {plural(done.checkpoints, 'checkpoint')}"
    typer.echo(f"{done.study.name}: unpacked{was}, {counts}")
    if done.study.command is not None:
        typer.echo("Its command is not started from here: resume it by a study file of your own, beside its script")
        return
    typer.echo(f"Resume or extend it with: {prefix()}cs330ray run {shlex.quote(str(done.file))}")


def sync(
    study: Name,
    follow: Annotated[bool, typer.Option("--follow", help="keep on until stopped")] = False,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,
) -> None:
    """Make MLflow agree with the ledger."""
    from cs330ray.mirror import sync
    from cs330ray.mirror.experiments import tracking_uri

    ledger = ledger_here(follow=True)
    ledger.study(study)
    if follow:
        screen.last()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, screen.Screen):
                stream.hides = True  # into mirror.log
        raise SystemExit(0 if sync.follow(ledger, study, home(), until_eof=until_eof) else 3)
    mirror = sync.Mirror(ledger, study, home())
    changes = mirror.sync()
    for line in mirror.remarks():
        typer.echo(printable(line))
    at = redacted(tracking_uri(home()))
    typer.echo(f"{study}: {changes} changes; MLflow at {at} agrees with the ledger")


def ui(port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 5000) -> None:
    """Open MLflow's UI on this machine."""
    from cs330ray.mirror import sync
    from cs330ray.mirror.experiments import tracking_uri

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


COMMANDS = {"restore": restore, "delete": delete, "pack": pack, "unpack": unpack, "sync": sync, "ui": ui}
