"""The dream: M as an environment with a temperature, and the rollouts of a whole population inside it.

Shapes: B rollouts side by side, Z latent size, H hidden size, N population members, R rollouts per member.
Source: paper, section 4 and appendix; reference code: doomrnn.py, model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ha2018.controller import Controller
from ha2018.dream_fast import FastDream
from ha2018.memory import MDNRNN, sample_next_z
from ha2018.vision import sample_z

NOISE_CHUNK = 16  # steps of random numbers drawn at a time


@dataclass(frozen=True)
class FirstFrames:
    """The bank of encoded first frames in which dreams begin: mu, logvar [F, Z], kept to four decimals."""

    mu: Tensor
    logvar: Tensor

    @staticmethod
    def of(mu: Tensor, logvar: Tensor) -> FirstFrames:
        """Truncated toward zero at four decimals, as the official bank stores them."""
        return FirstFrames((mu.float() * 10_000).trunc() / 10_000, (logvar.float() * 10_000).trunc() / 10_000)

    def sample(self, index: Tensor, noise: Tensor) -> Tensor:
        """z of the frames `index` [B] with standard normal `noise` [B, Z]. Returns [B, Z]."""
        return sample_z(self.mu[index], self.logvar[index], noise)


class Dream:
    """B dream episodes side by side, one step at a time; the readable reference, all finished episodes included.

    The observation is [z, c, h]: [B, Z + 2H]. Reward 1 on every step, the last one included. Gradients are not kept.
    """

    def __init__(self, memory: MDNRNN, temperature: float, max_steps: int) -> None:
        self.memory, self.temperature, self.max_steps = memory, temperature, max_steps

    @torch.no_grad()
    def reset(self, z: Tensor) -> Tensor:
        """Begin at the latents `z` [B, Z] with c = h = 0 and the restart flag set."""
        self.z, self.state, self.steps = z, self.memory.initial_state(len(z)), 0
        self.restart = z.new_ones(len(z))
        return self.obs()

    def obs(self) -> Tensor:
        return torch.cat([self.z, self.state.c, self.state.h], dim=1)

    @torch.no_grad()
    def step(self, action: Tensor, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Act: action [B] or [B, A]; uniform, normal [B, Z] are the random numbers of the step.

        Returns obs [B, Z + 2H], reward [B] (1) and done [B] bool: the restart logit is positive (neither tempered nor
        sampled; CarRacing's M has none) or `max_steps` are over.
        """
        self.state = self.memory.step(self.z, action.reshape(len(self.z), -1), self.restart, self.state)
        prediction = self.memory.predict(self.state.h)
        self.z, _ = sample_next_z(prediction, self.temperature, uniform, normal)
        self.restart, self.steps = torch.zeros_like(self.restart), self.steps + 1
        done = torch.full_like(self.restart, self.steps >= self.max_steps).bool()
        self.restart_logit = prediction.restart_logit
        if self.restart_logit is not None:
            done |= self.restart_logit > 0
        return self.obs(), torch.ones_like(self.restart), done


class Noise:
    """Random numbers of dreams: a stream for each seed, so that what a rollout meets depends on its seed alone.

    Deviation D6: torch streams instead of numpy's; members with a common seed still meet the same numbers.
    """

    def __init__(self, seeds: Sequence[int], rollouts: int, z_size: int, device: torch.device) -> None:
        self.rollouts, self.z_size, self.device = rollouts, z_size, device
        self.distinct, member = np.unique(np.asarray(seeds), return_inverse=True)
        self.generators = [torch.Generator(device).manual_seed(int(seed)) for seed in self.distinct]
        # Row of rollout r of member m in the numbers drawn for the distinct seeds.
        rows = member[:, None] * rollouts + np.arange(rollouts)
        self.rows = torch.as_tensor(rows.reshape(-1), device=device)

    def start(self, bank: FirstFrames) -> Tensor:
        """The first latents z [N * R, Z] of all rollouts, members in order."""
        index = [
            torch.randint(len(bank.mu), (self.rollouts,), generator=g, device=self.device) for g in self.generators
        ]
        noise = [self._normal(g, self.rollouts) for g in self.generators]
        return bank.sample(torch.cat(index), torch.cat(noise))[self.rows]

    def chunk(self) -> tuple[Tensor, Tensor]:
        """uniform, normal of the next NOISE_CHUNK steps for the distinct seeds: [NOISE_CHUNK, distinct * R, Z]."""
        shape = (NOISE_CHUNK, self.rollouts, self.z_size)
        uniform = [torch.rand(shape, generator=g, device=self.device) for g in self.generators]
        normal = [self._normal(g, NOISE_CHUNK, self.rollouts) for g in self.generators]
        return torch.cat(uniform, dim=1), torch.cat(normal, dim=1)

    def _normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(*shape, self.z_size, generator=generator, device=self.device)


@torch.no_grad()
def rollout_returns(
    memory: MDNRNN,
    bank: FirstFrames,
    params: Tensor,
    seeds: Sequence[int],
    rollouts: int,
    temperature: float | Sequence[float],
    max_steps: int,
    dtype: torch.dtype = torch.float32,
    dream: FastDream | None = None,
) -> Tensor:
    """Dream returns (steps) of controllers: params [N, P], one seed a member. Returns [N, R] on the CPU.

    All N * R rollouts advance as one batch; finished ones are compacted away. What a member gets does not depend on the
    members beside it. temperature: one, or one of each member. With dtype bfloat16 the products of M are made in it.
    `dream` is one of this M and dtype to use again.
    """
    if len(seeds) != len(params):
        raise ValueError(f"{len(params)} controllers need as many seeds, got {len(seeds)}")
    noise = Noise(seeds, rollouts, memory.z_size, memory.bias.device)
    dream = FastDream(memory, dtype) if dream is None else dream
    tau = torch.as_tensor(temperature, dtype=torch.float64, device=noise.device).expand(len(params))
    rows = params.to(memory.bias).repeat_interleave(rollouts, dim=0)
    dream.begin(noise.start(bank), rows, tau.repeat_interleave(rollouts))
    return _lengths(dream, noise, max_steps).reshape(len(params), rollouts)


@torch.no_grad()
def open_loop_returns(
    memory: MDNRNN,
    bank: FirstFrames,
    actions: Tensor,
    seeds: Sequence[int],
    temperature: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Dream returns [N] (steps) of given actions [N, T] that nothing changes, one seed a row, for at most T steps."""
    if len(seeds) != len(actions):
        raise ValueError(f"{len(actions)} rows of actions need as many seeds, got {len(seeds)}")
    noise = Noise(seeds, 1, memory.z_size, memory.bias.device)
    dream = FastDream(memory, dtype)
    dream.begin(noise.start(bank), None, temperature)
    return _lengths(dream, noise, actions.shape[1], actions.to(memory.bias))


def _lengths(dream: FastDream, noise: Noise, max_steps: int, actions: Tensor | None = None) -> Tensor:
    """How many steps each of the rollouts [N * R] that have begun in `dream` lasts, on the CPU."""
    device = noise.device
    returns = torch.zeros(len(noise.rows), device=device)
    running = torch.arange(len(noise.rows), device=device)  # the rollout that each row of the batch belongs to
    alive = torch.ones(len(running), dtype=torch.bool, device=device)
    for step in range(max_steps):
        if step % NOISE_CHUNK == 0:
            if step:
                running, alive = _compact(dream, running, alive)
                if not len(running):
                    break
            uniform, normal = noise.chunk()
            rows = noise.rows[running]
        t = step % NOISE_CHUNK
        action = None if actions is None else actions[running, step]
        done = dream.advance(uniform[t].index_select(0, rows), normal[t].index_select(0, rows), action)
        returns.index_add_(0, running, alive.to(returns.dtype))
        alive = alive & ~done
    return returns.cpu()


def _compact(dream: FastDream, running: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Drop finished rows. The batch keeps a multiple of `dream.granularity` rows, finished ones filling it up."""
    left = int(alive.sum())
    if left == 0:
        return running[:0], alive[:0]
    size = min(len(running), -(-left // dream.granularity) * dream.granularity)
    if size == len(running):
        return running, alive
    keep = torch.argsort(~alive, stable=True)[:size]
    dream.select(keep)
    return running[keep], alive[keep]


@torch.no_grad()
def dream_episode(
    memory: MDNRNN,
    bank: FirstFrames,
    controller: Controller,
    params: Tensor,
    seed: int,
    temperature: float,
    max_steps: int,
) -> tuple[Tensor, Tensor]:
    """One dream episode step by step, for watching. params [P]. Returns z [T + 1, Z] and actions [T, A]."""
    noise = Noise([seed], 1, memory.z_size, memory.bias.device)
    dream = Dream(memory, temperature, max_steps)
    zs, actions, done = [], [], False
    dream.reset(noise.start(bank))
    while not done:
        if dream.steps % NOISE_CHUNK == 0:
            uniform, normal = noise.chunk()
        t = dream.steps % NOISE_CHUNK
        action = controller.action(params.to(dream.z), dream.z, dream.state)
        zs.append(dream.z)
        actions.append(action)
        _, _, finished = dream.step(action, uniform[t], normal[t])
        done = bool(finished)
    return torch.cat([*zs, dream.z]), torch.cat(actions)
