"""Multi-task recommender, CS330 homework 0: one net ranks items for users and predicts the stars that they would give.

    p_ij = u_i . q_j + a_i + b_j        factorization head: j was rated by i, rather than any other item
    r_ij = MLP([u_i, q_j, u_i * q_j])   regression head: the stars
    L    = lambda_F L_F + lambda_R L_R

`shared`: both heads read one pair of embedding tables; `separate`: each has its own, and they learn apart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners.recommender.ratings import Rated, Ratings

Sharing = Literal["shared", "separate"]
Pairwise = Literal["sigmoid", "bpr"]
Params = Mapping[str, Tensor]


class Optimizer(Protocol):
    """What moves the weights along their gradients."""

    def step(self) -> None:
        """Take one step."""


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
    def of(cls, params: Params, device: torch.device | str = "cpu") -> "Weights":
        """Copy parameters onto `device`, with zeros for gradients."""
        flat = torch.cat([param.flatten() for param in params.values()]).to(device).requires_grad_()
        flat.grad = torch.zeros_like(flat)
        return cls(flat, _views(flat.detach(), params), _views(flat.grad, params))


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
    *hidden, last = _layers(params)
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


def backward(
    multitask: Multitask,
    params: Params,
    grads: Params,
    batch: Ratings,
    negatives_B: Tensor,
    masks: Sequence[Tensor] = (),
    *,
    of: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the joint loss to `grads`; (L_F, L_R).

    By hand: on batches as small as these, autograd would take most of the time. Where `batch` is a part of one of `of`
    ratings, the gradient is that part's: whoever adds up what the parts give has the whole.
    """
    of = len(batch) if of is None else of
    users_B, items_B, pairs_B = batch.users_B, batch.items_B, torch.cat([batch.items_B, negatives_B])
    u_BD, q_BD = _rows(params["user"], users_B), _rows(params["item"], pairs_B)
    b_B = _rows(params["item_bias"], pairs_B)
    d_u_BD, d_q_BD, d_b_B, pairwise_B = _factorization_backward(multitask, u_BD, q_BD, b_B, of)
    if "regression_user" in params:
        ru_BD, rq_BD = _rows(params["regression_user"], users_B), _rows(params["regression_item"], items_B)
    else:
        ru_BD, rq_BD = u_BD, q_BD[: len(batch)]
    d_ru_BD, d_rq_BD, squared_B = _regression_backward(multitask, params, grads, batch, ru_BD, rq_BD, masks, of)
    if "regression_user" in params:
        grads["regression_user"].index_add_(0, users_B, d_ru_BD)
        grads["regression_item"].index_add_(0, items_B, d_rq_BD)
    else:
        d_u_BD += d_ru_BD
        d_q_BD[: len(batch)] += d_rq_BD
    grads["user"].index_add_(0, users_B, d_u_BD)
    grads["item"].index_add_(0, pairs_B, d_q_BD)
    grads["item_bias"].index_add_(0, pairs_B, d_b_B)
    return pairwise_B.mean(), squared_B.mean()


def _factorization_backward(
    multitask: Multitask, u_BD: Tensor, q_BD: Tensor, b_B: Tensor, of: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of lambda_F L_F for rows of users, of items and their biases, and the single losses.

    The items are the rated ones, then as many drawn ones. The users' biases cancel in the margin.
    """
    (rated_BD, drawn_BD), (rated_b_B, drawn_b_B) = q_BD.chunk(2), b_B.chunk(2)
    ahead_BD = rated_BD - drawn_BD
    margin_B = (u_BD * ahead_BD).sum(dim=1) + rated_b_B - drawn_b_B
    wrong_B = torch.sigmoid(-margin_B)
    if multitask.pairwise == "sigmoid":
        pairwise_B, slope_B = wrong_B, wrong_B * (wrong_B - 1)
    else:
        pairwise_B, slope_B = F.softplus(-margin_B), -wrong_B
    d_margin_B = slope_B * (multitask.factorization_weight / of)
    d_u_BD, d_rated_BD = d_margin_B[:, None] * ahead_BD, d_margin_B[:, None] * u_BD
    d_q_BD, d_b_B = torch.cat([d_rated_BD, -d_rated_BD]), torch.cat([d_margin_B, -d_margin_B])
    return d_u_BD, d_q_BD, d_b_B, pairwise_B


def _regression_backward(
    multitask: Multitask,
    params: Params,
    grads: Params,
    batch: Ratings,
    u_BD: Tensor,
    q_BD: Tensor,
    masks: Sequence[Tensor],
    of: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradient of lambda_R L_R to all but the tables; that of the rows u_BD, q_BD, and the squared errors."""
    layers, layer_grads = list(_layers(params)), list(_layers(grads))
    inputs = [torch.cat([u_BD, q_BD, u_BD * q_BD], dim=1)]
    for layer, (weight, bias) in enumerate(layers[:-1]):
        h_BD = torch.addmm(bias, inputs[-1], weight.mT).relu_()
        inputs.append(h_BD * masks[layer] if masks else h_BD)
    weight, bias = layers[-1]
    error_B = (inputs[-1] @ weight[0]) + (bias - batch.stars_B)
    if "regression_user_bias" in params:
        error_B += _rows(params["regression_user_bias"], batch.users_B)
        error_B += _rows(params["regression_item_bias"], batch.items_B)
    d_stars_B = error_B * (2 * multitask.regression_weight / of)
    if "regression_user_bias" in params:
        grads["regression_user_bias"].index_add_(0, batch.users_B, d_stars_B)
        grads["regression_item_bias"].index_add_(0, batch.items_B, d_stars_B)
    d_BD = d_stars_B[:, None]
    for layer in reversed(range(len(layers))):
        weight_grad, bias_grad = layer_grads[layer]
        weight_grad.addmm_(d_BD.mT, inputs[layer])
        bias_grad += d_BD.sum(dim=0)
        d_BD = d_BD @ layers[layer][0]
        if layer > 0:
            d_BD *= inputs[layer].sign() * masks[layer - 1] if masks else inputs[layer].sign()  # of a ReLU: 0 or 1
    d_u_BD, d_q_BD, d_product_BD = d_BD.chunk(3, dim=1)
    return d_u_BD + d_product_BD * q_BD, d_q_BD + d_product_BD * u_BD, error_B.square()


def _rows(table: Tensor, rows_B: Tensor) -> Tensor:
    return table.index_select(0, rows_B)  # a good deal quicker than table[rows_B]


def train_epoch(
    multitask: Multitask,
    weights: Weights,
    optimizer: Optimizer,
    ratings: Ratings,
    *,
    batch: int,
    generator: torch.Generator,
    share: Callable[[int], slice] | None = None,
    add_gradients: Callable[[Iterable[Tensor]], None] | None = None,
) -> tuple[float, float]:
    """Descend the joint loss over all ratings once; the means of L_F and of L_R.

    One of several workers learns from its `share` of each batch, and has `add_gradients` add up theirs: all draw the
    same, dropout included, and move alike. The means are then its share of those over all ratings.
    """
    users, items, grad = len(weights.params["user"]), len(weights.params["item"]), weights.flat.grad
    assert grad is not None
    rated = Rated.of(ratings, users=users, items=items) if multitask.candidates > 1 else None
    totals = torch.zeros(2, device=grad.device)
    drawn = batches(ratings, items=items, batch=batch, candidates=multitask.candidates, generator=generator)
    for part, candidates_BJ in drawn:
        of, masks = len(part), dropout_masks(multitask, weights.params, len(part), generator)
        if share is not None:
            mine = share(of)
            part, candidates_BJ, masks = part[mine], candidates_BJ[mine], [mask[mine] for mask in masks]
        grad.zero_()
        if len(part):
            negatives_B = hardest(weights.params, part, candidates_BJ, rated)
            found = backward(multitask, weights.params, weights.grads, part, negatives_B, masks, of=of)
            totals += torch.stack(found) * len(part)
        if add_gradients is not None:
            add_gradients([weights.flat])
        optimizer.step()
    pairwise, squared = (totals / len(ratings)).tolist()
    return pairwise, squared


def batches(
    ratings: Ratings, *, items: int, batch: int, candidates: int = 1, generator: torch.Generator
) -> Iterator[tuple[Ratings, Tensor]]:
    """Shuffle an epoch's ratings and draw `candidates` items against each, uniformly over all; batches of both (B, J).

    The draw takes place on the CPU's `generator`, so that every device sees the same epoch.
    """
    device = ratings.stars_B.device
    shuffled = ratings[torch.randperm(len(ratings), generator=generator).to(device)]
    drawn = torch.randint(items, (len(ratings), candidates), generator=generator, dtype=torch.int32)  # half of int64
    candidates_BJ = drawn.to(device)
    for first in range(0, len(ratings), batch):
        chosen = slice(first, first + batch)
        yield shuffled[chosen], candidates_BJ[chosen].long()


@torch.no_grad()
def hardest(params: Params, batch: Ratings, candidates_BJ: Tensor, rated: Rated | None) -> Tensor:
    """Choose from each row the candidate with the highest score that the user has not rated: (B,).

    A row of one candidate is no choice: it is that, rated or not. So is the first of a row that is rated throughout.
    """
    rows, drawn = candidates_BJ.shape
    if drawn == 1:
        return candidates_BJ[:, 0]
    assert rated is not None  # several are drawn
    users_B = batch.users_B
    q_BJD = _rows(params["item"], candidates_BJ.flatten()).view(rows, drawn, -1)
    p_BJ = torch.bmm(q_BJD, _rows(params["user"], users_B)[:, :, None]).squeeze(2) + params["item_bias"][candidates_BJ]
    p_BJ.masked_fill_(rated.has(users_B, candidates_BJ), -torch.inf)
    return candidates_BJ.gather(1, p_BJ.argmax(dim=1, keepdim=True)).squeeze(1)


def dropout_masks(multitask: Multitask, params: Params, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Draw a batch's masks, one for each hidden layer (B, D): zero, or one over the share that is kept."""
    if multitask.dropout == 0:
        return []
    kept = 1 - multitask.dropout
    *hidden, _ = _layers(params)
    drawn = [torch.empty(batch, len(bias)).bernoulli_(kept, generator=generator) for _, bias in hidden]
    return [mask.to(params["user"]) / kept for mask in drawn]


def _regression_tables(params: Params) -> tuple[Tensor, Tensor]:
    """The users' and the items' embeddings that the regression head reads."""
    return params.get("regression_user", params["user"]), params.get("regression_item", params["item"])


def _layers(params: Params) -> Iterator[tuple[Tensor, Tensor]]:
    layer = 1
    while f"layer{layer}.weight" in params:
        yield params[f"layer{layer}.weight"], params[f"layer{layer}.bias"]
        layer += 1


def _views(flat: Tensor, like: Params) -> dict[str, Tensor]:
    """Cut one tensor into pieces of the shapes of `like`, by its names."""
    pieces = torch.split(flat, [param.numel() for param in like.values()])
    return {name: piece.view(param.shape) for (name, param), piece in zip(like.items(), pieces, strict=True)}
