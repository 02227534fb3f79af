"""`RSSM.observe` for throughput: the loop over time holds only what is sequential, its gradients are written out.

The mathematics to read is in rssm.py; tests show that states, logits and gradients agree. What differs: the layers of
the actions and of the tokens are made for all steps at once, blocks share one product for their common inputs, and the
gradient of each weight is one product over all steps. Products may be made in bfloat16; what is added to them, norms,
gates, mixtures and the recurrent state keep the dtype of the weights.

Shapes: T time, B batch, D deter, S x K stoch, U hidden, g blocks, o = D / g; everything here is time-major.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamerv3.distributions import draw, mixed_probs
from dreamerv3.networks import NORM_EPS
from dreamerv3.rssm import RSSM, State, squash_action


def observe(
    rssm: RSSM,
    state: State,
    actions: Tensor,
    tokens: Tensor,
    is_first: Tensor,
    uniform: Tensor,
    dtype: torch.dtype | None = None,
) -> tuple[State, Tensor]:
    """`RSSM.observe` with the same arguments, its results in the dtype of the weights. No gradient flows into `state`.

    dtype: of the products; none: `scan_dtype`.
    """
    sizes, device, full = rssm.sizes, tokens.device.type, rssm.gates.weight.dtype
    dtype = dtype or scan_dtype(rssm.gates.weight)
    layer, logits = rssm.posterior, rssm.posterior_out
    from_h, from_token = layer.linear.weight.split([sizes.deter, tokens.shape[-1]], 1)
    keep = (~is_first).to(full).t()[..., None].contiguous()  # [T, B, 1]
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        action = rssm.in_action(squash_action(actions.to(full)).transpose(0, 1) * keep).to(full)
        token = F.linear(tokens.to(full).transpose(0, 1), from_token, layer.linear.bias).to(full)
    with torch.autocast(device, enabled=False):
        h, z, out = _Scan.apply(
            state.h.to(full),
            state.z.to(full).flatten(1),
            action,
            token,
            keep,
            uniform.transpose(0, 1).contiguous(),
            rssm.in_deter.linear.weight,
            rssm.in_deter.linear.bias,
            rssm.in_deter.norm.scale,
            rssm.in_stoch.linear.weight,
            rssm.in_stoch.linear.bias,
            rssm.in_stoch.norm.scale,
            rssm.hidden.weight,
            rssm.hidden.bias,
            rssm.hidden_norm.scale,
            rssm.gates.weight,
            rssm.gates.bias,
            from_h,
            layer.norm.scale,
            logits.weight,
            logits.bias,
            sizes.classes,
            rssm.unimix,
            dtype,
        )
    shape = (sizes.stoch, sizes.classes)
    return State(h.transpose(0, 1), z.transpose(0, 1).unflatten(-1, shape)), out.transpose(0, 1).unflatten(-1, shape)


def scan_dtype(weight: Tensor) -> torch.dtype:
    """That of autocast on a GPU; that of the weights on a CPU, where products of one step are too small to gain."""
    is_mixed = weight.is_cuda and torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if is_mixed else weight.dtype


def add_product(base: Tensor, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """base + x weight, the product in the dtype of the weight, the sum in that of base [n] or [N, n].

    x [N, m], weight [m, n].
    """
    if weight.dtype == base.dtype:
        return torch.addmm(base, x, weight, out=out)
    return torch.add(base, torch.mm(x.to(weight.dtype), weight), out=out)


def norm_silu(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """silu(RMSNorm(x) * scale) over the last axis, and 1 / rms [..., 1], which the backward pass needs."""
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    return F.silu(x * inverse * scale), inverse


def norm_silu_backward(grad: Tensor, x: Tensor, inverse: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient to x, and that to scale before it is summed over all rows, of `norm_silu`."""
    normed = x * inverse
    n = normed * scale
    sigmoid = torch.sigmoid(n)
    d_n = grad * sigmoid * (1 + n * (1 - sigmoid))
    d_normed = d_n * scale
    d_x = inverse * (d_normed - normed * (d_normed * normed).mean(-1, keepdim=True))
    return d_x, d_n * normed


@functools.cache
def for_device(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The function, fused into one kernel by torch.compile on a GPU; a CPU gains nothing from it."""
    return torch.compile(function, dynamic=False) if device == "cuda" else function


class _Scan(torch.autograd.Function):
    """h, z (one-hot) and raw posterior logits, [T, B, ...] each."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        z: Tensor,
        action: Tensor,
        token: Tensor,
        keep: Tensor,
        uniform: Tensor,
        w_deter: Tensor,
        b_deter: Tensor,
        s_deter: Tensor,
        w_stoch: Tensor,
        b_stoch: Tensor,
        s_stoch: Tensor,
        w_hidden: Tensor,
        b_hidden: Tensor,
        s_hidden: Tensor,
        w_gates: Tensor,
        b_gates: Tensor,
        w_post: Tensor,
        s_post: Tensor,
        w_logits: Tensor,
        b_logits: Tensor,
        classes: int,
        unimix: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        norm = for_device(norm_silu, h.device.type)
        w_deter, w_stoch, w_hidden, w_gates, w_post, w_logits = (
            weight.to(dtype) for weight in (w_deter, w_stoch, w_hidden, w_gates, w_post, w_logits)
        )
        steps, batch, units = action.shape
        blocks, deter = w_hidden.shape[0], h.shape[1]
        width = deter // blocks
        # [g, o + 3U, o] -> the part of each block's own inputs, and [3U, D] for the inputs that all blocks share.
        w_own, w_shared = w_hidden[:, :width], w_hidden[:, width:].transpose(0, 1).reshape(-1, deter)
        new = action.new_empty
        hs, zs = new(steps, batch, deter), new(steps, batch, z.shape[1])
        h_in, z_in = torch.empty_like(hs), torch.empty_like(zs, dtype=dtype)
        shared = new(steps, batch, 3 * units, dtype=dtype)
        pre_in, inverse_in = new(steps, batch, 2, units), new(steps, batch, 2, 1)
        pre_hidden, inverse_hidden = new(steps, batch, deter), new(steps, batch, 1)
        value = new(steps, batch, deter, dtype=dtype)
        gates = new(steps, 3, batch, blocks, width)  # r, tanh(r c), u
        candidates = new(steps, batch, blocks, width)
        pre_post, inverse_post = torch.empty_like(token), new(steps, batch, 1)
        post, logits = torch.empty_like(token, dtype=dtype), torch.empty_like(zs)
        probs = torch.empty_like(zs)
        scales = torch.stack([s_deter, s_stoch])
        shared[:, :, 2 * units :] = action
        for t in range(steps):
            torch.mul(h, keep[t], out=h_in[t])
            torch.mul(z, keep[t], out=z_in[t])
            low = h_in[t].to(dtype)
            pre_in[t, :, 0] = add_product(b_deter, low, w_deter.t())
            pre_in[t, :, 1] = add_product(b_stoch, z_in[t], w_stoch.t())
            activated, inverse_in[t] = norm(pre_in[t], scales)
            shared[t, :, : 2 * units] = activated.flatten(1)
            own = torch.bmm(low.view(batch, blocks, width).transpose(0, 1), w_own).transpose(0, 1)
            common = add_product(b_hidden, shared[t], w_shared)
            torch.add(common, own.reshape(batch, deter), out=pre_hidden[t])
            value[t], inverse_hidden[t] = norm(pre_hidden[t], s_hidden)
            raw = torch.bmm(value[t].view(batch, blocks, width).transpose(0, 1), w_gates).transpose(0, 1)
            raw = raw + b_gates.view(blocks, 3 * width)
            reset, candidate, update = raw.unflatten(-1, (3, width)).unbind(-2)
            candidates[t] = candidate
            r = torch.sigmoid(reset, out=gates[t, 0])
            q = torch.tanh(r * candidate, out=gates[t, 1])
            u = torch.sigmoid(update - 1, out=gates[t, 2])
            h = torch.lerp(h_in[t], q.view(batch, deter), u.view(batch, deter), out=hs[t])
            add_product(token[t], h, w_post.t(), out=pre_post[t])
            post[t], inverse_post[t] = norm(pre_post[t], s_post)
            add_product(b_logits, post[t], w_logits.t(), out=logits[t])
            p = mixed_probs(logits[t].view(batch, -1, classes), unimix)
            probs[t] = p.flatten(1)
            z = zs[t].zero_()
            z.view(batch, -1, classes).scatter_(-1, draw(p, uniform[t])[..., None], 1)
        ctx.classes, ctx.unimix, ctx.dtype, ctx.shape = classes, unimix, dtype, (blocks, width, units)
        ctx.save_for_backward(
            keep, h_in, z_in, shared, pre_in, inverse_in, pre_hidden, inverse_hidden, value, gates, candidates,
            pre_post, inverse_post, post, probs, hs, scales, s_hidden, s_post,
            w_deter, w_stoch, w_own, w_shared, w_gates, w_post, w_logits,
        )  # fmt: skip
        return hs, zs, logits

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_z: Tensor, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        (
            keep, h_in, z_in, shared, pre_in, inverse_in, pre_hidden, inverse_hidden, value, gates, candidates,
            pre_post, inverse_post, post, probs, hs, scales, s_hidden, s_post,
            w_deter, w_stoch, w_own, w_shared, w_gates, w_post, w_logits,
        ) = ctx.saved_tensors  # fmt: skip
        norm_backward = for_device(norm_silu_backward, hs.device.type)
        dtype, full, (blocks, width, units) = ctx.dtype, hs.dtype, ctx.shape
        steps, batch, deter = hs.shape
        r, q, u = gates.unbind(1)
        softmax = (probs - ctx.unimix / ctx.classes).unflatten(-1, (-1, ctx.classes))  # (1 - unimix) softmax
        plain = softmax / (1 - ctx.unimix) if ctx.unimix < 1 else softmax
        # What multiplies the gradient of h' on the way to each gate, for all steps at once.
        to_update = (q - h_in.view_as(q)) * u * (1 - u)
        to_product = u * (1 - q * q)
        to_reset, to_candidate = to_product * candidates * r * (1 - r), to_product * r
        slopes = torch.stack([to_reset, to_candidate, to_update], -2)  # [T, B, g, 3, o]
        pass_h = (1 - u).view(steps, batch, deter)
        d_raw = torch.empty_like(slopes)
        d_logits = torch.empty_like(grad_logits)
        d_pre_post, d_scale_post = torch.empty_like(pre_post), torch.empty_like(pre_post)
        d_hidden, d_scale_hidden = torch.empty_like(pre_hidden), torch.empty_like(pre_hidden)
        d_pre_in, d_scale_in = torch.empty_like(pre_in), torch.empty_like(pre_in)
        d_shared = torch.empty_like(shared)
        own_t, shared_t, gates_t = w_own.transpose(1, 2), w_shared.t(), w_gates.transpose(1, 2)
        d_h, d_z = torch.zeros_like(hs[0]), torch.zeros_like(probs[0])
        for t in range(steps - 1, -1, -1):
            d_z = (d_z + grad_z[t]).view(batch, -1, ctx.classes)
            # Straight-through: the gradient of z is that of the mixed probabilities.
            into = softmax[t] * (d_z - (plain[t] * d_z).sum(-1, keepdim=True))
            torch.add(grad_logits[t], into.flatten(1), out=d_logits[t])
            d_post = torch.mm(d_logits[t].to(dtype), w_logits).to(full)
            d_pre_post[t], d_scale_post[t] = norm_backward(d_post, pre_post[t], inverse_post[t], s_post)
            d_h = add_product(d_h + grad_h[t], d_pre_post[t], w_post)
            torch.mul(slopes[t], d_h.view(batch, blocks, 1, width), out=d_raw[t])
            d_value = torch.bmm(d_raw[t].flatten(2).transpose(0, 1).to(dtype), gates_t).transpose(0, 1).to(full)
            d_value = d_value.reshape(batch, deter)
            d_hidden[t], d_scale_hidden[t] = norm_backward(d_value, pre_hidden[t], inverse_hidden[t], s_hidden)
            low = d_hidden[t].to(dtype)
            d_own = torch.bmm(low.view(batch, blocks, width).transpose(0, 1), own_t).transpose(0, 1)
            torch.mm(low, shared_t, out=d_shared[t])
            d_in = d_shared[t, :, : 2 * units].view(batch, 2, units).to(full)
            d_pre_in[t], d_scale_in[t] = norm_backward(d_in, pre_in[t], inverse_in[t], scales)
            d_h = add_product(d_h * pass_h[t] + d_own.reshape(batch, deter), d_pre_in[t, :, 0], w_deter) * keep[t]
            d_z = torch.mm(d_pre_in[t, :, 1].to(dtype), w_stoch).to(full) * keep[t]

        def rows(x: Tensor) -> Tensor:
            return x.flatten(0, 1)

        def per_block(x: Tensor) -> Tensor:
            return x.reshape(steps * batch, blocks, -1).transpose(0, 1).to(dtype)

        def of_weight(left: Tensor, right: Tensor) -> Tensor:
            return torch.mm(left.t().to(dtype), right.to(dtype)).to(full)

        flat_in = rows(d_pre_in)
        d_w_own = torch.bmm(per_block(h_in).transpose(1, 2), per_block(d_hidden)).to(full)
        d_w_shared = of_weight(rows(shared), rows(d_hidden)).view(-1, blocks, width).transpose(0, 1)
        d_w_gates = torch.bmm(per_block(value).transpose(1, 2), per_block(d_raw)).to(full)
        d_scale_in = rows(d_scale_in).sum(0)
        return (
            None,
            None,
            d_shared[:, :, 2 * units :].to(full),
            d_pre_post,
            None,
            None,
            of_weight(flat_in[:, 0], rows(h_in)),
            flat_in[:, 0].sum(0),
            d_scale_in[0],
            of_weight(flat_in[:, 1], rows(z_in)),
            flat_in[:, 1].sum(0),
            d_scale_in[1],
            torch.cat([d_w_own, d_w_shared], 1),
            rows(d_hidden).sum(0),
            rows(d_scale_hidden).sum(0),
            d_w_gates,
            rows(d_raw).sum(0).flatten(),
            of_weight(rows(d_pre_post), rows(hs)),
            rows(d_scale_post).sum(0),
            of_weight(rows(d_logits), rows(post)),
            rows(d_logits).sum(0),
            None,
            None,
            None,
        )
