"""Conv-4: four blocks of 3x3 convolution, batch norm and ReLU, for many tasks at once, each with parameters of its own.

`pooled` (Vinyals et al. 2016) max-pools by 2 after each block and flattens; `course` (CS330, homework 2) keeps the
resolution and takes the mean over space. Batch norm (Ioffe & Szegedy 2015) uses the statistics of a group: the images
of ONE task in one call. Its scale and shift are optional: where the parameters have none, it only normalises.

Inside, the tasks' channels lie side by side, (B, T*C, H, W) in channels_last memory: one grouped convolution serves all
tasks, and a statistic of a channel is one of a task.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Body = Literal["course", "pooled"]
Params = Mapping[str, Tensor]

BLOCKS = 4
EPSILON = 1e-5  # under the square root of batch norm


def init(
    body: Body,
    *,
    filters: int,
    ways: int | None,
    generator: torch.Generator,
    affine: bool = True,
    side: int = 28,
    channels: int = 1,
) -> dict[str, Tensor]:
    """Draw the parameters for images of `side` pixels: Xavier-uniform weights, unit scales, zero shifts and biases.

    There is no head where `ways` is None, and without `affine` no scale and no shift; the weights drawn are the same.
    A convolution has no bias: before batch norm it would have no gradient.
    """
    params: dict[str, Tensor] = {}
    for block in range(1, BLOCKS + 1):
        weight_CCHW = torch.empty(filters, channels if block == 1 else filters, 3, 3)
        params[f"conv{block}.weight"] = torch.nn.init.xavier_uniform_(weight_CCHW, generator=generator)
        if affine:
            params[f"norm{block}.scale"] = torch.ones(filters)
            params[f"norm{block}.shift"] = torch.zeros(filters)
    if ways is not None:
        pixels = (side // 2**BLOCKS) ** 2 if body == "pooled" else 1
        params["head.weight"] = torch.nn.init.xavier_uniform_(torch.empty(ways, filters * pixels), generator=generator)
        params["head.bias"] = torch.zeros(ways)
    return params


def logits(body: Body, params_T: Params, images_TBCHW: Tensor, *, norm_B: int | None = None) -> Tensor:
    """Score the classes of each task's images under that task's parameters: (T, B, N)."""
    features_TBD = features(body, params_T, images_TBCHW, norm_B=norm_B)
    return torch.baddbmm(params_T["head.bias"][:, None], features_TBD, params_T["head.weight"].mT)


def features(body: Body, params_T: Params, images_TBCHW: Tensor, *, norm_B: int | None = None) -> Tensor:
    """Embed each task's images under that task's parameters, which all have a leading T: (T, B, D).

    All images of a task are one batch-norm group; or its first `norm_B` images are, and the others are normalised with
    their statistics. Differentiable twice.
    """
    tasks, batch = images_TBCHW.shape[:2]
    x_BCHW = images_TBCHW.transpose(0, 1).flatten(1, 2).clone(memory_format=torch.channels_last)  # even where C is 1
    for block in range(1, BLOCKS + 1):
        weight_TCCHW, scale_TC, shift_TC = _of_block(block, params_T)
        if body == "pooled":
            weight_TCCHW, scale_TC = _positive_scale(weight_TCCHW, scale_TC)
        y_BCHW = _apply(_Conv, x_BCHW, weight_TCCHW.flatten(0, 1), tasks)
        if block == 1:
            mean_C, var_C = _patch_statistics(images_TBCHW[:, :norm_B], weight_TCCHW)
        else:
            mean_C, var_C = _apply(_Statistics, y_BCHW if norm_B is None else y_BCHW[:norm_B])
        if body == "pooled":
            y_BCHW = F.max_pool2d(y_BCHW, 2)
        a_C = scale_TC.flatten() * (var_C + EPSILON).rsqrt()
        b_C = shift_TC.flatten() - mean_C * a_C
        x_BCHW = torch.addcmul(b_C[:, None, None], y_BCHW, a_C[:, None, None]).relu_()
    if body == "course":
        x_BCHW = x_BCHW.mean(dim=(2, 3))
    return x_BCHW.reshape(batch, tasks, -1).transpose(0, 1)


def group_features(params: Params, images_GBCHW: Tensor, *, norm_B: int | None = None) -> Tensor:
    """Embed groups of images under the same parameters by the `pooled` body: (G, B, D).

    All images of a group are one batch-norm group; or its first `norm_B` images are, and the others are normalised with
    their statistics. No group is cut, and no two are merged: that would be another model. Differentiable once.
    """
    groups = len(images_GBCHW)
    x_BCHW = images_GBCHW.flatten(0, 1).clone(memory_format=torch.channels_last)  # even where C is 1
    for block in range(1, BLOCKS + 1):
        weight_CCHW, scale_C, shift_C = _of_block(block, params)
        weight_CCHW, scale_C = _positive_scale(weight_CCHW, scale_C)
        if block == 1:
            statistics = _patch_statistics(images_GBCHW[:, :norm_B], weight_CCHW[None])
            mean_GC, var_GC = (statistic.view(groups, -1) for statistic in statistics)
            y_BCHW = _conv_pool(x_BCHW, weight_CCHW)
        else:
            y_BCHW = F.conv2d(x_BCHW, weight_CCHW, padding=1)
            mean_GC, var_GC = _apply(_GroupStatistics, _grouped(y_BCHW, groups)[:, :norm_B])
            y_BCHW = F.max_pool2d(y_BCHW, 2)
        a_GC = scale_C * (var_GC + EPSILON).rsqrt()
        b_GC = shift_C - mean_GC * a_GC
        x_BCHW = torch.addcmul(_wide(b_GC), _grouped(y_BCHW, groups), _wide(a_GC)).relu_().flatten(0, 1)
    return x_BCHW.reshape(*images_GBCHW.shape[:2], -1)


def _conv_pool(x_BCHW: Tensor, weight_CCHW: Tensor) -> Tensor:
    """Convolve and pool; on a CPU few images at a time, so that what is only pooled never leaves its caches."""
    parts = torch.split(x_BCHW, 16 if x_BCHW.is_cpu else len(x_BCHW))
    return torch.cat([F.max_pool2d(F.conv2d(part_BCHW, weight_CCHW, padding=1), 2) for part_BCHW in parts])


def _grouped(y_BCHW: Tensor, groups: int) -> Tensor:
    return y_BCHW.view(groups, -1, *y_BCHW.shape[1:])


def _wide(of_GC: Tensor) -> Tensor:
    return of_GC[:, None, :, None, None]


def _of_block(block: int, params_T: Params) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, scale and shift of a block; of a net without scale and shift, those that change nothing."""
    weight_TCCHW = params_T[f"conv{block}.weight"]
    if f"norm{block}.scale" not in params_T:
        ones_TC = weight_TCCHW.new_ones(weight_TCCHW.shape[:-3])
        return weight_TCCHW, ones_TC, torch.zeros_like(ones_TC)
    return weight_TCCHW, params_T[f"norm{block}.scale"], params_T[f"norm{block}.shift"]


def _positive_scale(weight_TCCHW: Tensor, scale_TC: Tensor) -> tuple[Tensor, Tensor]:
    """Negate the filters of channels with a negative scale, and the scale: the same block.

    Its normalisation is then an increasing function a y + b, and max(relu(a y + b)) = relu(a max(y) + b): the pool may
    come first, which leaves a quarter of the pixels to normalise.
    """
    sign_TC = torch.where(scale_TC < 0, -1.0, 1.0).to(scale_TC)
    return weight_TCCHW * sign_TC[..., None, None, None], scale_TC * sign_TC


def _patch_statistics(images_TBCHW: Tensor, weight_TCCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of the first convolution, from those of the 3x3 patches that it multiplies.

    Of y = w.p they are w.mean(p) and w' cov(p) w: exact, and no pass over y, the largest tensor of the net.
    """
    height, width = images_TBCHW.shape[3:]
    padded_TBCHW = F.pad(images_TBCHW, (1, 1, 1, 1))
    shifted = [padded_TBCHW[..., row : row + height, col : col + width] for row in range(3) for col in range(3)]
    p_TPB = torch.stack(shifted, dim=1).movedim(3, 1).flatten(3).flatten(1, 2)  # P the pixels of a patch, C by C
    mean_TP1 = p_TPB.mean(dim=2, keepdim=True)
    p_TPB = p_TPB - mean_TP1
    cov_TPP = p_TPB @ p_TPB.mT / p_TPB.shape[2]
    w_TCP = weight_TCCHW.flatten(2)
    return (w_TCP @ mean_TP1).flatten(), ((w_TCP @ cov_TPP) * w_TCP).sum(dim=2).flatten()


class _Statistics(torch.autograd.Function):
    """Mean and (biased) variance of each channel, with a backward pass that is one pass over the pixels."""

    @staticmethod
    def forward(ctx: Any, y_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        if y_BCHW.is_cpu:  # where var_mean is ten times slower
            mean_C, var_C = torch.batch_norm_update_stats(y_BCHW, None, None, 0.0)
        else:
            var_C, mean_C = torch.var_mean(y_BCHW, dim=(0, 2, 3), correction=0)
        ctx.save_for_backward(y_BCHW, mean_C)
        return mean_C, var_C

    @staticmethod
    def backward(ctx: Any, d_mean_C: Tensor, d_var_C: Tensor) -> Tensor:
        y_BCHW, mean_C = ctx.saved_tensors
        pixels = y_BCHW.numel() // y_BCHW.shape[1]
        slope_C = d_var_C * (2 / pixels)
        return torch.addcmul((d_mean_C / pixels - mean_C * slope_C)[:, None, None], y_BCHW, slope_C[:, None, None])


class _GroupStatistics(torch.autograd.Function):
    """Mean and (biased) variance of each channel in each group, (G, C), with a backward pass that is one pass too."""

    @staticmethod
    def forward(ctx: Any, y_GBCHW: Tensor) -> tuple[Tensor, Tensor]:
        if y_GBCHW.is_cpu:
            found = [torch.batch_norm_update_stats(y_BCHW, None, None, 0.0) for y_BCHW in y_GBCHW]
            mean_GC, var_GC = (torch.stack(rows) for rows in zip(*found, strict=True))
        else:
            var_GC, mean_GC = torch.var_mean(y_GBCHW, dim=(1, 3, 4), correction=0)
        ctx.save_for_backward(y_GBCHW, mean_GC)
        return mean_GC, var_GC

    @staticmethod
    def backward(ctx: Any, d_mean_GC: Tensor, d_var_GC: Tensor) -> Tensor:
        y_GBCHW, mean_GC = ctx.saved_tensors
        pixels = y_GBCHW[0, :, 0].numel()
        slope_GC = d_var_GC * (2 / pixels)
        return torch.addcmul(_wide(d_mean_GC / pixels - mean_GC * slope_GC), y_GBCHW, _wide(slope_GC))


# The form <conv(x, w), g> is linear in each of its three arguments, so its partial derivatives are closed under
# differentiation: these three serve every order (torch's own second derivative of a grouped convolution is slow).


class _Conv(torch.autograd.Function):
    """d/dg: the convolution itself, 3x3 with padding 1, of `groups` groups of channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.groups = groups
        return F.conv2d(x, w, padding=1, groups=groups)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        to_x, to_w, _ = ctx.needs_input_grad
        return (
            _apply(_ConvImage, w, g, ctx.groups) if to_x else None,
            _apply(_ConvWeight, x, g, ctx.groups) if to_w else None,
            None,
        )


class _ConvImage(torch.autograd.Function):
    """d/dx: what the convolution's image receives."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, g: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(w, g)
        ctx.groups = groups
        x = _blank((len(g), w.shape[1] * groups, *g.shape[2:]), g)
        return _partial(g, x, w, groups, 0)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        w, g = ctx.saved_tensors
        to_w, to_g, _ = ctx.needs_input_grad
        return (
            _apply(_ConvWeight, h, g, ctx.groups) if to_w else None,
            _apply(_Conv, h, w, ctx.groups) if to_g else None,
            None,
        )


class _ConvWeight(torch.autograd.Function):
    """d/dw: what the convolution's weight receives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.groups = groups
        w = _blank((g.shape[1], x.shape[1] // groups, 3, 3), g)
        return _partial(g, x, w, groups, 1)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, g = ctx.saved_tensors
        to_x, to_g, _ = ctx.needs_input_grad
        return (
            _apply(_ConvImage, v, g, ctx.groups) if to_x else None,
            _apply(_Conv, x, v, ctx.groups) if to_g else None,
            None,
        )


def _partial(g: Tensor, x: Tensor, w: Tensor, groups: int, of: Literal[0, 1]) -> Tensor:
    mask = [of == 0, of == 1, False]
    one, none = [1, 1], [0, 0]
    grads = torch.ops.aten.convolution_backward(g, x, w, None, one, one, one, False, none, groups, mask)
    partial: Tensor = grads[of]
    return partial


def _blank(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]
