"""The dream of dream.py for throughput: the same step in place, on preallocated buffers, as one CUDA graph on a GPU.

The mathematics to read is in memory.py and dream.py; tests show that both agree. What differs is the order of the
output columns (mixtures before latents, so that every operation runs along contiguous memory), that the mixture weights
are compared with u times their sum instead of being normalised, that everything is updated in place, and that the
products can be made in bfloat16: state, gates and sampling stay in float32.

Shapes: B rollouts, Z latent size, H hidden size, K mixtures, I = Z + 2 inputs of M.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common import eager
from ha2018.memory import MDNRNN


class _Buffers:
    """Everything that a step of B dreams reads and writes, and on a GPU the graph that was recorded of it."""

    def __init__(self, batch: int, dream: FastDream, params: Tensor | None) -> None:
        new, size = dream.bias.new_empty, dream.hidden_size
        self.inputs = new(batch, dream.z_size + 2 + size)  # [z, a, restart, h], what the kernel multiplies
        self.c, self.params = new(batch, size), None if params is None else new(params.shape)
        self.action = new(batch)
        self.gates, self.out = new(batch, 4 * size), new(batch, len(dream.output_b))
        self.uniform, self.normal = new(batch, dream.z_size), new(batch, dream.z_size)
        self.cooling, self.root = new(batch, 1, 1), new(batch, 1)  # 1 / tau, sqrt(tau)
        self.done = torch.empty(batch, dtype=torch.bool, device=dream.bias.device)
        self.graph: torch.cuda.CUDAGraph | None = None


class FastDream:
    """B dreams that advance together, each with a temperature and a controller of its own, or with actions given.

    It may be used again and again, for other controllers too: what it needs for a batch size is made once.
    """

    def __init__(self, memory: MDNRNN, dtype: torch.dtype = torch.float32) -> None:
        """dtype bfloat16: the products are made in it; otherwise in that of the weights."""
        self.z_size, self.hidden_size, self.mixtures = memory.z_size, memory.hidden_size, memory.mixtures
        self.kernel = memory.kernel.detach()
        self.bias = memory.bias.detach().clone()
        self.bias[2 * self.hidden_size : 3 * self.hidden_size] += 1  # the forget gate's constant
        self.output_w, self.output_b = _mixtures_first(memory)
        # Batch sizes are multiples of this: on a GPU it bounds the number of graphs.
        self.granularity = 64 if self.bias.is_cuda else 16
        if dtype == torch.bfloat16:
            self.kernel, self.output_w = self.kernel.to(dtype), self.output_w.to(dtype)
        self._of_size: dict[int, _Buffers] = {}
        self.captures = self.bias.is_cuda

    def begin(self, z: Tensor, params: Tensor | None, temperature: Tensor | float) -> None:
        """Start at `z` [B, Z] with the controllers `params` [B, P], c = h = 0 and the restart flag set.

        temperature: one, or one of each row [B]. Without params `advance` must be given the actions.
        """
        tau = torch.as_tensor(temperature, dtype=torch.float64, device=z.device).expand(len(z))
        self.buffers = buffers = self._sized(len(z), params)
        buffers.inputs.zero_()
        buffers.inputs[:, : self.z_size] = z
        buffers.inputs[:, self.z_size + 1] = 1
        buffers.c.zero_()
        buffers.cooling.copy_((1 / tau)[:, None, None])
        buffers.root.copy_(tau.sqrt()[:, None])
        if params is not None and buffers.params is not None:
            buffers.params.copy_(params)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows [B'] only, in that order."""
        old = self.buffers
        # Copies first: the buffers of so many rows may be these.
        inputs, c, params = old.inputs[rows], old.c[rows], None if old.params is None else old.params[rows]
        cooling, root = old.cooling[rows], old.root[rows]
        self.buffers = buffers = self._sized(len(rows), params)
        buffers.inputs.copy_(inputs)
        buffers.c.copy_(c)
        buffers.cooling.copy_(cooling)
        buffers.root.copy_(root)
        if params is not None and buffers.params is not None:
            buffers.params.copy_(params)

    def advance(self, uniform: Tensor, normal: Tensor, action: Tensor | None = None) -> Tensor:
        """Act and step with the random numbers uniform, normal [B, Z]. Returns done [B] bool, valid until the next.

        `action` [B] is what is done where there are no controllers.
        """
        buffers = self.buffers
        if action is not None:
            buffers.action.copy_(action)
        buffers.uniform.copy_(uniform)
        buffers.normal.copy_(normal)
        if self.captures and buffers.graph is None:
            buffers.graph = eager.captured("a step of the dream", self._capture)
            self.captures = buffers.graph is not None
        if self.captures and buffers.graph is not None:
            buffers.graph.replay()
        else:
            self._step()
        return buffers.done

    def _sized(self, batch: int, params: Tensor | None) -> _Buffers:
        """The buffers for `batch` rows with controllers of that size."""
        known = self._of_size.get(batch)
        shape = None if params is None else params.shape
        if known is None or (None if known.params is None else known.params.shape) != shape:
            known = self._of_size[batch] = _Buffers(batch, self, params)
        return known

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record one step. The warm-up steps that capturing needs must not count, so the state is put back."""
        buffers = self.buffers
        state = buffers.inputs.clone(), buffers.c.clone()
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self._step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
        finally:  # also where it fails: then the step goes on from here
            buffers.inputs.copy_(state[0])
            buffers.c.copy_(state[1])
        return graph

    def _step(self) -> None:
        n, k, at = self.z_size, self.mixtures, self.buffers
        z, h, c = at.inputs[:, :n], at.inputs[:, n + 2 :], at.c
        if at.params is not None:
            w_z, w_c, w_h = at.params.split([n, self.hidden_size, self.hidden_size], dim=1)
            action = torch.linalg.vecdot(z, w_z) + torch.linalg.vecdot(c, w_c) + torch.linalg.vecdot(h, w_h)
            torch.tanh(action, out=at.action)
        at.inputs[:, n] = at.action

        _affine(at.inputs, self.kernel, self.bias, out=at.gates)
        i, j, f, o = at.gates.chunk(4, dim=1)
        c.mul_(f.sigmoid_()).addcmul_(i.sigmoid_(), j.tanh_())
        torch.mul(torch.tanh(c), o.sigmoid_(), out=h)

        _affine(h, self.output_w, self.output_b, out=at.out)
        rows = at.out[:, : 3 * k * n].unflatten(1, (3 * k, n))  # [B, 3K, Z]
        logits, mean, logstd = rows.split(k, dim=1)
        weight = logits.sub_(logits.amax(1, keepdim=True)).mul_(at.cooling).exp_()
        cumulative = weight.cumsum(1)
        reach = (at.uniform * cumulative[:, -1])[:, None]
        index = (cumulative[:, :-1] < reach).sum(1, keepdim=True)
        mean, logstd = mean.gather(1, index)[:, 0], logstd.gather(1, index)[:, 0]
        torch.addcmul(mean, logstd.exp_().mul_(at.root), at.normal, out=z)
        at.inputs[:, n + 1] = 0  # only the first step of an episode carries the restart flag
        torch.gt(at.out[:, 3 * k * n], 0, out=at.done)


def _affine(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """out = x weight + bias; the product in the dtype of the weight, the sum in that of x."""
    if weight.dtype == x.dtype:
        torch.addmm(bias, x, weight, out=out)
    else:
        out.copy_(x.to(weight.dtype) @ weight).add_(bias)


def _mixtures_first(memory: MDNRNN) -> tuple[Tensor, Tensor]:
    """Output weights with columns ordered (logit | mean | logstd, K, Z), then the restart: [H, 3KZ + 1 + padding].

    The padding of zeros makes them a multiple of 16, which products on a CPU like better than one column too many.
    """
    z, k = memory.z_size, memory.mixtures
    order = torch.arange(z * 3 * k, device=memory.bias.device).reshape(z, 3 * k).t().reshape(-1) + 1
    order = torch.cat([order, order.new_zeros(1)])
    padding = (0, -len(order) % 16)
    w, b = memory.output_w.detach()[:, order], memory.output_b.detach()[order]
    return F.pad(w, padding).contiguous(), F.pad(b, padding)
