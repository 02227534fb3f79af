"""Train V-JEPA or V-JEPA 2: predict the representations of hidden tubes of a clip from the rest of it.

    python -m vjepa.train --preset cpu --seed 0

The same command continues an interrupted run. Tasks of planning (two-rooms, wall, ...) are handed to `vjepa.ac`.
`micro_step` is the method, `train_step` one update with it, `train_encoder` the loop.
Source: V-JEPA, section 3; V-JEPA 2, section 2; reference code: app/vjepa/train.py.
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
from vjepa import collapse, data
from vjepa.ablations import Step, pixel_step
from vjepa.ac import train as plan
from vjepa.ac.handover import is_ac
from vjepa.build import STAGE, check_masks, new_model, new_schedule
from vjepa.config import PRESETS, TASKS, Config
from vjepa.crops import to_input
from vjepa.data import Clips, MicroBatches, Splits, micro_batches
from vjepa.jepa import (
    JEPA,
    Schedule,
    clip_gradients,
    distance,
    new_optimizer,
    predict,
    select,
    set_schedule,
    targets,
    update_target,
)
from vjepa.masks import Masks
from vjepa.vit import Block


def micro_step(model: JEPA, clips: Tensor, context: list[Tensor], target: list[Tensor]) -> list[Tensor]:
    """The loss of one micro-batch, with gradient, and the tokens [m, N, D] that its targets were taken from.

    clips [m, C, F, H, W]; for each kind of masks a context [m, Kc] and a target [m, Kt].
    Source: V-JEPA, Eq. 1 and section 3.
    """
    masks = Masks(context, target)
    tokens = targets(model.target_encoder, clips)  # of the whole clip, once for all kinds, no gradient
    predictions = predict(model, clips, masks)  # from each context alone
    return [distance(predictions, select(tokens, masks)), tokens]


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
    """One update on this rank's micro-batches, each clips [m, C, F, H, W] normalised and their masks.

    The gradient is the mean over micro-batches and ranks. Returns the loss before the update, and with `is_watched`
    the numbers of `collapse.watch` on the first micro-batch. dtype: what the matrix products multiply, float32 (or that
    of the weights) or bfloat16. `step` may be `ablations.pixel_step`.
    """
    set_schedule(optimizer, schedule.lr_at(update), schedule.weight_decay_at(update))
    optimizer.zero_grad(set_to_none=True)
    losses, watched = [], {}
    for k, (clips, masks) in enumerate(batches):
        # Deviation D4: no gradient scaler; bfloat16 has the exponents of float32.
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, tokens = step(model, clips, masks.context, masks.target)
        (loss / len(batches)).backward()
        losses.append(loss.detach())
        if is_watched and k == 0:
            watched = collapse.watch(tokens.detach(), masks.target, losses[0])
    dist.average_gradients(model.parameters())
    most = schedule.clip_at(update)
    if most is not None:
        clip_gradients(model, most)
    optimizer.step()
    update_target(model.target_encoder, model.encoder, schedule.momentum_at(update))
    return {"loss": torch.stack(losses).mean(), **watched}


def compile_blocks(model: JEPA) -> None:
    """One graph for all blocks of a width, whatever the depth: compiling takes seconds, not minutes.

    Lengths of masks change from update to update, hence `dynamic`.
    """
    forward = eager.own_copy(Block.forward)
    for part in (model.encoder.blocks, model.target_encoder.blocks, model.predictor.predictor_blocks):
        for block in part:
            block.forward = eager.compiled("a block", MethodType(forward, block), dynamic=True)


def train_encoder(run: Run, config: Config, ranks: dist.Ranks, model: JEPA, clips: Clips) -> None:
    """The loop. Videos that cannot be read are named as they are met."""
    model.to(ranks.device)
    batches = MicroBatches(clips, config, model.encoder.grid)
    total = config.updates
    rates = new_schedule(config, total)
    optimizer = new_optimizer(model)
    modules = {"encoder": model.encoder, "predictor": model.predictor, "target_encoder": model.target_encoder}
    stage = Stage(run, STAGE, total, config.checkpoint_seconds, ranks, modules, optimizer)
    faults = Faults(len(clips), "videos", stage.state.get("faults", ()))
    dtype = compute_dtype(config.precision, ranks.device)
    step = micro_step if config.target == "ema" else pixel_step
    if ranks.device.type == "cuda":
        compile_blocks(model)
    stream = micro_batches(batches, ranks, stage.first)
    for update, parts in zip(stage.updates(), stream, strict=True):
        for part in parts:
            faults.note(part.faults)
        inputs = [(to_input(part.clips, clips.statistics, ranks.device), part.masks.to(ranks.device)) for part in parts]
        is_watched = update % LOG_EVERY == 0 or update + 1 == total
        losses = train_step(model, optimizer, inputs, rates, update, dtype=dtype, is_watched=is_watched, step=step)
        stage.log(update, losses)
        is_due = stage.due(update)
        if is_watched or is_due:
            faults.share()
        if is_due:
            stage.save(update, state={"is_finished": update + 1 == total, "faults": sorted(faults.names)})
    if total == 0:
        stage.save(-1, state={"is_finished": True})


def check(config: Config, ranks: dist.Ranks) -> tuple[JEPA, Splits]:
    """The networks and clips, once everything that can be wrong with the settings has been looked at.

    Raises ValueError.
    """
    if config.micro_batches % ranks.world_size:
        raise ValueError(
            f"batch_size: {config.micro_batches} micro-batches of {config.micro_batch_size} clips do not divide over "
            f"{ranks.world_size} processes"
        )
    splits = data.load_splits(config)
    data.check_batch(splits.pretrain, config)
    model = new_model(config, splits.pretrain.channels, config.init_from)
    check_masks(config, model.encoder.grid)
    return model, splits


def main(argv: Sequence[str] | None = None) -> None:
    if is_ac(argv):
        plan.main(argv)
        return
    config, options = parse(Config, TASKS, PRESETS, argv, prog="python -m vjepa.train", description=__doc__ or "")
    usable_device(config.device)
    ranks = dist.setup(config.device)
    try:
        try:
            model, splits = check(config, ranks)
        except (ValueError, OSError) as error:
            user_error(str(error))
        run = Run.open("vjepa", config, options.preset, run_folder("vjepa", config, options))
        dist.barrier()
        seed_everything(config.seed, config.device)
        train_encoder(run, config, ranks, model, splits.pretrain)
        if dist.is_main(ranks):
            print(f"trained: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)
