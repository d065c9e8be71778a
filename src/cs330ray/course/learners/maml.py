"""MAML: Finn, Abbeel & Levine 2017, algorithm 2; learned inner rates as in Li et al. 2017 and Antoniou et al. 2019.

phi_T <- phi_T - alpha grad L(phi_T, support), `inner_steps` times from phi_T = w for every task; then w descends the
mean over tasks of L(phi_T, query).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.conv4 import Body, Params
from cs330ray.course.learners.fewshot.tasks import CPU_IMAGES_AT_ONCE, Batch, QueryNorm, accuracy, cross_entropy

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
    inner_lrs: Params,
    *,
    inner_steps: int,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """Descend `loss`, one value a task (T,), from `params_T`, algorithm 2 line 6; the adapted parameters.

    All have a leading T. Differentiable in parameters and rates; `first_order` takes the inner gradients for constants.
    Steps beyond the last rate use that one.
    """
    phi_T = dict(params_T)
    for step in range(inner_steps):
        grads_T = torch.autograd.grad(loss(phi_T).sum(), list(phi_T.values()), create_graph=not first_order)
        phi_T = {
            name: param_T - inner_lrs[name][min(step, len(inner_lrs[name]) - 1)] * grad_T
            for (name, param_T), grad_T in zip(phi_T.items(), grads_T, strict=True)
        }
    return phi_T


def outer_backward(maml: Maml, params: Params, inner_lrs: Params, batch: Batch, *, of: int | None = None) -> float:
    """Add the gradient of the outer loss, algorithm 2 line 10, to the `grad` of parameters and learned rates; the loss.

    By the chain rule dL/dw = (dphi/dw)^T dL/dphi: the queries, which are most of the images, are differentiated once
    and a few tasks at a time, the inner loop twice. The mean over tasks is the same however many go at once: it is over
    `of` tasks where `batch` is a part of them, and whoever adds up what the parts give has the whole.
    """
    tasks, loss = len(batch) if of is None else of, 0.0
    for part in _parts(batch, of=batch.support_TNKCHW):
        phi_T = _adapted(maml, params, inner_lrs, part, first_order=maml.first_order)
        grads, losses_T = zip(*_query_gradients(maml, phi_T, part), strict=True)
        cotangents = [torch.cat(tensors_T) / tasks for tensors_T in zip(*grads, strict=True)]
        torch.autograd.backward(list(phi_T.values()), cotangents)
        loss += torch.cat(losses_T).sum().item() / tasks
    return loss


def evaluate(maml: Maml, params: Params, inner_lrs: Params, batch: Batch) -> dict[str, Tensor]:
    """Adapt to each task and score it: the metrics by name, one value a task (T,); of no tasks, no metrics."""
    rows = [_evaluate(maml, params, inner_lrs, part) for part in _parts(batch, of=batch.query_TNQCHW)]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _evaluate(maml: Maml, params: Params, inner_lrs: Params, batch: Batch) -> dict[str, Tensor]:
    phi_T = _adapted(maml, params, inner_lrs, batch, first_order=True)
    with torch.no_grad():
        before_TBN = conv4.logits(maml.body, _for_each(len(batch), params), _flat(batch.support_TNKCHW))
        after_TBN = conv4.logits(maml.body, phi_T, _flat(batch.support_TNKCHW))
        query_TBN = query_logits(maml, phi_T, batch)
    return {
        "loss": cross_entropy(query_TBN),
        "pre_adapt_support_accuracy": accuracy(before_TBN),
        "post_adapt_support_accuracy": accuracy(after_TBN),
        "post_adapt_query_accuracy": accuracy(query_TBN),
    }


def predict(maml: Maml, params: Params, inner_lrs: Params, batch: Batch) -> Tensor:
    """Adapt to each task and score its queries, which may be of any classes and as many as they are: (T, B, N)."""
    phi_T = _adapted(maml, params, inner_lrs, batch, first_order=True)
    with torch.no_grad():
        return query_logits(maml, phi_T, batch)


def query_logits(maml: Maml, phi_T: Params, batch: Batch) -> Tensor:
    """Score the queries under adapted parameters, normalised as `query_norm` says: (T, B, N), in class order."""
    support_TBCHW, query_TBCHW = _flat(batch.support_TNKCHW), _flat(batch.query_TNQCHW)
    if maml.query_norm == "query":
        return conv4.logits(maml.body, phi_T, query_TBCHW)
    norm_B = support_TBCHW.shape[1]
    return conv4.logits(maml.body, phi_T, torch.cat([support_TBCHW, query_TBCHW], dim=1), norm_B=norm_B)[:, norm_B:]


def _adapted(maml: Maml, params: Params, inner_lrs: Params, batch: Batch, *, first_order: bool) -> dict[str, Tensor]:
    support_TBCHW = _flat(batch.support_TNKCHW)

    def loss(phi_T: Params) -> Tensor:
        return cross_entropy(conv4.logits(maml.body, phi_T, support_TBCHW))

    shared_T = _for_each(len(batch), params)
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


def _for_each(tasks: int, params: Params) -> dict[str, Tensor]:
    return {name: param.expand(tasks, *param.shape) for name, param in params.items()}


def _flat(images_TNKCHW: Tensor) -> Tensor:
    return images_TNKCHW.flatten(1, 2)
