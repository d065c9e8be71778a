"""MAML: Finn, Abbeel & Levine 2017, algorithm 2; learned inner rates as in Li et al. 2017 and Antoniou et al. 2019.

phi_T <- phi_T - alpha grad L(phi_T, support), `inner_steps` times from phi_T = w for every task; then w descends the
mean over tasks of L(phi_T, query).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.conv4 import Body, Params
from cs330ray.course.learners.fewshot.tasks import CPU_IMAGES_AT_ONCE, Batch, QueryNorm, accuracy, cross_entropy

CHANNELS_AT_ONCE = 32  # that a loop on a CPU takes: two registers of AVX-512, or a multiple of those before it

LearnInnerLrs = Literal["none", "tensor", "tensor_step"]


@dataclass(frozen=True)
class Maml:
    """What the algorithm is told: body, length and order of the inner loop, whose statistics normalise the queries."""

    body: Body
    inner_steps: int
    first_order: bool = False
    query_norm: QueryNorm = "query"


def init_inner_lrs(params: Params, inner_lr: float, learn: LearnInnerLrs, inner_steps: int) -> dict[str, Tensor]:
    """Set one inner rate (the paper's alpha) for each parameter tensor, all equal: (1,), or (S,) for one a step."""
    steps = inner_steps if learn == "tensor_step" else 1
    return {name: param.new_full((steps,), inner_lr) for name, param in params.items()}


def adapt(
    loss: Callable[[Params], Tensor],
    params_T: Params,
    inner_lrs: Sequence[Params],
    *,
    inner_steps: int,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """Descend `loss`, one value a task (T,), from `params_T`, algorithm 2 line 6; the adapted parameters.

    All have a leading T. There are rates for each member, who have equally many tasks, those of the first first.
    Differentiable in parameters and rates; `first_order` takes the inner gradients for constants. Steps beyond the last
    rate use that one.
    """
    phi_T = dict(params_T)
    for step in range(inner_steps):
        grads_T = torch.autograd.grad(loss(phi_T).sum(), list(phi_T.values()), create_graph=not first_order)
        phi_T = {
            name: param_T - _scaled([lrs[name][min(step, len(lrs[name]) - 1)] for lrs in inner_lrs], grad_T)
            for (name, param_T), grad_T in zip(phi_T.items(), grads_T, strict=True)
        }
    return phi_T


def _scaled(rates: Sequence[Tensor], grad_T: Tensor) -> Tensor:
    """Multiply the gradients of each member's tasks by its rate."""
    if len(rates) == 1:
        return rates[0] * grad_T
    return torch.cat([rate * own_T for rate, own_T in zip(rates, grad_T.chunk(len(rates)), strict=True)])


def outer_backward(maml: Maml, params: Params, inner_lrs: Params, batch: Batch, *, of: int | None = None) -> float:
    """Add the gradient of the outer loss, algorithm 2 line 10, to the `grad` of parameters and learned rates; the loss.

    By the chain rule dL/dw = (dphi/dw)^T dL/dphi: the queries, which are most of the images, are differentiated once
    and a few tasks at a time, the inner loop twice. The mean over tasks is the same however many go at once: it is over
    `of` tasks where `batch` is a part of them, and whoever adds up what the parts give has the whole.
    """
    return outer_backward_many(maml, [params], [inner_lrs], [batch], of=of)[0]


def outer_backward_many(
    maml: Maml,
    params: Sequence[Params],
    inner_lrs: Sequence[Params],
    batches: Sequence[Batch],
    *,
    of: int | None = None,
) -> list[float]:
    """Do for several members, each with as many tasks, what `outer_backward` does for one; their losses.

    Each member's numbers are those that it has alone: it goes through the inner loop beside others, whose tasks are to
    the net only more tasks, and through its queries in the same parts as alone.
    """
    tasks, losses = len(batches[0]) if of is None else of, [0.0] * len(batches)
    for parts in zip(*(_parts(batch, of=batch.support_TNKCHW) for batch in batches), strict=True):
        for some in _beside(params, parts):
            beside = parts[some]
            phi_T = _adapted(maml, params[some], inner_lrs[some], beside, first_order=maml.first_order)
            cotangents: list[list[Tensor]] = []
            for member, part in enumerate(beside):
                first = member * len(part)
                own_T = {name: tensor_T[first : first + len(part)] for name, tensor_T in phi_T.items()}
                grads, losses_T = zip(*_query_gradients(maml, own_T, part), strict=True)
                cotangents.append([torch.cat(tensors_T) / tasks for tensors_T in zip(*grads, strict=True)])
                losses[some.start + member] += torch.cat(losses_T).sum().item() / tasks
            torch.autograd.backward(list(phi_T.values()), [torch.cat(each) for each in zip(*cotangents, strict=True)])
    return losses


def evaluate(
    maml: Maml, params: Params, inner_lrs: Params, batch: Batch, *, also: Sequence[QueryNorm] = ()
) -> dict[str, Tensor]:
    """Adapt to each task and score it: the metrics by name, one value a task (T,); of no tasks, no metrics.

    `also` names other statistics by which the queries of the same adapted nets are normalised: the accuracy under each
    has that name behind a slash.
    """
    rows = [_evaluate(maml, params, inner_lrs, part, also) for part in _parts(batch, of=batch.query_TNQCHW)]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _evaluate(
    maml: Maml, params: Params, inner_lrs: Params, batch: Batch, also: Sequence[QueryNorm]
) -> dict[str, Tensor]:
    phi_T = _adapted(maml, [params], [inner_lrs], [batch], first_order=True)
    with torch.no_grad():
        before_TBN = conv4.logits(maml.body, _for_each(len(batch), [params]), _flat(batch.support_TNKCHW))
        after_TBN = conv4.logits(maml.body, phi_T, _flat(batch.support_TNKCHW))
        query_TBN = query_logits(maml, phi_T, batch)
        others_TBN = {norm: query_logits(replace(maml, query_norm=norm), phi_T, batch) for norm in also}
    return {
        "loss": cross_entropy(query_TBN),
        "pre_adapt_support_accuracy": accuracy(before_TBN),
        "post_adapt_support_accuracy": accuracy(after_TBN),
        "post_adapt_query_accuracy": accuracy(query_TBN),
        **{f"post_adapt_query_accuracy/{norm}": accuracy(logits_TBN) for norm, logits_TBN in others_TBN.items()},
    }


def predict(maml: Maml, params: Params, inner_lrs: Params, batch: Batch) -> Tensor:
    """Adapt to each task and score its queries, which may be of any classes and as many as they are: (T, B, N)."""
    phi_T = _adapted(maml, [params], [inner_lrs], [batch], first_order=True)
    with torch.no_grad():
        return query_logits(maml, phi_T, batch)


def query_logits(maml: Maml, phi_T: Params, batch: Batch) -> Tensor:
    """Score the queries under adapted parameters, normalised as `query_norm` says: (T, B, N), in class order."""
    support_TBCHW, query_TBCHW = _flat(batch.support_TNKCHW), _flat(batch.query_TNQCHW)
    if maml.query_norm == "query":
        return conv4.logits(maml.body, phi_T, query_TBCHW)
    norm_B = support_TBCHW.shape[1]
    return conv4.logits(maml.body, phi_T, torch.cat([support_TBCHW, query_TBCHW], dim=1), norm_B=norm_B)[:, norm_B:]


def _adapted(
    maml: Maml, params: Sequence[Params], inner_lrs: Sequence[Params], batches: Sequence[Batch], *, first_order: bool
) -> dict[str, Tensor]:
    """Adapt the parameters of each member to each of its tasks, those of the first member first; with a leading T."""
    tasks = len(batches[0])
    support_TBCHW = torch.cat([_flat(batch.support_TNKCHW) for batch in batches])

    def loss(phi_T: Params) -> Tensor:
        return cross_entropy(conv4.logits(maml.body, phi_T, support_TBCHW))

    shared_T = _for_each(tasks, params)
    return adapt(loss, shared_T, inner_lrs, inner_steps=maml.inner_steps, first_order=first_order)


def _query_gradients(maml: Maml, phi_T: Params, batch: Batch) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """For a few tasks at a time: the gradient of their query losses by their adapted parameters, and the losses."""
    done = 0
    for part in _parts(batch, of=batch.query_TNQCHW):
        leaves_T = {
            name: tensor_T[done : done + len(part)].detach().requires_grad_() for name, tensor_T in phi_T.items()
        }
        losses_T = cross_entropy(query_logits(maml, leaves_T, part))
        yield torch.autograd.grad(losses_T.sum(), list(leaves_T.values())), losses_T.detach()
        done += len(part)


def _parts(batch: Batch, of: Tensor) -> Iterator[Batch]:
    """Cut a batch into few tasks at a time, by the number of images in `of`; a GPU takes all at once."""
    images = of.shape[1] * of.shape[2]
    at_once = max(1, CPU_IMAGES_AT_ONCE // images) if of.device.type == "cpu" else max(1, len(batch))
    for first in range(0, len(batch), at_once):
        yield batch[first : first + at_once]


def _for_each(tasks: int, params: Sequence[Params]) -> dict[str, Tensor]:
    """Repeat the tensors of each member for each of its tasks, those of the first member first."""
    expanded = {name: [each[name].expand(tasks, *each[name].shape) for each in params] for name in params[0]}
    return {name: torch.cat(tensors) if len(tensors) > 1 else tensors[0] for name, tensors in expanded.items()}


def _beside(params: Sequence[Params], batches: Sequence[Batch]) -> Iterator[slice]:
    """Cut members into few at a time, so that each has the numbers that it has alone.

    A convolution of one group is another than of several, and where channels do not fill its registers, a loop takes
    the last ones another way: then each member goes by itself.
    """
    tasks, filters = len(batches[0]), len(params[0]["conv1.weight"])
    images = batches[0].support_TNKCHW[:, :, :, 0, 0, 0].numel()
    exact = tasks > 1 and tasks * filters % CHANNELS_AT_ONCE == 0
    at_once = max(1, CPU_IMAGES_AT_ONCE // images) if exact else 1
    for first in range(0, len(batches), at_once):
        yield slice(first, min(first + at_once, len(batches)))


def _flat(images_TNKCHW: Tensor) -> Tensor:
    return images_TNKCHW.flatten(1, 2)
