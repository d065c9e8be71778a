"""The two messages between the driver and its workers: whole after a trip, frozen, and complete."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.search.variant_generator import format_vars
from ray.tune.utils.serialization import TuneFunctionEncoder
from ray.tune.utils.util import flatten_dict, merge_dicts

from cs330ray.ledger.records import Ending, Kept, Row
from cs330ray.service.messages import (
    Assignment,
    Circumstances,
    Continuation,
    Facts,
    News,
    NodeTerms,
    Start,
    Terms,
    Untested,
    as_config,
    as_result,
    assigned,
    news_of,
)
from cs330ray.trial.contract import Item, Scores
from tests.assignments import assignment, terms

FACTS = Facts("3.12.1", {"torch": "2.13.0"}, "13.0", 2**31, {"{}": "da7a"})
WHOLE = assignment(
    Path("/home/me/runs"), place="toy-1/cell/trial-00000", memory_gib=2.5,
    node=NodeTerms(FACTS, {"{}": {"lr": 0.5}}), continues=Continuation(10, "s3://bucket/step-00000010"),
)  # fmt: skip
ON = Circumstances(
    "host",
    "cpu",
    2,
    "3.12.1",
    {"torch": "2.13.0"},
    ["node-1", "node-2"],
    77,
    7,
    "c0de",
    "da7a",
    {"lr": 0.1, "body": None},
    ["host", "other"],
)
NEWS = News(
    start=Start(10, 1.5, ON),
    checkpoint=Kept("/home/me/runs/step-00000010", 10, "d19e57"),
    rows=(Row(15, {"val_loss": 0.5}, 2.5),),
    unsaved="No space left on device",
    waits="end",
    scores=Scores({"test_loss": 0.4}, {"test_loss": [Item("0", 0.4)]}),
    untested=Untested("raised: ValueError", "Traceback"),
    end=Ending("FAIL", "diverged: the loss is inf", "Traceback", "diverged"),
)
BOTH = pytest.mark.parametrize("message", [WHOLE, NEWS], ids=["assignment", "news"])


@BOTH
def test_a_message_is_the_same_after_a_trip_to_another_process(message: Any) -> None:
    assert pickle.loads(pickle.dumps(message)) == message
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(message)) == message


@pytest.mark.usefixtures("ray_here")
@BOTH
def test_a_message_is_the_same_after_a_trip_through_ray(message: Any) -> None:
    assert ray.get(ray.remote(num_cpus=0)(lambda received: received).remote(message)) == message


def test_tune_passes_an_assignment_on_as_it_is() -> None:
    """What `SearchGenerator` does with what a searcher suggests, and a trial with its configuration."""
    merged = merge_dicts({}, copy.deepcopy(as_config(WHOLE)))
    assert assigned(merged) == WHOLE
    assert flatten_dict(merged) == merged


def test_tune_passes_news_on_as_they_are() -> None:
    result = flatten_dict({**as_result(NEWS), "training_iteration": 3})
    assert news_of(result) == NEWS


@pytest.mark.parametrize(("news", "done"), [(NEWS, True), (News(rows=NEWS.rows), False)])
def test_a_result_is_the_last_where_the_news_have_an_end(news: News, done: bool) -> None:
    assert as_result(news)["done"] is done


PARTS = [
    WHOLE, WHOLE.terms, WHOLE.terms.node, FACTS, WHOLE.continues, NEWS, NEWS.start, ON, NEWS.checkpoint, NEWS.untested,
    NEWS.end, NEWS.rows[0],
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_no_part_of_a_message_can_be_changed(part: Any) -> None:
    for field in dataclasses.fields(part):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field.name, None)


@pytest.mark.parametrize("kind", [Assignment, Terms, Continuation, NodeTerms, Facts, Circumstances, Start, Untested])
def test_a_message_without_one_of_its_fields_is_refused(kind: Any) -> None:
    needed = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    assert needed
    for missing in needed:
        with pytest.raises(TypeError, match=f"missing 1 required positional argument: '{missing}'"):
            kind(**{name: None for name in needed if name != missing})


@pytest.mark.parametrize("kind", [Assignment, Terms, News, Circumstances])
def test_a_field_that_a_message_does_not_have_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'told'"):
        kind(told={})


def test_a_start_is_recorded_as_json_with_every_circumstance() -> None:
    assert json.loads(json.dumps(NEWS.start.recorded() if NEWS.start else None)) == {
        "resumed_from_step": 10, "began_s": 1.5, "host": "host", "device": "cpu", "threads": 2, "python": "3.12.1",
        "versions": {"torch": "2.13.0"}, "nodes": ["node-1", "node-2"], "pid": 77, "seed": 7, "code": "c0de",
        "data": "da7a", "config": {"lr": 0.1, "body": None}, "workers": ["host", "other"],
    }  # fmt: skip


def test_a_start_of_one_process_records_no_workers() -> None:
    alone = Start(None, 1.5, dataclasses.replace(ON, workers=None))
    assert "workers" not in alone.recorded()
    assert alone.recorded()["resumed_from_step"] is None


def test_no_field_of_an_assignment_has_room_for_the_address_that_opens_the_store(tmp_path: Path) -> None:
    """What Tune writes of a trial: its name, and its configuration as JSON, which holds a pickle."""
    config = as_config(assignment(tmp_path, terms=terms(tmp_path, place="toy-1/cell/trial-00000")))
    written = json.dumps(config, cls=TuneFunctionEncoder)
    payload = bytes.fromhex(json.loads(written)["assignment"]["value"])
    for text in (repr(config).encode(), format_vars(flatten_dict(config)).encode(), payload):
        assert b"toy-1" in text.replace(b"toy_1", b"toy-1")
        assert b"url" not in text


@pytest.mark.parametrize(
    ("state", "cause"),
    [("COMPLETE", "raised"), ("FAIL", None), ("PRUNED", None), ("FAIL", "pruned"), ("PRUNED", "lost")],
)
def test_an_ending_whose_cause_does_not_go_with_its_state_is_refused(state: Any, cause: Any) -> None:
    with pytest.raises(ValueError, match="but got"):
        Ending(state, cause=cause)
