"""The vision transformer of V-JEPA and V-JEPA 2: tubelets, positions on three axes, pre-norm blocks, no class token.

Shapes: B clips, C channels, F frames of H x W pixels, U frames and P pixels a tubelet, T x R x S tubelets (time, row,
column), N = T*R*S tokens, K kept tokens, D width, h width of a head. Token index = (t*R + row)*S + column. Parameter
names are those of the official checkpoints.
Source: V-JEPA, section 3 and appendix C; V-JEPA 2, section 2; reference code: src/models/vision_transformer.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
INIT_STD = 0.02
BASE = 10000.0  # of the frequencies of both kinds of positions
POSITIONS = ("sincos", "rotary")  # V-JEPA, V-JEPA 2

Grid = tuple[int, int, int]


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
    "giant": Size(1408, 40, 22, 6144),  # "vit_giant_xformers" of the released models; 16 heads are another network
}


# --- positions of V-JEPA: a table that is added -----------------------------------------------------------------------


def position_table(widths: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    """The fixed sine-cosine table [prod(grid), sum(widths)], float64, of a grid of any number of axes.

    Axis a has `widths[a]` channels, in the order of the axes: the sines of position * w_i, then the cosines, with
    w_i = 10000^(-i / (width/2)). Raises ValueError if a width is odd.
    Source: reference code: src/models/utils/pos_embs.py; I-JEPA's table has the column first.
    """
    odd = [width for width in widths if width % 2]
    if odd:
        raise ValueError(f"the position table needs an even width for each axis, not {odd[0]}")
    parts = []
    for width, places in zip(widths, np.indices(grid).reshape(len(grid), -1), strict=True):
        angles = places[:, None] * BASE ** (-np.arange(width // 2) / (width / 2))
        parts += [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts, axis=1)


def video_table(width: int, grid: Grid) -> np.ndarray:
    """The table of the released models, [T*R*S, width] float64: 2*ceil(width/6) channels an axis, cut to `width`.

    The column loses what is cut. Source: reference code ("uniform power").
    """
    return position_table([2 * math.ceil(width / 6)] * 3, grid)[:, :width]


def resized_table(table: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """A table [1, T*R*S, D] of one grid for another one, trilinear: [1, T'*R'*S', D]."""
    volume = table.unflatten(1, grid).permute(0, 4, 1, 2, 3)
    return F.interpolate(volume, wanted, mode="trilinear").flatten(2).transpose(1, 2)


# --- positions of V-JEPA 2: rotations of queries and keys -------------------------------------------------------------


class Rotation(NamedTuple):
    """Cosines and sines for the first n channels of a head; each [..., N, n]."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Rotation:
    """The rotation of one axis: positions [..., N] of tokens along it, `width` n of the axis' channels -> [..., N, n].

    Channel i and channel i + n/2 have the angle position * 10000^(-i / (n/2)). dtype: of what is to be rotated; the
    angles of halves are float32 all the same.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    frequencies = BASE ** (-torch.arange(width // 2, dtype=dtype, device=positions.device) / (width / 2))
    angles = (positions[..., None] * frequencies).repeat(*[1] * positions.ndim, 2)
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x [..., N, h] with its first n channels rotated, the others as they are.

    Channels 2i and 2i + 1 are a pair, but their angles differ: `rotation` lays the angles out in two halves. Hence this
    is no true rotation. The released weights were trained with it. Source: reference code: src/models/utils/modules.py.
    """
    width = by.cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    across = torch.stack([-odd, even], -1).flatten(-2)
    return torch.cat([(turned * by.cos + across * by.sin).to(x.dtype), rest], -1)


def axis_width(head: int) -> int:
    """Channels n that each of the three axes has in a head of width h: 2 * ((h // 3) // 2).

    Raises ValueError if the head is too narrow for positions.
    """
    if head < 12:
        raise ValueError(f"rotary positions need heads of at least 12 channels, not {head}")
    return 2 * (head // 3 // 2)


def video_rotation(places: Tensor, head: int, dtype: torch.dtype = torch.float32) -> Rotation:
    """places [..., N, 3] (time, row, column) -> the rotation of a head of width h, [..., 1, N, 3n]: all heads share it.

    A token with row and column 0 is rotated by its time alone. dtype: as in `rotation`.
    Raises ValueError if the head is too narrow.
    """
    axes = [rotation(places[..., k], axis_width(head), dtype) for k in range(3)]
    cos, sin = (torch.cat(parts, -1).unsqueeze(-3) for parts in zip(*axes, strict=True))
    return Rotation(cos, sin)


def places_of(tokens: Tensor, grid: Grid) -> Tensor:
    """Token numbers [...] -> their time, row and column on the grid, [..., 3]."""
    _, rows, columns = grid
    return torch.stack([tokens // (rows * columns), tokens // columns % rows, tokens % columns], -1)


# --- the network ------------------------------------------------------------------------------------------------------


def tubelet_grid(frames: int, height: int, width: int, tubelet: int, patch: int) -> Grid:
    """Tubelets in time, rows and columns. Raises ValueError if tubelets do not fill the clip."""
    if height % patch or width % patch or not height or not width:
        raise ValueError(f"a frame of {height} x {width} pixels is no whole number of patches of {patch} x {patch}")
    if frames % tubelet or not frames:
        raise ValueError(f"a clip of {frames} frames is no whole number of tubelets of {tubelet}")
    return frames // tubelet, height // patch, width // patch


def gather_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """tokens [B or 1, N, D] at a mask [B, K] of token numbers, integers of any size -> [B, K, D]."""
    return tokens.expand(len(mask), -1, -1).gather(1, mask.long()[..., None].expand(-1, -1, tokens.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention with scale h^-0.5."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, by: Rotation | None = None, mask: Tensor | None = None, last: int | None = None
    ) -> Tensor:
        """x [B, N, D] -> [B, N, D]; with `last`, the last so many tokens [B, last, D]: only they ask, all answer.

        by: the rotation of queries and keys, [B or 1, 1, N, 3n]. mask [N, N] bool: True where the row's token may
        attend to the column's (with `last`, the rows of those).
        """
        if last is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, h]
        else:
            width = x.shape[-1]
            (wq, wkv), (bq, bkv) = (part.split((width, 2 * width)) for part in (self.qkv.weight, self.qkv.bias))
            q = F.linear(x[:, -last:], wq, bq).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = F.linear(x, wkv, bkv).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if by is not None:
            asking = by if last is None else Rotation(by.cos[..., -last:, :], by.sin[..., -last:, :])
            q, k = rotate(q, asking), rotate(k, by)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


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

    def __init__(self, width: int, heads: int, hidden: int, eps: float = NORM_EPS) -> None:
        """eps: of the layer norms; attentive probes have another."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden)

    def forward(
        self, x: Tensor, by: Rotation | None = None, mask: Tensor | None = None, last: int | None = None
    ) -> Tensor:
        """x [B, N, D] -> [B, N, D], or the last so many tokens of that for the price of those; see `Attention`."""
        asking = x if last is None else x[:, -last:]
        x = asking + self.attn(self.norm1(x), by, mask, last)
        return x + self.mlp(self.norm2(x))


class TubeletEmbedding(nn.Module):
    """A convolution whose stride is its kernel: one matrix product on flattened tubelets."""

    def __init__(self, channels: int, tubelet: int, patch: int, width: int) -> None:
        super().__init__()
        self.tubelet, self.patch = tubelet, patch
        self.proj = nn.Conv3d(channels, width, (tubelet, patch, patch), stride=(tubelet, patch, patch))

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Tensor:
        """clips [B, C, F, H, W] -> tokens [B, N, D]; with a mask [B, K], of the kept tubelets alone: [B, K, D]."""
        x = tubelets(clips, self.tubelet, self.patch)
        if mask is not None:
            x = gather_tokens(x, mask)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


def tubelets(clips: Tensor, tubelet: int, patch: int) -> Tensor:
    """The pixels of each tubelet: clips [B, C, F, H, W] -> [B, N, C*U*P*P]. Raises ValueError if they do not fit."""
    b, c, frames, height, width = clips.shape
    t, r, s = tubelet_grid(frames, height, width, tubelet, patch)
    x = clips.reshape(b, c, t, tubelet, r, patch, s, patch).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(b, t * r * s, -1)  # [B, T, R, S, C, U, P, P] -> [B, N, C*U*P*P]


class VideoTransformer(nn.Module):
    """The encoder. The table `pos_embed` of "sincos" positions is a buffer: fixed, but part of the official files."""

    pos_embed: Tensor

    def __init__(
        self, clip: tuple[int, int, int], channels: int, tubelet: int, patch: int, size: Size, positions: str
    ) -> None:
        """clip: frames, height and width in pixels; positions: one of POSITIONS.

        Raises ValueError if tubelets do not fill the clip, or heads are too narrow for rotary positions.
        """
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions are {' or '.join(POSITIONS)}, not {positions!r}")
        self.size, self.channels, self.clip, self.positions = size, channels, clip, positions
        self.tubelet, self.patch = tubelet, patch
        self.grid = tubelet_grid(*clip, tubelet, patch)
        self.patch_embed = TubeletEmbedding(channels, tubelet, patch, size.width)
        if positions == "sincos":
            self.register_buffer("pos_embed", torch.from_numpy(video_table(size.width, self.grid)).float()[None])
        else:
            axis_width(size.width // size.heads)
        self.blocks = nn.ModuleList(Block(size.width, size.heads, size.hidden) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=NORM_EPS)

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Tensor:
        """clips [B, C, F, H, W], normalised -> [B, N, D] after the final norm; with a mask [B, K], [B, K, D] instead.

        The kept tokens know their places on the full grid and see each other only. A clip may have other sides than the
        encoder was built for: rotary positions go on counting, a table is resized.
        Raises ValueError if tubelets do not fill the clips.
        """
        x, by = self.embed(clips, mask)
        for block in self.blocks:
            x = block(x, by)
        return self.norm(x)

    def layers(self, clips: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Outputs of the blocks with these numbers, from 0, on full clips, each [B, N, D] after the final norm.

        Raises ValueError if there is no such block.
        """
        absent = [number for number in numbers if not 0 <= number < len(self.blocks)]
        if absent:
            raise ValueError(f"an encoder of {len(self.blocks)} blocks has no block {absent[0]}")
        x, by = self.embed(clips)
        outputs = {}
        for k, block in enumerate(self.blocks):
            x = block(x, by)
            if k in numbers:
                outputs[k] = self.norm(x)
        return [outputs[number] for number in numbers]

    def embed(self, clips: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Rotation | None]:
        """What the blocks get: tokens [B, N or K, D], with their positions added or beside them as a rotation."""
        if clips.ndim != 5 or clips.shape[1] != self.channels:
            raise ValueError(f"clips: expected [B, {self.channels}, F, H, W], got {list(clips.shape)}")
        frames, height, width = clips.shape[2:]
        grid = tubelet_grid(frames, height, width, self.tubelet, self.patch)
        x = self.patch_embed(clips, mask)
        if self.positions == "sincos":
            table = self.pos_embed if grid == self.grid else resized_table(self.pos_embed, self.grid, grid)
            return x + (table if mask is None else gather_tokens(table, mask)), None
        tokens = torch.arange(math.prod(grid), device=clips.device)[None] if mask is None else mask
        return x, video_rotation(places_of(tokens, grid), self.size.width // self.size.heads, x.dtype)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator, scaled: Sequence[nn.Module] = ()) -> None:
    """What the released trainings start from: weights normal with std 0.02, biases 0, norms 1 and 0.

    scaled: the blocks of V-JEPA 2, whose layers attn.proj and mlp.fc2 are divided by sqrt(2 l) in block l = 1, 2, ...
    V-JEPA's class does so too, but its training then draws all layers anew without it. Consumes `generator`.
    Source: reference code: src/models/vision_transformer.py, app/vjepa/utils.py.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(part.weight, std=INIT_STD, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    for number, block in enumerate(scaled, start=1):
        assert isinstance(block, Block)
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.div_(math.sqrt(2 * number))
