"""MANN: a recurrent net that remembers labelled images and then names new ones, as CS330 defines it in homework 1.

After Santoro et al. 2016, with recurrent layers alone for a memory: they read the K*N labelled support images of a
task, then its N query images, one of each class, without labels. The last layer is N wide, and what it puts out at a
query are the logits. They lie in (-1, 1): no loss is below log(1 + (N - 1) exp(-2)).

The parameters are those of torch.nn.LSTM, GRU and RNN, the first layer's input weights in two: for image and label.
"""

# ruff: noqa: N815 - the fields carry their shapes

from collections.abc import Mapping
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
    ways = batch.labels_TN.shape[1]
    if not len(batch):
        return batch.images_LTCHW.new_zeros(0, ways, ways)
    x_LTD = _seen(mann, params, batch.images_LTCHW)
    for layer in range(1, mann.layers + 2):
        weight_GD = params["layer1.weight_image" if layer == 1 else f"layer{layer}.weight_input"]
        bias_LG = params[f"layer{layer}.bias_input"].expand(len(x_LTD), -1)
        if layer == 1:
            bias_LG = bias_LG + _labels(params["layer1.weight_label"], len(x_LTD) - ways)
        recurrent = params[f"layer{layer}.weight_hidden"], params[f"layer{layer}.bias_hidden"]
        x_LTD = _remember(mann.cell, _apply(_Product, x_LTD, weight_GD), bias_LG, *recurrent)
    return x_LTD[-ways:].transpose(0, 1)


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


def _labels(weight_GN: Tensor, support_L: int) -> Tensor:
    """The products of label weights and labels: a column for a one-hot label, zeros for a query's: (L, G)."""
    ways = weight_GN.shape[1]
    columns_LG = weight_GN.T.repeat(support_L // ways, 1)
    return torch.cat([columns_LG, columns_LG.new_zeros(ways, columns_LG.shape[1])])


def _remember(cell: Cell, x_LTG: Tensor, bias_LG: Tensor, weight_GD: Tensor, bias_G: Tensor) -> Tensor:
    """Run a layer along the sequence, given what its input weights make of it; what it puts out: (L, T, D)."""
    if cell == "lstm":
        outputs_LTD: Tensor = _apply(_Lstm, x_LTG, bias_LG + bias_G, weight_GD)
        return outputs_LTD
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
    """The LSTM with a forget gate (Gers et al. 2000), and its gradient by hand: in .7 of autograd's time."""

    @staticmethod
    def forward(ctx: Any, x_LTG: Tensor, bias_LG: Tensor, weight_GD: Tensor) -> Tensor:
        length, tasks, width = *x_LTG.shape[:2], weight_GD.shape[1]
        gates_LTG = torch.empty_like(x_LTG)
        c_LTD = x_LTG.new_zeros(length + 1, tasks, width)
        h_LTD, tanh_c_LTD = torch.zeros_like(c_LTD), torch.empty_like(c_LTD[1:])
        for at in range(length):
            from_before = _times(h_LTD[at], weight_GD, bias_LG[at]) if at else bias_LG[at]
            torch.add(x_LTG[at], from_before, out=gates_LTG[at])
            i, f, g, o = gates_LTG[at].chunk(4, dim=1)
            gates_LTG[at, :, : 2 * width].sigmoid_()  # i and f
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c_LTD[at], out=c_LTD[at + 1]).addcmul_(i, g)
            torch.mul(o, torch.tanh(c_LTD[at + 1], out=tanh_c_LTD[at]), out=h_LTD[at + 1])
        ctx.save_for_backward(weight_GD, gates_LTG, c_LTD, tanh_c_LTD, h_LTD)
        return h_LTD[1:]

    @staticmethod
    def backward(ctx: Any, d_h_LTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight_GD, gates_LTG, c_LTD, tanh_c_LTD, h_LTD = ctx.saved_tensors
        sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        d_LTG = torch.empty_like(gates_LTG)
        d_h_TD, d_c_TD = d_h_LTD[-1], torch.zeros_like(c_LTD[0])
        for at in reversed(range(len(gates_LTG))):
            i, f, g, o = gates_LTG[at].chunk(4, dim=1)
            d_i, d_f, d_g, d_o = d_LTG[at].chunk(4, dim=1)
            sigmoid_backward(d_h_TD * tanh_c_LTD[at], o, grad_input=d_o)
            d_c_TD = tanh_backward(d_h_TD * o, tanh_c_LTD[at]).add_(d_c_TD)
            sigmoid_backward(d_c_TD * g, i, grad_input=d_i)
            sigmoid_backward(d_c_TD * c_LTD[at], f, grad_input=d_f)
            tanh_backward(d_c_TD * i, g, grad_input=d_g)
            if at:
                d_h_TD = _times(d_LTG[at], weight_GD.T).add_(d_h_LTD[at - 1])
                d_c_TD *= f
        return d_LTG, d_LTG.sum(dim=1), _times(d_LTG[1:].flatten(0, 1).T, h_LTD[1:-1].flatten(0, 1).T)


class _Product(torch.autograd.Function):
    """Inputs times transposed weights: most of a step's work."""

    @staticmethod
    def forward(ctx: Any, x_LTD: Tensor, weight_GD: Tensor) -> Tensor:
        ctx.save_for_backward(x_LTD, weight_GD)
        return _times(x_LTD.flatten(0, 1), weight_GD).view(*x_LTD.shape[:2], -1)

    @staticmethod
    def backward(ctx: Any, d_LTG: Tensor) -> tuple[Tensor | None, Tensor]:
        x_LTD, weight_GD = ctx.saved_tensors
        d_BG, x_BD = d_LTG.flatten(0, 1), x_LTD.flatten(0, 1)
        d_x_LTD = _times(d_BG, weight_GD.T).view_as(x_LTD) if ctx.needs_input_grad[0] else None
        return d_x_LTD, _times(d_BG.T, x_BD.T)


def _times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias; on a CPU by oneDNN, on some makes twice as fast as the library that torch asks by itself."""
    if a.is_cpu and a.dtype == torch.float32 and ONEDNN:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return product
    return F.linear(a, b, bias)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]
