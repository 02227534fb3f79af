"""The agent's loop in the real games: V encodes, C acts, M remembers, for all games as one batch.

Shapes: E episodes, B games that are still playing, N population members, R rollouts per member, Z latent size,
H hidden size, P parameters of C, A action size.
Source: paper, section 2.3 (the agent's loop); reference code: model.py of each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from common import dist
from common.run import progress_bar
from common.seeding import derive_seed
from ha2018 import data
from ha2018.agent import Agent
from ha2018.config import Config
from ha2018.controller import Controller
from ha2018.env import Game, command, new_game
from ha2018.memory import MDNRNN, State
from ha2018.processes import Games
from ha2018.vision import VAE, sample_z

DIVIDED_GAMES = 32  # so many games are answered in two halves; the batches of fewer would be small


def open_games(config: Config, count: int, max_steps: int | None = None) -> Games:
    """`count` games of the task, whose episodes end after `max_steps` (default: those of the config)."""
    steps = config.max_steps if max_steps is None else max_steps
    return Games(partial(new_game, config.task, steps), count, config.workers)


class Player:
    """An agent in B episodes side by side: what it remembers of each, and what it does next.

    C acts on the latent z_t, sampled from a stream of the episode's own seed, and on the state from before it; then M
    is advanced with [z_t, a_t].
    """

    def __init__(self, agent: Agent, seeds: Sequence[int], episodes: Sequence[int]) -> None:
        """seeds [E] of all episodes that may come, and the numbers [B] of those that begin now."""
        self.agent, self.seeds, self.episodes = agent, seeds, list(episodes)
        self.device = agent.memory.bias.device
        self.params = agent.params.to(agent.memory.bias)
        self.noise = [self._stream(e) for e in self.episodes]
        self.state = agent.memory.initial_state(len(self.episodes))
        self.restart = torch.ones(len(self.episodes), device=self.device)

    def act(self, frames: Sequence[np.ndarray], given: np.ndarray | None = None) -> np.ndarray:
        """The actions [B, A] on the frames [B] of [64, 64, 3] uint8, with which M is advanced. Leaves z [B, Z].

        `given` [B, A]: somebody else acts, and the agent remembers it.
        """
        vae, memory, controller = self.agent.vae, self.agent.memory, self.agent.controller
        mu, logvar = vae.encode(data.to_images(np.stack(frames), self.device))
        draws = [torch.randn(mu.shape[1], generator=stream) for stream in self.noise]
        self.z = sample_z(mu, logvar, torch.stack(draws).to(self.device))
        own = self.params[self.episodes] if self.params.ndim == 2 else self.params
        action = controller.action(own, self.z, self.state)
        action = action if given is None else torch.as_tensor(given).to(action)
        if controller.inputs != "z":  # else nobody looks at the state
            self.state = memory.step(self.z, action, self.restart, self.state)
        self.restart = torch.zeros_like(self.restart)
        return action.cpu().numpy()

    def begin(self, row: int, episode: int) -> None:
        """In `row` episode number `episode` begins."""
        self.episodes[row], self.noise[row] = episode, self._stream(episode)
        self.state.c[row], self.state.h[row] = 0, 0  # C acts before M has dropped them
        self.restart[row] = 1

    def keep(self, rows: Sequence[int]) -> None:
        """The other rows have ended."""
        self.episodes, self.noise = [self.episodes[row] for row in rows], [self.noise[row] for row in rows]
        self.state, self.restart = State(self.state.c[rows], self.state.h[rows]), self.restart[rows]

    def _stream(self, episode: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seeds[episode])


@torch.no_grad()
def real_returns(agent: Agent, seeds: Sequence[int], games: Games, title: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Returns and lengths, each [E], of one episode per seed, all of the games side by side.

    `agent.params` are [P], or [E, P] for a controller of its own in each episode. A `title` shows a progress bar.
    """
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    waiting = list(range(len(seeds)))[::-1]
    numbers = np.arange(min(games.count, len(seeds)))
    # While the games of one half move, the other half is answered.
    halves = np.array_split(numbers, 2 if len(numbers) >= DIVIDED_GAMES else 1)
    with progress_bar(len(seeds), title, unit="episode") if title else nullcontext() as bar:
        groups = [_Group(agent, seeds, games, half.tolist(), waiting) for half in halves]
        for group in groups:
            group.act()
        while groups:
            for group in groups:
                for e, reward, is_done in group.see():
                    returns[e] += reward
                    lengths[e] += 1
                    if is_done and bar is not None:
                        bar.update()
                if group.numbers:
                    group.act()
            groups = [group for group in groups if group.numbers]
    return returns, lengths


class _Group:
    """Games that are answered as one batch; each plays one of the `waiting` episodes after the other."""

    def __init__(
        self, agent: Agent, seeds: Sequence[int], games: Games, numbers: list[int], waiting: list[int]
    ) -> None:
        self.seeds, self.games, self.waiting = seeds, games, waiting
        self.numbers = numbers  # of the games that still play
        self.player = Player(agent, seeds, [waiting.pop() for _ in numbers])
        self.frames = games.reset([(n, seeds[e]) for n, e in zip(numbers, self.player.episodes, strict=True)])

    def act(self) -> None:
        """The agent acts on the latest frames, and the games begin to move."""
        actions = self.player.act(self.frames)
        self.asked = self.games.ask_step([(n, command(a)) for n, a in zip(self.numbers, actions, strict=True)])

    def see(self) -> list[tuple[int, float, bool]]:
        """Wait for what the games did: (episode, reward, whether it is over) of each. The next episodes begin."""
        answers = self.games.stepped(self.asked)
        episodes = self.player.episodes
        found = [(e, reward, is_done) for e, (_, reward, is_done) in zip(episodes, answers, strict=True)]
        self.frames = [frame for frame, _, _ in answers]
        ended = [row for row, (_, _, is_done) in enumerate(found) if is_done]
        begun, left = ended[: len(self.waiting)], set(ended[len(self.waiting) :])
        if begun:
            for row in begun:
                self.player.begin(row, self.waiting.pop())
            frames = self.games.reset([(self.numbers[row], self.seeds[episodes[row]]) for row in begun])
            for row, frame in zip(begun, frames, strict=True):
                self.frames[row] = frame
        if left:
            rows = [row for row in range(len(self.numbers)) if row not in left]
            self.numbers, self.frames = [self.numbers[row] for row in rows], [self.frames[row] for row in rows]
            self.player.keep(rows)
        return found


@torch.no_grad()
def real_episode(agent: Agent, game: Game, seed: int, steps: int) -> tuple[np.ndarray, Tensor, bool]:
    """One episode in a game of this process, for pictures.

    Returns its frames [T, 64, 64, 3], at most `steps`, the latents [T, Z] that the agent saw, and whether it has ended.
    """
    game.reset(seed)
    player = Player(agent, [seed], [0])
    frames: list[np.ndarray] = []
    zs: list[Tensor] = []
    is_done = False
    while len(frames) < steps and not is_done:
        frames.append(game.observe())
        action = player.act(frames[-1:])
        zs.append(player.z)
        _, is_done = game.step(command(action[0]))
    return np.stack(frames), torch.cat(zs), is_done


def environment_returns(
    params: np.ndarray,
    seeds: np.ndarray,
    vae: VAE,
    memory: MDNRNN,
    games: Games,
    config: Config,
    ranks: dist.Ranks,
) -> tuple[np.ndarray, int]:
    """Real returns [N, R] of the controllers params [N, P], and how many environment steps they took.

    Rollout r of a member has a track by the member's seed and r. The members are divided over the ranks.
    """
    mine = dist.share(len(params), ranks)
    tracks = [derive_seed(int(seed), "rollout", r) % 2**31 for seed in seeds[mine] for r in range(config.rollouts)]
    each = torch.from_numpy(params[mine]).repeat_interleave(config.rollouts, dim=0)
    agent = Agent(vae, memory, Controller(config.controller_inputs, config.controller_hidden), each)
    found = np.stack(real_returns(agent, tracks, games), axis=-1)  # [E, (return, length)]
    rows = torch.from_numpy(found).reshape(-1, config.rollouts, 2).to(ranks.device)
    every = dist.gather_rows(rows, len(params), ranks).cpu().numpy()
    return every[..., 0], int(every[..., 1].sum())
