"""Ratings as tensors, and who rated what."""

# ruff: noqa: N815 - the fields carry their shapes

from dataclasses import dataclass

import torch
from torch import Tensor

TABLE_BYTES = 32  # for each rating, that a table of who rated what may take


@dataclass(frozen=True)
class Ratings:
    """Who gave which item how many stars; users and items are rows of the tables."""

    users_B: Tensor
    items_B: Tensor
    stars_B: Tensor

    def __len__(self) -> int:
        return len(self.users_B)

    def __getitem__(self, chosen: slice | Tensor) -> "Ratings":
        return Ratings(self.users_B[chosen], self.items_B[chosen], self.stars_B[chosen])


@dataclass(frozen=True)
class Rated:
    """Which items a user has rated, in memory that grows with the ratings.

    A table of users by items while that takes at most TABLE_BYTES a rating; else the pairs as numbers in rising order.
    """

    items: int
    table_UI: Tensor | None
    pairs_B: Tensor

    @classmethod
    def of(cls, ratings: Ratings, *, users: int, items: int) -> "Rated":
        """Those of all ratings."""
        pairs_B = ratings.users_B * items + ratings.items_B
        if users * items > TABLE_BYTES * len(ratings):
            return cls(items, None, pairs_B.sort().values)
        table_UI = torch.zeros(users, items, dtype=torch.bool, device=pairs_B.device)
        table_UI.view(-1)[pairs_B] = True
        return cls(items, table_UI, pairs_B)

    def has(self, users_B: Tensor, items_BJ: Tensor) -> Tensor:
        """Whether each user has rated the items of the row: (B, J)."""
        if self.table_UI is not None:
            return self.table_UI[users_B[:, None], items_BJ]
        asked_BJ = users_B[:, None] * self.items + items_BJ
        place_BJ = torch.searchsorted(self.pairs_B, asked_BJ).clamp_(max=len(self.pairs_B) - 1)
        return self.pairs_B[place_BJ] == asked_BJ
