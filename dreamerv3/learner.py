"""One update of everything: losses, gradients, optimiser, slow critic.

Source: paper, Algorithm 1; reference code: agent.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common import dist
from dreamerv3.agent import Agent, Noise, compute_dtype
from dreamerv3.config import Config
from dreamerv3.data import Batch
from dreamerv3.optimizer import LaProp
from dreamerv3.rssm import State


def scales(config: Config) -> dict[str, float]:
    """The weight of every loss; "rec" stands for the reconstruction of every observation."""
    ones = dict.fromkeys(("rec", "reward", "cont", "actor", "critic"), 1.0)
    return ones | {"dyn": config.dyn_scale, "rep": config.rep_scale, "replay_critic": config.replay_critic_scale}


def weighted_sum(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The scalar that is minimised: the sum of weight times mean. Raises ValueError if the names do not match."""
    names = {name.split("/")[0] for name in losses}
    if names != set(weights):
        raise ValueError(f"losses {sorted(names)} do not match weights {sorted(weights)}")
    return torch.stack([weights[name.split("/")[0]] * loss.mean() for name, loss in losses.items()]).sum()


def train_step(
    agent: Agent, optimizer: LaProp, batch: Batch, noise: Noise, config: Config, ranks: dist.Ranks
) -> tuple[dict[str, Tensor], State]:
    """One update in place. Returns its losses with numbers for the log, and the posterior states [B, T, ...]."""
    device = batch.reward.device.type
    dtype = compute_dtype(config.precision, batch.reward.device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        outcome = agent.losses(batch, noise, ranks)
    total = weighted_sum(outcome.losses, scales(config))
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    dist.average_gradients(agent.trained_parameters())
    optimizer.step()
    agent.after_update()
    losses = {f"loss_{name}": loss.detach().mean() for name, loss in outcome.losses.items()}
    return {"loss": total.detach(), **losses, **outcome.metrics}, outcome.states


class Learner:
    """`train_step` for a run."""

    def __init__(self, agent: Agent, optimizer: LaProp, config: Config, ranks: dist.Ranks) -> None:
        self.agent, self.optimizer, self.config, self.ranks = agent, optimizer, config, ranks

    def update(self, batch: Batch, noise: Noise) -> tuple[dict[str, Tensor], State]:
        """One update."""
        return train_step(self.agent, self.optimizer, batch, noise, self.config, self.ranks)
