"""MLflow's runs of one study, each found by its tags: the study's uid, what it is, its cell and its trial.

What is there already is never made again, so that making it so twice changes nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from cs330ray.clock import wall_s
from cs330ray.mirror.experiments import (
    FORGOTTEN,
    NOTE,
    OURS,
    TRAINING,
    all_runs,
    client_of,
    forget_run,
    is_active,
    made_right,
)
from cs330ray.mirror.names import Key, identified, identity, key_of, spoken, text
from cs330ray.words import first_line, redacted

STATUS = {"RUNNING": "RUNNING", "COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the same as TRAINING, for versions that go by it
STUDY = key_of("study")
METRICS_PER_BATCH = 800  # MLflow takes 1,000 entries a batch
TEXTS_PER_BATCH = 20  # it takes 100, and a megabyte in all
NOTE_LIMIT = 7_800  # it takes 8,000 in a tag
LARGEST = 1.7976931348623157e308  # what MLflow's databases hold for an infinity

Entry = Metric | Param | RunTag


class Runs:
    """The runs of study `name` with identity `uid`, read once; whoever else writes them makes this view stale.

    What a person has done to them meanwhile is undone: a deleted run is restored, of two that are the same one stays.
    `repaired` says how many changes that took, and `remarks` what MLflow refused.
    """

    def __init__(self, home: Path, name: str, uid: str) -> None:
        self._client = client_of(home)
        self._experiment, self.repaired = made_right(self._client, home, name, uid)
        self.remarks: dict[str, None] = {}
        self._refused: set[tuple[Key, str]] = set()  # entries that are not tried again
        self._uid = uid
        self._told = dict(self._client.get_experiment(self._experiment).tags)
        self._runs = self._taken_up()
        self._names = {key: run.info.run_name for key, run in self._runs.items()}

    def _taken_up(self) -> dict[Key, Run]:
        """The one run of each key, which is restored where it was deleted; the others are deleted."""
        found: defaultdict[Key | None, list[Run]] = defaultdict(list)
        for run in all_runs(self._client, self._experiment):
            uid, key = identified(run.data.tags) or (None, None)
            if FORGOTTEN in run.data.tags:
                found[None].append(run)
            elif uid == self._uid:
                found[key].append(run)
        for run in filter(is_active, found.pop(None, [])):  # deleted once already, or nobody knows what it is
            self._forget(run)
        taken = {}
        for key, runs in found.items():
            assert key is not None
            taken[key], *others = sorted(runs, key=_worth, reverse=True)
            for run in filter(is_active, others):
                self._forget(run)
            if not is_active(taken[key]):
                self._client.restore_run(taken[key].info.run_id)
                self.repaired += 1
        return taken

    def _forget(self, run: Run) -> None:
        forget_run(self._client, run)
        self.repaired += 1

    def tag_of(self, key: Key, tag: str) -> str | None:
        """The value of one of our tags of a run, or None."""
        found = self._runs[key].data.tags.get(spoken(f"cs330ray.{tag}"))
        return None if found is None else str(found)

    def step_of(self, key: Key, tag: str) -> int | None:
        """The step that one of our tags of a run says; None where there is none, or a person's words."""
        said = self.tag_of(key, tag)
        return int(said) if said is not None and said.isdecimal() else None

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
        given = {spoken(param, params or ()): text(value) for param, value in (params or {}).items()}
        parents = {"mlflow.parentRunId": self._runs[parent].info.run_id} if parent else {}
        wanted = identity(self._uid, key) | parents | _tags(tags)
        if key in self._runs:
            absent = {param: value for param, value in given.items() if param not in self._runs[key].data.params}
            return self.log(key, params=absent) + self.name(key, name) + self._set(key, wanted)
        start = int((started_s or wall_s()) * 1000)
        self._runs[key] = self._client.create_run(self._experiment, start_time=start, tags=wanted, run_name=text(name))
        self._names[key] = text(name)
        self.log(key, params=given)
        return 1

    def name(self, key: Key, name: str) -> int:
        """Give a run its name; how many changes that took."""
        if self._names[key] == text(name):
            return 0
        self._client.update_run(self._runs[key].info.run_id, name=text(name))
        self._names[key] = text(name)
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
        return self._set(key, _tags(tags))

    def _set(self, key: Key, wanted: Mapping[str, str]) -> int:
        held = self._runs[key].data.tags
        return self.log(key, tags={tag: said for tag, said in wanted.items() if held.get(tag) != said})

    def measure(self, key: Key, figures: Mapping[str, float], names: Sequence[str]) -> int:
        """Make the metrics `names` of a run what they should be, those that hold no more not a number; how many."""
        held, now_ms = self._runs[key].data.metrics, int(wall_s() * 1000)
        wanted = {spoken(name, names): figures.get(name, math.nan) for name in names}
        sent = []
        for name, value in wanted.items():
            if name not in held and not math.isnan(value):
                sent.append(Metric(name, value, now_ms, 0))
            elif name in held and not _same(held[name], value):  # MLflow shows the one of the last step and moment
                points = self._client.get_metric_history(self._runs[key].info.run_id, name)
                step, at_ms = max(((point.step, point.timestamp) for point in points), default=(0, 0))
                sent.append(Metric(name, value, max(now_ms, at_ms + 1), step))
        accepted = self.log(key, metrics=sent)
        held.update({metric.key: metric.value for metric in sent})
        return accepted

    def describe(self, note: str, best: str) -> int:
        """Make the descriptions of the experiment and of the study's run what they should be, and the tag `best`.

        What a person wrote instead stays. How many changes that took.
        """
        tags, run = {NOTE: f"{text(note, NOTE_LIMIT)}\n\n{OURS}"}, self._runs[STUDY]
        changes = 0
        if _differs(run.data.tags, tags):
            run.data.tags.update(self._client.get_run(run.info.run_id).data.tags)  # a person may have written since
            changes += self.log(STUDY, tags=_differs(run.data.tags, tags))
        tags |= {**KIND, "best": text(best)}
        if _differs(self._told, tags):
            self._told = dict(self._client.get_experiment(self._experiment).tags)
            for tag, said in _differs(self._told, tags).items():
                self._client.set_experiment_tag(self._experiment, tag, said)
                self._told[tag] = said
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
    ) -> int:
        """Send metrics, parameters and tags, in as few batches as MLflow takes; how many it has taken."""
        texts: list[Entry] = [Param(name, said) for name, said in (params or {}).items()]
        texts += [RunTag(name, said) for name, said in (tags or {}).items()]
        parts = [
            _parts([each for each in entries if (key, each.key) not in self._refused], most)
            for entries, most in ((metrics, METRICS_PER_BATCH), (texts, TEXTS_PER_BATCH))
        ]
        data, taken = self._runs[key].data, 0
        for few, others in zip_longest(*parts, fillvalue=()):
            for each in self._sent(key, [*few, *others]):
                taken += 1
                if not isinstance(each, Metric):
                    (data.params if isinstance(each, Param) else data.tags)[each.key] = each.value
        return taken

    def _sent(self, key: Key, batch: list[Entry]) -> list[Entry]:
        """Send a batch; what MLflow took of it: where it refuses one entry, the others are sent without that."""
        run = self._runs[key].info.run_id
        try:
            self._client.log_batch(
                run,
                metrics=[each for each in batch if isinstance(each, Metric)],
                params=[each for each in batch if isinstance(each, Param)],
                tags=[each for each in batch if isinstance(each, RunTag)],
            )
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or not is_active(self._client.get_run(run)):
                raise
            if len(batch) > 1:
                half = len(batch) // 2
                return self._sent(key, batch[:half]) + self._sent(key, batch[half:])
            name, of = batch[0].key, " ".join(filter(None, key))
            self._refused.add((key, name))
            self.remarks[f"MLflow does not take {name[:60]!r} of {of}: {redacted(first_line(error))[:200]}"] = None
            return []
        return batch


def _worth(run: Run) -> tuple[bool, int, int, int, str]:
    """Which of several runs of one key stays: one that is not deleted, then the one that holds most, then the first."""
    step = run.data.tags.get("cs330ray.mirrored_step", "")
    size = len(run.data.tags) + len(run.data.params)
    return is_active(run), int(step) if step.isdecimal() else -1, size, -(run.info.start_time or 0), run.info.run_id


def _parts(items: Sequence[Entry], most: int) -> Iterator[Sequence[Entry]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]


def _same(one: float, other: float) -> bool:
    bounded = (max(min(value, LARGEST), -LARGEST) for value in (one, other) if not math.isnan(value))
    return math.isnan(one) == math.isnan(other) and len(set(bounded)) <= 1


def _differs(held: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The tags that are not what they should be, but for a description that a person wrote."""
    theirs = {NOTE} if held.get(NOTE) and OURS not in held[NOTE] else set()
    return {tag: said for tag, said in wanted.items() if tag not in theirs and held.get(tag) != said}


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    ours = {f"cs330ray.{tag}": text(said) for tag, said in tags.items()}
    return {spoken(tag, ours): said for tag, said in ours.items()}
