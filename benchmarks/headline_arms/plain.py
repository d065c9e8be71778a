"""The course's way to train the recommender: a module of embeddings, autograd, an evaluation user by user."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.multitask_epoch import BATCH, DIM, WIDTH, plain_epoch, plain_evaluate, plain_net
from cs330ray.course.data import movielens
from cs330ray.course.learners.recommender import multitask
from cs330ray.course.learners.recommender.ratings import Ratings
from cs330ray.training.device import generator


def read(dataset: str) -> dict[str, Ratings]:
    """Read the ratings of train, val and test, and under `known` those of train and val together."""
    parts = {part: movielens.ratings(dataset, "course", 0, part) for part in ("train", "val", "test")}
    columns = {name: [torch.from_numpy(one) for one in vars(part).values()] for name, part in parts.items()}
    columns["known"] = [torch.cat(both) for both in zip(columns["train"], columns["val"], strict=True)]
    return {name: Ratings(*given) for name, given in columns.items()}


def batches(ratings: Ratings, items: int, random: torch.Generator) -> Iterator[tuple[Ratings, Tensor]]:
    """Shuffle an epoch's ratings and draw an item against each, as this project does; batches of both."""
    where = ratings.stars_B.device
    shuffled = ratings[torch.randperm(len(ratings), generator=random).to(where)]
    negatives_B = torch.randint(items, (len(ratings),), generator=random, dtype=torch.int32).long().to(where)
    for first in range(0, len(ratings), BATCH):
        yield shuffled[slice(first, first + BATCH)], negatives_B[first : first + BATCH]


def rows(
    params: Mapping[str, Any], dataset: str, epochs: int, data: Mapping[str, Ratings], *, test: bool
) -> Iterator[dict[str, float]]:
    """Train on the batches and from the weights that this project draws; after each epoch its validation MSE.

    The last row has the test's too, where it is wanted.
    """
    torch.set_num_threads(1)
    (users, items), random = movielens.sizes(dataset), generator("train", params["seed"])
    drawn = multitask.init(
        users=users, items=items, dim=DIM, layers=[WIDTH], sharing="shared", std=1 / DIM, mean_stars=None,
        generator=random,
    )  # fmt: skip
    net = plain_net(drawn, "shared")
    optimizer = torch.optim.Adam(net.parameters(), lr=params["lr"], weight_decay=params["weight_decay"])
    weights = (params["factorization_weight"], 1 - params["factorization_weight"])
    for epoch in range(1, epochs + 1):
        plain_epoch(net, optimizer, batches(data["train"], items, random), weights)
        row = {"val_mse": plain_evaluate(net, data["val"], data["train"])["mse"]}
        if test and epoch == epochs:
            row["test_mse"] = plain_evaluate(net, data["test"], data["known"])["mse"]
        yield row
