"""The vision transformer of I-JEPA: patches, a fixed position table, pre-norm blocks, no class token.

Shapes: B images, C channels, H x W pixels, P patch side, R x S patches, N = R*S tokens, K kept tokens, D width.
Token index = row * S + column. Parameter names are those of the official checkpoints.
Source: paper, section 3 and appendix A.1; reference code: src/models/vision_transformer.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
INIT_STD = 0.02


@dataclass(frozen=True)
class Size:
    """Width D, number of blocks, attention heads, hidden units of the MLP."""

    width: int
    depth: int
    heads: int
    hidden: int


SIZES = {
    "pico": Size(64, 3, 4, 256),  # pico and nano are ours, for two CPU cores
    "nano": Size(128, 4, 4, 512),
    "tiny": Size(192, 12, 3, 768),
    "small": Size(384, 12, 6, 1536),
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "huge": Size(1280, 32, 16, 5120),
    "giant": Size(1408, 40, 16, 6144),
}


def position_table(width: int, rows: int, columns: int) -> np.ndarray:
    """The fixed sine-cosine table [rows*columns, width], float64.

    Channels [0, width/2) encode the column, the rest the row; each half holds the sines of position * w_i, then the
    cosines, with w_i = 10000^(-i / (width/4)). Raises ValueError if width is no multiple of 4.
    Source: reference code; V-JEPA's table has the row first.
    """
    if width % 4:
        raise ValueError(f"the position table needs a width that 4 divides, not {width}")
    w = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = [position[:, None] * w for position in (column, row)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)


def resized_table(table: Tensor, rows: int, columns: int) -> Tensor:
    """A position table [1, G*G, D] of a square grid for another one, bicubic: [1, rows*columns, D]. Deviation D12.

    The places of a network's own grid are kept, its patches becoming smaller or larger: a table calculated for the new
    grid would hold places that the network has never met. Raises ValueError if the table is of no square grid.
    """
    side = math.isqrt(table.shape[1])
    if side**2 != table.shape[1]:
        raise ValueError(f"a position table of {table.shape[1]} places is of no square grid")
    grid = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.interpolate(grid, (rows, columns), mode="bicubic").flatten(2).transpose(1, 2)


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches. Raises ValueError if the patch does not divide both sides."""
    if height % patch or width % patch:
        raise ValueError(f"an image of {height} x {width} pixels is no whole number of patches of {patch} x {patch}")
    return height // patch, width // patch


def gather_tokens(tokens: Tensor, masks: list[Tensor]) -> Tensor:
    """tokens [B, N, D] at each mask [B, K] of indices -> [len(masks)*B, K, D], mask by mask."""
    return torch.cat([tokens.gather(1, mask[..., None].expand(-1, -1, tokens.shape[-1])) for mask in masks])


class Attention(nn.Module):
    """Multi-head self-attention with scale (D / heads)^-0.5."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, D/heads]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def last(self, x: Tensor, count: int) -> Tensor:
        """The last `count` tokens of forward(x), [B, count, D]: only they ask, all answer."""
        (wq, wkv), (bq, bkv) = (part.split((x.shape[-1], 2 * x.shape[-1])) for part in (self.qkv.weight, self.qkv.bias))
        q = F.linear(x[:, -count:], wq, bq).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = F.linear(x, wkv, bkv).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with the exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def last(self, x: Tensor, count: int) -> Tensor:
        """The last `count` tokens of forward(x), [B, count, D], for the price of those."""
        x = x[:, -count:] + self.attn.last(self.norm1(x), count)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel: one matrix product on flattened patches."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] -> tokens [B, N, D]."""
        x = F.pixel_unshuffle(images, self.patch).flatten(2).transpose(1, 2)  # [B, C*P*P, R, S] -> [B, N, C*P*P]
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """The encoder. `pos_embed` is a buffer: it is fixed, but part of the official files."""

    pos_embed: Tensor

    def __init__(self, height: int, width: int, channels: int, patch: int, size: Size) -> None:
        """height, width: of the images, in pixels. Raises ValueError if they are no whole number of patches."""
        super().__init__()
        self.size, self.patch = size, patch
        self.image_shape = channels, height, width
        self.grid = patch_grid(height, width, patch)
        self.patch_embed = PatchEmbedding(channels, patch, size.width)
        table = torch.from_numpy(position_table(size.width, *self.grid)).float()
        self.register_buffer("pos_embed", table[None])
        self.blocks = nn.ModuleList(Block(size.width, size.heads, size.hidden) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS)

    def embed(self, images: Tensor) -> Tensor:
        """images [B, C, H, W], normalised -> tokens with their positions [B, N, D]."""
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise ValueError(f"images: expected [B, {', '.join(map(str, self.image_shape))}], got {list(images.shape)}")
        return self.patch_embed(images) + self.pos_embed

    def forward(self, images: Tensor, masks: list[Tensor] | None = None) -> Tensor:
        """images [B, C, H, W] -> [B, N, D] after the final norm; with masks [B, K], [len(masks)*B, K, D] instead.

        The kept tokens know their places on the full grid and see each other only.
        """
        x = self.embed(images)
        if masks is not None:
            x = gather_tokens(x, masks)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def layers(self, images: Tensor, count: int) -> list[Tensor]:
        """Outputs of the last `count` blocks on full images, each [B, N, D] after the final norm.

        Raises ValueError if there are not so many.
        """
        if not 1 <= count <= len(self.blocks):
            raise ValueError(f"the last {count} blocks of an encoder of {len(self.blocks)}")
        x, outputs = self.embed(images), []
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k >= len(self.blocks) - count:
                outputs.append(self.norm(x))
        return outputs


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """What the released training starts from: weights normal with std 0.02 (cut at +-2), biases 0, norms 1 and 0.

    The official class divides the last layer of block l by sqrt(2 l), but its training then draws all layers anew
    without the division. Consumes `generator`. Source: reference code: src/helper.py.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=INIT_STD, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
