"""Multi-task recommender, CS330 homework 0: one net ranks items for users and predicts the stars that they would give.

    p_ij = u_i . q_j + a_i + b_j        factorization head: j was rated by i, rather than any other item
    r_ij = MLP([u_i, q_j, u_i * q_j])   regression head: the stars
    L    = lambda_F L_F + lambda_R L_R

`shared`: both heads read one pair of embedding tables; `separate`: each has its own, and they learn apart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners.recommender.ratings import Ratings

Sharing = Literal["shared", "separate"]
Pairwise = Literal["sigmoid", "bpr"]
Params = Mapping[str, Tensor]

ALIGNED = 32  # floats from one boundary to the next that matters to a CPU


@dataclass(frozen=True)
class Multitask:
    """What the algorithm is told: the pairwise loss, the weight of each head's loss (lambda_F, lambda_R), and dropout.

    `dropout` is the share of the regression head's hidden values that training drops. Of `candidates` drawn items the
    one with the highest score that the user has not rated stands against a rated one (Zhang et al. 2013); 1: whichever
    is drawn, the course's way.
    """

    pairwise: Pairwise
    factorization_weight: float
    regression_weight: float
    dropout: float = 0.0
    candidates: int = 1


@dataclass(frozen=True)
class Weights:
    """Parameters and their gradients, which are views of one tensor each: an optimiser moves all at once."""

    flat: Tensor
    params: dict[str, Tensor]
    grads: dict[str, Tensor]

    @classmethod
    def of(cls, params: Params, device: torch.device | str = "cpu", room: "Room | None" = None) -> "Weights":
        """Copy parameters onto `device`, beside those in the same `room`, with zeros for gradients."""
        flat = torch.cat([param.flatten() for param in params.values()]).to(device)
        flat, grad = (flat, torch.zeros_like(flat)) if room is None else room.take(flat, params["user"].shape[1])
        flat.requires_grad_().grad = grad
        return cls(flat, _views(flat.detach(), params), _views(grad, params))


class Room:
    """One tensor for the parameters of several members, and one for their gradients.

    Each begins where a tensor of its own would, as far as a processor is concerned, and at a row of a table.
    """

    def __init__(self, members: int) -> None:
        self._free = list(range(members))
        self._flats: Tensor | None = None

    def take(self, flat: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Copy parameters in, whose tables have `dim` columns; those, and as many zeros."""
        if self._flats is None:
            width = math.lcm(ALIGNED, dim)
            self._flats = flat.new_zeros(2, len(self._free), -(-len(flat) // width) * width)
        own, grad = self._flats[:, self._free.pop(0), : len(flat)]
        return own.copy_(flat), grad


def init(
    *,
    users: int,
    items: int,
    dim: int,
    layers: Sequence[int],
    sharing: Sharing,
    std: float,
    mean_stars: float | None,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw the parameters: embeddings N(0, std^2), biases 0, the net's `layers` as torch.nn.Linear draws its own.

    Where `mean_stars` is given, the regression head adds biases of its own for users and items, and its output starts
    at that mean.
    """

    def table(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=generator) * std

    params = {"user": table(users), "item": table(items)}
    params |= {"user_bias": torch.zeros(users), "item_bias": torch.zeros(items)}
    if sharing == "separate":
        params |= {"regression_user": table(users), "regression_item": table(items)}
    if mean_stars is not None:
        params |= {"regression_user_bias": torch.zeros(users), "regression_item_bias": torch.zeros(items)}
    for layer, (inputs, outputs) in enumerate(pairwise([3 * dim, *layers, 1]), start=1):
        bound = inputs**-0.5
        for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            params[f"layer{layer}.{name}"] = (2 * torch.rand(shape, generator=generator) - 1) * bound
    if mean_stars is not None:
        params[f"layer{len(layers) + 1}.bias"].fill_(mean_stars)
    return params


def scores(params: Params, users_B: Tensor, items_B: Tensor) -> Tensor:
    """Score pairs of user and item by the factorization head, p_ij: (B,)."""
    products_B = (params["user"][users_B] * params["item"][items_B]).sum(dim=1)
    return products_B + params["user_bias"][users_B] + params["item_bias"][items_B]


def stars(params: Params, users_B: Tensor, items_B: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """Predict the stars that users would give items by the regression head, r_ij: (B,).

    `masks` are those of dropout, where it is used, one for each hidden layer.
    """
    user, item = _regression_tables(params)
    u_BD, q_BD = user[users_B], item[items_B]
    h_BD = torch.cat([u_BD, q_BD, u_BD * q_BD], dim=1)
    *hidden, last = layers_of(params)
    for layer, (weight, bias) in enumerate(hidden):
        h_BD = F.linear(h_BD, weight, bias).relu()
        if masks:
            h_BD = h_BD * masks[layer]
    stars_B = F.linear(h_BD, *last).squeeze(1)
    if "regression_user_bias" in params:
        stars_B = stars_B + params["regression_user_bias"][users_B] + params["regression_item_bias"][items_B]
    return stars_B


def loss(
    multitask: Multitask, params: Params, batch: Ratings, negatives_B: Tensor, masks: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """L_F of the rated items against `negatives_B`, and L_R; the joint loss is their weighted sum.

    `sigmoid`, the course's: mean(1 - sigmoid(p_ij+ - p_ij-)). `bpr`, Rendle et al. 2009: mean(-log sigmoid(...)).
    """
    margin_B = scores(params, batch.users_B, batch.items_B) - scores(params, batch.users_B, negatives_B)
    pairwise_B = torch.sigmoid(-margin_B) if multitask.pairwise == "sigmoid" else F.softplus(-margin_B)
    return pairwise_B.mean(), F.mse_loss(stars(params, batch.users_B, batch.items_B, masks), batch.stars_B)


def rows(table: Tensor, rows_B: Tensor) -> Tensor:
    """Take rows of a table: a good deal quicker than table[rows_B]."""
    return table.index_select(0, rows_B)


def _regression_tables(params: Params) -> tuple[Tensor, Tensor]:
    """The users' and the items' embeddings that the regression head reads."""
    return params.get("regression_user", params["user"]), params.get("regression_item", params["item"])


def layers_of(params: Params) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer of the regression head."""
    layer = 1
    while f"layer{layer}.weight" in params:
        yield params[f"layer{layer}.weight"], params[f"layer{layer}.bias"]
        layer += 1


def _views(flat: Tensor, like: Params) -> dict[str, Tensor]:
    """Cut one tensor into pieces of the shapes of `like`, by its names."""
    pieces = torch.split(flat, [param.numel() for param in like.values()])
    return {name: piece.view(param.shape) for (name, param), piece in zip(like.items(), pieces, strict=True)}
