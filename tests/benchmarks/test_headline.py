"""The headline comparison: that its arms train the same, that its ratios are what it says, and that nothing stays."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.headline_arms import ours, plain, protocol, running
from benchmarks.headline_arms.arms import ARMS, SMALLEST, Arm, Size, task
from benchmarks.headline_arms.running import Ran
from rich.console import Console

from benchmarks import auditor, headline
from cs330ray.cli.live import StudyConsole
from cs330ray.ledger.records import Ending
from cs330ray.service.search.ask import ask
from cs330ray.spec import reading
from cs330ray.spec.study import Study

ROOT = Path(__file__).parents[2]
RAN = Ran(wall_s=10.0, cpu_s=0.0, first_s=0.0, values={0: 0.9}, choice=0, test=[0.8, 0.8], twice=0)
SLEEPS = """
import json, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
print("trial 0 COMPLETE", flush=True)
begun = folder / "begun"
if not begun.exists():
    begun.touch()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    time.sleep(600)
(folder / "answer.json").write_text(json.dumps({"values": {"0": 0.5, "1": 0.25}, "choice": 1, "test": [0.75]}))
"""


def study(tmp_path: Path, arm: str = "ours") -> Study:
    file = tmp_path / "headline.toml"
    file.write_text(ARMS[arm].study(Size("planted")))
    return reading.read(file, [])


def script(text: str) -> Arm:
    return Arm(lambda folder: ["-c", text, str(folder)])


def test_the_rivals_have_the_points_that_the_service_asks_for(tmp_path: Path) -> None:
    found, history = study(tmp_path), []
    (cell,) = found.cells
    told = task(found, Size("planted"))
    for point in told["points"]:
        history.append(ask(found, cell, ("min",), history))
        assert history[-1].params == {name: value for name, value in point.items() if name != "seed"}
    assert len(history) == 12
    assert len({point["seed"] for point in told["points"]} | {*told["fresh_seeds"]}) == 12 + 3


def test_both_learners_reach_the_same_validation_and_test() -> None:
    """float32 on the same batches: sums in another order, over an epoch of steps."""
    params = {"lr": 3e-3, "factorization_weight": 0.7, "weight_decay": 1e-5, "seed": 7}
    (expected,) = ours.rows(params, "planted", 1, None, test=True)
    (found,) = plain.rows(params, "planted", 1, plain.read("planted"), test=True)
    assert set(found) == {"val_mse", "test_mse"}
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_line_that_the_service_prints_tells_which_trial_has_ended(tmp_path: Path) -> None:
    found, printed = study(tmp_path), io.StringIO()
    (cell,) = found.cells
    console = StudyConsole(found, ("min",))
    console.out = Console(file=printed, width=80)
    complete, failed = Ending("COMPLETE"), Ending("FAIL", "diverged: the loss is inf", cause="diverged")
    for one, number, ending in ((cell, 3, complete), (cell.under(1), 11, complete), (cell, 4, failed)):
        console.ended(one, number, {"lr": 0.001}, ending, (0.9,))
    assert running.ENDED.findall(printed.getvalue()) == [("3", ""), ("11", "1")]


@pytest.mark.parametrize("fused", [False, True])
def test_a_ratio_is_an_arms_median_over_that_of_the_service_at_its_best(fused: bool) -> None:
    walls = {"plain": (90.0, 50.0, 60.0), "tune": (15.0,), "optuna": (9.0,), "ours": (10.0,)}
    walls |= {"ours fused": (5.0,)} if fused else {}
    whole = {name: [replace(RAN, wall_s=wall_s) for wall_s in taken] for name, taken in walls.items()}
    killed = {name: [replace(RAN, wall_s=2 * taken[0])] for name, taken in walls.items()}
    expected = [12.0, 3.0, 1.8, 18.0] if fused else [6.0, 1.5, 0.9, 9.0]
    names = ["ratio_plain", "ratio_tune_same_learner", "ratio_optuna_same_learner", "ratio_killed"]
    assert headline.figures(whole, killed) == {**dict(zip(names, expected, strict=True)), "choice_equal": True}
    assert headline.figures(whole, {})["ratio_killed"] is None


@pytest.mark.parametrize("kill", [False, True])
def test_where_an_arm_chooses_another_trial_the_turn_says_so(kill: bool) -> None:
    whole, killed = ({name: [RAN, RAN] for name in ("plain", "tune", "optuna", "ours")} for _ in range(2))
    (killed if kill else whole)["tune"][1] = replace(RAN, choice=5)
    assert list(headline.odd("here", killed if kill else whole, RAN)) == ["here, turn 2: tune chose trial 5, not 0"]
    assert headline.figures(whole, killed)["choice_equal"] is False


def test_where_an_arm_has_lost_trials_the_turn_says_so() -> None:
    expected = replace(RAN, values={0: 0.9, 3: 0.9, 11: 0.9})
    assert list(headline.odd("killed", {"tune": [RAN]}, expected)) == ["killed, turn 1: tune lost trial 3, 11"]


def test_a_rival_that_has_lost_trials_chooses_among_the_others(tmp_path: Path) -> None:
    points = [{"lr": 0.1, "seed": 1}, {"lr": 0.2, "seed": 2}, {"lr": 0.3, "seed": 3}]
    found = {"trial 0": 0.5, "trial 2": 0.4, "trial 0 on fresh seed 1": 0.3, "trial 2 on fresh seed 0": 0.6}

    def fit(experiment: str, points: dict[str, Any], *, test: bool) -> dict[str, dict[str, float]]:
        assert test is (experiment == "fresh")
        return {name: {"val_mse": found[name], "test_mse": found[name]} for name in points if name in found}

    protocol.answer(tmp_path, {"points": points, "fresh_seeds": [7, 8], "top": 2}, fit)
    assert running.answer_of(tmp_path) == ({0: 0.5, 2: 0.4}, 0, [0.3])


def test_the_table_says_what_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arm, "is_built", property(lambda arm: not arm.fused))
    lines = list(headline.table({name: [RAN] for name in ("plain", "tune", "optuna", "ours")}))
    assert "ours fused  not built" in lines


def test_a_comment_or_a_docstring_is_no_line_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '"""Say\nmuch."""\n\n# why\n\n\ndef work(\n    one,\n    other,\n):\n    """Work."""\n    return one\n'
    (tmp_path / "module.py").write_text(text)
    monkeypatch.setattr("benchmarks.headline_arms.arms.SCRIPTS", tmp_path)
    assert Arm(lambda folder: [], ("module",)).lines == 2


# Running -------------------------------------------------------------------------------------------------------------


def test_an_arm_that_is_killed_is_run_again_and_leaves_nothing(tmp_path: Path) -> None:
    ran = running.run(script(SLEEPS), SMALLEST, tmp_path / "arm", kill_s=2.0)
    assert ran.wall_s > 2
    assert ran.first_s < ran.wall_s
    assert (ran.values, ran.choice, ran.test) == ({0: 0.5, 1: 0.25}, 1, [0.75])
    assert ran.twice == 1
    assert list(auditor.processes([str(tmp_path)])) == []


def test_an_arm_that_fails_ends_all_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 3:\nno luck"):
        running.run(script("print('no luck'); raise SystemExit(3)"), SMALLEST, tmp_path / "arm")


def test_processor_seconds_are_those_of_all_processes_of_an_arm(tmp_path: Path) -> None:
    """Two processes that work for two seconds each: what is not sampled is half a second of either."""
    works = """
import json, pathlib, subprocess, sys
busy = "import time\\nwhile time.process_time() < 2: pass"
children = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(2)]
codes = [child.wait() for child in children]
text = json.dumps({"values": {"0": 1.0}, "choice": 0, "test": [1.0]})
pathlib.Path(sys.argv[1], "answer.json").write_text(text)
"""
    ran = running.run(script(works), SMALLEST, tmp_path / "arm")
    assert 2.9 <= ran.cpu_s <= 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_comparison_that_is_ended_leaves_no_process_and_no_folder(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import signal, sys
from benchmarks.headline_arms import running
from benchmarks.headline_arms.arms import SMALLEST, Arm
from benchmarks.workplace import workplace
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with workplace("head-") as work:
    print(work, flush=True)
    running.run(Arm(lambda folder: ["-c", {SLEEPS!r}, str(folder)]), SMALLEST, work / "arm")
"""
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    work = Path(process.stdout.readline().strip())
    try:
        wait_until(lambda: (work / "arm" / "begun").exists())
    finally:
        process.send_signal(number)
    process.communicate()
    wait_until(lambda: not work.exists() and not list(auditor.processes([str(work)])))


def wait_until(holds: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_answer_of_a_rival_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(json.dumps({"values": {"10": 0.5}, "choice": 10, "test": [0.1, 0.2]}))
    assert running.answer_of(tmp_path) == ({10: 0.5}, 10, [0.1, 0.2])
