"""Which patches are context and which are targets: the multi-block sampler, and the paper's three alternatives.

Shapes: B images, R x S patches, indices row * S + column in ascending order. A batch of masks is one list of context
masks [B, Kc] and one of target masks [B, Kt]; all images share Kc and Kt.
Source: paper, section 3 and table 6; reference code: src/masks/multiblock.py.
"""

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

    def to(self, device: torch.device) -> "Masks":
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


def check(config: MaskConfig) -> None:
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
    if config.strategy != "multi-block":
        return _simple_masks(config, batch, generator)
    target_shape, context_shape = block_shapes(config, counter)
    return place_blocks(
        config, batch, target_shape, context_shape, lambda high: int(torch.randint(high, (1,), generator=generator))
    )


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


def _simple_masks(config: MaskConfig, batch: int, generator: torch.Generator) -> Masks:
    """The alternatives of table 6; context and targets share no patch.

    block: the target is one block of 0.6 of the patches. random: 0.6 of the patches anywhere. rasterized: the context
    is one quadrant, the other three are the targets (cut to one length on odd grids).
    Deviation D6: the official code of these three is not public; sizes as in the text.
    """
    rows, columns = config.rows, config.columns
    images = []
    for _ in range(batch):
        order = torch.randperm(rows * columns, generator=generator)
        quadrant = torch.arange(rows)[:, None] * 2 // rows * 2 + torch.arange(columns)[None] * 2 // columns
        part = torch.zeros(rows, columns, dtype=torch.int64)  # 0 is context, 1, 2, 3 are targets
        if config.strategy == "rasterized":
            names = torch.zeros(4, dtype=torch.int64)
            names[torch.randperm(4, generator=generator)] = torch.arange(4)
            part = names[quadrant]
        elif config.strategy == "random":
            part.view(-1)[order[: int(HIDDEN_SHARE * rows * columns)]] = 1
        else:
            shape = block_shape(config, (HIDDEN_SHARE, HIDDEN_SHARE), (1.0, 1.0), 0.0)
            top, left = (
                int(torch.randint(full - size + 1, (1,), generator=generator))
                for full, size in zip((rows, columns), shape, strict=True)
            )
            part[top : top + shape[0], left : left + shape[1]] = 1
        images.append([(part.flatten() == k).nonzero()[:, 0] for k in range(int(part.max()) + 1)])
    context, *targets = ([image[k] for image in images] for k in range(len(images[0])))
    return Masks(_cut([context]), _cut(targets))
