"""The arms of `benchmarks/headline.py`: the task, each arm's command, and what a user writes for it."""

import ast
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs330ray.service.search import points
from cs330ray.spec import reading
from cs330ray.spec.study import Study, fresh_seed, trial_seed
from cs330ray.spec.tables import Resources

SCRIPTS = Path(__file__).parent
NAME = "headline"
FUSED = 3  # trials that train together: both 12 and 6 are then as much work for each of two slots
STUDY = """
name = "headline"
trainable = "multitask"
objective = "val_mse_last"
[fixed]
dataset = "{dataset}"
[search]
lr = {{ low = 3e-4, high = 1e-2, log = true }}
factorization_weight = {{ low = 0.5, high = 0.999 }}
weight_decay = {{ low = 1e-7, high = 1e-4, log = true }}
[sampler]
kind = "qmc"
[budget]
trials = {trials}
steps = {epochs}
[resources]
slots = 2
[confirm]
top = {top}
seeds = {seeds}
"""


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    dataset: str
    trials: int = 12
    epochs: int = 15
    top: int = 2
    seeds: int = 3


SMALLEST = Size("planted", trials=2, epochs=1, top=1, seeds=1)


@dataclass(frozen=True)
class Arm:
    """One way to the answer: its command in a folder, and the modules that a user writes for it, if not a study."""

    words: Callable[[Path], list[str]]
    modules: tuple[str, ...] = ()
    fused: bool = False

    @property
    def is_built(self) -> bool:
        """Whether this package has what the arm needs."""
        return not self.fused or "fuse" in Resources.model_fields

    def study(self, size: Size) -> str:
        """The study file."""
        text = STUDY.format(**vars(size))
        return text.replace("slots = 2", f"slots = 2\nfuse = {FUSED}") if self.fused else text

    @property
    def lines(self) -> int:
        """How many lines a user writes: without comments and docstrings, one a statement or a line of a study."""
        text = statements(self.modules) if self.modules else self.study(SMALLEST)
        return len([line for line in text.splitlines() if line.strip()])


def statements(modules: Sequence[str]) -> str:
    """The statements of modules, one a line; those of the course's net and loops too, where one trains its way."""
    sources = [(SCRIPTS / f"{module}.py").read_text() for module in modules]
    if "plain" in modules:
        from benchmarks.multitask_epoch import PlainNet, plain_epoch, plain_evaluate  # here: it imports much

        sources += [inspect.getsource(one) for one in (PlainNet, plain_epoch, plain_evaluate)]
    return "\n".join(ast.unparse(_without_docstrings(ast.parse(source))) for source in sources)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _script(name: str, *given: str) -> Callable[[Path], list[str]]:
    return lambda folder: [str(SCRIPTS / name), *given, str(folder)]


def _service(folder: Path) -> list[str]:
    return ["-m", "cs330ray", "run", str(folder / f"{NAME}.toml")]


ARMS = {
    "plain": Arm(_script("with_tune.py", "plain"), ("with_tune", "protocol", "plain")),
    "tune": Arm(_script("with_tune.py", "ours"), ("with_tune", "protocol", "ours")),
    "optuna": Arm(_script("with_optuna.py"), ("with_optuna", "protocol", "ours")),
    "ours": Arm(_service),
    "ours fused": Arm(_service, fused=True),
}


def prepare(arm: Arm, size: Size, folder: Path) -> None:
    """Write what an arm's command reads: the study, and the same as points and seeds for those that know no study."""
    folder.mkdir(parents=True)
    (folder / "r").mkdir()
    file = folder / f"{NAME}.toml"
    file.write_text(arm.study(size))
    (folder / "task.json").write_text(json.dumps(task(reading.read(file, []), size)))


def task(study: Study, size: Size) -> dict[str, Any]:
    """The points and seeds that the service gives the trials of a study, and how they train."""
    (cell,) = study.cells
    return {
        "dataset": size.dataset, "epochs": size.epochs, "top": size.top,
        "points": [
            points.common(study, cell, number) | {"seed": trial_seed(study.seed, number)}
            for number in range(size.trials)
        ],
        "fresh_seeds": [fresh_seed(study.seed, index) for index in range(size.seeds)],
    }  # fmt: skip
