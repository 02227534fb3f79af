"""Which patches are context and which are targets: the multi-block sampler, and the paper's three alternatives.

Shapes: B images, R x S patches, indices row * S + column in ascending order. A batch of masks is one list of context
masks [B, Kc] and one of target masks [B, Kt]; all images share Kc and Kt.
Source: paper, section 3 and table 6; reference code: src/masks/multiblock.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STRATEGIES = ("multi-block", "block", "random", "rasterized")
TRIES = 20  # rejected places before one more target block may overlap the context
HIDDEN_SHARE = 0.6  # table 6: size of the target of the strategies "block" and "random"


@dataclass(frozen=True)
class MaskConfig:
    """Scales are shares of all patches, the ratio is height / width; see `config.Config` for the published values."""

    rows: int
    columns: int
    targets: int
    contexts: int
    target_scale: tuple[float, ...]
    target_ratio: tuple[float, ...]
    context_scale: tuple[float, ...]
    min_keep: int
    allow_overlap: bool
    strategy: str = "multi-block"


@dataclass(frozen=True)
class Masks:
    """E context masks [B, Kc] and M target masks [B, Kt], int64 patch indices."""

    context: list[Tensor]
    target: list[Tensor]

    def to(self, device: torch.device) -> Masks:
        """The same on a device."""
        return Masks(*([mask.to(device, non_blocking=True) for mask in group] for group in (self.context, self.target)))


def block_shape(config: MaskConfig, scale: tuple[float, ...], ratio: tuple[float, ...], u: float) -> tuple[int, int]:
    """Height and width of a block in patches from ONE number u in [0, 1): large blocks are always the tall ones.

    Both are strictly smaller than the grid. Source: reference code; the text has two independent numbers.
    """
    low, high = scale
    patches = int(config.rows * config.columns * (low + u * (high - low)))
    aspect = ratio[0] + u * (ratio[1] - ratio[0])
    height, width = round(math.sqrt(patches * aspect)), round(math.sqrt(patches / aspect))
    return min(height, config.rows - 1), min(width, config.columns - 1)


def block_shapes(config: MaskConfig, counter: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of target and context blocks of batch `counter`: the same for all of its images, on every machine."""
    generator = torch.Generator().manual_seed(counter)
    u_target, u_context = (torch.rand(1, generator=generator).item() for _ in range(2))
    target = block_shape(config, config.target_scale, config.target_ratio, u_target)
    return target, block_shape(config, config.context_scale, (1.0, 1.0), u_context)


def check_masks(config: MaskConfig) -> None:
    """Raises ValueError if some block would have too few patches to be accepted, which no further try can change.

    Deviation D1: the official sampler loops for ever then.
    """
    if config.strategy != "multi-block":
        if config.rows < 2 or config.columns < 2:
            raise ValueError(f"a grid of {config.rows} x {config.columns} patches is too small to be divided")
        return
    every = [k / 1000 for k in range(1001)]
    for name, scale, ratio in (
        ("target", config.target_scale, config.target_ratio),
        ("context", config.context_scale, (1.0, 1.0)),
    ):
        height, width = min((block_shape(config, scale, ratio, u) for u in every), key=math.prod)
        if height * width <= config.min_keep:
            raise ValueError(
                f"a grid of {config.rows} x {config.columns} patches has {name} blocks of {height} x {width} patches, "
                f"but min_keep {config.min_keep} accepts only larger ones; lower min_keep or use smaller patches"
            )


def sample_masks(config: MaskConfig, batch: int, counter: int, generator: torch.Generator) -> Masks:
    """Masks for `batch` images. Sizes come from the number of the batch, places from `generator`.

    Raises ValueError if the grid is too small for the blocks.
    """
    if config.strategy == "multi-block":
        return multi_block_masks(config, batch, counter, generator)
    alternative = {"block": block_masks, "random": random_masks, "rasterized": rasterized_masks}[config.strategy]
    return alternative(config, batch, generator)


# --- the paper's masks ------------------------------------------------------------------------------------------------


def multi_block_masks(config: MaskConfig, batch: int, counter: int, generator: torch.Generator) -> Masks:
    """M target blocks, and E context blocks less what the targets cover. Source: paper, section 3."""
    shapes = block_shapes(config, counter)
    return place_blocks(config, batch, *shapes, lambda high: int(torch.randint(high, (1,), generator=generator)))


def place_blocks(
    config: MaskConfig,
    batch: int,
    target_shape: tuple[int, int],
    context_shape: tuple[int, int],
    draw: Callable[[int], int],
) -> Masks:
    """Places the blocks image by image: the targets, then the contexts without what the targets cover.

    draw(high): a random integer in [0, high). Corners are drawn below R - height and S - width, exclusive, so the last
    row and column of patches are never used. All masks are cut to the shortest of the batch, the first indices kept,
    which favours the upper rows. Source: reference code.
    """
    for shape, name in ((target_shape, "target"), (context_shape, "context")):
        if math.prod(shape) <= config.min_keep:
            raise ValueError(f"{name} blocks of {shape[0]} x {shape[1]} patches are not above min_keep")
    targets: list[list[Tensor]] = [[] for _ in range(config.targets)]
    contexts: list[list[Tensor]] = [[] for _ in range(config.contexts)]
    for _ in range(batch):
        hidden = []
        for mask in targets:
            block = _block(config, target_shape, draw)
            mask.append(block.flatten().nonzero()[:, 0])
            hidden.append(block)
        for mask in contexts:
            mask.append(_context(config, context_shape, [] if config.allow_overlap else hidden, draw))
    return Masks(_cut(contexts), _cut(targets))


def _block(config: MaskConfig, shape: tuple[int, int], draw: Callable[[int], int]) -> Tensor:
    """A block at a drawn place, [R, S] bool."""
    top, left = draw(config.rows - shape[0]), draw(config.columns - shape[1])
    block = torch.zeros(config.rows, config.columns, dtype=torch.bool)
    block[top : top + shape[0], left : left + shape[1]] = True
    return block


def _context(config: MaskConfig, shape: tuple[int, int], hidden: list[Tensor], draw: Callable[[int], int]) -> Tensor:
    """Indices of a context block without the `hidden` blocks; the last of them are forgotten one by one if need be."""
    rejected = 0
    while True:
        block = _block(config, shape, draw)
        for other in hidden[: max(len(hidden) - rejected // TRIES, 0)]:
            block &= ~other
        indices = block.flatten().nonzero()[:, 0]
        if len(indices) > config.min_keep:
            return indices
        rejected += 1


def _cut(masks: list[list[Tensor]]) -> list[Tensor]:
    shortest = min(len(indices) for mask in masks for indices in mask)
    return [torch.stack([indices[:shortest] for indices in mask]) for mask in masks]


# --- the alternatives of table 6 --------------------------------------------------------------------------------------
# Deviation D6: the official code of these three is not public; sizes as in the text. Context and targets are disjoint.


def block_masks(config: MaskConfig, batch: int, generator: torch.Generator) -> Masks:
    """The target is one block of 0.6 of the patches, the context all others."""
    height, width = block_shape(config, (HIDDEN_SHARE, HIDDEN_SHARE), (1.0, 1.0), 0.0)
    images = []
    for _ in range(batch):
        _order(config, generator)
        top = int(torch.randint(config.rows - height + 1, (1,), generator=generator))
        left = int(torch.randint(config.columns - width + 1, (1,), generator=generator))
        part = torch.zeros(config.rows, config.columns, dtype=torch.int64)
        part[top : top + height, left : left + width] = 1
        images.append(part)
    return _divided(images)


def random_masks(config: MaskConfig, batch: int, generator: torch.Generator) -> Masks:
    """The target is 0.6 of the patches, anywhere, the context all others."""
    count = int(HIDDEN_SHARE * config.rows * config.columns)
    images = []
    for _ in range(batch):
        part = torch.zeros(config.rows * config.columns, dtype=torch.int64)
        part[_order(config, generator)[:count]] = 1
        images.append(part)
    return _divided(images)


def rasterized_masks(config: MaskConfig, batch: int, generator: torch.Generator) -> Masks:
    """The context is one quadrant, the other three are the targets, cut to one length on odd grids."""
    rows, columns = torch.arange(config.rows)[:, None], torch.arange(config.columns)[None]
    quadrant = rows * 2 // config.rows * 2 + columns * 2 // config.columns
    images = []
    for _ in range(batch):
        _order(config, generator)
        part_of = torch.zeros(4, dtype=torch.int64)
        part_of[torch.randperm(4, generator=generator)] = torch.arange(4)
        images.append(part_of[quadrant])
    return _divided(images)


def _order(config: MaskConfig, generator: torch.Generator) -> Tensor:
    """All patches in random order. Drawn by all three, which keeps the masks of a seed what they have always been."""
    return torch.randperm(config.rows * config.columns, generator=generator)


def _divided(images: list[Tensor]) -> Masks:
    """Masks from the part that each patch of each image belongs to: 0 is the context, 1, 2, ... are targets."""
    count = 1 + max(int(part.max()) for part in images)
    context, *targets = ([(part.flatten() == k).nonzero()[:, 0] for part in images] for k in range(count))
    return Masks(_cut([context]), _cut(targets))
