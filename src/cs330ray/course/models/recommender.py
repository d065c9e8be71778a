"""A recommender: what a user may like, and how many stars the user would give."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cs330ray.course.learners.recommender import multitask
from cs330ray.course.models.catalogues import Catalogue, whole
from cs330ray.errors import SpecError


class Recommended(NamedTuple):
    """An item, its score among the others of the user (no unit), and the stars that the user would give, if any."""

    title: str
    score: float
    stars: float | None


@dataclass(frozen=True)
class Recommender:
    """A trained net with both heads.

    Users and items have the ids of their data: those of MovieLens and planted ones are counted from 1. Without
    `has_stars` it was trained on ratings without any, and predicts none.
    """

    params: Mapping[str, Tensor]
    catalogue: Catalogue
    has_stars: bool = True

    @torch.no_grad()
    def recommend(
        self, user: object, n: int = 10, known_removed: bool = True, *, titles: bool = True
    ) -> list[Recommended]:
        """Name the `n` items that the factorization head ranks highest for a user, the best first.

        `known_removed` leaves out what the user rated in training and validation. With ratings of one's own the model
        holds those; MovieLens' are read: DataError where they cannot be had. Items are called by their titles where
        these are known, else by their ids; without `titles` all by their ids.
        """
        row = self._row("user", user)
        if whole("n", n) < 1:
            raise SpecError(f"n: 1 or more is needed, but got {n}")
        items = torch.arange(len(self.params["item"]), device=self.params["item"].device)
        if known_removed:
            items = items[~torch.isin(items, self.catalogue.known(row).to(items.device))]
        score_I = multitask.scores(self.params, torch.full_like(items, row), items)
        best = items[score_I.argsort(descending=True, stable=True)[:n]]
        users = torch.full_like(best, row)
        scores = multitask.scores(self.params, users, best).tolist()
        stars = multitask.stars(self.params, users, best).tolist() if self.has_stars else [None] * len(best)
        called = [self.catalogue.title(item) if titles else self.catalogue.item_id(item) for item in best.tolist()]
        return [Recommended(*found) for found in zip(called, scores, stars, strict=True)]

    @torch.no_grad()
    def predict(self, user: object, item: object) -> float:
        """Predict the stars that a user would give an item; they are not cut to the range of the data.

        Raises SpecError where the model was trained on ratings without stars.
        """
        if not self.has_stars:
            raise SpecError("predict: expected a model trained on stars, got one trained without; use recommend(...)")
        device = self.params["item"].device
        users_B = torch.tensor([self._row("user", user)], device=device)
        items_B = torch.tensor([self._row("item", item)], device=device)
        return float(multitask.stars(self.params, users_B, items_B))

    def _row(self, kind: Literal["user", "item"], asked: object) -> int:
        return self.catalogue.row(kind, asked, len(self.params[kind]))
