"""The baseline of few-shot learning: a plain classifier of the training classes, then class means of its features.

Chen, Liu, Kira, Wang & Huang 2019 ("A Closer Look at Few-shot Classification"): their Baseline trains a linear
classifier, their Baseline++ one by cosine with a learned scale. On a new task they fit such a classifier to the support
by gradient descent. Here its weights are the class means of the support, as in Wang et al. 2019 (SimpleShot; `nearest`
is its UN, `cosine` close to its L2N): nothing is trained at test. Tian et al. 2020 ("Rethinking Few-Shot Image
Classification") fit logistic regression instead.

The net is `conv4`'s pooled body. It trains on batches of unrelated images, each normalised by itself, and keeps running
statistics; by these all images of a task are normalised, so that no answer depends on other queries.
"""

# ruff: noqa: N815 - the fields carry their shapes

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners import protonet
from cs330ray.course.learners.fewshot import conv4, tasks
from cs330ray.course.learners.fewshot.conv4 import Params

Classifier = Literal["linear", "cosine"]
Head = Literal["nearest", "cosine"]

SCALE = 10.0  # of cosines before the softmax, at the start
MOMENTUM = 0.1  # of the running statistics: the share of a step's own


@dataclass(frozen=True)
class Batch:
    """Labelled images in G batches, each of which is normalised by itself."""

    images_GBCHW: Tensor
    labels_GB: Tensor  # int64: the places of their classes among those of training

    def __len__(self) -> int:
        return len(self.labels_GB)

    def __getitem__(self, batches: slice) -> "Batch":
        return Batch(self.images_GBCHW[batches], self.labels_GB[batches])


def init(
    classifier: Classifier,
    *,
    filters: int,
    classes: int | None,
    generator: torch.Generator,
    affine: bool = True,
    side: int = 28,
    channels: int = 1,
) -> dict[str, Tensor]:
    """Draw the parameters: those of `conv4`, with a head for the classes of training unless that is None."""
    params = conv4.init(
        "pooled", filters=filters, ways=classes, generator=generator, affine=affine, side=side, channels=channels
    )
    if classifier == "cosine" and classes is not None:
        del params["head.bias"]
        params["head.scale"] = torch.tensor(SCALE)
    return params


def init_statistics(filters: int) -> dict[str, Tensor]:
    """Begin the running statistics of each block: mean 0 and variance 1 of each channel."""
    blocks = range(1, conv4.BLOCKS + 1)
    return {
        name: tensor
        for block in blocks
        for name, tensor in ((f"norm{block}.mean", torch.zeros(filters)), (f"norm{block}.var", torch.ones(filters)))
    }


def features(params: Params, statistics: Params, images_BCHW: Tensor, *, training: bool = False) -> Tensor:
    """Embed images, normalised by `statistics`: (B, D). In training by their own, which take the place of those.

    A variance that is kept is unbiased, one that normalises in training is not, as torch has them.
    """
    x_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
    for block in range(1, conv4.BLOCKS + 1):
        y_BCHW = F.conv2d(x_BCHW, params[f"conv{block}.weight"], padding=1)
        y_BCHW = F.batch_norm(
            y_BCHW,
            statistics[f"norm{block}.mean"],
            statistics[f"norm{block}.var"],
            params.get(f"norm{block}.scale"),
            params.get(f"norm{block}.shift"),
            training=training,
            momentum=1.0,
            eps=conv4.EPSILON,
        )
        x_BCHW = F.max_pool2d(y_BCHW.relu(), 2)
    return x_BCHW.flatten(1)


def logits(classifier: Classifier, params: Params, z_BD: Tensor) -> Tensor:
    """Score the classes of training: (B, M)."""
    if classifier == "linear":
        return F.linear(z_BD, params["head.weight"], params["head.bias"])
    return params["head.scale"] * F.linear(F.normalize(z_BD, dim=-1), F.normalize(params["head.weight"], dim=-1))


def backward(
    classifier: Classifier, params: Params, batch: Batch, *, of: int
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Add the gradient of the mean cross entropy to the `grad` of the parameters.

    It is over `of` batches, of which `batch` is a part. Returns loss and accuracy, one value a batch (G,), and the
    statistics by which each was normalised; of no batches, nothing.
    """
    losses, accuracies, statistics = list[Tensor](), list[Tensor](), list[dict[str, Tensor]]()
    for images_BCHW, labels_B in zip(batch.images_GBCHW, batch.labels_GB, strict=True):
        own = {name: tensor.to(images_BCHW) for name, tensor in init_statistics(len(params["conv1.weight"])).items()}
        logits_BM = logits(classifier, params, features(params, own, images_BCHW, training=True))
        loss = F.cross_entropy(logits_BM, labels_B)
        torch.autograd.backward(loss / of)
        losses.append(loss.detach())
        accuracies.append((logits_BM.argmax(dim=1) == labels_B).cpu().double().mean())
        statistics.append(own)
    if not losses:
        return {}, []
    return {"loss": torch.stack(losses), "accuracy": torch.stack(accuracies)}, statistics


@torch.no_grad()
def remember(statistics: Params, found: Sequence[dict[str, Tensor]]) -> None:
    """Move the running statistics towards the mean of those that a step found, by MOMENTUM and in place."""
    for name, tensor in statistics.items():
        tensor.lerp_(torch.stack([each[name].to(tensor) for each in found]).mean(dim=0), MOMENTUM)


@torch.no_grad()
def embedded(params: Params, statistics: Params, batch: tasks.Batch) -> tasks.Batch:
    """Embed the images of tasks: the same tasks, with D in place of C, H and W."""
    return tasks.Batch(
        *(_embedded(params, statistics, images) for images in (batch.support_TNKCHW, batch.query_TNQCHW))
    )


def scores(head: Head, z: tasks.Batch) -> dict[str, Tensor]:
    """Score tasks whose images are embedded: the accuracy of their queries, one value a task (T,)."""
    return {"accuracy": tasks.accuracy(task_logits(head, z.support_TNKCHW, z.query_TNQCHW.flatten(1, 2)))}


def task_logits(head: Head, z_support_TNKD: Tensor, z_TBD: Tensor) -> Tensor:
    """Score the classes of each task: by minus the squared distance to the class mean, or by the cosine to it.

    For the cosine all features have length 1, those whose mean is taken too: (T, B, N).
    """
    if head == "nearest":
        return protonet.logits("squared", z_TBD, protonet.prototypes(z_support_TNKD))
    prototypes_TND = protonet.prototypes(F.normalize(z_support_TNKD, dim=-1))
    return F.normalize(z_TBD, dim=-1) @ F.normalize(prototypes_TND, dim=-1).mT


def _embedded(params: Params, statistics: Params, images_TNSCHW: Tensor) -> Tensor:
    at_once = tasks.CPU_IMAGES_AT_ONCE if images_TNSCHW.is_cpu else protonet.IMAGES_AT_ONCE
    parts = torch.split(images_TNSCHW.flatten(0, 2), at_once)
    z_BD = torch.cat([features(params, statistics, part_BCHW) for part_BCHW in parts])
    return z_BD.view(*images_TNSCHW.shape[:3], z_BD.shape[1])
