"""Actor and critic: imagination, λ-returns, return normalisation, and their losses.

Shapes: N starts, H horizon, A action size, n bins. Imagined arrays are time-major, [H + 1, N], index 0 the start.
Source: paper, Eq. 6 to 7 and Methods ("Actor learning"); reference code: agent.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamerv3 import distributions
from dreamerv3.networks import Layers, Linear
from dreamerv3.rssm import RSSM, State
from dreamerv3.spaces import ActionSpace, Sizes

ACTOR_LAYERS = 3
CRITIC_LAYERS = 3
ACTOR_SCALE = 0.01  # initial scale of the actor's output layers


@dataclass(frozen=True)
class Categorical:
    """A policy over A discrete actions, [..., A], unimix included."""

    mixture: distributions.Mixture

    @property
    def probs(self) -> Tensor:
        """[..., A]."""
        return self.mixture.probs

    def sample(self, noise: Tensor) -> Tensor:
        """The number of the action [...] from uniform noise [..., 1]."""
        return distributions.draw(self.probs, noise.squeeze(-1))

    def vector(self, action: Tensor) -> Tensor:
        """One-hot [..., A]."""
        return F.one_hot(action, self.probs.shape[-1]).to(self.probs.dtype)

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] in nats."""
        return distributions.categorical_log_prob(self.mixture, action)

    def entropy(self) -> Tensor:
        """[...] in nats."""
        return distributions.categorical_entropy(self.mixture)


@dataclass(frozen=True)
class BoundedNormal:
    """A policy over A numbers: mean in (-1, 1), std in (0.1, 1), [..., A]; samples are not clipped here."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The action [..., A] from standard normal noise [..., A]."""
        return self.mean + self.std * noise

    def vector(self, action: Tensor) -> Tensor:
        """The action itself."""
        return action

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] in nats, summed over A."""
        return distributions.normal_log_prob(self.mean, self.std, action)

    def entropy(self) -> Tensor:
        """[...] in nats, summed over A."""
        return distributions.normal_entropy(self.std)


class Actor(nn.Module):
    """Features -> a policy. The 1 % unimix of discrete actions is the paper's."""

    def __init__(self, sizes: Sizes, actions: ActionSpace, unimix: float) -> None:
        super().__init__()
        self.actions, self.unimix = actions, unimix
        self.layers = Layers(sizes.feature, sizes.units, ACTOR_LAYERS)
        names = ("logits",) if actions.is_discrete else ("mean", "std")
        self.outs = nn.ModuleDict({name: Linear(sizes.units, actions.size, ACTOR_SCALE) for name in names})

    def forward(self, feature: Tensor) -> Categorical | BoundedNormal:
        """[..., D + S * K] -> the policy there."""
        x = self.layers(feature)
        raw = [distributions.wide(out(x)) for out in self.heads]
        if self.actions.is_discrete:
            return Categorical(distributions.mixture(raw[0], self.unimix))
        return BoundedNormal(*distributions.bounded_normal(*raw))

    @property
    def heads(self) -> list[Linear]:
        """The output layers: the logits, or mean and std."""
        return [cast(Linear, out) for out in self.outs.values()]

    @property
    def noise_size(self) -> int:
        """Random numbers that one action takes."""
        return 1 if self.actions.is_discrete else self.actions.size


@dataclass(frozen=True)
class Imagined:
    """A rollout inside the model, without gradient: feature [H + 1, N, D + S * K], actions [H + 1, N] or [H + 1, N, A].

    The last action is drawn and used by no loss, as in the reference code.
    """

    feature: Tensor
    actions: Tensor


@torch.no_grad()
def imagine(rssm: RSSM, actor: Actor, start: State, action_noise: Tensor, uniform: Tensor) -> Imagined:
    """Roll the prior out under the actor from start [N, ...]: action_noise [H + 1, N, .], uniform [H, N, S]."""
    state, features, actions = start, [start.feature], []
    for noise, u in zip(action_noise[:-1], uniform, strict=True):
        policy = actor(features[-1])
        actions.append(policy.sample(noise))
        state = rssm.imagine_step(state, policy.vector(actions[-1]), u)
        features.append(state.feature)
    actions.append(actor(features[-1]).sample(action_noise[-1]))
    return Imagined(torch.stack(features), torch.stack(actions))


def lambda_return(reward: Tensor, cont: Tensor, is_last: Tensor, boot: Tensor, lam: float) -> Tensor:
    """λ-returns R_t [L - 1, ...], computed backwards in time from arrays [L, ...]; no gradient.

    R_t = r_{t+1} + c_{t+1} ((1 - l_{t+1}) b_{t+1} + l_{t+1} R_{t+1}) with l = lam (1 - is_last), R_{L-1} = b_{L-1}.
    cont contains the discount; boot is the value to fall back on. In imagination is_last is 0 and boot the critic.
    Source: paper, Eq. 7; with is_last the replayed version of the reference code.
    """
    if not reward.shape == cont.shape == is_last.shape == boot.shape:
        shapes = [list(x.shape) for x in (reward, cont, is_last, boot)]
        raise ValueError(f"λ-return: expected four arrays of one shape, got {shapes}")
    weight = lam * (1 - is_last.to(boot.dtype))
    fixed = reward + cont * (1 - weight) * boot
    slope = cont * weight
    returns = [boot[-1]]
    for t in range(len(reward) - 1, 0, -1):
        returns.append(fixed[t] + slope[t] * returns[-1])
    return torch.stack(returns[:0:-1]).detach()


class ReturnNorm(nn.Module):
    """Moving 5th and 95th percentiles of the returns, from zero and without bias correction.

    Source: paper, Eq. 7 ("range normalisation"); the offset is reported, but the reference code subtracts the critic.
    """

    low: Tensor
    high: Tensor

    def __init__(self, percentiles: Sequence[float], rate: float, limit: float) -> None:
        super().__init__()
        self.percentiles, self.rate, self.limit = percentiles, rate, limit
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Take all returns of a batch in, then give offset and scale = max(limit, high - low)."""
        ordered = returns.to(self.low.dtype).flatten().sort().values
        for known, percentile in zip((self.low, self.high), self.percentiles, strict=True):
            place = percentile / 100 * (len(ordered) - 1)
            before = int(place)
            after = min(before + 1, len(ordered) - 1)
            known.lerp_(torch.lerp(ordered[before], ordered[after], place - before), self.rate)
        return self.low.clone(), (self.high - self.low).clamp(min=self.limit)


def actor_loss(
    policy: Categorical | BoundedNormal, action: Tensor, advantage: Tensor, weight: Tensor, entropy_scale: float
) -> Tensor:
    """-w (log pi(a) A + eta entropy), elementwise; advantage and weight carry no gradient.

    REINFORCE for discrete and continuous actions alike. Source: paper, Eq. 6.
    """
    log_prob = policy.log_prob(action.detach())
    return -weight.detach() * (log_prob * advantage.detach() + entropy_scale * policy.entropy())


@torch.no_grad()
def move_slow_critic(slow: nn.Module, critic: nn.Module, rate: float, updates: Tensor) -> None:
    """slow <- (1 - rate) slow + rate critic, in place; the first update copies. `updates` () counts them.

    Source: paper, "slow critic"; that the first update copies: reference code (2024).
    """
    weight = torch.where(updates == 0, 1.0, rate)
    for ours, theirs in zip(slow.parameters(), critic.parameters(), strict=True):
        ours.lerp_(theirs, weight.to(ours.dtype))
    updates += 1
