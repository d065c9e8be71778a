"""MLflow's runs of one study, each found by its tags: the study's uid, what it is, its cell and its trial.

What is there already is never made again, so that making it so twice changes nothing.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from cs330ray.clock import wall_s

STATUS = {"RUNNING": "RUNNING", "COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
TEXT_LIMIT = 4_000

Key = tuple[str, str, str]  # kind, cell, trial


def tracking_uri(home: Path) -> str:
    """Where the mirror writes: MLFLOW_TRACKING_URI, else a database in the home directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.resolve()}/mlflow.db"


def client_of(home: Path) -> MlflowClient:
    """MLflow's client. A database that does not answer is said at once: MLflow's own ten tries take 100 s."""
    if not tracking_uri(home).startswith("http"):
        from mlflow.store.db import utils  # a second to import, and a server needs none of it

        utils.MAX_RETRY_COUNT = 1  # the mirror comes again by itself
    return MlflowClient(tracking_uri(home))


def spoken(name: str) -> str:
    """A metric's name as MLflow takes it: `acc@1` becomes `acc_1`."""
    return re.sub(r"[^\w\-. :/]", "_", name)


class Runs:
    """The runs of study `name` with identity `uid`, read once; whoever else writes them makes this view stale."""

    def __init__(self, home: Path, name: str, uid: str) -> None:
        self._client = client_of(home)
        self._experiment = _experiment(self._client, home, name)
        self._uid = uid
        self._runs: dict[Key, Run] = {
            tuple(run.data.tags[f"cs330ray.{part}"] for part in ("kind", "cell", "trial")): run  # type: ignore[misc]
            for run in all_runs(self._client, self._experiment, uid)
        }

    def tag_of(self, key: Key, tag: str) -> str | None:
        """The value of one of our tags of a run, or None."""
        found = self._runs[key].data.tags.get(f"cs330ray.{tag}")
        return None if found is None else str(found)

    def ensure(
        self,
        key: Key,
        name: str,
        parent: Key | None,
        tags: Mapping[str, str],
        started_s: float | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> int:
        """Make a run where there is none, and its tags what they should be; how many changes that took."""
        given = {param: str(value)[:TEXT_LIMIT] for param, value in (params or {}).items()}
        if key in self._runs:
            absent = {param: value for param, value in given.items() if param not in self._runs[key].data.params}
            self.log(key, params=absent)
            return self.tag(key, tags) + len(absent)
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
        self.log(key, params=given)
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
    if found is not None:
        return str(found.experiment_id)
    artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (home.resolve() / "artifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=artifacts))


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {f"cs330ray.{tag}": text[:TEXT_LIMIT] for tag, text in tags.items()}


def all_runs(client: MlflowClient, experiment: str, uid: str) -> Iterator[Run]:
    """Every run of the study with this uid, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`cs330ray.uid` = '{uid}'", max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
