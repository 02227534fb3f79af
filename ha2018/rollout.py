"""Rollouts of C in the real worlds, for the evolution of CarRacing's C and for every test: V and M as one batch.

Shapes: E episodes, B games that are still playing, N population members, R rollouts per member, Z latent size,
H hidden size, P parameters of C, A action size.
Source: paper, section 2.3 (the agent's loop); reference code: model.py of each task.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import dist
from common.run import progress_bar
from common.seeding import derive_seed
from ha2018 import data
from ha2018.config import Config
from ha2018.controller import Controller
from ha2018.env import TakeCover, button
from ha2018.memory import MDNRNN, State
from ha2018.processes import Worlds
from ha2018.racing import CarRacing
from ha2018.vision import VAE, sample_z


def open_worlds(config: Config, games: int, max_steps: int | None = None) -> Worlds:
    """`games` real games of the task, whose episodes end after `max_steps` (default: those of the config)."""
    steps = config.max_steps if max_steps is None else max_steps
    game = TakeCover if config.task == "doom" else CarRacing
    return Worlds(partial(game, steps), games, config.workers)


def command(action: np.ndarray) -> Any:
    """What a game is told for an action [A]: a button of Take Cover, or CarRacing's three numbers as they are."""
    return button(float(action[0])) if len(action) == 1 else action


@torch.no_grad()
def real_returns(
    vae: VAE,
    memory: MDNRNN,
    controller: Controller,
    params: Tensor,
    seeds: Sequence[int],
    worlds: Worlds,
    title: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths, each [E], of one episode per seed, all games of `worlds` side by side.

    params [P], or [E, P] with a controller for each episode. C acts on the latent z_t, sampled from a stream of the
    episode's own seed, and on the state from before it; M is advanced with [z_t, a_t]; then the game moves.
    A `title` shows a progress bar.
    """
    device = memory.bias.device
    params = params.to(memory.bias)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    waiting = list(range(len(seeds)))[::-1]
    active = list(range(min(worlds.count, len(seeds))))
    episode = [waiting.pop() for _ in active]  # what each game is playing
    noise = {e: torch.Generator().manual_seed(seeds[e]) for e in episode}
    with progress_bar(len(seeds), title, unit="episode") if title else nullcontext() as bar:
        obs = worlds.reset([(k, seeds[e]) for k, e in enumerate(episode)])
        state, restart = memory.initial_state(len(active)), torch.ones(len(active), device=device)
        while active:
            mu, logvar = vae.encode(data.to_images(np.stack(obs), device))
            draws = [torch.randn(mu.shape[1], generator=noise[episode[k]]) for k in active]
            z = sample_z(mu, logvar, torch.stack(draws).to(device))
            own = params[[episode[k] for k in active]] if params.ndim == 2 else params
            action = controller.action(own, z, state)
            if controller.inputs != "z":  # else nobody looks at the state
                state = memory.step(z, action, restart, state)
            moves = action.cpu().numpy()
            answers = worlds.step([(k, command(a)) for k, a in zip(active, moves, strict=True)])
            restart = torch.zeros_like(restart)
            obs, keep, ended = [], [], []
            for row, (k, (frame, reward, done)) in enumerate(zip(active, answers, strict=True)):
                returns[episode[k]] += reward
                lengths[episode[k]] += 1
                if done:
                    if bar is not None:
                        bar.update()
                    if not waiting:
                        continue
                    ended.append((row, len(obs), k))
                    episode[k] = e = waiting.pop()
                    noise[e] = torch.Generator().manual_seed(seeds[e])
                obs.append(frame)
                keep.append(row)
            if ended:
                beginnings = worlds.reset([(k, seeds[episode[k]]) for _, _, k in ended])
                for (row, place, _), frame in zip(ended, beginnings, strict=True):
                    obs[place], restart[row] = frame, 1
                    state.c[row], state.h[row] = 0, 0  # C acts before M has dropped them
            if len(keep) < len(active):
                active = [active[row] for row in keep]
                state, restart = State(state.c[keep], state.h[keep]), restart[keep]
    return returns, lengths


def environment_returns(
    params: np.ndarray,
    seeds: np.ndarray,
    vae: VAE,
    memory: MDNRNN,
    worlds: Worlds,
    config: Config,
    ranks: dist.Ranks,
) -> tuple[np.ndarray, int]:
    """Real returns [N, R] of the controllers params [N, P], and how many environment steps they took.

    Rollout r of a member has a track by the member's seed and r. The members are divided over the ranks.
    """
    mine = dist.share(len(params), ranks)
    tracks = [derive_seed(int(seed), "rollout", r) % 2**31 for seed in seeds[mine] for r in range(config.rollouts)]
    each = torch.from_numpy(params[mine]).repeat_interleave(config.rollouts, dim=0)
    controller = Controller(config.controller_inputs, config.controller_hidden)
    found = np.stack(real_returns(vae, memory, controller, each, tracks, worlds), axis=-1)  # [E, (return, length)]
    rows = torch.from_numpy(found).reshape(-1, config.rollouts, 2).to(ranks.device)
    every = dist.gather_rows(rows, len(params), ranks).cpu().numpy()
    return every[..., 0], int(every[..., 1].sum())
