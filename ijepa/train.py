"""Train I-JEPA: predict the representations of hidden blocks of an image from the rest of it.

    python -m ijepa.train --preset cpu --seed 0

The same command continues an interrupted run. Games are played first; their frames stay in the run folder.
Source: paper, section 3; reference code: src/train.py.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common import dist
from common.config import parse, user_error
from common.precision import compute_dtype
from common.program import program
from common.run import Run, run_folder, seed_everything, usable_device
from common.stage import LOG_EVERY, Stage
from ijepa import collapse, data, env, masks
from ijepa.build import STAGE, build, mask_config, schedule
from ijepa.config import PRESETS, TASKS, Config
from ijepa.data import Faults, Images, MicroBatches, Splits, micro_batches, to_input
from ijepa.jepa import (
    JEPA,
    Schedule,
    distance,
    new_optimizer,
    normalise,
    pixel_targets,
    predict,
    select,
    set_schedule,
    targets,
    update_target,
)
from ijepa.masks import Masks


def full_targets(model: JEPA, images: Tensor, kind: str) -> Tensor:
    """What could be predicted of images [m, C, H, W]: tokens [m, N, D], normalised. Kinds as in `Config.target`."""
    if kind == "ema":
        return targets(model.target_encoder, images)
    if kind == "online":
        return targets(model.encoder, images)
    return pixel_targets(images, model.encoder.patch) if kind == "pixels" else normalise(model.encoder(images))


def micro_step(model: JEPA, images: Tensor, context: list[Tensor], target: list[Tensor], kind: str) -> list[Tensor]:
    """The loss of one micro-batch, with gradient, and the tokens [m, N, D] that its targets were taken from."""
    found = Masks(context, target)
    tokens = full_targets(model, images, kind)
    return [distance(predict(model, images, found), select(tokens, found)), tokens]


def train_step(
    model: JEPA,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Masks]],
    schedule: Schedule,
    update: int,
    kind: str = "ema",
    *,
    dtype: torch.dtype = torch.float32,
    is_watched: bool = False,
    step: Callable[..., list[Tensor]] = micro_step,
) -> dict[str, Tensor]:
    """One update on this rank's micro-batches, each images [m, C, H, W] normalised and its masks.

    The gradient is the mean over micro-batches and ranks. Returns the loss before the update, and with `is_watched`
    the numbers of `collapse.watch` on the first micro-batch. dtype: what the matrix products multiply, float32 (or that
    of the weights) or bfloat16. `step` may be a compiled `micro_step`.
    """
    set_schedule(optimizer, schedule.lr_at(update), schedule.weight_decay_at(update))
    optimizer.zero_grad(set_to_none=True)
    losses, watched = [], {}
    for k, (images, found) in enumerate(batches):
        # Deviation D4: no gradient scaler; bfloat16 has the exponents of float32.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, tokens = step(model, images, found.context, found.target, kind)
        (loss / len(batches)).backward()
        losses.append(loss.detach())
        if is_watched and k == 0:
            watched = collapse.watch(tokens.detach(), found.target, losses[0])
    dist.average_gradients(model.parameters())
    optimizer.step()
    update_target(model.target_encoder, model.encoder, schedule.momentum_at(update))
    return {"loss": torch.stack(losses).mean(), **watched}


def train_encoder(run: Run, config: Config, ranks: dist.Ranks, model: JEPA, images: Images) -> None:
    """The loop. Images that cannot be read are named as they are met."""
    model.to(ranks.device)
    batches = MicroBatches(images, config, mask_config(config, model.encoder.grid))
    total = batches.updates
    rates = schedule(config, total)
    optimizer = new_optimizer(model)
    modules = {"encoder": model.encoder, "predictor": model.predictor, "target_encoder": model.target_encoder}
    stage = Stage(run, STAGE, total, config.checkpoint_seconds, ranks, modules, optimizer)
    faults = Faults(len(images), stage.state.get("faults", ()))
    dtype = compute_dtype(config.precision, ranks.device)
    # Lengths of masks change from update to update: one graph for all of them.
    step = torch.compile(micro_step, dynamic=True) if ranks.device.type == "cuda" else micro_step
    stream = micro_batches(batches, ranks, stage.first)
    for update, found in zip(stage.updates(), stream, strict=True):
        for batch in found:
            faults.note(batch.faults)
        inputs = [
            (to_input(batch.images, images.statistics, ranks.device), batch.masks.to(ranks.device)) for batch in found
        ]
        is_watched = update % LOG_EVERY == 0 or update + 1 == total
        losses = train_step(
            model,
            optimizer,
            inputs,
            rates,
            update,
            config.target,
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
            for purpose, steps in (("pretrain", config.frames), ("probe", config.probe_frames)):
                env.collect(folder, config.task, purpose, steps, config.seed, config.workers)
    dist.barrier()
    plays = env.load(folder, "pretrain")
    return data.Frames(plays, data.frame_statistics(plays, config))


def check(config: Config, ranks: dist.Ranks) -> tuple[JEPA, Splits | None]:
    """The networks and images, once everything that can be wrong with the settings has been looked at.

    Raises ValueError.
    """
    if config.micro_batches % ranks.world_size:
        raise ValueError(
            f"batch: {config.micro_batches} micro-batches of {config.micro_batch} images do not divide over "
            f"{ranks.world_size} processes"
        )
    splits = data.load_splits(config)
    if splits is not None:
        data.check_batch(splits.pretrain, config)
    elif config.frames // env.PLAYERS < 1 or (config.is_trained and config.frames < config.batch):
        raise ValueError(f"a batch of {config.batch} images needs more than the {config.frames} frames to be played")
    model = build(config, data.channels(splits), config.init_from)
    masks.check(mask_config(config, model.encoder.grid))
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
