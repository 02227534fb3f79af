"""The attentive probe: one learned query asks the frozen tokens, and a linear layer reads the answer.

Shapes: B clips, N tokens, D width, K outputs. Parameter names are those of the official probes.
Source: V-JEPA, appendix D; V-JEPA 2, appendix; reference code: src/models/attentive_pooler.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.vit import INIT_STD, MLP, Block, initialise

PROBE_EPS = 1e-5


class CrossAttention(nn.Module):
    """Queries ask tokens; nothing projects the answer."""

    def __init__(self, width: int, heads: int, has_unused: bool) -> None:
        """has_unused: V-JEPA's probes carry a projection that no output depends on."""
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        if has_unused:
            self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """queries [B, Q, D], x [B, N, D] -> [B, Q, D]."""
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class CrossBlock(nn.Module):
    """query + attention(query, norm(x)), then + mlp(norm). The query itself is not normalised."""

    def __init__(self, width: int, heads: int, has_unused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=PROBE_EPS)
        self.xattn = CrossAttention(width, heads, has_unused)
        self.norm2 = nn.LayerNorm(width, eps=PROBE_EPS)
        self.mlp = MLP(width, 4 * width)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """queries [B, Q, D], x [B, N, D] -> [B, Q, D]."""
        y = queries + self.xattn(queries, self.norm1(x))
        return y + self.mlp(self.norm2(y))


class AttentivePooler(nn.Module):
    """Self-attention blocks on the tokens (none at depth 1, three at V-JEPA 2's depth 4), then the query.

    With V-JEPA's probes (`has_unused`) it is the query first, and further blocks on its answer alone.
    """

    def __init__(self, width: int, heads: int, depth: int, has_unused: bool) -> None:
        super().__init__()
        self.asks_first = has_unused
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.cross_attention_block = CrossBlock(width, heads, has_unused)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, PROBE_EPS) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, 1, D]."""
        query = self.query_tokens.expand(len(x), -1, -1)
        if self.asks_first:
            x = self.cross_attention_block(query, x)
        for block in self.blocks:
            x = block(x)
        return x if self.asks_first else self.cross_attention_block(query, x)


class AttentiveProbe(nn.Module):
    """`pooler`, then `linear`."""

    def __init__(self, width: int, heads: int, outputs: int, depth: int = 1, has_unused: bool = True) -> None:
        """heads: the encoder's in V-JEPA, 16 in V-JEPA 2. depth and has_unused: 1 (or 2) and True, or 4 and False."""
        super().__init__()
        self.pooler = AttentivePooler(width, heads, depth, has_unused)
        self.linear = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Frozen tokens [B, N, D], of several clips one after the other -> [B, K]."""
        return self.linear(self.pooler(tokens)[:, 0])


def new_probe(
    width: int, heads: int, outputs: int, depth: int, has_unused: bool, generator: torch.Generator
) -> AttentiveProbe:
    """An untrained probe: weights and query with std 0.02, last layers of block l divided by sqrt(2 l), biases 0.

    V-JEPA counts the query's block as the first, V-JEPA 2 gives it the number of the block before it.
    Consumes `generator`. Source: reference code; the linear layer begins as torch's, uniform in +-1 / sqrt(D).
    """
    probe = AttentiveProbe(width, heads, outputs, depth, has_unused)
    pooler = probe.pooler
    initialise(pooler, generator)
    with torch.no_grad():
        nn.init.trunc_normal_(pooler.query_tokens, std=INIT_STD, generator=generator)
        first, own = (2, 1) if has_unused else (1, max(1, depth - 1))
        pooler.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2 * own))
        for number, block in enumerate(pooler.blocks, start=first):
            assert isinstance(block, Block)
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.div_(math.sqrt(2 * number))
        for parameter in probe.linear.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)
    return probe
