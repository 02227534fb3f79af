"""The losses of M and their gradients for throughput: `memory.sequence_losses` with its backward pass written out.

The mathematics to read is in memory.py; tests show that losses and gradients agree. What differs: the steps are walked
in chunks that stay in the cache, forwards for the states and backwards for everything else; the mixtures of a chunk are
made, scored and differentiated at once, so that the [B, T, Z, 3K] tensors of a whole batch never exist; the gradients
of the kernels are one product a chunk; and every buffer is used again by the next update, since asking the system for
gigabytes of fresh memory costs as much as half of the products.

Shapes: B batch, T steps, Z latent size, H hidden size, K mixtures, I inputs of M, N = B * C with C steps of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ha2018.memory import MDNRNN, State

CHUNK = 16  # steps
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # grad * y * (1 - y)
_tanh_backward = torch.ops.aten.tanh_backward.grad_input  # grad * (1 - y^2)


class _Buffers:
    """What one update of B streams x T steps reads and writes. Row 0 of h and c is the state before the first step."""

    def __init__(self, steps: int, batch: int, inputs: int, hidden: int, outputs: int, like: Tensor) -> None:
        new = like.new_empty
        self.inputs = new(steps, batch, inputs)
        self.gates = new(steps, batch, 4 * hidden)
        self.h, self.c = new(steps + 1, batch, hidden), new(steps + 1, batch, hidden)
        self.tanh_c = new(steps, batch, hidden)
        chunk = min(CHUNK, steps)
        self.out, self.d_h = new(chunk, batch, outputs), new(chunk, batch, hidden)
        self.d_gates = new(chunk, batch, 4 * hidden)
        self.kept = new(chunk, batch, inputs + hidden)  # [inputs, h] as the kernel met them
        self.h_in, self.c_in, self.scratch = new(batch, hidden), new(batch, hidden), new(batch, hidden)


class FastLosses:
    """Calculates what `memory.sequence_losses` and `backward` would, for one M again and again."""

    def __init__(self, memory: MDNRNN, dtype: torch.dtype = torch.float32) -> None:
        """dtype bfloat16: the products are made in it, sums and states stay in that of the weights."""
        self.memory = memory
        self.half = dtype if dtype == torch.bfloat16 else None
        self.of_size: dict[tuple[int, int], _Buffers] = {}  # kept: a graph may have been captured on them

    @torch.no_grad()
    def losses_and_gradients(
        self, z: Tensor, action: Tensor, restart: Tensor, state: State, restart_weight: float
    ) -> tuple[dict[str, Tensor], State]:
        """`memory.sequence_losses` of z [B, T + 1, Z], action [B, T + 1, A], restart [B, T + 1] from `state`.

        Returns the losses by name and the last state, and replaces the gradients of M's parameters by those of their
        sum. No gradient flows into `state`.
        """
        memory = self.memory
        steps, batch = z.shape[1] - 1, len(z)
        self._prepare(steps, batch)
        at = self.buffers
        shown = restart[:, :-1] if memory.predicts_restart else None
        at.inputs.copy_(memory.inputs(z[:, :-1], action[:, :-1], shown).transpose(0, 1))
        keep = (restart[:, :-1] <= 0.5).to(z.dtype).t()[..., None].contiguous()  # [T, B, 1]
        target, following = z[:, 1:].transpose(0, 1), restart[:, 1:].to(z.dtype).t()  # time-major like the buffers
        self._forward(keep, state)
        parts = self._backward(keep, target, following if memory.predicts_restart else None, restart_weight)
        return parts, State(at.c[steps].clone(), at.h[steps].clone())

    def _prepare(self, steps: int, batch: int) -> None:
        """Buffers of that size, and the weights as the products take them."""
        memory = self.memory
        n, size, z, k = memory.input_size, memory.hidden_size, memory.z_size, memory.mixtures
        if (steps, batch) not in self.of_size:
            self.of_size[steps, batch] = _Buffers(steps, batch, n, size, len(memory.output_b), memory.bias)
        self.buffers = self.of_size[steps, batch]
        self.bias = memory.bias.clone()
        self.bias[2 * size : 3 * size] += 1
        # Columns as (logit | mean | logstd, K, Z), restart last: every operation runs along contiguous memory.
        first = int(memory.predicts_restart)
        order = torch.arange(first, first + z * 3 * k, device=self.bias.device).reshape(z, 3 * k).t().reshape(-1)
        self.order = torch.cat([order, order.new_zeros(first)])
        weights = memory.kernel[:n], memory.kernel[n:], memory.output_w[:, self.order]
        self.w_inputs, self.w_h, self.w_out = (self._as_factor(weight) for weight in weights)
        self.b_out = memory.output_b[self.order]
        self.w_h_t, self.w_out_t = self.w_h.t().contiguous(), self.w_out.t()

    def _forward(self, keep: Tensor, state: State) -> None:
        """The states of all steps, and the gates after their squashing functions."""
        at = self.buffers
        at.h[0], at.c[0] = state.h, state.c
        size = self.memory.hidden_size
        for start in range(0, len(at.gates), CHUNK):
            part = slice(start, start + CHUNK)
            self._product(at.inputs[part], self.w_inputs, at.gates[part])
            at.gates[part] += self.bias
            for t, gate in enumerate(at.gates[part].unbind(0), start):
                torch.mul(at.h[t], keep[t], out=at.h_in)
                self._add_product(at.h_in, self.w_h, gate)
                i, j, f, o = gate.chunk(4, dim=1)
                i.sigmoid_()
                j.tanh_()
                gate[:, 2 * size :].sigmoid_()
                c = torch.mul(at.c[t], keep[t], out=at.c[t + 1]).mul_(f).addcmul_(i, j)
                torch.mul(torch.tanh(c, out=at.tanh_c[t]), o, out=at.h[t + 1])

    def _backward(
        self, keep: Tensor, target: Tensor, restart: Tensor | None, restart_weight: float
    ) -> dict[str, Tensor]:
        """Losses, and gradients from the last chunk to the first."""
        at = self.buffers
        memory, n, steps = self.memory, self.memory.input_size, len(at.gates)
        d_kernel, d_bias = torch.zeros_like(memory.kernel), torch.zeros_like(memory.bias)
        d_w, d_b = torch.zeros_like(memory.output_w), torch.zeros_like(memory.output_b)
        z_sum, r_sum = d_b.new_zeros(()), d_b.new_zeros(())
        d_h, d_c = torch.zeros_like(at.h_in), torch.zeros_like(at.c_in)
        for start in range((steps - 1) // CHUNK * CHUNK, -1, -CHUNK):
            part = slice(start, min(start + CHUNK, steps))
            count = part.stop - start
            out, h = at.out[:count].flatten(0, 1), at.h[start + 1 : part.stop + 1].flatten(0, 1)
            self._product(h, self.w_out, out)
            out += self.b_out
            positive = None if restart is None else restart[part].reshape(-1)
            z_nll, r_loss = _score(out, target[part].reshape(len(out), -1), positive, restart_weight, memory.mixtures)
            z_sum += z_nll
            r_sum += r_loss
            self._add_product(h.t(), out, d_w)
            d_b += out.sum(0)
            self._product(out, self.w_out_t, at.d_h[:count].flatten(0, 1))

            for t in range(part.stop - 1, start - 1, -1):
                d_h += at.d_h[t - start]
                self._gate_gradients(t, d_h, d_c, keep[t], at.d_gates[t - start])
                self._product(at.d_gates[t - start], self.w_h_t, d_h)
                d_h *= keep[t]
            kept, d_gates = at.kept[:count], at.d_gates[:count].flatten(0, 1)
            kept[..., :n] = at.inputs[part]
            torch.mul(at.h[part], keep[part], out=kept[..., n:])
            self._add_product(kept.flatten(0, 1).t(), d_gates, d_kernel)
            d_bias += d_gates.sum(0)

        scale = 1 / (steps * len(at.h_in))
        memory.kernel.grad, memory.bias.grad = d_kernel.mul_(scale), d_bias.mul_(scale)
        memory.output_w.grad, memory.output_b.grad = torch.empty_like(d_w), torch.empty_like(d_b)
        memory.output_w.grad[:, self.order], memory.output_b.grad[self.order] = d_w.mul_(scale), d_b.mul_(scale)
        losses = {"z_nll": z_sum * (scale / memory.z_size) + 0.5 * math.log(2 * math.pi)}
        return losses if restart is None else losses | {"restart": r_sum * scale}

    def _gate_gradients(self, t: int, d_h: Tensor, d_c: Tensor, keep: Tensor, d_gate: Tensor) -> None:
        """d_gate [B, 4H] of step t from d_h, d_c [B, H], gradients of its answers; d_c becomes that of step t - 1."""
        at = self.buffers
        scratch, tanh_c = at.scratch, at.tanh_c[t]
        i, j, f, o = at.gates[t].chunk(4, dim=1)
        d_i, d_j, d_f, d_o = d_gate.chunk(4, dim=1)
        _sigmoid_backward(torch.mul(d_h, tanh_c, out=scratch), o, grad_input=d_o)
        d_c += _tanh_backward(torch.mul(d_h, o, out=scratch), tanh_c, grad_input=scratch)
        _sigmoid_backward(torch.mul(d_c, j, out=scratch), i, grad_input=d_i)
        _tanh_backward(torch.mul(d_c, i, out=scratch), j, grad_input=d_j)
        torch.mul(at.c[t], keep, out=at.c_in)
        _sigmoid_backward(torch.mul(d_c, at.c_in, out=scratch), f, grad_input=d_f)
        d_c.mul_(f).mul_(keep)

    def _as_factor(self, x: Tensor) -> Tensor:
        return x if self.half is None else x.to(self.half)

    def _product(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        """out = x y."""
        if self.half is None:
            torch.matmul(x, y, out=out)
        else:
            out.copy_(x.to(self.half) @ y.to(self.half))

    def _add_product(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        """out += x y."""
        if self.half is None:
            out.addmm_(x, y)
        else:
            out.add_(x.to(self.half) @ y.to(self.half))


def _score(
    out: Tensor, target: Tensor, restart: Tensor | None, restart_weight: float, mixtures: int
) -> tuple[Tensor, Tensor | float]:
    """The sum over N and Z of -log p(target) without its constant, and the sum over N of the restart loss.

    `out` [N, 3KZ (+ 1)] becomes the gradient of the first / Z + the second.

    With a_k = log N(z; mean_k, exp(s_k)), p = softmax(l) and q = softmax(l + a) over K:
    d NLL / d l = p - q, d NLL / d mean = -q (z - mean) exp(-2 s), d NLL / d s = q (1 - ((z - mean) exp(-s))^2).
    """
    r_sum: Tensor | float = 0.0
    if restart is not None:
        logit = out[:, -1].clone()
        factor = 1 + restart * (restart_weight - 1)
        r_sum = (F.binary_cross_entropy_with_logits(logit, restart, reduction="none") * factor).sum()
        out[:, -1] = (torch.sigmoid(logit) - restart) * factor
    z_size = target.shape[1]
    rows = out[:, : 3 * mixtures * z_size].unflatten(1, (3 * mixtures, z_size))
    logits, mean, s = rows.split(mixtures, dim=1)  # [N, K, Z]
    inverse = torch.exp(-s)
    deviation = (target[:, None] - mean).mul_(inverse)
    joint = (deviation * deviation).mul_(-0.5).sub_(s).add_(logits)
    z_sum = (logits.logsumexp(1) - joint.logsumexp(1)).sum()
    p, q = torch.softmax(logits, 1), torch.softmax(joint, 1)
    torch.mul(p.sub_(q), 1 / z_size, out=logits)
    q.mul_(1 / z_size)
    torch.mul(inverse.mul_(deviation).neg_(), q, out=mean)
    torch.mul(deviation.square_().neg_().add_(1), q, out=s)
    return z_sum, r_sum
