"""The predictor: from context tokens and the places of the hidden ones to what the target encoder says about these.

Shapes: B clips, Kc and Kt tokens of a context and a target, D encoder width, Q own width. Parameter names are those of
the official checkpoints.
Source: V-JEPA, section 3 and appendix C; V-JEPA 2, section 2; reference code: src/models/predictor.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vjepa.vit import (
    NORM_EPS,
    POSITIONS,
    Block,
    Grid,
    axis_width,
    gather_tokens,
    initialise,
    places_of,
    video_rotation,
    video_table,
)


class Predictor(nn.Module):
    """A narrow transformer; hidden tokens enter as a learned token plus their positions."""

    predictor_pos_embed: Tensor

    def __init__(
        self,
        grid: Grid,
        width: int,
        own_width: int,
        depth: int,
        heads: int,
        mask_tokens: int,
        positions: str,
        output: int | None = None,
    ) -> None:
        """grid: tubelets in time, rows and columns; width: D; own_width: Q; mask_tokens: how many there are.

        output: numbers predicted for a token, D unless pixels are the targets.
        Raises ValueError if `heads` do not divide Q, or are too narrow for rotary positions.
        """
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions are {' or '.join(POSITIONS)}, not {positions!r}")
        self.grid, self.positions, self.head = grid, positions, own_width // heads
        self.predictor_embed = nn.Linear(width, own_width)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, own_width)) for _ in range(mask_tokens))
        if positions == "sincos":
            table = torch.from_numpy(video_table(own_width, grid)).float()
            self.register_buffer("predictor_pos_embed", table[None])
        else:
            axis_width(self.head)
        self.predictor_blocks = nn.ModuleList(Block(own_width, heads, 4 * own_width) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(own_width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(own_width, width if output is None else output)

    def forward(self, context: Tensor, context_mask: Tensor, target_mask: Tensor, mask_token: int = 0) -> Tensor:
        """context [B, Kc, D] at context_mask [B, Kc] -> predictions [B, Kt, D] at target_mask [B, Kt].

        mask_token: which learned token stands for the hidden ones, counted round if there are fewer. V-JEPA: the number
        of the mask's kind, short-range or long-range. V-JEPA 2: the number of the clip length, always 0 when clips have
        one length; its other tokens never learn. The order of the tokens has no effect, so V-JEPA 2's sorting is left
        out.
        """
        if context.shape[:2] != context_mask.shape or len(context_mask) != len(target_mask):
            masks = f"{list(context_mask.shape)} and {list(target_mask.shape)}"
            raise ValueError(f"context {list(context.shape)} does not fit masks {masks}")
        known, asked = self.predictor_embed(context), self.mask_tokens[mask_token % len(self.mask_tokens)]
        by = None
        if self.positions == "sincos":
            known = known + gather_tokens(self.predictor_pos_embed, context_mask)
            asked = asked + gather_tokens(self.predictor_pos_embed, target_mask)
        else:
            places = places_of(torch.cat([context_mask, target_mask], 1), self.grid)
            by = video_rotation(places, self.head, known.dtype)
            asked = asked.expand(*target_mask.shape, -1)
        x = torch.cat([known, asked.to(known.dtype)], dim=1)  # [B, Kc + Kt, Q]
        *blocks, final = self.predictor_blocks
        for block in blocks:
            x = block(x, by)
        x = final(x, by, None, target_mask.shape[1])  # the context is done with
        return self.predictor_proj(self.predictor_norm(x))


def initialise_predictor(predictor: Predictor, generator: torch.Generator) -> None:
    """As `vit.initialise`, scaled by depth with rotary positions (V-JEPA 2). Mask tokens begin at 0.

    Consumes `generator`.
    """
    is_scaled = predictor.positions == "rotary"
    initialise(predictor, generator, list(predictor.predictor_blocks) if is_scaled else ())
