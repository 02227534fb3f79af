"""The U-Net of the denoiser: residual blocks on several scales, every level's outputs kept for the way back.

Source: paper, Appendix B; reference code: blocks.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diamond.blocks import Downsample, ResBlock, Upsample


class ResBlocks(nn.Module):
    """Residual blocks in a row, from channels_in[k] to channels_out[k]."""

    def __init__(
        self, channels_in: Sequence[int], channels_out: Sequence[int], cond_size: int, *, has_attention: bool
    ) -> None:
        super().__init__()
        pairs = zip(channels_in, channels_out, strict=True)
        self.resblocks = nn.ModuleList(ResBlock(a, b, cond_size, has_attention=has_attention) for a, b in pairs)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x, cond)
        return x

    def outputs(self, x: Tensor, cond: Tensor) -> list[Tensor]:
        """x and what each block makes of it, in order."""
        found = [x]
        for block in self.resblocks:
            found.append(block(found[-1], cond))
        return found

    def join(self, x: Tensor, skips: Sequence[Tensor], cond: Tensor) -> Tensor:
        """Before each block one skip is laid behind x, the last one first."""
        for block, skip in zip(self.resblocks, reversed(skips), strict=True):
            x = block(torch.cat([x, skip], dim=1), cond)
        return x


class UNet(nn.Module):
    """[B, C_0, H, W] and cond [B, K] → [B, C_0, H, W], for any H and W.

    channels, depths and attention have an entry per level, the finest first; the two blocks in the middle always have
    attention. `d_blocks[i]` is level i, `u_blocks[j]` counts from the deepest.
    """

    def __init__(
        self, cond_size: int, channels: Sequence[int], depths: Sequence[int], attention: Sequence[bool]
    ) -> None:
        super().__init__()
        if not len(channels) == len(depths) == len(attention):
            raise ValueError(
                f"{len(channels)} levels by channels, {len(depths)} by depths, {len(attention)} by attention"
            )
        above = [channels[0], *channels[:-1]]
        down, up = [], []
        for c1, c2, depth, has_attention in zip(above, channels, depths, attention, strict=True):
            sizes = [c1] + [c2] * (depth - 1), [c2] * depth
            down.append(ResBlocks(*sizes, cond_size, has_attention=has_attention))
            sizes = [2 * c2] * depth + [c1 + c2], [c2] * depth + [c1]
            up.append(ResBlocks(*sizes, cond_size, has_attention=has_attention))
        self.d_blocks = nn.ModuleList(down)
        self.mid_blocks = ResBlocks([channels[-1]] * 2, [channels[-1]] * 2, cond_size, has_attention=True)
        self.u_blocks = nn.ModuleList(reversed(up))
        self.downsamples = nn.ModuleList([nn.Identity(), *(Downsample(c) for c in channels[:-1])])
        self.upsamples = nn.ModuleList([nn.Identity(), *(Upsample(c) for c in reversed(channels[:-1]))])

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        multiple = 2 ** (len(self.d_blocks) - 1)
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple))
        kept = []
        for shrink, level in zip(self.downsamples, self.d_blocks, strict=True):
            kept.append(level.outputs(shrink(x), cond))  # type: ignore[operator]
            x = kept[-1][-1]
        x = self.mid_blocks(x, cond)
        for grow, level, skips in zip(self.upsamples, self.u_blocks, reversed(kept), strict=True):
            x = level.join(grow(x), skips, cond)  # type: ignore[operator]
        return x[..., :height, :width]
