import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cs330ray.training.adam import Adam

SYSTEMS = ["maml", "baseline", "mann", "multitask", "protonet"]  # transformers, which finetune needs, imports it anyway
TRAINS = """
import sys
SMALL = {{"filters": 4, "hidden": 4, "tasks": 1, "batch": 8, "val_tasks": 2, "queries": 1, "eval_queries": 1}}
from cs330ray.course.systems import {system} as system
fields = {{"dataset": "planted" if "{system}" == "multitask" else "glyphs", "epochs": 1, **SMALL}}
config = system.Config(**{{name: value for name, value in fields.items() if name in system.Config.model_fields}})
next(iter(system.train(config, 0, 1)))
sys.exit("torch._dynamo" in sys.modules)
"""


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (16,), (), (3, 2, 2)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def give_gradients(params: list[Tensor], step: int) -> None:
    """The last parameter has no gradient before step 3, and later not in every fourth."""
    generator = torch.Generator().manual_seed(step)
    for place, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = None if place == 3 and (step < 3 or step % 4 == 0) else grad


def rate(step: int) -> float:
    return 0.01 / (1 + step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("fused", [None, True])
def test_it_is_that_of_pytorch_to_the_bit_also_where_it_goes_on_from_what_was_saved(
    dtype: torch.dtype, weight_decay: float, fused: bool | None
) -> None:
    ours, theirs = ([param.detach().to(dtype).requires_grad_() for param in weights()] for _ in range(2))
    adam = Adam(ours, lr=1.0, weight_decay=weight_decay, fused=fused)
    wanted = torch.optim.Adam(theirs, lr=1.0, weight_decay=weight_decay, fused=fused)
    for step in range(12):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        adam.lr = wanted.param_groups[0]["lr"] = rate(step)
        adam.step()
        wanted.step()
        if step == 6:
            held, adam = adam.moments, Adam(ours, lr=1.0, weight_decay=weight_decay, fused=fused)
            adam.load(held)
    state = wanted.state_dict()["state"]
    for place, (param, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(param, other)
        assert set(adam.moments[place]) == set(state[place])
        for name, moment in state[place].items():
            assert torch.equal(adam.moments[place][name], moment), name
            assert adam.moments[place][name].dtype == moment.dtype, name


def test_it_leaves_alone_what_never_had_a_gradient_and_forgets_gradients() -> None:
    params = weights()
    adam = Adam(params, lr=0.1)
    adam.step()
    assert adam.moments == {}
    params[1].grad = torch.ones_like(params[1])
    adam.step()
    assert set(adam.moments) == {1}
    adam.zero_grad()
    assert params[1].grad is None


def test_what_it_loaded_is_its_own() -> None:
    params = weights()
    give_gradients(params, 3)
    first, second = Adam(params, lr=0.1), Adam(params, lr=0.1)
    first.step()
    second.load(first.moments)
    before = first.moments[0]["exp_avg"].clone()
    second.step()
    assert torch.equal(first.moments[0]["exp_avg"], before)
    assert first.moments[0]["step"] == 1


@pytest.mark.parametrize("system", ["maml", *(pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS[1:])])
def test_a_process_that_trains_does_not_import_the_compiler(system: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TRAINS.format(system=system)], check=True, cwd=tmp_path, timeout=120)
