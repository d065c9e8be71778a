"""A study of commands: killed, resumed, pruned, confirmed and run again, one that saves and one that does not."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from cs330ray.ledger.records import Row, Trial
from cs330ray.ledger.writer import Writer
from cs330ray.reproduce import rerun
from cs330ray.service.run import run
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from tests.trial.test_child import PREFIX, left

pytestmark = pytest.mark.usefixtures("ray_here")

STEPS = 12
TRAIN = (
    PREFIX
    + """
def value(x, step, seed, steps):
    return x * step + seed % 7 + steps / 64  # as a schedule by the budget would
x, saves, begin = float(sys.argv[3]), sys.argv[4] == "true", 0
if "CS330RAY_RESUME" in os.environ:
    begin = int(open(os.path.join(os.environ["CS330RAY_RESUME"], "weights.txt")).read())
for step in range(begin + 1, steps + 1):
    told = {"step": step, "val_accuracy": value(x, step, seed, steps)}
    if saves and step % 4 == 0:
        told["checkpoint"] = checkpoint(step, str(step))
    row(**told)
    died = f"../died-{saves}"
    if step == 6 and not os.path.exists(died):
        open(died, "w").close()
        time.sleep(1.5)  # for its rows to be recorded
        os.kill(os.getppid(), 9)
        time.sleep(600)
"""
)
TEST = PREFIX.replace("seed, steps", "_") + (
    "row(test_accuracy=float(open(os.path.join(sys.argv[3], 'weights.txt')).read()))"
)


def study(folder: Path, **changes: Any) -> Study:
    (folder / "train.py").write_text(TRAIN)
    (folder / "test.py").write_text(TEST)
    words = ["python", "train.py", "{seed}", "{steps}", "{x}", "{saves}"]
    raw = {
        "name": "own",
        "trainable": "command",
        "objective": ["val_accuracy"],
        "command": {
            "run": words,
            "test": ["python", "test.py", "{seed}", "{steps}", "{checkpoint}"],
            "metrics": {"val_accuracy": "max"},
            "folder": str(folder),
        },
        "compare": {"saves": [True, False]},
        "search": {"x": {"low": 0.1, "high": 1.0}},
        "budget": {"trials": 1, "steps": STEPS},
        "confirm": {"seeds": 1},
    }
    return parse({**raw, **changes}, "own")


def values(trial: Trial, budget: int, steps: range) -> dict[int, float]:
    """What the script reports at some steps of a budget."""
    return {step: trial.params["x"] * step + trial.seed % 7 + budget / 64 for step in steps}


def test_a_killed_command_resumes_where_it_saved_or_begins_again_and_its_earlier_rows_are_set_aside(
    tmp_path: Path,
) -> None:
    folder, home = tmp_path / "code", tmp_path / "home"
    folder.mkdir()
    asked = study(folder)
    run(asked, home, mirror=False)
    ledger = Writer.at(home)
    saver, forgetter = asked.cells
    found = {}
    for cell in (saver, forgetter):
        (trial,) = ledger.trials(asked, cell)
        resumed = [start["resumed_from_step"] for start in ledger.attempts(asked, cell, 0)]
        rows = {row.step: row.metrics["val_accuracy"] for row in ledger.rows(asked, cell, 0)}
        assert rows == values(trial, STEPS, range(1, STEPS + 1))
        found[cell.title] = (trial.state, resumed, ledger.superseded(asked, cell, 0))
    assert found == {
        "saves=True": ("COMPLETE", [None, 4], 2),  # steps 5 and 6
        "saves=False": ("COMPLETE", [None, None], 6),
    }
    kept = ledger.kept(asked, saver, 0)
    assert kept is not None
    assert kept.step == STEPS
    assert ledger.test_metrics(asked, saver.under(0), 0) == {"test_accuracy": STEPS}
    untested = ledger.untested(asked, forgetter.under(0), 0)
    assert untested is not None
    assert untested[0] == "there is no checkpoint to test: none was reported"
    assert left(folder) == []

    (trial,) = ledger.trials(asked, saver)
    recorded = rerun.read(ledger, asked, trial)
    rows = []
    with rerun.as_recorded(recorded) as trainable:
        assert rerun.changes(recorded, trainable) == []
        rerun.run(recorded, trainable, tmp_path / "again", rows.append)
    assert [(row.step, row.metrics) for row in rows] == [(row.step, row.metrics) for row in recorded.rows]


@pytest.mark.slow
def test_a_command_is_pruned_whole_and_without_a_test_validation_alone_is_confirmed(tmp_path: Path) -> None:
    folder, home = tmp_path / "code", tmp_path / "home"
    folder.mkdir()
    for died in ("died-True", "died-False"):
        (tmp_path / died).touch()
    asked = study(
        folder,
        compare={},
        fixed={"saves": False},
        search={"x": [0.1, 1.0]},
        sampler={"kind": "qmc"},
        prune={"kind": "asha", "min_steps": 3, "reduction": 2},
        budget={"trials": 4, "steps": STEPS},
        command={
            "run": ["python", "train.py", "{seed}", "{steps}", "{x}", "{saves}"],
            "metrics": {"val_accuracy": "max"},
            "folder": str(folder),
        },
    )
    run(asked, home, mirror=False)
    ledger = Writer.at(home)
    (cell,) = asked.cells
    states = [trial.state for trial in ledger.trials(asked, cell)]
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert ledger.untested(asked, cell.under(0), states.index("COMPLETE")) is None
    assert left(folder) == []
    assert [each for each in psutil.Process().children(recursive=True) if "train.py" in each.name()] == []


@pytest.mark.slow
def test_more_steps_continue_at_the_last_checkpoint_or_begin_again_and_no_curve_is_of_two_trainings(
    tmp_path: Path,
) -> None:
    folder, home, more = tmp_path / "code", tmp_path / "home", 18
    folder.mkdir()
    for died in ("died-True", "died-False"):
        (tmp_path / died).touch()
    run(study(folder, confirm=None, budget={"trials": 1, "steps": STEPS - 2}), home, mirror=False)
    asked = study(folder, confirm=None, budget={"trials": 1, "steps": more})
    run(asked, home, mirror=False)
    ledger = Writer.at(home)
    saver, forgetter = asked.cells
    for cell, began in ((saver, 8), (forgetter, 0)):  # of the ten steps before, those to the last checkpoint stay
        first, second = ledger.trials(asked, cell)
        rows = [(row.step, row.metrics["val_accuracy"]) for row in ledger.rows(asked, cell, first.number)]
        rows += [(row.step, row.metrics["val_accuracy"]) for row in ledger.rows(asked, cell, second.number)]
        earlier = values(first, STEPS - 2, range(1, began + 1))
        assert rows == [*earlier.items(), *values(second, more, range(began + 1, more + 1)).items()]
        assert second.values == (rows[-1][1],)
        recorded, again = rerun.read(ledger, asked, second), list[Row]()
        with rerun.as_recorded(recorded) as trainable:
            rerun.run(recorded, trainable, tmp_path / f"again-{began}", again.append)
        assert [(row.step, row.metrics["val_accuracy"]) for row in again] == rows


HANGS = """
import subprocess
subprocess.Popen(["sleep", "600"])
row(step=1, val_accuracy=0.5)
sys.stdout.write("x" * 3_000_000)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_command_that_hangs_is_ended_with_its_children_and_its_log_stays_small(tmp_path: Path) -> None:
    folder, home = tmp_path / "code", tmp_path / "home"
    folder.mkdir()
    command = {"run": ["python", "hangs.py", "{seed}", "{steps}"], "metrics": {"val_accuracy": "max"}}
    asked = study(
        folder,
        compare={},
        search={},
        command={**command, "folder": str(folder)},
        confirm=None,
        budget={"trials": 1, "steps": STEPS, "fail_share": 1.0},
        resources={"silence": "3s"},
    )
    (folder / "hangs.py").write_text(PREFIX + HANGS)
    run(asked, home, mirror=False)
    ledger = Writer.at(home)
    (trial,) = ledger.trials(asked, asked.cells[0])
    assert (trial.state, trial.cause) == ("FAIL", "silent")
    assert [row.step for row in ledger.rows(asked, asked.cells[0], 0)] == [1]
    assert left(folder) == []
    assert sum(file.stat().st_size for file in home.rglob("log.txt")) < 1_100_000
