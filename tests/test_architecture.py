"""The import table of the house, held over the syntax trees: nothing is imported to learn what imports what."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

import pytest

import cs330ray

ROOT = Path(cs330ray.__file__).parent
ALL = frozenset({""})
COMMAND_LINE = ("cli", "console", "lone", "remote", "__main__", "__init__")

# What a room sees beside itself; a room is a module or a package right under cs330ray.
SEES: Mapping[str, frozenset[str]] = {
    "errors": frozenset(),
    "clock": frozenset(),
    "files": frozenset(),
    "checkpoint": frozenset({"errors", "files"}),
    "spec": frozenset({"errors"}),
    "growth": frozenset({"errors", "spec"}),
    "trial": frozenset({"errors", "checkpoint"}),
    "home": frozenset(),
    "data": frozenset({"errors"}),
    "pretrained": frozenset({"errors", "data"}),
    "learners": frozenset({"errors"}),
    "training": frozenset({"errors"}),
    "models": frozenset({"errors", "data", "pretrained", "learners", "training"}),
    "studies": frozenset(
        {"errors", "checkpoint", "spec", "trial", "data", "pretrained", "learners", "models", "training"}
    ),
    "runtime": frozenset({"training"}),  # the old addresses of what moved to training
    "parallel": frozenset({"training"}),
    "service": frozenset({"errors", "clock", "files", "checkpoint", "spec", "growth", "trial"}),
    "report": frozenset(
        {"errors", "files", "spec", "growth", "trial", "service.ledger", "service.records", "service.confirm"}
    ),
    **dict.fromkeys(COMMAND_LINE, ALL),
}
SEES_TOO = {
    "service.trainables": frozenset({"studies"}),  # a trainable by name
    "service.workers": frozenset({"training.parallel"}),  # what the workers of a trial share
}
STARTS_A_STUDY = "cs330ray.cli.app.study_main"  # what the last lines of a study module may import

SERVICE_ALONE = {"ray", "optuna", "mlflow"}
TORCH = {"torch", "accelerate", "transformers", "peft"}
WITHOUT_TORCH = {"errors", "clock", "files", "checkpoint", "spec", "growth", "trial", *COMMAND_LINE}
BY_NAME = {"importlib", "importlib.import_module", "importlib.util"}  # for service.trainables alone
SLOW = {"cs330ray.service", "cs330ray.report", "cs330ray.studies"}  # what the command line imports inside functions

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Where = Literal["module", "function", "types", "main"]


@dataclass(frozen=True)
class Import:
    """One name that a module imports: at its top, in a function, for types alone, or where it is run as a script."""

    target: str
    where: Where
    line: int


def imports(source: str) -> list[Import]:
    return list(_imports(ast.parse(source), "module"))


def _imports(node: ast.AST, where: Where) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, where, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = "." * node.level + (node.module or "")
        yield from (Import(f"{package}.{alias.name}", where, node.lineno) for alias in node.names)
    elif isinstance(node, ast.If) and where == "module":
        yield from _inside(node.body, _guarded(node.test))
        yield from _inside(node.orelse, where)
    elif isinstance(node, ast.Name) and node.id == "__import__":
        yield Import("importlib", where, node.lineno)
    else:
        inner: Where = "function" if where == "module" and isinstance(node, FUNCTIONS) else where
        yield from _inside(ast.iter_child_nodes(node), inner)


def _inside(nodes: Iterator[ast.AST] | list[ast.stmt], where: Where) -> Iterator[Import]:
    for node in nodes:
        yield from _imports(node, where)


def _guarded(test: ast.expr) -> Where:
    text = ast.unparse(test)
    if text in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return "types"
    return "main" if text == "__name__ == '__main__'" else "module"


def breaches(house: Mapping[str, str]) -> list[str]:
    """What breaks the table in `house`, the sources by module name under cs330ray; a line a place."""
    return [breach for name, source in house.items() for breach in _breaches(name, source)]


def _breaches(name: str, source: str) -> Iterator[str]:
    room = name.split(".")[0]
    if room not in SEES:
        yield f"{name}: has no place in the import table"
        return
    for one in imports(source):
        at = f"{name}:{one.line}:"
        third_party = one.target.split(".")[0]
        if one.target.startswith("."):
            yield f"{at} a relative import hides what is seen"
        elif third_party in SERVICE_ALONE and room != "service":
            yield f"{at} {third_party} is for service alone"
        elif third_party in TORCH and room in WITHOUT_TORCH:
            yield f"{at} {third_party} brings torch into {room}"
        elif one.target in BY_NAME and name != "service.trainables":
            yield f"{at} modules by name are for service.trainables alone"
        elif third_party == "cs330ray" and not _sees(name, room, one):
            yield f"{at} {name} does not see {one.target}"
        elif room in COMMAND_LINE and one.where in ("module", "main") and _under(one.target, SLOW):
            yield f"{at} {one.target} must be imported inside a function"


def _sees(name: str, room: str, one: Import) -> bool:
    if one.target == "cs330ray" or (one.target == STARTS_A_STUDY and one.where == "main" and room == "studies"):
        return True
    seen = {room, *SEES[room], *SEES_TOO.get(name, ())}
    return "" in seen or _under(one.target, {f"cs330ray.{place}" for place in seen})


def _under(target: str, places: set[str]) -> bool:
    return any(target == place or target.startswith(f"{place}.") for place in places)


def cycles(house: Mapping[str, str]) -> list[str]:
    """The first import cycle, those hidden in functions included; types and scripts do not count."""
    graph = {name: _neighbours(name, source, house) for name, source in house.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" <- ".join(error.args[1])]
    return []


def _neighbours(name: str, source: str, house: Mapping[str, str]) -> set[str]:
    run = [one.target for one in imports(source) if one.where in ("module", "function")]
    found = {_module(target.removeprefix("cs330ray."), house) for target in run if target.startswith("cs330ray.")}
    return found - {name, ""}


def _module(target: str, house: Mapping[str, str]) -> str:
    """The module that holds `target`: itself, or the nearest one around it."""
    while target and target not in house:
        target = target.rpartition(".")[0]
    return target


def read_house() -> dict[str, str]:
    paths = {path: path.relative_to(ROOT).with_suffix("").parts for path in sorted(ROOT.rglob("*.py"))}
    return {
        ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts): path.read_text("utf-8")
        for path, parts in paths.items()
    }


# The house


def test_every_import_follows_the_table():
    assert breaches(read_house()) == []


def test_no_imports_run_in_a_circle():
    assert cycles(read_house()) == []


def test_every_room_of_the_house_was_read():
    rooms = {name.split(".")[0] for name in read_house()}
    assert {"errors", "checkpoint", "spec", "growth", "trial", "data", "pretrained", "learners", "training", "studies",
            "service", "cli"} <= rooms  # fmt: skip


def test_the_command_line_starts_without_what_is_slow_to_import():
    """What Python has loaded says what the table cannot: what is reached through another package."""
    slow = ["torch", "ray", "optuna", "mlflow", "scipy", "matplotlib"]
    code = f"import cs330ray.cli.app, sys; print([name for name in {slow} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The checker: a house of one or two modules -> what it must say


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("errors", "import cs330ray.spec.study", "errors does not see cs330ray.spec.study"),
        ("errors", "from cs330ray import spec", "errors does not see cs330ray.spec.study"),
        ("checkpoint", "from cs330ray.trial.contract import Progress", "does not see cs330ray.trial.contract.Progress"),
        ("spec", "def f():\n    from cs330ray import growth", "spec:2: spec does not see cs330ray.spec.growth"),
        ("spec", "import torch.nn", "torch brings torch into spec"),
        ("trial", "def f():\n    import torch", "torch brings torch into trial"),
        ("cli", "def f():\n    from accelerate import PartialState", "accelerate brings torch into cli"),
        ("data.packed", "from cs330ray.spec.study import Study", "does not see cs330ray.spec.study.Study"),
        ("data.packed", "from cs330ray import learners", "does not see cs330ray.learners"),
        ("data.text", "from cs330ray.pretrained import models", "does not see cs330ray.course.pretrained.models"),
        ("pretrained.find", "from cs330ray.learners import lora", "does not see cs330ray.course.learners.lora"),
        ("training.state", "from cs330ray.trial.contract import Progress", "does not see cs330ray.trial.contract.Progress"),
        ("training.state", "from cs330ray import checkpoint", "does not see cs330ray.checkpoints.local"),
        ("learners.maml", "from cs330ray.training import parallel", "does not see cs330ray.training.parallel"),
        ("studies.maml", "from cs330ray import runtime", "does not see cs330ray.runtime"),
        ("learners.maml", "from cs330ray.data import glyphs", "does not see cs330ray.course.data.glyphs"),
        ("learners.maml", "import ray", "ray is for service alone"),
        ("studies.maml", "from ray import tune", "ray is for service alone"),
        ("studies.maml", "from cs330ray.service import run", "does not see cs330ray.service.run"),
        ("studies.maml", "from cs330ray.cli.app import study_main", "does not see cs330ray.cli.app.study_main"),
        ("studies.maml", "if __name__ == '__main__':\n    import cs330ray.cli.app", "does not see cs330ray.cli.app"),
        ("report.html", "import optuna", "optuna is for service alone"),
        ("report.html", "from cs330ray.service import run", "does not see cs330ray.service.run"),
        ("report.html", "from cs330ray.service import ledgers", "does not see cs330ray.service.ledgers"),
        ("service.run", "from cs330ray import studies", "does not see cs330ray.studies"),
        ("service.run", "import cs330ray.course.systems.maml", "does not see cs330ray.course.systems.maml"),
        ("service.run", "from cs330ray.data import packed", "does not see cs330ray.course.data.packed"),
        ("service.run", "from cs330ray.training import parallel", "does not see cs330ray.training.parallel"),
        ("service.workers", "from cs330ray.training import state", "does not see cs330ray.training.state"),
        ("service.run", "from cs330ray.cli.app import app", "does not see cs330ray.cli.app.app"),
        ("cli", "from cs330ray.service import run", "cs330ray.service.run must be imported inside a function"),
        ("cli", "from cs330ray import report", "cs330ray.report must be imported inside a function"),
        ("cli", "try:\n    import cs330ray.studies\nfinally:\n    pass", "must be imported inside a function"),
        ("cli", "class A:\n    from cs330ray.service import run", "must be imported inside a function"),
        ("cli", "if TYPE_CHECKING:\n    pass\nelse:\n    import cs330ray.report", "must be imported inside"),
        ("cli", "def f():\n    import mlflow", "mlflow is for service alone"),
        ("__main__", "import cs330ray.service", "must be imported inside a function"),
        ("data.packed", "from . import glyphs", "a relative import hides what is seen"),
        ("data.packed", "from ..spec import Study", "a relative import hides what is seen"),
        ("service.run", "import importlib", "modules by name are for service.trainables alone"),
        ("report.html", "from importlib import import_module", "modules by name are for service.trainables alone"),
        ("spec", "__import__('torch')", "modules by name are for service.trainables alone"),
        ("studies.maml", "def f():\n    __import__('optuna')", "modules by name are for service.trainables alone"),
        ("helpers", "", "helpers: has no place in the import table"),
    ],
)  # fmt: skip
def test_the_checker_finds(name, source, problem):
    (found,) = breaches({name: source})
    assert problem in found


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("errors", "import json"),
        ("growth", "from cs330ray.spec.study import Study\nfrom cs330ray import errors"),
        ("data.glyphs", "from cs330ray.data import packed\nimport torch"),
        ("pretrained.models", "from cs330ray.data import packed\nfrom cs330ray.pretrained import tiny"),
        ("studies.maml", "from cs330ray.studies import fewshot\nfrom cs330ray.training import parallel"),
        ("service.workers", "def f():\n    from cs330ray.training import parallel"),
        ("studies.maml", "import torch\nfrom cs330ray.learners import maml\nfrom cs330ray.spec.study import Study"),
        (
            "studies.maml",
            "if __name__ == '__main__':\n    from cs330ray.cli.app import study_main\n    study_main('maml')",
        ),
        ("service.run", "import ray, optuna, mlflow, cs330ray\nfrom cs330ray import checkpoint"),
        ("service.trainables", "import importlib\nfrom cs330ray import studies"),
        ("data.glyphs", "from importlib.metadata import version"),
        ("report.html", "from cs330ray.ledger.writer import Writer\nfrom cs330ray.service import ledger"),
        ("cli", "import typer\ndef f():\n    from cs330ray.service import run\n    import cs330ray.studies"),
        ("cli", "class A:\n    def f(self):\n        if self:\n            from cs330ray.service import run"),
        ("cli", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cs330ray.ledger.writer import Writer"),
    ],
)
def test_the_checker_lets_pass(name, source):
    assert breaches({name: source}) == []


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("from cs330ray.data import packed", "from cs330ray.data import glyphs", True),
        ("from cs330ray.course.data.packed import fetch", "import cs330ray.course.data.glyphs", True),
        ("def f():\n    from cs330ray.data import packed", "def f():\n    from cs330ray.data import glyphs", True),
        ("if TYPE_CHECKING:\n    from cs330ray.data import packed", "from cs330ray.data import glyphs", False),
        ("from cs330ray.data import packed", "import json", False),
    ],
)
def test_the_checker_finds_cycles_within_a_room(one, other, found):
    assert bool(cycles({"data": "", "data.glyphs": one, "data.packed": other})) is found


def test_the_checker_finds_a_cycle_of_three():
    house = {
        "cli": "from cs330ray import lone",
        "lone": "from cs330ray import console",
        "console": "import cs330ray.cli.app",
    }
    (found,) = cycles(house)
    assert sorted(set(found.split(" <- "))) == sorted(house)


def test_a_study_that_starts_itself_is_no_cycle():
    starts = "if __name__ == '__main__':\n    from cs330ray.cli.app import study_main"
    house = {
        "cli": "def f():\n    from cs330ray.service import trainables",
        "service": "",
        "service.trainables": "def f():\n    import cs330ray.course.systems.maml",
        "studies.maml": starts,
    }
    assert breaches(house) == cycles(house) == []
