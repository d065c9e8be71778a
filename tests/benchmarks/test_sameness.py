"""Dumps for the comparison of two versions: what is left out, what is not, and that one code dumps the same twice."""

import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import canonical, sameness
from cs330ray.spec import reading

STUDIES = sorted((sameness.ROOT / "studies").glob("*.toml"))
TABLES = {
    "ledger.db": """
        create table studies (study_id integer, study_name text);
        create table trials (trial_id integer, number integer, study_id integer, state text, datetime_start text);
        create table trial_params (param_id integer, trial_id integer, param_name text, param_value float);
        create table cs330ray_studies (name text, uid text, spec text, wall_s double);
        create table cs330ray_attempts (study text, cell text, trial integer, circumstances text, wall_s double);
        create table cs330ray_rows (study text, cell text, trial integer, step integer, metrics text, wall_s double);
        create table cs330ray_ends (study text, cell text, trial integer, state text, traceback text, wall_s double);
    """,
    "mlflow.db": """
        create table experiments (experiment_id integer, name text, lifecycle_stage text);
        create table experiment_tags (key text, value text, experiment_id integer);
        create table runs (run_uuid text, name text, status text, lifecycle_stage text, start_time integer,
                           artifact_uri text, experiment_id integer);
        create table tags (key text, value text, run_uuid text);
        create table params (key text, value text, run_uuid text);
        create table metrics (key text, value double, timestamp integer, run_uuid text, step integer, is_nan boolean);
        create table latest_metrics (key text, value double, timestamp integer, step integer, is_nan boolean,
                                     run_uuid text);
    """,
}


def fabricated(work: Path, second: int) -> sameness.Home:
    """A home of one study with one trial; `second` decides its times, machine, code, identities and numbers."""
    home = sameness.Home(work, "cs330ray")
    for file, schema in TABLES.items():
        execute(home.runs / file, schema)
    uid, run, code = (f"{second:x}{letter * 31}" for letter in "abc")
    where = {"began_s": second, "host": f"host{second}", "nodes": [run], "pid": second, "code": code, "seed": 7}
    insert(home, "ledger.db", "studies", second, "toy {}")
    insert(home, "ledger.db", "trials", second + 1, 0, second, "COMPLETE", f"2026-01-0{second}")
    insert(home, "ledger.db", "trial_params", second, second + 1, "lr", 0.1)
    insert(home, "ledger.db", "cs330ray_studies", "toy", uid, '{"name": "toy"}', second)
    insert(home, "ledger.db", "cs330ray_attempts", "toy", "{}", 0, json.dumps(where), second)
    insert(home, "ledger.db", "cs330ray_rows", "toy", "{}", 0, 2, '{"val_accuracy": 0.5}', second)
    insert(home, "ledger.db", "cs330ray_ends", "toy", "{}", 0, "FAIL", f"line {second}\nValueError: no\n", second)
    insert(home, "mlflow.db", "experiments", second, "toy", "active")
    insert(
        home, "mlflow.db", "experiment_tags", "mlflow.note.content", f"[trial 0](#/experiments/{second}/{run})", second
    )
    insert(home, "mlflow.db", "runs", run, "trial 0", "FINISHED", "active", second, f"file://{work}/none", second)
    tags = {"kind": "trial", "cell": "{}", "trial": "0", "uid": uid, "host": f"host{second}", "code": code, "data": "d"}
    for name, value in tags.items():
        insert(home, "mlflow.db", "tags", f"cs330ray.{name}", value, run)
    insert(home, "mlflow.db", "params", "lr", "0.1", run)
    insert(home, "mlflow.db", "metrics", "val_accuracy", 0.5, second, run, 2, False)
    checkpoint = home.runs / "toy" / "checkpoints" / "trial-00000" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.safetensors").write_bytes(safetensors(b"\0\0\x80?"))
    report = work / "reports" / "toy"
    (report / "figures").mkdir(parents=True)
    (report / "report.md").write_text(f"| trial | seconds |\n| --- | --- |\n| 0 | {second}.5 |\n")
    (report / "report.html").write_text(f"<h2>Trials</h2><p>{second}.5s</p><script>{second}</script>")
    (report / "figures" / "cost.svg").write_text(f"<svg>{second}</svg>")
    (report / "figures" / "curves.svg").write_text("<svg></svg>")
    return home


def execute(file: Path, script: str) -> None:
    connection = sqlite3.connect(file)
    connection.executescript(script)
    connection.close()


def insert(home: sameness.Home, file: str, table: str, *values: object) -> None:
    with sqlite3.connect(home.runs / file) as connection:
        connection.execute(f"insert into {table} values ({', '.join('?' * len(values))})", values)
    connection.close()


def safetensors(tensor: bytes) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, len(tensor)]}}).encode()
    return struct.pack("<Q", len(header)) + header + tensor


def dumped(home: sameness.Home, out: Path) -> Path:
    seconds = int(home.work.name)
    sameness.write(out, home, {"toy": {"show": f"trial 0   took {seconds}.1s in {home.work}\n"}})
    return out


def two(tmp_path: Path, change: Callable[[sameness.Home], object] = lambda home: None) -> tuple[Path, Path]:
    """The dumps of a home and of another one, of another day and machine, in which `change` has been made."""
    one, other = fabricated(tmp_path / "1", 1), fabricated(tmp_path / "2", 2)
    change(other)
    return dumped(one, tmp_path / "one"), dumped(other, tmp_path / "other")


def test_homes_that_differ_in_times_machines_and_identities_alone_are_dumped_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = sameness.compare(*two(tmp_path))
    assert all(": 0 of " in line for line in capsys.readouterr().out.splitlines())
    assert figures == {"files": 14, "different": 0}  # 7 tables, 1 experiment, 1 command, 5 kinds of files


def _tensor(home: sameness.Home) -> None:
    (file,) = home.runs.rglob("state.safetensors")
    file.write_bytes(safetensors(b"\0\0\0@"))


def _figure(home: sameness.Home) -> None:
    (home.work / "reports" / "toy" / "figures" / "curves.svg").write_text("<svg>a line</svg>")


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (
            lambda home: execute(
                home.runs / "ledger.db", """update cs330ray_rows set metrics = '{"val_accuracy": 0.6}'"""
            ),
            "ledger/cs330ray_rows.txt",
        ),
        (lambda home: execute(home.runs / "ledger.db", "delete from cs330ray_ends"), "ledger/cs330ray_ends.txt"),
        (lambda home: execute(home.runs / "mlflow.db", "update metrics set value = 0.6"), "mlflow/toy.txt"),
        (lambda home: execute(home.runs / "mlflow.db", "update runs set name = 'trial 1'"), "mlflow/toy.txt"),
        (_tensor, "toy/checkpoints.txt"),
        (_figure, "toy/figures.txt"),
    ],
    ids=["row", "end", "metric", "name", "tensor", "figure"],
)
def test_one_change_in_a_home_shows_in_one_file(
    tmp_path: Path, change: Callable[[sameness.Home], object], file: str
) -> None:
    one, other = two(tmp_path, change)
    names = [path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file()]
    assert [name for name in names if list(sameness.difference(one / name, other / name))] == [file]


def test_a_file_that_only_one_dump_has_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = two(tmp_path)
    (other / "toy" / "show.txt").unlink()
    assert sameness.compare(one, other)["different"] == 1
    assert f"only one has it: {one}/toy/show.txt" in capsys.readouterr().out


def test_comparing_ends_with_a_json_object_and_says_by_its_status_whether_all_is_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = two(tmp_path)
    assert sameness.main(["compare", str(one), str(other)]) == 0
    (other / "toy" / "show.txt").write_text("nothing\n")
    assert sameness.main(["compare", str(one), str(other)]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"files": 14, "different": 1}


def test_times_leave_the_tables_of_a_report_and_its_other_columns_stay() -> None:
    table = "| cell | seconds of trials | failed |\n| --- | --- | --- |\n| all | {} | 0 |\n"
    later = "\n| step | 9 |\n| --- | --- |\n| 2 | 9 |\n"
    assert canonical.markdown(table.format(9) + later, canonical.Names()) == table.format("TIME") + later


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("done in 1h 02m (22.1s until the first trial)", "done in TIME (TIME until the first trial)\n"),
        ("9 took 8.99 s of wall time, 14% on pruned.", "9 took TIME of wall time, SHARE on pruned.\n"),
        ("9 took 1.67 min of wall time, 6% on failed.", "9 took TIME of wall time, SHARE on failed.\n"),
        ("all   0      COMPLETE  8 steps   ", "all  0  COMPLETE  8 steps\n"),
        ("chosen by 3 seeds of 5", "chosen by 3 seeds of 5\n"),
    ],
)
def test_what_a_command_says_loses_times_and_alignment_alone(said: str, plain: str) -> None:
    assert canonical.Names().plain(said) == plain


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_shrunk_study_is_valid_and_has_at_most_two_trials_and_seeds_of_a_few_steps(file: Path) -> None:
    plan = next(plan for plan in sameness.plans(file.parent) if plan.name == file.stem)
    study = reading.read(file, plan.overrides)
    assert study.budget.trials <= 2
    assert study.budget.steps == 6
    assert study.confirm is None or study.confirm.seeds <= 2
    assert study.resources.slots == 1
    embedded: set[Any] = {"glyphs", "planted", "rooms"}
    assert {cell.fixed["dataset"] for cell in study.cells} <= embedded
    assert {cell.fixed.get("model", "tiny") for cell in study.cells} <= {"tiny", "tiny-encoder"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_shortest_study_is_dumped_the_same_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert sameness.main([]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["different"] == figures["refused"] == figures["crashes"] == 0
    assert figures["files"] > 30
