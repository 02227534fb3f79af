"""Train a world model of actions: the recipe of Two Rooms end to end, or V-JEPA 2-AC on a frozen encoder.

    python -m vjepa.ac.train --preset cpu --seed 0

The same command continues an interrupted run. `train_step` is one update of the world model; with vjepa2-ac its encoder
is pretrained first, by V-JEPA 2, on videos of the world.
Source: V-JEPA 2, section 3.1 and appendix B.1; EB-JEPA (arXiv 2602.03604).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from common import checkpoint, dist, eager
from common.config import parse, user_error
from common.precision import compute_dtype
from common.program import program
from common.run import Run, run_folder, seed_everything, usable_device
from common.seeding import derive_seed
from common.stage import Stage
from vjepa.ac.build import (
    MASK_KINDS,
    PRETRAINING,
    SNAPSHOTS,
    STAGES,
    Model,
    load_encoder,
    new_model,
    new_pretraining,
    new_schedule,
    pretraining_schedule,
    trained_parts,
)
from vjepa.ac.config import PRESETS, TASKS, Config
from vjepa.ac.data import Batch, Walks, batch_of, load_walks, make_walks
from vjepa.ac.imagination import ACModel, encode_pictures, normalised_pictures, resized
from vjepa.ac.losses import ac_losses
from vjepa.ac.recipe import RecipeModel, probe_loss, recipe_losses, to_input
from vjepa.ac.worlds.catalogue import new_world
from vjepa.ac.worlds.world import World
from vjepa.jepa import (
    JEPA,
    Schedule,
    distance,
    new_optimizer,
    parameter_groups,
    predict,
    select,
    set_schedule,
    targets,
    update_target,
)
from vjepa.masks import Masks, sample_masks

Losses = Callable[[Model, Batch, World, Config], dict[str, Tensor]]


# --- the world model --------------------------------------------------------------------------------------------------


def model_losses(model: Model, batch: Batch, world: World, config: Config) -> dict[str, Tensor]:
    """The terms of the loss of either family, and "loss", their weighted sum."""
    if isinstance(model, ACModel):
        z = encode_pictures(model.encoder, batch.pictures, config.side).flatten(1, 2)
        terms = ac_losses(model.predictor, z, batch.actions[:, :-1], world.scaled(batch.states), config.rollout_steps)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}
    frames = to_input(resized(batch.pictures, config.side))
    terms = recipe_losses(model, frames, batch.actions, config.rollout_steps)
    weights = {
        "prediction": 1.0,
        "variance": config.variance,
        "covariance": config.covariance,
        "similarity": config.similarity,
        "inverse_dynamics": config.inverse_dynamics,
    }
    probe = probe_loss(model, frames, batch.states)
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return {"loss": total, **terms, "probe": probe}


def train_step(
    model: Model,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    world: World,
    config: Config,
    schedule: Schedule,
    update: int,
    *,
    dtype: torch.dtype = torch.float32,
    losses: Losses = model_losses,
) -> dict[str, Tensor]:
    """One update of the world model on this rank's windows. Returns the terms of the loss before it.

    dtype: what matrix products multiply, float32 or bfloat16. `losses` may be a compiled `model_losses`.
    """
    set_schedule(optimizer, schedule.lr_at(update), schedule.weight_decay_at(update))
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.states.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = losses(model, batch, world, config)
    # The place read by the probe is a watch: its gradient ends at the probe.
    (found["loss"] + found.get("probe", 0.0)).backward()
    dist.average_gradients(model.parameters())
    if isinstance(model, RecipeModel):
        for parts in (model.encoder, nn.ModuleList([model.gru, model.encoder.norm])):
            nn.utils.clip_grad_norm_(parts.parameters(), config.clip)
    optimizer.step()
    return {name: value.detach() for name, value in found.items()}


def compiled_losses() -> Losses:
    """`model_losses` as one graph, for one model and one size of its batches."""
    return eager.compiled("the losses", eager.own_copy(model_losses), dynamic=False)


def optimizer_of(model: Model) -> torch.optim.AdamW:
    """AdamW; in V-JEPA 2-AC biases and norms do not decay, in the recipe all weights do."""
    if isinstance(model, ACModel):
        return torch.optim.AdamW(parameter_groups([model.predictor]), fused=True)
    return torch.optim.AdamW([{"params": list(model.parameters()), "decays": True}], fused=True)


def train_model(run: Run, config: Config, ranks: dist.Ranks, model: Model, world: World, walks: Walks | None) -> None:
    """The loop; the networks of the last epochs are kept for the test."""
    model.to(ranks.device)
    name, total, schedule = STAGES[config.model], config.updates, new_schedule(config)
    optimizer = optimizer_of(model)
    stage = Stage(run, name, total, config.checkpoint_seconds, ranks, trained_parts(model), optimizer)
    dtype = compute_dtype(config.precision, ranks.device)
    losses = compiled_losses() if ranks.device.type == "cuda" else model_losses
    for update in stage.updates():
        batch = batch_of(world, config, walks, name, update, ranks)
        found = train_step(model, optimizer, batch, world, config, schedule, update, dtype=dtype, losses=losses)
        stage.log(update, found)
        keep_snapshot(run, model, update + 1, config, ranks)
        if stage.due(update):
            stage.save(update)
    if total == 0:
        keep_snapshot(run, model, 0, config, ranks)
        stage.save(-1)


def keep_snapshot(run: Run, model: Model, updates: int, config: Config, ranks: dist.Ranks) -> None:
    """The networks after each of the last epochs."""
    epoch = config.updates // config.epochs
    is_end = updates % epoch == 0 and updates > config.updates - config.checkpoints * epoch if epoch else True
    if is_end and dist.is_main(ranks):
        tensors = {k: v for name, part in trained_parts(model).items() for k, v in _tensors(name, part)}
        checkpoint.save(run.folder / SNAPSHOTS / str(updates), updates, tensors, {}, identity=run.identity)


def _tensors(name: str, part: nn.Module) -> list[tuple[str, Tensor]]:
    return list(checkpoint.module_tensors(name, part).items())


# --- the encoder of V-JEPA 2-AC ---------------------------------------------------------------------------------------


def pretraining_step(
    jepa: JEPA,
    optimizer: torch.optim.Optimizer,
    clips: Tensor,
    masks: Masks,
    schedule: Schedule,
    update: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """One update of V-JEPA 2 on clips [B, 3, F, H, W] of the world, normalised.

    dtype: what matrix products multiply, float32 or bfloat16.
    """
    set_schedule(optimizer, schedule.lr_at(update), schedule.weight_decay_at(update))
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        tokens = targets(jepa.target_encoder, clips)
        loss = distance(predict(jepa, clips, masks), select(tokens, masks))
    loss.backward()
    dist.average_gradients(jepa.parameters())
    optimizer.step()
    update_target(jepa.target_encoder, jepa.encoder, schedule.momentum_at(update))
    # A loss that falls may be a representation that has become a constant: the spread over tokens tells.
    return {"loss": loss.detach(), "spread": tokens.flatten(0, 1).std(0).mean()}


def pretrain(run: Run, config: Config, ranks: dist.Ranks, world: World, walks: Walks | None) -> None:
    """V-JEPA 2 on the videos of the walks that the predictor will learn from too."""
    jepa, schedule = new_pretraining(config).to(ranks.device), pretraining_schedule(config)
    optimizer = new_optimizer(jepa)
    modules = {"encoder": jepa.encoder, "predictor": jepa.predictor, "target_encoder": jepa.target_encoder}
    stage = Stage(run, PRETRAINING, config.encoder_updates, config.checkpoint_seconds, ranks, modules, optimizer)
    dtype = compute_dtype(config.precision, ranks.device)
    for update in stage.updates():
        pictures = batch_of(world, config, walks, PRETRAINING, update, ranks).pictures
        clips = normalised_pictures(pictures, config.side).transpose(1, 2)
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "masks", update, ranks.rank))
        masks = sample_masks(MASK_KINDS, jepa.predictor.grid, len(clips), update, generator).to(ranks.device)
        stage.log(update, pretraining_step(jepa, optimizer, clips, masks, schedule, update, dtype=dtype))
        if stage.due(update):
            stage.save(update)


# --- the program ------------------------------------------------------------------------------------------------------


def check(config: Config, ranks: dist.Ranks) -> tuple[World, Model]:
    """World and model, once everything that can be wrong with the settings has been looked at. Raises ValueError."""
    if config.batch_size % ranks.world_size:
        raise ValueError(f"batch_size {config.batch_size} does not divide over {ranks.world_size} processes")
    world = new_world(config.task)
    start, _, layout = (part[None] for part in world.episode(0))
    world.step(start, torch.zeros(1, world.action_size), layout, torch.zeros(1, 2))  # a simulator may not be there
    if config.encoder_updates:
        if config.frames % 2:
            raise ValueError(f"frames {config.frames}: a pretraining has tubelets of two frames")
        new_pretraining(config)
    return world, new_model(config, world)


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(Config, TASKS, PRESETS, argv, prog="python -m vjepa.ac.train", description=__doc__ or "")
    usable_device(config.device)
    ranks = dist.setup(config.device)
    try:
        try:
            world, model = check(config, ranks)
        except (ValueError, OSError) as error:
            user_error(str(error))
        run = Run.open("vjepa", config, options.preset, run_folder("vjepa", config, options))
        dist.barrier()
        seed_everything(config.seed, config.device)
        if dist.is_main(ranks):
            with run.timed("walks"):
                make_walks(run.folder, world, config)
        dist.barrier()
        walks = load_walks(run.folder, config, ranks.device)
        if config.encoder_updates:
            pretrain(run, config, ranks, world, walks)
            assert isinstance(model, ACModel)
            dist.barrier()
            load_encoder(run.folder, config, model, run.identity)
        train_model(run, config, ranks, model, world, walks)
        if dist.is_main(ranks):
            print(f"trained: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)
