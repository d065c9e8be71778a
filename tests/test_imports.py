"""What import-linter and ruff hold of the house bites; what they cannot say is held here."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cs330ray

ROOT = Path(cs330ray.__file__).parent
CHECKOUT = Path(__file__).parents[1]
LINES = 400  # of a module; one may have more
FILES = 12  # in a folder, beside __init__.py

SLOW = ["torch", "ray", "optuna", "mlflow", "scipy", "matplotlib", "pandas", "sqlalchemy", "transformers"]
ROOMS = ["analysis", "cluster", "course", "export", "ledger", "mirror", "report", "reproduce", "service", "travel"]
RE_EXPORT = {"__init__.py", "trial/__init__.py"}  # the face, and the contract's


# What the contracts and ruff's rules refuse


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """Copy the sources and what holds them, to plant imports in."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT, copy / "src/cs330ray", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", copy)
    return copy


def holds(house: Path, *contracts: str) -> bool:
    """Run `lint-imports` over a house, of those contracts alone or of all; whether it ends well."""
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    chosen = [word for contract in contracts for word in ("--contract", contract)]
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--no-logo", *chosen],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    (summary,) = re.findall(r"Contracts: \d+ kept, (\d+) broken", done.stdout) or [done.stdout + done.stderr]
    assert (summary == "0") == (done.returncode == 0)
    assert summary.isdigit(), summary
    return summary == "0"


def holds_with(house: Path, module: str, source: str, *contracts: str) -> bool:
    """Add lines to a module of a house, a new one where there is none; whether it holds until that is undone."""
    file = house / "src/cs330ray" / module
    before = file.read_text("utf-8") if file.exists() else None
    file.write_text(f"{before or ''}\n{source}\n", "utf-8")
    try:
        return holds(house, *contracts)
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before, "utf-8")


def test_the_house_as_it_stands_holds(house):
    assert holds(house)


@pytest.mark.parametrize(
    ("contract", "module", "source"),
    [
        ("order", "errors.py", "import cs330ray.spec.study"),
        ("order", "spec/strict.py", "from cs330ray.trial.contract import Progress"),
        ("order", "spec/strict.py", "def f():\n    from cs330ray.trial.contract import Progress"),
        ("order", "spec/strict.py", "if TYPE_CHECKING:\n    from cs330ray.trial.contract import Progress"),
        ("order", "trial/named.py", "from cs330ray.course import systems"),
        ("order", "ledger/trials/fronts.py", "from cs330ray.service import run"),
        ("order", "mirror/process.py", "if TYPE_CHECKING:\n    from cs330ray.service.listener import Listener"),
        ("order", "report/html.py", "from cs330ray.service import run"),
        ("order", "service/run.py", "from cs330ray.cli.app import app"),
        ("order", "helpers.py", ""),
        ("course-order", "course/data/text.py", "from cs330ray.course.pretrained import models"),
        ("course-order", "course/models/card.py", "from cs330ray.course.systems import maml"),
        ("course-order", "course/helpers.py", ""),
        ("circles", "course/data/omniglot.py", "from cs330ray.course.data import images"),
        ("circles", "course/data/omniglot.py", "def f():\n    from cs330ray.course.data import images"),
        ("circles", "course/data/omniglot.py", "if TYPE_CHECKING:\n    from cs330ray.course.data import images"),
        ("circles", "course/data/packed.py", "from cs330ray.course.data import images"),  # of four
        ("circles", "service/messages.py", "from cs330ray.service.workers import actor"),  # between folders
        ("face", "spec/strict.py", "from cs330ray import VERSION"),
        ("own-face", "trial/check.py", "from cs330ray.trial import Item"),
        ("clock", "analysis/table.py", "from cs330ray.clock import wall_s"),
        ("package", "course/data/packed.py", "from cs330ray.package import VERSION"),
        ("quiet", "reproduce/rerun.py", "def f():\n    from cs330ray.quiet import quiet"),
        ("spec", "course/data/packed.py", "from cs330ray.spec.study import Study"),
        ("local-checkpoints", "report/html.py", "from cs330ray.checkpoints import local"),
        ("stores", "reproduce/rerun.py", "from cs330ray.checkpoints import store"),
        ("contract", "course/models/card.py", "from cs330ray.trial.contract import Item"),
        ("named", "report/html.py", "from cs330ray.trial import named"),
        ("training", "course/learners/maml.py", "from cs330ray.training import state"),
        ("training", "service/run.py", "from cs330ray.training import parallel"),
        ("training", "service/workers/team.py", "import cs330ray.training.state"),
        ("course", "service/run.py", "import cs330ray.course.systems.maml"),
        ("data", "course/learners/maml.py", "from cs330ray.course.data import glyphs"),
        ("ledger", "cluster/jobs.py", "from cs330ray.ledger import records"),
        ("writer", "mirror/sync.py", "from cs330ray.ledger import lease"),
        ("writer", "report/html.py", "from cs330ray.ledger.writer import Writer"),
        ("writer", "reproduce/verdict.py", "if TYPE_CHECKING:\n    from cs330ray.ledger.writer import Writer"),
        ("analysis", "service/run.py", "from cs330ray.analysis import standing"),
        ("mirror", "service/run.py", "from cs330ray.mirror import sync"),
        ("ray", "report/html.py", "def f():\n    import ray"),
        ("mlflow", "cli/prepare.py", "def f():\n    import mlflow"),
        ("mlflow", "service/run.py", "import mlflow"),
        ("optuna", "report/html.py", "import optuna"),
        ("torch", "trial/contract.py", "def f():\n    import torch"),
        ("torch", "cli/run.py", "def f():\n    from accelerate import PartialState"),
    ],
)
def test_import_linter_refuses(house, contract, module, source):
    assert not holds_with(house, module, source, contract)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli/run.py", "def f():\n    from cs330ray.course.data import glyphs\n    from cs330ray.mirror import sync"),
        ("course/systems/maml.py", "from cs330ray.training import parallel\nfrom cs330ray.trial.contract import Item"),
        ("analysis/table.py", "from cs330ray.ledger import fronts\nimport scipy"),
        ("service/thin.py", "import ray\nfrom cs330ray.clock import wall_s"),
    ],
)
def test_import_linter_lets_pass(house, module, source):
    assert holds_with(house, module, source)


def test_every_contract_is_seen_to_refuse_something(house):
    """The table above and the one of pyproject.toml name the same contracts."""
    (mark,) = test_import_linter_refuses.pytestmark
    contracts = tomllib.loads((house / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    assert {contract["id"] for contract in contracts} == {case[0] for case in mark.args[1]}


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("cli/run.py", "from cs330ray.service import run", "TID253"),
        ("cli/run.py", "from cs330ray import report", "TID253"),
        ("__main__.py", "import cs330ray.service", "TID253"),
        ("__init__.py", "import cs330ray.export.directory", "TID253"),
        ("studies/maml.py", "import cs330ray.course.systems.maml", "TID253"),
        ("course/data/packed.py", "from . import glyphs", "TID252"),
        ("course/data/packed.py", "from ..spec import Study", "TID252"),
        ("service/thin.py", "from ray import tune", "TID251"),
        ("service/thin.py", "import ray\nray.tune.run()", "TID251"),
        ("service/thin.py", "def f():\n    from ray.tune.schedulers import FIFOScheduler", "TID251"),
        ("service/thin.py", "import importlib\nimportlib.import_module('x')", "TID251"),
        ("report/html.py", "from importlib import import_module", "TID251"),
        ("report/html.py", "import pkgutil\npkgutil.resolve_name('x:y')", "TID251"),
    ],
)
def test_ruff_refuses(module, source, rule):
    assert rule in refused_by_ruff(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli/run.py", "def f():\n    from cs330ray.service import run"),
        ("cli/run.py", "if TYPE_CHECKING:\n    from cs330ray.ledger.ledger import Ledger"),
        ("report/html.py", "from cs330ray.ledger.ledger import Ledger"),
        ("service/tune.py", "from ray import tune"),
        ("service/thin.py", "import ray"),
        ("trial/named.py", "import importlib\nimportlib.import_module('x')"),
        ("course/data/glyphs.py", "from importlib.metadata import version"),
    ],
)
def test_ruff_lets_pass(module, source):
    assert refused_by_ruff(module, source) == ""


def refused_by_ruff(module: str, source: str) -> str:
    """Have ruff read a source as if it were that module; what it says against its imports."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ruff"), "check", "--select", "TID25", "--quiet", "--no-cache",
         "--output-format", "concise", "--stdin-filename", f"src/cs330ray/{module}", "-"],
        cwd=CHECKOUT, input=f"{source}\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


# What they cannot say


@pytest.mark.parametrize("what", ["import cs330ray", "import cs330ray.cli.app", "from cs330ray.studies import maml"])
def test_it_starts_without_what_is_slow_to_import(what):
    """Python itself says what it has loaded: what is reached through another package, or under `try`, counts too."""
    assert loaded_by(what) == []


def test_help_loads_nothing_slow():
    assert loaded_by("import cs330ray.cli.app as run; run.app(['--help'], standalone_mode=False)") == []


def loaded_by(what: str) -> list[str]:
    """Run a line in a fresh process; which slow packages and rooms it loads."""
    names = [*SLOW, *(f"cs330ray.{room}" for room in ROOMS)]
    code = f"{what}\nimport sys; print([name for name in {names} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stderr)


def test_no_module_is_imported_behind_the_tools_backs():
    assert [path for path, tree in modules() if "__import__" in names_in(tree)] == []


def test_only_the_face_and_the_contract_hand_on_what_others_define():
    """import-linter sees no circle between a module and the __init__ of its own package: there is nothing to see."""
    packages = [(path, tree) for path, tree in modules() if path.endswith("__init__.py") and path not in RE_EXPORT]
    assert packages
    assert [path for path, tree in packages if "cs330ray" in imported_by(tree)] == []


def test_a_folder_has_at_most_a_dozen_files():
    folders = [ROOT, *(path for path in ROOT.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    sizes = {str(folder.relative_to(ROOT)): len(files_in(folder)) for folder in folders}
    assert len(sizes) > 15
    assert {folder: size for folder, size in sizes.items() if size > FILES} == {}


def test_at_most_one_module_is_long():
    lengths = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path, _ in modules()}
    long = {path: length for path, length in lengths.items() if length > LINES}
    assert len(long) <= 1, long


def modules() -> list[tuple[str, ast.Module]]:
    """Read every module; its path in the package, and its syntax tree."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))) for path in sorted(ROOT.rglob("*.py"))
    ]


def names_in(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def imported_by(tree: ast.Module) -> set[str]:
    """The first names of the modules that a module imports anywhere."""
    plain = (alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names)
    members = (node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {name.split(".")[0] for name in (*plain, *members)}


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and path.name != "__init__.py"]
