"""The command line as a person meets it: one line and exit code 2 for what cannot be meant, and nothing started."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from PIL import Image

from cs330ray.cli import app
from cs330ray.ledger.lease import held
from cs330ray.ledger.records import Ending
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from cs330ray.spec import reading
from cs330ray.spec.study import Study
from tests import in_process
from tests import toy as toy_trainable
from tests.desk import Desk
from tests.service.test_run import dump
from tests.studies_of_tests import toml, toy

MAML = """
name = "bad"
trainable = "maml"
objective = ["val_accuracy"]
[fixed]
dataset = "glyphs"
eval_every_steps = 20
[search]
inner_lr = { low = 0.01, high = 1.0, log = true }
[prune]
kind = "asha"
min_steps = 40
[budget]
trials = 2
steps = 40
"""


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, stdout, stderr."""
    before = sys.argv
    sys.argv = ["cs330ray", *arguments]
    try:
        app.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def study_text(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "bad.toml").write_text(text)
        return str(tmp_path / "bad.toml")

    return write


BAD = [
    ("budget.trails=3", "budget.trails: unknown key (did you mean 'trials'?)"),
    ("surch.x=1", "surch: unknown key (did you mean 'search'?)"),
    ("search.inner_lr.low=2.0", "search.inner_lr: `low < high` must hold, but got low=2.0, high=1.0"),
    ("name='alone'", "name: the home keeps files of its own under 'alone'"),
    ("name='ledger.db'", "name: the home keeps files of its own under 'ledger.db'"),
    ("trainable='.x'", "but got '.x'"),
    ("resources.cpus=1e-7", "resources.cpus: input should be greater than or equal to 0.01, but got 1e-07"),
    ("objective=['val_acuracy']", "but got 'val_acuracy'; did you mean 'val_accuracy'?"),
    ("trainable='mamml'", "but got 'mamml'; did you mean 'maml'?"),
    ("trainable='no.such'", "'no.such' must be importable"),
    ("search.innerlr=[1]", "search.innerlr: maml has no such parameter; did you mean 'inner_lr'?"),
    ("fixed.wayz=5", "fixed.wayz: maml has no such parameter; did you mean 'ways'?"),
    ("fixed.ways=1", "fixed.ways: input should be greater than or equal to 2, but got 1"),
    ("fixed.body='resnet'", "fixed.body: input should be 'course' or 'pooled', but got 'resnet'"),
    ("search.inner_lr={low=1,high=2}", "inner_lr is a real number, but got whole ends; write 1.0 and 2.0"),
    ("search.inner_lr={low=-1.0,high=0.5}", "search.inner_lr: input should be greater than 0, but got -1.0"),
    ("search.inner_steps={low=1.0,high=2.5}", "inner_steps is an integer"),
    ("search.body=['pooled','big']", "search.body: input should be 'course' or 'pooled', but got 'big'"),
    ("no-equals-sign", "--set no-equals-sign: `table.key=value` is needed"),
    ("resources.cpus=1000", "a trial must fit the machine"),
    ("budget.cost=20h", 'budget.cost: expected hours above 0 of GPU or CPU, such as "20 gpu-hours" or'),
    ("budget.cost=20 gpu-hours", "budget.cost: expected trials that take a GPU, but resources.gpus is 0"),
    ("resources.require_gpu=true", "a GPU is needed, but there is none"),
    ("fixed.queries=30", "fixed.queries: input should be less than or equal to 19, but got 30"),
    ("fixed.shots=8", "20 drawings"),
    ("start=['defaul']", "bad.toml: start.0: expected \"default\" or a table such as { inner_lr = 0.1 }, got 'defaul'"),
    ("start=['default', {inner_lr=3.0}]", "bad.toml: start.1.inner_lr: expected from 0.01 to 1.0, got 3.0; write such"),
]


@pytest.mark.parametrize(("override", "fragment"), BAD, ids=[override for override, _ in BAD])
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "run"])
def test_bad_input_is_one_clear_line_with_exit_code_2_and_starts_nothing(
    home: Path,
    study_text: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    override: str,
    fragment: str,
    dry: bool,
) -> None:
    if "GPU" in fragment and __import__("torch").cuda.is_available():
        pytest.skip("there is a GPU here")
    code, _, err = ran(capsys, "run", study_text(MAML), "--set", override, *(["--dry-run"] if dry else []))
    assert code == 2
    assert fragment in err
    assert err.count("\n") == 1
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["run", "nowhere.toml"], "nowhere.toml: a study file must be readable, but No such file or directory; those"),
        (["run", "nowhere.toml"], " mann, mann-memory, "),
        (["show", "nothing"], "a ledger is needed here"),
        (["show", "nothing", "--log"], "--log, --cell and --replicate are of one trial"),
        (["list"], "a ledger is needed here"),
        (["best", "nothing"], "a ledger is needed here"),
        (["sync", "nothing"], "a ledger is needed here"),
        (["delete", "nothing", "--yes"], "a ledger is needed here"),
        (["ui", "--port", "99999"], "99999"),
        (["data", "burn"], "one of list, fetch, verify is needed, but got 'burn'"),
    ],
)
def test_a_command_without_its_object_is_one_clear_line(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fragment: str
) -> None:
    code, _, err = ran(capsys, *arguments)
    assert code == 2
    assert fragment in err
    assert err.count("\n") == 1
    assert not home.exists()


@pytest.fixture
def bare_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of archives, an empty cache, and no network."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("CS330RAY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CS330RAY_OFFLINE", "1")
    return tmp_path / "data"


def on_omniglot(capsys: pytest.CaptureFixture[str], path: str) -> tuple[int, str]:
    code, _, err = ran(capsys, "run", path, "--set", "fixed.dataset='omniglot'")
    return code, err


def test_a_missing_archive_is_one_clear_line_and_starts_nothing(
    home: Path, bare_data: Path, study_text: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = on_omniglot(capsys, study_text(MAML))
    assert (code, err.count("\n")) == (2, 1)
    assert "images_background.zip" in err
    assert "glyphs" in err
    assert not home.exists()


def test_a_truncated_archive_is_one_clear_line_and_is_not_touched(
    home: Path, bare_data: Path, study_text: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = bare_data / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("images_background/A/character01/0001_01.png", b"x" * 5000)
    torn = whole.read_bytes()[:3000]
    (bare_data / "images_background.zip").write_bytes(torn)
    code, err = on_omniglot(capsys, study_text(MAML))
    assert (code, err.count("\n")) == (2, 1)
    assert "images_background.zip" in err
    assert (bare_data / "images_background.zip").read_bytes() == torn
    assert not home.exists()


@pytest.mark.skipif(not os.environ.get("CS330RAY_DATA"), reason="needs the Omniglot archives at CS330RAY_DATA")
def test_a_wrong_pixel_is_one_clear_line_and_starts_nothing(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    study_text: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    published, altered = Path(os.environ["CS330RAY_DATA"]), tmp_path / "altered"
    altered.mkdir()
    shutil.copy(published / "images_evaluation.zip", altered)
    with (
        zipfile.ZipFile(published / "images_background.zip") as good,
        zipfile.ZipFile(altered / "images_background.zip", "w") as bad,
    ):
        drawings = [name for name in good.namelist() if name.endswith(".png")]
        for name in good.namelist():
            bad.writestr(name, good.read(name) if name != drawings[9000] else with_a_wrong_pixel(good.read(name)))
    monkeypatch.setenv("CS330RAY_DATA", str(altered))
    monkeypatch.setenv("CS330RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CS330RAY_OFFLINE", "1")
    code, err = on_omniglot(capsys, study_text(MAML))
    assert (code, err.count("\n")) == (2, 1)
    assert "images_background.zip: pixels must be the published ones" in err
    assert not home.exists()


def with_a_wrong_pixel(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png))
    image.putpixel((50, 50), 0 if image.getpixel((50, 50)) else 1)
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def test_a_changed_study_under_an_old_name_is_refused_with_the_difference_and_nothing_is_overwritten(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = toy(budget={"trials": 1, "steps": 5})
    file = str(toml(study, tmp_path / "toy.toml"))
    in_process.run(study, home, mirror=False)
    before = dump(home / "ledger.db")
    for override, difference in [
        ("search.lr.high=2.0", "search.lr.high: 1.0 -> 2.0"),
        ("seed=4", "seed: 0 -> 4"),
        ("budget.steps=4", "budget.steps: 5 -> 4"),
    ]:
        code, _, err = ran(capsys, "run", file, "--set", override)
        assert (code, err.count("\n")) == (2, 1)
        assert difference in err
    assert dump(home / "ledger.db") == before


def test_a_study_is_run_listed_shown_mirrored_and_deleted(
    home: Path, tmp_path: Path, ray_here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(toml(toy(budget={"trials": 2, "steps": 5}), tmp_path / "toy.toml"))
    code, out, _ = ran(capsys, "run", file)
    assert code == 0
    assert "best is trial" in out
    assert "cs330ray ui" in out
    assert "2/2" in ran(capsys, "list")[1]
    shown = ran(capsys, "show", "toy")[1]
    assert shown.count("COMPLETE") == 2
    assert "val_loss" in ran(capsys, "show", "toy", "1", "--log")[1]
    assert "no difference" in ran(capsys, "show", "toy", "--diff", file)[1]
    best = ran(capsys, "best", "toy", "--by", "val_speed")[1]
    assert 'trainable = "tests.toy"' in best
    ran(capsys, "sync", "toy")
    assert "toy: 0 changes" in ran(capsys, "sync", "toy")[1]
    assert ran(capsys, "delete", "toy", "--yes")[0] == 0
    assert not (home / "toy").exists()
    assert ran(capsys, "show", "toy")[0] == 2


@pytest.fixture
def entered(home: Path) -> Study:
    """A study in the ledger and in MLflow, without a trial."""
    study, ledger = toy(), Writer.at(home)
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    Mirror(ledger, "toy", home).sync()
    return study


def mirrored(home: Path) -> int:
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    return len(client.search_runs([client.get_experiment_by_name("toy").experiment_id]))


def test_a_deleted_study_leaves_no_run_in_mlflow(
    home: Path, entered: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirrored(home) == 2
    assert ran(capsys, "delete", "toy", "--yes")[0] == 0
    assert mirrored(home) == 0


def test_a_study_that_runs_is_not_deleted(home: Path, entered: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with held(Writer.at(home).database, entered.name):
        code, _, err = ran(capsys, "delete", "toy", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert f"process {os.getpid()} runs it" in err
    assert Writer.at(home).names() == ["toy"]
    assert mirrored(home) == 2


def test_a_dry_run_says_cells_trials_and_cost_and_starts_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = toy(compare={"data_seed": [0, 1]}, fixed={"sleep_s": 0.01, "eval_every_steps": 5})
    code, out, _ = ran(capsys, "run", str(toml(study, tmp_path / "toy.toml")), "--dry-run")
    assert code == 0
    assert "2 cells of 4 trials, 20 steps each" in out
    assert "toy: no cells are told apart: confirm: expected [confirm]" in out
    assert "nothing was started" in out
    assert re.search(r"about \d+ms a step, evaluations included, about \d+ms a trial", out)
    assert not home.exists()


def test_a_dry_run_with_a_cap_says_how_many_trials_it_leaves_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight trials of at least .2 s each, of which a cap of .36 s has room for one."""
    study = toy(fixed={"sleep_s": 0.01}, budget={"trials": 8, "steps": 20, "cost": "0.0001 cpu-hours"})
    _, out, _ = ran(capsys, "run", str(toml(study, tmp_path / "toy.toml")), "--dry-run")
    assert re.search(
        r"  0 of 0\.0001 cpu-hours spent; all would take about \S+, so the cap leaves about [78] of 8 trials", out
    )


def test_a_study_that_has_run_is_foreseen_by_its_record_and_nothing_is_timed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four trials of 20 steps one took an hour on one CPU; the cap has room for one more."""
    study = toy(budget={"cost": "2 cpu-hours"}, resources={"slots": 1})
    at = Desk(home, study)
    told = at.ask()
    at.ledger.write_attempt(study, at.cell, told.trial, {"began_s": 0.0, "config": {}, "cpus": 1, "under_way_s": 3600})
    at.play(told, (20, 0.5))
    at.play(told, end=Ending("COMPLETE"))
    monkeypatch.setattr(toy_trainable, "train", lambda config, seed, steps, resume=None: pytest.fail("it was timed"))
    file, before = str(toml(study, tmp_path / "toy.toml")), (home / "ledger.db").read_bytes()
    code, out, err = ran(capsys, "run", file, "--dry-run")
    assert (code, err) == (0, "")
    assert "about 3m 00s a step by its trials so far, about 1h 00m a whole one" in out
    said = "1 of 2 cpu-hours spent; all would take about 4, so the cap leaves about 2 of 4 trials undone"
    assert f"  {said}\nabout 3h 00m more, by its trials so far; nothing was started" in out
    assert ran(capsys, "show", "toy")[1].endswith(f"{said}\n")
    assert "1 of 3 cpu-hours" in ran(capsys, "run", file, "--dry-run", "--set", "budget.cost=3 cpu-hours")[1]
    assert (home / "ledger.db").read_bytes() == before


def test_a_recorded_study_that_breaks_a_later_rule_is_resumed_and_a_new_one_is_not(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config(toy_trainable.Config):
        seed: int = 0

    monkeypatch.setattr(toy_trainable, "Config", Config)
    space = {"lr": {"low": 0.1, "high": 0.2}, "body": {"choices": ["small"], "when": {"ends_at": 9}}}
    study = toy(search=space, fixed={"ends_at": 4})
    file = str(toml(study, tmp_path / "toy.toml"))
    code, out, err = ran(capsys, "run", file, "--dry-run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Config has seed, but the record has columns of these names" in err
    Writer.at(home).open(study, {"tests.toy": toy_trainable.METRICS})
    code, out, err = ran(capsys, "run", file, "--dry-run")
    assert (code, err) == (0, "")
    assert "a new study may not do this: tests.toy: Config has seed, but" in out
    assert "a new study may not do this: search.body.when: ends_at is fixed at 4, never 9" in out
    assert ran(capsys, "run", file, "--dry-run", "--fork", "another")[0] == 2


def test_cells_that_read_the_same_are_refused_in_a_new_study_and_told_apart_in_one_of_before(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config(toy_trainable.Config):
        size: int | str = 1

    monkeypatch.setattr(toy_trainable, "Config", Config)
    study = toy(compare={"size": [1, "1"]})
    file = str(toml(study, tmp_path / "toy.toml"))
    code, out, err = ran(capsys, "run", file, "--dry-run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "compare: expected cells that differ in writing, got 2 that read 'size=1'; remove a value" in err
    Writer.at(home).open(study, {"tests.toy": toy_trainable.METRICS})
    code, out, err = ran(capsys, "run", file, "--dry-run")
    assert (code, err) == (0, "")
    assert "  size=1: tests.toy" in out
    assert '  size="1": tests.toy' in out
    code, out, err = ran(capsys, "best", "toy", "--cell", 'size="1"')
    assert (code, out.splitlines()[0]) == (0, '# size="1": no trial is COMPLETE yet')


def test_a_study_whose_file_names_no_sampler_keeps_the_one_that_it_began_with(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that another default in a later version changes no study, and refuses none."""
    ledger, file = Writer.at(home), toml(toy(), tmp_path / "toy.toml")
    ledger.open(toy(sampler={"kind": "gp"}), {"tests.toy": toy_trainable.METRICS})
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("sampler")))
    code, out, err = ran(capsys, "run", str(file), "--dry-run")
    assert (code, err) == (0, "")
    assert "toy: sampler.kind is gp, as the study began; its file does not say" in out
    assert "gp asks, none prunes" in out
    assert "gp draws what has a condition at random (width); tpe learns that too" in out
    assert ledger.open(reading.read(file), {"tests.toy": toy_trainable.METRICS}) == []
    assert ledger.study("toy").sampler.kind == "gp"
    assert ran(capsys, "show", "toy", "--diff", str(file))[1] == "toy: no difference\n"
    code, out, err = ran(capsys, "run", str(file), "--dry-run", "--set", 'sampler.kind="tpe"')
    assert (code, err.count("\n")) == (2, 1)
    assert 'differs: sampler.kind: "gp" -> "tpe"' in err


def test_a_dry_run_counts_one_as_one_and_keeps_what_the_trainable_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = toy(
        budget={"trials": 1, "steps": 4}, fixed={"ends": "speaks", "ends_at": 1}, confirm={"top": 1, "seeds": 1}
    )
    code, out, err = ran(capsys, "run", str(toml(study, tmp_path / "toy.toml")), "--dry-run")
    assert (code, err) == (0, "")
    assert "toy: 1 cell of 1 trial, 4 steps each" in out
    assert "then 1 run of confirmation a cell" in out
    assert "about under" not in out
    assert "words of seed" not in out


def test_the_schema_is_json_schema_of_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    schema = json.loads(ran(capsys, "schema")[1])
    tables = {"fixed", "compare", "search", "sampler", "prune", "budget", "resources", "confirm"}
    assert tables <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_help_takes_less_than_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cs330ray", "--help"], check=True, capture_output=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 1.0


def lone(*arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cs330ray.studies.maml", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def lone_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The same in this process: exit code, stderr."""
    code = 0
    try:
        app.study_main("maml", [*arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().err


TINY = [
    "--dataset",
    "glyphs",
    "--body",
    "pooled",
    "--filters",
    "4",
    "--tasks",
    "2",
    "--val-tasks",
    "2",
    "--queries",
    "2",
]


def test_one_trial_runs_without_ray_resumes_and_is_tested_on_record(home: Path) -> None:
    arguments = ["--trial", *TINY, "--eval-every-steps", "2", "--test-tasks", "3"]
    first = lone(*arguments, "--steps", "4")
    assert first.returncode == 0, first.stderr
    assert "step      2" in first.stdout
    second = lone(*arguments, "--steps", "6", "--test")
    assert second.returncode == 0, second.stderr
    assert "step      2" not in second.stdout
    assert "step      6" in second.stdout
    assert "test_accuracy/shots/10" in second.stdout
    import sqlite3

    connection = sqlite3.connect(home / "ledger.db")
    assert connection.execute("select count(*) from cs330ray_tests").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--trial", "--inner-lr", "-3"], "inner_lr: input should be greater than 0, but got -3"),
        (["--trial", "--body", "big"], "body: input should be 'course' or 'pooled'"),
        (["--inner-lr", "0.4"], "need --trial"),
        (["--study", "nowhere.toml"], "nowhere.toml: a study file must be readable"),
    ],
)
def test_bad_options_of_one_trial_are_one_clear_line(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fragment: str
) -> None:
    code, err = lone_here(capsys, *arguments)
    assert code == 2
    assert fragment in err
    assert err.count("\n") == 1
    assert not home.exists()


PLACES = [
    ("CS330RAY_HOME", "/dev/null/runs", "a directory for studies is needed"),
    ("CS330RAY_LEDGER", "nonsense", "the ledger must be sqlite:///FILE or postgresql://"),
    ("CS330RAY_LEDGER", "postgresql://me:secret@nowhere/db", "postgresql"),
]
ENVIRONMENTS = [
    ("CS330RAY_DEVICE", "tpu", "but got 'tpu'"),
    ("RAY_ADDRESS", "127.0.0.1:1", "expected the address of a Ray cluster that runs, got '127.0.0.1:1'"),
    ("RAY_ADDRESS", "no-colon", "RAY_ADDRESS: expected the address of a Ray cluster that runs, got 'no-colon'"),
]


@pytest.mark.parametrize(("variable", "value", "fragment"), ENVIRONMENTS, ids=[value for _, value, _ in ENVIRONMENTS])
def test_a_bad_environment_is_one_clear_line(
    home: Path, study_text: Callable[[str], str], variable: str, value: str, fragment: str
) -> None:
    command = [sys.executable, "-m", "cs330ray", "run", study_text(MAML)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, variable: value})
    assert done.returncode == 2, done.stderr
    assert fragment in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("variable", "value", "fragment"), PLACES, ids=[value for _, value, _ in PLACES])
def test_a_place_that_is_none_is_one_clear_line(
    home: Path, study_text: Callable[[str], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    variable: str, value: str, fragment: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    code, _, err = ran(capsys, "run", study_text(MAML))
    assert (code, err.count("\n")) == (2, 1), err
    assert fragment in err
    assert "secret" not in err


def test_a_user_without_a_home_is_one_clear_line(home: Path, tmp_path: Path, study_text: Callable[[str], str]) -> None:
    """HOME is not set, and the system does not know the user, as in a container under another number."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef nobody(uid):\n    raise KeyError(uid)\npwd.getpwuid = nobody\n"
    )
    environment = {name: text for name, text in os.environ.items() if name != "HOME"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "cs330ray", "run", study_text(MAML)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "HOME: expected the home directory of this user, got none; set HOME to a directory\n"
    assert not home.exists()


@pytest.mark.parametrize("uri", ["http://[bad", "http://me:secret@127.0.0.1:9", "postgresql://me:secret@nowhere/db"])
def test_a_bad_address_of_mlflow_is_one_clear_line_without_the_password(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
) -> None:
    in_process.run(toy(budget={"trials": 1, "steps": 5}), home, mirror=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, _, err = ran(capsys, "sync", "toy")
    assert (code, err.count("\n")) == (2, 1)
    assert "MLflow must answer" in err
    assert "secret" not in err


def test_the_best_of_several_cells_is_valid_toml(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_process.run(toy(compare={"data_seed": [0, 1]}, budget={"trials": 1, "steps": 5}), home, mirror=False)
    found = tomllib.loads(ran(capsys, "best", "toy")[1])
    assert [one["fixed"]["data_seed"] for one in found["best"]] == [0, 1]


def test_fewer_steps_than_a_lone_trial_has_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trial", *TINY, "--eval-every-steps", "2"]
    assert lone_here(capsys, *arguments, "--steps", "4")[0] == 0
    code, err = lone_here(capsys, *arguments, "--steps", "2", "--test")
    assert code == 2
    assert "at least the 4" in err
    assert lone_here(capsys, *arguments, "--steps", "-3")[0] == 2
