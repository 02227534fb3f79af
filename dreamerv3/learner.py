"""One update of everything: losses, gradients, optimiser, slow critic.

Source: paper, Algorithm 1; reference code: agent.py.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from common import dist
from common.precision import compute_dtype
from dreamerv3.agent import Agent, Noise
from dreamerv3.config import Config
from dreamerv3.data import Batch
from dreamerv3.optimizer import LaProp
from dreamerv3.rssm import State

WARM_UPS = 3  # updates before a CUDA graph is captured


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
    # Deviation D7: norms, mixtures and the recurrent state stay in float32.
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
    """`train_step` for a run; on a GPU, captured once as a CUDA graph and replayed.

    A graph works on fixed memory: every batch is copied into that of the first one. What `update` returns is a copy.
    Several processes run the step without a graph. Not yet run on a GPU.
    """

    def __init__(self, agent: Agent, optimizer: LaProp, config: Config, ranks: dist.Ranks) -> None:
        self.agent, self.optimizer, self.config, self.ranks = agent, optimizer, config, ranks
        self.captures = config.use_fast and ranks.device.type == "cuda" and ranks.world_size == 1
        self.warm_ups = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Batch, Noise] | None = None
        self.outputs: tuple[dict[str, Tensor], State] | None = None

    def update(self, batch: Batch, noise: Noise) -> tuple[dict[str, Tensor], State]:
        """One update of everything, as `train_step`."""
        if not self.captures:
            return train_step(self.agent, self.optimizer, batch, noise, self.config, self.ranks)
        if self.warm_ups < WARM_UPS:
            self.warm_ups += 1
            return self._warm_up(batch, noise)
        if self.graph is None:
            self._capture(batch, noise)
        assert self.graph is not None
        assert self.inputs is not None
        assert self.outputs is not None
        for ours, theirs in zip(tensors_of(*self.inputs), tensors_of(batch, noise), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self.graph.replay()
        metrics, states = self.outputs
        return {name: value.clone() for name, value in metrics.items()}, State(states.h.clone(), states.z.clone())

    def _warm_up(self, batch: Batch, noise: Noise) -> tuple[dict[str, Tensor], State]:
        """An update on a stream of its own, so that kernels are chosen and compiled before the capture."""
        stream = torch.cuda.Stream(self.ranks.device)
        stream.wait_stream(torch.cuda.current_stream(self.ranks.device))
        with torch.cuda.stream(stream):
            found = train_step(self.agent, self.optimizer, batch, noise, self.config, self.ranks)
        torch.cuda.current_stream(self.ranks.device).wait_stream(stream)
        return found

    def _capture(self, batch: Batch, noise: Noise) -> None:
        """Record the step; recording runs nothing."""
        self.inputs = cloned(batch, noise)
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = train_step(self.agent, self.optimizer, *self.inputs, self.config, self.ranks)


def tensors_of(batch: Batch, noise: Noise) -> list[Tensor]:
    """All tensors of an update's inputs, in a fixed order."""
    rest = [getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "obs"]
    return [*batch.obs.values(), *rest, noise.posterior, noise.prior, noise.action]


def cloned(batch: Batch, noise: Noise) -> tuple[Batch, Noise]:
    """The inputs in memory of their own."""
    rest = {f.name: getattr(batch, f.name).clone() for f in dataclasses.fields(batch) if f.name != "obs"}
    obs = {name: value.clone() for name, value in batch.obs.items()}
    return Batch(obs=obs, **rest), Noise(noise.posterior.clone(), noise.prior.clone(), noise.action.clone())
