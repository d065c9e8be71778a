# ruff: noqa: E501 - each line of the table is one that a person reads
"""`cs330ray check`: what keeps the contract, and for each way to break it the promise that is found broken."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cs330ray.errors import ContractError
from cs330ray.trial import named, promises
from cs330ray.trial.run import run_alone
from tests.cli.test_cli import ran

SOUND = """\
import json, os, random, time
import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from cs330ray.trial import Item, Metric, Progress, Scores, Weights
METRICS = {"val_loss": Metric("min", low=0.0), "test_loss": Metric("min")}
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    x: float = Field(0.5, ge=-10, le=10)
    eval_every_steps: int = Field(50, ge=1)
def prepare(config):
    return "data"
def train(config, seed, steps, resume=None):
    draws, step, value = random.Random(seed), 0, 1.0
    if resume is not None:
        step, value, state = json.loads((resume / "state.json").read_text())
        draws.setstate((state[0], tuple(state[1]), state[2]))
    def save(directory):
        (directory / "state.json").write_text(json.dumps([step, value, draws.getstate()]))
    while step < steps:
        step += 1
        value = value * (0.5 + draws.random() / 2)
        if step % config.eval_every_steps == 0 or step == steps:
            yield Progress(step, {"val_loss": value}, save)
def test(config, seed, checkpoint):
    value = json.loads((checkpoint / "state.json").read_text())[1]
    return Scores({"test_loss": value}, {"test_loss": [Item("a", value), Item("b", value)]})
"""
DECLARES, STRICT, DEFAULTS, PREPARES, CHANCE, TRAINS, SAME, RANDOM, RESUMES, LONGER, TESTS, EXPORTS = promises.NAMES
YIELDS = 'yield Progress(step, {"val_loss": value}, save)'
WRITES = '(directory / "state.json").write_text('
RETURNS = 'return Scores({"test_loss": value}, {"test_loss": [Item("a", value), Item("b", value)]})'
LAST = "def prepare"

# name: (what is replaced, by what, the promise that is broken, what is said of it)
BROKEN = {
    "ignores_resume": ("if resume is not None:", "if False:", RESUMES, "yielded step 1 after resuming from 1; `train` must continue from the checkpoint `resume`"),
    "forgets_draws": ("draws.setstate((state[0], tuple(state[1]), state[2]))", "pass", RESUMES, None),
    "by_steps": ("value * (0.5", "value * steps / 9 * (0.5", LONGER, None),
    "by_clock": ("value * (0.5", "value * (time.perf_counter_ns() % 997 / 997) * (0.5", SAME, None),
    "by_global": ("draws.random() / 2)", "np.random.random() / 2)", SAME, None),
    "draws_global": ("step += 1", "step += 1; random.random()", RANDOM, "training draws from the global random numbers of random; use its own generator"),
    "goes_back": ("Progress(step,", "Progress(max(1, step % 3),", TRAINS, "yielded step 1 after step 2; steps must rise"),
    "repeats": (YIELDS, f"{YIELDS}; {YIELDS}", TRAINS, "yielded step 1 after step 1; steps must rise"),
    "from_zero": ("Progress(step,", "Progress(step - 1,", TRAINS, "yielded step 0; the first is 1"),
    "too_far": ("Progress(step,", "Progress(step * 3,", TRAINS, "yielded step 6, but the trial has 4; end with a row at `steps`"),
    "real_step": ("Progress(step,", "Progress(float(step),", TRAINS, "step must be a whole number, got 1.0"),
    "tuple_row": ("Progress(step, {\"val_loss\": value}, save)", "(step, value)", TRAINS, "train must yield Progress, got tuple"),
    "no_rows": ("while step < steps:", "while False:", TRAINS, "`train` yielded no Progress in 4 steps; it must yield one at the last step"),
    "returns": (YIELDS, "pass", TRAINS, "train must `yield` Progress as it trains, got None"),
    "raises": ("step += 1", "step += 1; [][step]", TRAINS, "IndexError: list index out of range (held/raises.py:20)"),
    "in_a_list": ("def train(", "def train(*given): return list(rows(*given))\ndef rows(", TRAINS, "train must `yield` Progress as it trains, got list"),
    "nothing_declared": ('{"val_loss": value}, save', '{"loss": value}, save', TRAINS, "no row holds a metric that METRICS declares, so there is nothing to rank trials by"),
    "below": ('{"val_loss": value}, save', '{"val_loss": -1}, save', TRAINS, "val_loss is -1 in step 1, outside its declared bounds [0, inf]; correct METRICS or the metric"),
    "nan": ('{"val_loss": value}, save', '{"val_loss": float("nan")}, save', TRAINS, "step 1: val_loss must be finite, got nan; a loss goes through cs330ray.trial.finite"),
    "words": ('{"val_loss": value}, save', '{"val_loss": "low"}, save', TRAINS, "step 1: val_loss must be a number, got 'low'"),
    "saves_nothing": (WRITES, "str(", TRAINS, "save wrote no file; write all that the rest of the training depends on"),
    "links": (WRITES, '(directory / "link").symlink_to("/etc"); ' + WRITES, TRAINS, "save wrote link, a link that leads to no file of the checkpoint; write the file"),
    "names_files": (WRITES, '(directory / "MANIFEST.json").write_text("{}"); ' + WRITES, TRAINS, "save must not write MANIFEST.json, which names the files of a checkpoint; take another name"),
    "save_fails": (WRITES, '(directory / "no" / "state.json").write_text(', TRAINS, None),
    "two_digests": ('return "data"', "return str(time.perf_counter_ns())", PREPARES, None),
    "open_config": ('extra="forbid", ', "", STRICT, 'write model_config = ConfigDict(extra="forbid", frozen=True): a typo must not be taken'),
    "thawed": (", frozen=True", "", STRICT, 'write model_config = ConfigDict(extra="forbid", frozen=True): a typo must not be taken'),
    "no_default": ("    eval_every", "    root: str\n    eval_every", DEFAULTS, "root: a value is expected, since Config has no default for it; write one under [fixed]"),
    "chance": (LAST, "def chance(config): return {'loss': 1}\ndef prepare", CHANCE, "held.chance: `chance` must speak of val_loss, test_loss, got 'loss'"),
    "taken": ('"test_loss": Metric("min")', '"step": Metric("min")', DECLARES, None),
    "two_scores": (RETURNS, "return Scores({'test_loss': float(time.perf_counter_ns())})", TESTS, "the same checkpoint has two scores"),
    "other_items": ('Item("b", value)', 'Item("b", value + 2)', TESTS, None),
    "items_of_none": ('{"test_loss": [Item', '{"loss": [Item', TESTS, "test: items are behind a metric, but there is none named 'loss'"),
    "plain_scores": (RETURNS, 'return {"test_loss": value}', TESTS, "test must return Scores, got dict"),
    "text_score": (RETURNS, 'return Scores({"test_loss": str(value)})', TESTS, None),
    "nan_test": (RETURNS, "return Scores({'test_loss': float('inf')})", TESTS, "ValueError: test_loss must be finite, but got inf"),
    "exports": (LAST, "def export(config, seed, checkpoint): return {}\ndef prepare", EXPORTS, "`export` must return a cs330ray.trial.Weights, got {}"),
    "odd_notes": (LAST, "def export(config, seed, checkpoint): return Weights({}, {'a': float('nan')})\ndef prepare", EXPORTS, None),
    "not_ready": (LAST, "def export(config, seed, checkpoint): return Weights({})\ndef ready(config, exported): raise KeyError('w')\ndef prepare", EXPORTS, "KeyError: 'w' (held/not_ready.py:11)"),
}  # fmt: skip
RECORDED = {
    "no_rows",
    "nothing_declared",
    "below",
    "nan",
    "raises",
    "save_fails",
}  # as it is, or in the trainable's words
TAKEN = {
    "undeclared": ('{"val_loss": value}, save', '{"val_loss": value, "epoch": 1}, save'),
    "links_within": (WRITES, '(directory / "latest").symlink_to("state.json"); ' + WRITES),
    "links_in_folders": (WRITES, '(directory / "old").mkdir(); (directory / "old" / "a").symlink_to("../state.json"); ' + WRITES),
    "numpy_step": ("Progress(step,", "Progress(np.int64(step),"),
    "numpy_metric": ('{"val_loss": value}, save', '{"val_loss": np.array(value)}, save'),
    "never_ends": ("while step < steps:", "while True:"),
}  # fmt: skip
ALSO = {
    **TAKEN,
    "sound": ("", ""),
    "hangs": ("step += 1", "step += 1; time.sleep(600)"),
    "quits": ("step += 1", "step += 1; print('gone', flush=True); os._exit(3)"),
}


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A directory on the path, and the current one, whose package `held` has the modules of the table."""
    folder = tmp_path_factory.mktemp("promises")
    (folder / "held").mkdir()
    for name, (old, new, *_) in {**BROKEN, **ALSO}.items():
        assert old in SOUND, name
        (folder / "held" / f"{name}.py").write_text(SOUND.replace(old, new) if old else SOUND)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        patch.chdir(folder)
        yield
    for name in [name for name in sys.modules if name.split(".")[0] == "held"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_promise_is_found_by_it_first(name: str, tmp_path: Path) -> None:
    found = list(promises.tested(f"held.{name}", {}, 4, tmp_path))
    broken = next(one for one in found if one.holds is not True)
    _, _, promise, said = BROKEN[name]
    assert (broken.name, broken.holds) == (promise, False)
    assert said is None or broken.said == said
    assert "\n" not in broken.said


def reason_of_a_run(name: str, home: Path) -> str:
    """Why a run of four steps, with a checkpoint of each, is refused; nothing where it is not."""
    trainable = named.load(f"held.{name}")
    try:
        list(run_alone(trainable, trainable.Config(eval_every_steps=1), promises.SEED, 4, home, save_every_steps=1))
    except ContractError as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_study_takes_holds(name: str, tmp_path: Path) -> None:
    assert reason_of_a_run(name, tmp_path / "run") == ""
    assert [one for one in promises.tested(f"held.{name}", {}, 4, tmp_path / "check") if not one.holds] == []


@pytest.mark.parametrize("name", [name for name, row in BROKEN.items() if row[2] == TRAINS and name not in RECORDED])
def test_what_a_study_refuses_is_broken_in_the_same_words(name: str, tmp_path: Path) -> None:
    found = promises.tested(f"held.{name}", {}, 4, tmp_path / "check")
    assert next(one.said for one in found if not one.holds) == reason_of_a_run(name, tmp_path / "run") != ""


def test_what_nothing_shows_is_not_tested_rather_than_held(tmp_path: Path) -> None:
    found = {one.name: one.holds for one in promises.tested("held.no_rows", {}, 4, tmp_path)}
    assert [found[name] for name in (TRAINS, SAME, RANDOM, RESUMES, LONGER, TESTS)] == [False, *[None] * 5]


def test_what_keeps_the_contract_holds_every_promise(tmp_path: Path) -> None:
    found = list(promises.tested("held.sound", {}, 4, tmp_path))
    assert [(one.name, one.holds) for one in found] == [
        (name, True) for name in promises.NAMES if name not in (CHANCE, EXPORTS)
    ]


def test_the_command_prints_a_table_and_writes_nothing_at_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capsys, "check", "held.sound", "--set", "x=0.25")
    assert code == 0
    assert out.splitlines()[-1] == "held.sound: all 10 promises hold"
    assert out.count("holds  ") == 10
    assert not home.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["held.ignores_resume"], "held.ignores_resume: 2 of 10 promises broken, 0 not tested; see"),
        (["held.quits"], "held.quits: its process ended with 3: gone; 0 of 12 promises broken, "),
        (
            ["held.hangs", "--limit", "5"],
            "held.hangs: it took more than 5s; make it smaller with --set, or raise --limit; ",
        ),
        (["held.sound", "--set", "y=1"], "held.sound: 1 of 10 promises broken, "),
        (["held.sound", "--set", "y"], "--set y: FIELD=VALUE is expected; for example --set batch=4"),
    ],
)
def test_what_is_broken_or_could_not_be_tested_ends_in_a_line_and_exit_code_2(
    words: list[str], line: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "check", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(line)
