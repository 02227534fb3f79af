"""The policy and its value: one recurrent network with two heads, trained on imagined play by REINFORCE with λ-returns.

B environments, T steps; obs [B, 3, H, W] in [-1, 1]; the recurrent state is (h, c), [B, lstm_size] each.
Source: paper, section 3.3, Algorithm 1 and Appendix B; reference code: actor_critic.py, env_loop.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from diamond.blocks import SmallResBlock, conv3
from diamond.reward_end import init_lstm

State = tuple[Tensor, Tensor]
Choose = Callable[[Tensor], Tensor]


class PolicyEncoder(nn.Module):
    """[B, 3, H, W] → [B, C, H / 2^n, W / 2^n], n the number of stages that halve."""

    def __init__(self, channels: Sequence[int], halves: Sequence[bool], image_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3(image_channels, channels[0])]
        for c1, c2, is_halved in zip([channels[0], *channels[:-1]], channels, halves, strict=True):
            layers.append(SmallResBlock(c1, c2))
            if is_halved:
                layers.append(nn.MaxPool2d(2))
        self.encoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class ActorCritic(nn.Module):
    """Logits over the actions and the value of what has been seen; both heads begin at zero."""

    def __init__(
        self,
        actions: int,
        channels: Sequence[int],
        halves: Sequence[bool],
        lstm_size: int,
        image_size: int,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        side = image_size // 2 ** sum(halves)
        self.encoder = PolicyEncoder(channels, halves, image_channels)
        self.lstm = nn.LSTMCell(channels[-1] * side * side, lstm_size)
        self.critic_linear = nn.Linear(lstm_size, 1)
        self.actor_linear = nn.Linear(lstm_size, actions)
        init_lstm(self.lstm)
        for head in (self.critic_linear, self.actor_linear):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def initial_state(self, batch: int) -> State:
        """Zeros, on the device of the weights."""
        zeros = self.critic_linear.weight.new_zeros(batch, self.lstm.hidden_size)
        return zeros, zeros.clone()

    def remember(self, obs: Tensor, state: State) -> State:
        """The recurrent state once obs has been seen."""
        return self.lstm(self.encoder(obs).flatten(1), state)

    def forward(self, obs: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Logits [B, A], value [B], and the state after."""
        state = self.remember(obs, state)
        return self.actor_linear(state[0]), self.critic_linear(state[0]).squeeze(1), state


@dataclass
class Outcome:
    """A step of B environments: next obs, where a dead one already shows its new episode; reward, end, trunc [B].

    dead [N]: indices of the environments that ended; final_obs [N, ...]: what they showed last;
    burn_in [N, L - 1, ...]: the frames before their new obs.
    """

    obs: Tensor
    reward: Tensor
    end: Tensor
    trunc: Tensor
    dead: Tensor
    final_obs: Tensor
    burn_in: Tensor


class Steps(Protocol):
    """Several environments that advance as one."""

    def step(self, action: Tensor) -> Outcome:
        """Take action [B]."""


@dataclass
class Rollout:
    """T steps: logits [B, T, A] and value [B, T] with gradient; the rest [B, T] without. bootstrap is V of what
    followed, before any reset."""

    logits: Tensor
    value: Tensor
    bootstrap: Tensor
    action: Tensor
    reward: Tensor
    end: Tensor
    trunc: Tensor


def rollout(
    policy: ActorCritic, world: Steps, obs: Tensor, state: State, steps: int, choose: Choose
) -> tuple[Rollout, Tensor, State]:
    """Act for `steps` steps from obs; choose(logits) → actions [B]. Returns also the obs and state to go on from.

    A state that is reset runs over the burn-in frames with gradient. The value of a final observation belongs to the
    state before the reset; that of the last step needs a forward pass which leaves the state alone.
    """
    logits: list[Tensor] = []
    values: list[Tensor] = []
    bootstraps: list[Tensor] = []
    actions: list[Tensor] = []
    outcomes: list[Outcome] = []
    ended = obs.new_zeros(0)
    for _ in range(steps):
        logit, value, state = policy(obs, state)
        if values:
            bootstraps.append(value_ahead(value, outcomes[-1], ended))
        action = choose(logit.detach())
        outcome = world.step(action)
        obs, ended = outcome.obs, value.new_zeros(0)
        if len(outcome.dead):
            before = (state[0][outcome.dead], state[1][outcome.dead])
            with torch.no_grad():
                ended = policy(outcome.final_obs, before)[1]
            state = reset_where_dead(policy, state, outcome)
        for part, kept in ((logit, logits), (value, values), (action, actions)):
            kept.append(part)
        outcomes.append(outcome)
    with torch.no_grad():
        bootstraps.append(value_ahead(policy(obs, state)[1], outcomes[-1], ended))
    found = Rollout(
        logits=torch.stack(logits, 1),
        value=torch.stack(values, 1),
        bootstrap=torch.stack(bootstraps, 1),
        action=torch.stack(actions, 1),
        reward=torch.stack([outcome.reward for outcome in outcomes], 1),
        end=torch.stack([outcome.end for outcome in outcomes], 1),
        trunc=torch.stack([outcome.trunc for outcome in outcomes], 1),
    )
    return found, obs, (state[0].detach(), state[1].detach())


def value_ahead(value: Tensor, outcome: Outcome, ended: Tensor) -> Tensor:
    """V of the next observation, or of the final one where the environment died."""
    return value.detach().clone().index_copy(0, outcome.dead, ended) if len(ended) else value.detach()


def reset_where_dead(policy: ActorCritic, state: State, outcome: Outcome) -> State:
    """The state where an environment died, begun anew and run over the burn-in frames; elsewhere as it is."""
    fresh = policy.initial_state(len(outcome.dead))
    for frame in outcome.burn_in.unbind(1):
        fresh = policy.remember(frame, fresh)
    h, c = (old.index_copy(0, outcome.dead, new) for old, new in zip(state, fresh, strict=True))
    return h, c


@torch.no_grad()
def lambda_returns(reward: Tensor, end: Tensor, trunc: Tensor, bootstrap: Tensor, gamma: float, lam: float) -> Tensor:
    """λ-returns R_t [B, T] of the signs of rewards [B, T], computed backwards.

    end and trunc [B, T] in {0, 1}; bootstrap [B, T] is V(s_{t+1}). An end has no future; a truncation is followed by
    γ V, without λ; the return behind the last step is its bootstrap. Source: paper, Eq. 10; reference code.
    """
    returns = torch.empty_like(bootstrap)
    following = bootstrap[:, -1]
    for t in reversed(range(reward.shape[1])):
        is_cut = trunc[:, t].bool()
        future = torch.where(is_cut, bootstrap[:, t], (1 - lam) * bootstrap[:, t] + lam * following)
        following = reward[:, t].sign() + gamma * (1 - end[:, t].to(future.dtype)) * future
        returns[:, t] = following
    return returns


def losses(
    play: Rollout, gamma: float, lam: float, value_weight: float, entropy_weight: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The weighted terms policy, value and entropy, means over B and T, to be summed; and the entropy in nats.

    REINFORCE with the value as baseline, no normalisation. Source: paper, Eq. 11 and 12.
    """
    returns = lambda_returns(play.reward, play.end, play.trunc, play.bootstrap, gamma, lam)
    log_probs = play.logits.log_softmax(-1)
    taken = log_probs.gather(-1, play.action[..., None]).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    terms = {
        "policy": -(taken * (returns - play.value.detach())).mean(),
        "value": value_weight * ((play.value - returns) ** 2).mean(),
        "entropy": -entropy_weight * entropy,
    }
    return terms, entropy.detach()
