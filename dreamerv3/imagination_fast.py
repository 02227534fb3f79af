"""`actor_critic.imagine` for throughput: it needs no gradient, so layouts and precision can follow the processor.

The mathematics to read is in rssm.py and actor_critic.py; tests show that both agree. What differs: products are made
in `dtype` (bfloat16 where the processor multiplies in it, as in the paper; norms, gates and the recurrent state stay in
float32), blocks share one product for their common inputs, classes lie before categoricals while a latent is drawn, and
every state is written once, into the features that the heads read. Between two products stands one function, which on a
GPU is one kernel.

Shapes: N starts, H horizon, D deter, S x K stoch, U hidden, g blocks, o = D / g, A action size.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dreamerv3 import distributions
from dreamerv3.actor_critic import Actor, BoundedNormal, Imagined
from dreamerv3.distributions import bounded_normal, mixed_probs, wide
from dreamerv3.layers_fast import for_device, norm_silu
from dreamerv3.networks import Layer, Linear
from dreamerv3.rssm import RSSM, State, squash_action


@torch.no_grad()
def imagine(
    rssm: RSSM, actor: Actor, start: State, action_noise: Tensor, uniform: Tensor, dtype: torch.dtype
) -> Imagined:
    """`actor_critic.imagine` with the same arguments and results; the features are of `dtype`."""
    with torch.autocast(start.h.device.type, enabled=False):
        return _Imagination(rssm, actor, dtype).roll_out(start, action_noise, uniform)


# --- between two products: one kernel each ----------------------------------------------------------------------------


def layer_of(product: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """A Layer [..., n] from its product."""
    return norm_silu(product + bias, scale).to(product.dtype)


def mix(hidden: Tensor, scale: Tensor) -> Tensor:
    """x [N, D] = silu(norm(hidden))."""
    return norm_silu(wide(hidden), scale).to(hidden.dtype)


def gate(raw: Tensor, h: Tensor) -> Tensor:
    """h' [N, D] = u q + (1 - u) h from raw [g, N, 3o]: reset, twice the candidate, and update - 1."""
    raw = wide(raw).transpose(0, 1)
    r, _, u = torch.sigmoid(raw).chunk(3, -1)  # the one in the middle is not used: a CPU is slower on parts
    q = (r * raw.chunk(3, -1)[1]).sigmoid_().mul_(2).sub_(1)  # tanh(r candidate), itself slower
    return torch.lerp(h.view(q.shape), q, u).flatten(1)


def pick(product: Tensor, bias: Tensor, uniform: Tensor, unimix: float) -> Tensor:
    """z' [N, S, K], one-hot as bool, from the logits' product [N, K * S], by uniform [N, S]."""
    logits = wide(product + bias).view(len(product), -1, uniform.shape[1])
    classes = logits.shape[1]
    probs = torch.softmax(logits, 1) * (1 - unimix) + unimix / classes
    return draw_by_class(probs, uniform)[..., None] == torch.arange(classes, device=probs.device)


def draw_by_class(probs: Tensor, uniform: Tensor) -> Tensor:
    """`distributions.draw` where classes lie in the second axis: probs [N, K, S], uniform [N, S] -> int64 [N, S]."""
    return (probs.cumsum(1) <= uniform[:, None]).sum(1).clamp(max=probs.shape[1] - 1)


def push(product: Tensor, bias: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A continuous action [N, A] from mean and std [N, 2A], and as the dynamics read it."""
    action = BoundedNormal(*bounded_normal(*(product + bias).chunk(2, -1))).sample(noise)
    return action, squash_action(action).to(product.dtype)


def choose(product: Tensor, bias: Tensor, noise: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """A discrete action [N] from its logits [N, A], and one-hot."""
    probs = mixed_probs(product + bias, unimix)
    action = distributions.draw(probs, noise.squeeze(-1))
    actions = torch.arange(probs.shape[-1], device=probs.device)
    return action, (action[..., None] == actions).to(product.dtype)


class _Imagination:
    """The weights of the dynamics and of the actor, laid out and cast once per update."""

    def __init__(self, rssm: RSSM, actor: Actor, dtype: torch.dtype) -> None:
        self.sizes, self.unimix, self.dtype, self.actor = rssm.sizes, rssm.unimix, dtype, actor
        sizes = self.sizes
        self.body = functools.partial(for_device, device=rssm.hidden.weight.device.type, width=sizes.deter)
        self.width = sizes.deter // sizes.blocks
        hidden = rssm.hidden.weight.to(dtype)
        self.w_own = hidden[:, : self.width]
        self.w_shared = hidden[:, self.width :].transpose(0, 1).reshape(-1, sizes.deter)  # [3U, D]
        self.b_hidden, self.s_hidden = rssm.hidden.bias.to(dtype), rssm.hidden_norm.scale
        double = torch.ones(3, 1, device=hidden.device)
        double[1] = 2  # of the candidate
        self.w_gates = (rssm.gates.weight.unflatten(-1, (3, -1)) * double).flatten(-2).to(dtype)
        bias = rssm.gates.bias.view(sizes.blocks, 1, 3, -1) * double
        bias[:, :, 2] -= 1
        self.b_gates = bias.flatten(-2).to(dtype)
        inputs = (rssm.in_deter, rssm.in_stoch, rssm.in_action)
        self.w_inputs = [layer.linear.weight.to(dtype).t() for layer in inputs]
        self.b_inputs = torch.stack([layer.linear.bias for layer in inputs])
        self.s_inputs = torch.stack([layer.norm.scale for layer in inputs])
        self.prior = [self._layer(layer) for layer in rssm.prior]
        weight, bias = self._linear(rssm.prior_out)
        by_class = (sizes.stoch, sizes.classes)  # rows from [S, K] to [K, S]
        self.w_logits = weight.unflatten(1, by_class).transpose(1, 2).flatten(1).contiguous()
        self.b_logits = bias.unflatten(0, by_class).t().flatten()
        self.policy_layers = [self._layer(layer) for layer in actor.layers]
        heads = [self._linear(out) for out in actor.heads]
        self.policy_out = tuple(torch.cat(parts, -1) for parts in zip(*heads, strict=True))

    def _linear(self, layer: Linear) -> tuple[Tensor, Tensor]:
        """[in, out] in the dtype of products, and the bias."""
        return layer.weight.to(self.dtype).t(), layer.bias

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
            action, vector = self.act(feature[t], noise)
            actions.append(action)
            if t + 1 < length:
                h = self.step(h, feature[t], vector, uniform[t], feature[t + 1])
        return Imagined(feature, torch.stack(actions))

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        """A Layer on [N, n]."""
        return self.body(layer_of)(torch.mm(x, weight), bias, scale)

    def act(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions for features [N, D + S * K], and the vectors [N, A] that the dynamics read."""
        for parts in self.policy_layers:
            x = self.layer(x, *parts)
        weight, bias = self.policy_out
        product = torch.mm(x, weight)
        if self.actor.actions.is_discrete:
            return self.body(choose)(product, bias, noise, self.actor.unimix)
        return self.body(push)(product, bias, noise)

    def step(self, h: Tensor, feature: Tensor, action: Tensor, uniform: Tensor, following: Tensor) -> Tensor:
        """h' [N, D] from h and the feature; writes the feature of the next state into `following`."""
        starts, blocks, deter = h.shape[0], self.sizes.blocks, self.sizes.deter
        product = feature.new_empty(starts, 3, self.sizes.hidden)
        parts = (feature[:, :deter], feature[:, deter:], action)
        for k, (x, weight) in enumerate(zip(parts, self.w_inputs, strict=True)):
            torch.mm(x, weight, out=product[:, k])
        shared = self.body(layer_of)(product, self.b_inputs, self.s_inputs).flatten(1)
        hidden = torch.addmm(self.b_hidden, shared, self.w_shared)
        own = feature[:, :deter].unflatten(1, (blocks, -1)).transpose(0, 1)
        hidden.view(starts, blocks, -1).transpose(0, 1).baddbmm_(own, self.w_own)
        x = self.body(mix)(hidden, self.s_hidden)
        raw = torch.baddbmm(self.b_gates, x.view(starts, blocks, -1).transpose(0, 1), self.w_gates)
        h = self.body(gate)(raw, h)
        following[:, :deter] = h
        x = following[:, :deter]
        for layer in self.prior:
            x = self.layer(x, *layer)
        z = self.body(pick)(torch.mm(x, self.w_logits), self.b_logits, uniform, self.unimix)
        following[:, deter:].unflatten(1, (-1, self.sizes.classes)).copy_(z)
        return h
