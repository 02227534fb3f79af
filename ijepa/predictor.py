"""The predictor: from context tokens and the places of a target block to the target's tokens.

Shapes: B images, E context masks, M target masks, Kc and Kt patches of a context and a target, D encoder width, Q own
width. Parameter names are those of the official checkpoints.
Source: paper, section 3 ("Prediction") and appendix A.1; reference code: src/models/vision_transformer.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ijepa.vit import INIT_STD, NORM_EPS, Block, gather_tokens, initialise, position_table


class Predictor(nn.Module):
    """A narrow transformer; target patches enter as one shared learned token plus their positions."""

    predictor_pos_embed: Tensor

    def __init__(
        self, grid: tuple[int, int], width: int, own_width: int, depth: int, heads: int, output: int | None = None
    ) -> None:
        """grid: rows and columns of patches; width: D; own_width: Q, which 4 and `heads` must divide.

        output: numbers predicted for a patch, D unless pixels are the targets.
        """
        super().__init__()
        self.predictor_embed = nn.Linear(width, own_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, own_width))
        table = torch.from_numpy(position_table(own_width, *grid)).float()
        self.register_buffer("predictor_pos_embed", table[None])
        self.predictor_blocks = nn.ModuleList(Block(own_width, heads, 4 * own_width) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(own_width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(own_width, width if output is None else output)

    def forward(self, context: Tensor, context_masks: list[Tensor], target_masks: list[Tensor]) -> Tensor:
        """context [E*B, Kc, D], E masks [B, Kc], M masks [B, Kt] -> predictions [M*E*B, Kt, D].

        Rows are ordered by target mask, then context mask, then image. Target blocks do not see one another: each is a
        row of its own, with a copy of the context.
        """
        if len(context) != sum(len(mask) for mask in context_masks):
            raise ValueError(f"context: {len(context)} rows, masks for {sum(map(len, context_masks))}")
        positions = self.predictor_pos_embed.expand(len(context_masks[0]), -1, -1)
        known = self.predictor_embed(context) + gather_tokens(positions, context_masks)
        asked = self.mask_token + gather_tokens(positions, target_masks)  # [M*B, Kt, Q]
        asked = repeat_chunks(asked, len(target_masks), len(context_masks))
        x = torch.cat([known.repeat(len(target_masks), 1, 1), asked], dim=1)  # [M*E*B, Kc + Kt, Q]
        *blocks, final = self.predictor_blocks
        assert isinstance(final, Block)
        for block in blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(final.last(x, asked.shape[1])))  # the context is done with


def repeat_chunks(x: Tensor, chunks: int, times: int) -> Tensor:
    """Each of the `chunks` equal parts of x [chunks*B, ...] `times` times, part by part -> [chunks*times*B, ...]."""
    return x.unflatten(0, (chunks, 1, -1)).expand(-1, times, *[-1] * x.ndim).flatten(0, 2)


def initialise_predictor(predictor: Predictor, generator: torch.Generator) -> None:
    """As `vit.initialise`, and the mask token with std 0.02. Consumes `generator`."""
    initialise(predictor, generator)
    with torch.no_grad():
        nn.init.trunc_normal_(predictor.mask_token, std=INIT_STD, generator=generator)
