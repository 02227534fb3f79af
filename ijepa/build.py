"""What a config stands for: its masks, its schedules, its networks at their first weights or as a run left them."""

from __future__ import annotations

from pathlib import Path

import torch

from common import checkpoint
from common.config import user_error
from common.seeding import derive_seed
from ijepa import official
from ijepa.config import Config
from ijepa.jepa import JEPA, Schedule, new_jepa
from ijepa.masks import MaskConfig
from ijepa.predictor import Predictor
from ijepa.vit import SIZES, VisionTransformer

STAGE = "jepa"
# Of the learning rate after the warm-up: released configs, 2e-4, 1e-3 and 1e-6.
LR_START_SHARE, LR_END_SHARE = 1 / 5, 1 / 1000


def new_model(config: Config, channels: int, init_from: str = "") -> JEPA:
    """The networks with weights drawn from the seed, or those of an official checkpoint.

    Raises ValueError if sizes do not fit one another or the file.
    """
    height, width = config.size
    encoder = VisionTransformer(height, width, channels, config.patch, SIZES[config.encoder])
    size = encoder.size
    output = channels * config.patch**2 if config.target == "pixels" else size.width
    predictor = Predictor(encoder.grid, size.width, config.predictor_width, config.predictor_depth, size.heads, output)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "initial weights"))
    model = new_jepa(encoder, predictor, generator)
    if init_from:
        official.load(Path(init_from), model)
    return model


def mask_config(config: Config, grid: tuple[int, int]) -> MaskConfig:
    """What the mask sampler needs, for a grid of so many rows and columns of patches."""
    return MaskConfig(
        *grid,
        targets=config.targets,
        contexts=config.contexts,
        target_scale=config.target_scale,
        target_ratio=config.target_ratio,
        context_scale=config.context_scale,
        min_keep=config.min_keep,
        allow_overlap=config.allow_overlap,
        strategy=config.masking,
    )


def new_schedule(config: Config, updates: int) -> Schedule:
    """Learning rate, weight decay and momentum over so many updates."""
    return Schedule(
        updates,
        int(config.warmup_share * updates),
        config.stretch,
        _share_of(config.lr, LR_START_SHARE) if config.lr_start is None else config.lr_start,
        config.lr,
        _share_of(config.lr, LR_END_SHARE) if config.lr_end is None else config.lr_end,
        config.weight_decay,
        config.weight_decay_end,
        config.momentum,
        config.momentum_end,
    )


def load_model(
    folder: Path, config: Config, channels: int, device: torch.device, identity: str = ""
) -> tuple[JEPA, int]:
    """The networks of a finished run and their updates; one line and exit code 2 if training has not ended."""
    model = new_model(config, channels).to(device)
    found = checkpoint.load_latest(folder / STAGE, device, identity)
    if found is None or not found.state["state"].get("is_finished"):
        user_error(f"{folder}: training has not ended; python -m ijepa.train goes on with it")
    for name, part in model.named_children():
        checkpoint.load_module(name, part, found.tensors)
    return model.eval(), found.step


def _share_of(rate: float, share: float) -> float:
    """rate * share without what binary fractions add to it: a fifth of 1.77e-4 is 3.54e-5."""
    return float(f"{rate * share:.12g}")
