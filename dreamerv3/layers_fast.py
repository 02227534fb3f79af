"""A Layer for throughput: norm and SiLU are one kernel on a GPU, and their gradient is written out.

The mathematics to read is in networks.py; tests show that values and gradients agree.

Shapes: [...] any leading axes, n the axis that is normed.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import eager
from dreamerv3.distributions import wide
from dreamerv3.networks import NORM_EPS, Layer

# Sums over few classes are a reduction like others: written out, they would be kernels of their own.
OPTIONS = {"unroll_reductions_threshold": 1}


@functools.cache
def for_device(function: types.FunctionType, device: str, width: int) -> Callable[..., Any]:
    """The function, fused into one kernel by torch.compile on a GPU; a CPU gains nothing from it.

    One for each `width` of the model: torch.compile gives up on a function that it has met in eight shapes, and takes
    functions of one code for one function.
    """
    if device != "cuda":
        return function
    code = function.__code__.replace(co_name=f"{function.__name__}_{width}")
    return eager.compiled(
        function.__name__, types.FunctionType(code, function.__globals__), dynamic=False, options=OPTIONS
    )


class NormSlope(NamedTuple):
    """Of y = silu(n scale) with n = x / rms(x), over the last axis."""

    slope: Tensor  # of y by n scale
    normed: Tensor  # n
    inverse: Tensor  # 1 / rms(x)


def use_in(module: nn.Module) -> None:
    """Let every Layer of a module work so."""
    for part in module.modules():
        if isinstance(part, Layer):
            part.activate = activate


def activate(x: Tensor, scale: Tensor) -> Tensor:
    """silu(RMSNorm(x) * scale) in the dtype of x [..., n], computed in float32 at least."""
    found: Tensor = _NormSilu.apply(x, scale)
    return found


def norm_silu(x: Tensor, scale: Tensor) -> Tensor:
    """silu(RMSNorm(x) * scale) over the last axis."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    return F.silu(normed.mul_(scale), inplace=True)


def norm_slopes(x: Tensor, scale: Tensor) -> NormSlope:
    """Of silu(RMSNorm(x) * scale)."""
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    normed = x * inverse
    n = normed * scale
    sigmoid = torch.sigmoid(n)
    return NormSlope(sigmoid * (1 + n * (1 - sigmoid)), normed, inverse)


def norm_silu_backward(
    grad: Tensor, scale: Tensor, slope: Tensor, normed: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """To x, which is normed, from the gradient to silu(RMSNorm(x) * scale)."""
    d_normed = grad * slope * scale
    d_x = (d_normed - normed * (d_normed * normed).mean(-1, keepdim=True)) * inverse
    return d_x, d_x.to(grad.dtype)


def forward(x: Tensor, scale: Tensor) -> Tensor:
    """`activate` without a gradient."""
    return norm_silu(wide(x), scale).to(x.dtype)


def backward(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """To x and to scale [n]."""
    slope, normed, inverse = norm_slopes(wide(x), scale)
    d_n = slope.mul_(grad)
    d_scale = (d_n * normed).flatten(0, -2).sum(0)
    d_normed = d_n.mul_(scale)
    mean = (d_normed * normed).mean(-1, keepdim=True)
    return d_normed.sub_(normed.mul_(mean)).mul_(inverse).to(x.dtype), d_scale


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return for_device(forward, x.device.type, x.shape[-1])(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return for_device(backward, x.device.type, x.shape[-1])(grad, x, scale)
