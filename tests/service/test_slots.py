"""How many trials fit a machine, by arithmetic: no machine is needed."""

import pytest

from cs330ray.errors import SpecError
from cs330ray.service.machines.machine import Machine
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
    assert Machine(((cpus, gpus),)).slots(toy(resources=resources)) == slots


@pytest.mark.parametrize(
    ("nodes", "resources", "slots"),
    [
        ([(3, 0), (3, 0)], {"cpus": 2}, 2),  # a trial does not lie on two nodes
        ([(8, 2), (8, 1), (4, 0)], {"gpus": 1}, 3),
        ([(8, 2), (8, 1), (4, 0)], {"gpus": 1, "workers": 3}, 1),  # but one of several workers may
        ([(8, 2), (8, 2)], {"gpus": 1, "workers": 2}, 2),
        ([(3, 0), (3, 0)], {"cpus": 2, "workers": 2}, 1),
        ([(0, 0), (4, 0)], {}, 4),  # a head that runs no trials
    ],
)
def test_the_nodes_of_a_cluster_are_filled_one_by_one(nodes, resources, slots):
    assert Machine(tuple(nodes), joined=True).slots(toy(resources=resources)) == slots


@pytest.mark.parametrize("nodes", [[], [(0, 0)], [(4, 0)]])
def test_a_cluster_that_scales_waits_for_its_gpus_and_does_without_none(nodes):
    machine, study = Machine(tuple(nodes), joined=True), toy(resources={"gpus": 1, "slots": 8, "require_gpu": True})
    assert machine.gpus_per_worker(study) == 1
    assert machine.slots(study) == 8
    assert machine.fitting(study) == 0


@pytest.mark.parametrize(
    ("nodes", "room"),
    [([], 1), ([(0, 0)], 1), ([(4, 1)], 2 + 2), ([(4, 1), (8, 4)], 2 + 8 + 8), ([(8, 4)] * 4, 20)],
)
def test_a_cluster_that_scales_is_asked_for_what_it_has_and_a_node_more(nodes, room):
    study = toy(resources={"gpus": 0.5, "slots": 20})
    assert Machine(tuple(nodes), joined=True).room(study) == room


def test_a_cluster_that_may_not_scale_refuses_what_does_not_fit_and_says_how_it_would():
    with pytest.raises(SpecError, match=r"cpus=9.*or set resources\.slots, and it waits for nodes to come"):
        Machine(((8, 0), (8, 0)), joined=True).slots(toy(resources={"cpus": 9}))


@pytest.mark.parametrize(
    ("machine", "refused"),
    [
        (Machine(((8, 0),)), True),
        (Machine(((8, 2),)), False),
        (Machine(((8, 0),), joined=True), True),
        (Machine(((8, 0),), joined=True, had_gpus=True), False),
    ],
)
def test_a_cap_of_gpu_hours_needs_gpus_to_count(machine, refused):
    study = toy(resources={"gpus": 1}, budget={"cost": "20 gpu-hours"})
    if refused:
        with pytest.raises(SpecError, match=r"budget\.cost: expected GPUs to count, .*, got '20 gpu-hours'; write cpu"):
            machine.slots(study)
    elif not machine.had_gpus:  # those are waited for
        assert machine.slots(study) == 2


def test_where_no_gpu_comes_none_counts_as_wanted():
    assert Machine(((8, 0),), joined=True).gpus_per_worker(toy(resources={"gpus": 1})) == 0
    assert Machine(((8, 0),)).gpus_per_worker(toy(resources={"gpus": 1, "slots": 4})) == 0
