"""The fault campaign in short: a few strikes of different kinds on a small study of real trials, and nothing is wrong."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import adversary, auditor, faults
from benchmarks.adversary import Moment, Target

SMALL = faults.STUDY.replace("steps = 200", "steps = 100").replace("trials = 4", "trials = 2").replace("seeds = 2", "seeds = 1")
KINDS = ("driver", "worker", "ctrl-c", "locked")


def test_a_struck_study_ends_as_the_undisturbed_one_with_nothing_lost_doubled_or_left_behind(ray_here: str) -> None:
    with faults.workplace() as work:
        campaign = faults.Campaign(work, study=SMALL, rounds=3, seed=0, kinds=KINDS, ray=ray_here)
        tally = campaign.run()
    figures = tally.figures()
    assert figures["rounds"] == 3
    assert figures["wrong"] == 0
    assert tally.tracebacks == 0
    assert not work.exists()
    assert list(auditor.processes([str(work)])) == []
