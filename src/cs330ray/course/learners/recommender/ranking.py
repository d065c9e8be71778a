"""How well a recommender ranks held-out items and predicts their stars, in memory that grows with the ratings."""

import torch
from torch import Tensor

from cs330ray.course.learners.recommender.multitask import Params, stars
from cs330ray.course.learners.recommender.ratings import Ratings

SCORES_AT_ONCE = 1 << 22  # of a block of users: MovieLens-100k is one block
PAIRS_AT_ONCE = 128  # of a ranking: few enough to stay in a CPU's caches
STARS_AT_ONCE = 1 << 16


@torch.no_grad()
def evaluate(params: Params, held_out: Ratings, known: Ratings) -> dict[str, Tensor]:
    """Score both heads on held-out ratings: `mse`, one value a rating; `mrr` and `mrr_first`, one a user that has any.

    `mrr` is the course's: the mean of 1/rank over ALL of the user's held-out items, each ranked by p among all items
    but the `known` ones, ties averaged. `mrr_first` is 1/rank of the best-placed one. Users in rising order; float64.
    """
    parts = [held_out[first : first + STARS_AT_ONCE] for first in range(0, len(held_out), STARS_AT_ONCE)]
    squared_B = torch.cat([(stars(params, part.users_B, part.items_B) - part.stars_B).square() for part in parts])
    reciprocal_B = 1 / ranks(params, held_out, known).cpu().double()
    users, user_B, counts = torch.unique(held_out.users_B.cpu(), return_inverse=True, return_counts=True)
    zeros = reciprocal_B.new_zeros(len(users))
    return {
        "mse": squared_B.cpu().double(),
        "mrr": zeros.index_add(0, user_B, reciprocal_B) / counts,
        "mrr_first": zeros.scatter_reduce(0, user_B, reciprocal_B, "amax"),
    }


def ranks(params: Params, held_out: Ratings, known: Ratings) -> Tensor:
    """Rank held-out items for their users by p among all items but the known ones, from 1, ties averaged: (B,).

    By blocks of users, so that memory grows with the ratings and not with users times items.
    """
    users, items = len(params["user"]), len(params["item"])
    size = max(1, SCORES_AT_ONCE // items)
    order_B = held_out.users_B.argsort(stable=True)
    held_out, known_B = held_out[order_B], known.users_B * items + known.items_B
    if size < users:
        known_B = known_B.sort().values
    firsts = torch.arange(0, users + size, size, device=known_B.device)  # of the blocks; the last ends them
    of_held_out = torch.searchsorted(held_out.users_B, firsts).tolist()
    of_known = torch.searchsorted(known_B, firsts * items).tolist() if size < users else [0, len(known_B)]
    found_B = torch.empty(len(held_out), device=known_B.device, dtype=params["user"].dtype)
    for block, first in enumerate(firsts[:-1].tolist()):
        pairs, rated = (slice(*ends[block : block + 2]) for ends in (of_held_out, of_known))
        if pairs.start < pairs.stop:
            scores_UI = all_scores(params, slice(first, first + size))
            scores_UI.view(-1)[known_B[rated] - first * items] = -torch.inf
            of_block = held_out[pairs]
            found_B[order_B[pairs]] = _ranks(scores_UI, of_block.users_B - first, of_block.items_B)
    return found_B


def all_scores(params: Params, users: slice = slice(None)) -> Tensor:
    """Score all items for all users, or for some, by the factorization head, p_ij: (U, I)."""
    scores_UI = params["user"][users] @ params["item"].mT
    return scores_UI.add_(params["user_bias"][users, None]).add_(params["item_bias"])


def _ranks(scores_UI: Tensor, users_B: Tensor, items_B: Tensor) -> Tensor:
    """Rank items by their users' scores.

    Nothing is sorted: 1 + the number of higher scores + half that of equal ones is (1 + I + sum_j sign(p_ij - p)) / 2.
    """
    balances = []
    for first in range(0, len(users_B), PAIRS_AT_ONCE):
        users, items = users_B[first : first + PAIRS_AT_ONCE], items_B[first : first + PAIRS_AT_ONCE]
        own_B = scores_UI[users, items]
        balances.append(scores_UI.index_select(0, users).sub_(own_B[:, None]).sign_().sum(dim=1))
    return (1 + scores_UI.shape[1] + torch.cat(balances)) / 2
