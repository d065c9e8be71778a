"""Episodes: few-shot tasks drawn from classes of images, a whole batch of tasks at once."""

# ruff: noqa: N815 - the fields carry their shapes

from dataclasses import dataclass

import torch
from torch import Tensor

from cs330ray.errors import SpecError


@dataclass(frozen=True)
class Episodes:
    """A batch of N-way tasks; a class stands at the same n in all three, and images are in [0, 1], ink 1."""

    support_TNKCHW: Tensor  # float32
    query_TNQCHW: Tensor  # float32
    classes_TN: Tensor  # int64: the places in classes_MRHW


def draw_episodes(
    classes_MRHW: Tensor,
    *,
    tasks: int,
    ways: int,
    shots: int,
    queries: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Episodes:
    """Draw tasks of distinct classes, their support and query drawings disjoint; the episodes, on `device`.

    `classes_MRHW` is uint8 with M classes and R drawings of each. The draw takes place on the CPU's `generator`, so
    that every device sees the same episodes, the gather where `classes_MRHW` lies. Every ordered choice is equally
    likely. Raises SpecError where classes or drawings do not suffice.
    """
    classes, drawings = classes_MRHW.shape[:2]
    _check(classes, drawings, tasks, ways, shots, queries)
    classes_TN = _distinct(tasks, classes, ways, generator)
    drawings_TNS = _distinct(tasks * ways, drawings, shots + queries, generator).view(tasks, ways, shots + queries)
    images_TNS = (classes_TN[..., None] * drawings + drawings_TNS).to(classes_MRHW.device)
    return Episodes(
        support_TNKCHW=_gather(classes_MRHW, images_TNS[..., :shots], device),
        query_TNQCHW=_gather(classes_MRHW, images_TNS[..., shots:], device),
        classes_TN=classes_TN.to(device),
    )


def _check(classes: int, drawings: int, tasks: int, ways: int, shots: int, queries: int) -> None:
    if min(tasks, ways, shots, queries) < 1:
        raise SpecError(
            "episodes: tasks, ways, shots and queries must each be 1 or more, "
            f"but got {tasks}, {ways}, {shots} and {queries}; raise the lowest"
        )
    if ways > classes:
        raise SpecError(
            f"episodes: `ways <= classes` must hold, but got ways={ways}, classes={classes}; take fewer ways"
        )
    if shots + queries > drawings:
        raise SpecError(
            f"episodes: `shots + queries <= drawings of a class` must hold, but got shots={shots}, queries={queries}, "
            f"drawings={drawings}; take fewer"
        )


def _distinct(rows: int, choices: int, picks: int, generator: torch.Generator) -> Tensor:
    """Draw `picks` distinct numbers below `choices` in each row, in random order: (rows, picks), int64."""
    keys = torch.rand(rows, choices, generator=generator, dtype=torch.float64)  # double: no ties
    return keys.topk(picks, dim=1).indices


def _gather(classes_MRHW: Tensor, images_TNS: Tensor, device: torch.device | str) -> Tensor:
    """Take images by their place among all drawings; float32 in [0, 1], (T, N, S, 1, H, W)."""
    height, width = classes_MRHW.shape[2:]
    images = classes_MRHW.flatten(0, 1).index_select(0, images_TNS.flatten())
    images = images.to(device).to(torch.float32).div_(255)  # moved as bytes: a quarter of the traffic
    return images.view(*images_TNS.shape, 1, height, width)
