"""`stop`: ask the driver of a study, wherever it runs, to end in order or to give one trial up."""

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cs330ray.cli.arguments import Replicate, ledger_here, ledger_is_here, trial_of
from cs330ray.cli.cluster import Address, TokenFile, is_of_slurm, stop_job
from cs330ray.errors import SpecError

if TYPE_CHECKING:
    from cs330ray.ledger.ledger import Ledger
    from cs330ray.ledger.records import Trial
    from cs330ray.spec.study import Study

POLL_S = 0.5


def stop(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="a study that runs")],
    trial: Annotated[int | None, typer.Option(metavar="N", help="give up this trial alone: it fails")] = None,
    cell: Annotated[str | None, typer.Option(metavar="TITLE", help="which cell's, where several have it")] = None,
    replicate: Replicate = 0,
    address: Address = None,
    token_file: TokenFile = None,
) -> None:
    """Stop a study that runs, here or elsewhere: nothing is lost, and the same command resumes it.

    With --trial one trial ends as FAIL, for good, and the study goes on.
    """
    if cell is not None and trial is None:
        raise SpecError(f"--cell: expected --trial N beside it, got --cell {cell!r} alone; add --trial")
    if replicate and trial is None:
        raise SpecError(f"--replicate: expected --trial N beside it, got --replicate {replicate} alone; add --trial")
    if trial is not None and (address or token_file):
        raise SpecError("--trial: expected a study of this home's ledger, got --address; leave one of them out")
    if trial is None and (address or token_file or not _is_known(study)):
        stop_job(study, address, token_file)
        return
    ledger = ledger_here(follow=True)
    found = ledger.study(study)
    chosen = None if trial is None else trial_of(ledger, found, trial, cell, replicate)
    if chosen is not None and not (doing := _under_way(ledger, found, chosen)):
        raise SpecError(f"{study}: trial {trial}: expected one that has not ended, got one that is {chosen.state}")
    holder = _driver(ledger, study)
    on_a_cluster = os.environ.get("RAY_API_SERVER_ADDRESS") or is_of_slurm(study, address, token_file)
    if holder is None and trial is None and on_a_cluster:
        stop_job(study, address, token_file)
        return
    if holder is None:
        raise SpecError(
            f"{study}: expected a run of it to stop, got none under way; one on a cluster is stopped with --address"
        )
    if ledger.database.is_old:
        raise SpecError(
            f"{study}: expected a run of this version of cs330ray, got one of an earlier version; press Ctrl-C there"
        )
    if chosen is None:
        _stop_all(ledger, study, holder)
    else:
        _stop_one(ledger, found, holder, chosen, doing)


def _is_known(study: str) -> bool:
    """Whether the ledger of this home, if there is one, has such a study."""
    return ledger_is_here() and ledger_here(follow=True).find(study) is not None


def _driver(ledger: "Ledger", study: str) -> Any:
    """The lease of a driver that lives, as far as can be told here; None where none does."""
    from cs330ray.ledger import lease

    row = lease.holder_of(ledger.database, study)
    return None if row is None or lease.is_dead(row) else row


def _under_way(ledger: "Ledger", study: "Study", trial: "Trial") -> "list[Trial]":
    """The trial, where it has not ended, or else the runs that confirm it and have not."""
    from cs330ray.ledger.confirm import fresh_cells

    cells = [cell for cell in fresh_cells(study) if cell.searched.key == trial.cell.key]
    runs = [run for cell in cells for run in ledger.trials(study, cell) if run.number == trial.number]
    return [each for each in (trial, *runs) if each.state == "RUNNING"]


def _stop_all(ledger: "Ledger", study: str, holder: Any) -> None:
    from cs330ray.ledger import lease

    lease.ask_to_stop(ledger.database, study, holder.owner)
    typer.echo(f"{study}: {lease.who(holder)} is asked to stop")
    _wait(ledger, study, holder, lambda: False)
    typer.echo(f"{study}: stopped; nothing is lost, and the same command resumes it")


def _stop_one(ledger: "Ledger", study: "Study", holder: Any, trial: "Trial", doing: "list[Trial]") -> None:
    from cs330ray.ledger import lease

    def has_ended() -> bool:
        return not any(
            each.state == "RUNNING"
            for run in doing
            for each in ledger.trials(study, run.cell)
            if each.number == run.number
        )

    name = study.name
    lease.ask_to_stop(ledger.database, name, holder.owner, trial.cell.key, trial.number)
    typer.echo(f"{name}: {lease.who(holder)} is asked to give trial {trial.number} up")
    if not _wait(ledger, name, holder, has_ended):
        raise SpecError(
            f"{name}: trial {trial.number}: expected its end, but the run ended first; run the study and stop it again"
        )
    typer.echo(f"{name}: trial {trial.number} has ended, and is not taken up again")


def _wait(ledger: "Ledger", study: str, holder: Any, done: Any) -> bool:
    """Wait until a driver has done what it was asked; False where it has ended before.

    Raises SpecError where it turns out to be dead.
    """
    from cs330ray.ledger import lease

    seen, since_s = holder.beats, time.monotonic()
    while not done():
        row = lease.holder_of(ledger.database, study)
        if row is None or row.owner != holder.owner:
            return bool(done())
        if row.beats != seen:
            seen, since_s = row.beats, time.monotonic()
        if lease.is_dead(row) or time.monotonic() - since_s > lease.SILENCE_S:
            lease.withdraw(ledger.database, study, holder.owner)
            raise SpecError(f"{study}: expected a run of it to stop, got none: {lease.who(holder)} has died")
        time.sleep(POLL_S)
    return True


COMMANDS = {"stop": stop}
