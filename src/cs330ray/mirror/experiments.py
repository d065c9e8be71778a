"""The experiment of a study in MLflow: found wherever a person has moved it, and made what it should be again.

What a person may do in MLflow's pages is undone where it is the mirror's (deleted, renamed), and else left alone.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException

from cs330ray.ledger.database import sqlite_url
from cs330ray.mirror.names import identified
from cs330ray.spec.places import ARTIFACTS, MLFLOW
from cs330ray.words import typed_first_line

NOTE = "mlflow.note.content"  # what MLflow shows as the description
OURS = "(This text follows the ledger. Take this line out, and what you write here stays.)"
TRAINING = "workflowType=machine_learning"  # the face of MLflow's pages that shows runs; by default they show traces
BY_DRIVER = "sqlite+pysqlite"  # an address whose path MLflow does not read by itself, to make `a%3Fb` beside `a?b`
FORGOTTEN = "cs330ray.forgotten"  # a run that the mirror has deleted: to restore its experiment restores it, too


def tracking_uri(home: Path) -> str:
    """Where the mirror writes: MLFLOW_TRACKING_URI, else a database in the home directory."""
    ours = sqlite_url(home.resolve() / MLFLOW)
    ours = ours.replace("sqlite", BY_DRIVER, 1) if "%" in ours else ours
    return os.environ.get("MLFLOW_TRACKING_URI") or ours


def client_of(home: Path) -> MlflowClient:
    """MLflow's client. A database that does not answer is said at once: MLflow's own ten tries take 100 s.

    Raises MlflowException, also where somebody else, such as MLflow's server, makes the tables at this moment.
    """
    if tracking_uri(home).startswith("http"):
        return MlflowClient(tracking_uri(home))
    from mlflow.store.db import utils  # a second to import, and a server needs none of it

    utils.MAX_RETRY_COUNT = 1  # the mirror comes again by itself
    try:
        return MlflowClient(tracking_uri(home))
    except Exception as error:  # whatever its steps from one version of the tables to the next stumble over
        raise MlflowException(f"its tables cannot be opened: {typed_first_line(error)}") from error


def made_right(client: MlflowClient, home: Path, name: str, uid: str) -> tuple[str, int]:
    """The experiment of a study, made, restored or named again where it must be; its id, and how many changes."""
    found = _holder(client, name, uid)
    artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (home.resolve() / ARTIFACTS).as_uri()
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifacts)), 1
    key, changes = str(found.experiment_id), 0
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(key)
        changes += 1
    if found.name != name and client.get_experiment_by_name(name) is None:
        client.rename_experiment(key, name)
        changes += 1
    if artifacts is not None and _was_ours(found.artifact_location) and found.artifact_location != artifacts:
        _move_artifacts(home / MLFLOW, key, found.artifact_location, artifacts)
    return key, changes


def _holder(client: MlflowClient, name: str, uid: str) -> Experiment | None:
    """The experiment that holds runs of a study, whatever its name is by now; else the one of its name, or None."""
    named = client.get_experiment_by_name(name)
    if named is not None and _runs_of(client, [named.experiment_id], uid):
        return named
    experiments, token = [], None
    while True:
        page = client.search_experiments(view_type=ViewType.ALL, max_results=1000, page_token=token)
        experiments += [each.experiment_id for each in page]
        token = page.token
        if not token:
            break
    runs = _runs_of(client, experiments, uid)
    return client.get_experiment(runs[0].info.experiment_id) if runs else named


def _runs_of(client: MlflowClient, experiments: list[str], uid: str) -> list[Run]:
    """At most one run of a study among some experiments, deleted ones too."""
    where = f"tags.`cs330ray.uid` = '{uid}'"
    return list(client.search_runs(experiments, where, run_view_type=ViewType.ALL, max_results=1))


def all_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Every run of an experiment, deleted ones too, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment], run_view_type=ViewType.ALL, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def is_active(run: Run) -> bool:
    """Whether a run is not deleted."""
    return bool(run.info.lifecycle_stage == "active")


def forget_run(client: MlflowClient, run: Run) -> None:
    """Delete a run for good: one that comes back with its experiment is deleted again."""
    client.set_tag(run.info.run_id, FORGOTTEN, "true")
    client.delete_run(run.info.run_id)


def delete_runs(study: str, uid: str, home: Path) -> int:
    """Delete the runs of one identity of a study from MLflow; how many."""
    client = client_of(home)
    experiment = _holder(client, study, uid)
    runs = [] if experiment is None else list(all_runs(client, experiment.experiment_id))
    ours = [run for run in runs if is_active(run) and (identified(run.data.tags) or (None,))[0] == uid]
    for run in ours:
        forget_run(client, run)
    return len(ours)


def delete_study(study: str, uid: str, home: Path) -> int:
    """Delete the runs of a study from MLflow, and what the mirror says of it on its experiment; how many runs."""
    client = client_of(home)
    experiment, deleted = _holder(client, study, uid), delete_runs(study, uid, home)
    if experiment is not None and experiment.lifecycle_stage != "deleted":
        for tag in (NOTE, "best"):
            if tag in experiment.tags and (tag != NOTE or OURS in experiment.tags[tag]):
                client.delete_experiment_tag(experiment.experiment_id, tag)
    return deleted


def all_pages(home: Path) -> dict[str, str]:
    """Where MLflow's server shows each study that is mirrored, the newest first."""
    found = client_of(home).search_experiments(order_by=["last_update_time DESC"])
    mirrored = {each.name: each.experiment_id for each in found if "best" in each.tags}
    return {name: f"#/experiments/{experiment}/runs?{TRAINING}" for name, experiment in mirrored.items()}


def _was_ours(artifacts: str) -> bool:
    """Whether a mirror named this place, in this home or where that was before."""
    return artifacts.startswith("file:") and artifacts.endswith("/artifacts")


def _move_artifacts(database: Path, experiment: str, before: str, now: str) -> None:
    """Have an experiment keep files where its home is now: MLflow holds absolute addresses, and changes none."""
    with closing(sqlite3.connect(database, timeout=5)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (now, experiment))
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND instr(artifact_uri, ?) = 1",
            (now, len(before) + 1, experiment, f"{before}/"),
        )
