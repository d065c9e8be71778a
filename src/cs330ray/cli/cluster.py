"""The commands for studies on a cluster: submit, status, logs and stop.

Each is told where a Ray cluster is. What was sent to Slurm is found in the home from which it was sent.
"""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cs330ray.cli import screen
from cs330ray.clock import wall_s
from cs330ray.errors import SpecError
from cs330ray.package import shipped
from cs330ray.spec.places import home, study_file
from cs330ray.words import duration, first_line_of, plural, printable

if TYPE_CHECKING:
    from cs330ray.cluster.jobs import Cluster, Job
    from cs330ray.cluster.slurm.script import Wanted
    from cs330ray.spec.study import Study

LAST_LINES = 10
OF_SLURM = "With --slurm"

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
    slurm: Annotated[bool, typer.Option("--slurm", help="as a job of Slurm, with the options below")] = False,
    nodes: Annotated[int, typer.Option(metavar="N", help="machines of the job", rich_help_panel=OF_SLURM)] = 1,
    gpus_per_node: Annotated[int, typer.Option(metavar="G", rich_help_panel=OF_SLURM)] = 0,
    cpus_per_node: Annotated[
        int | None,
        typer.Option(
            metavar="C",
            help="by default enough for the trials that the GPUs, or resources.slots, hold; else for 4",
            rich_help_panel=OF_SLURM,
        ),
    ] = None,
    time_: Annotated[
        str | None, typer.Option("--time", metavar="T", help="the job's, e.g. 8:00:00", rich_help_panel=OF_SLURM)
    ] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=OF_SLURM)] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", rich_help_panel=OF_SLURM)] = None,
    requeue: Annotated[
        int,
        typer.Option(
            metavar="K",
            help="so often the job queues itself again when its time is over or it is preempted",
            rich_help_panel=OF_SLURM,
        ),
    ] = 10,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="one more of sbatch, e.g. --sbatch=--qos=long", rich_help_panel=OF_SLURM),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the batch script; send nothing", rich_help_panel=OF_SLURM)
    ] = False,
) -> None:
    """Run, resume or extend a study on a cluster. A Ray cluster's is followed; it runs without you, too."""
    from cs330ray.cluster.slurm.script import Wanted
    from cs330ray.spec import reading
    from cs330ray.trial.check import check

    path = study_file(file)
    study = reading.read(path, set_ or (), fork)
    check(study, str(path))
    words = [*(word for text in set_ or () for word in ("--set", text)), *(["--fork", fork] if fork else [])]
    wanted = Wanted(nodes, gpus_per_node, cpus_per_node, time_, partition, account, requeue, tuple(sbatch or ()))
    if slurm:
        if address or token_file:
            raise SpecError("--slurm: expected no address of a Ray cluster beside it; leave one of them out")
        command = shlex.join(["cs330ray", "submit", file, *words, "--slurm", *wanted.words])
        _submit_to_slurm(study, path, wanted, words, command, dry_run=dry_run)
    elif wanted.words or dry_run:
        raise SpecError(f"{[*wanted.words, '--dry-run'][0]}: expected --slurm beside it; add that")
    else:
        _submit_to_ray(study, path, file, words, address, token_file)


def _submit_to_ray(
    study: "Study", path: Path, file: str, words: list[str], address: str | None, token_file: Path | None
) -> None:
    from cs330ray.cluster.jobs import Cluster, Parcel
    from cs330ray.cluster.jobserver import JobServer

    server = JobServer(address, token_file)
    is_elsewhere = is_of_slurm(study.name, address, token_file)  # without an address the others would look there
    place = _place(server.address if is_elsewhere else address, token_file)
    command = shlex.join(["cs330ray", "submit", file, *words, *place])
    cluster = Cluster(server)
    job = cluster.send(Parcel(study, path, words, command), shipped())
    typer.echo(f"{study.name}: job {job} on {server.address}; Ctrl-C leaves it running")
    _follow(cluster, job, study.name, place)


def _submit_to_slurm(
    study: "Study", path: Path, wanted: "Wanted", words: list[str], command: str, *, dry_run: bool
) -> None:
    from cs330ray.cluster.slurm import jobs
    from cs330ray.cluster.slurm.script import script

    places = jobs.next_places(home(), study.name)
    run = jobs.run_words(study, places, words)
    if dry_run:
        typer.echo(script(study, wanted, places, run, command), nl=False)
        return
    before = [job.id for job in jobs.jobs(home(), study.name) if job.lives]
    job = jobs.submit(study, path, wanted, places, run, command)
    waits = f", after job {before[-1]}" if before else ""
    on = f"{plural(wanted.nodes, 'node')} of {wanted.cpus_for(study)} CPUs and {wanted.gpus} GPUs"
    typer.echo(f"{study.name}: job {job.id} of Slurm, on {on}{waits}")
    typer.echo(f"See it with:\n  cs330ray status {study.name}\n  cs330ray logs {study.name} --follow")
    typer.echo(f"  {_at(places.home)}cs330ray show {study.name}")


def _at(home: Path) -> str:
    return f"CS330RAY_HOME={shlex.quote(str(home))} "


def status(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="one study, with its last lines")] = None,
    address: Address = None,
    token_file: TokenFile = None,
) -> None:
    """Show the studies of a cluster, or the last job of one."""
    from cs330ray.cli.tables import print_table

    if is_of_slurm(study, address, token_file):
        _slurm_status(study)
        return
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
    if is_of_slurm(study, address, token_file):
        _slurm_logs(study, follow=follow)
        return
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
    if is_of_slurm(study, address, token_file):
        from cs330ray.cluster.slurm import jobs

        ended = jobs.stop(home(), study)
        typer.echo(f"{study}: stopped job {ended.id}; nothing is lost\nGo on with: {ended.sent['command']}")
        return
    from cs330ray.cluster.jobs import Cluster
    from cs330ray.cluster.jobserver import JobServer

    job = Cluster(JobServer(address, token_file)).stop(study)
    if job.state != "STOPPED":
        typer.echo(f"{study}: job {job.id} had {job.state} before it was stopped")
        return
    typer.echo(f"{study}: stopped job {job.id}; nothing is lost")
    typer.echo(f"Go on with: {job.sent.get('command', 'cs330ray submit FILE')}")


def is_of_slurm(study: str | None, address: str | None, token_file: Path | None) -> bool:
    """Whether a study, or any, was sent to Slurm from this home, and no Ray cluster is named."""
    from cs330ray.cluster.slurm import jobs

    named = address or token_file or os.environ.get("RAY_API_SERVER_ADDRESS")
    return not named and jobs.has_jobs(home(), study)


def _slurm_status(study: str | None) -> None:
    from cs330ray.cli.tables import print_table
    from cs330ray.cluster.slurm import jobs

    found = jobs.jobs(home()) if study is None else [jobs.last(home(), study)]
    columns = ["study", "job", "state", "sent", "code", "by"]
    rows = [
        [job.study, job.id, job.state, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.sent_s)),
         "" if job.code is None or job.lives else str(job.code), job.sent["by"]]
        for job in found
    ]  # fmt: skip
    print_table("Slurm", columns, rows)
    if study is not None:
        typer.echo(printable("\n".join(found[-1].log().splitlines()[-LAST_LINES:])))
        typer.echo(f"Look closer: {_at(found[-1].home)}cs330ray show {study}")


def _slurm_logs(study: str, *, follow: bool) -> None:
    from cs330ray.cluster.slurm import jobs

    job = jobs.last(home(), study)
    if not follow:
        _write(job.log())
        return
    try:
        ended = jobs.follow(job, _write)
    except (KeyboardInterrupt, screen.ScreenLost) as left:
        screen.last()
        again, stop = f"cs330ray logs {study} --follow", f"cs330ray stop {study}"
        screen.must_be_read(f"\n{study}: goes on as job {job.id}\nCome back with: {again}\nStop it with:   {stop}")
        raise SystemExit(screen.end(left) if isinstance(left, screen.ScreenLost) else 130) from None
    if ended.code is None:
        sys.stderr.write(f"{study}: job {job.id} has ended without a word; the same submit resumes the study\n")
        raise SystemExit(1)
    raise SystemExit(ended.code)


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
