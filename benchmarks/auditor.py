"""The auditor: check ledger, checkpoints, MLflow and processes of a home against each other and against a reference.

    python benchmarks/auditor.py HOME STUDY [--mlflow FILE] [--reference HOME]

It shares no code with the service, so that both cannot err alike: what it knows of tables, files and tags stands here.
It prints a line for everything wrong and, as its last line, the counts as JSON.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import re
import sqlite3
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

KINDS = ("lost", "doubled", "zombies", "mirror_wrong", "metrics_wrong")
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
CAUSES = {
    "COMPLETE": {None},
    "PRUNED": {"pruned"},
    "FAIL": {"raised", "diverged", "memory", "lost", "unscored", "silent", "stopped"},
}
WORDS = {"raised": "raised: ", "diverged": "diverged: ", "memory": "out of memory", "lost": "worker lost"}  # of reasons
LEAVE_S = 10.0  # so long may a process outlive the command
AGENTS_LEAVE_S = 75.0  # and so long an agent of Ray, which waits a minute for a GCS that was killed with its driver
MLFLOW_INFINITY = 1.7976931348623157e308  # what MLflow writes for an infinite value

Place = tuple[str, int]  # cell, trial


@dataclass
class Findings:
    """What is wrong, each place once."""

    lines: dict[tuple[str, str], str] = field(default_factory=dict)  # (kind, place) -> line

    def add(self, kind: str, place: str, problem: str) -> None:
        assert kind in KINDS
        self.lines.setdefault((kind, place), f"{kind}: {place}: {problem}")

    def counts(self) -> dict[str, int]:
        found = Counter(kind for kind, _ in self.lines)
        return {kind: found[kind] for kind in KINDS}


def audit(
    home: Path,
    study: str,
    *,
    mlflow: Path | None = None,
    reference: Path | None = None,
    marks: Sequence[str] = (),
    foreign_ray: str = "",
    leave_s: float = LEAVE_S,
) -> Findings:
    """Audit a home whose command has ended; everything that is wrong.

    `marks` are texts that only processes of this home carry; `foreign_ray` that of a Ray which outlives the command,
    and in which nothing but idle workers may be left.
    """
    findings = Findings()
    for process in left_alive([str(home.resolve()), *marks], foreign_ray, leave_s):
        findings.add("zombies", f"process {process.pid}", process.words)
    held = read_ledger(home / "ledger.db", study, findings)
    if held is None:
        return findings
    _audit_trials(held, findings)
    _audit_optuna(held, findings)
    _audit_order(held, findings)
    _audit_checkpoints(held, findings)
    _audit_confirmation(held, findings)
    _audit_mlflow(held, read_mlflow(mlflow or home / "mlflow.db", held.uid), findings)
    if reference is not None:
        before = read_ledger(reference / "ledger.db", study, findings)
        assert before is not None
        _audit_against(before, held, findings)
    return findings


# The ledger ----------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """A trial in Optuna's tables."""

    state: str
    params: dict[str, Any]
    user: dict[str, Any]
    values: list[float]
    reports: dict[int, float]


@dataclass
class Held:
    """A study as its ledger holds it."""

    spec: dict[str, Any]
    uid: str
    goals: dict[str, str]
    optuna: dict[str, list[tuple[int, Asked]]]  # cell -> (number, trial), as entered
    rows: dict[Place, dict[int, tuple[dict[str, float], float]]]  # step -> (metrics, wall time), as written
    written: list[Place]  # of each row, in the order of writing
    checkpoints: dict[Place, dict[int, tuple[str, str]]]  # step -> (path, digest)
    attempts: dict[Place, list[tuple[int, dict[str, Any]]]]
    begun: list[Place]  # of each attempt, in the order of writing
    ends: dict[Place, dict[str, Any]]
    scores: dict[Place, tuple[str, str]]
    untested: dict[Place, str]

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """The fixed and compared values of each cell in each replicate, by its key."""
        compare, repeat = self.spec["compare"], self.spec.get("repeat") or {}
        found = {}
        for combination in itertools.product(*compare.values()):
            values = dict(zip(compare, combination, strict=True))
            trainable = str(values.get("trainable", self.spec["trainable"]))
            fixed = {name: value for name, value in self.spec["fixed"].items() if not isinstance(value, dict)}
            fixed |= self.spec["fixed"].get(trainable) or {}
            fixed |= {name: value for name, value in values.items() if name != "trainable"}
            for replicate in range(repeat.get("searches", 1)):
                split = repeat.get("split")
                moved = {split: fixed[split] + replicate} if split else {}
                found[canonical(values) + (f" replicate {replicate}" if replicate else "")] = fixed | moved
        return found

    def trials(self, cell: str) -> dict[int, Asked]:
        return dict(self.optuna.get(cell, []))

    def superseded(self, cell: str) -> set[int]:
        """The trials of a cell that another continues."""
        return {int(trial.user["continues"]) for trial in self.trials(cell).values() if "continues" in trial.user}

    def ranked(self, cell: str) -> list[int]:
        """The COMPLETE trials of a cell that are ranked against each other, the best first; of one objective."""
        sign = -1.0 if self.goals[self.spec["objective"][0]] == "max" else 1.0
        over = self.superseded(cell)
        complete = [
            (sign * json.loads(end["worth"])[0], number)
            for (place, number), end in self.ends.items()
            if place == cell and end["state"] == "COMPLETE" and number not in over
        ]
        return [number for _, number in sorted(complete)]


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _say(place: Place) -> str:
    return f"trial {place[1]} of {place[0]}"


def _select(path: Path, query: str, *values: Any) -> list[sqlite3.Row]:
    connection = sqlite3.connect(path, timeout=30)
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def read_ledger(path: Path, study: str, findings: Findings) -> Held | None:
    """Read all that the ledger holds of a study; None, and a finding, where it cannot be read."""
    if not path.is_file():
        findings.add("lost", str(path), "there is no ledger")
        return None
    try:
        return _read_ledger(path, study, findings)
    except sqlite3.DatabaseError as error:
        findings.add("lost", str(path), f"the ledger cannot be read: {error}")
        return None


def _read_ledger(path: Path, study: str, findings: Findings) -> Held | None:
    verdict = [row[0] for row in _select(path, "pragma integrity_check")]
    if verdict != ["ok"]:
        findings.add("lost", str(path), f"SQLite finds the ledger corrupt: {verdict[:3]}")
    found = _select(path, "select uid, spec from cs330ray_studies where name = ?", study)
    if not found:
        findings.add("lost", study, "the study is not in the ledger")
        return None
    held = Held(json.loads(found[0]["spec"]), found[0]["uid"], {}, {}, {}, [], {}, {}, [], {}, {}, {})
    for row in _select(path, "select metric, description from cs330ray_metrics where study = ?", study):
        held.goals[row["metric"]] = json.loads(row["description"])["goal"]

    def ours(table: str) -> list[sqlite3.Row]:
        return _select(path, f"select * from cs330ray_{table} where study = ? order by rowid", study)

    for row in ours("rows"):
        place = (row["cell"], row["trial"])
        held.rows.setdefault(place, {})[row["step"]] = (json.loads(row["metrics"]), row["wall_s"])
        held.written.append(place)
    for row in ours("checkpoints"):
        there = (
            row["path"] if "://" in row["path"] else str(path.parent.resolve() / row["path"])
        )  # relative to the home
        held.checkpoints.setdefault((row["cell"], row["trial"]), {})[row["step"]] = (there, row["digest"])
    for row in ours("attempts"):
        place = (row["cell"], row["trial"])
        held.attempts.setdefault(place, []).append((row["attempt"], json.loads(row["circumstances"])))
        held.begun.append(place)
    for row in ours("ends"):
        held.ends[row["cell"], row["trial"]] = dict(row)
    for row in ours("scores"):
        held.scores[row["cell"], row["trial"]] = (row["metrics"], row["scored"])
    for row in ours("untested"):
        held.untested[row["cell"], row["trial"]] = row["reason"]
    for row in _select(path, "select study_id, study_name from studies"):
        if row["study_name"].startswith(f"{study} "):
            cell = row["study_name"].removeprefix(f"{study} ")
            if cell in held.optuna:
                findings.add("doubled", f"cell {cell}", "Optuna holds two studies of it")
            held.optuna[cell] = list(_optuna_trials(path, row["study_id"]))
    return held


def _optuna_trials(path: Path, study_id: int) -> Iterator[tuple[int, Asked]]:
    for trial in _select(path, "select * from trials where study_id = ? order by trial_id", study_id):

        def of(table: str, key: int = trial["trial_id"]) -> list[sqlite3.Row]:
            return _select(path, f"select * from {table} where trial_id = ? order by 1", key)

        yield (
            trial["number"],
            Asked(
                trial["state"],
                {row["param_name"]: _param(row) for row in of("trial_params")},
                {row["key"]: json.loads(row["value_json"]) for row in of("trial_user_attributes")},
                [row["value"] for row in of("trial_values")],
                {row["step"]: _number(row) for row in of("trial_intermediate_values")},
            ),
        )


def _param(row: sqlite3.Row) -> Any:
    kind = json.loads(row["distribution_json"])
    if kind["name"] == "CategoricalDistribution":
        return kind["attributes"]["choices"][int(row["param_value"])]
    return int(row["param_value"]) if kind["name"] == "IntDistribution" else row["param_value"]


def _number(row: sqlite3.Row) -> float:
    special = {"NAN": math.nan, "INF_POS": math.inf, "INF_NEG": -math.inf}
    return special.get(row["intermediate_value_type"], row["intermediate_value"])


def _same(one: object, other: object) -> bool:
    """Exact equality, to the last bit of every float, NaN included."""
    return canonical(one) == canonical(other)


# The ledger against itself -------------------------------------------------------------------------------------------


def _audit_trials(held: Held, findings: Findings) -> None:
    """Every trial of the budget, once, with its seed, its attempts, its rows without a gap, and its end."""
    budget, seeds = held.spec["budget"], {}
    for cell, fixed in held.cells.items():
        numbers = [number for number, _ in held.optuna.get(cell, [])]
        for number, times in Counter(numbers).items():
            if times > 1:
                findings.add("doubled", _say((cell, number)), f"entered {times} times")
        asked = [number for number, trial in held.optuna.get(cell, []) if "continues" not in trial.user]
        for excess in asked[budget["trials"] :]:
            findings.add("doubled", _say((cell, excess)), f"beyond the budget of {budget['trials']} trials")
        due = budget["trials"] if budget["time"] is None else len(asked)
        for number in set(range(max([due - 1, *numbers]) + 1)) - set(numbers):
            findings.add("lost", _say((cell, number)), "was never entered, or is gone")
        for number, trial in held.trials(cell).items():
            place = (cell, number)
            if "seed" not in trial.user:
                findings.add("lost", f"{_say(place)}: seed", "it has none")
                continue
            key = ("continues", trial.user["continues"]) if "continues" in trial.user else number
            common = seeds.setdefault((_replicate(cell), key), trial.user["seed"])
            if common != trial.user["seed"]:
                findings.add("metrics_wrong", f"{_say(place)}: seed", f"{trial.user['seed']}, elsewhere {common}")
            _audit_trial(held, place, fixed.get("eval_every_steps"), trial.user["seed"], findings)
    drawn = [seed for (_, key), seed in seeds.items() if isinstance(key, int)]
    if len(set(drawn)) < len(drawn):
        findings.add("metrics_wrong", "training seeds", "two draws, or two replicates, share one")


def _audit_trial(held: Held, place: Place, every: int | None, seed: int | None, findings: Findings) -> None:
    name, steps = _say(place), held.spec["budget"]["steps"]
    rows, end = held.rows.get(place, {}), held.ends.get(place)
    if end is None:
        findings.add("lost", f"{name}: end", "the command has ended and the trial has not")
    attempts = held.attempts.get(place, [])
    if [number for number, _ in attempts] != list(range(len(attempts))) or (not attempts and rows):
        findings.add("lost", f"{name}: attempt", f"those recorded are {[number for number, _ in attempts]}")
    for number, circumstances in attempts:
        if seed is not None and circumstances["seed"] != seed:
            findings.add("metrics_wrong", f"{name}: attempt {number}: seed", f"{circumstances['seed']}, not {seed}")
    for step in _missing_steps(held, place, every):
        findings.add("lost", f"{name}: row {step}", "there are later ones, or the trial is over")
    if end is None:
        return
    last = max(rows, default=0)
    superseded = place[1] in held.superseded(place[0].split(" fresh ")[0])
    if end["state"] == "COMPLETE" and last < steps and not superseded and held.spec["fixed"].get("patience") is None:
        findings.add("lost", f"{name}: row {steps}", f"it is COMPLETE, but its last row is {last}")
    pruned_at = re.search(r" at step (\d+)", end["reason"]) if end["state"] == "PRUNED" else None
    if pruned_at and last != int(pruned_at[1]):
        findings.add("lost", f"{name}: row {pruned_at[1]}", f"it was pruned there, but its last row is {last}")
    _audit_cause(name, end, findings)
    worth = [[row[name] for name in held.spec["objective"]] for row in _with_objective(held, place)][-1:]
    if not _same(json.loads(end["worth"]), worth[0] if worth else None):
        findings.add("metrics_wrong", f"{name}: worth", f"{end['worth']}, but its last row has {worth}")


def _audit_cause(name: str, end: Mapping[str, Any], findings: Findings) -> None:
    """The cause goes with the state and with the words of the reason; a ledger of before has none."""
    cause = end.get("cause")
    if "cause" not in end or (cause is None and end["state"] != "COMPLETE"):
        return
    if cause not in CAUSES[end["state"]] or not end["reason"].startswith(WORDS.get(cause, "")):
        findings.add("metrics_wrong", f"{name}: cause", f"{cause}, but it is {end['state']} [{end['reason']}]")


def _with_objective(held: Held, place: Place) -> list[dict[str, float]]:
    rows = [metrics for _, (metrics, _) in sorted(held.rows.get(place, {}).items())]
    return [metrics for metrics in rows if all(name in metrics for name in held.spec["objective"])]


def _missing_steps(held: Held, place: Place, every: int | None) -> list[int]:
    """The steps below a trial's last row that have no row."""
    rows = held.rows.get(place, {})
    if every is None or not rows:
        return []
    first = every
    origin = held.trials(place[0]).get(place[1])
    if origin is not None and "continues" in origin.user and min(rows) != every:  # from the last checkpoint
        before = (place[0], int(origin.user["continues"]))
        first = max(held.rows.get(before, {0: None})) // every * every + every
    return sorted(set(range(first, max(rows) + 1, every)) - set(rows))


def _audit_optuna(held: Held, findings: Findings) -> None:
    """Optuna's tables say of each trial what ours say."""
    single = held.spec["objective"][0] if len(held.spec["objective"]) == 1 else None
    for cell in held.cells:
        for number, trial in held.trials(cell).items():
            place, name = (cell, number), _say((cell, number))
            end = held.ends.get(place)
            if end is not None and trial.state not in STATUS:
                findings.add("lost", f"{name}: Optuna's end", f"{trial.state}, but it ended {end['state']}")
            elif end is not None and trial.state != end["state"]:
                findings.add("metrics_wrong", f"{name}: Optuna's state", f"{trial.state}, but it is {end['state']}")
            if end is not None and end["state"] != "FAIL" and not _same(trial.values, json.loads(end["worth"])):
                findings.add("metrics_wrong", f"{name}: Optuna's value", f"{trial.values}, not {end['worth']}")
            if single is not None:
                recorded = {
                    step: metrics[single]
                    for step, (metrics, _) in held.rows.get(place, {}).items()
                    if single in metrics
                }
                last = end is not None and number not in held.superseded(cell)  # of others, rungs alone
                if last and recorded and max(recorded) not in trial.reports:
                    findings.add("lost", f"{name}: Optuna's report {max(recorded)}", "the row is there")
                for step, value in trial.reports.items():
                    if not _same(value, recorded.get(step)):
                        findings.add(
                            "metrics_wrong", f"{name}: Optuna's report {step}", f"{value}, not {recorded.get(step)}"
                        )
    for place in sorted(set(held.rows) | set(held.ends) | set(held.attempts)):
        searched = place[0].split(" fresh ")[0]
        if place[1] not in held.trials(searched):
            findings.add("lost", _say((searched, place[1])), "our tables speak of it, and Optuna has it not")


def _audit_order(held: Held, findings: Findings) -> None:
    """On one slot one trial follows the other: what two drivers or two workers write at once is interleaved.

    So are the rows of trials that train together.
    """
    for place, rows in held.rows.items():
        steps = list(rows)  # as written
        for before, after in itertools.pairwise(steps):
            if after < before:
                findings.add("doubled", f"{_say(place)}: row {after}", f"written after row {before}: by two workers")
    resources = held.spec["resources"]
    if resources["slots"] != 1 or resources.get("fuse", 1) > 1:
        return
    for what, order in (("rows", held.written), ("attempts", held.begun)):
        blocks = [place for place, _ in itertools.groupby(order)]
        for place, times in Counter(blocks).items():
            if times > 1:
                findings.add("doubled", f"{_say(place)}: {what}", "another trial's stand between: two ran at once")


# Checkpoints ---------------------------------------------------------------------------------------------------------


def _audit_checkpoints(held: Held, findings: Findings) -> None:
    """The newest checkpoint that the ledger names is whole, and who must have one has one."""
    for place, recorded in held.checkpoints.items():
        newest = max(recorded)
        path, digest = recorded[newest]
        problem = _torn(Path(path), newest, digest)
        if problem:
            findings.add("lost", f"{_say(place)}: checkpoint {newest}", problem)
        if newest > max(held.rows.get(place, {}), default=0):
            findings.add("lost", f"{_say(place)}: row {newest}", "its checkpoint is ahead of its rows")
    keep = held.spec["resources"].get("keep", math.inf)
    for cell in held.cells:
        complete = [place for place, end in held.ends.items() if place[0] == cell and end["state"] == "COMPLETE"]
        kept = complete if keep == math.inf else []
        if keep != math.inf and len(held.spec["objective"]) == 1:
            kept = [(cell, number) for number in held.ranked(cell)[: int(keep)]]
        kept += [
            place
            for place, end in held.ends.items()
            if place[0].startswith(f"{cell} fresh ") and end["state"] == "COMPLETE"
        ]
        for place in kept:
            last = max(held.rows.get(place, {}), default=0)
            if last and max(held.checkpoints.get(place, {}), default=0) != last:
                findings.add("lost", f"{_say(place)}: checkpoint {last}", "the ledger names none at its last row")


def _torn(path: Path, step: int, digest: str) -> str:
    """What is wrong with a checkpoint's directory; empty where it is whole."""
    try:
        text = (path / "MANIFEST.json").read_bytes()
        if hashlib.sha256(text).hexdigest() != digest:
            return f"{path}: the manifest is another than the ledger names"
        manifest = json.loads(text)
        if manifest["step"] != step:
            return f"{path}: the manifest is of step {manifest['step']}"
        for name, wanted in manifest["files"].items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != wanted:
                return f"{path}: {name} does not match its digest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path}: {error}"
    return ""


# Confirmation --------------------------------------------------------------------------------------------------------


def _due_to_confirm(held: Held, cell: str) -> list[int]:
    """Who of a cell is confirmed, when all have ended: the best of each configuration; of one objective."""
    if held.spec["confirm"] is None or len(held.spec["objective"]) > 1:
        return []
    finished = min(len(held.trials(each)) for each in held.cells if _replicate(each) == _replicate(cell))
    distinct: dict[str, int] = {}
    for number in held.ranked(cell):
        if number < finished or "continues" in held.trials(cell)[number].user:
            distinct.setdefault(canonical(held.trials(cell)[number].params), number)
    top = held.spec["confirm"]["top"]
    return list(distinct.values())[: 3 if top is None else top]


def _replicate(cell: str) -> str:
    """Which replicate a cell is of, searched or under a fresh seed; empty for the first."""
    return cell.partition(" fresh ")[0].partition(" replicate ")[2]


def _audit_confirmation(held: Held, findings: Findings) -> None:
    """Every candidate on every fresh seed, with its rows, its end and its scores.

    All of an index share one seed in a replicate, which no other replicate has.
    """
    if held.spec["confirm"] is None:
        return
    for index in range(held.spec["confirm"]["seeds"]):
        seeds: dict[str, set[int]] = {}
        for (cell, _), attempts in held.attempts.items():
            if cell.endswith(f" fresh {index}"):
                seeds.setdefault(_replicate(cell), set()).update(start["seed"] for _, start in attempts)
        if any(len(found) > 1 for found in seeds.values()) or len(set().union(*seeds.values())) < len(seeds):
            findings.add("metrics_wrong", f"fresh seed {index}", f"it is one of each replicate, but there are {seeds}")
        for cell in held.cells:
            for number in _due_to_confirm(held, cell):
                place = (f"{cell} fresh {index}", number)
                if place not in held.attempts:
                    findings.add("lost", _say(place), "a confirmation that was never taken up, or is gone")
    for place in {place for place in [*held.attempts, *held.ends, *held.rows] if " fresh " in place[0]}:
        every = held.cells.get(place[0].split(" fresh ")[0], {}).get("eval_every_steps")
        _audit_trial(held, place, every, None, findings)
        end = held.ends.get(place)
        if end is not None and end["state"] == "COMPLETE" and place not in held.scores and place not in held.untested:
            findings.add("lost", f"{_say(place)}: scores", "a confirmation that is COMPLETE is scored, or says why not")


# MLflow --------------------------------------------------------------------------------------------------------------


@dataclass
class Shown:
    """A run of MLflow."""

    status: str
    tags: dict[str, str]
    params: dict[str, str]
    points: dict[str, list[tuple[int, float, int]]]  # metric -> (step, value, time in ms), by step
    latest: dict[str, tuple[int, float]]


def read_mlflow(path: Path, uid: str) -> dict[str, Shown] | None:
    """The runs of the study with this uid that are not deleted, by id; None where there is no database."""
    if not path.is_file():
        return None
    ours = """from {} where run_uuid in (
        select tags.run_uuid from tags join runs on runs.run_uuid = tags.run_uuid
        where tags.key = 'cs330ray.uid' and tags.value = ? and runs.lifecycle_stage = 'active')"""

    def of(table: str) -> list[sqlite3.Row]:
        return _select(path, "select * " + ours.format(table), uid)

    try:
        runs = {row["run_uuid"]: Shown(row["status"], {}, {}, {}, {}) for row in of("runs")}
        for row in of("tags"):
            runs[row["run_uuid"]].tags[row["key"]] = row["value"]
        for row in of("params"):
            runs[row["run_uuid"]].params[row["key"]] = row["value"]
        for row in of("metrics"):
            value = math.nan if row["is_nan"] else row["value"]
            runs[row["run_uuid"]].points.setdefault(row["key"], []).append((row["step"], value, row["timestamp"]))
        for row in of("latest_metrics"):
            value = math.nan if row["is_nan"] else row["value"]
            runs[row["run_uuid"]].latest[row["key"]] = (row["step"], value)
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    for run in runs.values():
        for points in run.points.values():
            points.sort()
    return runs


def _spoken(metric: str) -> str:
    """A metric's name with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w\-. :/]", "_", metric)


def _storable(value: float) -> float:
    return math.copysign(MLFLOW_INFINITY, value) if math.isinf(value) else value


def _audit_mlflow(held: Held, runs: dict[str, Shown] | None, findings: Findings) -> None:
    """MLflow shows study, cells, trials and confirmations, each once, as the ledger has them."""
    if runs is None:
        findings.add("mirror_wrong", "MLflow", "there is no database with its tables")
        return
    named: dict[tuple[str, str, str], list[str]] = {}
    for run, shown in runs.items():
        key = tuple(shown.tags.get(f"cs330ray.{part}", "") for part in ("kind", "cell", "trial"))
        named.setdefault(key, []).append(run)  # type: ignore[arg-type]
    for key, found in named.items():
        if len(found) > 1:
            findings.add("doubled", f"MLflow's run {key}", f"{len(found)} runs: {found}")
    places = {(cell, number) for cell in held.cells for number in held.trials(cell)}
    places |= {place for place in held.attempts if " fresh " in place[0]}
    due = {("study", "", ""), *(("cell", cell, "") for cell in held.cells)}
    due |= {("trial", cell, str(number)) for cell, number in places}
    for key in sorted(set(named) - due):
        findings.add("mirror_wrong", f"MLflow's run {key}", "the ledger has no such thing")
    for key in sorted(due - set(named)):
        findings.add("mirror_wrong", f"MLflow's run {key}", "it is missing")
    one = {key: found[0] for key, found in named.items()}
    _audit_tree(held, runs, one, findings)
    for place in sorted(places):
        if (run := one.get(("trial", place[0], str(place[1])))) is not None:
            _audit_run(held, place, runs[run], findings)


def _audit_tree(
    held: Held, runs: Mapping[str, Shown], one: Mapping[tuple[str, str, str], str], findings: Findings
) -> None:
    """Parents, and what study and cells say."""
    for (kind, cell, trial), run in one.items():
        if kind == "study":
            parent, wanted = None, {"objective": ", ".join(held.spec["objective"])}
        elif kind == "cell":
            parent, wanted = ("study", "", ""), _best(held, cell)
        elif " fresh " in cell:
            parent, wanted = ("trial", cell.split(" fresh ")[0], trial), {}
        else:
            parent, wanted = ("cell", cell, ""), {}
        name = f"MLflow's run {(kind, cell, trial)}"
        shown = runs[run]
        if kind != "trial" and shown.status != "FINISHED":
            findings.add("mirror_wrong", f"{name}: status", f"{shown.status}, but all has ended")
        if shown.tags.get("mlflow.parentRunId") != (one.get(parent) if parent else None):
            findings.add("mirror_wrong", f"{name}: parent", f"{shown.tags.get('mlflow.parentRunId')}")
        _compare_tags(name, shown, wanted, findings)


def _best(held: Held, cell: str) -> dict[str, str]:
    """What the run of a cell says of its best trial and of the confirmed one; of one objective."""
    if len(held.spec["objective"]) > 1 or cell not in held.cells:
        return {}
    objective, said = held.spec["objective"][0], {}
    if ranked := held.ranked(cell):
        best = json.loads(held.ends[cell, ranked[0]]["worth"])[0]
        said = {"best_trial": str(ranked[0]), f"best_{objective}": repr(best)}
    means = {}
    for number in _due_to_confirm(held, cell):
        runs = [held.ends.get((f"{cell} fresh {index}", number)) for index in range(held.spec["confirm"]["seeds"])]
        if all(run is not None and run["state"] == "COMPLETE" for run in runs):
            means[number] = statistics.fmean(json.loads(run["worth"])[0] for run in runs if run is not None)
    if means:
        chosen = (max if held.goals[objective] == "max" else min)(means.values())
        said[f"confirmed_{objective}"] = repr(chosen)
    return said


def _compare_tags(name: str, shown: Shown, wanted: Mapping[str, str], findings: Findings) -> None:
    for tag, text in wanted.items():
        if shown.tags.get(f"cs330ray.{tag}") != text:
            findings.add("mirror_wrong", f"{name}: tag {tag}", f"{shown.tags.get(f'cs330ray.{tag}')!r}, not {text!r}")


def _audit_run(held: Held, place: Place, shown: Shown, findings: Findings) -> None:
    """Status, tags, parameters and curves of a trial's run."""
    cell, number = place
    searched, _, fresh = cell.partition(" fresh ")
    name, end = f"MLflow's {_say(place)}", held.ends.get(place)
    if end is not None and shown.status != STATUS[end["state"]]:
        findings.add("mirror_wrong", f"{name}: status", f"{shown.status}, but it is {end['state']}")
    trial = held.trials(searched).get(number)
    wanted = {"state": end["state"] if end is not None else "RUNNING"}
    if trial is not None:
        wanted["seed"] = str(trial.user.get("seed"))
    for _, circumstances in held.attempts.get(place, [])[-1:]:
        wanted |= {tag: str(circumstances[tag]) for tag in ("host", "device", "code", "data", "seed")}
    if fresh:
        wanted |= {"fresh_seed": fresh, "confirms": str(number)}
    if end is not None and end["reason"]:
        wanted["reason"] = end["reason"][:4000]
    recorded = held.checkpoints.get(place, {})
    if recorded:
        wanted["checkpoint"] = recorded[max(recorded)][0]
    elif shown.tags.get("cs330ray.checkpoint", "none") != "none":
        findings.add("mirror_wrong", f"{name}: tag checkpoint", "the ledger names none")
    _compare_tags(name, shown, wanted, findings)
    params = {**held.cells.get(searched, {}), **(trial.params if trial is not None else {})}
    params = {param: str(value)[:4000] for param, value in params.items()}
    for param in sorted(set(params) | set(shown.params)):
        if params.get(param) != shown.params.get(param):
            findings.add("mirror_wrong", f"{name}: parameter {param}", f"{shown.params.get(param)!r}")
    _audit_curves(held, place, name, shown, findings)


def _audit_curves(held: Held, place: Place, name: str, shown: Shown, findings: Findings) -> None:
    rows = sorted(held.rows.get(place, {}).items())
    wanted: dict[str, list[tuple[int, float]]] = {}
    for step, (metrics, _) in rows:
        for metric, value in metrics.items():
            wanted.setdefault(_spoken(metric), []).append((step, _storable(value)))
    if place in held.scores and held.ends.get(place, {}).get("state") == "COMPLETE":
        for metric, value in json.loads(held.scores[place][0]).items():
            wanted.setdefault(_spoken(metric), []).append((max(held.rows.get(place, {0: None})), value))
    for metric in sorted(set(wanted) | set(shown.points)):
        points = [(step, value) for step, value, _ in shown.points.get(metric, [])]
        if not _same(points, wanted.get(metric, [])):
            spare = sorted((Counter(map(str, points)) - Counter(map(str, wanted.get(metric, [])))).elements())[:2]
            short = sorted((Counter(map(str, wanted.get(metric, []))) - Counter(map(str, points))).elements())[:2]
            findings.add("mirror_wrong", f"{name}: curve of {metric}", f"too much {spare}, missing {short}")
        elif metric in wanted and not _same(shown.latest.get(metric), wanted[metric][-1]):
            findings.add("mirror_wrong", f"{name}: latest {metric}", f"{shown.latest.get(metric)}")
    for metric, points in shown.points.items():
        for step, _, at_ms in points:
            row = held.rows.get(place, {}).get(step)
            if row is not None and metric in map(_spoken, row[0]) and at_ms != int(row[1] * 1000):
                findings.add("mirror_wrong", f"{name}: time of {metric}", f"{at_ms} ms at step {step}, not {row[1]} s")


# The reference -------------------------------------------------------------------------------------------------------


def _audit_against(before: Held, after: Held, findings: Findings) -> None:
    """Everything that is not a time, a place or a process is what it is in the undisturbed study."""
    for cell in before.cells:
        for number, trial in before.trials(cell).items():
            place, now = (cell, number), after.trials(cell).get(number)
            if now is None:
                findings.add("lost", _say(place), "was never entered, or is gone")
                continue
            for what, one, other in (
                ("parameters", trial.params, now.params),
                ("seed", trial.user.get("seed"), now.user.get("seed")),
                ("continues", trial.user.get("continues"), now.user.get("continues")),
            ):
                if not _same(one, other):
                    findings.add("metrics_wrong", f"{_say(place)}: {what}", f"{other}, undisturbed {one}")
        for number in sorted(set(after.trials(cell)) - set(before.trials(cell))):
            findings.add("doubled", _say((cell, number)), "the undisturbed study has no such trial")
    for place in sorted(set(before.ends) | set(after.ends)):
        _compare_ends(place, before.ends.get(place), after.ends.get(place), findings)
    for place in sorted(set(before.rows) | set(after.rows)):
        _compare_rows(place, before.rows.get(place, {}), after.rows.get(place, {}), findings)
    for place in sorted(set(before.scores) | set(after.scores)):
        name, one, other = f"{_say(place)}: scores", before.scores.get(place), after.scores.get(place)
        if other is None:
            findings.add("lost", name, "they are missing")
        elif one is None or not all(_same(json.loads(a), json.loads(b)) for a, b in zip(one, other, strict=True)):
            findings.add("metrics_wrong", name, f"{other[0]}, undisturbed {one[0] if one else None}")


def _compare_ends(
    place: Place, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, findings: Findings
) -> None:
    if after is None:
        findings.add("lost", f"{_say(place)}: end", "the undisturbed study has it")
    elif before is None:
        findings.add("metrics_wrong", f"{_say(place)}: end", "the undisturbed study has none")
    else:
        causes = ["cause"] if before.get("cause") and after.get("cause") else []  # a ledger of before has none
        for what in ("state", "reason", "worth", *causes):
            if before[what] != after[what]:
                findings.add("metrics_wrong", f"{_say(place)}: {what}", f"{after[what]}, undisturbed {before[what]}")


def _compare_rows(place: Place, before: Mapping[int, Any], after: Mapping[int, Any], findings: Findings) -> None:
    if not after:
        findings.add("lost", f"{_say(place)}: rows", f"all {len(before)} are missing")
        return
    for step in sorted(set(before) - set(after)):
        findings.add("lost", f"{_say(place)}: row {step}", "the undisturbed study has it")
    if spare := sorted(set(after) - set(before)):
        findings.add("metrics_wrong", f"{_say(place)}: rows", f"the undisturbed study has none at {spare}")
    other = [step for step in sorted(set(before) & set(after)) if not _same(before[step][0], after[step][0])]
    if other:
        first = f"{after[other[0]][0]}, undisturbed {before[other[0]][0]}"
        findings.add(
            "metrics_wrong", f"{_say(place)}: metrics", f"at {len(other)} steps, first row {other[0]}: {first}"
        )


# Processes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alive:
    """A process, and its command line."""

    pid: int
    words: str


def left_alive(marks: Sequence[str], foreign_ray: str = "", leave_s: float = LEAVE_S) -> list[Alive]:
    """The processes of a home that are still there after so long, and Ray's agents that are after longer."""
    began = time.monotonic()
    while True:
        found = list(processes(marks))
        if foreign_ray:
            found += [each for each in processes([foreign_ray]) if re.match(r"ray::(?!IDLE|\w+Agent)", each.words)]
        agents = leave_s > 0 and all(re.match(r"ray::\w+Agent", each.words) for each in found)
        if not found or time.monotonic() - began > (AGENTS_LEAVE_S if agents else leave_s):
            return found
        time.sleep(0.2)


def processes(marks: Sequence[str]) -> Iterator[Alive]:
    """The processes with a mark in their command line, environment or open files; not this one or who started it."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    marked = re.compile("|".join(rf"{re.escape(mark)}(?![\w.-])" for mark in marks))
    for process in psutil.process_iter():
        if process.pid not in own and (words := _words(process.pid)) is not None:
            texts = itertools.chain([words, _environment(process.pid)], _open_files(process.pid))
            if any(marked.search(text) for text in texts):
                yield Alive(process.pid, words)


def _words(pid: int) -> str | None:
    """A process's command line; None where it is gone or only waits to be reaped."""
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        text = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return None if state in "ZX" else " ".join(text.split("\0")).strip()


def _environment(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _open_files(pid: int) -> Iterator[str]:
    try:
        links = list((Path("/proc") / str(pid) / "fd").iterdir())
    except OSError:
        return
    for link in links:
        try:
            yield str(link.readlink())
        except OSError:
            continue


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("home", type=Path)
    parser.add_argument("study")
    parser.add_argument("--mlflow", type=Path, help="MLflow's SQLite database; default: HOME/mlflow.db")
    parser.add_argument("--reference", type=Path, help="the home of the same study, undisturbed")
    given = parser.parse_args(arguments)
    findings = audit(given.home, given.study, mlflow=given.mlflow, reference=given.reference)
    for line in findings.lines.values():
        print(line)
    print(json.dumps(findings.counts()))
    return 1 if findings.lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
