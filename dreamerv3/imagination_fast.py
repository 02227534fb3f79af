"""`actor_critic.imagine` for throughput: it needs no gradient, so layouts and precision can follow the processor.

The mathematics to read is in rssm.py and actor_critic.py; tests show that both agree. What differs: products are made
in `dtype` (bfloat16 where the processor multiplies in it, as in the paper; norms, gates and the recurrent state stay in
float32), blocks share one product for their common inputs, classes lie before categoricals while a latent is drawn, and
every state is written once, into the features that the heads read.

Shapes: N starts, H horizon, D deter, S x K stoch, U hidden, g blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamerv3.actor_critic import Actor, BoundedNormal, Categorical, Imagined
from dreamerv3.distributions import bounded_normal, mixture, wide
from dreamerv3.networks import Layer, Linear
from dreamerv3.rssm import RSSM, State, squash_action
from dreamerv3.rssm_fast import for_device, norm_silu


@torch.no_grad()
def imagine(
    rssm: RSSM, actor: Actor, start: State, action_noise: Tensor, uniform: Tensor, dtype: torch.dtype
) -> Imagined:
    """`actor_critic.imagine` with the same arguments and results; the features are of `dtype`."""
    with torch.autocast(start.h.device.type, enabled=False):
        return _Imagination(rssm, actor, dtype).roll_out(start, action_noise, uniform)


def draw_by_class(probs: Tensor, uniform: Tensor) -> Tensor:
    """`distributions.draw` where classes lie in the second axis: probs [N, K, S], uniform [N, S] -> int64 [N, S]."""
    return (probs[:, :-1].cumsum(1) <= uniform[:, None]).sum(1)


class _Imagination:
    """The weights of the dynamics and of the actor, laid out and cast once per update."""

    def __init__(self, rssm: RSSM, actor: Actor, dtype: torch.dtype) -> None:
        self.sizes, self.unimix, self.dtype, self.actor = rssm.sizes, rssm.unimix, dtype, actor
        sizes = self.sizes
        self.norm = for_device(norm_silu, rssm.hidden.weight.device.type, sizes.deter)
        self.width = sizes.deter // sizes.blocks
        hidden = rssm.hidden.weight.to(dtype)
        self.w_own = hidden[:, : self.width]
        self.w_shared = hidden[:, self.width :].permute(0, 2, 1).reshape(sizes.deter, -1)  # [D, 3U], as F.linear has it
        self.b_hidden, self.s_hidden = rssm.hidden.bias.to(dtype), rssm.hidden_norm.scale
        self.w_gates, self.b_gates = rssm.gates.weight.to(dtype), rssm.gates.bias.to(dtype).view(sizes.blocks, 1, -1)
        inputs = (rssm.in_deter, rssm.in_stoch, rssm.in_action)
        self.inputs = [self._linear(layer.linear) for layer in inputs]
        self.s_inputs = torch.stack([layer.norm.scale for layer in inputs])
        self.prior = [self._layer(layer) for layer in rssm.prior]
        weight, bias = self._linear(rssm.prior_out)
        by_class = (sizes.stoch, sizes.classes)  # rows from [S, K] to [K, S]
        self.w_logits = weight.unflatten(0, by_class).transpose(0, 1).flatten(0, 1).contiguous()
        self.b_logits = bias.unflatten(0, by_class).t().flatten().contiguous()
        self.classes = torch.arange(sizes.classes, device=bias.device)
        self.policy_layers = [self._layer(layer) for layer in actor.layers]
        self.policy_outs = [self._linear(out) for out in actor.heads]

    def _linear(self, layer: Linear) -> tuple[Tensor, Tensor]:
        return layer.weight.to(self.dtype), layer.bias.to(self.dtype)

    def _layer(self, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
        return *self._linear(layer.linear), layer.norm.scale

    def roll_out(self, start: State, action_noise: Tensor, uniform: Tensor) -> Imagined:
        deter, stoch = self.sizes.deter, self.sizes.stoch * self.sizes.classes
        length, starts = len(action_noise), start.h.shape[0]
        feature = torch.empty(length, starts, deter + stoch, dtype=self.dtype, device=start.h.device)
        h = wide(start.h)
        feature[0, :, :deter], feature[0, :, deter:] = h, start.z.flatten(1)
        actions = []
        for t, noise in enumerate(action_noise):
            policy = self.policy(feature[t])
            actions.append(policy.sample(noise))
            if t + 1 < length:
                h = self.step(h, feature[t], policy.vector(actions[-1]), uniform[t], feature[t + 1])
        return Imagined(feature, torch.stack(actions))

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        """A Layer on [N, n]."""
        return self.norm(wide(F.linear(x, weight, bias)), scale).to(self.dtype)

    def policy(self, x: Tensor) -> Categorical | BoundedNormal:
        """The actor on features [N, D + S * K]."""
        for parts in self.policy_layers:
            x = self.layer(x, *parts)
        raw = [wide(F.linear(x, *out)) for out in self.policy_outs]
        if self.actor.actions.is_discrete:
            return Categorical(mixture(raw[0], self.actor.unimix))
        return BoundedNormal(*bounded_normal(*raw))

    def step(self, h: Tensor, feature: Tensor, action: Tensor, uniform: Tensor, following: Tensor) -> Tensor:
        """h' [N, D] from h and the feature; writes the feature of the next state into `following`."""
        starts, blocks, deter = h.shape[0], self.sizes.blocks, self.sizes.deter
        squashed = squash_action(action).to(self.dtype)
        parts = (feature[:, :deter], feature[:, deter:], squashed)
        pre = wide(torch.stack([F.linear(x, *w) for x, w in zip(parts, self.inputs, strict=True)], 1))
        shared = self.norm(pre, self.s_inputs).to(self.dtype).flatten(1)
        own = torch.bmm(feature[:, :deter].unflatten(1, (blocks, -1)).transpose(0, 1), self.w_own)
        hidden = wide(F.linear(shared, self.w_shared, self.b_hidden))
        hidden.view(starts, blocks, -1).add_(own.transpose(0, 1))
        x = self.norm(hidden, self.s_hidden).to(self.dtype)
        raw = torch.bmm(x.view(starts, blocks, -1).transpose(0, 1), self.w_gates).add_(self.b_gates)
        reset, candidate, update = wide(raw).split(self.width, -1)  # [g, N, o]
        r, u = torch.sigmoid(reset), torch.sigmoid(update - 1)
        q = torch.sigmoid(r.mul_(candidate).mul_(2)).mul_(2).sub_(1)  # tanh, which is slower
        after = torch.empty_like(h)
        before = h.view(starts, blocks, -1).transpose(0, 1)
        torch.lerp(before, q, u, out=after.view(starts, blocks, -1).transpose(0, 1))
        following[:, :deter] = after
        x = following[:, :deter]
        for layer in self.prior:
            x = self.layer(x, *layer)
        logits = wide(F.linear(x, self.w_logits, self.b_logits)).view(starts, self.sizes.classes, -1)
        probs = torch.softmax(logits, 1).mul_(1 - self.unimix).add_(self.unimix / self.sizes.classes)
        index = draw_by_class(probs, uniform)
        following[:, deter:].unflatten(1, (-1, self.sizes.classes)).copy_(index[..., None] == self.classes)
        return after
