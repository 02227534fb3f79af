"""The training pass of memory.py for throughput: the LSTM sequence and the losses with their gradients written out.

The mathematics to read is in memory.py; tests show that losses and gradients agree. What differs: the loop over time
holds only what is sequential, the gradients of the kernels are one product each over all steps, and the mixtures of a
few thousand steps at a time are made, scored and differentiated while they lie in the cache, so that the [B, T, Z, 3K]
tensors of a whole batch never exist.

Shapes: B batch, T time, Z latent size, H hidden size, K mixtures, I inputs of M, N = B * T.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ha2018.memory import MDNRNN, State

ROWS = 2048  # steps whose mixtures exist at the same time


def unroll_teacher_forced(
    memory: MDNRNN, z: Tensor, action: Tensor, restart: Tensor, state: State
) -> tuple[Tensor, State]:
    """`MDNRNN.unroll_teacher_forced`: z [B, T, Z], action [B, T, A], restart [B, T] -> h [T, B, H], last state.

    Mind that h is time-major here. No gradient flows into `state`, nor from the last state.
    """
    n = memory.input_size
    inputs = memory.inputs(z, action, restart if memory.predicts_restart else None).transpose(0, 1)  # [T, B, I]
    forget = torch.zeros_like(memory.bias)
    forget[2 * memory.hidden_size : 3 * memory.hidden_size] = 1
    x = torch.matmul(inputs, memory.kernel[:n]) + (memory.bias + forget)
    keep = (restart <= 0.5).to(z.dtype).t()[..., None].contiguous()  # [T, B, 1]
    h, c = _LSTM.apply(x, memory.kernel[n:], keep, state.c, state.h)
    return h, State(c, h[-1].detach())


def losses(
    memory: MDNRNN, h: Tensor, target: Tensor, restart: Tensor, restart_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The z NLL of h [N, H] for target [N, Z], and the restart loss for restart [N] where M predicts it.

    Returns their sum, which alone has a gradient, and both by name.
    """
    z, k = memory.z_size, memory.mixtures
    # Columns as (logit | mean | logstd, K, Z), restart last: every operation runs along contiguous memory.
    first = int(memory.predicts_restart)
    order = torch.arange(first, first + z * 3 * k, device=h.device).reshape(z, 3 * k).t().reshape(-1)
    if not memory.predicts_restart:
        total, z_nll, _ = _Losses.apply(h, memory.output_w[:, order], memory.output_b[order], target, None, k, 0.0)
        return total, {"z_nll": z_nll}
    order = torch.cat([order, order.new_zeros(1)])
    total, z_nll, restart_loss = _Losses.apply(
        h, memory.output_w[:, order], memory.output_b[order], target, restart, k, restart_weight
    )
    return total, {"z_nll": z_nll, "restart": restart_loss}


class _LSTM(torch.autograd.Function):
    """c' = keep c sigmoid(f) + sigmoid(i) tanh(j), h' = tanh(c') sigmoid(o), gates = x + keep h R, over T steps.

    x [T, B, 4H] holds the products of the inputs, both biases included; recurrent R [H, 4H]; keep [T, B, 1] is 0 where
    the state restarts. Returns h [T, B, H] and the last c [B, H].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, recurrent: Tensor, keep: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        steps, batch, size = x.shape[0], x.shape[1], recurrent.shape[0]
        gates, hs = torch.empty_like(x), x.new_empty(steps, batch, size)
        c_in, h_in, tanh_c = torch.empty_like(hs), torch.empty_like(hs), torch.empty_like(hs)
        for t in range(steps):
            torch.mul(h, keep[t], out=h_in[t])
            torch.mul(c, keep[t], out=c_in[t])
            gate = torch.addmm(x[t], h_in[t], recurrent, out=gates[t])
            i, j, f, o = gate.chunk(4, dim=1)
            i.sigmoid_()
            j.tanh_()
            gate[:, 2 * size :].sigmoid_()
            c = torch.addcmul(i * j, c_in[t], f)
            torch.tanh(c, out=tanh_c[t])
            h = torch.mul(tanh_c[t], o, out=hs[t])
        ctx.save_for_backward(gates, c_in, h_in, tanh_c, recurrent, keep)
        ctx.mark_non_differentiable(c)
        return hs, c

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gates, c_in, h_in, tanh_c, recurrent, keep = ctx.saved_tensors
        steps, batch, size = tanh_c.shape
        i, j, f, o = gates.chunk(4, dim=2)
        # d gate / d (what it multiplies), for all steps at once.
        slope = torch.empty(steps, batch, 4, size, dtype=gates.dtype, device=gates.device)
        torch.mul(i * j, 1 - i, out=slope[:, :, 0])
        torch.mul(i, 1 - j * j, out=slope[:, :, 1])
        torch.mul(c_in * f, 1 - f, out=slope[:, :, 2])
        torch.mul(tanh_c * o, 1 - o, out=slope[:, :, 3])
        to_c = o * (1 - tanh_c * tanh_c)
        carry = f * keep
        d_gates = slope  # filled in place: each slope is read once, at its own step
        transposed = recurrent.t().contiguous()
        d_h, d_c = torch.zeros_like(tanh_c[0]), torch.zeros_like(tanh_c[0])
        for t in range(steps - 1, -1, -1):
            d_h = d_h + grad_h[t]
            d_c = torch.addcmul(d_c, d_h, to_c[t])
            d_gates[t, :, :3].mul_(d_c[:, None])
            d_gates[t, :, 3].mul_(d_h)
            d_c = d_c * carry[t]
            d_h = torch.mm(d_gates[t].view(batch, 4 * size), transposed).mul_(keep[t])
        flat = d_gates.view(steps, batch, 4 * size)
        d_recurrent = torch.mm(h_in.flatten(0, 1).t(), flat.flatten(0, 1))
        return flat, d_recurrent, None, None, None


class _Losses(torch.autograd.Function):
    """Output layer, mixture NLL and restart loss in one, ROWS steps at a time, gradients made on the way.

    With a_k = log N(z; mean_k, exp(s_k)), p = softmax(l) and q = softmax(l + a) over K:
    d NLL / d l = p - q, d NLL / d mean = -q (z - mean) exp(-2 s), d NLL / d s = q (1 - ((z - mean) exp(-s))^2).
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        w: Tensor,
        b: Tensor,
        target: Tensor,
        restart: Tensor | None,
        mixtures: int,
        weight: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, z_size = target.shape
        z_sum, r_sum = h.new_zeros(()), h.new_zeros(())
        d_h, d_w, d_b = torch.empty_like(h), torch.zeros_like(w), torch.zeros_like(b)
        for start in range(0, count, ROWS):
            part = slice(start, start + ROWS)
            out = torch.addmm(b, h[part], w)
            if restart is not None:
                logit, positive = out[:, -1].clone(), restart[part]
                factor = 1 + positive * (weight - 1)
                r_sum += (F.binary_cross_entropy_with_logits(logit, positive, reduction="none") * factor).sum()
                out[:, -1] = (torch.sigmoid(logit) - positive) * factor / count

            rows = out[:, : 3 * mixtures * z_size].unflatten(1, (3 * mixtures, z_size))
            logits, mean, s = rows.split(mixtures, dim=1)  # [n, K, Z]
            inverse = torch.exp(-s)
            deviation = (target[part, None] - mean).mul_(inverse)
            joint = (deviation * deviation).mul_(-0.5).sub_(s).add_(logits)
            z_sum += (logits.logsumexp(1) - joint.logsumexp(1)).sum()
            p, q = torch.softmax(logits, 1), torch.softmax(joint, 1)
            scale = 1 / (count * z_size)
            torch.mul(p.sub_(q), scale, out=logits)
            q.mul_(scale)
            torch.mul(inverse.mul_(deviation).neg_(), q, out=mean)
            torch.mul(deviation.square_().neg_().add_(1), q, out=s)

            torch.mm(out, w.t(), out=d_h[part])
            d_w.addmm_(h[part].t(), out)
            d_b += out.sum(0)
        z_nll = z_sum / (count * z_size) + 0.5 * math.log(2 * math.pi)
        restart_loss = r_sum / count
        ctx.save_for_backward(d_h, d_w, d_b)
        ctx.mark_non_differentiable(z_nll, restart_loss)
        return z_nll + restart_loss, z_nll, restart_loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        d_h, d_w, d_b = ctx.saved_tensors
        return d_h * grad, d_w * grad, d_b * grad, None, None, None, None
