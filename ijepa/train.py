"""Train I-JEPA: predict the representations of hidden blocks of an image from the rest of it.

    python -m ijepa.train --preset cpu --seed 0

The same command continues an interrupted run. Games are played first; their frames stay in the run folder.
`micro_step` is the method, `train_step` one update with it, `train_encoder` the loop.
Source: paper, section 3; reference code: src/train.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType

import torch
from torch import Tensor

from common import dist, eager
from common.config import parse, user_error
from common.faults import Faults
from common.precision import compute_dtype
from common.program import program
from common.run import Run, run_folder, seed_everything, usable_device
from common.stage import LOG_EVERY, Stage
from ijepa import collapse, data, play
from ijepa.ablations import Step, step_towards
from ijepa.build import STAGE, mask_config, new_model, new_schedule
from ijepa.config import PRESETS, TASKS, Config
from ijepa.crops import to_input
from ijepa.data import Images, MicroBatches, Splits, micro_batches
from ijepa.images import COMPLAINT
from ijepa.jepa import (
    JEPA,
    Schedule,
    distance,
    new_optimizer,
    predict,
    select,
    set_schedule,
    targets,
    update_target,
)
from ijepa.masks import Masks, check_masks
from ijepa.vit import Block


def micro_step(model: JEPA, images: Tensor, context: list[Tensor], target: list[Tensor]) -> list[Tensor]:
    """The loss of one micro-batch, with gradient, and the tokens [m, N, D] that its targets were taken from.

    images [m, C, H, W], E context masks [m, Kc], M target masks [m, Kt].
    Source: paper, section 3.
    """
    masks = Masks(context, target)
    tokens = targets(model.target_encoder, images)  # of the whole image, no gradient
    prediction = predict(model, images, masks)  # from the context alone, of each target block
    return [distance(prediction, select(tokens, masks)), tokens]


def train_step(
    model: JEPA,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Masks]],
    schedule: Schedule,
    update: int,
    *,
    dtype: torch.dtype = torch.float32,
    is_watched: bool = False,
    step: Step = micro_step,
) -> dict[str, Tensor]:
    """One update on this rank's micro-batches, each images [m, C, H, W] normalised and its masks.

    The gradient is the mean over micro-batches and ranks. Returns the loss before the update, and with `is_watched`
    the numbers of `collapse.watch` on the first micro-batch. dtype: what the matrix products multiply, float32 (or that
    of the weights) or bfloat16. `step` may be one of `ablations.step_towards`.
    """
    set_schedule(optimizer, schedule.lr_at(update), schedule.weight_decay_at(update))
    optimizer.zero_grad(set_to_none=True)
    losses, watched = [], {}
    for k, (images, masks) in enumerate(batches):
        # Deviation D4: no gradient scaler; bfloat16 has the exponents of float32.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, tokens = step(model, images, masks.context, masks.target)
        (loss / len(batches)).backward()
        losses.append(loss.detach())
        if is_watched and k == 0:
            watched = collapse.watch(tokens.detach(), masks.target, losses[0])
    dist.average_gradients(model.parameters())
    optimizer.step()
    update_target(model.target_encoder, model.encoder, schedule.momentum_at(update))
    return {"loss": torch.stack(losses).mean(), **watched}


def compile_blocks(model: JEPA) -> None:
    """One graph for all blocks of a width, whatever the depth: compiling takes seconds, not minutes.

    Lengths of masks change from update to update, hence `dynamic`.
    """
    forward, last = eager.own_copy(Block.forward), eager.own_copy(Block.last)
    for part in (model.encoder.blocks, model.target_encoder.blocks, model.predictor.predictor_blocks):
        for block in part:
            compiled = (eager.compiled("a block", MethodType(f, block), dynamic=True) for f in (forward, last))
            block.forward, block.last = compiled  # type: ignore[assignment]


def train_encoder(run: Run, config: Config, ranks: dist.Ranks, model: JEPA, images: Images) -> None:
    """The loop. Images that cannot be read are named as they are met."""
    model.to(ranks.device)
    batches = MicroBatches(images, config, mask_config(config, model.encoder.grid))
    total = batches.updates
    rates = new_schedule(config, total)
    optimizer = new_optimizer(model)
    modules = {"encoder": model.encoder, "predictor": model.predictor, "target_encoder": model.target_encoder}
    stage = Stage(run, STAGE, total, config.checkpoint_seconds, ranks, modules, optimizer)
    faults = Faults(len(images), "images", stage.state.get("faults", ()), COMPLAINT)
    dtype = compute_dtype(config.precision, ranks.device)
    step = micro_step if config.target == "ema" else step_towards(config.target)
    if ranks.device.type == "cuda":
        compile_blocks(model)
    stream = micro_batches(batches, ranks, stage.first)
    for update, parts in zip(stage.updates(), stream, strict=True):
        for part in parts:
            faults.note(part.faults)
        inputs = [
            (to_input(part.images, images.statistics, ranks.device), part.masks.to(ranks.device)) for part in parts
        ]
        is_watched = update % LOG_EVERY == 0 or update + 1 == total
        losses = train_step(
            model,
            optimizer,
            inputs,
            rates,
            update,
            dtype=dtype,
            is_watched=is_watched,
            step=step,
        )
        stage.log(update, losses)
        is_due = stage.due(update)
        if is_watched or is_due:
            faults.share()
        if is_due:
            stage.save(update, state={"is_finished": update + 1 == total, "faults": sorted(faults.names)})
    if total == 0:
        stage.save(-1, state={"is_finished": True})


def pretraining_images(run: Run, config: Config, ranks: dist.Ranks, splits: Splits | None) -> Images:
    """What the encoder learns from; the games are played here, for the encoder and for the probes."""
    if splits is not None:
        return splits.pretrain
    folder = run.folder.resolve() / "play"
    if dist.is_main(ranks):
        with run.timed("collect"):
            for purpose, steps in (("pretrain", config.env_steps), ("probe", config.probe_env_steps)):
                play.collect(folder, config.task, purpose, steps, config.seed, config.workers)
    dist.barrier()
    plays = data.pretraining_play(folder, config)
    return data.Frames(plays, data.frame_statistics(plays, config))


def check(config: Config, ranks: dist.Ranks) -> tuple[JEPA, Splits | None]:
    """The networks and images, once everything that can be wrong with the settings has been looked at.

    Raises ValueError.
    """
    if config.micro_batches % ranks.world_size:
        raise ValueError(
            f"batch_size: {config.micro_batches} micro-batches of {config.micro_batch_size} images do not divide over "
            f"{ranks.world_size} processes"
        )
    splits = data.load_splits(config)
    if splits is not None:
        data.check_batch(splits.pretrain, config)
    else:
        play.check_emulator()
        frames = config.env_steps // play.PLAYERS * play.PLAYERS
        if config.is_trained and frames < config.batch_size:
            raise ValueError(f"a batch of {config.batch_size} images needs more than the {frames} frames to be played")
    model = new_model(config, data.channels(splits), config.init_from)
    check_masks(mask_config(config, model.encoder.grid))
    return model, splits


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(Config, TASKS, PRESETS, argv, prog="python -m ijepa.train", description=__doc__ or "")
    usable_device(config.device)
    ranks = dist.setup(config.device)
    try:
        try:
            model, splits = check(config, ranks)
        except (ValueError, OSError) as error:
            user_error(str(error))
        run = Run.open("ijepa", config, options.preset, run_folder("ijepa", config, options))
        dist.barrier()
        seed_everything(config.seed, config.device)
        train_encoder(run, config, ranks, model, pretraining_images(run, config, ranks, splits))
        if dist.is_main(ranks):
            print(f"trained: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)
