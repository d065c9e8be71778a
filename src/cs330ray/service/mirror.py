"""The mirror: make MLflow agree with the ledger, from where it left off, as often as one likes.

A run is found by its tags (the study's uid, cell, trial), so none is ever made twice. Nothing here is needed to run a
study: MLflow slow, down or gone costs the picture alone.
"""

import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cs330ray.errors import Cs330rayError
from cs330ray.service import confirm
from cs330ray.service.ledger import Ledger, Row, Trial, redacted
from cs330ray.spec import Cell, Study

STATUS = {"RUNNING": "RUNNING", "COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
METRICS_PER_BATCH = 800  # MLflow takes 1,000 entries a batch
TEXT_LIMIT = 4_000
POLL_S = 1.0
PATIENCE_S = 30.0

FAULTS = (
    MlflowException,
    OSError,
    ValueError,
    ImportError,
    SQLAlchemyError,
)  # all that MLflow answers a bad address with
Key = tuple[str, str, str]  # kind, cell, trial


class MirrorError(Cs330rayError):
    """MLflow cannot be reached or does not answer; the ledger is whole, and `cs330ray sync` catches up."""


def tracking_uri(home: Path) -> str:
    """Where the mirror writes: MLFLOW_TRACKING_URI, else a database in the home directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.resolve()}/mlflow.db"


class Mirror:
    """One study's mirror."""

    def __init__(self, ledger: Ledger, study: str, home: Path) -> None:
        self._ledger = ledger
        self._name = study
        self._home = home
        self._client: MlflowClient | None = None
        self._runs: dict[Key, Run] | None = None
        self._done: set[Key] = set()  # nothing more will happen to these
        self._mark = uuid.uuid4().hex

    def sync(self) -> int:
        """Make MLflow agree with the ledger; how many changes that took. Raises MirrorError."""
        try:
            with _one_at_a_time(self._home / self._name / "mirror.lock"):
                self._forget_if_another_wrote(self._home / self._name / "mirror.last")
                return self._sync(self._ledger.study(self._name))
        except FAULTS as error:
            self._runs = None  # what MLflow holds is read anew after a fault
            reason = redacted(str(error).strip() or type(error).__name__).splitlines()[0][:200]
            at = redacted(tracking_uri(self._home))
            raise MirrorError(
                f"{at}: MLflow must answer, but {reason}; the ledger is whole, try again later"
            ) from error

    def _forget_if_another_wrote(self, last: Path) -> None:
        """Read MLflow anew where another mirror has been at work since this one's last pass."""
        if not last.exists() or last.read_text() != self._mark:
            self._runs = None
            last.write_text(self._mark)

    def _sync(self, study: Study) -> int:
        if self._runs is None:
            self._client = MlflowClient(tracking_uri(self._home))
            self._experiment = self._find_experiment(study)
            self._uid = self._ledger.uid(study.name)
            self._runs, self._done = self._read_runs(), set()
        changes, ended = 0, 0
        goals, confirmed = self._ledger.goals(study), confirm.confirmed(self._ledger, study)
        top = ("study", "", "")
        changes += self._ensure(
            top, study.name, None, {"objective": ", ".join(study.objective), "digest": study.digest}
        )
        for cell in study.cells:
            trials = self._ledger.trials(study, cell)
            finished = sum(trial.state != "RUNNING" for trial in trials)
            ended += finished
            key = ("cell", cell.key, "")
            found = confirmed.get(cell.key, [])
            chosen = confirm.choice(study, goals, found)
            changes += self._ensure(
                key, cell.title, top, _best_tags(goals, study, trials) | _choice_tags(study, chosen)
            )
            for trial in trials:
                changes += self._sync_trial(study, cell, trial, f"trial {trial.number}", key)
            changes += self._tag_front(cell, trials, goals) + self._sync_confirmation(study, cell, found)
            changes += self._conclude(key, "COMPLETE" if finished >= study.budget.trials else "RUNNING", _end(trials))
        complete = ended >= study.budget.trials * len(study.cells) and all(
            len(one.runs) == one.seeds and all(run.trial.state != "RUNNING" for run in one.runs)
            for found in confirmed.values()
            for one in found
        )
        return changes + self._conclude(top, "COMPLETE" if complete else "RUNNING", time.time())

    def _tag_front(self, cell: Cell, trials: list[Trial], goals: list[str]) -> int:
        """Say of each COMPLETE trial of several objectives whether it is on its cell's front just now."""
        if len(goals) == 1:
            return 0
        front = {trial.number for trial in confirm.pareto_front(trials, goals)}
        return sum(
            self._tag(("trial", cell.key, str(trial.number)), {"front": str(trial.number in front).lower()})
            for trial in trials
            if trial.state == "COMPLETE"
        )

    def _sync_confirmation(self, study: Study, cell: Cell, found: list[confirm.Confirmed]) -> int:
        """Show each fresh run under the trial that it confirms, and on that trial the means so far."""
        changes = 0
        for one in found:
            parent = ("trial", cell.key, str(one.searched.number))
            for run in one.runs:
                name = f"trial {one.searched.number}, fresh seed {run.trial.cell.fresh}"
                changes += self._sync_trial(study, run.trial.cell, run.trial, name, parent)
            if one.values:
                means = {f"confirmed_{name}": repr(mean) for name, mean in zip(study.objective, one.means, strict=True)}
                changes += self._tag(parent, {**means, "confirmed_seeds": str(len(one.values))})
        return changes

    def _sync_trial(self, study: Study, cell: Cell, trial: Trial, name: str, parent: Key) -> int:
        key = ("trial", cell.key, str(trial.number))
        if key in self._done:
            return 0
        tags = {"state": trial.state, "seed": str(trial.seed)}
        if cell.fresh is not None:
            tags |= {"fresh_seed": str(cell.fresh), "confirms": str(trial.number)}
        if trial.reason:
            tags["reason"] = trial.reason
        attempts = self._ledger.attempts(study, cell, trial.number)
        if attempts:
            tags |= {name: str(attempts[-1][name]) for name in ("host", "device", "code", "data")}
        checkpoint = self._ledger.checkpoint(study, cell, trial.number)
        if checkpoint is not None and trial.state != "RUNNING":
            tags["checkpoint"] = str(checkpoint)
        changes = self._ensure(key, name, parent, tags, trial.started_s, {**cell.fixed, **trial.params})
        mirrored = int(self._run(key).data.tags.get("cs330ray.mirrored_step", -1))
        rows = self._ledger.rows(study, cell, trial.number, after=mirrored)
        changes += self._log_rows(key, rows)
        if trial.state == "COMPLETE" and cell.fresh is not None:
            changes += self._log_test(study, key, trial)
        changes += self._conclude(key, trial.state, trial.ended_s)
        if trial.state != "RUNNING":
            self._done.add(key)
        return changes

    def _log_rows(self, key: Key, rows: list[Row]) -> int:
        """Send rows in batches; each batch ends with the tag that says how far it came."""
        batch: list[Metric] = []
        for index, row in enumerate(rows):
            batch += [
                Metric(_spoken(name), value, int(row.wall_s * 1000), row.step) for name, value in row.metrics.items()
            ]
            if len(batch) >= METRICS_PER_BATCH or index == len(rows) - 1:
                self._log(key, metrics=batch)
                self._log(key, tags={"cs330ray.mirrored_step": str(row.step)})
                batch = []
        return len(rows)

    def _log_test(self, study: Study, key: Key, trial: Trial) -> int:
        """Send what a confirmation reached on test, at its last step; how many metrics."""
        step = self._ledger.last_step(study, trial.cell, trial.number)
        reached = self._ledger.test_metrics(study, trial.cell, trial.number)
        if "cs330ray.tested" in self._run(key).data.tags:
            return 0
        at_ms = int((trial.ended_s or time.time()) * 1000)
        self._log(key, metrics=[Metric(_spoken(name), value, at_ms, step) for name, value in reached.items()])
        self._log(key, tags={"cs330ray.tested": str(step)})
        return len(reached)

    def _tag(self, key: Key, tags: Mapping[str, str]) -> int:
        """Make tags of a run what they should be; how many were not."""
        held, wanted = self._run(key).data.tags, _tags(tags)
        changed = {tag: text for tag, text in wanted.items() if held.get(tag) != text}
        self._log(key, tags=changed)
        return len(changed)

    def _ensure(
        self,
        key: Key,
        name: str,
        parent: Key | None,
        tags: Mapping[str, str],
        started_s: float | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> int:
        """Make a run where there is none, and its tags what they should be; how many changes that took."""
        assert self._runs is not None
        given = {param: str(value)[:TEXT_LIMIT] for param, value in (params or {}).items()}
        if key in self._runs:
            absent = {param: value for param, value in given.items() if param not in self._run(key).data.params}
            self._log(key, params=absent)
            return self._tag(key, tags) + len(absent)
        identity = {
            "cs330ray.uid": self._uid,
            "cs330ray.kind": key[0],
            "cs330ray.cell": key[1],
            "cs330ray.trial": key[2],
        }
        parents = {"mlflow.parentRunId": self._run(parent).info.run_id} if parent else {}
        start = int((started_s or time.time()) * 1000)
        assert self._client is not None
        self._runs[key] = self._client.create_run(
            self._experiment, start_time=start, tags={**identity, **parents, **_tags(tags)}, run_name=name
        )
        self._log(key, params=given)
        return 1

    def _conclude(self, key: Key, state: str, ended_s: float | None) -> int:
        """Give a run the status of its state; how many changes that took."""
        assert self._client is not None
        assert self._runs is not None
        run = self._run(key)
        if run.info.status == STATUS[state]:
            return 0
        if state == "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            self._client.set_terminated(run.info.run_id, STATUS[state], int((ended_s or time.time()) * 1000))
        self._runs[key] = self._client.get_run(run.info.run_id)
        return 1

    def _log(
        self,
        key: Key,
        metrics: list[Metric] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        assert self._client is not None
        if not (metrics or params or tags):
            return
        run = self._run(key)
        self._client.log_batch(
            run.info.run_id,
            metrics=metrics or [],
            params=[Param(name, value) for name, value in (params or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )
        run.data.tags.update(tags or {})
        run.data.params.update(params or {})

    def _run(self, key: Key) -> Run:
        assert self._runs is not None
        return self._runs[key]

    def _find_experiment(self, study: Study) -> str:
        assert self._client is not None
        found = self._client.get_experiment_by_name(study.name)
        if found is not None and found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (self._home.resolve() / "artifacts").as_uri()
        return str(self._client.create_experiment(study.name, artifact_location=artifacts))

    def _read_runs(self) -> dict[Key, Run]:
        return {
            tuple(run.data.tags[f"cs330ray.{part}"] for part in ("kind", "cell", "trial")): run  # type: ignore[misc]
            for run in _all_runs(self._client, self._experiment, self._uid)
        }


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {f"cs330ray.{tag}": text[:TEXT_LIMIT] for tag, text in tags.items()}


def _spoken(name: str) -> str:
    """A metric's name as MLflow takes it: `acc@1` becomes `acc_1`."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def forget(study: str, uid: str, home: Path) -> int:
    """Delete a study's runs from MLflow; how many. Raises MirrorError."""
    try:
        client = MlflowClient(tracking_uri(home))
        experiment = client.get_experiment_by_name(study)
        runs = list(_all_runs(client, experiment.experiment_id, uid)) if experiment else []
        for run in runs:
            client.delete_run(run.info.run_id)
    except FAULTS as error:
        raise MirrorError(
            f"{redacted(tracking_uri(home))}: MLflow must answer, but {type(error).__name__}; its runs stay"
        ) from error
    return len(runs)


def follow(ledger: Ledger, study: str, home: Path, *, until_eof: bool = False) -> bool:
    """Keep the mirror up to date until SIGTERM or Ctrl-C, then once more; whether MLflow agrees at the end.

    With `until_eof` the end of stdin ends it too: a pipe closes with the process that holds it, however that one died.
    """
    leaving = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leaving.set())
    signal.signal(signal.SIGINT, lambda *_: leaving.set())
    if until_eof:
        threading.Thread(target=_leave_at_eof, args=(leaving,), daemon=True).start()
    os.nice(5)
    mirror, wait_s = Mirror(ledger, study, home), POLL_S
    while True:
        last = leaving.is_set()
        try:
            mirror.sync()
            agrees, wait_s = True, POLL_S
        except MirrorError as error:
            print(error, flush=True)  # noqa: T201 - into mirror.log
            agrees, wait_s = False, min(2 * wait_s, PATIENCE_S)
        if last:
            return agrees
        leaving.wait(wait_s)


def _leave_at_eof(leaving: threading.Event) -> None:
    sys.stdin.buffer.read()
    leaving.set()


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the mirror of a study, so that two never make one run twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=60):
            yield
    except filelock.Timeout as error:
        raise MirrorError(f"{path}: one mirror at a time, but another is at work; try again later") from error


def _all_runs(client: Any, experiment: str, uid: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`cs330ray.uid` = '{uid}'", max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _best_tags(goals: list[str], study: Study, trials: list[Trial]) -> dict[str, str]:
    """The best COMPLETE trial of a cell, for a study of one objective."""
    complete = [trial for trial in trials if trial.state == "COMPLETE" and trial.values]
    if not complete or len(goals) > 1:
        return {}
    best = (max if goals[0] == "max" else min)(complete, key=lambda trial: (trial.values or (0.0,))[0])
    assert best.values is not None
    return {"best_trial": str(best.number), f"best_{study.objective[0]}": repr(best.values[0])}


def _choice_tags(study: Study, chosen: confirm.Confirmed | None) -> dict[str, str]:
    """The confirmed choice of a cell, where there is one."""
    if chosen is None:
        return {}
    means = {f"confirmed_{name}": repr(mean) for name, mean in zip(study.objective, chosen.means, strict=True)}
    return {"confirmed_trial": str(chosen.searched.number), **means}


def _end(trials: list[Trial]) -> float:
    return max((trial.ended_s or 0.0 for trial in trials), default=0.0) or time.time()
