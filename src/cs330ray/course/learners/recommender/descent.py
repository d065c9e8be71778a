"""How the recommender learns: batches of an epoch, the gradient of its joint loss by hand, and steps along it.

Several members may learn beside one another, M of them, each with draws and weights of its own. Each one's numbers are
those that it has alone: what multiplies matrices or sums over a batch is called for one after another, and what goes
row by row or element by element for all at once. Where there is one, its tensors have no axis M.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners.recommender.multitask import ALIGNED, Multitask, Params, Weights, layers_of, rows
from cs330ray.course.learners.recommender.ratings import Rated, Ratings


class Optimizer(Protocol):
    """What moves the weights along their gradients."""

    def step(self) -> None:
        """Take one step."""


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
    (losses,) = train_epoch_many(
        [multitask], [weights], [optimizer], ratings,
        batch=batch, generators=[generator], share=share, add_gradients=add_gradients,
    )  # fmt: skip
    return losses


def train_epoch_many(
    multitasks: Sequence[Multitask],
    weights: Sequence[Weights],
    optimizers: Sequence[Optimizer],
    ratings: Ratings,
    *,
    batch: int,
    generators: Sequence[torch.Generator],
    share: Callable[[int], slice] | None = None,
    add_gradients: Callable[[Iterable[Tensor]], None] | None = None,
) -> list[tuple[float, float]]:
    """Do for several members what `train_epoch` does for one; the means of each."""
    params, several = [each.params for each in weights], multitasks[0].candidates
    users, items = len(params[0]["user"]), len(params[0]["item"])
    rated = Rated.of(ratings, users=users, items=items) if several > 1 else None
    tables, grads = Tables(params), Tables([each.grads for each in weights])
    totals_2M = torch.zeros(2, len(weights), device=weights[0].flat.device)
    drawn = [_drawn(ratings, items, several, generator) for generator in generators]
    shuffled, candidates_MNJ = _beside([each for each, _ in drawn]), _stack([each for _, each in drawn])
    for part, candidates_MBJ in _batches(shuffled, candidates_MNJ, batch):
        of = part.stars_B.shape[-1]
        masks = [
            dropout_masks(told, own, of, generator)
            for told, own, generator in zip(multitasks, params, generators, strict=True)
        ]
        if share is not None:
            mine = share(of)
            ((part, candidates_MBJ),) = [(_cut(part, mine), candidates_MBJ[..., mine, :])]
            masks = [[mask[mine] for mask in own] for own in masks]
        for each in weights:
            assert each.flat.grad is not None
            each.flat.grad.zero_()
        if size := part.stars_B.shape[-1]:
            negatives_MB = _against(params, part, candidates_MBJ, rated)
            found_2M = _backward(multitasks, tables, grads, part, negatives_MB, masks, of)
            totals_2M += found_2M.view_as(totals_2M) * size
        for each, optimizer in zip(weights, optimizers, strict=True):
            if add_gradients is not None:
                add_gradients([each.flat])
            optimizer.step()
    return [(pairwise, squared) for pairwise, squared in (totals_2M / len(ratings)).T.tolist()]


def batches(
    ratings: Ratings, *, items: int, batch: int, candidates: int = 1, generator: torch.Generator
) -> Iterator[tuple[Ratings, Tensor]]:
    """Shuffle an epoch's ratings and draw `candidates` items against each, uniformly over all; batches of both (B, J).

    The draw takes place on the CPU's `generator`, so that every device sees the same epoch.
    """
    return _batches(*_drawn(ratings, items, candidates, generator), batch)


def _drawn(ratings: Ratings, items: int, candidates: int, generator: torch.Generator) -> tuple[Ratings, Tensor]:
    device = ratings.stars_B.device
    shuffled = ratings[torch.randperm(len(ratings), generator=generator).to(device)]
    drawn = torch.randint(items, (len(ratings), candidates), generator=generator, dtype=torch.int32)  # half of int64
    return shuffled, drawn.to(device)


def _batches(shuffled: Ratings, candidates_MNJ: Tensor, batch: int) -> Iterator[tuple[Ratings, Tensor]]:
    for first in range(0, shuffled.stars_B.shape[-1], batch):
        chosen = slice(first, first + batch)
        yield _cut(shuffled, chosen), candidates_MNJ[..., chosen, :].long()


def _cut(ratings: Ratings, chosen: slice) -> Ratings:
    return Ratings(ratings.users_B[..., chosen], ratings.items_B[..., chosen], ratings.stars_B[..., chosen])


def _against(params: Sequence[Params], part: Ratings, candidates_MBJ: Tensor, rated: Rated | None) -> Tensor:
    """Choose for each member what stands against the rated items: (M, B)."""
    if candidates_MBJ.shape[-1] == 1:
        return candidates_MBJ[..., 0]
    if len(params) == 1:
        return hardest(params[0], part, candidates_MBJ, rated)
    parts = [Ratings(*of_one) for of_one in zip(part.users_B, part.items_B, part.stars_B, strict=True)]
    return torch.stack([hardest(*asked, rated) for asked in zip(params, parts, candidates_MBJ, strict=True)])


@torch.no_grad()
def hardest(params: Params, batch: Ratings, candidates_BJ: Tensor, rated: Rated | None) -> Tensor:
    """Choose from each row the candidate with the highest score that the user has not rated: (B,).

    A row of one candidate is no choice: it is that, rated or not. So is the first of a row that is rated throughout.
    """
    count, drawn = candidates_BJ.shape
    if drawn == 1:
        return candidates_BJ[:, 0]
    assert rated is not None  # several are drawn
    users_B = batch.users_B
    q_BJD = rows(params["item"], candidates_BJ.flatten()).view(count, drawn, -1)
    p_BJ = torch.bmm(q_BJD, rows(params["user"], users_B)[:, :, None]).squeeze(2) + params["item_bias"][candidates_BJ]
    p_BJ.masked_fill_(rated.has(users_B, candidates_BJ), -torch.inf)
    return candidates_BJ.gather(1, p_BJ.argmax(dim=1, keepdim=True)).squeeze(1)


def dropout_masks(multitask: Multitask, params: Params, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Draw a batch's masks, one for each hidden layer (B, D): zero, or one over the share that is kept."""
    if multitask.dropout == 0:
        return []
    kept = 1 - multitask.dropout
    *hidden, _ = layers_of(params)
    drawn = [torch.empty(batch, len(bias)).bernoulli_(kept, generator=generator) for _, bias in hidden]
    return [mask.to(params["user"]) / kept for mask in drawn]


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
    asked = batch, negatives_B, [masks], len(batch) if of is None else of
    pairwise, squared = _backward([multitask], Tables([params]), Tables([grads]), *asked)
    return pairwise, squared


class Tables:
    """The parameters of several members, or their gradients.

    Where a table of theirs lies in one tensor, as in a `Room`, rows of all members are taken and added at once.
    """

    def __init__(self, members: Sequence[Params]) -> None:
        self.members = members
        self.layers = [list(layers_of(each)) for each in members]
        tables = [name for name in members[0] if not name.startswith("layer")]
        self._wholes = {name: whole for name in tables if (whole := _whole([each[name] for each in members]))}

    def __contains__(self, name: str) -> bool:
        return name in self.members[0]

    def rows(self, name: str, rows_MB: Tensor) -> Tensor:
        """Take rows of each member's table: (M, B, ...)."""
        if name not in self._wholes:
            return _stack(
                [
                    rows(each[name], rows_B)
                    for each, rows_B in zip(self.members, _apart(rows_MB, len(self.members)), strict=True)
                ]
            )
        whole, firsts_M1 = self._wholes[name]
        return rows(whole, (rows_MB + firsts_M1).flatten()).view(*rows_MB.shape, *whole.shape[1:])

    def add(self, name: str, rows_MB: Tensor, values_MB: Tensor) -> None:
        """Add to rows of each member's table, one after another."""
        if name not in self._wholes:
            for each, rows_B, values_B in zip(
                self.members, _apart(rows_MB, len(self.members)), _apart(values_MB, len(self.members)), strict=True
            ):
                each[name].index_add_(0, rows_B, values_B)
            return
        whole, firsts_M1 = self._wholes[name]
        whole.index_add_(0, (rows_MB + firsts_M1).flatten(), values_MB.flatten(0, 1))


def _whole(tables: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The tensor in which the tables of several members lie, as a table, and the first row of each; None where none."""
    memory, width = tables[0].untyped_storage(), tables[0][0].numel()
    starts, size = [table.storage_offset() for table in tables], memory.nbytes() // tables[0].element_size()
    together = len(tables) > 1 and all(each.untyped_storage().data_ptr() == memory.data_ptr() for each in tables)
    if not together or any(start % width for start in [*starts, size]):
        return None
    shape, strides = ((size // width, width), (width, 1)) if tables[0].dim() > 1 else ((size,), (1,))
    firsts_M1 = torch.tensor([[start // width] for start in starts], device=tables[0].device)
    return tables[0].as_strided(shape, strides, 0), firsts_M1


def _backward(
    multitasks: Sequence[Multitask],
    params: Tables,
    grads: Tables,
    batch: Ratings,
    negatives_MB: Tensor,
    masks: Sequence[Sequence[Tensor]],
    of: int,
) -> Tensor:
    """As `backward`, for several members, whose ratings lie beside one another (M, B); their losses (2, M)."""
    size, users_MB, items_MB = batch.items_B.shape[-1], batch.users_B, batch.items_B
    pairs_MB = torch.cat([items_MB, negatives_MB], dim=-1)
    u_MBD, q_MBD = params.rows("user", users_MB), params.rows("item", pairs_MB)
    b_MB = params.rows("item_bias", pairs_MB)
    d_u_MBD, d_q_MBD, d_b_MB, pairwise_MB = _factorization_backward(multitasks, u_MBD, q_MBD, b_MB, of)
    separate = "regression_user" in params
    if separate:
        ru_MBD, rq_MBD = params.rows("regression_user", users_MB), params.rows("regression_item", items_MB)
    else:
        ru_MBD, rq_MBD = u_MBD, q_MBD[..., :size, :]
    d_ru_MBD, d_rq_MBD, squared_MB = _regression_backward(multitasks, params, grads, batch, ru_MBD, rq_MBD, masks, of)
    if separate:
        grads.add("regression_user", users_MB, d_ru_MBD)
        grads.add("regression_item", items_MB, d_rq_MBD)
    else:
        d_u_MBD += d_ru_MBD
        d_q_MBD[..., :size, :] += d_rq_MBD
    grads.add("user", users_MB, d_u_MBD)
    grads.add("item", pairs_MB, d_q_MBD)
    grads.add("item_bias", pairs_MB, d_b_MB)
    return torch.stack([pairwise_MB.mean(dim=-1), squared_MB.mean(dim=-1)])


def _factorization_backward(
    multitasks: Sequence[Multitask], u_MBD: Tensor, q_MBD: Tensor, b_MB: Tensor, of: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of lambda_F L_F for rows of users, of items and their biases, and the single losses.

    The items are the rated ones, then as many drawn ones. The users' biases cancel in the margin.
    """
    (rated_MBD, drawn_MBD), (rated_b_MB, drawn_b_MB) = q_MBD.chunk(2, dim=-2), b_MB.chunk(2, dim=-1)
    ahead_MBD = rated_MBD - drawn_MBD
    margin_MB = (u_MBD * ahead_MBD).sum(dim=-1) + rated_b_MB - drawn_b_MB
    if margin_MB.shape[-1] % ALIGNED == 0 and len({told.pairwise for told in multitasks}) == 1:
        pairwise_MB, slope_MB = _pairwise(multitasks[0], margin_MB)
    else:  # a loop on a CPU takes the last few another way
        found = [_pairwise(*each) for each in zip(multitasks, _apart(margin_MB, len(multitasks)), strict=True)]
        pairwise_MB, slope_MB = (_stack(each) for each in zip(*found, strict=True))
    d_margin_MB = slope_MB * _column([told.factorization_weight / of for told in multitasks], slope_MB)
    d_u_MBD, d_rated_MBD = d_margin_MB[..., None] * ahead_MBD, d_margin_MB[..., None] * u_MBD
    d_q_MBD = torch.cat([d_rated_MBD, -d_rated_MBD], dim=-2)
    return d_u_MBD, d_q_MBD, torch.cat([d_margin_MB, -d_margin_MB], dim=-1), pairwise_MB


def _pairwise(multitask: Multitask, margin_B: Tensor) -> tuple[Tensor, Tensor]:
    """The pairwise losses, and their slopes by the margin."""
    wrong_B = torch.sigmoid(-margin_B)
    if multitask.pairwise == "sigmoid":
        return wrong_B, wrong_B * (wrong_B - 1)
    return F.softplus(-margin_B), -wrong_B


def _regression_backward(
    multitasks: Sequence[Multitask],
    params: Tables,
    grads: Tables,
    batch: Ratings,
    u_MBD: Tensor,
    q_MBD: Tensor,
    masks: Sequence[Sequence[Tensor]],
    of: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradient of lambda_R L_R to all but the tables; that of the rows u_MBD, q_MBD, and the squared errors."""
    *hidden, last = zip(*params.layers, strict=True)  # each layer of all members
    inputs = [torch.cat([u_MBD, q_MBD, u_MBD * q_MBD], dim=-1)]
    for layer, of_members in enumerate(hidden):
        inputs.append(_dropped(_affine(of_members, inputs[-1]).relu_(), masks, layer))
    asked = zip(last, _apart(inputs[-1], len(multitasks)), _apart(batch.stars_B, len(multitasks)), strict=True)
    error_MB = _stack([(x_BD @ w[0]) + (b - stars_B) for (w, b), x_BD, stars_B in asked])
    has_biases = "regression_user_bias" in params
    if has_biases:
        error_MB += params.rows("regression_user_bias", batch.users_B)
        error_MB += params.rows("regression_item_bias", batch.items_B)
    d_stars_MB = error_MB * _column([2 * told.regression_weight / of for told in multitasks], error_MB)
    if has_biases:
        grads.add("regression_user_bias", batch.users_B, d_stars_MB)
        grads.add("regression_item_bias", batch.items_B, d_stars_MB)
    d_MBD = d_stars_MB[..., None]
    for layer, of_members in reversed(list(enumerate([*hidden, last]))):
        bias_grads = _apart(d_MBD.sum(dim=-2), len(multitasks))
        of_each = _apart(d_MBD, len(multitasks)), _apart(inputs[layer], len(multitasks))
        for own, d_BD, x_BD, bias_grad in zip(grads.layers, *of_each, bias_grads, strict=True):
            own[layer][0].addmm_(d_BD.mT, x_BD)
            own[layer][1].add_(bias_grad)
        d_MBD = _times([w for w, _ in of_members], d_MBD)
        if layer > 0:
            d_MBD *= _dropped(inputs[layer].sign(), masks, layer - 1)  # of a ReLU: 0 or 1
    d_u_MBD, d_q_MBD, d_product_MBD = d_MBD.chunk(3, dim=-1)
    return d_u_MBD + d_product_MBD * q_MBD, d_q_MBD + d_product_MBD * u_MBD, error_MB.square()


def _affine(layers: Sequence[tuple[Tensor, Tensor]], x_MBD: Tensor) -> Tensor:
    """Each member's weights times its own inputs, with its bias."""
    if len(layers) == 1:
        return torch.addmm(layers[0][1], x_MBD, layers[0][0].mT)
    y_MBD = x_MBD.new_empty(*x_MBD.shape[:2], len(layers[0][1]))
    for (weight, bias), x_BD, y_BD in zip(layers, x_MBD.unbind(), y_MBD.unbind(), strict=True):
        torch.addmm(bias, x_BD, weight.mT, out=y_BD)
    return y_MBD


def _times(weights: Sequence[Tensor], d_MBD: Tensor) -> Tensor:
    """What each member's outputs say of its inputs."""
    if len(weights) == 1:
        return d_MBD @ weights[0]
    y_MBD = d_MBD.new_empty(*d_MBD.shape[:2], weights[0].shape[1])
    for weight, d_BD, y_BD in zip(weights, d_MBD.unbind(), y_MBD.unbind(), strict=True):
        torch.mm(d_BD, weight, out=y_BD)
    return y_MBD


def _dropped(h_MBD: Tensor, masks: Sequence[Sequence[Tensor]], layer: int) -> Tensor:
    """Drop hidden values of those members who have masks."""
    if not any(masks):
        return h_MBD
    return _stack(
        [h_BD * own[layer] if own else h_BD for h_BD, own in zip(_apart(h_MBD, len(masks)), masks, strict=True)]
    )


def _beside(parts: Sequence[Ratings]) -> Ratings:
    """Put the ratings of members beside one another: (M, B)."""
    users, items, stars = zip(*((part.users_B, part.items_B, part.stars_B) for part in parts), strict=True)
    return Ratings(_stack(users), _stack(items), _stack(stars))


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Put what members have along an axis M."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0]


def _apart(tensor: Tensor, members: int) -> Sequence[Tensor]:
    """What each member has of a tensor."""
    return tensor.unbind() if members > 1 else (tensor,)


def _column(numbers: Sequence[float], like: Tensor) -> Tensor | float:
    """A number for each member, (M, 1)."""
    return like.new_tensor(numbers)[:, None] if len(numbers) > 1 else numbers[0]
