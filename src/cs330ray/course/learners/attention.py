"""Attention of many rows to one shared prefix, whose keys and values are never repeated for the rows.

As in Hydragen (Juravsky et al. 2024), the queries of all rows meet the prefix in one product of matrices and each row
meets its own tokens in another; one softmax is over both. Masks come from positions, so that rows may be padded on the
left and sliding windows stay exact. Any model can read so that takes its attention from transformers' interface.

Shapes here: B rows, L queries of a row, K its own tokens so far, P tokens of the prefix, D features of a head, H heads,
G heads of keys and values, M queries of the heads that share one of those.
"""

# ruff: noqa: N815 - the fields carry their shapes

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cs330ray.errors import SpecError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

NAME = "cs330ray_shared_prefix"
SERVED = {"full_attention", "sliding_attention"}
CPU_SCORES_AT_ONCE = 1 << 20  # what stays in the caches: more at once take twice as long
SCORES_AT_ONCE = 1 << 28  # elsewhere: 1 GiB


@dataclass(frozen=True)
class Moment:
    """Where the tokens of one forward pass stand; what stands before `shared` in a row of its own is padding."""

    prefix: "Cache | None"  # keys and values of the prefix, one row
    shared: int  # so many of its first tokens are read (P)
    query_BL: Tensor  # positions of the queries
    own_BK: Tensor  # positions of the row's own tokens so far, the queries among them


_moment: ContextVar[Moment] = ContextVar("moment")


@contextmanager
def reading(model: "PreTrainedModel") -> Iterator[None]:
    """Have the model attend as this module does, without dropout, and as before afterwards.

    Raises SpecError where the model computes its attention in a way of its own.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    before, training = model.config._attn_implementation, model.training
    if set(getattr(model.config, "layer_types", None) or []) <= SERVED:
        model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise _not_served(f"that of {model.config.model_type}")
    model.train(False)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)


@contextmanager
def at(moment: Moment) -> Iterator[None]:
    """Say where the tokens of the next forward pass stand."""
    token = _moment.set(moment)
    try:
        yield
    finally:
        _moment.reset(token)


def attend(
    module: torch.nn.Module,
    query_BHLD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    attention_mask: None,  # noqa: ARG001 - transformers' signature; a mask is not made for functions it does not know
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend to the prefix and to a row's own tokens up to the query: (B, L, H, D)."""
    if unknown := [name for name in ("s_aux", "position_bias") if others.get(name) is not None]:
        raise _not_served(f"one with {unknown[0]}")
    moment = _moment.get()
    prefix_key_GPD, prefix_value_GPD = key_BGKD[0, :, :0], value_BGKD[0, :, :0]
    if moment.prefix is not None:
        layer: Any = moment.prefix.layers[module.layer_idx]  # type: ignore[index]
        prefix_key_GPD, prefix_value_GPD = (kept[0, :, : moment.shared] for kept in (layer.keys, layer.values))
    query_BHLD = query_BHLD * (query_BHLD.shape[-1] ** -0.5 if scaling is None else scaling)
    rows, heads, length, _ = query_BHLD.shape
    attended_BLHD = query_BHLD.new_empty(rows, length, heads, value_BGKD.shape[-1])
    before = key_BGKD.shape[2] - length  # own tokens that stand before the queries
    for some, few in _tiles(query_BHLD, moment.shared + key_BGKD.shape[2]):
        known = slice(0, before + few.stop)
        positions_BL, own_BK = moment.query_BL[some, few], moment.own_BK[some, known]
        attended_BLHD[some, few] = _attend_tile(
            query_BHLD[some, :, few],
            key_BGKD[some, :, known],
            value_BGKD[some, :, known],
            prefix_key_GPD,
            prefix_value_GPD,
            _hidden(positions_BL, own_BK, moment.shared, sliding_window),
            softcap,
        )
    return attended_BLHD, None


def _tiles(query_BHLD: Tensor, keys: int) -> Iterator[tuple[slice, slice]]:
    """Cut the queries into rows and stretches of rows whose scores fit into what is computed at once."""
    rows, heads, length, _ = query_BHLD.shape
    scores = CPU_SCORES_AT_ONCE if query_BHLD.is_cpu else SCORES_AT_ONCE
    queries = max(1, scores // (heads * keys))
    few, some = min(queries, length), max(1, queries // length)
    for first in range(0, rows, some):
        for start in range(0, length, few):
            yield slice(first, min(first + some, rows)), slice(start, min(start + few, length))


def _hidden(positions_BL: Tensor, own_BK: Tensor, shared: int, sliding_window: int | None) -> Tensor:
    """Mark which keys a query does not see, of its own tokens (B, L, K) or, with a window, of all (B, L, P + K).

    Its own tokens up to itself are seen, without padding; but padding sees itself, as a softmax needs something.
    """
    query_BL1, own_B1K = positions_BL[:, :, None], own_BK[:, None, :]
    hidden_BLK = (own_B1K > query_BL1) | ((own_B1K < shared) & (own_B1K != query_BL1))
    if sliding_window is None:
        return hidden_BLK
    prefix_P = torch.arange(shared, device=own_BK.device)
    far_BLP = query_BL1 - prefix_P >= sliding_window
    return torch.cat([far_BLP, hidden_BLK | (query_BL1 - own_B1K >= sliding_window)], dim=-1)


def _attend_tile(
    query_BHLD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    prefix_key_GPD: Tensor,
    prefix_value_GPD: Tensor,
    hidden_BLK: Tensor,
    softcap: float | None,
) -> Tensor:
    rows, heads, length, _ = query_BHLD.shape
    groups, shared, _ = prefix_key_GPD.shape
    own = key_BGKD.shape[2]
    query_BGMD = query_BHLD.reshape(rows, groups, heads // groups * length, -1)
    to_prefix_GBP = _merge(query_BGMD) @ prefix_key_GPD.mT
    scores_BGMK = torch.cat([_split(to_prefix_GBP, rows), query_BGMD @ key_BGKD.mT], dim=-1)
    if softcap is not None:
        scores_BGMK = softcap * (scores_BGMK / softcap).tanh()
    scores_BHLK = scores_BGMK.view(rows, heads, length, shared + own)
    scores_BHLK[..., shared + own - hidden_BLK.shape[-1] :].masked_fill_(hidden_BLK[:, None], -torch.inf)
    weights_BGMK = scores_BGMK.softmax(dim=-1, dtype=torch.float32).to(query_BHLD.dtype)
    from_prefix_GBD = _merge(weights_BGMK[..., :shared]) @ prefix_value_GPD
    attended_BGMD = _split(from_prefix_GBD, rows) + weights_BGMK[..., shared:] @ value_BGKD
    return attended_BGMD.reshape(rows, heads, length, -1).transpose(1, 2)


def _merge(x_BGMD: Tensor) -> Tensor:
    """Put all rows behind one another for each key head, (G, B * M, D): the prefix is the same for all."""
    return x_BGMD.transpose(0, 1).flatten(1, 2)


def _split(x_GBD: Tensor, rows: int) -> Tensor:
    groups, merged, size = x_GBD.shape
    return x_GBD.view(groups, rows, merged // rows, size).transpose(0, 1)


def _not_served(which: str) -> SpecError:
    return SpecError(
        f"model: decoding needs an attention of transformers' interface, full or sliding, but got {which}; "
        "take a Llama, a GPT-2 or another of their kind"
    )
