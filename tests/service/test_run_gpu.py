"""Trials that share a GPU."""

from pathlib import Path

import pytest
import torch

from cs330ray.ledger.writer import Writer
from cs330ray.service.run import run
from cs330ray.spec.reading import parse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_two_quarter_gpu_trials_of_one_study_run_at_once(tmp_path: Path) -> None:
    study = parse(
        {
            "name": "quarter", "trainable": "maml", "objective": ["val_accuracy"],
            "fixed": {"dataset": "glyphs", "body": "pooled", "filters": 16, "tasks": 4, "eval_every_steps": 10},
            "search": {"inner_lr": {"low": 0.05, "high": 0.5}},
            "budget": {"trials": 2, "steps": 200},
            "resources": {"gpus": 0.25, "require_gpu": True, "slots": 2},
        },
        "test",
    )  # fmt: skip
    run(study, tmp_path, mirror=False)
    ledger = Writer.at(tmp_path)
    (cell,) = study.cells
    first, second = ledger.trials(study, cell)
    assert first.state == second.state == "COMPLETE"
    began = [ledger.attempts(study, cell, number)[0]["began_s"] for number in (0, 1)]
    assert max(began) < min(first.ended_s or 0.0, second.ended_s or 0.0)
    name = torch.cuda.get_device_name()
    assert [ledger.attempts(study, cell, number)[0]["device"] for number in (0, 1)] == [name, name]
