"""Rollouts of C in the real worlds, for the evolution of CarRacing's C and for every test: V and M as one batch.

Shapes: E episodes, B games that are still playing, N population members, R rollouts per member, Z latent size,
H hidden size, P parameters of C, A action size.
Source: paper, section 2.3 (the agent's loop); reference code: model.py of each task.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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

DIVIDED_GAMES = 32  # so many games are answered in two halves; the batches of fewer would be small


def open_worlds(config: Config, games: int, max_steps: int | None = None) -> Worlds:
    """`games` real games of the task, whose episodes end after `max_steps` (default: those of the config)."""
    steps = config.max_steps if max_steps is None else max_steps
    game = TakeCover if config.task == "doom" else CarRacing
    return Worlds(partial(game, steps), games, config.workers)


def command(action: np.ndarray) -> Any:
    """What a game is told for an action [A]: a button of Take Cover, or CarRacing's three numbers as they are."""
    return button(float(action[0])) if len(action) == 1 else action


@dataclass(frozen=True)
class Policy:
    """V, M and C; params [P] of one controller, or [E, P] of one for each episode."""

    vae: VAE
    memory: MDNRNN
    controller: Controller
    params: Tensor


@torch.no_grad()
def real_returns(
    policy: Policy, seeds: Sequence[int], worlds: Worlds, title: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths, each [E], of one episode per seed, all games of `worlds` side by side.

    C acts on the latent z_t, sampled from a stream of the episode's own seed, and on the state from before it; M is
    advanced with [z_t, a_t]; then the game moves. A `title` shows a progress bar.
    """
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    waiting = list(range(len(seeds)))[::-1]
    games = np.arange(min(worlds.count, len(seeds)))
    # While the games of one half move, the other half is answered.
    halves = np.array_split(games, 2 if len(games) >= DIVIDED_GAMES else 1)
    with progress_bar(len(seeds), title, unit="episode") if title else nullcontext() as bar:
        groups = [_Group(policy, seeds, worlds, half.tolist(), waiting) for half in halves]
        for group in groups:
            group.act()
        while groups:
            for group in groups:
                for e, reward, is_done in group.see():
                    returns[e] += reward
                    lengths[e] += 1
                    if is_done and bar is not None:
                        bar.update()
                if group.games:
                    group.act()
            groups = [group for group in groups if group.games]
    return returns, lengths


class _Group:
    """Games that are answered as one batch; each plays one of the `waiting` episodes after the other."""

    def __init__(
        self, policy: Policy, seeds: Sequence[int], worlds: Worlds, games: list[int], waiting: list[int]
    ) -> None:
        self.vae, self.memory, self.controller = policy.vae, policy.memory, policy.controller
        self.params = policy.params.to(self.memory.bias)
        self.seeds, self.worlds, self.waiting, self.device = seeds, worlds, waiting, self.params.device
        self.games = games  # those that still play
        self.episodes = [waiting.pop() for _ in games]  # what each of them plays
        self.noise = [self._noise(e) for e in self.episodes]
        self.obs = worlds.reset([(game, seeds[e]) for game, e in zip(games, self.episodes, strict=True)])
        self.state = self.memory.initial_state(len(games))
        self.restart = torch.ones(len(games), device=self.device)

    def act(self) -> None:
        """C acts on the latest frames, M is advanced, and the games begin to move."""
        mu, logvar = self.vae.encode(data.to_images(np.stack(self.obs), self.device))
        draws = [torch.randn(mu.shape[1], generator=noise) for noise in self.noise]
        z = sample_z(mu, logvar, torch.stack(draws).to(self.device))
        own = self.params[self.episodes] if self.params.ndim == 2 else self.params
        action = self.controller.action(own, z, self.state)
        if self.controller.inputs != "z":  # else nobody looks at the state
            self.state = self.memory.step(z, action, self.restart, self.state)
        self.restart = torch.zeros_like(self.restart)
        moves = action.cpu().numpy()
        self.asked = self.worlds.ask_step([(game, command(a)) for game, a in zip(self.games, moves, strict=True)])

    def see(self) -> list[tuple[int, float, bool]]:
        """Wait for what the games did: (episode, reward, whether it is over) of each. The next episodes begin."""
        answers = self.worlds.stepped(self.asked)
        found = [(e, reward, is_done) for e, (_, reward, is_done) in zip(self.episodes, answers, strict=True)]
        self.obs = [frame for frame, _, _ in answers]
        ended = [row for row, (_, _, is_done) in enumerate(found) if is_done]
        begun, left = ended[: len(self.waiting)], set(ended[len(self.waiting) :])
        if begun:
            for row in begun:
                self.episodes[row] = self.waiting.pop()
                self.noise[row] = self._noise(self.episodes[row])
                self.state.c[row], self.state.h[row] = 0, 0  # C acts before M has dropped them
                self.restart[row] = 1
            frames = self.worlds.reset([(self.games[row], self.seeds[self.episodes[row]]) for row in begun])
            for row, frame in zip(begun, frames, strict=True):
                self.obs[row] = frame
        if left:
            keep = [row for row in range(len(self.games)) if row not in left]
            self.games, self.episodes = [self.games[row] for row in keep], [self.episodes[row] for row in keep]
            self.noise, self.obs = [self.noise[row] for row in keep], [self.obs[row] for row in keep]
            self.state, self.restart = State(self.state.c[keep], self.state.h[keep]), self.restart[keep]
        return found

    def _noise(self, episode: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seeds[episode])


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
    policy = Policy(vae, memory, Controller(config.controller_inputs, config.controller_hidden), each)
    found = np.stack(real_returns(policy, tracks, worlds), axis=-1)  # [E, (return, length)]
    rows = torch.from_numpy(found).reshape(-1, config.rollouts, 2).to(ranks.device)
    every = dist.gather_rows(rows, len(params), ranks).cpu().numpy()
    return every[..., 0], int(every[..., 1].sum())
