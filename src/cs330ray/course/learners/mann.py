"""MANN: a recurrent net that remembers labelled images and then names new ones, as CS330 defines it in homework 1.

After Santoro et al. 2016, with recurrent layers alone for a memory: they read the K*N labelled support images of a
task, then its N query images, one of each class, without labels. The last layer is N wide, and what it puts out at a
query are the logits. They lie in (-1, 1): no loss is below log(1 + (N - 1) exp(-2)).

The parameters are those of torch.nn.LSTM, GRU and RNN, the first layer's input weights in two: for image and label.
"""

# ruff: noqa: N815 - the fields carry their shapes

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Cell = Literal["lstm", "gru", "rnn"]
Encoder = Literal["none", "conv"]
Params = Mapping[str, Tensor]

GATES = {"lstm": 4, "gru": 3, "rnn": 1}  # a layer of D units computes G = GATES * D numbers an image
BLOCKS = 3  # of the encoder; each halves the sides
ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Mann:
    """What the net is told: how its layers remember, how many stand before the last, what they see of an image."""

    cell: Cell = "lstm"
    layers: int = 1
    encoder: Encoder = "none"


@dataclass(frozen=True)
class Batch:
    """Tasks as sequences of L = (K + 1) N images: K rounds of the N classes in order, then a query each, shuffled."""

    images_LTCHW: Tensor  # in [0, 1], ink 1
    labels_TN: Tensor  # int64: the classes of the queries, as they follow one another

    def __len__(self) -> int:
        return len(self.labels_TN)

    def __getitem__(self, tasks: slice) -> "Batch":
        return Batch(self.images_LTCHW[:, tasks], self.labels_TN[tasks])


def init(
    mann: Mann,
    *,
    hidden: int,
    ways: int,
    filters: int,
    generator: torch.Generator,
    side: int = 28,
    channels: int = 1,
) -> dict[str, Tensor]:
    """Draw the parameters: orthogonal recurrent weights, Xavier-uniform input weights, zero biases.

    The filters of the encoder are drawn as He et al. 2015 do before ReLU. `hidden` is the units of each layer but
    the last, `filters` the channels of each block of the encoder.
    """
    params: dict[str, Tensor] = {}
    features = channels * side**2
    if mann.encoder == "conv":
        for block in range(1, BLOCKS + 1):
            weight_CCHW = torch.empty(filters, channels if block == 1 else filters, 3, 3)
            torch.nn.init.kaiming_uniform_(weight_CCHW, nonlinearity="relu", generator=generator)
            params[f"conv{block}.weight"] = weight_CCHW
            params[f"conv{block}.bias"] = torch.zeros(filters)
            side = (side + 1) // 2
        features = filters * side**2
    for layer, width in enumerate([hidden] * mann.layers + [ways], start=1):
        gates = GATES[mann.cell] * width
        parts = {"image": features, "label": ways} if layer == 1 else {"input": hidden}
        weight_GD = torch.nn.init.xavier_uniform_(torch.empty(gates, sum(parts.values())), generator=generator)
        for part, columns_GD in zip(parts, torch.split(weight_GD, list(parts.values()), dim=1), strict=True):
            params[f"layer{layer}.weight_{part}"] = columns_GD.contiguous()
        recurrent_GD = torch.nn.init.orthogonal_(torch.empty(gates, width), generator=generator)
        params[f"layer{layer}.weight_hidden"] = recurrent_GD
        params[f"layer{layer}.bias_input"] = torch.zeros(gates)
        params[f"layer{layer}.bias_hidden"] = torch.zeros(gates)
    return params


def logits(mann: Mann, params: Params, batch: Batch) -> Tensor:
    """Score the classes of each query by the images and labels up to it: (T, N queries, N classes)."""
    return logits_many(mann, [params], [batch])[0]


def logits_many(mann: Mann, params: Sequence[Params], batches: Sequence[Batch]) -> Tensor:
    """Do for several members, each with as many tasks, what `logits` does for one: (M, T, N queries, N classes).

    Each member's numbers are those that it has alone: products are made one by one, the rest for all at once.
    """
    ways = batches[0].labels_TN.shape[1]
    if not len(batches[0]):
        return batches[0].images_LTCHW.new_zeros(len(batches), 0, ways, ways)
    seen = [_seen(mann, each, batch.images_LTCHW) for each, batch in zip(params, batches, strict=True)]
    x_MLTD = _beside(seen)
    for layer in range(1, mann.layers + 2):
        weights = [each["layer1.weight_image" if layer == 1 else f"layer{layer}.weight_input"] for each in params]
        bias_MLG = _beside([_bias(each, layer, x_MLTD.shape[1], ways) for each in params])
        recurrent = [each[f"layer{layer}.weight_hidden"] for each in params]
        biases = [each[f"layer{layer}.bias_hidden"] for each in params]
        x_MLTD = _remember(mann.cell, _apply(_Product, x_MLTD, *weights), bias_MLG, recurrent, biases)
    return x_MLTD[:, -ways:].transpose(1, 2)


def predict(mann: Mann, params: Params, support_NKCHW: Tensor, query_BCHW: Tensor) -> Tensor:
    """Score the classes of each query, read alone right behind the support: (B, N), in the order of the support."""
    ways, queries = len(support_NKCHW), len(query_BCHW)
    support_LBCHW = support_NKCHW.transpose(0, 1).flatten(0, 1)[:, None].expand(-1, queries, -1, -1, -1)
    asked_LBCHW = query_BCHW.expand(ways, -1, -1, -1, -1)  # as many as in training, of which the first counts
    batch = Batch(torch.cat([support_LBCHW, asked_LBCHW]), support_NKCHW.new_zeros(queries, ways, dtype=torch.int64))
    return logits(mann, params, batch)[:, 0]


def losses(logits_TNN: Tensor, labels_TN: Tensor) -> Tensor:
    """Mean cross entropy of the queries of each task: (T,)."""
    losses_B = F.cross_entropy(logits_TNN.flatten(0, 1), labels_TN.flatten(), reduction="none")
    return losses_B.view_as(labels_TN).mean(dim=1)


def accuracies(logits_TNN: Tensor, labels_TN: Tensor) -> Tensor:
    """Share of each task's queries whose highest logit is their class's: (T,)."""
    return (logits_TNN.argmax(dim=-1) == labels_TN).cpu().double().mean(dim=1)


def _seen(mann: Mann, params: Params, images_LTCHW: Tensor) -> Tensor:
    """What the memory gets of each image: its pixels, or the features of a small convolutional net: (L, T, D).

    That has no batch norm, so that what is said of a query hangs on its own task alone, and on no image after it.
    """
    if mann.encoder == "none":
        return images_LTCHW.flatten(2)
    x_BCHW = images_LTCHW.flatten(0, 1).clone(memory_format=torch.channels_last)
    for block in range(1, BLOCKS + 1):
        weight_CCHW = params[f"conv{block}.weight"].contiguous(memory_format=torch.channels_last)
        x_BCHW = F.conv2d(x_BCHW, weight_CCHW, params[f"conv{block}.bias"], stride=2, padding=1).relu()
    return x_BCHW.reshape(*images_LTCHW.shape[:2], -1)


def _bias(params: Params, layer: int, length: int, ways: int) -> Tensor:
    """What a layer adds to each image of the sequence before it remembers; the first one, what the labels say: (L, G).

    The product of label weights and a label is a column for a one-hot label, zeros for a query's.
    """
    bias_LG = params[f"layer{layer}.bias_input"].expand(length, -1)
    if layer > 1:
        return bias_LG
    columns_LG = params["layer1.weight_label"].T.repeat((length - ways) // ways, 1)
    return bias_LG + torch.cat([columns_LG, columns_LG.new_zeros(ways, columns_LG.shape[1])])


def _remember(
    cell: Cell, x_MLTG: Tensor, bias_MLG: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Run a layer along the sequence, given what its input weights make of it; what it puts out: (M, L, T, D)."""
    if cell == "lstm":
        outputs_MLTD: Tensor = _apply(_Lstm, x_MLTG, bias_MLG + _beside(biases)[:, None], *weights)
        return outputs_MLTD
    return torch.stack([_remember_alone(cell, *each) for each in zip(x_MLTG, bias_MLG, weights, biases, strict=True)])


def _remember_alone(cell: Cell, x_LTG: Tensor, bias_LG: Tensor, weight_GD: Tensor, bias_G: Tensor) -> Tensor:
    """As `_remember`, for one member and without a gradient by hand."""
    h_TD = x_LTG.new_zeros(x_LTG.shape[1], weight_GD.shape[1])
    outputs = []
    for x_TG in x_LTG + bias_LG[:, None]:
        y_TG = F.linear(h_TD, weight_GD, bias_G)
        if cell == "gru":
            (reset, update, new), (y_reset, y_update, y_new) = x_TG.chunk(3, dim=1), y_TG.chunk(3, dim=1)
            new = (new + (reset + y_reset).sigmoid() * y_new).tanh()
            h_TD = torch.lerp(new, h_TD, (update + y_update).sigmoid())
        else:
            h_TD = (x_TG + y_TG).tanh()
        outputs.append(h_TD)
    return torch.stack(outputs)


class _Lstm(torch.autograd.Function):
    """The LSTM with a forget gate (Gers et al. 2000), and its gradient by hand: in .7 of autograd's time.

    Its members stand beside one another, each with weights of its own.
    """

    @staticmethod
    def forward(ctx: Any, x_MLTG: Tensor, bias_MLG: Tensor, *weights: Tensor) -> Tensor:
        members, length, tasks, _ = x_MLTG.shape
        width = weights[0].shape[1]
        gates_MLTG = torch.empty_like(x_MLTG)
        c_MLTD = x_MLTG.new_zeros(members, length + 1, tasks, width)
        h_MLTD, tanh_c_MLTD = torch.zeros_like(c_MLTD), torch.empty_like(c_MLTD[:, 1:])
        moments = zip(x_MLTG.unbind(1), bias_MLG.unbind(1), _gates(gates_MLTG), tanh_c_MLTD.unbind(1), strict=True)
        h, c = h_MLTD.unbind(1), c_MLTD.unbind(1)  # before and after each image
        for at, (x_MTG, bias_MG, (gates_MTG, i_and_f, i, f, g, o), tanh_c_MTD) in enumerate(moments):
            if at:
                before = zip(h[at].unbind(), weights, bias_MG.unbind(), strict=True)
                from_before_MTG = _beside([_times(*each) for each in before])
            else:
                from_before_MTG = bias_MG[:, None]
            torch.add(x_MTG, from_before_MTG, out=gates_MTG)
            i_and_f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c[at], out=c[at + 1]).addcmul_(i, g)
            torch.mul(o, torch.tanh(c[at + 1], out=tanh_c_MTD), out=h[at + 1])
        ctx.save_for_backward(gates_MLTG, c_MLTD, tanh_c_MLTD, h_MLTD, *weights)
        return h_MLTD[:, 1:]

    @staticmethod
    def backward(ctx: Any, d_h_MLTD: Tensor) -> tuple[Tensor, ...]:
        gates_MLTG, c_MLTD, tanh_c_MLTD, h_MLTD, *weights = ctx.saved_tensors
        sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        d_MLTG = torch.empty_like(gates_MLTG)
        d_h, c, tanh_c = d_h_MLTD.unbind(1), c_MLTD.unbind(1), tanh_c_MLTD.unbind(1)
        moments = list(zip(_gates(gates_MLTG), _gates(d_MLTG), strict=True))
        d_h_MTD, d_c_MTD = d_h[-1], torch.zeros_like(c[0])
        for at in reversed(range(len(moments))):
            (_, _, i, f, g, o), (d_MTG, _, d_i, d_f, d_g, d_o) = moments[at]
            sigmoid_backward(d_h_MTD * tanh_c[at], o, grad_input=d_o)
            d_c_MTD = tanh_backward(d_h_MTD * o, tanh_c[at]).add_(d_c_MTD)
            sigmoid_backward(d_c_MTD * g, i, grad_input=d_i)
            sigmoid_backward(d_c_MTD * c[at], f, grad_input=d_f)
            tanh_backward(d_c_MTD * i, g, grad_input=d_g)
            if at:
                to_before = zip(d_MTG.unbind(), weights, strict=True)
                d_h_MTD = _beside([_times(d_TG, weight_GD.T) for d_TG, weight_GD in to_before]).add_(d_h[at - 1])
                d_c_MTD *= f
        d_weights = [
            _times(d_LTG[1:].flatten(0, 1).T, h_LTD[1:-1].flatten(0, 1).T)
            for d_LTG, h_LTD in zip(d_MLTG, h_MLTD, strict=True)
        ]
        return d_MLTG, d_MLTG.sum(dim=2), *d_weights


def _gates(all_MLTG: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """For each image the gates of all members: together, the first two, and input, forget, new and output alone."""
    half = all_MLTG.shape[3] // 2
    parts = [all_MLTG, all_MLTG[..., :half], *all_MLTG.chunk(4, dim=3)]
    return zip(*(part.unbind(1) for part in parts), strict=True)


class _Product(torch.autograd.Function):
    """Inputs times transposed weights, a product for each member: most of a step's work."""

    @staticmethod
    def forward(ctx: Any, x_MLTD: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x_MLTD, *weights)
        products = [_times(x_LTD.flatten(0, 1), w_GD) for x_LTD, w_GD in zip(x_MLTD.unbind(), weights, strict=True)]
        return _beside(products).view(*x_MLTD.shape[:3], -1)

    @staticmethod
    def backward(ctx: Any, d_MLTG: Tensor) -> tuple[Tensor | None, ...]:
        x_MLTD, *weights = ctx.saved_tensors
        d_MBG, x_MBD = d_MLTG.flatten(1, 2).unbind(), x_MLTD.flatten(1, 2).unbind()
        d_x_MLTD = None
        if ctx.needs_input_grad[0]:
            d_x = [_times(d_BG, weight_GD.T) for d_BG, weight_GD in zip(d_MBG, weights, strict=True)]
            d_x_MLTD = _beside(d_x).view_as(x_MLTD)
        return d_x_MLTD, *(_times(d_BG.T, x_BD.T) for d_BG, x_BD in zip(d_MBG, x_MBD, strict=True))


def _beside(tensors: Sequence[Tensor]) -> Tensor:
    """Put what members have beside one another; of one without a copy."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]


def _times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias; on a CPU by oneDNN, on some makes twice as fast as the library that torch asks by itself."""
    if a.is_cpu and a.dtype == torch.float32 and ONEDNN:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return product
    return F.linear(a, b, bias)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]
