"""Every trainable on two workers against one process: in float64, where sums in another order are the same to 1e-9.

A lone process is the reference: what it reaches is tested elsewhere, against papers. Data and weights are the package's
own, so that both sides read the same.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cs330ray.errors import Diverged
from cs330ray.training import parallel
from cs330ray.trial import named as trainables
from cs330ray.trial.contract import Scores
from tests.pair import Workers

pytest.importorskip("peft")

SMALL_IMAGES = {"dataset": "glyphs", "ways": 3, "queries": 2, "filters": 4, "test_shots": [1, 2], "test_queries": 2}
MAML = SMALL_IMAGES | {"body": "pooled", "tasks": 3, "val_tasks": 3, "test_tasks": 5, "learn_inner_lrs": "tensor"}
PROTONET = SMALL_IMAGES | {"eval_ways": 3, "eval_queries": 2, "tasks": 3, "val_tasks": 3, "test_tasks": 5}
BASELINE = {
    "dataset": "glyphs", "filters": 4, "batch": 6, "batches": 3, "classifier": "cosine", "eval_ways": 3,
    "eval_queries": 2, "val_tasks": 3, "test_tasks": 5, "test_shots": [1, 2], "test_queries": 2,
}  # fmt: skip
MANN = {"dataset": "glyphs", "ways": 3, "tasks": 3, "hidden": 8, "val_tasks": 3, "test_tasks": 5}
MULTITASK = {
    "dataset": "planted", "dim": 2, "layers": "4", "dropout": 0.1, "regression_bias": True, "sharing": "separate",
    "weight_decay": 1e-4, "lr": 0.01, "batch": 4097, "candidates": 2,
}  # fmt: skip
FINETUNE = {
    "dataset": "rooms", "model": "tiny", "method": "lora", "rank": 2, "lr": 0.01, "shots": 4, "batch": 3,
    "micro_batch": 2, "early_stop": False, "eval_examples": 5,
}  # fmt: skip
CLASSIFIER = FINETUNE | {"model": "tiny-encoder", "answers": "classes", "shots": 1, "method": "all", "dropout": 0.0}
ICL = {"dataset": "rooms", "model": "tiny", "shots": 2, "eval_batch": 2, "eval_examples": 5}
NOBODYS = {"tasks": 1, "val_tasks": 1, "test_tasks": 3}  # the second worker has no share of a step


@dataclass(frozen=True)
class Case:
    name: str
    config: dict[str, Any]
    label: str = ""

    def make(self, **changes: Any) -> Any:
        return trainables.load(self.name).Config(**(self.config | {"eval_every_steps": 2} | changes))


CASES = [
    Case("maml", MAML),
    Case("maml", MAML | NOBODYS, "maml of one task"),
    Case("protonet", PROTONET),
    Case("protonet", PROTONET | NOBODYS, "protonet of one task"),
    Case("baseline", BASELINE),
    Case("baseline", BASELINE | {"batches": 1, "val_tasks": 1, "test_tasks": 3}, "baseline of one batch"),
    Case("mann", MANN),
    Case("mann", MANN | NOBODYS | {"encoder": "conv"}, "mann of one task"),
    Case("multitask", MULTITASK),
    Case("finetune", FINETUNE),
    Case("finetune", CLASSIFIER, "finetune of classes"),
    Case("finetune", FINETUNE | {"batch": 1, "eval_examples": 1}, "finetune of one example"),
    Case("icl", ICL),
    Case("icl", ICL | {"eval_every_steps": 1}, "icl of one question"),
    Case("icl", ICL | {"ordering": "globalE", "orderings": 2, "probes": 1}, "icl by entropy"),
]
each = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case.label else ()) for case in CASES],
    ids=[case.label or case.name for case in CASES],
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers


@pytest.fixture(autouse=True)
def one_thread(monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def in_float64() -> Iterator[None]:
    """Parameters are drawn, data read and weights loaded in float64."""
    from cs330ray.course.pretrained import models
    from cs330ray.course.systems import baseline, fewshot, mann, multitask

    def doubled(read: Callable[..., Any]) -> Callable[..., Any]:
        def as_doubles(*given: Any, **named: Any) -> Any:
            found = read(*given, **named)
            parts = {field.name: getattr(found, field.name) for field in fields(found)}
            return replace(found, **{name: part.double() for name, part in parts.items() if part.is_floating_point()})

        return as_doubles

    def doubled_model(load: Callable[..., Any]) -> Callable[..., Any]:
        def as_doubles(*given: Any, **named: Any) -> Any:
            model, tokenizer = load(*given, **named)
            return model.double(), tokenizer

        return as_doubles

    with ExitStack() as patches:
        for module, name in ((fewshot, "_batch"), (baseline, "_draw"), (mann, "_draw"), (multitask, "_ratings")):
            patches.enter_context(patch.object(module, name, doubled(getattr(module, name))))
        for name in ("causal", "encoder"):
            patches.enter_context(patch.object(models, name, doubled_model(getattr(models, name))))
        torch.set_default_dtype(torch.float64)
        patches.callback(torch.set_default_dtype, torch.float32)
        yield


@dataclass(frozen=True)
class Ran:
    rows: list[tuple[int, dict[str, float]]]
    kept: Path  # the last row's checkpoint

    @property
    def bits(self) -> str:
        """The digest of all that the checkpoint holds."""
        return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(self.kept.iterdir()))).hexdigest()

    @property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.kept / "state.safetensors")

    def notes(self, number: Callable[[float], Any] = float) -> dict[str, Any]:
        (path,) = (path for path in self.kept.iterdir() if path.name in ("state.json", "answers.json"))
        return json.loads(path.read_text(), parse_float=lambda told: number(float(told)))


def ran(case: Case, steps: int, home: Path, resume: Path | None = None, **changes: Any) -> Ran:
    """Train in float64, as a worker or alone."""
    with in_float64():
        return ran_as_it_is(case, steps, home, resume, **changes)


def ran_as_it_is(case: Case, steps: int, home: Path, resume: Path | None = None, **changes: Any) -> Ran:
    kept = home / f"{parallel.rank()} of {parallel.workers()}, {steps}"
    kept.mkdir(parents=True)
    rows = []
    for progress in trainables.load(case.name).train(case.make(**changes), 5, steps, resume):
        rows.append((progress.step, dict(progress.metrics)))
    progress.save(kept)
    return Ran(rows, kept)


def ran_with(case: Case, steps: int, home: Path, changes: dict[str, Any]) -> Ran:
    return ran_as_it_is(case, steps, home, **changes)


def scored(case: Case, checkpoint: Path) -> Scores:
    with in_float64():
        return trainables.load(case.name).test(case.make(), 5, checkpoint)


def assert_near(found: Ran, expected: Ran) -> None:
    assert [step for step, _ in found.rows] == [step for step, _ in expected.rows]
    for (_, metrics), (_, others) in zip(found.rows, expected.rows, strict=True):
        assert metrics == pytest.approx(others, rel=1e-9, abs=1e-9)
    if (expected.kept / "state.safetensors").exists():
        tensors = found.tensors
        assert set(tensors) == set(expected.tensors)
        for name, tensor in expected.tensors.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-8, atol=1e-9)
    assert found.notes() == expected.notes(pytest.approx)


def test_every_trainable_of_the_package_says_what_its_workers_share_out():
    named = {name: trainables.load(name).SPLITS for name in trainables.names()}
    assert set(named) == {case.name for case in CASES}
    assert all(word.isalpha() for word in named.values())


@each
def test_two_workers_end_where_one_process_does_and_hold_the_same_bits(case, pair, tmp_path):
    expected = ran(case, 3, tmp_path)
    one, other = pair.call(ran, case, 3, tmp_path)
    assert one.bits == other.bits
    assert one.rows == other.rows
    assert_near(one, expected)


@each
def test_a_checkpoint_of_two_workers_goes_on_in_one_process_and_one_of_that_in_two_workers(case, pair, tmp_path):
    whole = ran(case, 4, tmp_path / "whole")
    half = ran(case, 2, tmp_path / "half")
    halves = pair.call(ran, case, 2, tmp_path / "half")
    alone = ran(case, 4, tmp_path / "alone", halves[0].kept)
    together = pair.call(ran, case, 4, tmp_path / "together", half.kept)
    assert together[0].bits == together[1].bits
    for rest in (alone, together[0]):
        assert_near(rest, replace(whole, rows=[row for row in whole.rows if row[0] > 2]))


@each
def test_two_workers_score_the_test_split_item_by_item_as_one_process_does(case, pair, tmp_path):
    kept = ran(case, 2, tmp_path).kept
    expected = scored(case, kept)
    one, other = pair.call(scored, case, kept)
    assert one == other
    of_the_checkpoint = {name for name in expected.metrics if "_refit" not in name}
    assert {name: one.metrics[name] for name in of_the_checkpoint} == pytest.approx(
        {name: expected.metrics[name] for name in of_the_checkpoint}, rel=1e-12
    )
    assert one.metrics == pytest.approx(expected.metrics, rel=1e-9)  # a refit trains
    assert list(one.items) == list(expected.items)
    for name, items in expected.items.items():
        assert [item.unit for item in one.items[name]] == [item.unit for item in items]
        scores = [[item.score for item in which] for which in (one.items[name], items)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-9, abs=1e-12)


@each
def test_in_float32_two_workers_hold_the_same_bits_too(case, pair, tmp_path):
    one, other = pair.call(ran_as_it_is, case, 3, tmp_path)
    assert one.bits == other.bits
    assert one.rows == other.rows


def work(case: Case) -> dict[str, int]:
    """How many tasks, ratings, examples or questions each function of the learner is given here, in two steps."""
    from cs330ray.course.learners import baseline, decoding, lora, maml, mann, protonet
    from cs330ray.course.learners.recommender import descent, ranking

    counted: dict[tuple[Any, str], Callable[..., int]] = {
        (maml, "outer_backward_many"): lambda *given, **_: len(given[3][0]),
        (maml, "evaluate"): lambda *given, **_: len(given[3]),
        (protonet, "backward"): lambda *given, **_: len(given[2]),
        (protonet, "evaluate"): lambda *given, **_: len(given[2]),
        (baseline, "backward"): lambda *given, **_: len(given[2]),
        (baseline, "scores"): lambda *given: len(given[1]),
        (mann, "logits_many"): lambda *given: len(given[2][0]),
        (descent, "_backward"): lambda *given: given[3].stars_B.shape[-1],
        (ranking, "evaluate"): lambda *given: len(given[1]),
        (lora, "backward"): lambda *given, **_: sum(len(part.labels_BK) for part in given[1]),
        (lora, "evaluate"): lambda *given, **_: len(given[1]),
        (decoding.Decoder, "greedy"): lambda *given, **_: len(given[1]),
    }
    done: dict[str, int] = {}

    def spied(name: str, whole: Callable[..., Any], count: Callable[..., int]) -> Callable[..., Any]:
        def spy(*given: Any, **named: Any) -> Any:
            done[name] = done.get(name, 0) + count(*given, **named)
            return whole(*given, **named)

        return spy

    with in_float64(), ExitStack() as patches:
        for (owner, name), count in counted.items():
            spy = spied(f"{owner.__name__}.{name}", getattr(owner, name), count)
            patches.enter_context(patch.object(owner, name, spy))
        list(trainables.load(case.name).train(case.make(), 5, 2))
    return done


@each
def test_two_workers_do_once_what_one_process_does_once(case, pair):
    whole = work(case)
    one, other = pair.call(work, case)
    assert {name: one.get(name, 0) + other.get(name, 0) for name in whole} == whole
    if " of one " not in case.label:
        assert all(0 < other[name] < done for name, done in whole.items())


# The end of a trial is the same in all


def spoilt(case: Case) -> tuple[str, int]:
    """Train with a loss that is not finite in the second worker alone, from the third on; why and after which row."""
    from cs330ray.course.learners import baseline, decoding, lora, maml, mann, protonet
    from cs330ray.course.learners.recommender import descent

    learned = iter(range(1, 100))

    def bad() -> bool:
        return next(learned) >= 3 and parallel.rank() == 1

    def spoilt_losses(losses_T: Tensor) -> Tensor:
        return losses_T * torch.inf if losses_T.requires_grad and bad() else losses_T

    def spoilt_answers(found: list[str]) -> list[str]:
        if parallel.rank() == 1:
            raise Diverged("the model's logits are not finite")
        return found

    owner, name, spoil = {
        "maml": (maml, "outer_backward_many", lambda losses: [math.inf] if bad() else losses),
        "baseline": (
            baseline,
            "backward",
            lambda found: ({"loss": found[0]["loss"] * torch.inf}, found[1]) if bad() else found,
        ),
        "protonet": (protonet, "backward", lambda row: row | ({"loss": row["loss"] * torch.inf} if bad() else {})),
        "mann": (mann, "losses", spoilt_losses),
        "multitask": (descent, "train_epoch_many", lambda means: [(math.nan, 1.0)] if bad() else means),
        "finetune": (lora, "backward", lambda loss: math.nan if bad() else loss),
        "icl": (decoding.Decoder, "greedy", spoilt_answers),
    }[case.name]
    whole, last = getattr(owner, name), 0
    with patch.object(owner, name, lambda *given, **named: spoil(whole(*given, **named))):
        try:
            for progress in trainables.load(case.name).train(case.make(eval_every_steps=1), 5, 5):
                last = progress.step
        except Diverged as end:
            return str(end), last
    return "nothing", last


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.label and case.name != "icl"], ids=lambda case: case.name
)
def test_a_loss_that_one_worker_alone_finds_not_finite_ends_the_trial_in_both_at_that_step(case, pair):
    one, other = pair.call(spoilt, case)
    assert one == other
    assert one[0].endswith("at step 3")
    assert one[1] == 2


def test_answers_that_diverge_in_one_worker_alone_end_the_trial_in_both(pair):
    ends = pair.call(spoilt, next(case for case in CASES if case.name == "icl"))
    assert ends == [("the model's logits are not finite", 0)] * 2


def test_training_ends_early_in_both_workers_at_once(pair, tmp_path):
    """Both see the accuracy of all examples: a worker's own share would end it at another step."""
    case = next(case for case in CASES if case.name == "finetune")
    changes = {"early_stop": True, "stop_at": 0.3, "eval_every_steps": 1, "shots": 5, "batch": 5}
    one, other = pair.call(ran_with, case, 60, tmp_path, changes)
    assert one.rows == other.rows
    assert 1 < len(one.rows) < 60
    assert one.rows[-1][1]["train_accuracy"] >= 0.3 > one.rows[-2][1]["train_accuracy"]
    assert one.notes()["ended"] is other.notes()["ended"] is True


# Dropout


def dropped(case: Case, home: Path) -> Ran:
    return ran_as_it_is(case, 1, home, lora_dropout=0.5, shots=2, batch=2, eval_every_steps=1)


def masks(case: Case) -> list[list[bool]]:
    """What the first dropout of each of two steps drops in this worker."""
    first: dict[int, list[bool]] = {}
    whole, step = torch.nn.functional.dropout, 1

    def spy(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if training and step not in first:
            first[step] = whole(torch.ones(64), p).bool().tolist()
        return whole(x, p, training, inplace)

    with patch.object(torch.nn.functional, "dropout", spy):
        for progress in trainables.load(case.name).train(case.make(lora_dropout=0.5, eval_every_steps=1), 5, 2):
            step = progress.step + 1
    return list(first.values())


def test_dropout_differs_between_workers_and_steps_and_is_the_same_twice(pair):
    case = next(case for case in CASES if case.name == "finetune")
    one, other = pair.call(masks, case)
    assert len({tuple(mask) for mask in one + other}) == 4
    assert pair.call(masks, case) == [one, other]


def test_with_dropout_two_workers_still_hold_the_same_bits_and_do_so_twice(pair, tmp_path):
    case = next(case for case in CASES if case.name == "finetune")
    first, again = (pair.call(dropped, case, tmp_path / turn) for turn in ("first", "again"))
    assert len({run.bits for run in (*first, *again)}) == 1
