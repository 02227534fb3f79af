"""`RSSM.observe` for throughput: the loop over time holds only what is sequential, its gradients are written out.

The mathematics to read is in rssm.py; tests show that states, logits and gradients agree. What differs: the layers of
the actions and of the tokens are made for all steps at once, blocks share one product for their common inputs, and the
gradient of each weight is one product over all steps. Products may be made in bfloat16; what is added to them, norms,
gates, mixtures and the recurrent state keep the dtype of the weights.

`step` is `RSSM.observe_step` in the names of `RSSM.core`, `step_backward` the same lines from the last to the first;
d_x is the gradient of the loss to x.

Shapes: T time, B batch, D deter, S x K stoch, U hidden, g blocks, o = D / g; everything here is time-major.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common import eager
from dreamerv3.distributions import draw, mixed_probs
from dreamerv3.networks import NORM_EPS
from dreamerv3.rssm import RSSM, State, squash_action


class Weights(NamedTuple):
    """The parameters in the loop, by their names in `RSSM`; of the posterior's matrix the columns that read h."""

    in_deter: Tensor  # [U, D]
    in_deter_bias: Tensor
    in_deter_scale: Tensor
    in_stoch: Tensor  # [U, S * K]
    in_stoch_bias: Tensor
    in_stoch_scale: Tensor
    hidden: Tensor  # [g, o + 3U, o]
    hidden_bias: Tensor
    hidden_scale: Tensor
    gates: Tensor  # [g, o, 3o]
    gates_bias: Tensor
    posterior: Tensor  # [U, D]
    posterior_scale: Tensor
    posterior_out: Tensor  # [S * K, U]
    posterior_out_bias: Tensor


class Prepared(NamedTuple):
    """The weights as a step takes them: matrices in the dtype of products, the rest in that of the weights."""

    in_deter: Tensor
    in_deter_bias: Tensor
    in_stoch: Tensor
    in_stoch_bias: Tensor
    in_scales: Tensor  # [2, U]: of the layers of h and of z
    own: Tensor  # [g, o, o]: what a block reads of its own
    shared: Tensor  # [3U, D]: what all blocks read
    hidden_bias: Tensor
    hidden_scale: Tensor
    gates: Tensor
    gates_bias: Tensor  # [g, 3o]
    posterior: Tensor
    posterior_scale: Tensor
    posterior_out: Tensor
    posterior_out_bias: Tensor


class Trace(NamedTuple):
    """What the steps leave for the backward pass, [T, B, ...] each; a step writes its own [B, ...]."""

    h_in: Tensor  # [D], masked
    z_in: Tensor  # [S * K], masked, in the dtype of products
    pre_in: Tensor  # [2, U], before the norms of the layers of h and of z
    inverse_in: Tensor  # [2, 1], 1 / rms of it
    shared: Tensor  # [3U], in the dtype of products
    pre_hidden: Tensor  # [D]
    inverse_hidden: Tensor  # [1]
    x: Tensor  # [D], in the dtype of products
    candidate: Tensor  # [g, o], as r, q and u
    r: Tensor
    q: Tensor  # tanh(r candidate)
    u: Tensor
    pre_post: Tensor  # [U]
    inverse_post: Tensor  # [1]
    post: Tensor  # [U], in the dtype of products
    probs: Tensor  # [S * K], mixed
    h: Tensor  # the results
    z: Tensor
    logits: Tensor


class Slopes(NamedTuple):
    """What gradients are multiplied by on their way through the pointwise parts of a step, [T, B, ...] each."""

    softmax: Tensor  # [S, K], (1 - unimix) softmax(logits)
    plain: Tensor  # [S, K], softmax(logits)
    gates: Tensor  # [g, 3, o], of h' by reset, candidate and update
    pass_h: Tensor  # [D], of h' by h


class Gradients(NamedTuple):
    """Gradients of all steps, [T, B, ...] each, from which those of the weights are made."""

    logits: Tensor
    pre_post: Tensor
    posterior_scale: Tensor
    raw: Tensor  # [g, 3, o]
    pre_hidden: Tensor
    hidden_scale: Tensor
    shared: Tensor
    pre_in: Tensor
    in_scales: Tensor


class Setting(NamedTuple):
    """Numbers of the scan; dtype: of products."""

    blocks: int
    classes: int
    unimix: float
    dtype: torch.dtype


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
            Setting(sizes.blocks, sizes.classes, rssm.unimix, dtype),
            state.h.to(full),
            state.z.to(full).flatten(1),
            action,
            token,
            keep,
            uniform.transpose(0, 1).contiguous(),
            *Weights(
                in_deter=rssm.in_deter.linear.weight,
                in_deter_bias=rssm.in_deter.linear.bias,
                in_deter_scale=rssm.in_deter.norm.scale,
                in_stoch=rssm.in_stoch.linear.weight,
                in_stoch_bias=rssm.in_stoch.linear.bias,
                in_stoch_scale=rssm.in_stoch.norm.scale,
                hidden=rssm.hidden.weight,
                hidden_bias=rssm.hidden.bias,
                hidden_scale=rssm.hidden_norm.scale,
                gates=rssm.gates.weight,
                gates_bias=rssm.gates.bias,
                posterior=from_h,
                posterior_scale=layer.norm.scale,
                posterior_out=logits.weight,
                posterior_out_bias=logits.bias,
            ),
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
def for_device(function: types.FunctionType, device: str, width: int) -> Callable[..., Any]:
    """The function, fused into one kernel by torch.compile on a GPU; a CPU gains nothing from it.

    One for each `width` of the model: torch.compile gives up on a function that it has met in eight shapes, and takes
    functions of one code for one function.
    """
    if device != "cuda":
        return function
    code = function.__code__.replace(co_name=f"{function.__name__}_{width}")
    return eager.compiled(function.__name__, types.FunctionType(code, function.__globals__), dynamic=False)


def prepared(w: Weights, setting: Setting) -> Prepared:
    """The weights laid out and cast, once per update."""
    blocks, dtype = setting.blocks, setting.dtype
    width = w.in_deter.shape[1] // blocks
    hidden = w.hidden.to(dtype)
    return Prepared(
        in_deter=w.in_deter.to(dtype),
        in_deter_bias=w.in_deter_bias,
        in_stoch=w.in_stoch.to(dtype),
        in_stoch_bias=w.in_stoch_bias,
        in_scales=torch.stack([w.in_deter_scale, w.in_stoch_scale]),
        own=hidden[:, :width],
        shared=hidden[:, width:].transpose(0, 1).reshape(-1, blocks * width),
        hidden_bias=w.hidden_bias,
        hidden_scale=w.hidden_scale,
        gates=w.gates.to(dtype),
        gates_bias=w.gates_bias.view(blocks, 3 * width),
        posterior=w.posterior.to(dtype),
        posterior_scale=w.posterior_scale,
        posterior_out=w.posterior_out.to(dtype),
        posterior_out_bias=w.posterior_out_bias,
    )


def empty_trace(h: Tensor, z: Tensor, action: Tensor, token: Tensor, setting: Setting) -> Trace:
    """Room for T steps from h [B, D] and z [B, S * K]; the layer of the actions [T, B, U] is in its place already."""
    steps, batch, units = action.shape
    deter, stoch, dtype = h.shape[1], z.shape[1], setting.dtype
    by_block = (setting.blocks, deter // setting.blocks)

    def room(*shape: int, dtype: torch.dtype = h.dtype) -> Tensor:
        return action.new_empty(steps, batch, *shape, dtype=dtype)

    trace = Trace(
        h_in=room(deter),
        z_in=room(stoch, dtype=dtype),
        pre_in=room(2, units),
        inverse_in=room(2, 1),
        shared=room(3 * units, dtype=dtype),
        pre_hidden=room(deter),
        inverse_hidden=room(1),
        x=room(deter, dtype=dtype),
        candidate=room(*by_block),
        r=room(*by_block),
        q=room(*by_block),
        u=room(*by_block),
        pre_post=room(token.shape[2]),
        inverse_post=room(1),
        post=room(token.shape[2], dtype=dtype),
        probs=room(stoch),
        h=room(deter),
        z=room(stoch),
        logits=room(stoch),
    )
    trace.shared[..., 2 * units :] = action
    return trace


def step(
    h: Tensor, z: Tensor, token: Tensor, keep: Tensor, uniform: Tensor, w: Prepared, s: Trace, setting: Setting
) -> tuple[Tensor, Tensor]:
    """The next h [B, D] and z [B, S * K]; everything on the way is written into `s`, the trace of this step.

    token [B, U]: the part of the posterior's layer that is known before the loop; keep [B, 1]; uniform [B, S].
    """
    blocks, classes, unimix, dtype = setting
    batch, deter, units = h.shape[0], h.shape[1], s.post.shape[1]
    norm = for_device(norm_silu, h.device.type, deter)
    torch.mul(h, keep, out=s.h_in)  # h = keep h
    torch.mul(z, keep, out=s.z_in)  # z = keep z
    low = s.h_in.to(dtype)
    s.pre_in[:, 0] = add_product(w.in_deter_bias, low, w.in_deter.t())  # W h + b
    s.pre_in[:, 1] = add_product(w.in_stoch_bias, s.z_in, w.in_stoch.t())  # W z + b
    inputs, s.inverse_in[:] = norm(s.pre_in, w.in_scales)  # silu(norm(...)) of both
    s.shared[:, : 2 * units] = inputs.flatten(1)  # shared = [in_deter, in_stoch, in_action]
    own = torch.bmm(_per_block(low, blocks), w.own).transpose(0, 1).reshape(batch, deter)
    torch.add(add_product(w.hidden_bias, s.shared, w.shared), own, out=s.pre_hidden)  # hidden([h_block, shared])
    s.x[:], s.inverse_hidden[:] = norm(s.pre_hidden, w.hidden_scale)  # x = silu(norm(hidden))
    raw = torch.bmm(_per_block(s.x, blocks), w.gates).transpose(0, 1) + w.gates_bias  # gates(x)
    reset, candidate, update = raw.unflatten(-1, (3, -1)).unbind(-2)
    s.candidate[:] = candidate
    torch.sigmoid(reset, out=s.r)  # r = sigmoid(reset)
    torch.tanh(s.r * candidate, out=s.q)  # q = tanh(r candidate)
    torch.sigmoid(update - 1, out=s.u)  # u = sigmoid(update - 1)
    torch.lerp(s.h_in, s.q.view(batch, deter), s.u.view(batch, deter), out=s.h)  # h' = u q + (1 - u) h
    add_product(token, s.h, w.posterior.t(), out=s.pre_post)  # W [h', token] + b
    s.post[:], s.inverse_post[:] = norm(s.pre_post, w.posterior_scale)  # post = silu(norm(...))
    add_product(w.posterior_out_bias, s.post, w.posterior_out.t(), out=s.logits)  # logits = W post + b
    probs = mixed_probs(s.logits.view(batch, -1, classes), unimix)  # p = (1 - unimix) softmax(logits) + unimix / K
    s.probs[:] = probs.flatten(1)
    s.z.zero_().view(batch, -1, classes).scatter_(-1, draw(probs, uniform)[..., None], 1)  # z' = onehot + p - sg(p)
    return s.h, s.z


def slopes_of(trace: Trace, setting: Setting) -> Slopes:
    """The slopes of all steps at once."""
    _, classes, unimix, _ = setting
    r, q, u = trace.r, trace.q, trace.u
    softmax = (trace.probs - unimix / classes).unflatten(-1, (-1, classes))
    plain = softmax / (1 - unimix) if unimix < 1 else softmax
    to_update = (q - trace.h_in.view_as(q)) * u * (1 - u)
    to_product = u * (1 - q * q)  # of r candidate
    to_reset, to_candidate = to_product * trace.candidate * r * (1 - r), to_product * r
    gates = torch.stack([to_reset, to_candidate, to_update], -2)
    return Slopes(softmax, plain, gates, (1 - u).view_as(trace.h))


def step_backward(
    d_h: Tensor,
    d_z: Tensor,
    d_logits: Tensor,
    keep: Tensor,
    w: Prepared,
    s: Trace,
    slope: Slopes,
    d: Gradients,
    setting: Setting,
) -> tuple[Tensor, Tensor]:
    """The gradients to h and z before a step from those to h', z' and logits after it; writes the step's into `d`."""
    blocks, classes, _, dtype = setting
    (batch, deter), full = d_h.shape, d_h.dtype
    units = s.post.shape[1]
    norm_backward = for_device(norm_silu_backward, d_h.device.type, deter)
    d_z = d_z.view(batch, -1, classes)
    from_z = slope.softmax * (d_z - (slope.plain * d_z).sum(-1, keepdim=True))  # z' = onehot + p - sg(p)
    torch.add(d_logits, from_z.flatten(1), out=d.logits)
    d_post = torch.mm(d.logits.to(dtype), w.posterior_out).to(full)  # logits = W post + b
    d.pre_post[:], d.posterior_scale[:] = norm_backward(d_post, s.pre_post, s.inverse_post, w.posterior_scale)
    d_h = add_product(d_h, d.pre_post, w.posterior)  # W [h', token] + b
    torch.mul(slope.gates, d_h.view(batch, blocks, 1, -1), out=d.raw)  # h' = u q + (1 - u) h, its gates
    d_x = torch.bmm(d.raw.flatten(2).transpose(0, 1).to(dtype), w.gates.transpose(1, 2))  # gates(x)
    d_x = d_x.transpose(0, 1).to(full).reshape(batch, deter)
    d.pre_hidden[:], d.hidden_scale[:] = norm_backward(d_x, s.pre_hidden, s.inverse_hidden, w.hidden_scale)
    low = d.pre_hidden.to(dtype)
    own = torch.bmm(_per_block(low, blocks), w.own.transpose(1, 2)).transpose(0, 1)  # hidden([h_block, shared])
    torch.mm(low, w.shared.t(), out=d.shared)
    d_inputs = d.shared[:, : 2 * units].view(batch, 2, units).to(full)  # shared = [in_deter, in_stoch, in_action]
    d.pre_in[:], d.in_scales[:] = norm_backward(d_inputs, s.pre_in, s.inverse_in, w.in_scales)
    d_h = d_h * slope.pass_h + own.reshape(batch, deter)  # h' = u q + (1 - u) h, its h; and hidden's
    d_h = add_product(d_h, d.pre_in[:, 0], w.in_deter) * keep  # W h + b, h = keep h
    d_z = torch.mm(d.pre_in[:, 1].to(dtype), w.in_stoch).to(full) * keep  # W z + b, z = keep z
    return d_h, d_z


def weight_gradients(trace: Trace, d: Gradients, setting: Setting) -> Weights:
    """The gradient of every weight: one product, or one sum, over all steps."""
    blocks, dtype, full = setting.blocks, setting.dtype, trace.h.dtype

    def rows(x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    def by_block(x: Tensor) -> Tensor:
        return _per_block(rows(x).flatten(1), blocks).to(dtype)

    def product(left: Tensor, right: Tensor) -> Tensor:
        return torch.mm(left.t().to(dtype), right.to(dtype)).to(full)

    pre_in, in_scales = rows(d.pre_in), rows(d.in_scales).sum(0)
    own = torch.bmm(by_block(trace.h_in).transpose(1, 2), by_block(d.pre_hidden)).to(full)
    shared = product(rows(trace.shared), rows(d.pre_hidden)).view(-1, blocks, own.shape[2]).transpose(0, 1)
    return Weights(
        in_deter=product(pre_in[:, 0], rows(trace.h_in)),
        in_deter_bias=pre_in[:, 0].sum(0),
        in_deter_scale=in_scales[0],
        in_stoch=product(pre_in[:, 1], rows(trace.z_in)),
        in_stoch_bias=pre_in[:, 1].sum(0),
        in_stoch_scale=in_scales[1],
        hidden=torch.cat([own, shared], 1),
        hidden_bias=rows(d.pre_hidden).sum(0),
        hidden_scale=rows(d.hidden_scale).sum(0),
        gates=torch.bmm(by_block(trace.x).transpose(1, 2), by_block(d.raw)).to(full),
        gates_bias=rows(d.raw).sum(0).flatten(),
        posterior=product(rows(d.pre_post), rows(trace.h)),
        posterior_scale=rows(d.posterior_scale).sum(0),
        posterior_out=product(rows(d.logits), rows(trace.post)),
        posterior_out_bias=rows(d.logits).sum(0),
    )


def _per_block(x: Tensor, blocks: int) -> Tensor:
    """[N, g * n] -> [g, N, n]."""
    return x.view(len(x), blocks, -1).transpose(0, 1)


class _Scan(torch.autograd.Function):
    """h, z (one-hot) and raw posterior logits, [T, B, ...] each."""

    @staticmethod
    def forward(
        ctx: Any,
        setting: Setting,
        h: Tensor,
        z: Tensor,
        action: Tensor,
        token: Tensor,
        keep: Tensor,
        uniform: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w, trace = prepared(Weights(*weights), setting), empty_trace(h, z, action, token, setting)
        for t, parts in enumerate(zip(*(part.unbind() for part in trace), strict=True)):
            h, z = step(h, z, token[t], keep[t], uniform[t], w, Trace(*parts), setting)
        ctx.setting = setting
        ctx.save_for_backward(keep, *w, *trace)
        return trace.h, trace.z, trace.logits

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_z: Tensor, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        setting, (keep, *saved) = ctx.setting, ctx.saved_tensors
        w, trace = Prepared(*saved[: len(Prepared._fields)]), Trace(*saved[len(Prepared._fields) :])
        slopes = slopes_of(trace, setting)
        d = Gradients(
            logits=torch.empty_like(trace.logits),
            pre_post=torch.empty_like(trace.pre_post),
            posterior_scale=torch.empty_like(trace.pre_post),
            raw=torch.empty_like(slopes.gates),
            pre_hidden=torch.empty_like(trace.pre_hidden),
            hidden_scale=torch.empty_like(trace.pre_hidden),
            shared=torch.empty_like(trace.shared),
            pre_in=torch.empty_like(trace.pre_in),
            in_scales=torch.empty_like(trace.pre_in),
        )
        d_h, d_z = torch.zeros_like(trace.h[0]), torch.zeros_like(trace.z[0])
        for t in range(len(keep) - 1, -1, -1):
            at = (part[t] for part in trace), (part[t] for part in slopes), (part[t] for part in d)
            s, slope, now = Trace(*at[0]), Slopes(*at[1]), Gradients(*at[2])
            d_h, d_z = step_backward(
                d_h + grad_h[t], d_z + grad_z[t], grad_logits[t], keep[t], w, s, slope, now, setting
            )
        d_action = d.shared[:, :, 2 * trace.post.shape[2] :].to(trace.h.dtype)
        return None, None, None, d_action, d.pre_post, None, None, *weight_gradients(trace, d, setting)
