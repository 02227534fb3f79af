"""The predictor of V-JEPA 2-AC: from patches, states and actions so far to the patches of the next frame.

Shapes: B clips, T frames, R x S patches a frame, N = T*R*S, D encoder width, Q own width, K tokens of a frame: action,
state, (camera,) patches. Token order: frame by frame. Parameter names are those of the official checkpoint.
Source: V-JEPA 2, section 3.1; reference code: src/models/ac_predictor.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.vit import NORM_EPS, Block, Rotation, axis_width, initialise, rotate, video_rotation

CAMERA = 6  # numbers of a camera's pose


def block_causal_mask(frames: int, tokens: int) -> Tensor:
    """[frames*tokens]^2 bool: True where the row's token may attend to the column's, one of its own frame or earlier.

    What `attend` does without it: in blocks of a frame the mask is a triangle, so each frame asks all that came before.
    """
    frame = torch.arange(frames).repeat_interleave(tokens)
    return frame[:, None] >= frame


@dataclass
class Memory:
    """Keys and values [B, heads, tokens so far, h] of each block, so that a rollout computes each frame once."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    frames: int = 0


class ACPredictor(nn.Module):
    """A transformer whose tokens see their own frame and those before it."""

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        own_width: int,
        depth: int,
        heads: int,
        action_size: int,
        state_size: int,
        has_camera: bool = False,
    ) -> None:
        """grid: rows and columns of patches; width: D; own_width: Q. `has_camera`: a token of the camera's pose.

        Raises ValueError if heads are too narrow for rotary positions.
        """
        super().__init__()
        self.grid, self.head, self.has_camera = grid, own_width // heads, has_camera
        axis_width(self.head)
        self.predictor_embed = nn.Linear(width, own_width)
        self.action_encoder = nn.Linear(action_size, own_width)
        self.state_encoder = nn.Linear(state_size, own_width)
        # Part of the official file, with or without cameras.
        self.extrinsics_encoder = nn.Linear(CAMERA, own_width)
        self.predictor_blocks = nn.ModuleList(Block(own_width, heads, 4 * own_width) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(own_width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(own_width, width)

    @property
    def patches(self) -> int:
        """R*S."""
        return self.grid[0] * self.grid[1]

    def forward(self, z: Tensor, actions: Tensor, states: Tensor, cameras: Tensor | None = None) -> Tensor:
        """z [B, N, D], actions [B, T, A], states [B, T, .], cameras [B, T, 6] -> [B, N, D]: frame t becomes t + 1."""
        return self.extend(z, actions, states, None, cameras)

    def extend(
        self, z: Tensor, actions: Tensor, states: Tensor, memory: Memory | None, cameras: Tensor | None = None
    ) -> Tensor:
        """`forward` on frames that follow those in `memory`, which takes them in; shapes as there, T new frames."""
        frames, first = actions.shape[1], 0 if memory is None else memory.frames
        x, tokens = self._tokens(z, actions, states, cameras)
        by = self._rotation(first, frames, x.device, x.dtype)
        for k, block in enumerate(self.predictor_blocks):
            assert isinstance(block, Block)
            x = x + attend(block, x, by, tokens, k, memory)
            x = x + block.mlp(block.norm2(x))
        if memory is not None:
            memory.frames += frames
        patches = x.unflatten(1, (frames, tokens))[:, :, tokens - self.patches :]
        return self.predictor_proj(self.predictor_norm(patches)).flatten(1, 2)

    def _tokens(self, z: Tensor, actions: Tensor, states: Tensor, cameras: Tensor | None) -> tuple[Tensor, int]:
        """[B, T*K, Q], and K."""
        if self.has_camera != (cameras is not None):
            raise ValueError("a predictor with cameras needs their poses, one without takes none")
        frames = actions.shape[1]
        if z.shape[1] != frames * self.patches or states.shape[1] != frames:
            raise ValueError(
                f"{frames} actions, {states.shape[1]} states and {z.shape[1]} patches are not of the same frames, "
                f"each of {self.patches} patches"
            )
        single = [self.action_encoder(actions), self.state_encoder(states)]
        if cameras is not None:
            single.append(self.extrinsics_encoder(cameras))
        patches = self.predictor_embed(z).unflatten(1, (frames, self.patches))
        x = torch.cat([torch.stack(single, 2), patches], 2)  # [B, T, K, Q]
        return x.flatten(1, 2), x.shape[2]

    def _rotation(self, first: int, frames: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Rotation:
        """Patches turn by time, row and column; the other tokens by time alone, which is row 0 and column 0.

        Where a frame is no square, its columns are as far apart as makes it one of R x R; reference code.
        """
        rows, columns = self.grid
        dtype = torch.promote_types(dtype, torch.float32)
        patch = torch.arange(rows * columns, device=device)
        place = torch.stack([patch // columns, (patch % columns).to(dtype) * (rows / columns)], -1)
        place = torch.cat([place.new_zeros(2 + self.has_camera, 2), place])
        time = torch.arange(first, first + frames, device=device)[:, None].expand(-1, len(place))
        places = torch.cat([time[..., None], place.expand(frames, -1, -1)], -1)  # [T, K, 3]
        return video_rotation(places.flatten(0, 1)[None], self.head, dtype)


def attend(block: Block, x: Tensor, by: Rotation, tokens: int, number: int, memory: Memory | None) -> Tensor:
    """Block-causal attention of a block on its normed input x [B, T*K, Q], without a mask in memory: [B, T*K, Q].

    tokens: K. With a memory, the frames in it come first, and those of x are put behind them.
    """
    attention = block.attn
    q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = rotate(q, by), rotate(k, by)
    past = 0
    if memory is not None:
        if number < len(memory.keys):
            past = memory.keys[number].shape[2]
            k, v = torch.cat([memory.keys[number], k], 2), torch.cat([memory.values[number], v], 2)
            memory.keys[number], memory.values[number] = k, v
        else:
            memory.keys.append(k)
            memory.values.append(v)
    parts = []
    for begin in range(0, x.shape[1], tokens):
        seen = past + begin + tokens
        own = q[:, :, begin : begin + tokens]
        parts.append(F.scaled_dot_product_attention(own, k[:, :, :seen], v[:, :, :seen]))
    return attention.proj(torch.cat(parts, 2).transpose(1, 2).flatten(2))


def new_ac_predictor(
    grid: tuple[int, int],
    width: int,
    own_width: int,
    depth: int,
    heads: int,
    action_size: int,
    state_size: int,
    generator: torch.Generator,
    has_camera: bool = False,
) -> ACPredictor:
    """With weights drawn from `generator`, those of deeper blocks smaller, as V-JEPA 2's."""
    model = ACPredictor(grid, width, own_width, depth, heads, action_size, state_size, has_camera)
    initialise(model, generator, list(model.predictor_blocks))
    return model
