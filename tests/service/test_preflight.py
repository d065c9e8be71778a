"""What makes a node differ, by the facts alone: no cluster is needed."""

import re
from dataclasses import replace

import pytest

from cs330ray.errors import DataError, NodeUnfit
from cs330ray.service.machines import fitness, nodes
from cs330ray.service.machines.fitness import difference
from cs330ray.service.messages import Facts, NodeTerms
from cs330ray.spec.reading import parse
from tests import toy as toy_trainable
from tests.assignments import assignment
from tests.studies_of_tests import toy

GIB = 1024**3
HEAD = Facts("3.11.9", {"ray": "2.60.0", "torch": "2.13.0"}, "", 0, {"{}": "0123456789abcdef"})
ALIKE = replace(HEAD, free_bytes=2 * GIB)


def test_a_node_that_has_what_the_head_has_may_run_trials():
    assert difference(ALIKE, HEAD) is None


def test_what_a_node_has_besides_is_no_difference():
    assert difference(replace(ALIKE, versions={**ALIKE.versions, "peft": "1.0"}), HEAD) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"python": "3.12.1"}, "python must be 3.11.9, but is 3.12.1; install that version there"),
        ({"versions": {"ray": "2.60.0", "torch": "2.12.0"}}, "torch must be 2.13.0, but is 2.12.0"),
        ({"versions": {"ray": "2.60.0"}}, "torch must be 2.13.0, but is not there"),
        ({"data": {"{}": "fedcba"}}, "its data must be those of the head (0123456789ab), but fedcba"),
        ({"data": {"{}": "they cannot be had: no network"}}, "but they cannot be had: no network"),
        ({"free_bytes": GIB // 2}, "1 GiB must be free for checkpoints, but 0.50 GiB are"),
        ({"cuda": "none"}, "there is a GPU, but its torch was built without CUDA"),
    ],
)
def test_a_difference_is_named_with_what_to_do(changes, words):
    assert words in (difference(replace(ALIKE, **changes), HEAD) or "")


def test_nodes_with_gpus_have_one_cuda_and_those_without_none():
    first = replace(HEAD, cuda="13.0")
    assert difference(replace(ALIKE, cuda="13.0"), first) is None
    assert difference(ALIKE, first) is None
    assert "CUDA must be 13.0 as on the first node with a GPU, but is 12.8" in (
        difference(replace(ALIKE, cuda="12.8"), first) or ""
    )


def test_versions_are_compared_without_what_they_say_of_accelerators(monkeypatch):
    monkeypatch.setattr(fitness.importlib.metadata, "version", lambda name: "2.13.0+cu130")
    fitness.versions.cache_clear()
    try:
        assert set(fitness.versions().values()) == {"2.13.0"}
    finally:
        fitness.versions.cache_clear()


def test_data_that_a_node_cannot_have_are_told_in_words_instead_of_their_digest():
    study = parse(
        {"name": "s", "trainable": "maml", "objective": ["val_accuracy"], "fixed": {"dataset": "glyphs"},
         "search": {"inner_lr": {"low": 0.1, "high": 0.2}}, "budget": {"trials": 1, "steps": 1}}, "s",
    )  # fmt: skip
    ((trainable, config),) = nodes.preparations(study).values()
    assert (trainable, config) == ("maml", {"dataset": "glyphs", "inner_lr": 0.1})
    found = fitness.facts({"{}": ("no.such.module", {})}, "/no/such/home", has_gpu=False)
    assert found.data["{}"].startswith("they cannot be had: trainable:")
    assert found.free_bytes > 0  # of the disk where it would be


class _Context:
    def get_node_id(self) -> str:
        return "node-7"


def test_a_trial_asks_for_itself_whether_its_node_will_do(monkeypatch, tmp_path):
    study = toy()
    (cell,) = study.cells
    monkeypatch.setattr(nodes.ray, "get_runtime_context", _Context)
    monkeypatch.setattr(fitness, "LEAST_FREE_BYTES", 1)
    here = fitness.facts(nodes.preparations(study), str(tmp_path), has_gpu=False)
    fitness.gate(assignment(tmp_path, node=NodeTerms(here, {cell.key: {}})))
    fitness.gate(assignment(tmp_path, node=None))  # no cluster, no question
    other = NodeTerms(replace(here, data={cell.key: "another"}), {cell.key: {}})
    with pytest.raises(NodeUnfit) as unfit:
        fitness.gate(assignment(tmp_path, node=other))
    assert unfit.value.node == "node-7"
    assert "its data must be those of the head (another), but toy" in unfit.value.why


RAISED = "they cannot be had: tests.toy: `prepare` must find the data, but raised"
HERE = "tests/service/test_preflight.py"


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (DataError("no archive"), "they cannot be had: no archive"),
        (ValueError("no archive"), f"{RAISED} ValueError: no archive ({HERE})"),
        (SystemExit("no archive"), f"{RAISED} SystemExit: no archive ({HERE})"),
    ],
    ids=repr,
)
def test_whatever_prepare_raises_on_a_node_is_what_is_said_of_its_data(monkeypatch, raised, words):
    def prepare(config):
        raise raised

    monkeypatch.setattr(toy_trainable, "prepare", prepare)
    (said,) = fitness.facts({"{}": ("tests.toy", {})}, "/", has_gpu=False).data.values()
    assert re.sub(r":\d+\)$", ")", said) == words
