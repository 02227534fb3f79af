"""Which tokens of a clip are context and which are targets: 3-D multi-block masks, and random tubes.

Shapes: B clips, T x R x S tokens (time, row, column), token numbers in ascending order. A kind of masks (short-range,
long-range) gives each clip of a batch one context [B, Kc] and one target [B, Kt]; kinds have lengths of their own.
Source: V-JEPA, section 3.2 and appendix C; V-JEPA 2, section 2; reference code: src/masks/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vjepa.vit import Grid

STRATEGIES = ("multi-block", "random-tube")
COMPLEMENTS = ("none", "target", "context")

Draw = Callable[[int], int]


@dataclass(frozen=True)
class MaskKind:
    """One sampler. Scales are shares of time steps and of places in a frame; the ratio is height / width.

    max_temporal_keep: share of the time steps that the context may lie in. max_keep: most tokens of a context.
    complement, after the cut to one length: the target is all that is not context ("target"), or the context all that
    is no target ("context"). is_inverted: context and target change places.
    """

    blocks: int
    spatial_scale: tuple[float, float]
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (0.75, 1.5)
    max_temporal_keep: float = 1.0
    max_keep: int | None = None
    complement: str = "none"
    is_inverted: bool = False


@dataclass(frozen=True)
class Masks:
    """For each kind of masks a context [B, Kc] and a target [B, Kt], int64 token numbers."""

    context: list[Tensor]
    target: list[Tensor]

    def to(self, device: torch.device) -> Masks:
        """The same on a device."""
        return Masks(*([mask.to(device, non_blocking=True) for mask in group] for group in (self.context, self.target)))


def block_shape(kind: MaskKind, grid: Grid, counter: int) -> Grid:
    """Time steps, rows and columns of the blocks of batch `counter`: the same for all of its clips, on every machine.

    Source: reference code. A block may fill the grid in each direction, unlike I-JEPA's.
    """
    generator = torch.Generator().manual_seed(counter)
    u_time, u_space, u_ratio = (torch.rand(1, generator=generator).item() for _ in range(3))
    return shape_of(kind, grid, u_time, u_space, u_ratio)


def shape_of(kind: MaskKind, grid: Grid, u_time: float, u_space: float, u_ratio: float) -> Grid:
    """The block of three numbers in [0, 1)."""
    steps, rows, columns = grid
    time, space, ratio = (
        low + u * (high - low)
        for u, (low, high) in ((u_time, kind.temporal_scale), (u_space, kind.spatial_scale), (u_ratio, kind.ratio))
    )
    area = int(rows * columns * space)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return max(1, int(steps * time)), min(height, rows), min(width, columns)


def check_kind(kind: MaskKind, grid: Grid) -> None:
    """Raises ValueError if blocks would be empty, or could cover the grid so that no context is left.

    Deviation D1: the official sampler loops for ever where no context can be left.
    """
    every = [k / 100 for k in range(101)]
    times, spaces = ((0.0,) if low == high else every for low, high in (kind.temporal_scale, kind.spatial_scale))
    shapes = {shape_of(kind, grid, t, u, v) for t in times for u in spaces for v in every}
    steps, rows, columns = grid
    words = f"a grid of {steps} x {rows} x {columns} tokens"
    if any(not height or not width for _, height, width in shapes):
        raise ValueError(
            f"{words} is too small for blocks of {kind.spatial_scale[0]:g} of a frame; use smaller patches"
        )
    if any(shape == grid for shape in shapes):
        raise ValueError(
            f"{words} can be filled by one block of {kind.spatial_scale[1]:g} of a frame: no context is left"
        )


def sample_masks(kinds: Sequence[MaskKind], grid: Grid, batch: int, counter: int, generator: torch.Generator) -> Masks:
    """Masks of each kind for `batch` clips. Sizes come from the number of the batch, places from `generator`.

    Source: V-JEPA, section 3.2.
    """

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    pairs = [place_blocks(kind, grid, batch, block_shape(kind, grid, counter), draw) for kind in kinds]
    return Masks([context for context, _ in pairs], [target for _, target in pairs])


def place_blocks(kind: MaskKind, grid: Grid, batch: int, shape: Grid, draw: Draw) -> tuple[Tensor, Tensor]:
    """Context [B, Kc] and target [B, Kt] of one kind: the union of the blocks is the target, all else the context.

    draw(high): a random integer in [0, high); of each block first the row, then the column, then the time step. A clip
    whose context would be empty is drawn again. All masks are cut to the shortest of the batch, the first tokens kept.
    Source: reference code.
    """
    pairs = [_clip(kind, grid, shape, draw) for _ in range(batch)]
    contexts, targets = ([pair[part] for pair in pairs] for part in (0, 1))
    context, target = _cut(contexts, kind.max_keep), _cut(targets)
    if kind.complement == "target":
        target = _all_but(context, grid)
    elif kind.complement == "context":
        context = _all_but(target, grid)
    return (target, context) if kind.is_inverted else (context, target)


def _clip(kind: MaskKind, grid: Grid, shape: Grid, draw: Draw) -> tuple[Tensor, Tensor]:
    """Context and target of one clip."""
    steps, rows, columns = grid
    duration, height, width = shape
    while True:
        is_context = torch.ones(grid, dtype=torch.bool)
        for _ in range(kind.blocks):
            top, left, start = draw(rows - height + 1), draw(columns - width + 1), draw(steps - duration + 1)
            is_context[start : start + duration, top : top + height, left : left + width] = False
        is_context[max(1, int(steps * kind.max_temporal_keep)) :] = False
        if is_context.any():
            flat = is_context.flatten()
            return flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]


def _cut(masks: Sequence[Tensor], most: int | None = None) -> Tensor:
    shortest = min([len(mask) for mask in masks] + ([] if most is None else [most]))
    return torch.stack([mask[:shortest] for mask in masks])


def _all_but(masks: Tensor, grid: Grid) -> Tensor:
    """Of each row, the token numbers that it has not."""
    is_there = torch.zeros(len(masks), math.prod(grid), dtype=torch.bool).scatter_(1, masks, True)
    return (~is_there).nonzero()[:, 1].unflatten(0, (len(masks), -1))


def random_tubes(ratio: float, grid: Grid, batch: int, rng: np.random.Generator | np.random.RandomState) -> Masks:
    """The ablation of table 4: `ratio` of the places hidden through the whole clip, one kind. Consumes `rng`.

    Source: V-JEPA, table 4; reference code: src/masks/random_tube.py.
    """
    steps, rows, columns = grid
    kept = int(rows * columns * (1 - ratio))
    if not 0 < kept < rows * columns:
        raise ValueError(f"random tubes of {ratio:g} leave {kept} of {rows * columns} places to see")
    contexts, targets = [], []
    for _ in range(batch):
        is_kept = np.concatenate([np.zeros(rows * columns - kept), np.ones(kept)])
        rng.shuffle(is_kept)
        flat = torch.from_numpy(is_kept).bool().repeat(steps)
        contexts.append(flat.nonzero()[:, 0])
        targets.append((~flat).nonzero()[:, 0])
    return Masks([torch.stack(contexts)], [torch.stack(targets)])


def past_and_future(grid: Grid, steps: int, batch: int) -> Masks:
    """The context is all tokens of the first `steps` time steps, the target all later ones; one kind.

    Raises ValueError if one of them is empty. Source: Garrido et al. 2025 (intuitive physics).
    """
    if not 0 < steps < grid[0]:
        raise ValueError(f"a context of {steps} of {grid[0]} time steps leaves nothing to see or nothing to predict")
    tokens = torch.arange(math.prod(grid)).expand(batch, -1)
    border = steps * grid[1] * grid[2]
    return Masks([tokens[:, :border]], [tokens[:, border:]])
