"""What a home holds as text that two runs of the same code share: no times, no machines, no random identities.

It knows tables, tags and files by their names alone and imports nothing of the service, so that it reads the homes of
any two versions.
"""

import hashlib
import html
import html.parser
import json
import math
import re
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLUMNS = {  # of the ledger, by why they are left out
    "times": ("wall_s", "started_s", "seen_s", "datetime_start", "datetime_complete", "heartbeat"),
    "random identities": ("uid", "session", "owner", "holder", "beats", "opening"),
    "numbers by order of insertion": (
        "param_id", "study_direction_id", "study_system_attribute_id", "study_user_attribute_id",
        "trial_intermediate_value_id", "trial_system_attribute_id", "trial_user_attribute_id", "trial_value_id",
    ),
}  # fmt: skip
KEYS = ("began_s", "under_way_s", "host", "nodes", "pid", "code")  # inside columns of JSON
TAGS = ("cs330ray.uid", "cs330ray.host", "cs330ray.code")
TAGS_OF_MLFLOW = ("mlflow.user", "mlflow.source.")  # they begin so
UNMARKED = ("cs330ray.rank", "cs330ray.best")  # "none" only where a pass of the mirror had said otherwise before
WORDS = (  # pattern and what stands in its place, in all that a command prints
    (re.compile(r"\b\d+(?:\.\d+)?(?:ms|[smh])\b(?: \d\d[sm]\b)?"), "TIME"),
    (re.compile(r"\b\d+(?:\.\d+)? (?:s|min|h|seconds)\b"), "TIME"),
    (re.compile(r"\b[\d.]+(?:e-\d+)? (?=(?:of [\d.]+ )?(?:cpu|gpu)-hours spent)"), "TIME "),
    (re.compile(r"\d+% on (pruned|failed)"), r"SHARE on \1"),
    (re.compile(r"#/experiments/\d+/"), "#/experiments/N/"),
)
TIMED = re.compile(r"seconds( of .*)?|time")  # titles of columns in Markdown
NOTHING = "(nothing)"


@dataclass(frozen=True)
class Names:
    """What stands for a text that differs between two homes: paths, digests of the code, identities of runs."""

    replaced: Mapping[str, str] = field(default_factory=dict)

    def plain(self, text: str) -> str:
        """The text with names for what differs; spaces that only align it become two."""
        for told in sorted(self.replaced, key=len, reverse=True):
            text = text.replace(told, self.replaced[told])
        for pattern, name in WORDS:
            text = pattern.sub(name, text)
        lines = (re.sub(r" {2,}", "  ", line).rstrip() for line in text.splitlines())
        return "\n".join(lines) + "\n" if text else ""


def names(work: Path, home: Path) -> Names:
    """Collect what differs between two homes from the databases of this one."""
    replaced = {str(work): "WORK"}
    for row in select(home / "ledger.db", "select circumstances from cs330ray_attempts"):
        replaced[json.loads(row["circumstances"])["code"]] = "CODE"
    for row in select(home / "ledger.db", "select name, uid from cs330ray_studies"):
        replaced[row["uid"]] = f"UID-{row['name']}"
    for run in _runs(home / "mlflow.db"):
        replaced[run["run_uuid"]] = "RUN" + "-".join(["", *(str(part) for part in run["key"] if part != "")])
    return Names(replaced)


def select(path: Path, query: str, *values: object) -> list[dict[str, Any]]:
    """Rows of a query on a database of SQLite, each by the names of its columns."""
    connection = sqlite3.connect(path, timeout=30)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(query, values)]
    finally:
        connection.close()


def canonical(value: object) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


# The ledger ----------------------------------------------------------------------------------------------------------


def ledger(path: Path, named: Names) -> dict[str, str]:
    """Every row of every table of a ledger, sorted; text by table."""
    tables = select(path, "select name from sqlite_master where type = 'table' and name not like 'sqlite_%'")
    studies = {row["study_id"]: row["study_name"] for row in select(path, "select * from studies")}
    trials = {
        row["trial_id"]: f"{studies[row['study_id']]} trial {row['number']}"
        for row in select(path, "select * from trials")
    }
    texts = {}
    for table in sorted(row["name"] for row in tables):
        rows = select(path, f'select * from "{table}"')
        lines = sorted(named.plain(canonical(_row(row, studies, trials))).rstrip() for row in rows)
        texts[table] = "\n".join([*_left_out(rows), *(lines or [NOTHING]), ""])
    return texts


def _left_out(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each reason why columns are left out of a table, or keys of its JSON."""
    columns = set(rows[0]) if rows else set()
    for why, listed in COLUMNS.items():
        if of_table := [column for column in listed if column in columns]:
            yield f"# left out, {why}: {', '.join(of_table)}"
    if "circumstances" in columns:
        yield f"# left out of circumstances: {', '.join(KEYS)}"
    if "traceback" in columns:
        yield "# of a traceback, the last line"


def _row(row: Mapping[str, Any], studies: Mapping[int, str], trials: Mapping[int, str]) -> dict[str, Any]:
    """A row without what differs, its foreign keys as names."""
    shown: dict[str, Any] = {}
    for column, value in row.items():
        if column == "study_id":
            shown["study"] = studies[value]
        elif column == "trial_id":
            shown["trial"] = trials[value]
        elif column == "traceback":
            shown[column] = value.strip().splitlines()[-1:]
        elif not any(column in listed for listed in COLUMNS.values()):
            shown[column] = without_keys(_parsed(value))
    return shown


def _parsed(value: object) -> object:
    """What a column of JSON holds; any other value as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def without_keys(value: object) -> object:
    """A value without the keys that hold times and machines."""
    if isinstance(value, dict):
        return {key: without_keys(inner) for key, inner in value.items() if key not in KEYS}
    return [without_keys(inner) for inner in value] if isinstance(value, list) else value


# The mirror ----------------------------------------------------------------------------------------------------------


def mirror(path: Path, named: Names) -> dict[str, str]:
    """All that MLflow holds of each experiment, from its database; text by experiment."""
    texts = {}
    for experiment in select(path, "select * from experiments where name != 'Default'"):
        number = experiment["experiment_id"]
        runs = sorted((run for run in _runs(path) if run["experiment_id"] == number), key=lambda run: run["key"])
        by_id = {run["run_uuid"]: run for run in runs}
        lines = [
            "# left out: timestamps, user and source of runs; in metrics of a study or a cell, all but the last value",
            f"# left out, tags: {', '.join([*TAGS, *(f'{tag}*' for tag in TAGS_OF_MLFLOW)])}",
            f"# left out, where none: {', '.join(UNMARKED)}",
            f"experiment {experiment['name']}, {experiment['lifecycle_stage']}",
        ]
        of_experiment = select(path, "select key, value from experiment_tags where experiment_id = ?", number)
        lines += sorted(f"  tag {row['key']} = {canonical(row['value'])}" for row in of_experiment)
        for run in runs:
            lines += _run(path, run, by_id)
        texts[experiment["name"]] = named.plain("\n".join(lines))
    return texts


def _runs(path: Path) -> list[dict[str, Any]]:
    """MLflow's runs, each with its tags and with `key`: study, kind, cell and trial."""
    tags: dict[str, dict[str, str]] = {}
    for row in select(path, "select run_uuid, key, value from tags"):
        tags.setdefault(row["run_uuid"], {})[row["key"]] = row["value"]
    runs = select(
        path, "select r.*, e.name as experiment from runs r join experiments e on e.experiment_id = r.experiment_id"
    )
    for run in runs:
        run["tags"] = tags.get(run["run_uuid"], {})
        run["key"] = (run["experiment"], *(run["tags"].get(f"cs330ray.{part}", "") for part in ("kind", "cell")))
        run["key"] += (int(run["tags"].get("cs330ray.trial") or -1),)
    return runs


def _run(path: Path, run: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A run: name, status, parent, parameters, tags, metrics and artifacts."""
    tags = run["tags"]
    parent = by_id.get(tags.get("mlflow.parentRunId", ""))
    yield f"run {run['key']}"
    yield f"  name {run['name']}"
    yield f"  status {run['status']}, {run['lifecycle_stage']}"
    yield f"  parent {parent['name'] if parent else NOTHING}"
    params = select(path, "select key, value from params where run_uuid = ?", run["run_uuid"])
    yield from sorted(f"  param {row['key']} = {row['value']}" for row in params)
    yield from sorted(f"  tag {key} = {canonical(value)}" for key, value in tags.items() if _told(key, value))
    yield from _metrics(path, run)
    folder = Path(run["artifact_uri"].removeprefix("file://"))
    yield from sorted(f"  artifact {file.relative_to(folder)}" for file in folder.rglob("*") if file.is_file())


def _told(tag: str, value: str) -> bool:
    return tag not in TAGS and not tag.startswith(TAGS_OF_MLFLOW) and not (tag in UNMARKED and value == "none")


def _metrics(path: Path, run: Mapping[str, Any]) -> list[str]:
    """The metrics of a run by step. A study's and a cell's change with each pass of the mirror: the last ones alone."""
    whole = run["tags"].get("cs330ray.kind") == "trial"
    table = "metrics" if whole else "latest_metrics"
    rows = select(path, f"select key, step, value, is_nan from {table} where run_uuid = ?", run["run_uuid"])
    shown = sorted(
        (row["key"], row["step"], repr(math.nan if row["is_nan"] else row["value"]))
        for row in rows
        if whole or not row["is_nan"]
    )
    return [f"  metric {key} at {step} = {value}" for key, step, value in shown]


# Files ---------------------------------------------------------------------------------------------------------------


def files(folder: Path, named: Names) -> str:
    """Every file under a folder: text as it is, of anything else the digest, of tensors one each.

    A digest of text that names the code says nothing, so the manifest of an exported model lists its files alone.
    """
    lines = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        lines.append(f"== {path.relative_to(folder)}")
        if path.suffix == ".safetensors":
            lines += tensors(path)
        elif path.name == "manifest.json":
            lines += sorted(json.loads(path.read_text())["files"])
        elif path.suffix == ".json":
            lines.append(canonical(without_keys(json.loads(path.read_text()))))
        elif path.suffix in ("", ".txt", ".md"):
            lines.append(path.read_text(errors="replace"))
        else:
            lines.append(digest(path.read_bytes()))
    return named.plain("\n".join(lines)) or f"{NOTHING}\n"


def digest(content: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def tensors(path: Path) -> list[str]:
    """Read a file of safetensors; a line for its metadata and for each tensor: type, shape and digest of its bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    lines = [f"metadata {canonical(header.pop('__metadata__', None))}"]
    for name, one in sorted(header.items()):
        begin, end = one["data_offsets"]
        lines.append(f"{name} {one['dtype']} {one['shape']} {digest(data[begin:end])}")
    return lines


def figures(folder: Path) -> str:
    """The digest of each figure but those of times; one a line."""
    lines = [
        f"{path.relative_to(folder)} {digest(path.read_bytes())}"
        for path in sorted(folder.rglob("*.svg"))
        if path.stem != "cost"
    ]
    return "\n".join(["# left out, times: cost.svg", *(lines or [NOTHING]), ""])


def markdown(text: str, named: Names) -> str:
    """Markdown without times: neither in its words nor in the columns of its tables."""
    lines, timed = [], set[int]()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if not line.startswith("|"):
            timed = set()
        elif not timed:
            timed = {number for number, cell in enumerate(cells) if TIMED.fullmatch(cell)}
        elif not set(line) <= set("|-: "):
            line = " | ".join("TIME" if number in timed else cell for number, cell in enumerate(cells)).strip()
        lines.append(line)
    return named.plain("\n".join(lines))


class _Page(html.parser.HTMLParser):
    """The words of an HTML page, a row of a table as one of Markdown."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._cells: list[str] | None = None
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipped += tag in ("script", "style", "svg")
        if tag == "tr":
            self._cells = []
        elif tag == "table":
            self.lines.append("")
        elif tag in ("td", "th") and self._cells is not None:
            self._cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("script", "style", "svg")
        if tag == "tr" and self._cells is not None:
            self.lines.append(f"| {' | '.join(self._cells)} |")
            self._cells = None

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if self._skipped or not words:
            return
        if self._cells:
            self._cells[-1] = f"{self._cells[-1]} {words}".strip()
        else:
            self.lines.append(words)


def page(text: str, named: Names) -> str:
    """The words of an HTML page without times: text and tables, no scripts and no drawings."""
    reader = _Page()
    reader.feed(text)
    return markdown("\n".join(reader.lines), named)
