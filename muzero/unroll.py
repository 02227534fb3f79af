"""The unrolled model and its loss: Eq. 1 of the paper with the gradient scales of its pseudocode.

B batch, K unroll steps, A actions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from muzero.transform import scalar_loss


class Unrollable(Protocol):
    """h, g and f, as in `networks.py`."""

    def represent(self, obs: Tensor) -> Tensor: ...

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]: ...

    def predict(self, state: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Predictions:
    """policy logits [B, K + 1, A]; value outputs [B, K + 1, bins], reward [B, K, bins]; states [B, K + 1, ...]."""

    policy: Tensor
    value: Tensor
    reward: Tensor
    states: Tensor


@dataclass(frozen=True)
class Batch:
    """obs [B, ...]; actions [B, K]; value and reward [B, K + 1] in reward units; policy [B, K + 1, A].

    policy_mask [B, K + 1]: where a policy is known; mask [B, K + 1]: where value and reward are. weights [B].
    """

    obs: Tensor
    actions: Tensor
    value: Tensor
    reward: Tensor
    policy: Tensor
    policy_mask: Tensor
    mask: Tensor
    weights: Tensor


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None


def scale_gradient(x: Tensor, share: float) -> Tensor:
    """x itself, bit for bit, whose gradient is multiplied by `share`."""
    return _ScaledGradient.apply(x, share)


def unroll(network: Unrollable, obs: Tensor, actions: Tensor) -> Predictions:
    """s_0 = h(obs), s_k = g(s_{k-1}, a_k), and f of each.

    What flows back into s_k (k > 0) from the next step of the dynamics is halved; what its own heads send is not.
    Source: pseudocode.
    """
    state = carried = network.represent(obs)
    states, rewards = [state], []
    for action in actions.unbind(1):
        state, reward = network.dynamics(carried, action)
        states.append(state)
        rewards.append(reward)
        carried = scale_gradient(state, 0.5)
    # Deviation D8: f sees the states of all steps as one batch, and so do its batch norms.
    policy, value = network.predict(torch.cat(states))
    steps = len(states)
    return Predictions(
        policy.unflatten(0, (steps, -1)).transpose(0, 1),
        value.unflatten(0, (steps, -1)).transpose(0, 1),
        torch.stack(rewards, 1),
        torch.stack(states, 1),
    )


def step_losses(found: Predictions, batch: Batch) -> dict[str, Tensor]:
    """value, reward and policy losses [B, K + 1] in nats (or squared units), 0 where nothing is known.

    The reward of step 0 arrived before the unroll and is not learnt.
    """
    value = scalar_loss(found.value, batch.value) * batch.mask
    reward = F.pad(scalar_loss(found.reward, batch.reward[:, 1:]), (1, 0)) * batch.mask
    policy = -(batch.policy * found.policy.log_softmax(-1)).sum(-1) * batch.policy_mask
    return {"value": value, "reward": reward, "policy": policy}


def weighted_loss(losses: dict[str, Tensor], weights: Tensor, value_weight: float) -> Tensor:
    """Mean over the batch of w_b * sum_k l_k. The gradient of every step but the first is scaled by 1 / K."""
    total = value_weight * losses["value"] + losses["reward"] + losses["policy"]
    steps = total.shape[1] - 1
    scaled = torch.cat([total[:, :1], scale_gradient(total[:, 1:], 1 / max(steps, 1))], 1)
    return (weights * scaled.sum(1)).mean()


def weight_penalty(parameters: Iterable[Tensor], weight: float) -> Tensor:
    """weight * sum of theta^2 / 2 over all parameters. Source: paper, Eq. 1, with the half of its pseudocode.

    Its gradient, weight * theta, is the optimiser's `weight_decay`; this number is for the log.
    """
    norms = torch._foreach_norm([p.detach() for p in parameters])
    return 0.5 * weight * torch.stack(norms).square().sum()
