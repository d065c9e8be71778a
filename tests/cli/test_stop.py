"""`stop`: a run is asked to end, or to give a trial up, by another process; nothing is done where none lives."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cs330ray.ledger import lease
from cs330ray.ledger.lease import WHOLE, Holder, Lease, held
from cs330ray.ledger.ledger import Ledger
from cs330ray.ledger.records import Ending
from cs330ray.ledger.writer import Writer
from cs330ray.service.search.ask import ask
from tests import toy as toy_trainable
from tests.cli.test_cli import ran
from tests.studies_of_tests import toy

STOPPED = Ending("FAIL", "stopped by hand", cause="stopped")


@pytest.fixture
def ledger(home: Path) -> Writer:
    """A study of two cells, in each of which trial 0 runs."""
    study, writer = toy(compare={"data_seed": [0, 1]}), Writer.at(home)
    writer.open(study, {"tests.toy": toy_trainable.METRICS})
    for cell in study.cells:
        writer.enter(study, cell, ask(study, cell, ["min"], []), seed=1)
    return writer


@contextmanager
def driver(ledger: Writer, hears: Callable[[Lease, list[tuple[str, int]]], bool]) -> Iterator[None]:
    """A driver that is told what it is asked until it `hears` enough."""

    def drive() -> None:
        with held(ledger.database, "toy") as mine:
            ready.set()
            until = time.monotonic() + 30
            while not hears(mine, mine.asked()) and time.monotonic() < until:
                time.sleep(0.05)

    ready = threading.Event()
    thread = threading.Thread(target=drive)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        thread.join()


def requests(ledger: Writer) -> int:
    return len(ledger.database.select(lease.sql.select(lease.REQUESTS)))


def test_a_run_that_is_asked_to_stop_is_waited_for(ledger: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    with driver(ledger, lambda _, asked: WHOLE in asked):
        code, out, err = ran(capsys, "stop", "toy")
    assert (code, err) == (0, "")
    first, last = out.splitlines()
    assert first.endswith("is asked to stop")
    assert last == "toy: stopped; nothing is lost, and the same command resumes it"
    assert requests(ledger) == 0


def test_a_trial_that_is_given_up_is_waited_for_and_the_run_goes_on(
    ledger: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    study, over = ledger.study("toy"), threading.Event()
    second = study.cells[1]

    def hears(_: Lease, asked: list[tuple[str, int]]) -> bool:
        if asked:
            assert asked == [(second.key, 0)]
            ledger.end(study, second, 0, STOPPED)
        return over.is_set()

    with driver(ledger, hears):
        code, out, err = ran(capsys, "stop", "toy", "--trial", "0")
        assert (code, out) == (2, "")
        assert "2 cells have it; add --cell with one of 'data_seed=0', 'data_seed=1'" in err
        code, out, err = ran(capsys, "stop", "toy", "--trial", "0", "--cell", "data_seed=1")
        assert (code, err) == (0, "")
        assert out.endswith("toy: trial 0 has ended, and is not taken up again\n")
        code, _, err = ran(capsys, "stop", "toy", "--trial", "0", "--cell", "data_seed=1")
        assert (code, err) == (2, "toy: trial 0: expected one that has not ended, got one that is FAIL\n")
        over.set()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["toy"], "toy: expected a run of it to stop, got none under way; one on a cluster is stopped with --address"),
        (
            ["toy", "--trial", "0", "--cell", "data_seed=0"],
            "toy: expected a run of it to stop, got none under way; one on a cluster is stopped with --address",
        ),
        (["toy", "--cell", "data_seed=0"], "--cell: expected --trial N beside it, got --cell 'data_seed=0' alone"),
        (["toy", "--trial", "7"], "toy: trial 7 must be one trial, but there is none"),
        (["toy", "--trial", "0", "--address", "http://127.0.0.1:9"], "--trial: expected a study of this home's ledger"),
    ],
)
def test_what_cannot_be_stopped_is_one_line_and_nothing_is_written(
    ledger: Writer, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    code, out, err = ran(capsys, "stop", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)
    assert requests(ledger) == 0


def test_a_run_that_has_died_is_nothing_to_stop(ledger: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    dead = json.dumps(vars(Holder.here()) | {"birth": "another"})
    lease.take(ledger.database, "toy", "dead", dead, None)
    assert ran(capsys, "stop", "toy")[0] == 2


def test_a_run_elsewhere_that_is_silent_is_dead_and_what_it_was_asked_is_taken_back(
    ledger: Writer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENCE_S", 0.2)
    far = json.dumps(vars(Holder("faraway", "another machine", 7, "1")))
    lease.take(ledger.database, "toy", "far", far, None)
    code, out, err = ran(capsys, "stop", "toy")
    assert (code, out) == (2, "toy: process 7 on faraway is asked to stop\n")
    assert err == "toy: expected a run of it to stop, got none: process 7 on faraway has died\n"
    assert requests(ledger) == 0


def test_what_a_driver_did_not_live_to_hear_stops_no_later_one(ledger: Writer) -> None:
    lease.ask_to_stop(ledger.database, "toy", "an earlier one")
    lease.ask_to_stop(ledger.database, "other", "a driver of another study")
    with held(ledger.database, "toy") as mine:
        assert mine.asked() == []
        lease.ask_to_stop(ledger.database, "toy", lease.holder_of(ledger.database, "toy").owner)
        assert mine.asked() == [WHOLE]
        assert mine.asked() == []
    assert requests(ledger) == 1


def test_a_run_of_an_earlier_version_cannot_be_asked(
    ledger: Writer, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    ledger.database.execute(lease.sql.text("drop table cs330ray_requests"))
    ledger.database.execute(lease.sql.text("update cs330ray_schema set version = 1"))
    assert Ledger.at(home).database.version == 1
    lease.take(ledger.database, "toy", "earlier", json.dumps(vars(Holder.here())), None)
    code, _, err = ran(capsys, "stop", "toy")
    assert (code, err.count("\n")) == (2, 1)
    assert "got one of an earlier version; press Ctrl-C there" in err


def test_stop_starts_no_ray(ledger: Writer) -> None:
    script = (
        "import sys; from cs330ray.cli import app; sys.argv = ['cs330ray', 'stop', 'toy']\n"
        "try: app.main()\n"
        "except SystemExit as end: print(end.code, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 False\n"
