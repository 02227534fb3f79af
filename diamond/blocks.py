"""Layers that the three networks are made of. B batch, C channels, H rows, W columns, K conditioning numbers.

Parameter names are those of the authors' checkpoints.
Source: paper, Appendix B; reference code: blocks.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP_CHANNELS = 32
HEAD_CHANNELS = 8
EPS = 1e-5


def groups_of(channels: int) -> int:
    """Groups of a group norm: one for every 32 channels, at least one."""
    return max(1, channels // GROUP_CHANNELS)


def conv3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps rows and columns, or halves them with stride 2."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)


class GroupNorm(nn.Module):
    """Affine group norm of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups_of(channels), channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and shift are linear in the conditioning: x [B, C, H, W], cond [B, K]."""

    def __init__(self, channels: int, cond_size: int) -> None:
        super().__init__()
        self.groups = groups_of(channels)
        self.linear = nn.Linear(cond_size, 2 * channels)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.linear(cond)[:, :, None, None].chunk(2, dim=1)
        # norm * (1 + scale) + shift, in one pass over the frame
        return torch.addcmul(shift, F.group_norm(x, self.groups, eps=EPS), 1 + scale)


class Attention(nn.Module):
    """Self-attention over the H*W positions, heads of 8 channels.

    What is added is the normalised input, not the input: with its last layer at zero the block is a group norm.
    Reference code; almost every other attention block adds the input itself.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_CHANNELS)
        self.norm = GroupNorm(channels)
        self.qkv_proj = nn.Conv2d(channels, 3 * channels, 1)
        self.out_proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        # [B, 3C, H, W] → 3 x [B, heads, H*W, C/heads]; all heads' queries come first, then keys, then values
        q, k, v = self.qkv_proj(x).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out_proj(attended.transpose(-1, -2).reshape(x.shape))


class ResBlock(nn.Module):
    """Two convolutions, each behind an adaptive norm and SiLU, around a skip; attention after it if wanted."""

    def __init__(self, channels_in: int, channels_out: int, cond_size: int, *, has_attention: bool) -> None:
        super().__init__()
        is_same = channels_in == channels_out
        self.proj = nn.Identity() if is_same else nn.Conv2d(channels_in, channels_out, 1)
        self.norm1 = AdaptiveGroupNorm(channels_in, cond_size)
        self.conv1 = conv3(channels_in, channels_out)
        self.norm2 = AdaptiveGroupNorm(channels_out, cond_size)
        self.conv2 = conv3(channels_out, channels_out)
        self.attn = Attention(channels_out) if has_attention else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, cond)))
        h = self.conv2(F.silu(self.norm2(h, cond)))
        return self.attn(self.proj(x) + h)


class SmallResBlock(nn.Module):
    """One convolution behind a group norm and SiLU, around a skip; the policy's encoder is made of these."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        is_same = channels_in == channels_out
        self.f = nn.Sequential(GroupNorm(channels_in), nn.SiLU(), conv3(channels_in, channels_out))
        self.skip_projection = nn.Identity() if is_same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_projection(x) + self.f(x)


class Downsample(nn.Module):
    """Halves rows and columns by a convolution of stride 2, orthogonal at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels, stride=2)
        nn.init.orthogonal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles rows and columns by repeating them, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Fourier(nn.Module):
    """Random Fourier features of a number: [B] → [B, size], cosines first. The frequencies are never trained."""

    weight: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"Fourier features come in pairs, so their number is even, not {size}")
        self.register_buffer("weight", torch.randn(1, size // 2))

    def forward(self, x: Tensor) -> Tensor:
        f = 2 * math.pi * x[:, None] @ self.weight
        return torch.cat([f.cos(), f.sin()], dim=-1)
