"""Train V, M and C in that order: random play, the VAE, the MDN-RNN, then evolution inside the dream.

    python -m ha2018.train --preset cpu --seed 0

The same command continues an interrupted run. `--stage` ends after one of the stages.
Source: paper, section 4; reference code: doomrnn (extract.py, vae_train.py, rnn_train.py, train.py).
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from common import dist
from common.config import parse, user_error
from common.run import Run, atomic_write, run_folder, seed_everything, usable_device
from common.seeding import derive_seed
from common.stage import Stage
from ha2018 import data
from ha2018.agent import new_memory
from ha2018.cma_es import Evolution, as_received_from_workers, as_sent_to_workers, cost, rollout_seeds
from ha2018.config import PRESETS, TASKS, Config
from ha2018.data import Batch, Frames, Latents
from ha2018.dream import FirstFrames, rollout_returns
from ha2018.memory import MDNRNN, State
from ha2018.memory_fast import losses, unroll_teacher_forced
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
    vae = VAE(config.z_size).to(ranks.device)
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
    per_epoch = data.memory_batches_per_epoch(latents, batch_size, length)
    total = min(config.memory_epochs * per_epoch, config.memory_updates or sys.maxsize)
    stage = Stage(run, "memory", total, config.checkpoint_seconds, ranks, {"M": memory}, optimizer)
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


def train_controller(run: Run, config: Config, ranks: dist.Ranks, memory: MDNRNN, bank: FirstFrames) -> np.ndarray:
    """C inside the dream alone: CMA-ES on the mean dream return, every rank rolling out its part of the population.

    Returns the parameters [P] of the CMA mean with the best trial.
    """
    stage = Stage(run, "controller", config.generations, config.checkpoint_seconds, ranks)
    told = list(stage.extra["costs"].cpu().numpy()) if stage.first else []
    evolution = Evolution(config.controller_params, config.population, config.sigma0, config.seed, told)
    rng = np.random.RandomState(config.seed)
    for _ in range(stage.first):
        rollout_seeds(rng, config.population)
    best, best_trial = stage.extra.get("best"), stage.state.get("best_trial", -np.inf)
    for generation in stage.updates():
        solutions, seeds = evolution.ask(), rollout_seeds(rng, config.population)
        returns = dream_returns(memory, bank, as_sent_to_workers(solutions), seeds, config, ranks).mean(1)
        evolution.tell(solutions, cost(as_received_from_workers(returns), solutions))
        stage.log(generation, _generation_metrics(returns, evolution), every=1)
        if (generation + 1) % config.trial_every == 0 or generation + 1 == config.generations:
            mean = evolution.mean
            trial = dream_returns(
                memory,
                bank,
                np.tile(mean, (config.trial_seeds, 1)),
                np.arange(config.trial_seeds),
                config,
                ranks,
            )
            run.log("controller trial", generation + 1, dream_return=trial.mean(), dream_std=trial.std())
            if trial.mean() > best_trial:
                best, best_trial = torch.from_numpy(mean), float(trial.mean())
        if stage.due(generation):
            extra = {"costs": torch.from_numpy(np.stack(evolution.costs))} | ({} if best is None else {"best": best})
            stage.save(generation, extra, {"best_trial": best_trial} if best is not None else {})
    assert best is not None  # the last generation always has a trial
    return best.cpu().numpy()


def dream_returns(
    memory: MDNRNN,
    bank: FirstFrames,
    params: np.ndarray,
    seeds: np.ndarray,
    config: Config,
    ranks: dist.Ranks,
) -> np.ndarray:
    """Dream returns [N, R] of the controllers params [N, P]; the members are divided over the ranks."""
    mine = dist.share(len(params), ranks)
    returns = rollout_returns(
        memory,
        bank,
        torch.from_numpy(params[mine]),
        seeds[mine].tolist(),
        config.rollouts,
        config.temperature,
        config.max_steps,
    )
    return dist.gather_rows(returns.to(ranks.device), len(params), ranks).cpu().numpy().astype(np.float64)


def _generation_metrics(returns: np.ndarray, evolution: Evolution) -> dict[str, float]:
    """What the published history holds of a generation: returns [N] are means over the rollouts of a member."""
    population = {"mean": returns.mean(), "min": returns.min(), "max": returns.max(), "std": returns.std()}
    return {f"pop_{name}": float(value) for name, value in population.items()} | {"sigma_rms": evolution.sigma_rms}


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
            data.collect(
                run, folder / "frames", config.longest_hold, needed, config.min_frames, config.seed, config.workers
            )
    dist.barrier()
    if last == "collect":
        return
    frames = Frames(folder / "frames", config.episodes)
    holdout = Frames(folder / "frames", config.holdout_episodes, skip=config.episodes)
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
    params = train_controller(run, config, ranks, memory, bank)
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
        run = Run.open("ha2018", config, options.preset, run_folder("ha2018", config, options))
        dist.barrier()
        seed_everything(config.seed, config.device)
        train(run, config, ranks, options.stage)
        if dist.is_main(ranks):
            print(f"trained up to {options.stage}: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    main()
