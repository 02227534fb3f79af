"""The recurrent state-space model: block GRU, categorical latents, posterior and prior.

Shapes: B batch, T time, D deter h, S x K stoch z (one-hot), A action, E tokens, U hidden, g blocks.
Source: paper, Eq. 3 and Methods ("Implementation", block GRU); reference code: rssm.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamerv3.distributions import draw, mixed_probs, straight_through, wide
from dreamerv3.networks import BlockLinear, Layer, Layers, Linear, RMSNorm
from dreamerv3.spaces import Sizes

PRIOR_LAYERS = 2


@dataclass(frozen=True)
class State:
    """h [..., D] and z [..., S, K], one-hot in value."""

    h: Tensor
    z: Tensor

    @property
    def feature(self) -> Tensor:
        """[h, flatten z], what reward, continue, actor and critic read."""
        return torch.cat([self.h, self.z.flatten(-2)], -1)

    def detach(self) -> State:
        """The same numbers without gradient."""
        return State(self.h.detach(), self.z.detach())


def squash_action(action: Tensor) -> Tensor:
    """a / max(1, |a|) elementwise, the divisor without gradient: raw samples can lie outside of [-1, 1]."""
    return action / action.detach().abs().clamp(min=1)


class RSSM(nn.Module):
    """Dynamics h' = f(h, z, a), posterior z ~ q(h, token) and prior z ~ p(h)."""

    def __init__(self, sizes: Sizes, action_size: int, token_size: int, unimix: float) -> None:
        super().__init__()
        self.sizes, self.unimix = sizes, unimix
        deter, hidden, stoch = sizes.deter, sizes.hidden, sizes.stoch * sizes.classes
        self.in_deter = Layer(deter, hidden)
        self.in_stoch = Layer(stoch, hidden)
        self.in_action = Layer(action_size, hidden)
        self.hidden = BlockLinear(deter + 3 * sizes.blocks * hidden, deter, sizes.blocks)
        self.hidden_norm = RMSNorm(deter)
        self.gates = BlockLinear(deter, 3 * deter, sizes.blocks)
        self.posterior = Layer(deter + token_size, hidden)
        self.posterior_out = Linear(hidden, stoch)
        self.prior = Layers(deter, hidden, PRIOR_LAYERS)
        self.prior_out = Linear(hidden, stoch)

    def initial_state(self, batch: int) -> State:
        """All zeros, not learned."""
        zeros = self.gates.bias.new_zeros
        return State(zeros(batch, self.sizes.deter), zeros(batch, self.sizes.stoch, self.sizes.classes))

    def core(self, state: State, action: Tensor) -> Tensor:
        """The next h [N, D] from h [N, D], z [N, S, K] and the raw action vector [N, A].

        r, c, u come from equal thirds inside each block: h' = u tanh(r c) + (1 - u) h with u = sigmoid(update - 1).
        """
        h, blocks = state.h, self.sizes.blocks
        action = squash_action(action).to(h.dtype)
        inputs = (self.in_deter(h), self.in_stoch(state.z.flatten(1)), self.in_action(action))
        shared = torch.cat(inputs, -1)[:, None].expand(-1, blocks, -1)  # the same for every block
        x = torch.cat([h.unflatten(-1, (blocks, -1)), shared], -1).flatten(1)
        x = F.silu(self.hidden_norm(self.hidden(x)))
        reset, candidate, update = self.gates(x).unflatten(-1, (blocks, 3, -1)).unbind(2)
        r, c = torch.sigmoid(reset).flatten(1), candidate.flatten(1)
        u = torch.sigmoid(update.flatten(1) - 1)
        return u * torch.tanh(r * c) + (1 - u) * h

    def posterior_logits(self, h: Tensor, token: Tensor) -> Tensor:
        """h [..., D], token [..., E] -> raw logits [..., S, K] in float32 at least."""
        return self._logits(self.posterior_out(self.posterior(torch.cat([h, token], -1))))

    def prior_logits(self, h: Tensor) -> Tensor:
        """h [..., D] -> raw logits [..., S, K] in float32 at least."""
        return self._logits(self.prior_out(self.prior(h)))

    def _logits(self, flat: Tensor) -> Tensor:
        return wide(flat).unflatten(-1, (self.sizes.stoch, self.sizes.classes))

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """z from raw logits [..., S, K] with uniform numbers [..., S] in [0, 1), straight-through."""
        probs = mixed_probs(logits, self.unimix)
        return straight_through(draw(probs, uniform), probs)

    def observe_step(
        self, state: State, action: Tensor, token: Tensor, is_first: Tensor, uniform: Tensor
    ) -> tuple[State, Tensor]:
        """One step with an observation: previous state and action [N, A], token [N, E], is_first [N] bool.

        Where an episode begins, h, z and the action are zeroed first. Returns the posterior state and its raw logits.
        """
        keep = (~is_first).to(state.h.dtype)[:, None]
        masked = State(state.h * keep, state.z * keep[..., None])
        h = self.core(masked, action * keep)
        logits = self.posterior_logits(h, token)
        return State(h, self.sample(logits, uniform).to(h.dtype)), logits

    def observe(
        self, state: State, actions: Tensor, tokens: Tensor, is_first: Tensor, uniform: Tensor
    ) -> tuple[State, Tensor]:
        """Teacher forcing over T steps: previous actions [B, T, A], tokens [B, T, E], is_first [B, T].

        uniform [B, T, S]. Returns the posterior states [B, T, ...] and raw logits [B, T, S, K].
        """
        steps = []
        for inputs in zip(*(x.unbind(1) for x in (actions, tokens, is_first, uniform)), strict=True):
            state, logits = self.observe_step(state, *inputs)
            steps.append((state.h, state.z, logits))
        h, z, logits = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
        return State(h, z), logits

    def imagine_step(self, state: State, action: Tensor, uniform: Tensor) -> State:
        """One step without an observation: z' is drawn from the prior."""
        h = self.core(state, action)
        return State(h, self.sample(self.prior_logits(h), uniform).to(h.dtype))
