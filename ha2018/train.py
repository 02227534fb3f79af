"""Train V, M and C in that order: random play, the VAE, the MDN-RNN, then evolution of C.

C evolves inside the dream of M for Doom and in the real environment for CarRacing.

    python -m ha2018.train --preset cpu --seed 0

The same command continues an interrupted run. `--stage` ends after one of the stages. `--world-from RUN` takes the
frames, V and M of another run, so that many controllers share one world.
Source: paper, sections 3 and 4; reference code: extract.py, vae_train.py, rnn_train.py, train.py of each task.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from common import dist
from common.config import parse, user_error
from common.files import atomic_write
from common.precision import compute_dtype
from common.program import program
from common.run import Run, run_folder, seed_everything, usable_device
from common.seeding import derive_seed
from common.stage import Stage
from ha2018 import data, env, racing, world
from ha2018.agent import new_memory
from ha2018.cma_es import Evolution, as_received_from_workers, as_sent_to_workers, cost, rollout_seeds
from ha2018.config import PRESETS, TASKS, Config
from ha2018.data import Batch, Frames, Latents
from ha2018.dream import FirstFrames, rollout_returns
from ha2018.dream_fast import FastDream
from ha2018.memory import MDNRNN, State
from ha2018.memory_fast import losses, unroll_teacher_forced
from ha2018.rollout import environment_returns, open_worlds
from ha2018.vision import VAE, kl_loss, reconstruction_loss

# params [N, P], seeds [N] -> returns [N, R] and the environment steps they took
Rollouts = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int]]
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


def memory_losses(
    memory: MDNRNN, batch: Batch, state: State, restart_weight: float
) -> tuple[Tensor, dict[str, Tensor], State]:
    """Losses of M on T frames, i.e. T - 1 steps, from `state`: the next latent and whether an episode begins there.

    The target across the border of two episodes is the first frame of the next one and is not masked, as in the
    official code. Returns their sum, both by name, and the state after the last step, without gradient.
    """
    h, state = unroll_teacher_forced(memory, batch.z[:, :-1], batch.action[:, :-1], batch.restart[:, :-1], state)
    target, restart = batch.z[:, 1:].transpose(0, 1), batch.restart[:, 1:].t()  # time-major like h
    total, parts = losses(memory, h.flatten(0, 1), target.flatten(0, 1), restart.flatten(), restart_weight)
    return total, parts, state


def memory_step(
    memory: MDNRNN, optimizer: torch.optim.Optimizer, batch: Batch, state: State, config: Config
) -> tuple[dict[str, Tensor], State]:
    """One update of M. Returns the losses before it and the carried state."""
    total, parts, state = memory_losses(memory, batch, state, config.restart_weight)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    dist.average_gradients(memory.parameters())
    torch.nn.utils.clip_grad_value_(memory.parameters(), config.gradient_clip)
    optimizer.step()
    return parts, state


def train_vision(run: Run, config: Config, ranks: dist.Ranks, frames: Frames, holdout: Frames) -> VAE:
    """V on all frames, without rewards."""
    vae = VAE(config.z_size, compute_dtype(config.precision, ranks.device)).to(ranks.device)
    # Deviation D16, for M too: TensorFlow's Adam adds its epsilon before the correction of the second moment.
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.vision_lr, fused=True)
    total = min(config.vision_epochs * (len(frames) // config.vision_batch), config.vision_updates or sys.maxsize)
    stage = Stage(run, "vision", total, config.checkpoint_seconds, ranks, {"V": vae}, optimizer)
    mine = dist.share(config.vision_batch, ranks)
    batches = data.vision_batches(frames, config.vision_batch, config.seed, stage.first)
    for update in stage.updates():
        images = data.to_images(next(batches)[mine], ranks.device)
        noise = _noise(config.vision_batch, config, ranks, "vision noise", update)[mine]
        stage.log(update, vision_step(vae, optimizer, images, noise, config))
        if stage.due(update):
            if update + 1 == total:
                run.log("vision holdout", total, **vision_holdout(vae, holdout, config, ranks))
            stage.save(update)
    return vae.eval()


def train_memory(run: Run, config: Config, ranks: dist.Ranks, latents: Latents, holdout: Latents) -> MDNRNN:
    """M on the latents of all episodes, without rewards."""
    memory = new_memory(config).to(ranks.device)
    optimizer = torch.optim.Adam(memory.parameters(), lr=config.memory_lr, fused=True)
    batch_size, length = config.memory_batch, config.memory_length
    per_epoch = data.memory_batches_per_epoch(len(latents.mu), batch_size, length)
    total = config.memory_epochs * per_epoch
    total = total if config.memory_updates is None else min(total, config.memory_updates)
    stage = Stage(run, "memory", total, config.checkpoint_seconds, ranks, {"M": memory}, optimizer)
    if total == 0:
        stage.save(-1)  # the control of an M as it was initialised
        return memory.eval()
    mine = dist.share(batch_size, ranks)
    for update in stage.updates():
        epoch, k = divmod(update, per_epoch)
        if k == 0:
            state = memory.initial_state(mine.stop - mine.start)
        elif update == stage.first:
            state = State(stage.extra["c"][mine], stage.extra["h"][mine])
        if k == 0 or update == stage.first:
            stream = data.MemoryEpoch(latents, batch_size, length, config.seed, epoch, ranks.device)
        optimizer.param_groups[0]["lr"] = memory_lr(update, config)
        parts, state = memory_step(memory, optimizer, stream.batch(k, mine), state, config)
        stage.log(update, parts)
        if stage.due(update):
            if update + 1 == total:
                run.log("memory holdout", total, **memory_holdout(memory, holdout, config, ranks))
            carried = {name: dist.gather_rows(getattr(state, name), batch_size, ranks) for name in ("c", "h")}
            stage.save(update, extra=carried)
    return memory.eval()


def memory_lr(update: int, config: Config) -> float:
    """(lr - lr_end) decay^update + lr_end, the official schedule of Doom's M."""
    return (config.memory_lr - config.memory_lr_end) * config.memory_lr_decay**update + config.memory_lr_end


def train_controller(run: Run, config: Config, ranks: dist.Ranks, rollouts: Rollouts) -> np.ndarray:
    """CMA-ES on the mean return of the `rollouts`, every rank rolling out its part of the population.

    Returns the parameters [P] of the CMA mean with the best trial.
    """
    where = "dream" if config.task == "doom" else "real"
    stage = Stage(run, "controller", config.generations, config.checkpoint_seconds, ranks)
    told = list(stage.extra["costs"].cpu().numpy()) if stage.first else []
    evolution = Evolution(config.controller_params, config.population, config.sigma0, config.seed, told)
    rng = np.random.RandomState(config.seed)
    for _ in range(stage.first):
        rollout_seeds(rng, config.population)
    best, best_trial = stage.extra.get("best"), stage.state.get("best_trial", -np.inf)
    for generation in stage.updates():
        solutions, seeds = evolution.ask(), rollout_seeds(rng, config.population)
        returns, env_frames = rollouts(as_sent_to_workers(solutions), seeds)
        returns = returns.mean(1)
        evolution.tell(solutions, cost(as_received_from_workers(returns), solutions))
        stage.log(generation, _generation_metrics(returns, env_frames, evolution), every=1)
        if (generation + 1) % config.trial_every == 0 or generation + 1 == config.generations:
            mean = evolution.mean
            trial, env_frames = rollouts(np.tile(mean, (config.trial_seeds, 1)), np.arange(config.trial_seeds))
            numbers = {f"{where}_return": trial.mean(), f"{where}_std": trial.std()}
            run.log("controller trial", generation + 1, **numbers, **_spent(env_frames))
            if trial.mean() > best_trial:
                best, best_trial = torch.from_numpy(mean), float(trial.mean())
        if stage.due(generation):
            extra = {"costs": torch.from_numpy(np.stack(evolution.costs))} | ({} if best is None else {"best": best})
            stage.save(generation, extra, {"best_trial": best_trial} if best is not None else {})
    assert best is not None  # the last generation always has a trial
    return best.cpu().numpy()


def dream_returns(
    params: np.ndarray,
    seeds: np.ndarray,
    memory: MDNRNN,
    bank: FirstFrames,
    config: Config,
    ranks: dist.Ranks,
    fast: FastDream | None = None,
) -> tuple[np.ndarray, int]:
    """Dream returns [N, R] of the controllers params [N, P], and no environment steps.

    The members are divided over the ranks. `fast` is used again from generation to generation.
    """
    mine = dist.share(len(params), ranks)
    returns = rollout_returns(
        memory,
        bank,
        torch.from_numpy(params[mine]),
        seeds[mine].tolist(),
        config.rollouts,
        config.temperature,
        config.max_steps,
        compute_dtype(config.precision, ranks.device),
        fast,
    )
    return dist.gather_rows(returns.to(ranks.device), len(params), ranks).cpu().numpy().astype(np.float64), 0


def _spent(env_frames: int) -> dict[str, float]:
    """Environment steps where there were any; dreams take none."""
    return {"env_frames": env_frames} if env_frames else {}


def _generation_metrics(returns: np.ndarray, env_frames: int, evolution: Evolution) -> dict[str, float]:
    """What the published history holds of a generation: returns [N] are means over the rollouts of a member."""
    population = {"mean": returns.mean(), "min": returns.min(), "max": returns.max(), "std": returns.std()}
    return {f"pop_{name}": float(value) for name, value in population.items()} | {
        "sigma_rms": evolution.sigma_rms,
        **_spent(env_frames),
    }


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
    stream = data.MemoryEpoch(latents, 1, len(latents.mu), config.seed, 0, ranks.device)
    _, parts, _ = memory_losses(memory, stream.batch(0), memory.initial_state(1), config.restart_weight)
    return {name: float(loss) for name, loss in parts.items()}


def _noise(rows: int, config: Config, ranks: dist.Ranks, purpose: str, number: int) -> torch.Tensor:
    """Standard normal [rows, Z], a function of the seed, the purpose and the number alone."""
    generator = torch.Generator(ranks.device).manual_seed(derive_seed(config.seed, purpose, number))
    return torch.randn(rows, config.z_size, generator=generator, device=ranks.device)


def first_frames(latents: Latents, config: Config, device: torch.device) -> FirstFrames:
    """The bank of dream beginnings: the first frames of the first episodes."""
    rows = latents.first[: config.first_frames]
    return FirstFrames.of(latents.mu[rows].to(device), latents.logvar[rows].to(device))


def train(run: Run, config: Config, ranks: dist.Ranks, last: str) -> None:
    """All stages up to `last`, each from where it stopped."""
    folder = run.folder.resolve()
    if dist.is_main(ranks):
        with run.timed("collect"):
            needed = config.episodes + config.holdout_episodes
            play: Any = racing.random_episode
            if config.task == "doom":
                play = partial(env.random_episode, longest_hold=config.longest_hold, vary_hold=config.vary_hold)
            with open_worlds(config, config.workers, config.collected_steps) as worlds:
                data.collect(
                    run, folder / "frames", worlds, play, needed, config.min_frames, config.seed, config.png_level
                )
    dist.barrier()
    if last == "collect":
        return
    frames = Frames(folder / "frames", config.episodes)
    holdout = Frames(folder / "frames", config.holdout_episodes, skip=config.episodes)
    try:  # before hours of V are spent on them
        data.memory_batches_per_epoch(len(frames), config.memory_batch, config.memory_length)
        data.vision_batches_per_epoch(len(frames), config.vision_batch)
    except ValueError as error:
        user_error(str(error))
    vae = train_vision(run, config, ranks, frames, holdout)
    if last == "vision":
        return
    encoded = {"latents": frames, "latents_holdout": holdout}
    if dist.is_main(ranks):
        with run.timed("encode"):
            for name, part in encoded.items():
                data.encode(run, vae, part, folder / f"{name}.safetensors", ranks.device)
    dist.barrier()
    latents, latents_holdout = (
        data.load_latents(part, folder / f"{name}.safetensors") for name, part in encoded.items()
    )
    memory = train_memory(run, config, ranks, latents, latents_holdout)
    if last == "memory":
        return
    bank = first_frames(latents, config, ranks.device)
    if config.task == "doom":
        fast = FastDream(memory, config.temperature, compute_dtype(config.precision, ranks.device))
        dream = partial(dream_returns, memory=memory, bank=bank, config=config, ranks=ranks, fast=fast)
        params = train_controller(run, config, ranks, dream)
    else:
        with open_worlds(config, config.games) as worlds:
            real = partial(environment_returns, vae=vae, memory=memory, worlds=worlds, config=config, ranks=ranks)
            params = train_controller(run, config, ranks, real)
    if dist.is_main(ranks):
        tensors = {
            "params": torch.from_numpy(params),
            "bank_mu": bank.mu.cpu(),
            "bank_logvar": bank.logvar.cpu(),
            "frames": torch.tensor(len(frames)),
        }
        atomic_write(folder / "controller.safetensors", safetensors.torch.save(tensors))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=STAGES, default=STAGES[-1], help="end after this stage (default: the last)")
    parser.add_argument(
        "--world-from", type=Path, metavar="FOLDER", help="take V, and M if of these settings, from a run"
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
        if options.world_from is not None:
            world.check(options.world_from, config)
        run = Run.open("ha2018", config, options.preset, run_folder("ha2018", config, options))
        if options.world_from is not None and dist.is_main(ranks):
            world.adopt(run, options.world_from, config)
        dist.barrier()
        seed_everything(config.seed, config.device)
        train(run, config, ranks, options.stage)
        if dist.is_main(ranks):
            print(f"trained up to {options.stage}: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)
