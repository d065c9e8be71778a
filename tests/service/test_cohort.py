"""Trials that train together: the same record as alone, whatever becomes of one of them or of their worker."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cs330ray.checkpoints import local
from cs330ray.errors import SpecError
from cs330ray.ledger.confirm import fresh_cells
from cs330ray.ledger.writer import Writer
from cs330ray.service.listener import Silent
from cs330ray.service.messages import News
from cs330ray.service.run import run
from cs330ray.service.workers import memory
from cs330ray.service.workers.cohort import CohortRun
from cs330ray.spec.reading import parse
from cs330ray.spec.study import Cell, Study, fresh_seed
from cs330ray.trial.check import check
from cs330ray.trial.contract import Moment
from tests import company as company_trainable
from tests import in_process
from tests.assignments import assignment
from tests.studies_of_tests import whole

STEPS = 20


class Ear(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def says(self, line: str) -> None:
        self.said.append(line)


def company(fuse: int, **changes: Any) -> Study:
    raw: dict[str, Any] = {
        "name": "company", "trainable": "tests.company", "objective": ["val_loss"],
        "search": {"lr": {"low": 0.01, "high": 0.5}},
        "sampler": {"kind": "tpe", "startup": 1}, "budget": {"trials": 3, "steps": STEPS},
        "confirm": {"top": 2, "seeds": 3},
        "resources": {"slots": 1, "fuse": fuse, "checkpoint": "1s"},
    }  # fmt: skip
    return parse({**raw, **changes}, "company")


def confirmed(home: Path) -> list[tuple[Any, ...]]:
    """All that confirmation found, without times."""
    return found(home, fresh_cells(Writer.at(home).study("company")))


def searched(home: Path) -> list[tuple[Any, ...]]:
    """All that the search found, without times."""
    return found(home, Writer.at(home).study("company").cells)


def found(home: Path, cells: Sequence[Cell]) -> list[tuple[Any, ...]]:
    ledger = Writer.at(home)
    study = ledger.study("company")
    return [
        (cell.fresh, one.number, one.state, one.reason, one.seed, one.values,
         [(row.step, dict(row.metrics)) for row in ledger.rows(study, cell, one.number)],
         ledger.test_metrics(study, cell, one.number), ledger.test_items(study, cell, one.number))
        for cell in cells
        for one in ledger.trials(study, cell)
    ]  # fmt: skip


def attempts(home: Path, cells: Sequence[Cell] | None = None) -> list[list[dict[str, Any]]]:
    """The starts of each run of confirmation, or of the trials of `cells`."""
    ledger = Writer.at(home)
    study = ledger.study("company")
    cells = fresh_cells(study) if cells is None else cells
    return [ledger.attempts(study, cell, one.number) for cell in cells for one in ledger.trials(study, cell)]


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        ({}, None),
        pytest.param({"stops_at": 13}, None, marks=pytest.mark.slow),
        pytest.param({"diverges_on": "one"}, None, marks=pytest.mark.slow),
        pytest.param(
            {"together": "unequal"},
            "together they would not be equal to the bit on this machine",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"together": "raises"}, "out of memory: MemoryError: together they do not fit", marks=pytest.mark.slow
        ),
        pytest.param({"together": "dies", "sleep_s": 0.03}, "their worker is gone", marks=pytest.mark.slow),
    ],
    ids=["well", "ends itself", "one diverges", "unequal", "raises", "dies"],
)
def test_confirmation_finds_together_what_it_finds_alone(
    fixed: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    if fixed.get("diverges_on") == "one":
        fixed = {"diverges_on": fresh_seed(company(1).seed, 1, 0)}
    ear = Ear()
    in_process.run(company(1, fixed=fixed), tmp_path / "alone", mirror=False)
    run(company(6, fixed=fixed), tmp_path / "together", ear, mirror=False)
    assert confirmed(tmp_path / "together") == confirmed(tmp_path / "alone")
    assert whole(tmp_path / "together", "company") == whole(tmp_path / "alone", "company")
    parted = [line for line in ear.said if "go on alone" in line]
    if said is None:
        assert parted == []
    else:
        [line] = parted
        assert re.match(r"trials (\d on fresh seed \d(, )?){6} go on alone: ", line)
        assert said in line
    beside = [each[0].get("together") for each in attempts(tmp_path / "together")]
    if fixed.get("together") != "unequal":
        assert all(each[-1].get("together") is None for each in attempts(tmp_path / "together"))  # the end is alone's
        assert [len(one["seeds"]) for one in beside] == [5] * 6
        assert {one["proof"] for one in beside} == {"bits"}
    else:
        assert beside == [None] * 6


ASHA = {"kind": "asha", "min_steps": 4, "reduction": 2}


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("changes", "pruned"),
    [
        ({"prune": ASHA, "sampler": {"kind": "random"}}, True),
        pytest.param(
            {"prune": ASHA, "sampler": {"kind": "random"}, "compare": {"width": [1, 2]}, "start": [{"lr": 0.4}]},
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param({"prune": ASHA, "sampler": {"kind": "tpe", "startup": 4}}, True, marks=pytest.mark.slow),
        pytest.param({"sampler": {"kind": "qmc"}, "fixed": {"stops_at": 13}}, False, marks=pytest.mark.slow),
    ],
    ids=["random, asha", "random, asha, two cells", "tpe, asha", "qmc"],
)
def test_a_search_finds_together_what_it_finds_alone(changes: dict[str, Any], pruned: bool, tmp_path: Path) -> None:
    """On one slot; what asha decides, too: each trial against those before it."""
    changes = {"budget": {"trials": 8, "steps": STEPS}, "confirm": {"top": 1, "seeds": 1}, **changes}
    ear = Ear()
    in_process.run(company(1, **changes), tmp_path / "alone", mirror=False)
    run(company(4, **changes), tmp_path / "together", ear, mirror=False)
    assert searched(tmp_path / "together") == searched(tmp_path / "alone")
    assert confirmed(tmp_path / "together") == confirmed(tmp_path / "alone")
    assert [line for line in ear.said if "go on alone" in line] == []
    assert {one[2] for one in searched(tmp_path / "alone")} == {"COMPLETE"} | ({"PRUNED"} if pruned else set())
    study = Writer.at(tmp_path / "together").study("company")
    starts = attempts(tmp_path / "together", study.cells)
    assert {len(each[0]["together"]["seeds"]) for each in starts if each[0].get("together")} == {3}
    if pruned:  # those who went on behind a rung did so together again, from where they stood
        again = [each[1] for each in starts if len(each) > 1 and each[1].get("together")]
        assert again
        assert all(one["resumed_from_step"] >= ASHA["min_steps"] for one in again)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.slow
def test_what_is_too_much_memory_for_all_of_them_is_no_end_of_any(tmp_path: Path) -> None:
    fixed, confirm = {"together": "grows"}, {"top": 1, "seeds": 2}
    resources = {"slots": 1, "fuse": 2, "memory": 1.0}
    ear = Ear()
    run(company(2, fixed=fixed, confirm=confirm, resources=resources), tmp_path, ear, mirror=False)
    assert [each[2] for each in confirmed(tmp_path)] == ["COMPLETE", "COMPLETE"]
    [line] = [line for line in ear.said if "go on alone" in line]
    assert "their worker is gone" in line


def test_what_cannot_train_together_is_refused_in_one_line() -> None:
    with pytest.raises(SpecError, match=r"resources.fuse: one process trains several .* got fuse=2 with workers=2"):
        company(2, resources={"fuse": 2, "workers": 2})
    with pytest.raises(SpecError, match=r"resources.fuse: tests.toy has no train_many, .* 1 is needed, but got 3"):
        check(company(3, trainable="tests.toy"), "company")
    with pytest.raises(SpecError, match=r"resources.fuse"):
        company(0)
    assert company(1).digest == company(8).digest


# One worker, without Ray ----------------------------------------------------------------------------------------------


def cohort(
    folder: Path,
    steps: Sequence[int] = (STEPS, STEPS),
    *,
    memory_gib: float | None = None,
    batch_s: float = 0.0,
    prune_every: int = 0,
    **config: Any,
) -> CohortRun:
    """Trials of nothing that is recorded yet, by their steps; a row in each message, or as `batch_s` has it."""
    told = [
        assignment(
            folder / str(seed), trainable="tests.company", seed=seed, begun=False, recorded_step=0, batch_s=batch_s,
            memory_gib=memory_gib, prune_every=prune_every,
            config={"lr": 0.1, "eval_every_steps": 2, **config}, steps=its_steps,
        )
        for seed, its_steps in enumerate(steps)
    ]  # fmt: skip
    return CohortRun(replace(told[0], beside=tuple(told[1:])), None, lambda: False)


def to_the_end(run: CohortRun) -> list[News]:
    """All that it says, until its members part."""
    said = [run.next_batch()]
    while said[-1].parts is None:
        said.append(run.next_batch())
    return said


def newest(folder: Path, seed: int) -> int:
    found = local.newest(folder / str(seed))
    assert found is not None
    return found.step


def test_behind_a_rung_nobody_trains_on_before_its_checkpoints_are_told(tmp_path: Path) -> None:
    said = to_the_end(cohort(tmp_path, prune_every=5, batch_s=1e9))
    told = [
        ([row.step for row in news.rows], news.checkpoint and news.checkpoint.step, news.saves)
        for news in (member for each in said for member in each.members)
    ]
    assert told[::2] == [
        ([2, 4, 6], None, True), ([], 6, None), ([8, 10], None, True), ([], 10, None), ([12, 14, 16], None, True),
        ([], 16, None), ([18, 20], None, None), ([], 20, None),
        ([], None, None),
    ]  # fmt: skip
    assert [(rows, kept) for rows, kept, _ in told[1::2]] == [(rows, kept) for rows, kept, _ in told[::2]]


@pytest.mark.parametrize("config", [{}, {"stops_at": 13}], ids=["at the end of the budget", "by a rule of its own"])
def test_who_has_trained_to_the_end_leaves_its_last_moment_behind(tmp_path: Path, config: dict[str, Any]) -> None:
    said = to_the_end(cohort(tmp_path, **config))
    end = config.get("stops_at", STEPS)
    for place in range(2):
        assert max(row.step for news in said for row in news.members[place].rows) == end
        assert newest(tmp_path, place) == end
    assert [news.parts for news in said] == [None] * (len(said) - 1) + [""]
    assert all(member.end is None for news in said for member in news.members)


@pytest.mark.parametrize("steps", [(STEPS, STEPS), (STEPS, 10)], ids=["both end", "one ends before"])
def test_a_full_disk_at_the_end_is_waited_for_and_nothing_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, int]
) -> None:
    full, write = iter([True, True, True]), local.write

    def sometimes(home: Path, *given: Any) -> Any:
        if home == tmp_path / "1" and next(full, False):
            raise local.DiskFault("No space left on device")
        return write(home, *given)

    monkeypatch.setattr(local, "write", sometimes)
    monkeypatch.setattr("cs330ray.service.workers.cohort.SAVE_AGAIN_S", 0.0)
    said = to_the_end(cohort(tmp_path, steps))
    assert [news.members[1].waits for news in said].count("end") == 3
    assert {news.members[1].unsaved for news in said if news.members[1].waits} == {"No space left on device"}
    assert (newest(tmp_path, 0), newest(tmp_path, 1)) == steps
    assert said[-1].parts == ""


@pytest.mark.parametrize(("alone", "trials"), [(True, 1), (False, 2)])
def test_a_worker_of_several_leaves_no_mark_by_which_one_of_them_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool, trials: int
) -> None:
    """Only the first trial of a process leaves one."""
    for name, value in {"trials": 0, "last": None, "home": None, "thread": object()}.items():
        monkeypatch.setattr(memory._Watch, name, value)
    if alone:
        memory.watch(tmp_path, 1.0)
    else:
        run = cohort(tmp_path, memory_gib=1.0)
        run.next_batch()
        assert memory._Watch.limit_gib == 2.0
    assert memory._Watch.trials == trials


def test_a_generator_that_raises_as_it_is_closed_leaves_the_worker_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_many = company_trainable.train_many

    def bad(*given: Any) -> Iterator[Moment]:
        try:
            yield from train_many(*given)
        finally:
            raise RuntimeError("planted")

    run = cohort(tmp_path)
    run.next_batch()
    monkeypatch.setattr(run, "_moments", bad([each.member for each in run._members], set()))
    next(run._moments)  # type: ignore[arg-type]
    run.close()
    assert "RuntimeError: planted" in capsys.readouterr().err
