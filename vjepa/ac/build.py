"""What a config stands for: its networks at their first weights or as a run left them, and its schedules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common import checkpoint
from common.config import user_error
from common.seeding import derive_seed
from vjepa.ac import official
from vjepa.ac.config import Config
from vjepa.ac.imagination import ACImagination, ACModel, Imagination, RecipeImagination
from vjepa.ac.predictor import new_ac_predictor
from vjepa.ac.recipe import RecipeModel, new_recipe
from vjepa.ac.worlds.world import World
from vjepa.jepa import JEPA, Schedule, new_jepa
from vjepa.masks import MaskKind, check_kind
from vjepa.predictor import Predictor
from vjepa.vit import SIZES, VideoTransformer

PRETRAINING = "pretraining"  # of the encoder of vjepa2-ac
STAGES = {"recipe": "training", "vjepa2-ac": "post-training"}  # of the world model
SNAPSHOTS = "snapshots"
TUBELET = 2
AC_LR_START = 7.5e-5 / 4.25e-4  # of the learning rate after the warm-up
# V-JEPA 2's samplers of short-range and long-range masks, and its predictor (width, blocks, heads); ours is small where
# the encoder is.
MASK_KINDS = (MaskKind(8, (0.15, 0.15)), MaskKind(2, (0.7, 0.7)))
PRETRAINING_PREDICTOR = (384, 12, 12)
SMALL_PREDICTORS = {"pico": (48, 2, 3), "nano": (64, 2, 4), "tiny": (96, 4, 4)}
MOMENTUM, MOMENTUM_UPDATES = 0.99925, 15.0

Model = RecipeModel | ACModel


def new_encoder(config: Config) -> VideoTransformer:
    """The encoder of V-JEPA 2 without its weights: `new_pretraining` or a file gives them."""
    clip = (TUBELET, config.side, config.side)
    return VideoTransformer(clip, 3, TUBELET, config.patch, SIZES[config.encoder], "rotary")


def new_pretraining(config: Config) -> JEPA:
    """Encoder, predictor and target of V-JEPA 2 for the world's videos, weights drawn from the seed.

    Raises ValueError if masks of the paper's sizes do not fit the grid.
    """
    encoder = new_encoder(config)
    grid = (config.frames // TUBELET, *encoder.grid[1:])
    width, depth, heads = SMALL_PREDICTORS.get(config.encoder, PRETRAINING_PREDICTOR)
    predictor = Predictor(grid, encoder.size.width, width, depth, heads, 1, "rotary")
    for kind in MASK_KINDS:
        check_kind(kind, grid)
    return new_jepa(encoder, predictor, torch.Generator().manual_seed(derive_seed(config.seed, "encoder weights")))


def new_model(config: Config, world: World) -> Model:
    """The world model with weights drawn from the seed; the encoder of vjepa2-ac may be an official one.

    Raises ValueError if sizes do not fit one another or the file.
    """
    action_size = config.frame_skip * world.action_size
    if config.model == "recipe":
        picture = (world.picture_shape[0], config.side, config.side)
        seed = derive_seed(config.seed, "initial weights")
        # Convolutions of few channels are twice as fast with the channels behind.
        return new_recipe(picture, config.channels, config.width, action_size, seed).to(
            memory_format=torch.channels_last  # type: ignore[call-overload]
        )
    if config.init_from:
        encoder = new_encoder(config)
        official.load_encoder(Path(config.init_from), encoder)
    else:
        encoder = new_pretraining(config).target_encoder
    predictor = new_ac_predictor(
        encoder.grid[1:], encoder.size.width, config.ac_width, config.ac_depth, config.ac_heads, action_size,
        world.state_size, torch.Generator().manual_seed(derive_seed(config.seed, "initial weights")),
    )  # fmt: skip
    return ACModel(encoder, predictor)


def new_schedule(config: Config) -> Schedule:
    """Learning rate and weight decay of the world model: a cosine (recipe), or warm-up, constant, linear to 0."""
    warmup = int(config.warmup_share * config.updates)
    is_ac = config.model == "vjepa2-ac"
    start = AC_LR_START * config.lr if is_ac else 0.0
    return Schedule(
        config.updates, warmup, 1.0, start, config.lr, 0.0, config.weight_decay, config.weight_decay, 1.0, 1.0,
        "linear" if is_ac else "cosine", warmup if is_ac else None,
    )  # fmt: skip


def pretraining_schedule(config: Config) -> Schedule:
    """That of V-JEPA 2, in a twentieth of the updates from a fifth of the rate, then constant.

    Deviation D4: a short pretraining moves its target faster, so that it has seen the last part of the run.
    """
    updates = config.encoder_updates
    momentum = max(0.0, min(MOMENTUM, 1 - MOMENTUM_UPDATES / max(1, updates)))
    lr = config.encoder_lr
    return Schedule(updates, updates // 20, 1.0, lr / 5, lr, lr, 0.04, 0.04, momentum, momentum)


def load_encoder(folder: Path, config: Config, model: ACModel, identity: str) -> None:
    """Puts the target encoder of a finished pretraining into a model; one line and exit code 2 if there is none."""
    found = checkpoint.load_final(folder / PRETRAINING, config.encoder_updates, identity=identity)
    tensors = {f"encoder/{k.removeprefix('target_encoder/')}": v for k, v in found.tensors.items() if "target_" in k}
    checkpoint.load_module("encoder", model.encoder, tensors)


def load_models(info: Mapping[str, Any], config: Config, world: World, device: torch.device) -> list[tuple[int, Model]]:
    """The networks that a finished run has kept, and after how many updates; untrained ones if there were none.

    One line and exit code 2 if training has not ended.
    """
    folder, identity, found = info["folder"], info["meta"]["identity"], []
    checkpoint.load_final(folder / STAGES[config.model], config.updates, identity=identity)
    epoch = config.updates // config.epochs
    kept = range(config.updates, config.updates - config.checkpoints * epoch, -epoch) if epoch else [0]
    for updates in kept:
        model = new_model(config, world)
        if config.encoder_updates and isinstance(model, ACModel):
            load_encoder(folder, config, model, identity)
        stands = checkpoint.load_latest(folder / SNAPSHOTS / str(updates), identity=identity)
        if stands is None:
            user_error(f"{folder / SNAPSHOTS / str(updates)} has no checkpoint")
        for name, part in trained_parts(model).items():
            checkpoint.load_module(name, part, stands.tensors)
        found.append((updates, model.to(device).eval()))
    return found


def trained_parts(model: Model) -> dict[str, torch.nn.Module]:
    """What a checkpoint of the world model holds: all of the recipe, or the predictor on a frozen encoder."""
    return {"predictor": model.predictor} if isinstance(model, ACModel) else {"model": model}


def imagination_of(model: Model, world: World, config: Config) -> Imagination:
    """The model as a planner sees it."""
    if isinstance(model, ACModel):
        return ACImagination(model, world, config.side)
    return RecipeImagination(model, config.side)
