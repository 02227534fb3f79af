"""What a config stands for: its masks, its schedules, its networks at their first weights or as a run left them."""

from __future__ import annotations

from pathlib import Path

import torch

from common import checkpoint
from common.config import user_error
from common.seeding import derive_seed
from vjepa import official
from vjepa.config import Config
from vjepa.jepa import JEPA, Schedule, new_jepa
from vjepa.masks import MaskKind, check_kind
from vjepa.predictor import Predictor
from vjepa.vit import SIZES, Grid, VideoTransformer

STAGE = "jepa"
EPOCHS = 300  # of the paper's training; its gradients are clipped from the second epoch after the warm-up on


def new_model(config: Config, channels: int, init_from: str = "") -> JEPA:
    """The networks with weights drawn from the seed, or those of an official checkpoint.

    Raises ValueError if sizes do not fit one another or the file.
    """
    height, width = config.size
    size = SIZES[config.encoder]
    clip = (config.frames, height, width)
    encoder = VideoTransformer(clip, channels, config.tubelet, config.patch, size, config.positions)
    output = channels * config.tubelet * config.patch**2 if config.target == "pixels" else size.width
    heads = config.predictor_heads or size.heads
    predictor = Predictor(
        encoder.grid, size.width, config.predictor_width, config.predictor_depth, heads, config.mask_tokens,
        config.positions, output,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "initial weights"))
    model = new_jepa(encoder, predictor, generator)
    if init_from:
        official.load(Path(init_from), model)
    return model


def mask_kinds(config: Config) -> list[MaskKind]:
    """The samplers of multi-block masks, in the order of their mask tokens."""
    low, high = config.mask_ratio
    return [
        MaskKind(blocks, (scale, scale), (time, time), (low, high), config.max_temporal_keep)
        for blocks, scale, time in zip(config.mask_blocks, config.mask_scale, config.mask_time, strict=True)
    ]


def check_masks(config: Config, grid: Grid) -> None:
    """Raises ValueError if masks of this config cannot be made on a grid of tubelets."""
    if config.masking == "multi-block":
        for kind in mask_kinds(config):
            check_kind(kind, grid)
    elif not 0 < int(grid[1] * grid[2] * (1 - config.tube_ratio)) < grid[1] * grid[2]:
        raise ValueError(
            f"tube_ratio: {config.tube_ratio:g} of {grid[1]} x {grid[2]} places leaves none, or all, to see"
        )


def new_schedule(config: Config, updates: int) -> Schedule:
    """Learning rate, weight decay, momentum and clipping over so many updates."""
    warmup = int(config.warmup_share * updates)
    return Schedule(
        updates, warmup, config.stretch, config.lr_start, config.lr, config.lr_end, config.weight_decay,
        config.weight_decay_end, config.momentum, config.momentum_end, config.decay, None, config.clip,
        warmup + updates // EPOCHS,
    )  # fmt: skip


def load_model(
    folder: Path, config: Config, channels: int, device: torch.device, identity: str = ""
) -> tuple[JEPA, int]:
    """The networks of a finished run and their updates; one line and exit code 2 if training has not ended."""
    model = new_model(config, channels).to(device)
    found = checkpoint.load_latest(folder / STAGE, device, identity)
    if found is None or not found.state["state"].get("is_finished"):
        user_error(f"{folder}: training has not ended; python -m vjepa.train goes on with it")
    for name, part in model.named_children():
        checkpoint.load_module(name, part, found.tensors)
    return model.eval(), found.step
