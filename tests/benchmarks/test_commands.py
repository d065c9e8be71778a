"""Each benchmark runs by the command that its docstring gives, from the root of a checkout and without PYTHONPATH."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOT_TIMED = ("auditor", "gpu", "sameness")  # they check what somebody names, or a GPU
QUICK = {"answers"}  # the proof that what a report claims holds; the others are slow tests, since each starts processes
ELSEWHERE = {"faults", "headline", "scaling"}  # a stage of `.ci/run`, `make bench` alone: minutes at their smallest
PAGES = [
    ROOT / "README.md",
    ROOT / "LOG.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("design/*.md"),
]
NAMED = re.compile(r"(?:python )?benchmarks/([\w.]+\.py)((?: --[\w-]+(?: \d\S*)?)*)")
LIMIT_S = 900  # a busy machine takes ten times as long as an idle one
KEPT_OUT = ("PYTHONPATH", "RAY_", "MLFLOW_", "CS330RAY_HOME", "CS330RAY_LEDGER")  # a fresh shell has none of them

pytestmark = pytest.mark.timeout(LIMIT_S)


def scripts() -> list[str]:
    return sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


def benchmarks() -> list[str]:
    return [name for name in scripts() if name not in NOT_TIMED]


def documented(name: str) -> str:
    """The command of a script's docstring, with its options."""
    docstring = ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())) or ""
    (command,) = re.findall(rf"^ +(python benchmarks/{name}\.py.*)$", docstring, re.MULTILINE)
    return str(command)


def plain(command: str) -> list[str]:
    """The words of a command without what it may be given, for this Python."""
    words = shlex.split(re.sub(r"\[[^]]*\]", "", command))
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


def last_line(words: list[str]) -> dict[str, object]:
    """Run a command from the root as a fresh shell would, to a good end; the JSON object of its last line."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S - 20)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(figures, dict)
    return figures


def short() -> list[Any]:
    """Those that are run here."""
    named = [name for name in benchmarks() if name not in ELSEWHERE]
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in named]


@pytest.mark.parametrize("name", short())
def test_a_benchmark_runs_by_the_command_of_its_docstring_and_ends_in_one_json_object(name: str) -> None:
    command = documented(name)
    assert "[--smallest]" in command
    assert last_line([*plain(command), "--smallest"])


def test_make_bench_runs_every_benchmark_and_nothing_else() -> None:
    listed = subprocess.run(["make", "--no-print-directory", "-n", "bench"], cwd=ROOT, capture_output=True, text=True)
    assert set(re.findall(r"benchmarks/(\w+)\.py", listed.stdout)) == set(benchmarks())


def test_every_benchmark_that_a_page_names_is_there_with_its_options() -> None:
    named = {found for page in PAGES for found in NAMED.findall(page.read_text()) if found[0] != "NAME.py"}
    assert ("faults.py", " --rounds 100 --seed 3") in named
    for file, options in sorted(named):
        text = (ROOT / "benchmarks" / file).read_text()
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in text, f"{file} has no {option}"
