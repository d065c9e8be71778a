"""Prototypical networks: Snell, Swersky & Zemel 2017, equations (1) and (2).

A class is the mean of its support features; a query is of the class whose mean is nearest. One net embeds all tasks;
the support of a task is one batch-norm group and its queries are another, as in CS330, homework 2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.conv4 import Params
from cs330ray.course.learners.fewshot.tasks import CPU_IMAGES_AT_ONCE, Batch, QueryNorm, accuracy, cross_entropy

Distance = Literal["squared", "euclidean"]

IMAGES_AT_ONCE = 8192  # elsewhere than on a CPU: what a few GB of memory hold


@dataclass(frozen=True)
class ProtoNet:
    """What the algorithm is told: its distance, and whose batch statistics normalise the queries."""

    distance: Distance = "squared"
    query_norm: QueryNorm = "query"


def prototypes(z_support_TNKD: Tensor) -> Tensor:
    """Average the support features of each class, eq. (1): (T, N, D)."""
    return z_support_TNKD.mean(dim=2)


def logits(distance: Distance, z_TBD: Tensor, prototypes_TND: Tensor) -> Tensor:
    """Score each class by minus the distance to its prototype, of which eq. (2) is the softmax: (T, B, N)."""
    squared_TBN = (z_TBD[:, :, None] - prototypes_TND[:, None]).square().sum(dim=-1)
    return -squared_TBN if distance == "squared" else -_root(squared_TBN)


def backward(protonet: ProtoNet, params: Params, batch: Batch, *, of: int | None = None) -> dict[str, Tensor]:
    """Add the gradient of the mean query loss to the `grad` of the parameters; what `evaluate` gives.

    By the chain rule: the few support images of many tasks are embedded and differentiated together, the queries some
    tasks at a time. The mean over tasks is the same however many go at once: it is over `of` tasks where `batch` is a
    part of them, and whoever adds up what the parts give has the whole.
    """
    tasks, rows = len(batch) if of is None else of, []
    for part in _parts(batch, of=batch.support_TNKCHW):
        z_support_TNKD = support_features(params, part)
        leaf_TNKD = z_support_TNKD.detach().requires_grad_()
        done = 0
        for few in _parts(part, of=part.query_TNQCHW):
            row = _scores(protonet, params, few, leaf_TNKD[done : done + len(few)])
            (row["loss"].sum() / tasks).backward()  # type: ignore[no-untyped-call]
            rows.append(row)
            done += len(few)
        torch.autograd.backward(z_support_TNKD, leaf_TNKD.grad)
    return _join(rows)


@torch.no_grad()
def evaluate(protonet: ProtoNet, params: Params, batch: Batch, *, also: Sequence[QueryNorm] = ()) -> dict[str, Tensor]:
    """Score each task: the metrics by name, one value a task (T,); of no tasks, no metrics.

    `also` names other statistics by which the queries are normalised: the accuracy under each, with the same
    prototypes, has that name behind a slash.
    """
    rows = []
    for part in _parts(batch, of=batch.query_TNQCHW):
        z_support_TNKD = support_features(params, part)
        row = _scores(protonet, params, part, z_support_TNKD)
        for norm in also:
            other = _scores(replace(protonet, query_norm=norm), params, part, z_support_TNKD)
            row[f"query_accuracy/{norm}"] = other["query_accuracy"]
        rows.append(row)
    return _join(rows)


@torch.no_grad()
def predict(protonet: ProtoNet, params: Params, batch: Batch) -> Tensor:
    """Score the queries of each task, which may be of any classes and as many as they are: (T, B, N)."""
    prototypes_TND = prototypes(support_features(params, batch))
    return logits(protonet.distance, query_features(protonet, params, batch), prototypes_TND)


def support_features(params: Params, batch: Batch) -> Tensor:
    """Embed the support of each task: (T, N, K, D)."""
    z_TBD = conv4.group_features(params, batch.support_TNKCHW.flatten(1, 2))
    return z_TBD.reshape(*batch.support_TNKCHW.shape[:3], -1)


def query_features(protonet: ProtoNet, params: Params, batch: Batch) -> Tensor:
    """Embed the queries of each task, in class order, normalised as `query_norm` says: (T, B, D)."""
    support_TBCHW, query_TBCHW = batch.support_TNKCHW.flatten(1, 2), batch.query_TNQCHW.flatten(1, 2)
    if protonet.query_norm == "query":
        return conv4.group_features(params, query_TBCHW)
    norm_B = support_TBCHW.shape[1]
    return conv4.group_features(params, torch.cat([support_TBCHW, query_TBCHW], dim=1), norm_B=norm_B)[:, norm_B:]


def _scores(protonet: ProtoNet, params: Params, batch: Batch, z_support_TNKD: Tensor) -> dict[str, Tensor]:
    prototypes_TND = prototypes(z_support_TNKD)
    support_TBN = logits(protonet.distance, z_support_TNKD.flatten(1, 2), prototypes_TND)
    query_TBN = logits(protonet.distance, query_features(protonet, params, batch), prototypes_TND)
    return {
        "loss": cross_entropy(query_TBN),
        "support_accuracy": accuracy(support_TBN),
        "query_accuracy": accuracy(query_TBN),
    }


def _join(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([row[name].detach() for row in rows]) for name in rows[0]} if rows else {}


def _parts(batch: Batch, of: Tensor) -> Iterator[Batch]:
    """Cut a batch into whole tasks, as many as go at once by the number of images in `of`."""
    images = CPU_IMAGES_AT_ONCE if of.is_cpu else IMAGES_AT_ONCE
    at_once = max(1, images // (of.shape[1] * of.shape[2]))
    for first in range(0, len(batch), at_once):
        yield batch[first : first + at_once]


def _root(x: Tensor) -> Tensor:
    """Square root with a slope of 0 at 0: a subgradient of the distance there, where autograd's slope is infinite."""
    at_zero = x == 0
    return x.masked_fill(at_zero, 1.0).sqrt().masked_fill(at_zero, 0.0)
