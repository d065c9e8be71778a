"""The fault campaign in short: strikes of different kinds on a small study of real trials, and nothing is wrong."""

import pytest

from benchmarks import auditor, faults


@pytest.mark.slow
def test_a_struck_study_ends_as_the_undisturbed_one_with_nothing_lost_doubled_or_left_behind(ray_here: str) -> None:
    kinds = ("driver", "worker", "ctrl-c", "locked")
    with faults.workplace() as work:
        tally = faults.Campaign(work, study=faults.SMALLEST, rounds=2, seed=0, kinds=kinds, ray=ray_here).run()
    figures = tally.figures()
    assert figures["rounds"] == 2
    assert figures["wrong"] == tally.tracebacks == 0
    assert not work.exists()
    assert list(auditor.processes([str(work)])) == []
