from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners import protonet
from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.tasks import Batch
from cs330ray.course.learners.protonet import ProtoNet
from tests.course.learners.test_conv4 import reference_logits

TASKS, WAYS, SHOTS, QUERIES, SIDE, FILTERS = 3, 3, 2, 4, 16, 4
ALGORITHMS = [ProtoNet(distance, norm) for distance in ("squared", "euclidean") for norm in ("query", "support")]
each = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda it: f"{it.distance}, {it.query_norm}'s norm")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The nets are tiny, and the machine may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn_batch(seed: int = 0, tasks: int = TASKS) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    support, query = (
        torch.rand(tasks, WAYS, count, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
        for count in (SHOTS, QUERIES)
    )
    return Batch(support, query)


def drawn_params(*, affine: bool = True) -> dict[str, Tensor]:
    """A net in float64 with shifts, and with scales of both signs; or without both."""
    generator = torch.Generator().manual_seed(3)
    params = conv4.init("pooled", filters=FILTERS, ways=None, generator=generator, affine=affine, side=SIDE)
    for name, param in params.items():
        if name.startswith("norm"):
            param += torch.randn(param.shape, generator=generator)
    if affine:
        params["norm1.scale"][0] = params["norm3.scale"][1] = -0.5
    return {name: param.double().requires_grad_() for name, param in params.items()}


def scores(algorithm: ProtoNet, params: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of the support and of the queries: (T, B, N) each."""
    z_support_TNKD = protonet.support_features(params, batch)
    prototypes_TND = protonet.prototypes(z_support_TNKD)
    z_query_TBD = protonet.query_features(algorithm, params, batch)
    support_TBN, query_TBN = (
        protonet.logits(algorithm.distance, z_TBD, prototypes_TND)
        for z_TBD in (z_support_TNKD.flatten(1, 2), z_query_TBD)
    )
    return support_TBN, query_TBN


def query_scores(algorithm: ProtoNet, params: dict[str, Tensor], batch: Batch) -> Tensor:
    return scores(algorithm, params, batch)[1]


def reference_features(params: dict[str, Tensor], images_BCHW: Tensor, norm_B: int | None = None) -> Tensor:
    head = {"head.weight": torch.eye(FILTERS, dtype=torch.float64), "head.bias": torch.zeros(FILTERS).double()}
    return reference_logits("pooled", params | head, images_BCHW, norm_B)


def reference_scores(
    algorithm: ProtoNet, params: dict[str, Tensor], support_NKCHW: Tensor, query_NQCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """One task by torch alone, class by class: the logits of its support and of its queries."""
    support, query = support_NKCHW.flatten(0, 1), query_NQCHW.flatten(0, 1)
    z_support = reference_features(params, support)
    if algorithm.query_norm == "query":
        z_query = reference_features(params, query)
    else:
        z_query = reference_features(params, torch.cat([support, query]), len(support))[len(support) :]
    labels = torch.arange(WAYS).repeat_interleave(SHOTS)
    prototypes = torch.stack([z_support[labels == label].mean(dim=0) for label in range(WAYS)])
    power = {"squared": 2, "euclidean": 1}[algorithm.distance]
    return tuple(-(torch.cdist(z, prototypes) ** power) for z in (z_support, z_query))


# The paper


@pytest.mark.parametrize(("distance", "expected"), [("squared", [-1.0, -10.0]), ("euclidean", [-1.0, -(10.0**0.5)])])
def test_a_query_is_scored_by_its_distance_to_the_mean_of_each_class(distance, expected):
    """Class means (1, 0) and (0, 4); the query (1, 1) is 0, 1 from the one and 1, 3 from the other."""
    z_support_TNKD = torch.tensor([[[[0.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [0.0, 5.0]]]])
    prototypes_TND = protonet.prototypes(z_support_TNKD)
    assert prototypes_TND.tolist() == [[[1.0, 0.0], [0.0, 4.0]]]
    logits_TBN = protonet.logits(distance, torch.tensor([[[1.0, 1.0]]]), prototypes_TND)
    assert logits_TBN.tolist() == [[pytest.approx(expected)]]


@pytest.mark.parametrize(("distance", "slope"), [("squared", 6.0), ("euclidean", 1.0)])
def test_a_feature_on_a_prototype_draws_no_gradient_from_it_and_the_usual_one_from_the_others(distance, slope):
    z_TBD = torch.tensor([[[0.0, 2.0]]], requires_grad=True)
    protonet.logits(distance, z_TBD, torch.tensor([[[0.0, 2.0], [0.0, 5.0]]])).sum().backward()
    assert z_TBD.grad.tolist() == [[[0.0, slope]]]


@each
def test_logits_are_those_of_torch_one_task_at_a_time(algorithm):
    params, batch = drawn_params(), drawn_batch()
    found = scores(algorithm, params, batch)
    tasks = zip(batch.support_TNKCHW, batch.query_TNQCHW, strict=True)
    expected = zip(*(reference_scores(algorithm, params, *task) for task in tasks), strict=True)
    for logits_TBN, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(logits_TBN, torch.stack(reference), rtol=1e-9, atol=1e-9)


@each
def test_loss_and_gradients_are_those_of_a_loop_over_tasks(algorithm):
    params, batch, losses = drawn_params(), drawn_batch(), []
    for support_NKCHW, query_NQCHW in zip(batch.support_TNKCHW, batch.query_TNQCHW, strict=True):
        query_logits = reference_scores(algorithm, params, support_NKCHW, query_NQCHW)[1]
        losses.append(F.cross_entropy(query_logits, torch.arange(WAYS).repeat_interleave(QUERIES)))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(params.values()))
    row = protonet.backward(algorithm, params, batch)
    torch.testing.assert_close(row["loss"], torch.stack(losses).detach(), rtol=1e-10, atol=1e-10)
    for param, grad in zip(params.values(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=1e-9, atol=1e-9)


@each
def test_the_gradient_is_that_of_finite_differences(algorithm):
    params, batch, generator, h = drawn_params(), drawn_batch(), torch.Generator().manual_seed(5), 1e-6
    direction = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in params.items()}
    protonet.backward(algorithm, params, batch)

    def loss_at(t: float) -> float:
        moved = {name: (param + t * direction[name]).detach() for name, param in params.items()}
        return protonet.evaluate(algorithm, moved, batch)["loss"].mean().item()

    slope = sum((param.grad * direction[name]).sum().item() for name, param in params.items())
    assert slope == pytest.approx((loss_at(h) - loss_at(-h)) / (2 * h), rel=1e-5)


@each
def test_classes_in_another_order_have_their_logits_in_that_order(algorithm):
    params, batch, order = drawn_params(), drawn_batch(), [2, 0, 1]
    permuted = Batch(batch.support_TNKCHW[:, order], batch.query_TNQCHW[:, order])
    for before, after in zip(scores(algorithm, params, batch), scores(algorithm, params, permuted), strict=True):
        by_class_TNXN = before.unflatten(1, (WAYS, -1))
        torch.testing.assert_close(after.unflatten(1, (WAYS, -1)), by_class_TNXN[:, order][..., order])


@each
def test_the_support_of_a_class_in_another_order_leaves_the_queries_logits(algorithm):
    params, batch = drawn_params(), drawn_batch()
    permuted = replace(batch, support_TNKCHW=batch.support_TNKCHW.flip(2))
    before, after = (query_scores(algorithm, params, given) for given in (batch, permuted))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_one_batch_is_learned_by_heart(distance):
    algorithm, batch, generator = ProtoNet(distance), drawn_batch(tasks=2), torch.Generator().manual_seed(0)
    batch = Batch(batch.support_TNKCHW.float(), batch.query_TNQCHW.float())
    drawn = conv4.init("pooled", filters=8, ways=None, generator=generator, side=SIDE)
    params = {name: param.requires_grad_() for name, param in drawn.items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        row = protonet.backward(algorithm, params, batch)
        optimizer.step()
    assert row["loss"].mean() < 3e-3
    assert row["query_accuracy"].mean() == 1


# Batch-norm groups: the support of one task, the queries of one task


@each
def test_the_images_of_one_task_do_not_reach_another(algorithm):
    params, batch, other = drawn_params(), drawn_batch(), drawn_batch(seed=9)
    support_TNKCHW, query_TNQCHW = batch.support_TNKCHW.clone(), batch.query_TNQCHW.clone()
    support_TNKCHW[1], query_TNQCHW[1] = other.support_TNKCHW[1], other.query_TNQCHW[1]
    for before, after in zip(
        scores(algorithm, params, batch), scores(algorithm, params, Batch(support_TNKCHW, query_TNQCHW)), strict=True
    ):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize(("query_norm", "apart"), [("query", True), ("support", False)])
def test_the_support_reaches_the_features_of_the_queries_only_where_it_normalises_them(query_norm, apart):
    algorithm, params, batch = ProtoNet(query_norm=query_norm), drawn_params(), drawn_batch()
    changed = replace(batch, support_TNKCHW=drawn_batch(seed=9).support_TNKCHW)
    before, after = (protonet.query_features(algorithm, params, given) for given in (batch, changed))
    assert torch.equal(before, after) == apart


@pytest.mark.parametrize(("query_norm", "alone"), [("support", True), ("query", False)])
def test_a_query_is_judged_alone_only_under_the_support_s_statistics(query_norm, alone):
    algorithm, params, batch = ProtoNet(query_norm=query_norm), drawn_params(), drawn_batch()
    query_TNQCHW = batch.query_TNQCHW.clone()
    query_TNQCHW[:, -1, -1] = drawn_batch(seed=9).query_TNQCHW[:, -1, -1]
    before, after = (
        query_scores(algorithm, params, given)[:, :-1] for given in (batch, replace(batch, query_TNQCHW=query_TNQCHW))
    )
    assert torch.equal(before, after) == alone


@pytest.mark.parametrize("query_norm", ["query", "support"])
def test_the_queries_do_not_reach_the_features_of_the_support(query_norm):
    algorithm, params, batch = ProtoNet(query_norm=query_norm), drawn_params(), drawn_batch()
    changed = replace(batch, query_TNQCHW=drawn_batch(seed=9).query_TNQCHW)
    before, after = (scores(algorithm, params, given)[0] for given in (batch, changed))
    assert torch.equal(before, after)


@each
def test_how_many_images_go_at_once_changes_nothing(algorithm, monkeypatch):
    """One at a time is fewer than any group has: then tasks go one by one, and their groups stay whole."""
    found = []
    for images in (1, WAYS * QUERIES * 2, 10**6):
        monkeypatch.setattr(protonet, "CPU_IMAGES_AT_ONCE", images)
        params, batch = drawn_params(), drawn_batch()
        row = protonet.backward(algorithm, params, batch)
        measured = protonet.evaluate(algorithm, params, batch)
        torch.testing.assert_close(row, measured, rtol=1e-11, atol=1e-11)
        found.append([*(param.grad for param in params.values()), *row.values()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm_B", [None, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_groups_under_one_net_have_the_features_that_torch_gives_each_alone(norm_B, affine):
    params, images_GBCHW = (
        drawn_params(affine=affine),
        torch.cat([drawn_batch(seed).query_TNQCHW.flatten(1, 2) for seed in (0, 1)]),
    )
    found = conv4.group_features(params, images_GBCHW, norm_B=norm_B)
    expected = [reference_features(params, images_BCHW, norm_B) for images_BCHW in images_GBCHW]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_the_statistics_of_groups_are_the_same_by_the_way_that_a_gpu_takes(monkeypatch):
    y_GBCHW = drawn_batch().query_TNQCHW[:, :, :, 0]

    def with_gradient() -> tuple[Tensor, ...]:
        y = y_GBCHW.clone().requires_grad_()
        mean_GC, var_GC = conv4._GroupStatistics.apply(y)
        (mean_GC.sin() + var_GC.cos()).sum().backward()
        return mean_GC, var_GC, y.grad

    here = with_gradient()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.Tensor, "is_cpu", False)
        there = with_gradient()
    torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-12)


@each
def test_blank_images_have_a_finite_loss_and_gradients(algorithm):
    params = {name: param.detach().float().requires_grad_() for name, param in drawn_params().items()}
    row = protonet.backward(algorithm, params, Batch(torch.zeros(2, 3, 2, 1, 28, 28), torch.zeros(2, 3, 4, 1, 28, 28)))
    assert row["loss"].isfinite().all()
    assert all(param.grad.isfinite().all() for param in params.values())


# What is reported


def by_hand(logits_BN: Tensor, per_class: int) -> float:
    hits = [row.argmax().item() == place // per_class for place, row in enumerate(logits_BN)]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("measure", [protonet.evaluate, protonet.backward])
def test_each_task_has_its_loss_and_both_accuracies(measure: Callable[..., dict[str, Tensor]]):
    algorithm, params, batch = ProtoNet(), drawn_params(), drawn_batch()
    row = measure(algorithm, params, batch)
    assert row.keys() == {"loss", "support_accuracy", "query_accuracy"}
    for task in range(TASKS):
        support, query = reference_scores(algorithm, params, batch.support_TNKCHW[task], batch.query_TNQCHW[task])
        assert row["support_accuracy"][task].item() == pytest.approx(by_hand(support, SHOTS))
        assert row["query_accuracy"][task].item() == pytest.approx(by_hand(query, QUERIES))
        labels = torch.arange(WAYS).repeat_interleave(QUERIES)
        assert row["loss"][task].item() == pytest.approx(F.cross_entropy(query, labels).item())
    assert not any(values_T.requires_grad for values_T in row.values())
    assert row["support_accuracy"].tolist() != row["query_accuracy"].tolist()  # else one could stand for the other
