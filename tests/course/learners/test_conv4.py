from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners.fewshot import conv4

BODIES = ["course", "pooled"]
TASKS, BATCH, WAYS, SIDE = 3, 4, 5, 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The nets are tiny, and the machine may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference_logits(body: str, params: dict[str, Tensor], images_BCHW: Tensor, norm_B: int | None = None) -> Tensor:
    """The paper's order of things, one task, by torch.nn.functional alone."""
    x = images_BCHW
    for block in range(1, 5):
        x = F.conv2d(x, params[f"conv{block}.weight"], padding=1)
        scale, shift = params.get(f"norm{block}.scale"), params.get(f"norm{block}.shift")  # None: it only normalises
        mean, var = x[:norm_B].mean(dim=(0, 2, 3)), x[:norm_B].var(dim=(0, 2, 3), correction=0)
        if norm_B is None:
            x = F.batch_norm(x, None, None, scale, shift, training=True, eps=1e-5)
        else:
            x = (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
            x = x if scale is None else x * scale[:, None, None] + shift[:, None, None]
        x = F.relu(x)
        if body == "pooled":
            x = F.max_pool2d(x, 2)
    x = x.flatten(1) if body == "pooled" else x.mean(dim=(2, 3))
    return F.linear(x, params["head.weight"], params["head.bias"])


def drawn_params(
    body: str, *, tasks: int = TASKS, filters: int = 4, seed: int = 0, affine: bool = True, channels: int = 1
) -> dict[str, Tensor]:
    """Parameters of `tasks` different nets in float64, with scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        "filters": filters,
        "ways": WAYS,
        "generator": generator,
        "affine": affine,
        "side": SIDE,
        "channels": channels,
    }
    nets = [conv4.init(body, **drawn) for _ in range(tasks)]
    params_T = {name: torch.stack([net[name] for net in nets]).double() for name in nets[0]}
    noise = {name: torch.randn(param.shape, generator=generator) for name, param in params_T.items()}
    return {name: param + (0 if name.endswith("weight") else noise[name]) for name, param in params_T.items()}


def drawn_images(seed: int = 1, batch: int = BATCH, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(TASKS, batch, channels, SIDE, SIDE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("norm_B", [None, 2])
@pytest.mark.parametrize(("affine", "channels"), [(True, 1), (False, 1), (True, 3)])
def test_many_tasks_at_once_give_what_torch_gives_one_by_one(body, norm_B, affine, channels):
    params_T, images_TBCHW = drawn_params(body, affine=affine, channels=channels), drawn_images(channels=channels)
    assert not affine or (params_T["norm1.scale"] < 0).any()
    expected = [
        reference_logits(body, {name: param[task] for name, param in params_T.items()}, images_TBCHW[task], norm_B)
        for task in range(TASKS)
    ]
    logits_TBN = conv4.logits(body, params_T, images_TBCHW, norm_B=norm_B)
    torch.testing.assert_close(logits_TBN, torch.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("body", BODIES)
def test_the_images_of_one_task_do_not_reach_another(body):
    params_T, images_TBCHW = drawn_params(body), drawn_images()
    changed_TBCHW = images_TBCHW.clone()
    changed_TBCHW[1] = drawn_images(seed=2)[1]
    before, after = (conv4.logits(body, params_T, images) for images in (images_TBCHW, changed_TBCHW))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("body", BODIES)
def test_the_images_of_a_group_may_stand_in_any_order(body):
    params_T, images_TBCHW = drawn_params(body), drawn_images()
    order = [2, 0, 3, 1]
    straight = conv4.logits(body, params_T, images_TBCHW)
    permuted = conv4.logits(body, params_T, images_TBCHW[:, order])
    torch.testing.assert_close(permuted, straight[:, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("body", BODIES)
def test_an_image_outside_the_group_does_not_change_another(body):
    params_T, images_TBCHW = drawn_params(body), drawn_images()
    changed_TBCHW = images_TBCHW.clone()
    changed_TBCHW[:, -1] = drawn_images(seed=2)[:, -1]
    before, after = (conv4.logits(body, params_T, images, norm_B=2) for images in (images_TBCHW, changed_TBCHW))
    assert torch.equal(before[:, :-1], after[:, :-1])


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("norm_B", "affine", "channels"), [(None, True, 1), (3, True, 1), (None, False, 1), (3, True, 3)]
)
def test_first_and_second_derivatives_are_those_of_finite_differences(body, norm_B, affine, channels):
    params_T = drawn_params(body, filters=2, affine=affine, channels=channels)
    images_TBCHW = drawn_images(channels=channels)
    names = list(params_T)

    def scores(*tensors: Tensor) -> Tensor:
        return conv4.logits(body, dict(zip(names, tensors, strict=True)), images_TBCHW, norm_B=norm_B).tanh()

    leaves = [param.requires_grad_() for param in params_T.values()]
    assert torch.autograd.gradcheck(scores, leaves, fast_mode=True, atol=1e-6)
    assert torch.autograd.gradgradcheck(scores, leaves, fast_mode=True, atol=1e-5)


def test_the_statistics_are_the_same_by_the_way_that_a_gpu_takes(monkeypatch):
    y_BCHW = drawn_images()[:, :, 0]
    here = conv4._Statistics.apply(y_BCHW)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.Tensor, "is_cpu", False)
        there = conv4._Statistics.apply(y_BCHW)
    torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-12)


def test_blank_images_have_finite_logits_and_gradients():
    params_T = {name: param.float().requires_grad_() for name, param in drawn_params("pooled").items()}
    logits_TBN = conv4.logits("pooled", params_T, torch.zeros(TASKS, BATCH, 1, SIDE, SIDE))
    grads = torch.autograd.grad(logits_TBN.sum(), list(params_T.values()))
    assert all(tensor.isfinite().all() for tensor in (logits_TBN, *grads))


@pytest.mark.parametrize("body", BODIES)
def test_without_scale_and_shift_the_same_weights_are_drawn_and_nothing_else(body):
    with_both, without = drawn_params(body), drawn_params(body, affine=False)
    assert {name for name in with_both if name not in without} == {
        f"norm{block}.{kind}" for block in range(1, 5) for kind in ("scale", "shift")
    }
    weights = [name for name in without if name.endswith("weight")]
    assert len(weights) == 5
    assert all(torch.equal(without[name], with_both[name]) for name in weights)


def test_the_body_comes_without_a_head_and_a_convolution_without_a_bias():
    params = conv4.init("pooled", filters=8, ways=None, generator=torch.Generator().manual_seed(0))
    kinds = {f"{layer}{block}" for block in range(1, 5) for layer in ("conv", "norm")}
    assert {name.split(".")[0] for name in params} == kinds
    assert [name for name in params if name.endswith("bias")] == []
    params_T = {name: param[None] for name, param in params.items()}
    assert conv4.features("pooled", params_T, torch.rand(1, 6, 1, 28, 28)).shape == (1, 6, 8)
