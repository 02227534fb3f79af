"""Train V, M and C in that order: random play, the VAE, the MDN-RNN, then evolution of C.

C evolves inside the dream of M for Doom and in the real environment for CarRacing.

    python -m ha2018.train --preset cpu --seed 0

The same command continues an interrupted run. `--stage` ends after one of the stages. `--model-from RUN` takes V and M
of another run, so that many controllers share one world model.
Source: paper, sections 3 and 4; reference code: extract.py, vae_train.py, rnn_train.py, train.py of each task.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import dist, graph
from common.config import parse, user_error
from common.graph import Graph
from common.precision import compute_dtype
from common.program import program
from common.run import Run, run_folder, seed_everything, usable_device
from common.seeding import derive_seed
from common.stage import Stage
from ha2018 import data, encoding, random_play, world_model
from ha2018.agent import new_memory, new_vae
from ha2018.config import PRESETS, TASKS, Config
from ha2018.data import Frames
from ha2018.dream import FirstFrames
from ha2018.dream_fast import FastDream
from ha2018.encoding import Batch, Latents
from ha2018.evolution import dream_returns, evolve, save_controller
from ha2018.memory import MDNRNN, State, sequence_losses
from ha2018.memory_fast import FastLosses
from ha2018.rollout import environment_returns, open_games
from ha2018.vision import VAE, kl_loss, reconstruction_loss

STAGES = ("collect", "vision", "memory", "controller")


def vision_step(
    vae: VAE, optimizer: torch.optim.Optimizer, images: Tensor, noise: Tensor, config: Config
) -> dict[str, Tensor]:
    """One update of V on images [B, 3, 64, 64] in [0, 1] with noise [B, Z]. Returns the losses before it."""
    reconstruction, mu, logvar = vae(images, noise)
    parts = {
        "reconstruction": reconstruction_loss(images, reconstruction),
        "kl": kl_loss(mu, logvar, config.kl_tolerance),
    }
    optimizer.zero_grad(set_to_none=True)
    (parts["reconstruction"] + parts["kl"]).backward()
    dist.average_gradients(vae.parameters())
    optimizer.step()
    return {name: loss.detach() for name, loss in parts.items()}


def memory_step(
    memory: MDNRNN, fast: FastLosses, optimizer: torch.optim.Optimizer, batch: Batch, state: State, config: Config
) -> tuple[dict[str, Tensor], State]:
    """One update of M on `memory.sequence_losses`, which `fast` (of this M) calculates with its gradients.

    Returns the losses before the update and the carried state.
    """
    losses, state = fast.losses_and_gradients(batch.z, batch.action, batch.restart, state, config.restart_weight)
    dist.average_gradients(memory.parameters())
    torch.nn.utils.clip_grad_value_(memory.parameters(), config.gradient_clip)
    optimizer.step()
    return losses, state


def new_vision_learner(
    vae: VAE, optimizer: torch.optim.Optimizer, config: Config, ranks: dist.Ranks
) -> Graph[dict[str, Tensor]]:
    """`vision_step` of images and noise for a run; several processes run it without a graph."""
    graph.prepare(optimizer, ranks.device)

    def step(images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return vision_step(vae, optimizer, images, noise, config)

    return Graph("an update of V", step, ranks.device, captures=ranks.world_size == 1)


def new_memory_learner(
    memory: MDNRNN, optimizer: torch.optim.Optimizer, config: Config, ranks: dist.Ranks
) -> Graph[tuple[dict[str, Tensor], State]]:
    """`memory_step` of a batch and the carried state for a run; several processes run it without a graph."""
    graph.prepare(optimizer, ranks.device)
    # Deviation D14: its products too are in bfloat16 where the preset allows it and the device has it.
    fast = FastLosses(memory, compute_dtype(config.precision, ranks.device))

    def step(batch: Batch, state: State) -> tuple[dict[str, Tensor], State]:
        return memory_step(memory, fast, optimizer, batch, state, config)

    return Graph("an update of M", step, ranks.device, captures=ranks.world_size == 1)


def collect(run: Run, config: Config, ranks: dist.Ranks) -> None:
    """Random play, unless its frames are encoded already. One line and exit code 2 if it is too little to train on."""
    if dist.is_main(ranks) and not encoding.is_encoded(run.folder):
        if config.task == "doom":
            play = partial(random_play.doom_episode, longest_hold=config.longest_hold, vary_hold=config.vary_hold)
        else:
            play = partial(random_play.car_episode, steps=config.max_steps)
        with open_games(config, config.workers, config.collected_steps) as games:
            data.collect(run, games, play, config)
    dist.barrier()
    frames = encoding.count_frames(run, config.episodes)
    try:  # before hours of V are spent on them
        data.vision_updates(config, frames)
        encoding.memory_updates(config, frames)
    except ValueError as error:
        user_error(str(error))


def train_vision(run: Run, config: Config, ranks: dist.Ranks) -> VAE:
    """V on all frames, without rewards."""
    vae = new_vae(config, ranks.device)
    # Deviation D16, for M too: TensorFlow's Adam adds its epsilon before the correction of the second moment.
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.vision_lr, fused=True)
    total = data.vision_updates(config, encoding.count_frames(run, config.episodes))
    stage = Stage(run, "vision", total, config.checkpoint_seconds, ranks, {"V": vae}, optimizer)
    if stage.first == total:
        return vae.eval()
    learner = new_vision_learner(vae, optimizer, config, ranks)
    frames = Frames(run, config.episodes)
    mine = dist.share(config.vision_batch, ranks)
    batches = data.vision_batches(frames, config.vision_batch, config.seed, stage.first)
    for update in stage.updates():
        images = data.to_images(next(batches)[mine], ranks.device)
        noise = _noise(config.vision_batch, config, ranks, "vision noise", update)[mine]
        stage.log(update, learner(images, noise))
        if stage.due(update):
            if update + 1 == total:
                holdout = Frames(run, config.holdout_episodes, skip=config.episodes)
                run.log("vision holdout", total, **vision_holdout(vae, holdout, config, ranks))
            stage.save(update)
    return vae.eval()


def encode_all(run: Run, config: Config, ranks: dist.Ranks, vae: VAE) -> FirstFrames:
    """The latents of all episodes on disk, and those of the first frames, in which dreams begin."""
    if dist.is_main(ranks) and not encoding.is_encoded(run.folder):
        for role, episodes, skip in (
            ("train", config.episodes, 0),
            ("holdout", config.holdout_episodes, config.episodes),
        ):
            if not encoding.has_latents(run.folder, role, episodes):
                encoding.encode(run, vae, Frames(run, episodes, skip), role, ranks.device)
        encoding.save_first_frames(run, encoding.load_latents(run, "train", config.episodes), config.first_frames)
    dist.barrier()
    return encoding.load_first_frames(run.folder, run.identity, ranks.device)[0]


def train_memory(run: Run, config: Config, ranks: dist.Ranks) -> MDNRNN:
    """M on the latents of all episodes, without rewards."""
    memory = new_memory(config, ranks.device)
    optimizer = torch.optim.Adam(memory.parameters(), lr=config.memory_lr, fused=True)
    total = encoding.memory_updates(config, encoding.count_frames(run, config.episodes))
    stage = Stage(run, "memory", total, config.checkpoint_seconds, ranks, {"M": memory}, optimizer)
    if total == 0:
        stage.save(-1)  # the control of an M as it was initialised
    if stage.first == total:
        return memory.eval()
    learner = new_memory_learner(memory, optimizer, config, ranks)
    latents = encoding.load_latents(run, "train", config.episodes)
    batch_size, length = config.memory_batch, config.memory_length
    per_epoch = encoding.memory_batches_per_epoch(len(latents.mu), batch_size, length)
    mine = dist.share(batch_size, ranks)
    for update in stage.updates():
        epoch, k = divmod(update, per_epoch)
        if k == 0:
            state = memory.initial_state(mine.stop - mine.start)
        elif update == stage.first:
            state = State(stage.extra["c"][mine], stage.extra["h"][mine])
        if k == 0 or update == stage.first:
            stream = encoding.MemoryEpoch(latents, batch_size, length, config.seed, epoch, ranks.device)
        graph.set_rate(optimizer, memory_lr(update, config))
        losses, state = learner(stream.batch(k, mine), state)
        stage.log(update, losses)
        if stage.due(update):
            if update + 1 == total:
                holdout = encoding.load_latents(run, "holdout", config.holdout_episodes)
                run.log("memory holdout", total, **memory_holdout(memory, holdout, config, ranks))
            carried = {name: dist.gather_rows(getattr(state, name), batch_size, ranks) for name in ("c", "h")}
            stage.save(update, extra=carried)
    return memory.eval()


def memory_lr(update: int, config: Config) -> float:
    """(lr - lr_end) decay^update + lr_end, the official schedule of Doom's M."""
    return (config.memory_lr - config.memory_lr_end) * config.memory_lr_decay**update + config.memory_lr_end


def train_controller(
    run: Run, config: Config, ranks: dist.Ranks, vae: VAE, memory: MDNRNN, first_frames: FirstFrames
) -> None:
    """C inside the dream of M for Doom and in the real game for CarRacing; leaves its parameters in the run folder."""
    if config.task == "doom":
        fast = FastDream(memory, compute_dtype(config.precision, ranks.device))
        dream = partial(dream_returns, memory=memory, bank=first_frames, config=config, ranks=ranks, fast=fast)
        params = evolve(run, config, ranks, dream)
    else:
        with open_games(config, config.games) as games:
            real = partial(environment_returns, vae=vae, memory=memory, games=games, config=config, ranks=ranks)
            params = evolve(run, config, ranks, real)
    save_controller(run, ranks, params)


@torch.no_grad()
def vision_holdout(vae: VAE, frames: Frames, config: Config, ranks: dist.Ranks) -> dict[str, float]:
    """The losses of V over all held-out frames."""
    rows = np.array_split(np.arange(len(frames)), -(-len(frames) // config.vision_batch))
    sums = {"reconstruction": 0.0, "kl": 0.0}
    for k, part in enumerate(data.read_ahead(frames, rows)):
        images = data.to_images(part, ranks.device)
        noise = _noise(len(part), config, ranks, "vision holdout", k)
        reconstruction, mu, logvar = vae(images, noise)
        sums["reconstruction"] += float(reconstruction_loss(images, reconstruction)) * len(part)
        sums["kl"] += float(kl_loss(mu, logvar, config.kl_tolerance)) * len(part)
    return {name: total / len(frames) for name, total in sums.items()}


@torch.no_grad()
def memory_holdout(memory: MDNRNN, latents: Latents, config: Config, ranks: dist.Ranks) -> dict[str, float]:
    """The losses of M over the held-out episodes, read as one stream."""
    stream = encoding.MemoryEpoch(latents, 1, len(latents.mu), config.seed, 0, ranks.device)
    whole = stream.batch(0)
    start = memory.initial_state(1)
    losses, _ = sequence_losses(memory, whole.z, whole.action, whole.restart, start, config.restart_weight)
    return {name: float(loss) for name, loss in losses.items()}


def _noise(rows: int, config: Config, ranks: dist.Ranks, purpose: str, number: int) -> torch.Tensor:
    """Standard normal [rows, Z], a function of the seed, the purpose and the number alone."""
    generator = torch.Generator(ranks.device).manual_seed(derive_seed(config.seed, purpose, number))
    return torch.randn(rows, config.z_size, generator=generator, device=ranks.device)


def train(run: Run, config: Config, ranks: dist.Ranks, last: str) -> None:
    """The method: all stages up to `last`, each from where it stopped."""
    collect(run, config, ranks)
    if last == "collect":
        return
    vae = train_vision(run, config, ranks)
    if last == "vision":
        return
    first_frames = encode_all(run, config, ranks, vae)
    memory = train_memory(run, config, ranks)
    if last == "memory":
        return
    train_controller(run, config, ranks, vae, memory, first_frames)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=STAGES, default=STAGES[-1], help="end after this stage (default: the last)")
    parser.add_argument(
        "--model-from", type=Path, metavar="FOLDER", help="take V, and M if of these settings, from a run"
    )


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(
        Config, TASKS, PRESETS, argv, prog="python -m ha2018.train", description=__doc__ or "", extra=_options
    )
    usable_device(config.device)
    ranks = dist.setup(config.device)
    try:
        for name in ("vision_batch", "memory_batch"):
            if getattr(config, name) % ranks.world_size:  # the mean of the ranks' gradients must be that of the batch
                user_error(f"{name} {getattr(config, name)} does not divide over {ranks.world_size} processes")
        if options.model_from is not None and dist.is_main(ranks):
            world_model.check(options.model_from, config)
        run = Run.open("ha2018", config, options.preset, run_folder("ha2018", config, options))
        if options.model_from is not None and dist.is_main(ranks):
            world_model.adopt(run, options.model_from, config)
        dist.barrier()
        run.identity = Run.load("ha2018", run.folder)["meta"]["identity"]  # the other ranks have not made the folder
        seed_everything(config.seed, config.device)
        train(run, config, ranks, options.stage)
        if dist.is_main(ranks):
            print(f"trained up to {options.stage}: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)
