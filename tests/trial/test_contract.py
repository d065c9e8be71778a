"""One suite for every trainable, and for every way to run one: the contract of `cs330ray.trial`."""

import importlib
import json
import math
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cs330ray.checkpoints import local
from cs330ray.course import systems
from cs330ray.ledger.records import Ending
from cs330ray.service.workers.trial_run import TrialRun
from cs330ray.trial import named, promises
from cs330ray.trial.environment import settle
from cs330ray.trial.run import run_alone
from tests.assignments import assignment

Rows = list[tuple[int, dict[str, float]]]
TINY_MAML = {
    "dataset": "glyphs", "body": "pooled", "filters": 4, "ways": 3, "queries": 2, "tasks": 2, "val_tasks": 2,
    "eval_every_steps": 2, "learn_inner_lrs": "tensor", "test_tasks": 4, "test_shots": [1, 2], "test_queries": 2,
}  # fmt: skip
TINY_MULTITASK = {
    "dataset": "planted", "dim": 2, "layers": "4", "dropout": 0.1, "regression_bias": True, "sharing": "separate",
    "weight_decay": 1e-4, "lr": 0.01, "batch": 4096, "eval_every_steps": 2,
}  # fmt: skip
TINY_MANN = {
    "dataset": "glyphs", "ways": 3, "tasks": 2, "hidden": 8, "val_tasks": 2, "eval_every_steps": 2, "test_tasks": 4,
}  # fmt: skip
TINY_FINETUNE = {
    "dataset": "rooms", "model": "tiny", "method": "lora", "rank": 2, "lr": 0.01, "lora_dropout": 0.1, "dropout": 0.1,
    "shots": 4, "batch": 3, "micro_batch": 2, "early_stop": False, "eval_every_steps": 2, "eval_examples": 4,
}  # fmt: skip
TINY_CLASSIFIER = TINY_FINETUNE | {"model": "tiny-encoder", "answers": "classes", "shots": 1}
TINY_ICL = {
    "dataset": "rooms", "model": "tiny", "shots": 2, "ordering": "localE", "orderings": 2, "probes": 1,
    "eval_every_steps": 2, "eval_batch": 2,
}  # fmt: skip
TINY_PROTONET = {
    "dataset": "glyphs", "filters": 4, "ways": 4, "shots": 2, "queries": 2, "tasks": 2, "eval_ways": 3,
    "eval_queries": 2, "val_tasks": 2, "eval_every_steps": 2, "test_tasks": 4, "test_shots": [1, 2], "test_queries": 2,
}  # fmt: skip

TINY_BASELINE = {
    "dataset": "glyphs", "filters": 4, "batch": 8, "batches": 2, "eval_ways": 3, "eval_queries": 2, "val_tasks": 2,
    "eval_every_steps": 2, "test_tasks": 4, "test_shots": [1, 2], "test_queries": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    config: dict[str, Any]
    steps: int = 6
    label: str = ""  # where a name has several cases

    def rows(
        self, train: Callable[..., Any], steps: int | None = None, **arguments: Any
    ) -> list[tuple[int, dict[str, float]]]:
        config = named.load(self.name).Config(**self.config)
        return [(p.step, dict(p.metrics)) for p in train(config, 5, steps or self.steps, **arguments)]


CASES = [
    Case("baseline", TINY_BASELINE),
    Case("finetune", TINY_FINETUNE),
    Case("finetune", TINY_CLASSIFIER, label="finetune of classes"),
    Case("icl", TINY_ICL),
    Case("maml", TINY_MAML),
    Case("mann", TINY_MANN),
    Case("multitask", TINY_MULTITASK),
    Case("protonet", TINY_PROTONET),
    Case("tests.toy", {"eval_every_steps": 2}),
    Case("benchmarks.sleeper", {"sleep_s": 0.0}),
]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label or case.name)


def test_every_trainable_of_the_package_is_in_this_suite() -> None:
    assert set(named.names()) <= {case.name for case in CASES}


def test_every_module_that_is_a_trainable_is_known_by_name() -> None:
    modules = [found.name for found in pkgutil.iter_modules(systems.__path__)]
    known = [name for name in modules if hasattr(importlib.import_module(f"{systems.__name__}.{name}"), "train")]
    assert sorted(known) == named.names()


@each
def test_the_config_is_frozen_refuses_unknown_keys_and_has_a_default_for_every_key(case: Case) -> None:
    config = named.load(case.name).Config()
    with pytest.raises(ValidationError):
        named.load(case.name).Config(no_such_key=1)
    with pytest.raises(ValidationError):
        config.eval_every_steps = 3


@pytest.mark.parametrize("name", named.names())
def test_every_hyperparameter_says_what_it_is(name: str) -> None:
    assert [key for key, field in named.load(name).Config.model_fields.items() if not field.description] == []


@each
def test_rows_come_every_eval_every_steps_up_to_the_last_and_hold_described_metrics_in_range(case: Case) -> None:
    module = named.load(case.name)
    rows = case.rows(module.train)
    every = module.Config(**case.config).eval_every_steps
    assert [step for step, _ in rows] == list(range(every, case.steps + 1, every))
    for _, metrics in rows:
        assert set(metrics) <= set(module.METRICS)
        for name, value in metrics.items():
            assert math.isfinite(value)
            assert module.METRICS[name].low <= value <= module.METRICS[name].high


@each
def test_the_last_step_has_a_row_even_where_none_is_due(case: Case) -> None:
    assert [step for step, _ in case.rows(named.load(case.name).train, steps=5)][-1] == 5


@each
def test_a_run_cut_anywhere_and_resumed_yields_exactly_the_rows_of_an_unbroken_one(case: Case, tmp_path: Path) -> None:
    module = named.load(case.name)
    config = module.Config(**case.config)
    whole = case.rows(module.train)
    for index, progress in enumerate(module.train(config, 5, case.steps)):
        written = local.write(tmp_path / str(index), progress.step, progress.save)
        assert case.rows(module.train, resume=written.path) == whole[index + 1 :]


@each
def test_a_longer_budget_continues_a_shorter_one(case: Case, tmp_path: Path) -> None:
    train = named.load(case.name).train
    assert case.rows(train, steps=4) == case.rows(train)[: len(case.rows(train, steps=4))]


@each
def test_every_way_to_run_a_trial_yields_the_same_rows(case: Case, tmp_path: Path) -> None:
    module = named.load(case.name)
    config = module.Config(**case.config)
    settle(5, 1)  # as a worker does: sums may depend on the threads
    alone = [(p.step, dict(p.metrics)) for p in run_alone(module, config, 5, case.steps, tmp_path / "alone")]
    often = assignment(tmp_path / "served", trainable=case.name, steps=case.steps, checkpoint_s=0.0, batch_s=0.0)
    run, served = TrialRun(replace(often, config=case.config, seed=5)), []
    while (news := run.next_batch()).end is None:
        served += [(row.step, row.metrics) for row in news.rows]
    assert news.end == Ending("COMPLETE")
    assert served == alone == case.rows(module.train)


@each
def test_the_random_streams_are_its_own(case: Case) -> None:
    module = named.load(case.name)
    torch.manual_seed(1)
    first = case.rows(module.train)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert case.rows(module.train) == first
    torch.manual_seed(1)
    case.rows(module.train)
    assert torch.equal(torch.get_rng_state(), state)


@each
def test_a_trial_leaves_the_global_random_streams_where_they_were(case: Case) -> None:
    def states() -> tuple[list[int], object, str]:
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    case.rows(named.load(case.name).train)
    assert states() == before


@each
def test_another_seed_is_another_trial(case: Case) -> None:
    module = named.load(case.name)
    config = module.Config(**case.config)
    rows = [[dict(p.metrics) for p in module.train(config, seed, case.steps)] for seed in (1, 2)]
    assert rows[0] != rows[1] or case.name == "benchmarks.sleeper"  # which draws nothing


@each
def test_a_checkpoint_holds_tensors_and_json_only(case: Case, tmp_path: Path) -> None:
    module = named.load(case.name)
    config = module.Config(**case.config)
    for progress in module.train(config, 5, 2):
        written = local.write(tmp_path, progress.step, progress.save)
    for file in written.path.iterdir():
        if file.suffix == ".safetensors":
            assert file.read_bytes()[8:9] == b"{"  # an eight-byte length, then a JSON header: no pickle
        else:
            json.loads(file.read_text())


def test_the_digest_of_the_code_hangs_on_the_package_and_on_a_trainable_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "own_system.py").write_text(text)
        digests.append(named.code_digest("own_system"))
    assert digests[0] == digests[2] != digests[1]
    assert named.code_digest("maml") not in digests


@each
def test_every_promise_that_the_command_tests_holds(case: Case, tmp_path: Path) -> None:
    found = list(promises.tested(case.name, case.config, 4, tmp_path))
    assert [one for one in found if not one.holds] == []
    assert len(found) >= 10


@each
def test_the_test_split_is_scored_from_a_checkpoint_the_same_twice(case: Case, tmp_path: Path) -> None:
    module = named.load(case.name)
    config = module.Config(**case.config)
    for progress in module.train(config, 5, 2):
        written = local.write(tmp_path, progress.step, progress.save)
    first, second = (module.test(config, 5, written.path) for _ in range(2))
    assert first == second
    assert set(first.items) <= set(first.metrics)
    for name, items in first.items.items():
        mean = sum(item.score for item in items) / len(items)
        assert mean == pytest.approx(first.metrics[name], abs=1e-6)


@each
def test_what_chance_reaches_is_said_of_metrics_that_are_reported_and_lies_in_their_range(case: Case) -> None:
    module = named.load(case.name)
    by_chance = module.chance(module.Config(**case.config)) if hasattr(module, "chance") else {}
    for name, value in by_chance.items():
        assert module.METRICS[name].low < value < module.METRICS[name].high


def test_chance_among_three_classes_is_a_third() -> None:
    assert named.load("maml").chance(named.load("maml").Config(ways=3)) == {"val_accuracy": 1 / 3}
