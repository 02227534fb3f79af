"""`RSSM.observe` for throughput: the loop over time holds only what is sequential, its gradients are written out.

The mathematics to read is in rssm.py; tests show that states, logits and gradients agree. What differs: the parts of
the actions and of the tokens are made for all steps at once, blocks share one product for their common inputs, and the
gradient of each weight is one product over all steps. Products may be made in bfloat16; what is added to them, norms,
gates, mixtures and the recurrent state keep the dtype of the weights.

Between two products of `step` stands one function, which on a GPU is one kernel: `read_inputs`, `mix`, `gate`,
`read_token` and `pick`, in this order. `step_backward` has the same lines from the last to the first, and d_x is the
gradient of the loss to x; what gradients are multiplied by there is made for all steps at once, by `slopes_of`.

Shapes: T time, B batch, D deter, S x K stoch, U hidden, g blocks, o = D / g; everything here is time-major.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamerv3.distributions import draw, mixed_probs
from dreamerv3.layers_fast import NormSlope, for_device, norm_silu, norm_silu_backward, norm_slopes
from dreamerv3.rssm import RSSM, State, squash_action


class Weights(NamedTuple):
    """The parameters in the loop, by their names in `RSSM`; of the block layer `hidden` and of the posterior what reads
    h and z: what reads actions and tokens lies outside of the loop."""

    in_deter: Tensor  # [U, D]
    in_deter_bias: Tensor
    in_deter_scale: Tensor
    in_stoch: Tensor  # [U, S * K]
    in_stoch_bias: Tensor
    in_stoch_scale: Tensor
    own: Tensor  # [g, o, o], what a block reads of its own h
    shared: Tensor  # [2U, D], what all blocks read
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
    in_stoch: Tensor
    in_bias: Tensor  # [2, U]: of the layers of h and of z
    in_scale: Tensor
    own: Tensor
    shared: Tensor
    hidden_scale: Tensor
    gates: Tensor
    gates_bias: Tensor  # [g, 1, 3o], that of update less 1
    posterior: Tensor
    posterior_scale: Tensor
    posterior_out: Tensor
    posterior_out_bias: Tensor


class Trace(NamedTuple):
    """What a step leaves for the backward pass, [B, ...], and of all steps [T, B, ...]."""

    pre_in: Tensor  # [2, U], before the norms of the layers of h and of z
    pre_hidden: Tensor  # [D], before the norm
    raw: Tensor  # [g, B, 3o]: reset, candidate and update without their bias, in the dtype of products
    pre_post: Tensor  # [U], before the norm
    h: Tensor  # the results
    z: Tensor  # [S * K], one-hot, in the dtype of products
    logits: Tensor


class Slopes(NamedTuple):
    """What gradients are multiplied by on their way through the pointwise parts of a step, [T, B, ...] each."""

    softmax: Tensor  # [S, K], (1 - unimix) softmax(logits)
    plain: Tensor  # [S, K], softmax(logits)
    post: NormSlope  # [U]
    gates: Tensor  # [g, B, 4, o], of h' by reset, candidate, update and h
    hidden: NormSlope  # [D]
    inputs: NormSlope  # [2, U]


class Gradients(NamedTuple):
    """The gradients of a step, [B, ...], and of all steps, from which those of the weights are made."""

    logits: Tensor
    post: Tensor
    pre_post: Tensor
    gates: Tensor  # [g, B, 4, o], to reset, candidate, update and directly to h
    x: Tensor  # [g, B, o]
    pre_hidden: Tensor
    inputs: Tensor  # [2U]
    pre_in: Tensor


Parts = TypeVar("Parts", Trace, Gradients)


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
    layer, logits, width = rssm.posterior, rssm.posterior_out, sizes.deter // sizes.blocks
    from_h, from_token = layer.linear.weight.split([sizes.deter, tokens.shape[-1]], 1)
    own, shared = rssm.hidden.weight.split([width, 3 * sizes.hidden], 1)
    shared, from_action = shared.transpose(0, 1).reshape(-1, sizes.deter).split([2 * sizes.hidden, sizes.hidden])
    keep = (~is_first).to(full).t()[..., None].contiguous()  # [T, B, 1]
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        action = rssm.in_action(squash_action(actions.to(full)).transpose(0, 1) * keep)
        action = F.linear(action, from_action.t(), rssm.hidden.bias).to(full)
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
                own=own,
                shared=shared,
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


# --- between two products: one kernel each ----------------------------------------------------------------------------


def read_inputs(product: Tensor, keep: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The layers of h and of z [B, 2, U]: before the norm, and after it in the dtype of products.

    Where an episode begins h and z are zero; zero or one can be multiplied after the product as well.
    """
    pre = torch.addcmul(bias, product.to(bias.dtype), keep[..., None])  # W h + b, W z + b
    return pre, norm_silu(pre, scale).to(product.dtype)


def mix(own: Tensor, shared: Tensor, action: Tensor, keep: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """hidden [B, D] before the norm, and x = silu(norm(hidden)) in the dtype of products. own [g, B, o] of h."""
    own = own.transpose(0, 1).flatten(1).to(scale.dtype)
    pre = torch.addcmul(shared.to(scale.dtype) + action, own, keep)  # hidden([h_block, shared])
    return pre, norm_silu(pre, scale).to(shared.dtype)


def gate(raw: Tensor, bias: Tensor, h: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """h' [B, D], and that in the dtype of products. raw [g, B, 3o]: gates(x) without its bias."""
    r, candidate, u = (part.transpose(0, 1) for part in gates_of(raw, bias))  # [B, g, o]
    h = torch.lerp((h * keep).view(u.shape), torch.tanh(r * candidate), u)  # h' = u q + (1 - u) h
    return h.flatten(1), h.to(raw.dtype).flatten(1)


def gates_of(raw: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r, the candidate and u, [..., g, B, o] each."""
    reset, candidate, update = (raw + bias).chunk(3, -1)
    return torch.sigmoid(reset), candidate, torch.sigmoid(update)


def read_token(product: Tensor, token: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior's layer [B, U]: before the norm, and after it in the dtype of products."""
    pre = product + token  # W [h', token] + b
    return pre, norm_silu(pre, scale).to(product.dtype)


def pick(product: Tensor, bias: Tensor, uniform: Tensor, unimix: float) -> tuple[Tensor, Tensor]:
    """Raw logits and z' [B, S * K], one-hot in the dtype of products, by uniform [B, S]."""
    logits = product + bias
    probs = mixed_probs(logits.view(*uniform.shape, -1), unimix)  # p = (1 - unimix) softmax(logits) + unimix / K
    classes = torch.arange(probs.shape[-1], device=probs.device)
    return logits, (draw(probs, uniform)[..., None] == classes).flatten(1).to(product.dtype)


# --- and backward -----------------------------------------------------------------------------------------------------


def pick_backward(
    d_z: Tensor, grad_z: Tensor, grad_logits: Tensor, softmax: Tensor, plain: Tensor
) -> tuple[Tensor, Tensor]:
    """To the logits: z' = onehot + p - sg(p). Here and below the last one is in the dtype of products."""
    d_probs = (grad_z + d_z).view(plain.shape)
    d_logits = grad_logits + (softmax * (d_probs - (plain * d_probs).sum(-1, keepdim=True))).flatten(1)
    return d_logits, d_logits.to(d_z.dtype)


def gate_backward(d_h: Tensor, grad_h: Tensor, product: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """To reset, candidate, update and h [g, B, 4, o]: h' = u q + (1 - u) h. product: what comes from the posterior."""
    by_block = (d_h + grad_h + product).view(len(d_h), len(slope), 1, -1).transpose(0, 1)
    d_gates = slope * by_block
    return d_gates, d_gates.to(product.dtype)


def mix_backward(d_x: Tensor, scale: Tensor, slope: Tensor, normed: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """To hidden [B, D] before the norm, from the gradient to x in its blocks [g, B, o]."""
    return norm_silu_backward(d_x.transpose(0, 1).reshape(slope.shape), scale, slope, normed, inverse)


def read_inputs_backward(
    grad: Tensor, keep: Tensor, scale: Tensor, slope: Tensor, normed: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """To the layers of h and of z [B, 2, U] before the norm; the last one masked."""
    d_x, _ = norm_silu_backward(grad.view(slope.shape), scale, slope, normed, inverse)
    return d_x, (d_x * keep[..., None]).to(grad.dtype)


def carry_backward(d_gates: Tensor, own: Tensor, keep: Tensor, product: Tensor) -> Tensor:
    """To h before the step: from h' = u q + (1 - u) h, from its block [g, B, o], and from its layer, masked already."""
    return (d_gates[:, :, 3] + own).transpose(0, 1).reshape(product.shape) * keep + product


# --- the steps --------------------------------------------------------------------------------------------------------


def prepared(w: Weights, setting: Setting) -> Prepared:
    """The weights laid out and cast, once per update."""
    dtype, bias = setting.dtype, w.gates_bias.view(setting.blocks, 3, -1)
    return Prepared(
        in_deter=w.in_deter.to(dtype),
        in_stoch=w.in_stoch.to(dtype),
        in_bias=torch.stack([w.in_deter_bias, w.in_stoch_bias]),
        in_scale=torch.stack([w.in_deter_scale, w.in_stoch_scale]),
        own=w.own.to(dtype),
        shared=w.shared.to(dtype),
        hidden_scale=w.hidden_scale,
        gates=w.gates.to(dtype),
        gates_bias=torch.cat([bias[:, :2], bias[:, 2:] - 1], 1).flatten(1)[:, None],
        posterior=w.posterior.to(dtype),
        posterior_scale=w.posterior_scale,
        posterior_out=w.posterior_out.to(dtype),
        posterior_out_bias=w.posterior_out_bias,
    )


def step(
    h: Tensor,
    low: Tensor,
    z: Tensor,
    action: Tensor,
    token: Tensor,
    keep: Tensor,
    uniform: Tensor,
    w: Prepared,
    setting: Setting,
) -> tuple[Trace, Tensor]:
    """From h [B, D] and z [B, S * K] to the next; returns the trace of the step, and h' in the dtype of products.

    low: h, and z is, in the dtype of products. action [B, D], token [B, U]: the parts of the layers hidden and
    posterior that are known before the loop; keep [B, 1]; uniform [B, S].
    """
    body = functools.partial(for_device, device=h.device.type, width=h.shape[1])
    product = low.new_empty(len(h), 2, w.in_bias.shape[1])
    torch.mm(low, w.in_deter.t(), out=product[:, 0])
    torch.mm(z, w.in_stoch.t(), out=product[:, 1])
    own = torch.bmm(_per_block(low, setting.blocks), w.own)
    pre_in, inputs = body(read_inputs)(product, keep, w.in_bias, w.in_scale)
    shared = torch.mm(inputs.flatten(1), w.shared)
    pre_hidden, x = body(mix)(own, shared, action, keep, w.hidden_scale)
    raw = torch.bmm(_per_block(x, setting.blocks), w.gates)
    h, low = body(gate)(raw, w.gates_bias, h, keep)
    pre_post, post = body(read_token)(torch.mm(low, w.posterior.t()), token, w.posterior_scale)
    logits = torch.mm(post, w.posterior_out.t())
    logits, z = body(pick)(logits, w.posterior_out_bias, uniform, setting.unimix)
    return Trace(pre_in, pre_hidden, raw, pre_post, h, z, logits), low


def step_backward(
    d_h: Tensor,
    d_z: Tensor,
    grads: Sequence[Tensor],
    keep: Tensor,
    w: Prepared,
    slope: Slopes,
    setting: Setting,
) -> tuple[Tensor, Tensor, Gradients]:
    """The gradients to h and z before a step from those after it, and those of its parts.

    d_h, d_z: what comes from the next step; grads: what comes to h', z' and logits from outside.
    """
    body = functools.partial(for_device, device=d_h.device.type, width=d_h.shape[1])
    grad_h, grad_z, grad_logits = grads
    d_logits, low = body(pick_backward)(d_z, grad_z, grad_logits, slope.softmax, slope.plain)
    d_post = torch.mm(low, w.posterior_out)  # logits = W post + b
    d_pre_post, low = body(norm_silu_backward)(d_post, w.posterior_scale, *slope.post)
    d_gates, low = body(gate_backward)(d_h, grad_h, torch.mm(low, w.posterior), slope.gates)
    d_x = torch.bmm(low[:, :, :3].flatten(2), w.gates.transpose(1, 2))  # gates(x)
    d_pre_hidden, low = body(mix_backward)(d_x, w.hidden_scale, *slope.hidden)
    own = torch.bmm(_per_block(low, setting.blocks), w.own.transpose(1, 2))  # hidden([h_block, shared])
    d_inputs = torch.mm(low, w.shared.t())
    d_pre_in, low = body(read_inputs_backward)(d_inputs, keep, w.in_scale, *slope.inputs)
    d_h = body(carry_backward)(d_gates, own, keep, torch.mm(low[:, 0], w.in_deter))
    d_z = torch.mm(low[:, 1], w.in_stoch)
    return d_h, d_z, Gradients(d_logits, d_post, d_pre_post, d_gates, d_x, d_pre_hidden, d_inputs, d_pre_in)


# --- all steps at once ------------------------------------------------------------------------------------------------


def gate_slopes(raw: Tensor, bias: Tensor, h: Tensor) -> Tensor:
    """Of h' by its gates and by h [T, g, B, 4, o]; h [T, B, D], masked."""
    r, candidate, u = gates_of(raw, bias)
    q = torch.tanh(r * candidate)
    to_candidate = u * (1 - q * q) * r
    to_update = (q - h.unflatten(-1, (len(bias), -1)).transpose(1, 2)) * u * (1 - u)
    return torch.stack([to_candidate * candidate * (1 - r), to_candidate, to_update, 1 - u], -2)


def logit_slopes(logits: Tensor, unimix: float, classes: int) -> tuple[Tensor, Tensor]:
    """(1 - unimix) softmax(logits) and softmax(logits), [..., S, K]."""
    plain = torch.softmax(logits.unflatten(-1, (-1, classes)), -1)
    return (1 - unimix) * plain, plain


def slopes_of(h_in: Tensor, trace: Trace, w: Prepared, setting: Setting) -> Slopes:
    """The slopes of all steps at once; h_in [T, B, D] is h before each step, masked."""
    body = functools.partial(for_device, device=h_in.device.type, width=h_in.shape[2])
    softmax, plain = body(logit_slopes)(trace.logits, setting.unimix, setting.classes)
    return Slopes(
        softmax=softmax,
        plain=plain,
        post=body(norm_slopes)(trace.pre_post, w.posterior_scale),
        gates=body(gate_slopes)(trace.raw, w.gates_bias, h_in),
        hidden=body(norm_slopes)(trace.pre_hidden, w.hidden_scale),
        inputs=body(norm_slopes)(trace.pre_in, w.in_scale),
    )


def weight_gradients(h_in: Tensor, z_in: Tensor, h: Tensor, d: Gradients, slope: Slopes, w: Prepared) -> Weights:
    """The gradient of every weight: one product, or one sum, over all steps.

    h_in, z_in: before each step, masked; h: after it.
    """
    dtype, full, blocks = w.gates.dtype, h_in.dtype, len(w.gates)

    def output(of: NormSlope, scale: Tensor) -> Tensor:  # of a layer
        return F.silu(of.normed * scale).flatten(2)

    def scale(grad: Tensor, of: NormSlope) -> Tensor:
        return (grad.view(of.slope.shape) * of.slope * of.normed).sum((0, 1))

    def product(left: Tensor, right: Tensor) -> Tensor:
        return torch.mm(left.flatten(0, 1).t().to(dtype), right.flatten(0, 1).to(dtype)).to(full)

    def block_product(left: Tensor, right: Tensor) -> Tensor:  # [T, B, g * n], [g, T * B, m] -> [g, n, m]
        return torch.bmm(_per_block(left.flatten(0, 1).to(dtype), blocks).transpose(1, 2), right.to(dtype)).to(full)

    in_scale, in_bias = scale(d.inputs, slope.inputs), d.pre_in.sum((0, 1))
    d_x, d_raw = d.x.transpose(1, 2).flatten(2), d.gates[:, :, :, :3].flatten(3)
    return Weights(
        in_deter=product(d.pre_in[:, :, 0], h_in),
        in_deter_bias=in_bias[0],
        in_deter_scale=in_scale[0],
        in_stoch=product(d.pre_in[:, :, 1], z_in),
        in_stoch_bias=in_bias[1],
        in_stoch_scale=in_scale[1],
        own=block_product(h_in, _per_block(d.pre_hidden.flatten(0, 1), blocks)),
        shared=product(output(slope.inputs, w.in_scale), d.pre_hidden),
        hidden_scale=scale(d_x, slope.hidden),
        gates=block_product(output(slope.hidden, w.hidden_scale), d_raw.transpose(0, 1).flatten(1, 2)),
        gates_bias=d_raw.sum((0, 2)).flatten(),
        posterior=product(d.pre_post, h),
        posterior_scale=scale(d.post, slope.post),
        posterior_out=product(d.logits, output(slope.post, w.posterior_scale)),
        posterior_out_bias=d.logits.sum((0, 1)),
    )


def _per_block(x: Tensor, blocks: int) -> Tensor:
    """[N, g * n] -> [g, N, n]."""
    return x.view(len(x), blocks, -1).transpose(0, 1)


def _stacked(kind: type[Parts], steps: list[Parts]) -> Parts:
    """The parts of all steps, [T, ...] each."""
    return kind(*(torch.stack(parts) for parts in zip(*steps, strict=True)))


def _before(first: Tensor, following: Tensor, keep: Tensor) -> Tensor:
    """[T, B, n]: what each step began with, masked."""
    return torch.cat([first[None].to(following.dtype), following[:-1]]) * keep.to(following.dtype)


def _at(parts: Any, t: int) -> Any:
    """The parts of one step."""
    return type(parts)(*(_at(part, t) if isinstance(part, tuple) else part[t] for part in parts))


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
        w, steps = prepared(Weights(*weights), setting), []
        start_h, start_z, low, z = h, z, h.to(setting.dtype), z.to(setting.dtype)
        for inputs in zip(action, token, keep, uniform, strict=True):
            found, low = step(h, low, z, *inputs, w, setting)
            h, z = found.h, found.z
            steps.append(found)
        trace = _stacked(Trace, steps)
        h_in, z_in = _before(start_h, trace.h, keep), _before(start_z, trace.z, keep)
        ctx.setting = setting
        ctx.save_for_backward(keep, h_in, z_in, *w, *trace)
        return trace.h, trace.z.to(h.dtype), trace.logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        setting, (keep, h_in, z_in, *saved) = ctx.setting, ctx.saved_tensors
        w, trace = Prepared(*saved[: len(Prepared._fields)]), Trace(*saved[len(Prepared._fields) :])
        slopes, steps = slopes_of(h_in, trace, w, setting), []
        d_h, d_z = torch.zeros_like(trace.h[0]), torch.zeros_like(trace.z[0])
        for t in range(len(keep) - 1, -1, -1):
            d_h, d_z, found = step_backward(d_h, d_z, [g[t] for g in grads], keep[t], w, _at(slopes, t), setting)
            steps.append(found)
        d = _stacked(Gradients, steps[::-1])
        weights = weight_gradients(h_in, z_in, trace.h, d, slopes, w)
        return None, None, None, d.pre_hidden, d.pre_post, None, None, *weights
