"""An assignment for tests of the worker's side: a trial of the toy, changed field by field."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cs330ray.service.messages import Assignment, Terms

OF_TERMS = {field.name for field in fields(Terms)}


def terms(home: Path, **changes: Any) -> Terms:
    """The terms of a trial that collects its rows and saves at the end alone, on one CPU of this machine."""
    plain = Terms(
        home, place=None, checkpoint_s=1e9, batch_s=1e9, prune_every=0, cpus=1, gpus=0, workers=1, memory_gib=None,
        code="c", data="d", node=None,
    )  # fmt: skip
    return replace(plain, **changes)


def assignment(home: Path, **changes: Any) -> Assignment:
    """The first trial of the toy, 20 steps with a row every 5, of which the ledger has all rows; `changes` by field."""
    of_terms = {name: changes.pop(name) for name in OF_TERMS & changes.keys()}
    config = {"lr": 0.5, "eval_every_steps": 5, **changes.pop("config", {})}
    plain = Assignment(
        cell="{}", trial=0, trainable="tests.toy", config=config, seed=7, steps=20, test=False, recorded_step=10**6,
        begun=True, continues=None, terms=terms(home, **of_terms),
    )  # fmt: skip
    return replace(plain, **changes)
