"""How many trials fit a machine, by arithmetic: no machine is needed."""

import pytest

from cs330ray.service.machine import Machine
from tests.studies_of_tests import toy


@pytest.mark.parametrize(
    ("cpus", "gpus", "resources", "slots"),
    [
        (8, 0, {}, 8),
        (8, 0, {"cpus": 3}, 2),
        (8, 0, {"cpus": 0.5}, 16),
        (8, 0, {"gpus": 0.25}, 8),  # no GPU counts as none wanted
        (16, 2, {"gpus": 0.25}, 8),
        (16, 2, {"gpus": 0.3}, 6),  # three on each: a trial does not lie on two
        (4, 2, {"gpus": 0.25}, 4),
        (16, 2, {"gpus": 1}, 2),
        (16, 5, {"gpus": 2}, 2),
        (16, 2, {"gpus": 0.25, "slots": 3}, 3),
        (2, 0, {"slots": 9}, 2),
    ],
)
def test_as_many_trials_run_at_once_as_fit_and_are_wanted(cpus, gpus, resources, slots):
    assert Machine(cpus, gpus).slots(toy(resources=resources)) == slots
