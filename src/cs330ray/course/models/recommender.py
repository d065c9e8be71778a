"""A recommender: what a user may like, and how many stars the user would give."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from cs330ray.course.data import movielens
from cs330ray.course.learners import multitask
from cs330ray.errors import SpecError


class Recommended(NamedTuple):
    """An item, its score among the others of the user (no unit), and the stars that the user would give."""

    title: str
    score: float
    stars: float


@dataclass(frozen=True)
class Recommender:
    """A trained net with both heads. Users and items are counted from 1, as MovieLens does."""

    params: Mapping[str, Tensor]
    dataset: str
    split: str
    data_seed: int

    @torch.no_grad()
    def recommend(self, user: int, n: int = 10, known_removed: bool = True) -> list[Recommended]:
        """Name the `n` items that the factorization head ranks highest for a user, the best first.

        `known_removed` leaves out what the user rated in training and validation, which are read for it: DataError
        where the data cannot be had. Titles are those of the publisher's archive where that is here, else `item 17`.
        """
        row = self._row("user", user)
        if _whole("n", n) < 1:
            raise SpecError(f"n: 1 or more is needed, but got {n}")
        items = torch.arange(len(self.params["item"]), device=self.params["item"].device)
        if known_removed:
            items = items[~torch.isin(items, self._known(row))]
        score_I = multitask.scores(self.params, torch.full_like(items, row), items)
        best = items[score_I.argsort(descending=True, stable=True)[:n]]
        users = torch.full_like(best, row)
        scores = multitask.scores(self.params, users, best).tolist()
        stars = multitask.stars(self.params, users, best).tolist()
        titles = [self._titles[item] if self._titles else f"item {item + 1}" for item in best.tolist()]
        return [Recommended(*found) for found in zip(titles, scores, stars, strict=True)]

    @torch.no_grad()
    def predict(self, user: int, item: int) -> float:
        """Predict the stars that a user would give an item; they are not cut to 1 to 5."""
        device = self.params["item"].device
        users_B = torch.tensor([self._row("user", user)], device=device)
        items_B = torch.tensor([self._row("item", item)], device=device)
        return float(multitask.stars(self.params, users_B, items_B))

    def _row(self, name: str, number: int) -> int:
        rows = len(self.params[name])
        if not 1 <= (found := _whole(name, number)) <= rows:
            raise SpecError(f"{name}: a number from 1 to {rows} is needed, but got {number!r}")
        return found - 1

    def _known(self, row: int) -> Tensor:
        users_B, items_B = self._rated
        return items_B[users_B == row]

    @cached_property
    def _rated(self) -> tuple[Tensor, Tensor]:
        """Users and items of all ratings but those of the test."""
        parts = [movielens.ratings(self.dataset, self.split, self.data_seed, part) for part in ("train", "val")]
        device = self.params["item"].device
        users_B, items_B = (
            torch.cat([torch.from_numpy(column) for column in columns]).to(device)
            for columns in ([part.users for part in parts], [part.items for part in parts])
        )
        return users_B, items_B

    @cached_property
    def _titles(self) -> list[str] | None:
        return movielens.titles() if self.dataset == "movielens" else None


def _whole(name: str, number: object) -> int:
    """A whole number, numpy's too. Raises SpecError."""
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        raise SpecError(f"{name}: a whole number is needed, but got {number!r}") from None
