"""docs/guide/your-own-code.md does what it says: its module and its study run as a reader would run them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from cs330ray.ledger import confirm
from cs330ray.ledger.writer import Writer
from cs330ray.spec.reading import parse
from cs330ray.trial import named
from cs330ray.trial.contract import Trainable
from tests.cli.test_cli import ran

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guide" / "your-own-code.md").read_text()
SMALL = ["budget.trials=2", "budget.steps=4", "compare.inner_steps=[2]", "fixed.eval_every_steps=2",
         "fixed.eval_tasks=20", "prune.kind=none", "confirm.seeds=2"]  # fmt: skip

SETS = [word for text in SMALL for word in ("--set", text)]


def done(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command there as a reader does, with PYTHONPATH=. and the package."""
    path = os.pathsep.join([".", str(ROOT / "src"), *environment.pop("more_path", "").split()])
    given = os.environ | {"PYTHONPATH": path} | environment
    return subprocess.run([sys.executable, *command], cwd=folder, env=given, capture_output=True, text=True)


def test_the_module_is_short_enough_to_be_read() -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def train" in block]
    assert len([line for line in code.splitlines() if line.strip()]) < 70


@pytest.mark.slow
def test_its_study_runs_through_the_service_and_is_confirmed_and_reproduced(
    your_own: Path, home: Path, ray_here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(capsys, "run", str(your_own / "reptile-sine.toml"), *SETS)
    assert code == 0
    assert "inner_steps=2: 2 COMPLETE; best is trial" in out
    assert "(chance 4.252)" in out
    ledger = Writer.at(home)
    study = ledger.study("reptile-sine")
    ((one,),) = confirm.confirmed(ledger, study).values()
    assert [len(run.test) for run in one.complete] == [1, 1]
    code, out, _ = ran(capsys, "reproduce", "reptile-sine", "0")
    assert (code, out.splitlines()[-1][:6]) == (0, "equal:")


def test_the_page_counts_the_names_that_its_module_must_have() -> None:
    needed = {name for name in vars(Trainable) if not name.startswith("_")} | set(Trainable.__annotations__)
    assert needed == {"Config", "METRICS", "prepare", "train", "test"}
    assert "a module with five names, and a sixth if you like" in PAGE
    assert "`chance(config)`, if you like" in PAGE


def test_the_cell_that_the_page_reproduces_is_one_of_its_study() -> None:
    (cell,) = re.findall(r"cs330ray reproduce reptile-sine 0 --cell (\S+)", PAGE)
    raw = tomllib.loads(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0])
    assert cell in [each.title for each in parse(raw, "page").cells]


@pytest.mark.slow
def test_with_the_directory_on_the_path_as_the_page_says_the_trials_find_the_module_too(
    your_own: Path, home: Path, ray_here: str
) -> None:
    path = os.pathsep.join(word for word in os.environ["PYTHONPATH"].split(os.pathsep) if word != str(your_own))
    ended = done(your_own, "-m", "cs330ray", "run", "reptile-sine.toml", *SETS, RAY_ADDRESS="", more_path=path)
    assert ended.returncode == 0, ended.stderr
    assert "inner_steps=2: 2 COMPLETE; best is trial" in ended.stdout


def test_without_the_directory_on_the_path_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0].replace("mine.reptile", "elsewhere.reptile")
    (tmp_path / "study.toml").write_text(text)
    code, _, err = ran(capsys, "run", str(tmp_path / "study.toml"))
    assert (code, err.count("\n")) == (2, 1)
    assert "set PYTHONPATH to the directory that holds elsewhere/reptile.py" in err


def test_the_local_loop_of_the_page_prints_a_row_at_every_fiftieth_step(
    your_own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (loop,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "for progress in" in block]
    exec(loop, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["50", "100"]


def test_what_guessing_zero_reaches_is_half_the_mean_squared_amplitude(your_own: Path) -> None:
    """From the waves themselves: the mean square of what is to be predicted, over 20,000 of them."""
    module = named.load("mine.reptile")
    _, y = module.waves(torch.Generator().manual_seed(0), 20_000, 20)
    assert module.chance(module.Config())["val_mse"] == pytest.approx(y.square().mean().item(), rel=0.02)


def test_a_module_that_was_written_to_an_older_page_still_runs(your_own: Path, tmp_path: Path) -> None:
    """It takes its streams of random numbers from where they were, and is told where they are now."""
    written = (your_own / "mine" / "reptile.py").read_text()
    new, old = "from cs330ray.training.device import generator", "from cs330ray.runtime import generator"
    assert new in written
    (tmp_path / "older.py").write_text(written.replace(new, old))
    loop = "import older; print([p.metrics for p in older.train(older.Config(eval_every_steps=2), 0, 4)])"
    ended = done(tmp_path, "-W", "default", "-c", loop)
    same = done(your_own, "-c", loop.replace("older", "mine.reptile"))
    assert ended.returncode == same.returncode == 0, ended.stderr + same.stderr
    assert ended.stdout == same.stdout
    assert "DeprecationWarning: cs330ray.runtime has moved: import its names from cs330ray.training" in ended.stderr


def test_it_learns_to_learn(your_own: Path) -> None:
    module = named.load("mine.reptile")
    config = module.Config(eval_every_steps=60, eval_tasks=50)
    (last,) = [progress.metrics["val_mse"] for progress in module.train(config, 0, 60)]
    (untrained,) = [progress.metrics["val_mse"] for progress in module.train(config, 0, 1)]
    assert last < 0.75 * untrained


@pytest.mark.slow
def test_it_passes_the_suite_that_the_page_hands_over(your_own: Path) -> None:
    (command,) = re.findall(r"^PYTHONPATH=\.:src (pytest test_mine\.py .*)$", PAGE, re.MULTILINE)
    ended = done(your_own, "-m", *command.split(), "-q", "-p", "no:cacheprovider", more_path=str(ROOT))
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"^1\d passed, \d+ deselected", ended.stdout.splitlines()[-1])
