"""The auditor is proven before it is believed: of a good home it says nothing, and each planted fault it counts."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.auditor import Findings

from benchmarks import auditor
from cs330ray.ledger.writer import Writer
from cs330ray.mirror.sync import Mirror
from tests import in_process
from tests.studies_of_tests import toy

pytestmark = pytest.mark.slow  # of the campaign, which runs beside it in CI
WELL, FRESH = '{"ends":"well"}', '{"ends":"well"} fresh 0'


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with COMPLETE, PRUNED, failed and confirmed trials, on one slot, mirrored."""
    home = tmp_path_factory.mktemp("good") / "runs"
    study = toy(
        compare={"ends": ["well", "raises", "nan"]},
        prune={"kind": "asha", "min_steps": 5, "reduction": 2},
        budget={"trials": 4},
        resources={"slots": 1},
        confirm={"top": 1, "seeds": 2},
        fixed={"ends_at": 18},
    )
    in_process.run(study, home, mirror=False)
    Mirror(Writer.at(home), "toy", home).sync()
    return home


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A home to spoil, whose checkpoints are its own."""
    home = Path(shutil.copytree(good, tmp_path / "runs"))
    place = f"replace({{}}, '{good}', '{home}')"
    change(home, f"update cs330ray_checkpoints set path = {place.format('path')}")
    change(home, f"update tags set value = {place.format('value')}", "mlflow.db")
    return home


def change(home: Path, statement: str, database: str = "ledger.db") -> None:
    """Change rows of a database; some must be there."""
    connection = sqlite3.connect(home / database)
    assert connection.execute(statement).rowcount > 0, statement
    connection.commit()
    connection.close()


def value(home: Path, query: str, database: str = "ledger.db") -> str:
    connection = sqlite3.connect(home / database)
    (found,) = connection.execute(query).fetchone()
    connection.close()
    return str(found)


def audited(home: Path, reference: Path | None = None) -> Findings:
    return auditor.audit(home, "toy", reference=reference, leave_s=0)


def counted(findings: Findings, kind: str) -> list[str]:
    """The lines of one kind, without the kind."""
    return [line.removeprefix(f"{kind}: ") for (found, _), line in findings.lines.items() if found == kind]


def complete(home: Path) -> int:
    """A COMPLETE trial of the cell that ends well."""
    return int(value(home, f"select min(trial) from cs330ray_ends where cell = '{WELL}' and state = 'COMPLETE'"))


def pruned(home: Path) -> int:
    return int(value(home, f"select min(trial) from cs330ray_ends where cell = '{WELL}' and state = 'PRUNED'"))


def run_of(home: Path, kind: str, cell: str = "", trial: int | str = "") -> str:
    """MLflow's id of a run."""
    tags = {"kind": kind, "cell": cell, "trial": trial}
    held = [
        f"run_uuid in (select run_uuid from tags where key = 'cs330ray.{k}' and value = '{v}')" for k, v in tags.items()
    ]
    return value(home, f"select run_uuid from runs where {' and '.join(held)}", "mlflow.db")


# The good home -------------------------------------------------------------------------------------------------------


def test_of_a_good_home_nothing_is_said(good: Path) -> None:
    assert audited(good).lines == {}


def test_of_a_good_home_nothing_is_said_against_itself(good: Path, copy: Path) -> None:
    assert audited(copy, reference=good).lines == {}


def test_the_good_home_has_trials_of_every_state_and_confirmations(good: Path) -> None:
    connection = sqlite3.connect(good / "ledger.db")
    states = {state for (state,) in connection.execute("select state from cs330ray_ends")}
    fresh = connection.execute("select count(*) from cs330ray_scores where cell like '% fresh %'").fetchone()
    connection.close()
    assert states == {"COMPLETE", "PRUNED", "FAIL"}
    assert fresh == (2,)


# Lost ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [5, 10, 20])
def test_a_deleted_row_is_lost_wherever_it_stood(copy: Path, step: int) -> None:
    number = complete(copy)
    change(copy, f"delete from cs330ray_rows where cell = '{WELL}' and trial = {number} and step = {step}")
    assert any(line.startswith(f"trial {number} of {WELL}: row {step}:") for line in counted(audited(copy), "lost"))


def test_the_deleted_last_row_of_a_pruned_trial_is_lost(copy: Path) -> None:
    number = pruned(copy)
    where = f"cell = '{WELL}' and trial = {number}"
    last = value(copy, f"select max(step) from cs330ray_rows where {where}")
    change(copy, f"delete from cs330ray_rows where {where} and step = {last}")
    assert any(line.startswith(f"trial {number} of {WELL}: row {last}:") for line in counted(audited(copy), "lost"))


def test_a_row_that_only_the_undisturbed_study_has_is_lost(good: Path, copy: Path) -> None:
    change(copy, 'delete from cs330ray_rows where cell = \'{"ends":"raises"}\' and step = 15')
    lost = counted(audited(copy, reference=good), "lost")
    assert any('of {"ends":"raises"}: row 15: the undisturbed study has it' in line for line in lost)


def test_a_deleted_end_is_lost(copy: Path) -> None:
    change(copy, f"delete from cs330ray_ends where cell = '{WELL}' and trial = {pruned(copy)}")
    assert any(line.startswith(f"trial {pruned_of(copy)} of {WELL}: end:") for line in counted(audited(copy), "lost"))


def pruned_of(home: Path) -> int:
    """The trial that Optuna alone says was pruned first."""
    query = (
        "select min(number) from trials join studies using (study_id) "
        f"where study_name = 'toy {WELL}' and state = 'PRUNED' and number not in "
        f"(select trial from cs330ray_ends where cell = '{WELL}')"
    )
    return int(value(home, query))


def test_an_end_that_optuna_was_not_told_is_lost(copy: Path) -> None:
    number = complete(copy)
    of_cell = f"study_id = (select study_id from studies where study_name = 'toy {WELL}')"
    change(copy, f"update trials set state = 'RUNNING' where {of_cell} and number = {number}")
    assert any(line.startswith(f"trial {number} of {WELL}: Optuna's end") for line in counted(audited(copy), "lost"))


def test_a_deleted_trial_is_lost(copy: Path) -> None:
    of_cell = f"study_id = (select study_id from studies where study_name = 'toy {WELL}')"
    change(copy, f"delete from trials where {of_cell} and number = 3")
    assert any(line.startswith(f"trial 3 of {WELL}:") for line in counted(audited(copy), "lost"))


def test_a_checkpoint_cut_short_is_lost(copy: Path) -> None:
    number = complete(copy)
    where = f"cell = '{WELL}' and trial = {number}"
    path = value(copy, f"select path from cs330ray_checkpoints where {where} order by step desc limit 1")
    os.truncate(copy / path / "state.json", 10)
    (line,) = counted(audited(copy), "lost")
    assert line.startswith(f"trial {number} of {WELL}: checkpoint 20:")
    assert "state.json does not match its digest" in line


def test_a_checkpoint_that_is_gone_is_lost(copy: Path) -> None:
    shutil.rmtree(copy / "toy" / "checkpoints")
    lost = counted(audited(copy), "lost")
    assert len(lost) == int(
        value(copy, "select count(*) from (select 1 from cs330ray_checkpoints group by cell, trial)")
    )


def test_a_complete_trial_whose_checkpoint_the_ledger_does_not_name_is_lost(copy: Path) -> None:
    number = complete(copy)
    change(copy, f"delete from cs330ray_checkpoints where cell = '{WELL}' and trial = {number}")
    assert any(line.startswith(f"trial {number} of {WELL}: checkpoint 20") for line in counted(audited(copy), "lost"))


@pytest.mark.parametrize(("keep", "lost"), [(1, 1), (0, 0)])
def test_a_thinned_checkpoint_is_lost_only_where_the_study_keeps_so_many(copy: Path, keep: int, lost: int) -> None:
    change(copy, f"update cs330ray_studies set spec = replace(spec, '\"keep\":5', '\"keep\":{keep}')")
    objective = "json_extract(worth, '$[0]')"
    of_cell = f"cell = '{WELL}' and state = 'COMPLETE'"
    best = value(copy, f"select trial from cs330ray_ends where {of_cell} order by {objective} limit 1")
    change(copy, f"delete from cs330ray_checkpoints where cell = '{WELL}' and trial = {best}")
    assert len(counted(audited(copy), "lost")) == lost


def test_a_checkpoint_ahead_of_the_rows_is_a_lost_row(copy: Path) -> None:
    number = complete(copy)
    change(copy, f"delete from cs330ray_rows where cell = '{WELL}' and trial = {number} and step = 20")
    assert any(f"trial {number} of {WELL}: row 20:" in line for line in counted(audited(copy), "lost"))


def test_a_confirmation_without_scores_is_lost(copy: Path) -> None:
    change(copy, f"delete from cs330ray_scores where cell = '{FRESH}'")
    (line,) = counted(audited(copy), "lost")
    assert FRESH in line
    assert "scores" in line


def test_a_confirmation_that_was_never_taken_up_is_lost(copy: Path) -> None:
    for table in ("attempts", "rows", "ends", "scores", "checkpoints"):
        change(copy, f"delete from cs330ray_{table} where cell = '{FRESH}'")
    (line,) = counted(audited(copy), "lost")
    assert "never taken up" in line


def test_a_home_without_a_ledger_is_lost(tmp_path: Path) -> None:
    assert audited(tmp_path).counts()["lost"] == 1


def test_a_ledger_of_other_bytes_is_lost(copy: Path) -> None:
    for extra in copy.glob("ledger.db-*"):
        extra.unlink()
    (copy / "ledger.db").write_bytes(b"no database at all" * 500)
    assert audited(copy).counts()["lost"] == 1


# Doubled -------------------------------------------------------------------------------------------------------------


def test_a_run_that_mlflow_has_twice_is_doubled(copy: Path) -> None:
    run_id = run_of(copy, "trial", WELL, 1)
    connection = sqlite3.connect(copy / "mlflow.db")
    for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
        columns = [name for _, name, *_ in connection.execute(f"pragma table_info({table})")]
        taken = ", ".join("'twin'" if name == "run_uuid" else f'"{name}"' for name in columns)
        connection.execute(f"insert into {table} select {taken} from {table} where run_uuid = '{run_id}'")
    connection.commit()
    connection.close()
    findings = audited(copy)
    assert findings.counts() == {**dict.fromkeys(auditor.KINDS, 0), "doubled": 1}
    assert "2 runs" in counted(findings, "doubled")[0]


def test_a_trial_entered_twice_is_doubled(copy: Path) -> None:
    of_cell = f"study_id = (select study_id from studies where study_name = 'toy {WELL}')"
    columns = "number, study_id, state, datetime_start, datetime_complete"
    change(copy, f"insert into trials ({columns}) select {columns} from trials where {of_cell} and number = 2")
    assert any("entered 2 times" in line for line in counted(audited(copy), "doubled"))


def test_a_trial_beyond_the_budget_is_doubled(copy: Path) -> None:
    change(copy, "update cs330ray_studies set spec = replace(spec, '\"trials\":4', '\"trials\":3')")
    assert len(counted(audited(copy), "doubled")) == 3  # one a cell


def test_a_continuation_is_not_beyond_the_budget(copy: Path) -> None:
    of_cell = f"study_id = (select study_id from studies where study_name = 'toy {WELL}')"
    columns = "study_id, state, datetime_start, datetime_complete"
    taken = f"select 4, {columns} from trials where {of_cell} and number = {complete(copy)}"
    change(copy, f"insert into trials (number, {columns}) {taken}")
    assert any("beyond the budget" in line for line in counted(audited(copy), "doubled"))
    newest = "(select max(trial_id) from trials)"
    for key, said in (("seed", 7), ("continues", complete(copy))):
        values = f"{newest}, '{key}', '{said}'"
        change(copy, f"insert into trial_user_attributes (trial_id, key, value_json) values ({values})")
    assert counted(audited(copy), "doubled") == []


def test_rows_of_two_trials_that_are_interleaved_are_doubled_work_on_one_slot(copy: Path) -> None:
    where = f"cell = '{WELL}' and trial = {complete(copy)} and step = 20"
    change(copy, f"update cs330ray_rows set rowid = (select max(rowid) + 1 from cs330ray_rows) where {where}")
    assert any("two ran at once" in line for line in counted(audited(copy), "doubled"))


def test_rows_of_a_trial_that_stand_in_another_order_are_doubled_work(copy: Path) -> None:
    where = f"cell = '{WELL}' and trial = {complete(copy)} and step = 5"
    change(copy, f"update cs330ray_rows set rowid = (select max(rowid) + 1 from cs330ray_rows) where {where}")
    assert any("by two workers" in line for line in counted(audited(copy), "doubled"))


# Zombies -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def orphan(copy: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the home that outlives its command."""
    environment = {**os.environ, "CS330RAY_HOME": str(copy)}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment) as process:
        yield process
        process.kill()


def test_an_orphan_process_is_a_zombie_until_it_is_gone(copy: Path, orphan: subprocess.Popen[bytes]) -> None:
    (line,) = counted(audited(copy), "zombies")
    assert line.startswith(f"process {orphan.pid}:")
    orphan.kill()
    orphan.wait()
    assert audited(copy).lines == {}


def test_a_process_of_a_home_with_a_longer_name_is_none_of_this_one(
    copy: Path, orphan: subprocess.Popen[bytes]
) -> None:
    assert [each.pid for each in auditor.processes([str(copy)])] == [orphan.pid]
    assert list(auditor.processes([str(copy)[:-1]])) == []


def test_a_process_that_holds_a_file_of_the_home_open_is_a_zombie(copy: Path) -> None:
    held = (copy / "held").open("w")
    with held, subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=held) as process:
        assert [each.pid for each in auditor.processes([str(copy)])] == [process.pid]
        process.kill()


# The mirror ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("update runs set status = 'FINISHED' where run_uuid = '{pruned}'", "status"),
        ("update runs set status = 'RUNNING' where run_uuid = '{study}'", "status"),
        ("update params set value = '0.5' where key = 'lr' and run_uuid = '{trial}'", "parameter lr"),
        ("delete from params where key = 'lr' and run_uuid = '{trial}'", "parameter lr"),
        ("update metrics set value = value + 1e-12 where step = 10 and run_uuid = '{trial}'", "curve of val_loss"),
        ("delete from metrics where step = 10 and key = 'val_loss' and run_uuid = '{trial}'", "curve of val_loss"),
        ("update metrics set timestamp = timestamp + 1 where step = 10 and run_uuid = '{trial}'", "time of val"),
        ("update latest_metrics set value = 9 where key = 'val_speed' and run_uuid = '{trial}'", "latest val_speed"),
        ("delete from metrics where key = 'test_loss' and run_uuid = '{fresh}'", "curve of test_loss"),
        ("update tags set value = '{study}' where key = 'mlflow.parentRunId' and run_uuid = '{trial}'", "parent"),
        ("update tags set value = '{study}' where key = 'mlflow.parentRunId' and run_uuid = '{fresh}'", "parent"),
        ("update tags set value = '7' where key = 'cs330ray.seed' and run_uuid = '{trial}'", "tag seed"),
        ("update tags set value = 'none' where key = 'cs330ray.reason' and run_uuid = '{pruned}'", "tag reason"),
        ("update tags set value = '9' where key = 'cs330ray.best_trial' and run_uuid = '{cell}'", "tag best_trial"),
        ("update tags set value = '9' where key = 'cs330ray.confirmed_val_loss'", "tag confirmed_val_loss"),
        ("update runs set lifecycle_stage = 'deleted' where run_uuid = '{fresh}'", "it is missing"),
    ],
)  # fmt: skip
def test_what_mlflow_says_otherwise_than_the_ledger_is_a_wrong_mirror(copy: Path, statement: str, said: str) -> None:
    number = complete(copy)
    trial, cell, top = run_of(copy, "trial", WELL, number), run_of(copy, "cell", WELL), run_of(copy, "study")
    confirmed = int(value(copy, f"select trial from cs330ray_ends where cell = '{FRESH}'"))
    fresh = run_of(copy, "trial", FRESH, confirmed)
    stopped = run_of(copy, "trial", WELL, pruned(copy))
    change(copy, statement.format(trial=trial, cell=cell, study=top, fresh=fresh, pruned=stopped), "mlflow.db")
    findings = audited(copy)
    assert any(said in line for line in counted(findings, "mirror_wrong"))
    assert {kind for kind, _ in findings.lines} == {"mirror_wrong"}


def test_a_home_without_its_mlflow_is_a_wrong_mirror(copy: Path) -> None:
    (copy / "mlflow.db").unlink()
    assert audited(copy).counts() == {**dict.fromkeys(auditor.KINDS, 0), "mirror_wrong": 1}


# Metrics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "cause"), [(WELL, "raised"), ('{"ends":"raises"}', "diverged")])
def test_a_cause_that_does_not_go_with_its_end_is_wrong_without_a_reference(copy: Path, cell: str, cause: str) -> None:
    change(copy, f"update cs330ray_ends set cause = '{cause}' where cell = '{cell}' and cause is not 'pruned'")
    lines = counted(audited(copy), "metrics_wrong")
    assert lines
    assert all("cause" in line for line in lines)


def test_a_ledger_of_before_has_no_causes_and_nothing_wrong(good: Path, copy: Path) -> None:
    connection = sqlite3.connect(copy / "ledger.db")
    connection.execute("alter table cs330ray_ends drop column cause")
    connection.execute("alter table cs330ray_losses drop column nodes")
    connection.commit()
    connection.close()
    assert audited(copy, reference=good).lines == audited(good, reference=copy).lines == {}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "update cs330ray_rows set metrics = replace(metrics, '\"val_loss\": ', '\"val_loss\": 1') "
            "where cell = '{cell}' and trial = {trial} and step = 10",
            "row 10",
        ),
        ("update cs330ray_ends set reason = 'other' where cell = '{cell}' and trial = {pruned}", "reason"),
        ("update cs330ray_ends set cause = 'lost' where cell = '{cell}' and trial = {pruned}", "cause"),
        ("update cs330ray_ends set worth = '[0.5]' where cell = '{cell}' and trial = {trial}", "worth"),
        ("update cs330ray_scores set metrics = '{{\"test_loss\": 0.5}}' where cell = '{cell} fresh 0'", "scores"),
        ("update trial_params set param_value = 0.5 where param_name = 'lr' and trial_id = {id}", "parameters"),
        ("update trial_user_attributes set value_json = '7' where key = 'seed' and trial_id = {id}", "seed"),
        ("update trial_values set value = value + 1e-9 where trial_id = {id}", "Optuna's value"),
        ("update trials set state = 'PRUNED' where trial_id = {id}", "Optuna's state"),
        ("update trial_intermediate_values set intermediate_value = 9 where step = 10 and trial_id = {id}", "report"),
    ],
)  # fmt: skip
def test_a_figure_that_is_not_that_of_the_undisturbed_study_is_counted(
    good: Path, copy: Path, statement: str, said: str
) -> None:
    number = complete(copy)
    where = f"study_name = 'toy {WELL}' and number = {number}"
    trial_id = value(copy, f"select trial_id from trials join studies using (study_id) where {where}")
    given = {"cell": WELL, "trial": number, "pruned": pruned(copy), "id": trial_id}
    change(copy, statement.format(**given))
    assert any(said in line for line in counted(audited(copy, reference=good), "metrics_wrong"))


def test_the_command_line_prints_a_line_each_and_the_counts_last(copy: Path) -> None:
    shutil.rmtree(copy / "toy" / "checkpoints" / next(os.walk(copy / "toy" / "checkpoints"))[1][0])
    lost = audited(copy).counts()["lost"]
    command = [sys.executable, auditor.__file__, str(copy), "toy"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    *lines, last = told.stdout.splitlines()
    assert told.returncode == 1
    assert len(lines) == lost > 0
    assert last == f'{{"lost": {lost}, "doubled": 0, "zombies": 0, "mirror_wrong": 0, "metrics_wrong": 0}}'
