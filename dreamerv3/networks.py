"""Layers, the encoder and the decoder, in both editions.

Shapes: [...] leading axes, N their product, g blocks, H x W x C an image, E tokens, D deter, S x K stoch.
"Layer" in the paper's sense is Linear with bias, RMSNorm, SiLU.
Source: paper, Methods and "Implementation"; reference code: rssm.py, nets.py (2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamerv3.distributions import squared_error, symlog, wide
from dreamerv3.spaces import Edition, Obs, ObsSpaces, Sizes

NORM_EPS = 1e-4
KERNEL = 5
VECTOR_LAYERS = 3
TRUNCATED_STD = 1.1368  # makes the standard deviation of a normal cut at +-2 one again


def init_kernel_(kernel: Tensor, fan_in: int, scale: float = 1.0) -> Tensor:
    """Truncated normal with standard deviation scale / sqrt(fan_in), in place, from torch's global generator."""
    if scale == 0:
        return nn.init.zeros_(kernel)
    std = TRUNCATED_STD * scale / math.sqrt(fan_in)
    return nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x / sqrt(mean x^2 + 1e-4) * scale over the last axis, computed in float32 at least."""
    full = wide(x)
    normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + NORM_EPS)
    return (normed * scale).to(x.dtype)


def norm_silu(x: Tensor, scale: Tensor) -> Tensor:
    """silu(RMSNorm(x)); layers_fast.py has a form for throughput."""
    return F.silu(rms_norm(x, scale))


class RMSNorm(nn.Module):
    """`rms_norm` with its scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class Linear(nn.Module):
    """x W^T + b, with the reference code's initialisation. `scale` 0 gives a layer whose output is zero at first."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(init_kernel_(torch.empty(outputs, inputs), inputs, scale))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class BlockLinear(nn.Module):
    """A block-diagonal Linear: `blocks` independent layers on as many equal parts of the last axis.

    weight [g, in / g, out / g]. The fan-in of the initialisation is the full input width, so that a block layer starts
    with output variance 1 / g: reference code, nets.py.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"block layer {inputs} -> {outputs}: not divisible into {blocks} blocks")
        self.blocks = blocks
        self.weight = nn.Parameter(init_kernel_(torch.empty(blocks, inputs // blocks, outputs // blocks), inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(-1, self.blocks, self.weight.shape[1]).transpose(0, 1)  # [g, N, in / g]
        out = torch.bmm(parts, self.weight).transpose(0, 1)  # [N, g, out / g]
        return out.reshape(*x.shape[:-1], -1) + self.bias


class Layer(nn.Module):
    """Linear, RMSNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.norm = RMSNorm(outputs)
        self.activate = norm_silu

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.linear(x), self.norm.scale)


class Layers(nn.Module):
    """`count` Layers of `units` one after another."""

    def __init__(self, inputs: int, units: int, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Layer(units if k else inputs, units) for k in range(count))

    def __iter__(self) -> Iterator[Layer]:
        return (cast(Layer, part) for part in self.parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class MLP(nn.Module):
    """`layers` Layers of `units`, then one Linear of `outputs` numbers at initial scale `scale`.

    With `is_even` an odd number of outputs has one more column, computed and dropped (arXiv edition).
    """

    def __init__(
        self, inputs: int, units: int, layers: int, outputs: int, *, scale: float, is_even: bool = False
    ) -> None:
        super().__init__()
        self.layers = Layers(inputs, units, layers)
        self.outputs = outputs
        self.out = Linear(units, outputs + (outputs % 2 if is_even else 0), scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))[..., : self.outputs]


# --- images -----------------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """A 5 x 5 convolution on [N, C, H, W] with stride 1, or 2 as TensorFlow's SAME pads it: out = ceil(in / 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        kernel = torch.empty(outputs, inputs, KERNEL, KERNEL)
        self.weight = nn.Parameter(init_kernel_(kernel, inputs * KERNEL**2))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return F.conv2d(x, self.weight, self.bias, padding=KERNEL // 2)
        # An even size has one pixel before and two after; a symmetric padding would be another, shifted network.
        top, left = (2 - (1 - size % 2) for size in x.shape[-2:])
        return F.conv2d(F.pad(x, (left, 2, top, 2)), self.weight, self.bias, stride=2)


class UpConv(nn.Module):
    """A 5 x 5 transposed convolution of stride 2 on [N, C, H, W] -> [N, outputs, 2H, 2W].

    The reference code puts one zero between neighbouring pixels, pads 3 before and 2 after and correlates; its kernel
    is ours flipped in both spatial axes.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        kernel = torch.empty(inputs, outputs, KERNEL, KERNEL)
        self.weight = nn.Parameter(init_kernel_(kernel, inputs * KERNEL**2))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)[..., :-1, :-1]


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of each pixel of [N, C, H, W], then SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class ImageEncoder(nn.Module):
    """Images [..., H, W, C] uint8 -> tokens [..., E], the innermost map flattened in H, W, C order."""

    def __init__(self, shape: tuple[int, int, int], depth: int, edition: Edition) -> None:
        super().__init__()
        height, width, channels = shape
        if height % 2**edition.halvings or width % 2**edition.halvings:
            raise ValueError(f"image {height} x {width}: both must be divisible by {2**edition.halvings}")
        widths = [channels, *(depth * mult for mult in edition.mults)]
        strides = [2 if edition.is_strided and k else 1 for k in range(len(edition.mults))]
        self.is_strided = edition.is_strided
        self.convs = nn.ModuleList(map(Conv, widths, widths[1:], strides))
        self.norms = nn.ModuleList(map(ChannelNorm, widths[1:]))
        self.outputs = (height >> edition.halvings) * (width >> edition.halvings) * widths[-1]

    def forward(self, image: Tensor) -> Tensor:
        leading = image.shape[:-3]
        dtype = next(self.parameters()).dtype
        x = (image.flatten(0, -4).to(dtype) / 255 - 0.5).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            if not self.is_strided:
                x = F.max_pool2d(x, 2)  # before the norm. Deviation D14: the Nature text has strided convolutions
            x = norm(x)
        return x.permute(0, 2, 3, 1).reshape(*leading, -1)


class ImageDecoder(nn.Module):
    """h [..., D], z [..., S * K] -> images [..., H, W, C] in [0, 1]."""

    def __init__(self, shape: tuple[int, int, int], sizes: Sizes, edition: Edition) -> None:
        super().__init__()
        height, width, channels = shape
        self.inner = (height >> edition.halvings, width >> edition.halvings, edition.mults[-1] * sizes.depth)
        self.blocks, self.is_strided = sizes.blocks, edition.is_strided
        pixels = self.inner[0] * self.inner[1] * self.inner[2]
        self.from_deter = BlockLinear(sizes.deter, pixels, sizes.blocks)
        self.from_stoch = nn.Sequential(
            Layer(sizes.stoch * sizes.classes, 2 * sizes.units), Linear(2 * sizes.units, pixels)
        )
        self.inner_norm = ChannelNorm(self.inner[2])
        widths = [depth * sizes.depth for depth in reversed(edition.mults)]
        stage = UpConv if edition.is_strided else Conv
        self.convs = nn.ModuleList(map(stage, widths, widths[1:]))
        self.norms = nn.ModuleList(map(ChannelNorm, widths[1:]))
        self.out = Conv(widths[-1], channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        height, width, channels = self.inner
        leading, h, z = h.shape[:-1], h.flatten(0, -2), z.flatten(0, -2)
        # [N, (g, H, W, C / g)] -> [N, (g, C / g), H, W]
        spatial = self.from_deter(h).unflatten(-1, (self.blocks, height, width, channels // self.blocks))
        spatial = spatial.permute(0, 1, 4, 2, 3).flatten(1, 2)
        x = self.inner_norm(spatial + self.from_stoch(z).unflatten(-1, self.inner).permute(0, 3, 1, 2))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x if self.is_strided else F.interpolate(x, scale_factor=2.0)))
        x = self.out(x if self.is_strided else F.interpolate(x, scale_factor=2.0))
        return torch.sigmoid(wide(x)).permute(0, 2, 3, 1).reshape(*leading, *x.shape[2:], -1)


# --- any observation --------------------------------------------------------------------------------------------------


def keys_of(spaces: ObsSpaces, edition: Edition, *kinds: str) -> list[str]:
    """Names of the observations of these kinds, in the order in which they are concatenated."""
    names = [name for name, space in spaces.items() if space.kind in kinds]
    return sorted(names) if edition.has_sorted_keys else names


def module_name(name: str) -> str:
    """The name of an observation as torch takes it for a module: no dots, and no attribute of a module like "type"."""
    safe = name.replace("%", "%25").replace(".", "%2E")
    return f"%{safe}" if not safe or hasattr(nn.ModuleDict(), safe) else safe


class Encoder(nn.Module):
    """Observations -> tokens [..., E]: [vector branch, image branch].

    Vectors: floats in symlog, integers one-hot, concatenated, 3 Layers. Images are concatenated along their channels.
    `use_symlog` False is a control.
    """

    def __init__(self, spaces: ObsSpaces, sizes: Sizes, edition: Edition, *, use_symlog: bool = True) -> None:
        super().__init__()
        self.spaces, self.edition = dict(spaces), edition
        self.squash = symlog if use_symlog else torch.clone
        self.vectors = keys_of(spaces, edition, "float", "discrete")
        self.images = keys_of(spaces, edition, "image")
        self.outputs = 0
        if self.vectors:
            width = sum(spaces[name].size for name in self.vectors)
            self.vector_layers = Layers(width, sizes.units, VECTOR_LAYERS)
            self.outputs += sizes.units
        if self.images:
            height, width = spaces[self.images[0]].shape[:2]
            channels = sum(spaces[name].shape[2] for name in self.images)
            self.image = ImageEncoder((height, width, channels), sizes.depth, edition)
            self.outputs += self.image.outputs

    def forward(self, obs: Obs) -> Tensor:
        tokens = []
        if self.vectors:
            tokens.append(self.vector_layers(self.vector(obs)))
        if self.images:
            tokens.append(self.image(torch.cat([obs[name] for name in self.images], -1)))
        return torch.cat(tokens, -1)

    def vector(self, obs: Obs) -> Tensor:
        """All vector observations as one [..., n], squashed."""
        dtype, parts = next(self.vector_layers.parameters()).dtype, []
        for name in self.vectors:
            space, value = self.spaces[name], obs[name]
            if space.kind == "discrete":
                one_hot = F.one_hot(value.long(), space.classes).to(dtype)
                parts.append(self.squash(one_hot) if self.edition.squashes_one_hot else one_hot)
            else:
                parts.append(self.squash(value.to(dtype).reshape(*value.shape[: value.ndim - len(space.shape)], -1)))
        return torch.cat(parts, -1)


class Decoder(nn.Module):
    """h [..., D], z [..., S, K] -> a prediction for every observation: float vectors in symlog space, logits of
    integers, images in [0, 1]. `use_symlog` False is a control: float vectors as they are."""

    def __init__(self, spaces: ObsSpaces, sizes: Sizes, edition: Edition, *, use_symlog: bool = True) -> None:
        super().__init__()
        self.spaces, self.edition = dict(spaces), edition
        self.squash = symlog if use_symlog else torch.clone
        self.vectors = keys_of(spaces, edition, "float", "discrete")
        self.images = keys_of(spaces, edition, "image")
        if self.vectors:
            self.vector_layers = Layers(sizes.feature, sizes.units, VECTOR_LAYERS)
            self.outs = nn.ModuleDict()
            for name in self.vectors:
                space = spaces[name]
                extra = int(edition.has_even_outputs and space.kind == "discrete" and space.size % 2)
                self.outs[module_name(name)] = Linear(sizes.units, space.size + extra, edition.vector_output_scale)
        if self.images:
            height, width = spaces[self.images[0]].shape[:2]
            channels = sum(spaces[name].shape[2] for name in self.images)
            self.image = ImageDecoder((height, width, channels), sizes, edition)

    def forward(self, h: Tensor, z: Tensor) -> dict[str, Tensor]:
        z = z.flatten(-2)
        found: dict[str, Tensor] = {}
        if self.vectors:
            first = [h, z] if self.edition.vectors_from_deter_first else [z, h]
            x = self.vector_layers(torch.cat(first, -1))
            for name in self.vectors:
                found[name] = wide(self.outs[module_name(name)](x)[..., : self.spaces[name].size])
        if self.images:
            parts = self.image(h, z).split([self.spaces[name].shape[2] for name in self.images], -1)
            found |= dict(zip(self.images, parts, strict=True))
        return found

    def losses(self, predictions: Mapping[str, Tensor], obs: Obs) -> dict[str, Tensor]:
        """One loss per observation, summed over its numbers: [...] each.

        Images: squared error against x / 255, no half. Float vectors: squared error in symlog space. Integers:
        cross-entropy in nats. Source: paper, Eq. 4 and 8.
        """
        found = {}
        for name, prediction in predictions.items():
            space, target = self.spaces[name], obs[name]
            if space.kind == "image":
                found[name] = (prediction - target.to(prediction.dtype) / 255).square().sum((-3, -2, -1))
            elif space.kind == "float":
                flat = target.to(prediction.dtype).reshape(prediction.shape)
                found[name] = squared_error(prediction, self.squash(flat), self.edition.error_tolerance)
            else:
                log_probs = torch.log_softmax(prediction, -1)
                found[name] = -log_probs.gather(-1, target.long()[..., None]).squeeze(-1)
        return found
