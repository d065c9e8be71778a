"""One trial again: equal, within the seed interval, or not; what is otherwise now; what cannot be tried."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs330ray import files
from cs330ray.errors import DataError
from cs330ray.ledger.records import Ending, Row
from cs330ray.ledger.writer import Writer
from cs330ray.reproduce.rerun import read, stretches
from cs330ray.service.run import run
from cs330ray.service.search.ask import ask
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Study
from tests import in_process
from tests import toy as toy_trainable
from tests.cli.test_cli import ran
from tests.studies_of_tests import toy
from tests.trial.test_contract import TINY_MAML

WELL, RAISES, DIVERGES, NAN = ("ends=well", "ends=raises", "ends=diverges", "ends=nan")
Reproduce = Callable[..., tuple[int, str, str]]


def all_ends() -> Study:
    return toy(
        compare={"ends": ["well", "raises", "diverges", "nan"]},
        fixed={"ends_at": 12},
        prune={"kind": "median", "min_steps": 5, "startup": 1},
        budget={"trials": 3, "steps": 20},
        resources={"slots": 1},
        confirm={"top": 1, "seeds": 4},
    )


@pytest.fixture(scope="module")
def every_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with COMPLETE, PRUNED and failed trials of each kind, one configuration of it confirmed on four seeds."""
    home = tmp_path_factory.mktemp("every-end")
    in_process.run(all_ends(), home, mirror=False)
    return home


@pytest.fixture
def copied(every_end: Path, home: Path) -> Path:
    """A copy of it, which a test may doctor."""
    return Path(shutil.copytree(every_end, home))


@pytest.fixture
def reproduce(copied: Path, capsys: pytest.CaptureFixture[str]) -> Reproduce:
    return lambda number, *words: ran(capsys, "reproduce", "toy", str(number), *words)


def trial_that_is(home: Path, state: str, cell: str = WELL, *, confirmed: bool = False) -> int:
    ledger = Writer.at(home)
    study = ledger.study("toy")
    (found,) = [each for each in study.cells if each.title == cell]
    fresh = {trial.number for trial in ledger.trials(study, found.under(0))}
    numbers = [trial.number for trial in ledger.trials(study, found) if trial.state == state]
    return next(number for number in numbers if (number in fresh) is confirmed)


def doctor(home: Path, statement: str, *values: Any) -> None:
    """Change the record itself."""
    with sqlite3.connect(home / "ledger.db") as connection:
        assert connection.execute(statement, values).rowcount > 0
    connection.close()


def tables(home: Path) -> dict[str, list[Any]]:
    """All that the ledger holds, by table."""
    connection = sqlite3.connect(home / "ledger.db")
    names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
    held = {name: sorted(connection.execute(f'select * from "{name}"'), key=repr) for name in names}
    connection.close()
    return held


def with_another_seed(home: Path) -> None:
    doctor(home, "update trial_user_attributes set value_json = '7' where key = 'seed'")


def last_line(out: str) -> str:
    return out.splitlines()[-1]


# The verdict --------------------------------------------------------------------------------------------------------


def test_a_complete_trial_is_equal_and_the_ledger_is_only_read(copied: Path, reproduce: Reproduce) -> None:
    before = tables(copied)
    code, out, _ = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert code == 0
    assert last_line(out) == "equal: every metric of every row (4 rows, 2 metrics) to the bit"
    assert out.count("as recorded") == 4
    assert "warning" not in out
    assert tables(copied) == before


def test_a_pruned_trial_is_run_up_to_its_last_row(copied: Path, reproduce: Reproduce) -> None:
    number = trial_that_is(copied, "PRUNED")
    ledger = Writer.at(copied)
    study = ledger.study("toy")
    last = ledger.last_step(study, study.cells[0], number)
    assert last < 20
    code, out, _ = reproduce(number, "--cell", WELL)
    assert code == 0
    assert f"{last} steps; it was PRUNED" in out
    assert out.count("as recorded") == last // 5


@pytest.mark.parametrize(
    ("cell", "reason"),
    [(RAISES, "raised: RuntimeError: planted"), (DIVERGES, "diverged: the loss is inf at step 12")],
)
def test_a_failed_trial_ends_so_again_at_the_same_place(reproduce: Reproduce, cell: str, reason: str) -> None:
    code, out, _ = reproduce(0, "--cell", cell)
    assert code == 0
    assert last_line(out) == (
        f"equal: every metric of every row (2 rows, 2 metrics) to the bit, and it ended again by: {reason}"
    )


def test_a_trial_that_failed_by_a_value_that_is_no_number_has_that_value_again(reproduce: Reproduce) -> None:
    code, out, _ = reproduce(0, "--cell", NAN)
    assert (code, last_line(out).split(":")[0]) == (0, "equal")
    assert "val_loss nan" in out


def test_a_failed_trial_that_goes_on_now_is_not_reproduced_and_ends_at_the_first_row_too_many(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    healed = toy_trainable.train

    def train(config: toy_trainable.Config, *rest: Any) -> Any:
        return healed(config.model_copy(update={"ends": "well"}), *rest)

    monkeypatch.setattr(toy_trainable, "train", train)
    code, out, _ = reproduce(0, "--cell", RAISES)
    assert code == 1
    assert last_line(out) == (
        "not reproduced: it ended by 'raised: RuntimeError: planted' after step 10, and goes on now"
    )
    assert "step     15" in out
    assert "step     20" not in out


def test_a_complete_trial_that_raises_now_is_not_reproduced(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = toy_trainable.train

    def train(config: toy_trainable.Config, *rest: Any) -> Any:
        return whole(config.model_copy(update={"ends": "raises"}), *rest)

    monkeypatch.setattr(toy_trainable, "train", train)
    code, out, _ = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert code == 1
    assert "and is none; it raised now: raised: RuntimeError: planted" in last_line(out)


def test_another_seed_of_a_confirmed_configuration_lies_within_the_seed_interval(
    copied: Path, reproduce: Reproduce
) -> None:
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    with_another_seed(copied)
    code, out, _ = reproduce(number, "--cell", WELL)
    assert code == 0
    assert last_line(out).startswith("within the seed interval: val_loss at step 5 was ")
    assert last_line(out).endswith("it lies where one further run would, by its 4 other fresh seeds")
    assert "differs in val_loss" in out
    assert "differs in val_loss, val_speed" not in out


def test_a_value_outside_of_the_seed_interval_is_not_reproduced(copied: Path, reproduce: Reproduce) -> None:
    """By the confirmation's word the configuration reaches 5.1 to 5.4, give or take: 0.something is far outside."""
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    with_another_seed(copied)
    for seed in range(4):
        doctor(copied, "update cs330ray_ends set worth = ? where cell like ?", f"[5.{seed + 1}]", f"% fresh {seed}")
    code, out, _ = reproduce(number, "--cell", WELL)
    assert code == 1
    assert last_line(out).endswith("val_loss now lies outside where one further run would")


def test_another_seed_of_a_configuration_that_is_not_confirmed_is_not_reproduced_and_says_why(
    copied: Path, reproduce: Reproduce
) -> None:
    number = trial_that_is(copied, "PRUNED")
    with_another_seed(copied)
    assert reproduce(number, "--cell", WELL)[0] == 1
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    doctor(copied, "update cs330ray_ends set state = 'FAIL' where cell like '% fresh %' and cell not like '% fresh 0'")
    code, out, _ = reproduce(number, "--cell", WELL)
    assert code == 1
    assert "there is no seed interval to hold it against" in last_line(out)


@pytest.mark.parametrize(
    ("error", "fragment"),
    [
        (DataError("letters: they are needed, but missing; fetch them"), "letters: they are needed, but missing"),
        (MemoryError("no more"), "enough memory is needed, but this machine is out of memory: MemoryError: no more"),
    ],
)
def test_what_this_machine_lacks_is_one_line_and_no_verdict(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch, error: Exception, fragment: str
) -> None:
    def train(*_: object) -> Any:
        raise error
        yield

    monkeypatch.setattr(toy_trainable, "train", train)
    code, out, err = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert (code, err.count("\n")) == (2, 1)
    assert fragment in err
    assert "not reproduced" not in out


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("I/O error (os error 28)")])
def test_a_checkpoint_for_which_there_is_no_room_is_one_line_and_no_verdict(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def write(*_: object) -> None:
        raise error

    monkeypatch.setattr(files, "make_directory", write)
    code, out, err = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert (code, err.count("\n")) == (2, 1)
    assert "room for a checkpoint is needed, but " in err
    assert "not reproduced" not in out


def test_a_file_that_a_trainable_misses_itself_is_what_it_raised(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> Any:
        raise FileNotFoundError(2, "No such file", "mine")
        yield

    monkeypatch.setattr(toy_trainable, "train", train)
    code, out, _ = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert code == 1
    assert "it raised now: raised: FileNotFoundError" in last_line(out)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SystemExit("no data"), "raised: SystemExit: no data"),
        (KeyboardInterrupt(), "raised: KeyboardInterrupt"),  # no signal came
    ],
    ids=repr,
)
def test_whatever_a_trainable_raises_is_what_it_raised_now(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: str
) -> None:
    def train(*_: object) -> Any:
        raise error
        yield

    monkeypatch.setattr(toy_trainable, "train", train)
    code, out, _ = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert code == 1
    assert last_line(out).endswith(f"it raised now: {reason}")


def test_a_save_that_fails_by_itself_is_no_matter_of_the_disk(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_trainable, "_save", lambda path, state: (path / "weights" / "state.json").write_text(""))
    code, out, _ = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert code == 1
    assert "raised: FileNotFoundError: [Errno 2] No such file or directory: 'weights/state.json'" in last_line(out)


def test_a_row_that_breaks_the_contract_is_the_line_that_the_service_says(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_trainable, "train", lambda *_: iter([{"val_loss": 0.5}]))
    code, out, _ = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert code == 1
    assert last_line(out).endswith("it raised now: train must yield Progress, got dict")


# Confirmation, and a line of trials ----------------------------------------------------------------------------------


def test_a_run_of_confirmation_is_equal_on_its_fresh_seed_and_test_stays_shut(
    copied: Path, reproduce: Reproduce
) -> None:
    before = tables(copied)
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    code, out, _ = reproduce(number, "--cell", WELL, "--fresh", "2")
    assert (code, last_line(out).split(":")[0]) == (0, "equal")
    assert "on fresh seed 2 again" in out
    assert "test_loss" not in out
    assert tables(copied) == before


def test_test_is_compared_when_asked_for_and_the_ledger_says_that_it_was_opened(
    copied: Path, reproduce: Reproduce
) -> None:
    before = tables(copied)
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    code, out, _ = reproduce(number, "--cell", WELL, "--fresh", "1", "--test")
    assert (code, last_line(out)) == (0, "equal: every metric of every row (4 rows, 3 metrics) to the bit")
    after = tables(copied)
    ((_, trainable, _, _, metrics, _),) = after.pop("cs330ray_tests")
    assert trainable == "tests.toy"
    ledger = Writer.at(copied)
    study = ledger.study("toy")
    assert json.loads(metrics) == ledger.test_metrics(study, study.cells[0].under(1), number)
    assert before.pop("cs330ray_tests") == []
    assert after == before


def test_a_test_that_shows_something_else_is_not_equal(copied: Path, reproduce: Reproduce) -> None:
    doctor(copied, "update cs330ray_scores set metrics = '{\"test_loss\": 9.0}' where cell like '% fresh 1'")
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    code, out, _ = reproduce(number, "--cell", WELL, "--fresh", "1", "--test")
    assert code == 0
    assert last_line(out).startswith("within the seed interval: test_loss at step 20 was 9.0 and is 0.")
    assert last_line(out).endswith("by its 3 other fresh seeds")


def test_a_test_that_raises_now_is_not_reproduced(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    def test(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(toy_trainable, "test", test)
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    code, out, _ = reproduce(number, "--cell", WELL, "--fresh", "1", "--test")
    assert code == 1
    assert last_line(out).endswith("and is none; it raised now: raised: KeyError: 'planted'")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial of 12 steps with a row every 5, which goes on to 23 as trial 1."""
    home = tmp_path_factory.mktemp("grown")
    for steps in (12, 23):
        in_process.run(toy(budget={"trials": 1, "steps": steps}), home, mirror=False)
    return home


def test_a_grown_trial_is_compared_with_the_rows_of_its_whole_line_those_at_the_seam_too(
    grown: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(grown))
    code, out, _ = ran(capsys, "reproduce", "toy", "1")
    assert (code, last_line(out)) == (0, "equal: every metric of every row (6 rows, 2 metrics) to the bit")
    shown = [line.split()[1] for line in out.splitlines() if line.startswith("step ")]
    assert shown == ["5", "10", "12", "15", "20", "23"]


def test_the_first_of_a_grown_line_is_compared_with_its_own_rows(
    grown: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CS330RAY_HOME", str(grown))
    code, out, _ = ran(capsys, "reproduce", "toy", "0")
    assert (code, last_line(out)) == (0, "equal: every metric of every row (3 rows, 2 metrics) to the bit")


@pytest.mark.slow
def test_a_system_of_the_course_that_was_run_by_ray_is_equal_without(
    home: Path, ray_here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = {
        "name": "tiny", "trainable": "maml", "objective": ["val_accuracy"], "fixed": TINY_MAML,
        "search": {"inner_lr": {"low": 0.01, "high": 1.0, "log": True}}, "budget": {"trials": 1, "steps": 4},
    }  # fmt: skip
    run(parse(raw, "tiny"), home, mirror=False)
    code, out, err = ran(capsys, "reproduce", "tiny", "0")
    assert (code, err) == (0, "")
    assert "warning" not in out
    assert last_line(out).startswith("equal: every metric of every row (2 rows, ")


def test_a_trial_that_was_given_more_steps_when_it_was_interrupted_after_its_last_row_is_run_with_that_seam(
    home: Path,
) -> None:
    """Its row at step 12 is one that a trial of 23 steps, with a row every 5, does not have."""
    ledger, study = Writer.at(home), toy(budget={"trials": 1, "steps": 23})
    ledger.open(study, {"tests.toy": toy_trainable.METRICS})
    (cell,) = study.cells
    number = ledger.enter(study, cell, ask(study, cell, ["min"], []), 5)
    ledger.write_rows(study, cell, number, [Row(step, {"val_loss": 1.0}, 0.0) for step in (5, 10, 12, 15, 20, 23)])
    ledger.end(study, cell, number, Ending("COMPLETE"))
    config = toy_trainable.Config(eval_every_steps=5)
    assert stretches(read(ledger, study, ledger.trials(study, cell)[number]), config) == [12, 23]


# What is otherwise now ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "recorded", "what"),
    [
        ("$.code", "0123456789abcdef", "code: recorded 0123456789ab, now "),
        ("$.data", "letters", "data: recorded letters, now toy"),
        ("$.python", "3.9.1", "python: recorded 3.9.1, now 3."),
        ("$.versions.numpy", "1.0", "numpy: recorded 1.0, now "),
        ("$.versions.peft", "0.0.1", "peft: recorded 0.0.1, now "),
        ("$.device", "NVIDIA H200", "device: recorded NVIDIA H200, now "),
        ("$.host", "elsewhere", "host: recorded elsewhere, now "),
    ],
)
def test_what_is_otherwise_than_recorded_is_warned_of_with_both_values_and_changes_no_verdict(
    copied: Path, reproduce: Reproduce, place: str, recorded: str, what: str
) -> None:
    doctor(copied, "update cs330ray_attempts set circumstances = json_set(circumstances, ?, ?)", place, recorded)
    code, out, _ = reproduce(trial_that_is(copied, "COMPLETE", confirmed=True), "--cell", WELL)
    assert code == 0
    (warning,) = [line for line in out.splitlines() if line.startswith("warning")]
    assert warning.startswith(f"warning: {what}")


def test_the_version_of_ray_is_not_compared_since_nothing_is_left_to_it(copied: Path, reproduce: Reproduce) -> None:
    doctor(copied, "update cs330ray_attempts set circumstances = json_set(circumstances, '$.versions.ray', '1.0')")
    assert "warning" not in reproduce(0, "--cell", RAISES)[1]


def test_a_trial_that_was_resumed_on_something_else_says_where(copied: Path, reproduce: Reproduce) -> None:
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    ledger = Writer.at(copied)
    study = ledger.study("toy")
    (first,) = ledger.attempts(study, study.cells[0], number)
    again = first | {"resumed_from_step": 10, "threads": 8}
    ledger.write_attempt(study, study.cells[0], number, again)
    out = reproduce(number, "--cell", WELL)[1]
    (warning,) = [line for line in out.splitlines() if line.startswith("warning")]
    assert warning == "warning: threads: recorded 1, from step 10 on 8 (it was resumed), now 1"


def test_it_trains_with_as_many_threads_as_were_recorded(
    copied: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    seen = []
    whole = toy_trainable.train
    monkeypatch.setattr(toy_trainable, "train", lambda *args: seen.append(torch.get_num_threads()) or whole(*args))
    doctor(copied, "update cs330ray_attempts set circumstances = json_set(circumstances, '$.threads', 3)")
    before = torch.get_num_threads()
    try:
        out = reproduce(0, "--cell", RAISES)[1]
    finally:
        torch.set_num_threads(before)
    assert seen == [3]
    assert "threads" not in out


@pytest.mark.parametrize(("recorded", "seen"), [("x86_64", "cpu"), ("NVIDIA H200", None), ("mps", None)])
def test_a_trial_of_a_cpu_is_kept_from_a_gpu_that_is_here(
    reproduce: Reproduce, copied: Path, monkeypatch: pytest.MonkeyPatch, recorded: str, seen: str | None
) -> None:
    devices = []
    whole = toy_trainable.train
    monkeypatch.delenv("CS330RAY_DEVICE", raising=False)
    monkeypatch.setattr(
        toy_trainable, "train", lambda *args: devices.append(os.environ.get("CS330RAY_DEVICE")) or whole(*args)
    )
    doctor(copied, "update cs330ray_attempts set circumstances = json_set(circumstances, '$.device', ?)", recorded)
    assert reproduce(0, "--cell", RAISES)[0] == 0
    assert devices == [seen]
    assert "CS330RAY_DEVICE" not in os.environ


def test_a_trial_of_several_workers_says_that_one_runs_it(copied: Path, reproduce: Reproduce) -> None:
    doctor(
        copied,
        "update cs330ray_attempts set circumstances = json_set(circumstances, '$.workers', json('[\"a\", \"b\"]'))",
    )
    assert "2 workers trained it and one does here, so bits may differ" in reproduce(0, "--cell", RAISES)[1]


# What is left, and what cannot be tried ------------------------------------------------------------------------------


def test_checkpoints_are_kept_where_that_is_asked_for(copied: Path, reproduce: Reproduce, tmp_path: Path) -> None:
    number = trial_that_is(copied, "COMPLETE", confirmed=True)
    assert reproduce(number, "--cell", WELL, "--keep", str(tmp_path / "kept"))[0] == 0
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step-00000020"]
    code, _, err = reproduce(number, "--cell", WELL, "--keep", str(tmp_path / "kept"))
    assert (code, err.count("\n")) == (2, 1)
    assert "an empty directory is needed" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["9", "--cell", WELL], "trial 9 must be one trial"),
        (["0"], "4 cells have it; add --cell"),
        (["0", "--cell", WELL, "--fresh", "9"], "--fresh: a seed on which trial 0 was confirmed is needed, but got 9"),
        (["0", "--cell", WELL, "--test"], "--test: a run of confirmation is needed"),
    ],
)
def test_what_cannot_be_meant_is_one_line(reproduce: Reproduce, words: list[str], said: str) -> None:
    code, out, err = reproduce(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("update cs330ray_studies set spec = replace(spec, 'tests.toy', 'tests.gone')", "tests.gone"),
        ("delete from cs330ray_ends", "trial 0 must have ended, but it is RUNNING"),
        (
            "update cs330ray_studies set spec = replace(spec, 'ends_at', 'ended_at')",
            "ended_at: extra inputs are not permitted",
        ),
    ],
)
def test_a_trial_that_cannot_be_tried_is_one_line(
    copied: Path, reproduce: Reproduce, statement: str, said: str
) -> None:
    doctor(copied, statement)
    code, out, err = reproduce(0, "--cell", NAN)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert "step  " not in out


def test_a_trial_that_failed_by_a_configuration_that_is_refused_is_refused_again(
    copied: Path, reproduce: Reproduce
) -> None:
    reason = "raised: pydantic_core._pydantic_core.ValidationError: 1 validation error for Config"
    doctor(copied, "update cs330ray_ends set reason = ? where cell like '%raises%'", reason)
    doctor(copied, "delete from cs330ray_rows where cell like '%raises%'")
    doctor(copied, "update cs330ray_studies set spec = replace(spec, 'ends_at', 'ended_at')")
    code, out, _ = reproduce(0, "--cell", RAISES)
    assert (code, last_line(out)[-len(reason) :]) == (0, reason)
    assert last_line(out).startswith("equal: ")


def test_a_lost_trial_without_a_row_is_nothing_to_compare(copied: Path, reproduce: Reproduce) -> None:
    doctor(copied, "delete from cs330ray_rows where cell like '%raises%'")
    doctor(copied, "update cs330ray_ends set reason = 'worker lost 4 times', cause = 'lost' where cell like '%raises%'")
    code, _, err = reproduce(0, "--cell", RAISES)
    assert (code, err) == (2, "toy: trial 0 must have rows to compare, but it ended without: worker lost 4 times\n")


def test_a_lost_trial_is_run_up_to_its_last_row(copied: Path, reproduce: Reproduce) -> None:
    doctor(copied, "update cs330ray_ends set reason = 'worker lost 4 times', cause = 'lost' where cell like '%raises%'")
    code, out, _ = reproduce(0, "--cell", RAISES)
    assert (code, last_line(out).split(":")[0]) == (0, "equal")
    assert "10 steps; it was FAIL [worker lost 4 times]; what ended it lay outside" in out


def test_data_that_are_missing_are_one_line(reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(config: object) -> str:
        raise DataError("toys: an archive is needed, but there is none; fetch it")

    monkeypatch.setattr(toy_trainable, "prepare", prepare)
    code, _, err = reproduce(0, "--cell", RAISES)
    assert (code, err) == (2, "toys: an archive is needed, but there is none; fetch it\n")


def test_ctrl_c_ends_it_at_once_and_nothing_is_left_behind(copied: Path, tmp_path: Path) -> None:
    doctor(copied, 'update cs330ray_studies set spec = replace(spec, \'"ends_at":12\', \'"ends_at":12,"sleep_s":0.3\')')
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-m", "cs330ray", "reproduce", "toy", "0", "--cell", WELL]
    process = subprocess.Popen(
        command, env=os.environ | {"TMPDIR": str(tmp_path / "scratch")}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test in the background has it ignored
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step "):
        assert process.poll() is None
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (130, False)
    assert time.monotonic() - asked < 3
    assert list((tmp_path / "scratch").iterdir()) == []


def test_show_ends_with_the_line_that_reproduces_a_trial(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ran(capsys, "show", "toy", "0", "--cell", WELL)[1]
    assert last_line(out) == f"Run it again: CS330RAY_HOME={copied} cs330ray reproduce toy 0 --cell ends=well"
