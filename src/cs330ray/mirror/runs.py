"""MLflow's runs of one study, each found by its tags: the study's uid, what it is, its cell and its trial.

What is there already is never made again, so that making it so twice changes nothing.
"""

import math
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from cs330ray.clock import wall_s
from cs330ray.ledger.database import sqlite_url

STATUS = {"RUNNING": "RUNNING", "COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
TEXT_LIMIT = 4_000
NOTE = "mlflow.note.content"  # what MLflow shows as the description
OURS = "(This text follows the ledger. Take this line out, and what you write here stays.)"
TRAINING = "workflowType=machine_learning"  # the face of MLflow's pages that shows runs; by default they show traces
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the same, for versions that go by the experiment
STUDY = ("study", "", "")
DATABASE = "mlflow.db"  # of a home

Key = tuple[str, str, str]  # kind, cell, trial


def tracking_uri(home: Path) -> str:
    """Where the mirror writes: MLFLOW_TRACKING_URI, else a database in the home directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(home.resolve() / DATABASE)


def client_of(home: Path) -> MlflowClient:
    """MLflow's client. A database that does not answer is said at once: MLflow's own ten tries take 100 s."""
    if not tracking_uri(home).startswith("http"):
        from mlflow.store.db import utils  # a second to import, and a server needs none of it

        utils.MAX_RETRY_COUNT = 1  # the mirror comes again by itself
    return MlflowClient(tracking_uri(home))


def spoken(name: str) -> str:
    """The name of a metric or a tag as MLflow takes it: `acc@1` becomes `acc_1`."""
    return re.sub(r"[^\w\-. :/]", "_", name)


class Runs:
    """The runs of study `name` with identity `uid`, read once; whoever else writes them makes this view stale."""

    def __init__(self, home: Path, name: str, uid: str) -> None:
        self._client = client_of(home)
        self._experiment = _experiment(self._client, home, name)
        self._uid = uid
        self._told = dict(self._client.get_experiment(self._experiment).tags)
        self._runs: dict[Key, Run] = {
            tuple(run.data.tags[f"cs330ray.{part}"] for part in ("kind", "cell", "trial")): run  # type: ignore[misc]
            for run in all_runs(self._client, self._experiment, uid)
        }
        self._names = {key: run.info.run_name for key, run in self._runs.items()}

    def tag_of(self, key: Key, tag: str) -> str | None:
        """The value of one of our tags of a run, or None."""
        found = self._runs[key].data.tags.get(spoken(f"cs330ray.{tag}"))
        return None if found is None else str(found)

    def address(self, key: Key, inside: str = "") -> str:
        """Where MLflow's pages show a run, seen from any of them."""
        return f"#/experiments/{self._experiment}/runs/{self._runs[key].info.run_id}{inside}?{TRAINING}"

    def ensure(
        self,
        key: Key,
        name: str,
        parent: Key | None,
        tags: Mapping[str, str],
        started_s: float | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> int:
        """Make a run where there is none, and its name and tags what they should be; how many changes that took."""
        given = {param: str(value)[:TEXT_LIMIT] for param, value in (params or {}).items()}
        if key in self._runs:
            absent = {param: value for param, value in given.items() if param not in self._runs[key].data.params}
            self.log(key, params=absent)
            return self.name(key, name) + self.tag(key, tags) + len(absent)
        identity = {
            "cs330ray.uid": self._uid,
            "cs330ray.kind": key[0],
            "cs330ray.cell": key[1],
            "cs330ray.trial": key[2],
        }
        parents = {"mlflow.parentRunId": self._runs[parent].info.run_id} if parent else {}
        start = int((started_s or wall_s()) * 1000)
        self._runs[key] = self._client.create_run(
            self._experiment, start_time=start, tags={**identity, **parents, **_tags(tags)}, run_name=name
        )
        self._names[key] = name
        self.log(key, params=given)
        return 1

    def name(self, key: Key, name: str) -> int:
        """Give a run its name; how many changes that took."""
        if self._names[key] == name:
            return 0
        self._client.update_run(self._runs[key].info.run_id, name=name)
        self._names[key] = name
        return 1

    def conclude(self, key: Key, state: str, ended_s: float | None) -> int:
        """Give a run the status of its state; how many changes that took."""
        run = self._runs[key]
        if run.info.status == STATUS[state]:
            return 0
        if state == "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            self._client.set_terminated(run.info.run_id, STATUS[state], int((ended_s or wall_s()) * 1000))
        self._runs[key] = self._client.get_run(run.info.run_id)
        return 1

    def tag(self, key: Key, tags: Mapping[str, str]) -> int:
        """Make tags of a run what they should be; how many were not."""
        held, wanted = self._runs[key].data.tags, _tags(tags)
        changed = {tag: text for tag, text in wanted.items() if held.get(tag) != text}
        self.log(key, tags=changed)
        return len(changed)

    def measure(self, key: Key, figures: Mapping[str, float]) -> int:
        """Make metrics of a run what they should be, those that hold no more not a number; how many were not."""
        held = self._runs[key].data.metrics
        wanted = dict.fromkeys(held, math.nan) | {spoken(name): value for name, value in figures.items()}
        changed = {name: value for name, value in wanted.items() if not _same(held.get(name), value)}
        self.log(key, metrics=[Metric(name, value, int(wall_s() * 1000), 0) for name, value in changed.items()])
        held.update(changed)
        return len(changed)

    def describe(self, note: str, best: str) -> int:
        """Make the descriptions of the experiment and of the study's run what they should be, and the tag `best`.

        What a person wrote instead stays. How many changes that took.
        """
        tags, run = {NOTE: f"{note}\n\n{OURS}"}, self._runs[STUDY]
        changes = 0
        if _differs(run.data.tags, tags):
            run.data.tags.update(self._client.get_run(run.info.run_id).data.tags)  # a person may have written since
            changed = _differs(run.data.tags, tags)
            self.log(STUDY, tags=changed)
            changes += len(changed)
        tags |= {**KIND, "best": best}
        if _differs(self._told, tags):
            self._told = dict(self._client.get_experiment(self._experiment).tags)
            for tag, text in _differs(self._told, tags).items():
                self._client.set_experiment_tag(self._experiment, tag, text)
                self._told[tag] = text
                changes += 1
        return changes

    def attach(self, key: Key, files: Sequence[Path]) -> None:
        """Put files on a run in place of earlier ones of their names, and say which is the first."""
        for file in files:
            self._client.log_artifact(self._runs[key].info.run_id, str(file))
        self.tag(key, {"attached": files[0].name})

    def log(
        self,
        key: Key,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send metrics, parameters and tags as they are, in one batch."""
        if not (metrics or params or tags):
            return
        run = self._runs[key]
        self._client.log_batch(
            run.info.run_id,
            metrics=list(metrics),
            params=[Param(name, value) for name, value in (params or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )
        run.data.tags.update(tags or {})
        run.data.params.update(params or {})


def _experiment(client: MlflowClient, home: Path, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (home.resolve() / "artifacts").as_uri()
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifacts))
    if artifacts is not None and _was_ours(found.artifact_location) and found.artifact_location != artifacts:
        _move_artifacts(home / DATABASE, str(found.experiment_id), found.artifact_location, artifacts)
    return str(found.experiment_id)


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


def _same(one: float | None, other: float) -> bool:
    return one == other or (one is not None and math.isnan(one) and math.isnan(other))


def _differs(held: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The tags that are not what they should be, but for a description that a person wrote."""
    theirs = {NOTE} if held.get(NOTE) and OURS not in held[NOTE] else set()
    return {tag: text for tag, text in wanted.items() if tag not in theirs and held.get(tag) != text}


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {spoken(f"cs330ray.{tag}"): text[:TEXT_LIMIT] for tag, text in tags.items()}


def all_runs(client: MlflowClient, experiment: str, uid: str) -> Iterator[Run]:
    """Every run of the study with this uid, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`cs330ray.uid` = '{uid}'", max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def delete_runs(study: str, uid: str, home: Path) -> int:
    """Delete the runs of one identity of a study from MLflow; how many."""
    client = client_of(home)
    experiment = client.get_experiment_by_name(study)
    runs = list(all_runs(client, experiment.experiment_id, uid)) if experiment else []
    for run in runs:
        client.delete_run(run.info.run_id)
    return len(runs)


def delete_study(study: str, uid: str, home: Path) -> int:
    """Delete the runs of a study from MLflow, and what the mirror says of it on its experiment; how many runs."""
    deleted, client = delete_runs(study, uid, home), client_of(home)
    if (experiment := client.get_experiment_by_name(study)) is not None:
        for tag in (NOTE, "best"):
            if tag in experiment.tags and (tag != NOTE or OURS in experiment.tags[tag]):
                client.delete_experiment_tag(experiment.experiment_id, tag)
    return deleted


def all_pages(home: Path) -> dict[str, str]:
    """Where MLflow's server shows each study that is mirrored, the newest first."""
    found = client_of(home).search_experiments(order_by=["last_update_time DESC"])
    mirrored = {each.name: each.experiment_id for each in found if "best" in each.tags}
    return {name: f"#/experiments/{experiment}/runs?{TRAINING}" for name, experiment in mirrored.items()}
