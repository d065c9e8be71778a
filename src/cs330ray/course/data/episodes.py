"""Episodes: few-shot tasks drawn from classes of images, a whole batch of tasks at once."""

# ruff: noqa: N802, N815 - the fields carry their shapes

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from cs330ray.errors import SpecError


@dataclass(frozen=True)
class Classes:
    """M classes of images, each with as many as it has: class m has `counts_M[m]` of them from `firsts_M[m]` on."""

    images_ICHW: Tensor  # uint8; maybe with others between
    firsts_M: Tensor  # int64, on the CPU
    counts_M: Tensor  # int64, on the CPU

    @classmethod
    def equal(cls, classes_MRHW: Tensor) -> Self:
        """Take classes of R grey images each."""
        classes, drawings = classes_MRHW.shape[:2]
        firsts_M = torch.arange(classes) * drawings
        return cls(classes_MRHW.flatten(0, 1)[:, None], firsts_M, torch.full((classes,), drawings))

    def __len__(self) -> int:
        return len(self.counts_M)

    @property
    def equal_count(self) -> int | None:
        """The number of images that every class has; None where they differ."""
        fewest, most = int(self.counts_M.min()), int(self.counts_M.max())
        return most if fewest == most else None

    def to(self, device: torch.device | str) -> Self:
        """Have the images on a device; elsewhere than here only those of these classes."""
        if self.images_ICHW.device == torch.device(device):
            return self
        firsts_M = self.counts_M.cumsum(0) - self.counts_M
        moved_B = torch.repeat_interleave(self.firsts_M - firsts_M, self.counts_M)
        own_ICHW = self.images_ICHW[moved_B + torch.arange(len(moved_B))]
        return type(self)(own_ICHW.to(device), firsts_M, self.counts_M)


@dataclass(frozen=True)
class Episodes:
    """N-way tasks, of which the images are gathered where they are asked for; a class stands at the same n in all."""

    classes: Classes
    classes_TN: Tensor  # int64: the places among the M classes
    support_TNK: Tensor  # int64, on the CPU: the places among all images
    query_TNQ: Tensor
    device: torch.device | str

    def __len__(self) -> int:
        return len(self.support_TNK)

    def __getitem__(self, tasks: slice) -> "Episodes":
        return replace(
            self,
            classes_TN=self.classes_TN[tasks],
            support_TNK=self.support_TNK[tasks],
            query_TNQ=self.query_TNQ[tasks],
        )

    @property
    def support_TNKCHW(self) -> Tensor:
        """The support's images: float32 in [0, 1]."""
        return gathered(self.classes, self.support_TNK, self.device)

    @property
    def query_TNQCHW(self) -> Tensor:
        """The queries' images: float32 in [0, 1]."""
        return gathered(self.classes, self.query_TNQ, self.device)

    @property
    def bytes_of_a_task(self) -> int:
        """What the images of one task take once they are gathered."""
        images = sum(math.prod(places.shape[1:]) for places in (self.support_TNK, self.query_TNQ))
        return images * math.prod(self.classes.images_ICHW.shape[1:]) * torch.float32.itemsize

    def with_shots(self, shots: int) -> "Episodes":
        """Keep the first support images of each class; the same tasks and queries."""
        return replace(self, support_TNK=self.support_TNK[:, :, :shots])


def draw_episodes(
    classes: Classes,
    *,
    tasks: int,
    ways: int,
    shots: int,
    queries: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Episodes:
    """Draw tasks of distinct classes, their support and query images disjoint; the episodes, with images on `device`.

    The draw takes place on the CPU's `generator`, so that every device sees the same episodes, the gather where the
    images are. Every ordered choice is equally likely, of a class with many images as of one with few. Raises SpecError
    where classes or images do not suffice.
    """
    check_enough(classes, tasks=tasks, ways=ways, shots=shots, queries=queries)
    classes_TN = _distinct(torch.full((tasks,), len(classes)), len(classes), ways, generator)
    counts_B, most = classes.counts_M[classes_TN].flatten(), int(classes.counts_M.max())
    places_TNS = _distinct(counts_B, most, shots + queries, generator).view(tasks, ways, -1)
    images_TNS = classes.firsts_M[classes_TN][..., None] + places_TNS
    return Episodes(classes, classes_TN.to(device), images_TNS[..., :shots], images_TNS[..., shots:], device)


def gathered(classes: Classes, images_B: Tensor, device: torch.device | str) -> Tensor:
    """Take images by their places among all, which may have any shape: that shape and (C, H, W), float32 in [0, 1]."""
    images_ICHW = classes.images_ICHW
    taken_BCHW = images_ICHW.index_select(0, images_B.flatten().to(images_ICHW.device))
    taken_BCHW = taken_BCHW.to(device).to(torch.float32).div_(255)  # moved as bytes: a quarter of the traffic
    return taken_BCHW.view(*images_B.shape, *images_ICHW.shape[1:])


def check_enough(classes: Classes, *, tasks: int, ways: int, shots: int, queries: int) -> None:
    """Raise SpecError where classes or their images do not suffice for tasks."""
    if min(tasks, ways, shots, queries) < 1:
        raise SpecError(
            "episodes: tasks, ways, shots and queries must each be 1 or more, "
            f"but got {tasks}, {ways}, {shots} and {queries}; raise the lowest"
        )
    if ways > len(classes):
        raise SpecError(
            f"episodes: `ways <= classes` must hold, but got ways={ways}, classes={len(classes)}; take fewer ways"
        )
    if shots + queries > (fewest := int(classes.counts_M.min())):
        raise SpecError(
            f"episodes: `shots + queries <= drawings of a class` must hold, but got shots={shots}, queries={queries}, "
            f"drawings={fewest}; take fewer"
        )


def _distinct(limits_B: Tensor, most: int, picks: int, generator: torch.Generator) -> Tensor:
    """Draw `picks` distinct numbers below each row's limit, of which none is above `most`: (rows, picks), int64.

    They are in random order. What is taken of the generator depends on the rows and `most` alone.
    """
    keys = torch.rand(len(limits_B), most, generator=generator, dtype=torch.float64)  # double: no ties
    keys.masked_fill_(torch.arange(most) >= limits_B[:, None], -1.0)
    return keys.topk(picks, dim=1).indices
