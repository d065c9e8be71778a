"""Sameness: whether two versions of the code make the same of the shipped studies, shrunk to seconds.

    python benchmarks/sameness.py dump OUT [--studies quickstart,maml] [--shortest] [--command PATH]
    python benchmarks/sameness.py compare OUT OTHER

`dump` runs the studies in a fresh home, on one slot, on embedded data, with the `cs330ray` on PATH, and writes what the
ledger, MLflow, the checkpoints and the commands hold and say under OUT, as text without times, machines and random
identities. `compare` prints where two dumps differ. Both know the service by its command line and its files alone, so
that either dump may be of other code. Without a command the quickest study is dumped twice, and the two are compared.
The last line is a JSON object; the exit status is 1 where anything differs.
"""

import argparse
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import canonical
from benchmarks.canonical import Names

ROOT = Path(__file__).parents[1]
SHORTEST = "quickstart"
DIFF_LINES = 40  # of each file that differs
COMMAND_S = 900.0
REFUSED = 2  # the exit status where a person can act on it
BEHIND = re.compile(r".*MLflow is behind.*\n")  # where the mirror was slow, which `sync` makes good
STEPS = 6
DRAWINGS: Mapping[str, Any] = {
    "dataset": "glyphs", "filters": 4, "tasks": 2, "queries": 3, "val_tasks": 4, "test_tasks": 4, "test_shots": [1, 2],
    "eval_every_steps": 2,
}  # fmt: skip
LANGUAGE: Mapping[str, Any] = {
    "dataset": "rooms", "model": "tiny", "shots": 2, "eval_examples": 4, "max_new_tokens": 2, "eval_every_steps": 2,
}  # fmt: skip
SMALL: Mapping[str, Mapping[str, Any]] = {  # what a system's parameters become, by system
    "baseline": {**{name: value for name, value in DRAWINGS.items() if name not in ("tasks", "queries")}, "batch": 12},
    "maml": DRAWINGS,
    "protonet": {**DRAWINGS, "eval_queries": 3},
    "mann": {name: DRAWINGS[name] for name in ("dataset", "tasks", "val_tasks", "test_tasks", "eval_every_steps")},
    "multitask": {"dataset": "planted", "eval_every_steps": 2},
    "icl": {**LANGUAGE, "orderings": 2, "probes": 2},
    "finetune": {**LANGUAGE, "batch": 2},
}
CLASSES: Mapping[str, Any] = {"model": "tiny-encoder", "answers": "classes"}  # of a study that reads reviews
COMPARED: Mapping[str, Sequence[Any]] = {"layers": [1, 2]}  # the tiny encoder has two
SHOTS_OF_LANGUAGE = 2  # at most so many examples fit the tiny model's window


@dataclass(frozen=True)
class Plan:
    """A study of the dump: its name, file, what is overridden, and by what it then grows."""

    name: str
    file: Path
    overrides: Sequence[str]
    grown: Sequence[str] = ()

    def command(self, *more: str) -> list[str]:
        """The words of `cs330ray run`."""
        return ["run", str(self.file), "--fork", self.name, *(word for each in more for word in ("--set", each))]


def plans(folder: Path) -> list[Plan]:
    """Every shipped study, shrunk, the quickest first; then one that grows and one of whose trials some fail."""
    found = sorted(folder.glob("*.toml"), key=lambda file: (file.stem != SHORTEST, file.stem))
    shipped = {file.stem: Plan(file.stem, file, overrides(tomllib.loads(file.read_text()))) for file in found}
    first, asked = shipped[SHORTEST], shipped["icl"]
    more = [*first.overrides, "budget.trials=3", f"budget.steps={2 * STEPS}"]
    too_long = [*asked.overrides, "search.shots=[1, 100]", 'sampler.kind="random"', "budget.trials=4"]
    return [
        *shipped.values(),
        Plan("grown", first.file, first.overrides, more),
        Plan("failing", asked.file, too_long),
    ]


def overrides(study: Mapping[str, Any]) -> list[str]:
    """Shrink a study as it is written; the values for `--set`."""
    budget, confirm = study["budget"], study.get("confirm", {})
    shrunk: dict[str, Any] = {
        "resources.slots": 1,
        "resources.checkpoint": 3600,  # the last alone: those in between depend on the machine's speed
        "budget.trials": min(budget["trials"], 2),
        "budget.steps": STEPS,
    }
    shrunk |= {f"confirm.{name}": min(confirm[name], 2) for name in ("top", "seeds") if name in confirm}
    if study.get("sampler", {}).get("kind") == "tpe":
        shrunk["sampler.startup"] = 1  # the second trial is asked of the model
    if study.get("prune", {}).get("kind") in ("asha", "median"):
        shrunk |= {"prune.min_steps": 2, "prune.reduction": 2}
    shrunk |= _parameters(study)
    return [f"{place}={json.dumps(value)}" for place, value in shrunk.items()]


def _parameters(study: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parameters of each system of a study, shrunk where the study does not ask about them."""
    fixed, compare, search = (study.get(table, {}) for table in ("fixed", "compare", "search"))
    systems = compare.get("trainable", [study.get("trainable")])
    for system in systems:
        small = {**SMALL[system], **(CLASSES if fixed.get("dataset") == "amazon" else {})}
        for name, value in small.items():
            asked = {**search, **search.get(system, {}), **compare}
            if name not in asked:
                yield f"fixed.{system}.{name}" if len(systems) > 1 else f"fixed.{name}", value
    for name, values in compare.items():
        if name in COMPARED:
            yield f"compare.{name}", list(COMPARED[name])
        elif name == "shots" and set(systems) <= {"icl", "finetune"}:
            yield f"compare.{name}", sorted({min(shots, SHOTS_OF_LANGUAGE) for shots in values})
    if "shots" in search and set(systems) <= {"icl", "finetune"}:
        yield "search.shots", [1, SHOTS_OF_LANGUAGE]


# Dumping -------------------------------------------------------------------------------------------------------------


class Home:
    """A fresh home, and the command that works in it."""

    def __init__(self, work: Path, command: str) -> None:
        self.work, self.runs = work, work / "runs"
        self.ends = Counter[int]()  # commands by their exit status
        self._command = command
        for folder in (self.runs, work / "r", work / "t", work / "data"):
            folder.mkdir(parents=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "MLFLOW_", "CS330RAY_", "COLUMNS", "PYTHONPATH"))
        }
        self._environment = kept | {
            "CS330RAY_HOME": str(self.runs), "CS330RAY_DATA": str(work / "data"),
            "CS330RAY_CACHE": str(work / "cache"), "RAY_TMPDIR": str(work / "r"),
            "TMPDIR": str(work / "t"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONHASHSEED": "0",
        }  # fmt: skip

    def says(self, *words: str) -> str:
        """Run the command; what it prints and, where it does not end well, its exit status and last words."""
        ended = subprocess.run(
            [self._command, *words], cwd=self.work, env=self._environment, text=True, capture_output=True,
            timeout=COMMAND_S, check=False,
        )  # fmt: skip
        self.ends[ended.returncode] += 1
        if ended.returncode == 0:
            return ended.stdout
        if ended.returncode != REFUSED:
            print(f"{' '.join(words)}: exit status {ended.returncode}\n{ended.stderr}", flush=True)
        return f"{ended.stdout}exit status {ended.returncode}: {(ended.stderr.strip().splitlines() or [''])[-1]}\n"


def dump(out: Path, chosen: Sequence[Plan], command: str) -> dict[str, Any]:
    """Run studies and write all that came of them under `out`; how many there were, and how long it took."""
    began = time.monotonic()
    out.mkdir(parents=True)
    work = Path(tempfile.mkdtemp(prefix="same-", dir="/tmp"))  # short: Ray's sockets lie under it
    try:
        home = Home(work, command)
        said = {plan.name: _train(home, plan) for plan in chosen}
        with ThreadPoolExecutor(2) as pool:
            for plan, texts in zip(chosen, pool.map(lambda plan: _read(home, plan), chosen), strict=True):
                said[plan.name] |= texts
        for plan in chosen:  # one after another, since each attaches its report in MLflow
            said[plan.name]["report"] = home.says("report", plan.name, "--to", str(work / "reports" / plan.name))
        said[""] = {"list": home.says("list")}
        write(out, home, said)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    files = sum(1 for path in out.rglob("*") if path.is_file())
    refused, crashes = home.ends[REFUSED], home.ends.total() - home.ends[0] - home.ends[REFUSED]
    seconds = round(time.monotonic() - began)
    return {"studies": len(chosen), "files": files, "refused": refused, "crashes": crashes, "seconds": seconds}


def _train(home: Home, plan: Plan) -> dict[str, str]:
    """Run a study, let it grow, and have MLflow agree with it; what the commands said."""
    began = time.monotonic()
    said = {"run": home.says(*plan.command(*plan.overrides))}
    if plan.grown:
        said["run-grown"] = home.says(*plan.command(*plan.grown))
    if plan.name == SHORTEST:
        said["run-again"] = home.says(*plan.command(*plan.overrides))
        said["reproduce"] = home.says("reproduce", plan.name, "0")
    said = {command: BEHIND.sub("", text) for command, text in said.items()}
    said["sync"] = home.says("sync", plan.name).partition("; ")[2]  # before it, how much the mirror had left to do
    print(f"{plan.name}: run in {time.monotonic() - began:.0f} s", flush=True)
    return said


def _read(home: Home, plan: Plan) -> dict[str, str]:
    """What the commands that only read say of a study, by command."""
    said = {"show": home.says("show", plan.name), "best": home.says("best", plan.name)}
    said["show-0"] = home.says("show", plan.name, "0", *_first_cell(plan))
    exported = home.work / "exports" / plan.name
    said["export"] = home.says("best", plan.name, *_first_cell(plan), "--export", str(exported))
    return said


def _first_cell(plan: Plan) -> list[str]:
    """The option that names the first cell of a study that compares."""
    compare = tomllib.loads(plan.file.read_text()).get("compare", {})
    for override in plan.overrides:
        place, _, text = override.partition("=")
        if place.startswith("compare."):
            compare[place.removeprefix("compare.")] = json.loads(text)
    title = " ".join(f"{name}={values[0]}" for name, values in compare.items())
    return ["--cell", title] if title else []


def write(out: Path, home: Home, said: Mapping[str, Mapping[str, str]]) -> None:
    """Write what a home holds and its commands said as canonical text under `out`."""
    named = canonical.names(home.work, home.runs)
    for table, text in canonical.ledger(home.runs / "ledger.db", named).items():
        _write(out / "ledger" / f"{table}.txt", text)
    for study, text in canonical.mirror(home.runs / "mlflow.db", named).items():
        _write(out / "mlflow" / f"{study}.txt", text)
    for study, texts in said.items():
        for command, text in texts.items():
            _write(out / study / f"{command}.txt", named.plain(text))
    for study in filter(None, said):
        _write_files(out / study, home, study, named)


def _write_files(out: Path, home: Home, study: str, named: Names) -> None:
    """Write the checkpoints, the exported model and the report of a study as canonical text."""
    report = home.work / "reports" / study
    _write(out / "checkpoints.txt", canonical.files(home.runs / study / "checkpoints", named))
    _write(out / "exported.txt", canonical.files(home.work / "exports" / study, named))
    _write(out / "figures.txt", canonical.figures(report))
    if report.exists():  # else `report.txt` says why not
        _write(out / "report.md", canonical.markdown((report / "report.md").read_text(), named))
        _write(out / "page.txt", canonical.page((report / "report.html").read_text(), named))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# Comparing -----------------------------------------------------------------------------------------------------------


def compare(one: Path, other: Path) -> dict[str, int]:
    """Print where two dumps differ, and for each kind of file how many do; how many files there are and differ."""
    names = sorted({str(path.relative_to(root)) for root in (one, other) for path in root.rglob("*") if path.is_file()})
    different = Counter[str]()
    kinds = Counter(kind(name) for name in names)
    for name in names:
        if lines := list(islice(difference(one / name, other / name), DIFF_LINES + 1)):
            different[kind(name)] += 1
            print("\n".join(lines[:DIFF_LINES]))
            if len(lines) > DIFF_LINES:
                print(f"... {name} differs further")
    for each, files in sorted(kinds.items()):
        print(f"{each}: {different[each]} of {files} differ")
    return {"files": len(names), "different": different.total()}


def kind(name: str) -> str:
    """What a file of a dump holds, the same for each study: `ledger`, `mlflow`, or the file's own name."""
    folder, _, file = name.rpartition("/")
    return folder if folder in ("ledger", "mlflow") else file


def difference(one: Path, other: Path) -> Iterator[str]:
    """The unified diff of two files, of which one may be absent."""
    before, after = (path.read_text().splitlines() if path.exists() else [] for path in (one, other))
    if one.exists() != other.exists():
        yield f"only one has it: {one if one.exists() else other}"
    yield from difflib.unified_diff(before, after, str(one), str(other), n=0, lineterm="")


def _chosen(names: Iterable[str], parser: argparse.ArgumentParser) -> list[Plan]:
    """The plans of these names, all where there is none."""
    wanted = [name for name in names if name]
    by_name = {plan.name: plan for plan in plans(ROOT / "studies")}
    if unknown := [name for name in wanted if name not in by_name]:
        parser.error(f"--studies: expected some of {', '.join(by_name)}, got {', '.join(unknown)}")
    return [plan for name, plan in by_name.items() if not wanted or name in wanted]


def main(arguments: Sequence[str]) -> int:
    """Run the command line; 1 where two dumps differ, or hold nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="what")
    dumping = commands.add_parser("dump", help="run studies and write what came of them")
    dumping.add_argument("out", type=Path, help="a directory that is not there yet")
    dumping.add_argument("--studies", default="", help="with commas between; all by default")
    dumping.add_argument("--shortest", action="store_true", help=f"{SHORTEST} alone")
    dumping.add_argument("--command", default="cs330ray", help="the command whose code is dumped")
    comparing = commands.add_parser("compare", help="print where two dumps differ")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("other", type=Path)
    given = parser.parse_args(arguments)
    if given.what == "dump":
        chosen = _chosen([SHORTEST] if given.shortest else given.studies.split(","), parser)
        figures = dump(given.out, chosen, found_command(given.command))
    elif given.what == "compare":
        figures = compare(given.one, given.other)
    else:
        figures = twice(_chosen([SHORTEST], parser))
    print(json.dumps(figures))
    return int(bool(figures.get("different") or figures.get("crashes")) or not figures["files"])


def twice(chosen: Sequence[Plan]) -> dict[str, int]:
    """Dump the same studies twice and compare; the figures of `compare`, and how many commands did not end well."""
    with tempfile.TemporaryDirectory() as work:
        outs = [Path(work) / name for name in ("one", "other")]
        figures = [dump(out, chosen, found_command("cs330ray")) for out in outs]
        return {**compare(*outs), **{end: sum(each[end] for each in figures) for end in ("refused", "crashes")}}


def found_command(command: str) -> str:
    """The command's path: on PATH, else beside this Python. Exits where there is none."""
    beside = Path(sys.executable).parent / command
    found = shutil.which(command) or (str(beside) if beside.exists() else None)
    if found is None:
        raise SystemExit(f"{command}: expected a command on PATH; install the project, or give --command")
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left of what was under way
    sys.exit(main(sys.argv[1:]))
