"""Few-shot tasks: a batch of them, whose images stand in class order, and how well their queries are classified."""

# ruff: noqa: N815 - the fields carry their shapes

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

QueryNorm = Literal["query", "support"]

CPU_IMAGES_AT_ONCE = 128  # enough to feed one call, few enough to stay in the caches


@dataclass(frozen=True)
class Batch:
    """Labelled tasks: K shots and Q queries of each of N classes, in class order, ink 1."""

    support_TNKCHW: Tensor
    query_TNQCHW: Tensor

    def __len__(self) -> int:
        return len(self.support_TNKCHW)

    def __getitem__(self, tasks: slice) -> "Batch":
        return Batch(self.support_TNKCHW[tasks], self.query_TNQCHW[tasks])

    def with_shots(self, shots: int) -> "Batch":
        """Keep the first support images of each class; the same tasks and queries."""
        return Batch(self.support_TNKCHW[:, :, :shots], self.query_TNQCHW)


def joined(batches: Sequence[Batch]) -> Batch:
    """Put the tasks of batches one after another."""
    support, query = zip(*((batch.support_TNKCHW, batch.query_TNQCHW) for batch in batches), strict=True)
    return Batch(torch.cat(support), torch.cat(query))


def cross_entropy(logits_TBN: Tensor) -> Tensor:
    """Average the cross entropy of each task, whose images stand in class order: (T,)."""
    labels_TB = _labels(logits_TBN)
    return F.cross_entropy(logits_TBN.mT, labels_TB, reduction="none").mean(dim=1)


def accuracy(logits_TBN: Tensor) -> Tensor:
    """Share of each task's images, in class order, whose highest logit is their class's: (T,)."""
    return (logits_TBN.argmax(dim=-1) == _labels(logits_TBN)).cpu().double().mean(dim=1)


def _labels(logits_TBN: Tensor) -> Tensor:
    tasks, batch, ways = logits_TBN.shape
    return torch.arange(ways, device=logits_TBN.device).repeat_interleave(batch // ways).expand(tasks, -1)
