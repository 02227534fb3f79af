"""The dream of dream.py for throughput: the same step in place, on preallocated buffers, as one CUDA graph on a GPU.

The mathematics to read is in memory.py and dream.py; tests show that both agree. What differs is the order of the
output columns (mixtures before latents, so that every operation runs along contiguous memory), that the mixture weights
are compared with u times their sum instead of being normalised, that everything is updated in place, and that the
products can be made in bfloat16: state, gates and sampling stay in float32.

Shapes: B rollouts, Z latent size, H hidden size, K mixtures, I = Z + 2 inputs of M.
"""

import math

import torch
from torch import Tensor

from ha2018.memory import MDNRNN


class FastDream:
    """B dreams that advance together, each with a controller of its own."""

    granularity = 64  # batch sizes are multiples of this, which bounds the number of graphs

    def __init__(self, memory: MDNRNN, temperature: float, dtype: torch.dtype = torch.float32) -> None:
        """dtype bfloat16: the products are made in it; otherwise in that of the weights."""
        self.z_size, self.hidden_size, self.mixtures = memory.z_size, memory.hidden_size, memory.mixtures
        self.temperature = temperature
        self.kernel = memory.kernel.detach()
        self.bias = memory.bias.detach().clone()
        self.bias[2 * self.hidden_size : 3 * self.hidden_size] += 1  # the forget gate's constant
        self.output_w, self.output_b = _mixtures_first(memory)
        if dtype == torch.bfloat16:
            self.kernel, self.output_w = self.kernel.to(dtype), self.output_w.to(dtype)
        self.graph: torch.cuda.CUDAGraph | None = None

    def begin(self, z: Tensor, params: Tensor) -> None:
        """Start at `z` [B, Z] with the controllers `params` [B, P], c = h = 0 and the restart flag set."""
        batch, width = len(z), self.z_size + 2 + self.hidden_size
        self.inputs = z.new_zeros(batch, width)  # [z, a, restart, h], what the kernel multiplies
        self.inputs[:, : self.z_size] = z
        self.inputs[:, self.z_size + 1] = 1
        self.c = z.new_zeros(batch, self.hidden_size)
        self.params = params.contiguous()
        self._allocate()

    def select(self, rows: Tensor) -> None:
        """Keep the given rows [B'] only, in that order."""
        self.inputs, self.c, self.params = self.inputs[rows], self.c[rows], self.params[rows]
        self._allocate()

    def advance(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Act and step with the random numbers uniform, normal [B, Z]. Returns done [B] bool, valid until the next."""
        self.uniform.copy_(uniform)
        self.normal.copy_(normal)
        if self.inputs.is_cuda:
            if self.graph is None:
                self._capture()
            assert self.graph is not None
            self.graph.replay()
        else:
            self._step()
        return self.done

    def _allocate(self) -> None:
        batch, new = len(self.inputs), self.inputs.new_empty
        self.gates = new(batch, 4 * self.hidden_size)
        self.out = new(batch, 3 * self.mixtures * self.z_size + 1)
        self.uniform, self.normal = new(batch, self.z_size), new(batch, self.z_size)
        self.done = torch.empty(batch, dtype=torch.bool, device=self.inputs.device)
        self.graph = None  # a graph belongs to its buffers

    def _capture(self) -> None:
        """Record one step. The warm-up steps that capturing needs must not count, so the state is put back."""
        state = self.inputs.clone(), self.c.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()
        self.inputs.copy_(state[0])
        self.c.copy_(state[1])

    def _step(self) -> None:
        n, k = self.z_size, self.mixtures
        z, h, c = self.inputs[:, :n], self.inputs[:, n + 2 :], self.c
        w_z, w_c, w_h = self.params.split([n, self.hidden_size, self.hidden_size], dim=1)
        action = torch.linalg.vecdot(z, w_z) + torch.linalg.vecdot(c, w_c) + torch.linalg.vecdot(h, w_h)
        torch.tanh(action, out=action)
        self.inputs[:, n] = action

        _affine(self.inputs, self.kernel, self.bias, out=self.gates)
        i, j, f, o = self.gates.chunk(4, dim=1)
        c.mul_(f.sigmoid_()).addcmul_(i.sigmoid_(), j.tanh_())
        torch.mul(torch.tanh(c), o.sigmoid_(), out=h)

        _affine(h, self.output_w, self.output_b, out=self.out)
        rows = self.out[:, :-1].unflatten(1, (3 * k, n))  # [B, 3K, Z]
        logits, mean, logstd = rows.split(k, dim=1)
        weight = logits.sub_(logits.amax(1, keepdim=True)).mul_(1 / self.temperature).exp_()
        cumulative = weight.cumsum(1)
        reach = (self.uniform * cumulative[:, -1])[:, None]
        index = (cumulative[:, :-1] < reach).sum(1, keepdim=True)
        mean, logstd = mean.gather(1, index)[:, 0], logstd.gather(1, index)[:, 0]
        torch.addcmul(mean, logstd.exp_(), self.normal, value=math.sqrt(self.temperature), out=z)
        self.inputs[:, n + 1] = 0  # only the first step of an episode carries the restart flag
        torch.gt(self.out[:, -1], 0, out=self.done)


def _affine(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """out = x weight + bias; the product in the dtype of the weight, the sum in that of x."""
    if weight.dtype == x.dtype:
        torch.addmm(bias, x, weight, out=out)
    else:
        out.copy_(x.to(weight.dtype) @ weight).add_(bias)


def _mixtures_first(memory: MDNRNN) -> tuple[Tensor, Tensor]:
    """Output weights with columns ordered (logit | mean | logstd, K, Z), restart last: [H, 3KZ + 1], [3KZ + 1]."""
    z, k = memory.z_size, memory.mixtures
    order = torch.arange(z * 3 * k, device=memory.bias.device).reshape(z, 3 * k).t().reshape(-1) + 1
    order = torch.cat([order, order.new_zeros(1)])
    return memory.output_w.detach()[:, order].contiguous(), memory.output_b.detach()[order].contiguous()
