"""What Ray and MLflow read from the environment is set by the commands and by a study, and by nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cs330ray.quiet import _SETTINGS, quiet
from tests.finished import finish, study_of
from tests.studies_of_tests import toml, toy

ROOT = Path(__file__).parents[1]
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests themselves have set, and what a cluster would."""
    for name in (*_SETTINGS, *AUTHENTICATION):
        monkeypatch.delenv(name, raising=False)


def said(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# The function


def test_only_what_is_not_set_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    quiet()
    assert os.environ["RAY_DEDUP_LOGS"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_ray_of_ours_asks_for_a_token_that_stays_the_same_in_its_process() -> None:
    twice = (
        "import os; from cs330ray.quiet import quiet; quiet(); first = os.environ['RAY_AUTH_TOKEN']; quiet();"
        "print(os.environ['RAY_AUTH_MODE'], len(first), os.environ['RAY_AUTH_TOKEN'] == first)"
    )
    assert said(twice) == "token 64 True\n"


def test_a_ray_that_is_started_here_asks_for_a_token_where_the_address_says_local() -> None:
    mode = "import os; from cs330ray.quiet import quiet; quiet(); print(os.environ.get('RAY_AUTH_MODE'))"
    assert said(mode, RAY_ADDRESS="local") == "token\n"
    assert said(mode, RAY_ADDRESS="127.0.0.1:6379", HOME="/nonexistent") == "None\n"


def test_two_processes_have_two_tokens() -> None:
    token = "import os; from cs330ray.quiet import quiet; quiet(); print(os.environ['RAY_AUTH_TOKEN'])"
    assert said(token) != said(token)


def test_once_ray_is_imported_no_token_is_set_that_this_process_would_not_know() -> None:
    late = "import os, ray; from cs330ray.quiet import quiet; quiet(); print('RAY_AUTH_TOKEN' in os.environ)"
    assert said(late) == "False\n"


# Who calls it


@pytest.mark.parametrize("call", ["main()", "study_main('maml')"])
def test_the_command_line_is_quiet_before_anything_imports_ray_or_mlflow(call: str) -> None:
    code = f"""
import os, sys
from cs330ray.cli import app
def looked(*_):
    print(os.environ.get("RAY_AUTH_MODE"), os.environ.get("MLFLOW_DISABLE_TELEMETRY"),
          "ray" in sys.modules or "mlflow" in sys.modules)
app.guarded = looked
app.{call}
"""
    assert said(code) == "token true False\n"


def test_a_study_that_is_run_from_python_is_quiet_before_it_imports_ray(home: Path, tmp_path: Path) -> None:
    """The study fits no machine, so that nothing is started."""
    file = toml(toy(resources={"cpus": 4096}), tmp_path / "toy.toml")
    code = """
import os, sys
from pathlib import Path
from cs330ray.errors import SpecError
from cs330ray.service.run import run
from cs330ray.spec.reading import read
study, early = read(Path(sys.argv[1])), "ray" in sys.modules
try:
    run(study, Path(sys.argv[2]), mirror=False)
except SpecError as error:
    print(early, "ray" in sys.modules, os.environ.get("RAY_AUTH_MODE"), "cpus=4096" in str(error))
"""
    assert said(code, str(file), str(home)) == "False True token True\n"


# Who does not


def changed(code: str, *arguments: str, before: str = "", **environment: str) -> dict[str, str | None]:
    """What some code changes in the environment of a fresh interpreter that has run `before`."""
    around = f"""
import json, os, sys
{before}
before = dict(os.environ)
{code}
names = {{*before, *os.environ}}
print(json.dumps({{n: os.environ.get(n) for n in names if os.environ.get(n) != before.get(n)}}))
"""
    found: dict[str, str | None] = json.loads(said(around, *arguments, **environment).splitlines()[-1])
    return found


def test_importing_the_package_leaves_the_environment_as_it_was() -> None:
    assert changed("import cs330ray") == {}


# Each sets a variable of its own when it is imported, whoever imports it; torch's compiler with the first optimiser.
THEIRS = """
import contextlib
import ray, ray.tune, mlflow, torch._dynamo
with contextlib.suppress(ImportError):  # of the extra for language models
    import peft
"""


@pytest.mark.slow
def test_importing_any_module_leaves_the_environment_as_the_libraries_alone_leave_it() -> None:
    code = """
import importlib, pkgutil
import cs330ray
names = [found.name for found in pkgutil.walk_packages(cs330ray.__path__, "cs330ray.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert len(names) > 150, names
"""
    assert changed(code, before=THEIRS) == {}


def test_opening_a_study_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    finish(tmp_path, study_of("tests.toy", {"lr": 0.5}))
    code = """
import cs330ray
study = cs330ray.open("done", sys.argv[1])
assert len(study.trials) == 1
assert study.best
for name in study.figures:
    study.figure(name)
"""
    assert changed(code, str(tmp_path)) == {}


@pytest.mark.slow
def test_loading_models_leaves_the_environment_as_torch_alone_leaves_it() -> None:
    pytest.importorskip("transformers", reason="the language models' extra is not installed")
    code = "import cs330ray\nfor each in sys.argv[1:]: assert cs330ray.load(each)"
    systems = ["protonet", "maml", "mann", "multitask", "finetune", "icl"]
    exported = [str(ROOT / "tests" / "before" / "exports" / system) for system in systems]
    assert changed(code, *exported, before="import torch._dynamo", CS330RAY_DEVICE="cpu") == {}


def test_the_hub_of_models_sends_no_telemetry_and_the_environment_stays_as_it_was() -> None:
    code = """
from cs330ray.course.pretrained.library import settle_hub
settle_hub()
from huggingface_hub import constants
assert constants.HF_HUB_DISABLE_TELEMETRY and constants.HF_HUB_DISABLE_PROGRESS_BARS
"""
    assert changed(code) == {}


def test_reproducing_a_trial_loads_neither_ray_nor_the_service(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "before" / "home", tmp_path / "runs")
    code = """
import sys
from cs330ray.cli.app import main
try:
    main()
finally:
    print("ray" in sys.modules, "cs330ray.service" in sys.modules)
"""
    out = said(code, "reproduce", "slope", "0", "--cell", "body=flat", CS330RAY_HOME=str(tmp_path / "runs"))
    assert "equal: " in out
    assert out.splitlines()[-1] == "False False"
