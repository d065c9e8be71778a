"""What workers share out and put together again, on two processes that speak by gloo."""

import math
import os
from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest
import torch
from torch import Tensor

from cs330ray.course.learners import lora, maml
from cs330ray.course.learners.maml import Maml
from cs330ray.errors import Diverged, SpecError, WorkerLost
from cs330ray.training import parallel
from cs330ray.training.device import device
from tests.course.learners import test_lora as tiny
from tests.course.learners.test_maml import drawn_batch, drawn_lrs, drawn_params, reference_outer_loss
from tests.pair import PATIENCE_S, Workers, free_port


@pytest.fixture(scope="module")
def pair() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What the workers are told to do: functions of this module, which each of them imports


def who() -> tuple[int, int, str, int]:
    return parallel.rank(), parallel.workers(), str(device()), torch.get_num_threads()


def added(values: list[float]) -> float:
    return parallel.add(values[parallel.rank()])


def listening() -> list[str]:
    found = psutil.Process().net_connections(kind="inet")
    return sorted({one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN})


def gathered(values: list[list[object]]) -> list[object]:
    return parallel.gather(values[parallel.rank()])


def gathered_scores(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return parallel.gather_scores(values[parallel.rank()])


def diverging(reasons: list[str | None]) -> list[int]:
    reason = reasons[parallel.rank()]

    def work() -> list[int]:
        if reason is not None:
            raise Diverged(reason)
        return [parallel.rank()]

    return parallel.gather_from(work)


def added_gradients(grads: list[list[list[float] | None]]) -> list[list[float] | None]:
    params = [torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in grads[0]]
    for param, grad in zip(params, grads[parallel.rank()], strict=True):
        param.grad = None if grad is None else torch.tensor(grad, dtype=torch.float64)
    parallel.add_gradients(params)
    return [None if param.grad is None else param.grad.tolist() for param in params]


def added_in_place() -> list[float]:
    flat = torch.zeros(3, requires_grad=True)
    flat.grad = torch.tensor([1.0, 2.0, 3.0])
    view = flat.grad[1:]
    parallel.add_gradients([flat])
    return view.tolist()


def moved_house(port: int, timeout_s: float) -> tuple[float, float]:
    rank = parallel.rank()
    parallel.leave()
    alone = parallel.add(1.0)
    parallel.join(rank, 2, "127.0.0.1", port, timeout=timedelta(seconds=timeout_s))
    return alone, parallel.add(1.0)


def maml_gradient(body: str, told: dict[str, object], tasks: int) -> tuple[float, list[Tensor]]:
    algorithm, batch, params = Maml(body, **told), drawn_batch()[:tasks], drawn_params(body)
    inner_lrs = {name: lr.requires_grad_() for name, lr in drawn_lrs(params, "tensor", 2).items()}
    learned = [*params.values(), *inner_lrs.values()]
    loss = maml.outer_backward(algorithm, params, inner_lrs, batch[parallel.share(tasks)], of=tasks)
    parallel.add_gradients(learned)
    return parallel.add(loss), [tensor.grad for tensor in learned]


def lora_gradient(examples: list[lora.Encoded], told: dict[str, object]) -> tuple[float, dict[str, Tensor]]:
    model = tiny.llama()
    tiny.tuned(model, **told)
    tiny.filled(model)
    mine = examples[parallel.share(len(examples))]
    parts = [part for _, part in lora.batches(mine, 2, pad=tiny.PAD, device=tiny.CPU)]
    loss = lora.backward(model, parts, answers=sum(example.answers for example in examples))
    params = lora.trained(model)
    parallel.add_gradients(params.values())
    return parallel.add(loss), {name: param.grad for name, param in params.items()}


# Who they are


def test_each_worker_knows_its_rank_and_device_and_keeps_its_threads(pair):
    assert pair.call(who) == [(0, 2, "cpu", 1), (1, 2, "cpu", 1)]


def test_workers_that_meet_on_the_loopback_listen_there_alone(pair):
    assert pair.call(listening) == [["127.0.0.1"], ["127.0.0.1"]]


def test_a_worker_that_leaves_is_alone_and_may_join_others_elsewhere(pair):
    assert pair.call(moved_house, free_port(), 30) == [(1.0, 2.0), (1.0, 2.0)]


def test_leaving_takes_back_what_joining_told_the_environment(monkeypatch):
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    before = dict(os.environ)
    parallel.join(0, 1, "127.0.0.1", free_port(), timeout=timedelta(seconds=30))
    assert (os.environ["WORLD_SIZE"], parallel.workers()) == ("1", 1)
    parallel.leave()
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()


def test_a_device_on_which_workers_cannot_speak_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(parallel, "device", lambda: torch.device("mps"))
    with pytest.raises(SpecError, match=r"resources\.workers: several run on cuda or cpu, but got mps; use 1, or "):
        parallel.join(0, 2, "127.0.0.1", 1)


def test_a_first_worker_that_is_not_there_is_lost_and_leaves_a_lone_process_behind(monkeypatch):
    monkeypatch.setenv("CS330RAY_DEVICE", "cpu")
    before = dict(os.environ)
    with pytest.raises(WorkerLost, match=r"worker 1 of 2 at 127\.0\.0\.1:"):
        parallel.join(1, 2, "127.0.0.1", free_port(), timeout=timedelta(seconds=1))
    assert (parallel.workers(), parallel.rank(), dict(os.environ)) == (1, 0, before)


@pytest.mark.slow
def test_a_partner_that_is_silent_is_lost_after_the_timeout_and_one_that_is_killed_at_once():
    with Workers(2) as workers:
        workers.call(moved_house, free_port(), 2)
        (silent,) = workers.outcomes(added, [1.0, 2.0], ranks=range(1))
        workers.call(moved_house, free_port(), PATIENCE_S)
        workers.processes[1].kill()
        (killed,) = workers.outcomes(added, [1.0, 2.0], ranks=range(1))
    for lost in (silent, killed):
        assert isinstance(lost, WorkerLost)
        assert str(lost).startswith("worker 0 of 2: an answer of all workers is needed, but ")


# What they share out


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 7, 16, 100])
def test_shares_follow_one_another_and_differ_by_at_most_one(workers, count, monkeypatch):
    monkeypatch.setattr(parallel, "workers", lambda: workers)
    shares = []
    for rank in range(workers):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares.append(list(range(count))[parallel.share(count)])
    assert [thing for taken in shares for thing in taken] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_lone_process_gets_back_what_it_gives():
    param = torch.zeros(2, requires_grad=True)
    param.grad = grad = torch.tensor([1.0, 2.0])
    parallel.add_gradients([param, torch.zeros(3)])
    assert param.grad is grad
    assert grad.tolist() == [1.0, 2.0]
    values = ["a", "b"]
    assert parallel.gather(values) is values
    scores = torch.tensor([0.5])
    assert parallel.gather_scores({"loss": scores})["loss"] is scores
    assert (parallel.add(0.1), parallel.share(5)) == (0.1, slice(0, 5))


# What they put together


@pytest.mark.parametrize(
    ("values", "total"),
    [([0.1, 0.2], 0.1 + 0.2), ([0.0, 1e-300], 1e-300), ([2.5, math.inf], math.inf), ([1.0, math.nan], math.nan)],
)
def test_a_sum_is_taken_in_float64_and_is_the_same_in_each(pair, values, total):
    assert pair.call(added, values) == pytest.approx([total, total], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("values", [[["a", "b"], ["c"]], [[], [1]], [[(0.5, "x")], []], [[], []]])
def test_values_of_any_kind_follow_one_another_by_rank(pair, values):
    assert pair.call(gathered, values) == [values[0] + values[1]] * 2


def test_scores_follow_one_another_by_rank_in_their_own_type(pair):
    given = [
        {"loss": torch.tensor([1.0, 2.0, 3.0]), "right": torch.tensor([True, False, True])},
        {"loss": torch.tensor([4.0]), "right": torch.tensor([False])},
    ]
    for found in pair.call(gathered_scores, given):
        assert (found["loss"].dtype, found["loss"].tolist()) == (torch.float32, [1.0, 2.0, 3.0, 4.0])
        assert found["right"].tolist() == [True, False, True, False]


def test_a_worker_without_a_share_adds_no_scores(pair):
    for found in pair.call(gathered_scores, [{"loss": torch.tensor([1.0])}, {}]):
        assert {name: values.tolist() for name, values in found.items()} == {"loss": [1.0]}


def test_gradients_are_added_and_those_that_nobody_has_stay_none(pair):
    grads = [[[1.0, 2.0], None, [0.5, 0.25], None], [[10.0, 20.0], None, None, [3.0, 4.0]]]
    assert pair.call(added_gradients, grads) == [[[11.0, 22.0], None, [0.5, 0.25], [3.0, 4.0]]] * 2


def test_gradients_are_added_where_they_lie(pair):
    assert pair.call(added_in_place) == [[4.0, 6.0]] * 2


def test_work_that_diverges_in_one_worker_diverges_in_all(pair):
    assert pair.call(diverging, [None, None]) == [[0, 1]] * 2
    for reasons in ([None, "no logits"], ["no logits", None], ["no logits", "none here either"]):
        outcomes = pair.outcomes(diverging, reasons)
        assert [(type(outcome), str(outcome)) for outcome in outcomes] == [(Diverged, "no logits")] * 2


# What they reach


@pytest.mark.parametrize("tasks", [3, 1])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("course", {"inner_steps": 2}),
        ("pooled", {"inner_steps": 2, "query_norm": "support"}),
        ("pooled", {"inner_steps": 1, "first_order": True}),
    ],
)
def test_mamls_outer_gradient_is_that_of_a_loop_over_all_tasks(pair, body, told, tasks):
    params = drawn_params(body)
    inner_lrs = {name: lr.requires_grad_() for name, lr in drawn_lrs(params, "tensor", 2).items()}
    expected = reference_outer_loss(Maml(body, **told), params, inner_lrs, drawn_batch()[:tasks])
    grads = torch.autograd.grad(expected, [*params.values(), *inner_lrs.values()])
    one, other = pair.call(maml_gradient, body, told, tasks)
    assert_same_bits(one[1], other[1])
    assert one[0] == other[0] == pytest.approx(expected.item(), rel=1e-12)
    assert_near(one[1], grads)


@pytest.mark.slow
def test_three_workers_hold_the_same_bits_though_their_sums_may_be_taken_in_any_order():
    with Workers(3) as trio:
        for tasks in (3, 2):
            one, *others = trio.call(maml_gradient, "pooled", {"inner_steps": 1}, tasks)
            for other in others:
                assert one[0] == other[0]
                assert_same_bits(one[1], other[1])


EXAMPLES = [
    lora.Encoded((3, 4, 5, 6, 7), answer=2), lora.Encoded((8, 9, 10), answer=1), lora.Encoded((3, 11, 12, 4), answer=3),
    lora.Encoded((13, 14, 15, 16, 17, 18), answer=1), lora.Encoded((19, 20, 5, 6), answer=2),
]  # fmt: skip


@pytest.mark.parametrize("count", [5, 1])
@pytest.mark.parametrize("told", [{"method": "lora", "rank": 3}, {"method": "all"}, {"method": "last", "blocks": 1}])
def test_the_gradient_of_a_language_model_is_that_of_one_process_on_all_examples(pair, told, count):
    model = tiny.llama()
    tiny.tuned(model, **told)
    tiny.filled(model)
    batch = lora.collate(EXAMPLES[:count], pad=tiny.PAD, device=tiny.CPU)
    loss = lora.backward(model, [batch], answers=batch.answers)
    expected = {name: param.grad for name, param in lora.trained(model).items()}
    one, other = pair.call(lora_gradient, EXAMPLES[:count], told)
    assert list(one[1]) == list(expected)
    assert_same_bits(one[1].values(), other[1].values())
    assert one[0] == other[0] == pytest.approx(loss, rel=1e-12)
    assert_near(one[1].values(), expected.values())


def assert_same_bits(found, others) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, others, strict=True))


def assert_near(found, expected) -> None:
    """Equal to 1e-10 of each tensor's length, in float64."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float64
        assert (one - other).norm() <= 1e-10 * other.norm()
