from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners import maml
from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.tasks import Batch, accuracy
from cs330ray.course.learners.maml import Maml
from tests.course.learners.test_conv4 import reference_logits

TASKS, WAYS, SHOTS, QUERIES, SIDE = 3, 3, 2, 4, 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The nets are tiny, and the machine may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("first_order", "jacobian"), [(False, 1 - 0.1), (True, 1.0)])
def test_outer_gradient_matches_the_paper_on_a_parabola(first_order, jacobian):
    """L = (w - t)^2 / 2 gives phi = w - a(w - s) and dL/dw = (phi - q) * (1 - a), or * 1."""
    w, s, q, a = 2.0, torch.tensor([0.5, -1.0]), torch.tensor([1.5, 3.0]), 0.1
    params_T = {"w": torch.full((2,), w, requires_grad=True)}
    rates = {"w": torch.tensor([a])}
    phi_T = maml.adapt(
        lambda phi: (phi["w"] - s).square() / 2, params_T, [rates], inner_steps=1, first_order=first_order
    )
    ((phi_T["w"] - q).square() / 2).sum().backward()
    phi = w - a * (w - s)
    torch.testing.assert_close(phi_T["w"], phi)
    torch.testing.assert_close(params_T["w"].grad, (phi - q) * jacobian)


def test_each_step_has_its_own_rate_and_later_ones_the_last():
    """L = w gives phi = w - sum of the rates, and d phi / d rate is -1 a use."""
    rates = {"w": torch.tensor([0.5, 0.25], requires_grad=True)}
    params_T = {"w": torch.zeros(1, requires_grad=True)}
    phi_T = maml.adapt(lambda phi: phi["w"], params_T, [rates], inner_steps=4)
    assert phi_T["w"].item() == -(0.5 + 0.25 + 0.25 + 0.25)
    phi_T["w"].backward()
    assert rates["w"].grad.tolist() == [-1.0, -3.0]


def drawn_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    support, query = (
        torch.rand(TASKS, WAYS, count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
        for count in (SHOTS, QUERIES)
    )
    return Batch(support, query)


def drawn_params(body: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    params = conv4.init(body, filters=4, ways=WAYS, generator=generator, side=SIDE)
    params["norm2.scale"][0] = -0.5
    return {name: param.double().requires_grad_() for name, param in params.items()}


def drawn_lrs(params: dict[str, Tensor], learn: str, inner_steps: int) -> dict[str, Tensor]:
    inner_lrs = maml.init_inner_lrs(params, 0.3, learn, inner_steps)
    return {
        name: lr * torch.linspace(0.5 + 0.1 * place, 1, len(lr), dtype=torch.float64)
        for place, (name, lr) in enumerate(inner_lrs.items())
    }


def reference_phi(
    algorithm: Maml, params: dict[str, Tensor], inner_lrs: dict[str, Tensor], support_BCHW: Tensor
) -> dict[str, Tensor]:
    """Algorithm 2, line 6, for one task."""
    phi, labels = dict(params), torch.arange(WAYS).repeat_interleave(SHOTS)
    for step in range(algorithm.inner_steps):
        loss = F.cross_entropy(reference_logits(algorithm.body, phi, support_BCHW), labels)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=not algorithm.first_order)
        rates = [lr[step] if len(lr) > 1 else lr[0] for lr in inner_lrs.values()]
        phi = {name: phi[name] - rate * grad for name, rate, grad in zip(phi, rates, grads, strict=True)}
    return phi


def reference_outer_loss(
    algorithm: Maml, params: dict[str, Tensor], inner_lrs: dict[str, Tensor], batch: Batch
) -> Tensor:
    """Algorithm 2 as it is written: a loop over tasks, and autograd through all of it."""
    losses = []
    for support_NKCHW, query_NQCHW in zip(batch.support_TNKCHW, batch.query_TNQCHW, strict=True):
        support, query = support_NKCHW.flatten(0, 1), query_NQCHW.flatten(0, 1)
        phi = reference_phi(algorithm, params, inner_lrs, support)
        labels = torch.arange(WAYS).repeat_interleave(QUERIES)
        if algorithm.query_norm == "query":
            logits = reference_logits(algorithm.body, phi, query)
        else:
            logits = reference_logits(algorithm.body, phi, torch.cat([support, query]), len(support))[len(support) :]
        losses.append(F.cross_entropy(logits, labels))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("body", ["course", "pooled"])
@pytest.mark.parametrize(
    ("inner_steps", "first_order", "learn", "query_norm"),
    [
        (1, False, "none", "query"),
        (1, True, "none", "query"),
        (3, False, "tensor", "query"),
        (3, False, "tensor_step", "support"),
        (2, True, "tensor_step", "query"),
        (1, False, "none", "support"),
    ],
)
def test_loss_and_gradients_are_those_of_a_loop_over_tasks(body, inner_steps, first_order, learn, query_norm):
    algorithm, batch, params = Maml(body, inner_steps, first_order, query_norm), drawn_batch(), drawn_params(body)
    inner_lrs = drawn_lrs(params, learn, inner_steps)
    learned = [*params.values(), *([lr.requires_grad_() for lr in inner_lrs.values()] if learn != "none" else [])]
    loss = reference_outer_loss(algorithm, params, inner_lrs, batch)
    expected = torch.autograd.grad(loss, learned)
    assert maml.outer_backward(algorithm, params, inner_lrs, batch) == pytest.approx(loss.item(), abs=1e-10)
    for tensor, grad in zip(learned, expected, strict=True):
        torch.testing.assert_close(tensor.grad, grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("body", ["course", "pooled"])
def test_the_outer_gradient_is_that_of_finite_differences(body):
    algorithm, batch, params = Maml(body, inner_steps=2), drawn_batch(), drawn_params(body)
    inner_lrs = drawn_lrs(params, "none", 2)
    maml.outer_backward(algorithm, params, inner_lrs, batch)
    generator = torch.Generator().manual_seed(5)
    direction = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in params.items()}
    h = 1e-6

    def loss_at(t: float) -> float:
        moved = {name: (param + t * direction[name]).detach().requires_grad_() for name, param in params.items()}
        return maml.outer_backward(algorithm, moved, inner_lrs, batch)

    slope = sum((param.grad * direction[name]).sum().item() for name, param in params.items())
    assert slope == pytest.approx((loss_at(h) - loss_at(-h)) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("query_norm", ["query", "support"])
def test_how_many_tasks_go_at_once_changes_nothing(query_norm, monkeypatch):
    algorithm, batch, found = Maml("pooled", 2, query_norm=query_norm), drawn_batch(), []
    for images in (1, WAYS * QUERIES * 2, 10**6):
        monkeypatch.setattr(maml, "CPU_IMAGES_AT_ONCE", images)
        params = drawn_params("pooled")
        inner_lrs = {name: lr.requires_grad_() for name, lr in drawn_lrs(params, "tensor", 2).items()}
        loss = maml.outer_backward(algorithm, params, inner_lrs, batch)
        scores = maml.evaluate(algorithm, params, inner_lrs, batch)
        found.append([torch.tensor(loss), *(t.grad for t in (*params.values(), *inner_lrs.values())), *scores.values()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("query_norm", "alone"), [("support", True), ("query", False)])
def test_a_query_is_judged_alone_only_under_the_support_s_statistics(query_norm, alone):
    algorithm, batch, params = Maml("pooled", 1, query_norm=query_norm), drawn_batch(), drawn_params("pooled")
    phi_T = {name: param.detach().expand(TASKS, *param.shape) for name, param in params.items()}
    query_TNQCHW = batch.query_TNQCHW.clone()
    query_TNQCHW[:, -1, -1] = drawn_batch(seed=9).query_TNQCHW[:, -1, -1]
    before, after = (
        maml.query_logits(algorithm, phi_T, other) for other in (batch, replace(batch, query_TNQCHW=query_TNQCHW))
    )
    assert torch.equal(before[:, :-1], after[:, :-1]) == alone


def test_scores_are_of_the_adapted_net_except_where_the_name_says_otherwise():
    algorithm, batch, params = Maml("pooled", 3), drawn_batch(), drawn_params("pooled")
    inner_lrs = drawn_lrs(params, "none", 3)
    scores_T = maml.evaluate(algorithm, params, inner_lrs, batch)
    loss = maml.outer_backward(algorithm, params, inner_lrs, batch)
    assert scores_T["loss"].mean().item() == pytest.approx(loss, abs=1e-12)
    labels = torch.arange(WAYS).repeat_interleave(SHOTS)
    for task in range(TASKS):
        hits = reference_logits("pooled", params, batch.support_TNKCHW[task].flatten(0, 1)).argmax(dim=1) == labels
        assert scores_T["pre_adapt_support_accuracy"][task].item() == pytest.approx(hits.double().mean().item())
    assert (scores_T["post_adapt_support_accuracy"] >= scores_T["pre_adapt_support_accuracy"]).all()


def test_scores_after_adapting_are_those_of_a_loop_over_tasks_each_of_its_own_images():
    algorithm, batch, params = Maml("pooled", 3), drawn_batch(), drawn_params("pooled")
    inner_lrs = drawn_lrs(params, "none", 3)
    scores_T = maml.evaluate(algorithm, params, inner_lrs, batch)
    found = {name: scores_T[f"{name}_accuracy"].tolist() for name in ("post_adapt_support", "post_adapt_query")}
    expected: dict[str, list[float]] = {name: [] for name in found}
    for support_NKCHW, query_NQCHW in zip(batch.support_TNKCHW, batch.query_TNQCHW, strict=True):
        phi = reference_phi(algorithm, params, inner_lrs, support_NKCHW.flatten(0, 1))
        for name, images_NKCHW in zip(expected, (support_NKCHW, query_NQCHW), strict=True):
            labels = torch.arange(WAYS).repeat_interleave(images_NKCHW.shape[1])
            hits = reference_logits("pooled", phi, images_NKCHW.flatten(0, 1)).argmax(dim=1) == labels
            expected[name].append(hits.double().mean().item())
    assert found == {name: pytest.approx(values) for name, values in expected.items()}
    before_T = scores_T["pre_adapt_support_accuracy"].tolist()
    assert len({tuple(before_T), *map(tuple, found.values())}) == 3  # else one could stand for another


def test_accuracy_counts_the_images_of_a_class_in_class_order():
    logits_TBN = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])  # two images each of classes 0 and 1
    assert accuracy(logits_TBN).tolist() == [0.75]
