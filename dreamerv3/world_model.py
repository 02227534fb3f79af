"""Encoder, RSSM, decoder, reward and continue heads, and the loss of the world model.

Shapes: B batch, T time, D deter, S x K stoch, N bins.
Source: paper, Eq. 3 to 5; reference code: agent.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamerv3 import rssm_fast
from dreamerv3.distributions import (
    bernoulli_loss,
    kl_balance,
    mixture,
    symexp_bins,
    two_hot_loss,
    two_hot_losses,
    two_hot_mean,
    wide,
)
from dreamerv3.networks import MLP, Decoder, Encoder
from dreamerv3.replay import Batch
from dreamerv3.rssm import RSSM, State
from dreamerv3.spaces import ActionSpace, Edition, ObsSpaces, Sizes

HEAD_LAYERS = 1


class TwoHotHead(nn.Module):
    """Features -> the logits of a symexp two-hot distribution; it predicts 0 at first."""

    bins: Tensor

    def __init__(self, sizes: Sizes, layers: int, bins: int, is_even: bool) -> None:
        super().__init__()
        self.mlp = MLP(sizes.feature, sizes.units, layers, bins, scale=0.0, is_even=is_even)
        self.register_buffer("bins", symexp_bins(bins), persistent=False)

    def forward(self, feature: Tensor) -> Tensor:
        """[..., D + S * K] -> logits [..., N] in float32 at least."""
        return wide(self.mlp(feature))

    def mean(self, logits: Tensor) -> Tensor:
        """The expected value, [...]."""
        return two_hot_mean(logits, self.bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy in nats, [...]."""
        return two_hot_loss(logits, target, self.bins)


class ScalarHead(nn.Module):
    """A control for `TwoHotHead`: one number, trained by half its squared error; it predicts 0 at first too."""

    def __init__(self, sizes: Sizes, layers: int) -> None:
        super().__init__()
        self.mlp = MLP(sizes.feature, sizes.units, layers, 1, scale=0.0)

    def forward(self, feature: Tensor) -> Tensor:
        """[..., D + S * K] -> [..., 1] in float32 at least."""
        return wide(self.mlp(feature))

    def mean(self, output: Tensor) -> Tensor:
        """The number, [...]."""
        return output.squeeze(-1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(x - target)^2 / 2, [...]."""
        return 0.5 * (output.squeeze(-1) - target.detach()).square()


def scalar_head(sizes: Sizes, layers: int, bins: int, is_even: bool, use_two_hot: bool) -> TwoHotHead | ScalarHead:
    """The paper's head for rewards and returns, or its control."""
    return TwoHotHead(sizes, layers, bins, is_even) if use_two_hot else ScalarHead(sizes, layers)


@dataclass(frozen=True)
class Observed:
    """What the model made of a batch: posterior states and raw posterior logits, [B, T, ...], with gradient."""

    states: State
    logits: Tensor


class WorldModel(nn.Module):
    """The five modules and their losses."""

    def __init__(
        self,
        spaces: ObsSpaces,
        actions: ActionSpace,
        sizes: Sizes,
        edition: Edition,
        *,
        bins: int,
        unimix: float,
        free_nats: float,
        horizon: float,
        use_fast: bool,
        use_symlog: bool,
        use_two_hot: bool,
    ) -> None:
        super().__init__()
        self.use_fast = use_fast
        self.actions, self.unimix, self.free_nats, self.discount = actions, unimix, free_nats, 1 - 1 / horizon
        self.encoder = Encoder(spaces, sizes, edition, use_symlog=use_symlog)
        self.rssm = RSSM(sizes, actions.size, self.encoder.outputs, unimix)
        self.decoder = Decoder(spaces, sizes, edition, use_symlog=use_symlog)
        self.reward = scalar_head(sizes, HEAD_LAYERS, bins, edition.has_even_outputs, use_two_hot)
        self.cont = MLP(sizes.feature, sizes.units, HEAD_LAYERS, 1, scale=1.0)

    def action_vector(self, action: Tensor) -> Tensor:
        """Discrete actions [...] one-hot, continuous ones [..., A] as they are."""
        return F.one_hot(action.long(), self.actions.size).float() if self.actions.is_discrete else action

    def cont_logit(self, feature: Tensor) -> Tensor:
        """[..., D + S * K] -> the logit of going on, [...]; its target contains the discount."""
        return wide(self.cont(feature).squeeze(-1))

    def start_state(self, batch: Batch) -> State:
        """The stored latents of the context row: h [B, D], z [B, S, K]."""
        dtype, classes = self.rssm.gates.weight.dtype, self.rssm.sizes.classes
        return State(batch.start_h.to(dtype), F.one_hot(batch.start_z.long(), classes).to(dtype))

    def observe(self, batch: Batch, uniform: Tensor) -> Observed:
        """Posterior states of a batch, uniform [B, T, S]."""
        tokens = self.encoder(batch.obs)
        actions = self.action_vector(batch.prev_action)
        inputs = (self.start_state(batch), actions, tokens, batch.is_first, uniform)
        return Observed(*(rssm_fast.observe(self.rssm, *inputs) if self.use_fast else self.rssm.observe(*inputs)))

    def losses(self, batch: Batch, observed: Observed) -> dict[str, Tensor]:
        """Every term of the loss, unscaled, [B, T] each: rec/<observation>, reward, cont, dyn, rep.

        The reward is that received on arriving at the observation of the same index. Source: paper, Eq. 4 and 5.
        """
        states = observed.states
        feature = states.feature
        found = {f"rec/{k}": v for k, v in self.decoder.losses(self.decoder(states.h, states.z), batch.obs).items()}
        # Deviation D14: the Nature text has a squared error in symlog space here, its code this.
        reward = self.reward(feature)
        if self.use_fast and isinstance(self.reward, TwoHotHead):
            found["reward"] = two_hot_losses(reward, [batch.reward], [1.0], self.reward.bins)
        else:
            found["reward"] = self.reward.loss(reward, batch.reward)
        logit = self.cont_logit(feature)
        going_on = (~batch.is_terminal).to(logit.dtype) * self.discount
        found["cont"] = bernoulli_loss(logit, going_on)
        post = mixture(observed.logits, self.unimix)
        prior = mixture(self.rssm.prior_logits(states.h), self.unimix)
        found["dyn"], found["rep"] = kl_balance(post, prior, self.free_nats)
        return found

    def predict(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward and probability of going on times the discount, [...] each."""
        return self.reward.mean(self.reward(feature)), torch.sigmoid(self.cont_logit(feature))
