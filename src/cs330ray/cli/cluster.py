"""The commands for studies on a cluster: submit, status, logs and stop. Each is told where the cluster is."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cs330ray.cli import screen
from cs330ray.clock import wall_s
from cs330ray.package import shipped
from cs330ray.spec.places import study_file
from cs330ray.words import duration, first_line_of, printable

if TYPE_CHECKING:
    from cs330ray.cluster.jobs import Cluster, Job

LAST_LINES = 10

Address = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="the cluster's dashboard; by default RAY_API_SERVER_ADDRESS, or a "
                 "tunnel's end: http://127.0.0.1:8265"),
]  # fmt: skip
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="PATH", help="a file with the cluster's token; by default "
                 "RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"),
]  # fmt: skip
Submitted = Annotated[str, typer.Argument(metavar="STUDY", help="the name of a study that was submitted")]


def submit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a study file, or the name of one in studies/")],
    fork: Annotated[str | None, typer.Option(metavar="NAME", help="run it as another study of this name")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override the file, e.g. budget.trials=32")
    ] = None,
    address: Address = None,
    token_file: TokenFile = None,
) -> None:
    """Run, resume or extend a study on a cluster, and follow it: it goes on without you."""
    from cs330ray.cluster.jobs import Cluster, Parcel
    from cs330ray.cluster.jobserver import JobServer
    from cs330ray.spec import reading
    from cs330ray.trial.check import check

    path = study_file(file)
    study = reading.read(path, set_ or (), fork)
    check(study, str(path))
    words = [*(word for text in set_ or () for word in ("--set", text)), *(["--fork", fork] if fork else [])]
    server, place = JobServer(address, token_file), _place(address, token_file)
    command = shlex.join(["cs330ray", "submit", file, *words, *place])
    cluster = Cluster(server)
    job = cluster.send(Parcel(study, path, words, command), shipped())
    typer.echo(f"{study.name}: job {job} on {server.address}; Ctrl-C leaves it running")
    _follow(cluster, job, study.name, place)


def status(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="one study, with its last lines")] = None,
    address: Address = None,
    token_file: TokenFile = None,
) -> None:
    """Show the studies of a cluster, or the last job of one."""
    from cs330ray.cli.tables import print_table
    from cs330ray.cluster.jobs import Cluster
    from cs330ray.cluster.jobserver import JobServer

    server = JobServer(address, token_file)
    cluster = Cluster(server)
    found = cluster.jobs() if study is None else [cluster.last(study)]
    columns = ["study", "job", "state", "since", "for", "code", "by"]
    print_table(f"{server.address}: {cluster.nodes()}", columns, [_row(job) for job in found])
    if study is not None:
        typer.echo(printable("\n".join(cluster.log(found[-1].id).splitlines()[-LAST_LINES:])))


def logs(
    study: Submitted,
    follow: Annotated[bool, typer.Option("--follow", help="go on until the study ends; with its exit code")] = False,
    address: Address = None,
    token_file: TokenFile = None,
) -> None:
    """Print what the last job of a study has written."""
    from cs330ray.cluster.jobs import Cluster
    from cs330ray.cluster.jobserver import JobServer

    cluster = Cluster(JobServer(address, token_file))
    job = cluster.last(study)
    if follow:
        _follow(cluster, job.id, study, _place(address, token_file))
    else:
        _write(cluster.log(job.id))


def stop_job(study: str, address: str | None, token_file: Path | None) -> None:
    """Stop a study on a cluster; nothing is lost, and the same submit resumes it."""
    from cs330ray.cluster.jobs import Cluster
    from cs330ray.cluster.jobserver import JobServer

    job = Cluster(JobServer(address, token_file)).stop(study)
    if job.state != "STOPPED":
        typer.echo(f"{study}: job {job.id} had {job.state} before it was stopped")
        return
    typer.echo(f"{study}: stopped job {job.id}; nothing is lost")
    typer.echo(f"Go on with: {job.sent.get('command', 'cs330ray submit FILE')}")


COMMANDS = {"submit": submit, "status": status, "logs": logs}


def _place(address: str | None, token_file: Path | None) -> list[str]:
    """The options that find the cluster again."""
    return [
        *(["--address", address] if address else []),
        *(["--token-file", str(token_file)] if token_file else []),
    ]


def _follow(cluster: "Cluster", job: str, study: str, place: list[str]) -> None:
    """Write what a job says until it ends, and exit with its code; after Ctrl-C say how to come back."""
    again = shlex.join(["cs330ray", "logs", study, "--follow", *place])
    stop = shlex.join(["cs330ray", "stop", study, *place])
    try:
        ended = cluster.follow(job, _write)
    except (KeyboardInterrupt, screen.ScreenLost) as left:
        screen.last()
        screen.must_be_read(f"\n{study}: goes on as job {job}\nCome back with: {again}\nStop it with:   {stop}")
        raise SystemExit(screen.end(left) if isinstance(left, screen.ScreenLost) else 130) from None
    if ended is None:
        sys.stderr.write(f"{study}: the cluster no longer answers, and job {job} may go on; come back with: {again}\n")
        raise SystemExit(1)
    if ended.state == "FAILED" and ended.exit_code is None:  # before the study began, or the head is gone
        sys.stderr.write(f"{study}: job {job} has failed: {first_line_of(ended.message, 'for no known reason')}\n")
    if ended.code:
        raise SystemExit(ended.code)


def _row(job: "Job") -> list[str]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.began_s))
    lasted = duration(max((job.ended_s or wall_s()) - job.began_s, 0.0))
    code = str(job.code) if job.has_ended else ""
    return [job.study, job.id, job.state, since, lasted, code, job.sent.get("by", "")]


def _write(text: str) -> None:
    typer.echo(printable(text), nl=False)
    sys.stdout.flush()


cluster_app = typer.Typer(help="Look at a file for `ray up`.", no_args_is_help=True)


@cluster_app.command("check")
def cluster_check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="for example cluster.yaml; call it where `ray up` will be")
    ],
) -> None:
    """Check a cluster file before `ray up`, and say what that would start and what costs."""
    from cs330ray.cluster import check

    typer.echo("\n".join(check.check(file)))
