"""Fixtures of all tests: one Ray per run, and a home of its own for every test that wants one."""

import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cs330ray.quiet import quiet
from tests.made_study import made_home  # noqa: F401 - fixtures of several rooms
from tests.postgres import backend, database, postgres  # noqa: F401
from tests.templates import quick_databases  # noqa: F401

quiet()  # before any test imports Ray or MLflow
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run beside one another
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as images of containers have it: the tests start many processes
sys.dont_write_bytecode = False
os.environ.pop("COLUMNS", None)  # tables are printed as into a pipe, in whatever terminal the tests run
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:  # under `nohup`, or behind `&` in a script: tests send these signals
        signal.signal(number, usual)
settings.register_profile("beside others", deadline=None)
settings.load_profile("beside others")

ROOT = Path(__file__).parents[1]
if "CS330RAY_DATA" not in os.environ and (ROOT.parent / "shared" / "data").is_dir():
    os.environ["CS330RAY_DATA"] = str(ROOT.parent / "shared" / "data")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on Ray, which take longest: no process is left with one when the others are done."""
    items.sort(key=lambda item: "ray_here" not in getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """Leave all that was imported and collected out of every later search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where CS330RAY_NO_SKIPS says that this machine can run every test, and one was skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CS330RAY_NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def ray_here(your_own: Path) -> Iterator[str]:
    """The one Ray of the run, with two slots; its address, for the processes that a test starts."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "src"), str(your_own), os.environ.get("PYTHONPATH", "")]
    )
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = ray.init(
            address="local", num_cpus=2, num_gpus=0, include_dashboard=False,
            log_to_driver=False, logging_level="CRITICAL",
            object_store_memory=128 * 1024**2,
        )  # fmt: skip
    yield context.address_info["gcs_address"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.shutdown()


@pytest.fixture(scope="session")
def your_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with what docs/guide/your-own-code.md tells a reader to write; `mine.reptile` is importable."""
    folder = tmp_path_factory.mktemp("your-own")
    page = (ROOT / "docs" / "guide" / "your-own-code.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if (named := re.match(r"# (\S+\.py)\n", code)) is not None:
            (folder / named[1]).parent.mkdir(exist_ok=True)
            (folder / named[1]).write_text(code)
    (study,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (folder / "reptile-sine.toml").write_text(study)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of studies, with MLflow in it."""
    monkeypatch.setenv("CS330RAY_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("CS330RAY_LEDGER", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "runs"
