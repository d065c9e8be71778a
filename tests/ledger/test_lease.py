"""The lease: one driver a study, on every machine that shares the ledger; the dead are succeeded."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cs330ray.errors import LedgerError, SpecError
from cs330ray.ledger import lease
from cs330ray.ledger.lease import Holder, held
from cs330ray.ledger.writer import Writer

HOLDS = """
import sys, time
from pathlib import Path
from cs330ray.ledger.lease import held
from cs330ray.ledger.writer import Writer
with held(Writer.at(Path(sys.argv[1])).database, "toy"):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = json.dumps(vars(Holder("faraway", "another machine", 7, "1")))


@pytest.fixture
def ledger(home: Path) -> Writer:
    return Writer.at(home)


def holding(home: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(home)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_study_that_a_living_process_holds_is_refused_with_its_number(ledger: Writer, home: Path) -> None:
    other = holding(home)
    try:
        with pytest.raises(SpecError, match=f"process {other.pid} runs it"), held(ledger.database, "toy"):
            pass
        with held(ledger.database, "another"):
            pass
    finally:
        other.kill()
        other.communicate()


def test_a_killed_holder_is_succeeded_at_once_even_before_its_parent_has_buried_it(ledger: Writer, home: Path) -> None:
    other = holding(home)
    other.send_signal(signal.SIGKILL)
    began = time.monotonic()
    until = began + 10
    while lease.birth_of(other.pid) is not None and time.monotonic() < until:
        time.sleep(0.01)  # it is a zombie then: nobody has waited for it
    with held(ledger.database, "toy") as mine:
        mine.check()
    assert time.monotonic() - began < 10
    other.communicate()


def test_a_number_that_was_given_to_another_process_does_not_keep_a_study(ledger: Writer) -> None:
    me = Holder.here()
    lease.take(ledger.database, "toy", "dead", json.dumps({**vars(me), "birth": "long ago"}), None)
    with held(ledger.database, "toy"):
        assert lease.holder_of(ledger.database, "toy").owner != "dead"


def test_a_lease_that_was_let_go_leaves_nothing(ledger: Writer) -> None:
    with held(ledger.database, "toy"):
        assert lease.holder_of(ledger.database, "toy") is not None
    assert lease.holder_of(ledger.database, "toy") is None


def test_one_that_beats_on_another_machine_is_refused(ledger: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.02)
    lease.take(ledger.database, "toy", "far", ELSEWHERE, None)
    over = threading.Event()

    def beats() -> None:
        while not over.wait(0.05):
            lease.beat(ledger.database, "toy", "far")

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with pytest.raises(SpecError, match="process 7 on faraway runs it"), held(ledger.database, "toy"):
            pass
    finally:
        over.set()
        thread.join()
    assert lease.holder_of(ledger.database, "toy").owner == "far"


def test_one_that_is_silent_on_another_machine_is_succeeded_after_a_while(
    ledger: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.02)
    monkeypatch.setattr(lease, "SILENCE_S", 0.5)
    lease.take(ledger.database, "toy", "far", ELSEWHERE, None)
    said: list[str] = []
    began = time.monotonic()
    with held(ledger.database, "toy", said.append) as mine:
        mine.check()
    assert time.monotonic() - began >= 0.5
    (line,) = said
    assert "process 7 on faraway holds it; succeeded when silent for 0s" in line


def test_who_was_succeeded_may_write_no_more(ledger: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    with held(ledger.database, "toy") as mine:
        while True:  # it beats meanwhile
            found = lease.holder_of(ledger.database, "toy")
            if lease.take(ledger.database, "toy", "another", ELSEWHERE, (found.owner, found.beats)):
                break
        with pytest.raises(LedgerError, match="took the study over"):
            mine.fence()
        with pytest.raises(LedgerError, match="took the study over"):
            mine.check()
    assert lease.holder_of(ledger.database, "toy").owner == "another"


def test_a_beat_notices_by_itself_that_the_study_is_gone(ledger: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    with held(ledger.database, "toy") as mine:
        lease.free(ledger.database, "toy", lease.holder_of(ledger.database, "toy").owner)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                mine.check()
            except LedgerError:
                return
            time.sleep(0.01)
    pytest.fail("it was never noticed")


def test_of_two_successors_one_gets_the_study(ledger: Writer) -> None:
    lease.take(ledger.database, "toy", "dead", ELSEWHERE, None)
    assert lease.take(ledger.database, "toy", "a", ELSEWHERE, ("dead", 0))
    assert not lease.take(ledger.database, "toy", "b", ELSEWHERE, ("dead", 0))
    assert lease.holder_of(ledger.database, "toy").owner == "a"
