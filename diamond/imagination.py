"""The world model as an environment: many imagined games that advance as one batch, none with a gradient.

N environments, L frames of history. Each begins with L real frames; the recurrent state of R has seen them.
Source: paper, Algorithm 1 and Appendix; reference code: envs/world_model_env.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.seeding import derive_seed
from diamond.actor_critic import Outcome
from diamond.agent import Agent
from diamond.config import Config


class Draws:
    """Random numbers of one update: those of the whole batch are drawn, this process keeps its share."""

    # Deviation D5: numbers by position instead of one long stream.
    def __init__(self, batch: int, share: slice, device: torch.device, seed: int, *keys: int | str) -> None:
        self.batch, self.share = batch, share
        self.generator = torch.Generator(device).manual_seed(derive_seed(seed, *keys))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal [N, ...]."""
        device = self.generator.device
        return torch.randn(self.batch, *shape, generator=self.generator, device=device)[self.share]

    def uniform(self) -> Tensor:
        """Uniform [N]."""
        return torch.rand(self.batch, generator=self.generator, device=self.generator.device)[self.share]


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """A class [N] from softmax(logits) [N, K] by uniform numbers [N]."""
    edges = logits.float().softmax(-1).cumsum(-1)
    return (uniform[:, None] >= edges[:, :-1]).sum(-1)


@dataclass
class Numbers:
    """Random numbers of one step: start [N, 3, H, W] normal, reward and end [N] uniform; churn consumes `generator`."""

    start: Tensor
    reward: Tensor
    end: Tensor
    generator: torch.Generator | None = None


@dataclass
class Prediction:
    """What follows an action: frame [N, 3, H, W], reward in {-1, 0, 1} and end in {0, 1} [N], and R's state after."""

    frame: Tensor
    reward: Tensor
    end: Tensor
    h: Tensor
    c: Tensor


@torch.no_grad()
def predict(
    agent: Agent, config: Config, obs: Tensor, action: Tensor, state: tuple[Tensor, Tensor], numbers: Numbers
) -> Prediction:
    """One step of the world model for obs [N, L, 3, H, W], action [N, L] and R's state (h, c), [N, lstm_size] each.

    Reward and end are drawn from R's distributions, not their likeliest classes; reference code.
    """
    frame = agent.denoiser.next_frame(obs, action, numbers.start, config.sampler, numbers.generator)
    h, c = state
    rewards, ends, (h, c) = agent.reward_end(obs[:, -1:], action[:, -1:], frame[:, None], (h[None], c[None]))
    reward = pick(rewards[:, 0], numbers.reward) - 1.0
    return Prediction(frame, reward, pick(ends[:, 0], numbers.end), h[0], c[0])


@dataclass
class Beginnings:
    """Where imagined games begin: obs [N, L, 3, H, W], action [N, L], and R's state h and c [N, lstm_size]."""

    obs: Tensor
    action: Tensor
    h: Tensor
    c: Tensor


Begin = Callable[[int], Beginnings]


class Imagination:
    """`Steps` in the world model. `begin(n)` gives the next n beginnings; `draws` is to be set before each update."""

    draws: Draws

    def __init__(self, agent: Agent, config: Config, begin: Begin) -> None:
        self.agent, self.config, self.begin = agent, config, begin
        self.length = torch.zeros(0)

    def reset(self, count: int) -> Tensor:
        """Begin `count` games; returns their newest frames."""
        first = self.begin(count)
        self.obs, self.action, self.h, self.c = first.obs, first.action, first.h, first.c
        self.length = torch.zeros(count, dtype=torch.int64, device=first.obs.device)
        return self.obs[:, -1]

    def numbers(self) -> Numbers:
        """The random numbers of the next step."""
        start = self.draws.normal(*self.obs.shape[2:])
        return Numbers(start, self.draws.uniform(), self.draws.uniform(), self.draws.generator)

    def imagine(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next frame, reward and end [N] after `action` [N]; R's state goes on."""
        self.action[:, -1] = action
        found = predict(self.agent, self.config, self.obs, self.action, (self.h, self.c), self.numbers())
        self.h, self.c = found.h, found.c
        return found.frame, found.reward, found.end

    @torch.no_grad()
    def step(self, action: Tensor) -> Outcome:
        """One step of all games; those that end, or reach the horizon, begin anew at once."""
        return self.advance(*self.imagine(action))

    @torch.no_grad()
    def advance(self, frame: Tensor, reward: Tensor, end: Tensor) -> Outcome:
        """What follows from an imagined step: the history moves on, and games that are over begin anew."""
        self.length = self.length + 1
        trunc = (self.length >= self.config.horizon).long()
        self.obs = torch.cat([self.obs[:, 1:], frame[:, None]], dim=1)
        self.action = self.action.roll(-1, dims=1)
        dead = ((end + trunc) > 0).nonzero().flatten()
        if len(dead):
            first = self.begin(len(dead))
            for name in ("obs", "action", "h", "c"):
                setattr(self, name, getattr(self, name).index_copy(0, dead, getattr(first, name)))
            self.length = self.length.index_fill(0, dead, 0)
        return Outcome(self.obs[:, -1], reward, end, trunc, dead, frame[dead], self.obs[dead, :-1])
