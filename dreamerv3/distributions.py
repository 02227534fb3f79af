"""symlog, symexp two-hot, categoricals with unimix, KL balance with free bits, and the bounded normal.

Shapes: [...] any leading axes, S categoricals of K classes, N bins, A action size. All logarithms are natural (nats).
Source: paper, Methods ("Robust predictions", "World model learning"); reference code: outs.py, heads.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SYMEXP_RANGE = 20.0  # the outermost bins are +-(e^20 - 1)


def wide(x: Tensor) -> Tensor:
    """x in float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|), elementwise."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """sign(x) (e^|x| - 1), the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


def symexp_bins(count: int) -> Tensor:
    """`count` bins [N] in float32, symexp of an even grid on [-20, 20]: exactly symmetric around 0.

    An even count has two zeros in the middle: reference code. Raises ValueError for fewer than 3.
    """
    if count < 3:
        raise ValueError(f"bins: expected at least 3, not {count}")
    below = symexp(torch.linspace(-SYMEXP_RANGE, 0, (count + 1) // 2, dtype=torch.float64)).float()
    return torch.cat([below, -below[: count // 2].flip(0)])


def two_hot(target: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two bins around target [...] and the weight of the upper one: below, above (int64), weight_above.

    The weights are linear in the raw space between the exponentially spaced bins, not in symlog space. A target on a
    bin gives that bin all the weight; outside of the range both indices are the outermost bin.
    """
    last = len(bins) - 1
    dtype = torch.promote_types(target.dtype, bins.dtype)
    target, bins = target.to(dtype), bins.to(dtype)
    above = torch.searchsorted(bins, target.contiguous(), right=True)  # the number of bins <= target
    below = (above - 1).clamp(0, last)
    above = above.clamp(0, last)
    low, high = (bins[below] - target).abs(), (bins[above] - target).abs()
    is_same = below == above
    low, high = torch.where(is_same, 1.0, low), torch.where(is_same, 1.0, high)
    return below, above, low / (low + high)


def two_hot_loss(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """-sum_i twohot(y)_i log softmax(logits)_i in nats: logits [..., N], target y [...] (no gradient) -> [...].

    Source: paper, Eq. 9 and 10.
    """
    below, above, weight = two_hot(target.detach(), bins)
    pair = logits.gather(-1, torch.stack([below, above], -1))
    return torch.logsumexp(logits, -1) - torch.lerp(pair[..., 0], pair[..., 1], weight.to(pair.dtype))


def two_hot_losses(logits: Tensor, targets: Sequence[Tensor], shares: Sequence[float], bins: Tensor) -> Tensor:
    """The sum of share times `two_hot_loss` over several targets [...] of the same logits [..., N], for throughput.

    Its gradient is written out: softmax(logits) is made once for all targets, and once more on the way back.
    """
    hot = [two_hot(target.detach(), bins) for target in targets]
    index = torch.stack([bin_ for below, above, _ in hot for bin_ in (below, above)], -1)
    weights = [(share * (1 - w), share * w) for (_, _, w), share in zip(hot, shares, strict=True)]
    weight = torch.stack([part for pair in weights for part in pair], -1).to(logits.dtype)
    loss: Tensor = _CrossEntropy.apply(logits, index, weight, sum(shares))
    return loss


class _CrossEntropy(torch.autograd.Function):
    """-sum_i weight_i log softmax(logits)_index_i: logits [..., N], index and weight [..., M] -> [...].

    The weights of a row sum up to `total`.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, weight: Tensor, total: float) -> Tensor:
        norm = torch.logsumexp(logits, -1)
        ctx.save_for_backward(logits, norm, index, weight)
        ctx.total = total
        return total * norm - (logits.gather(-1, index) * weight).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, norm, index, weight = ctx.saved_tensors
        d_logits = (logits - norm[..., None]).exp_().mul_((ctx.total * grad)[..., None])  # total softmax(logits) - hot
        return d_logits.scatter_add_(-1, index, -grad[..., None] * weight), None, None, None


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """sum_i p_i b_i with the bins of opposite sign paired first: logits [..., N] -> [...].

    The outermost bins are 4.85e8 and float32 has seven digits: a plain sum of uniform probabilities is not zero.
    Paired, it is zero exactly. Source: reference code, outs.py.
    """
    half = len(bins) // 2
    probs = torch.softmax(logits, -1)
    pairs = probs[..., len(bins) - half :] - probs[..., :half].flip(-1)
    return (pairs * bins[len(bins) - half :]).sum(-1)  # no matrix product: under autocast that would round to bfloat16


def mixed_probs(logits: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) softmax(logits) + unimix / K over the last axis. Source: paper, "1% unimix"."""
    return torch.softmax(logits, -1) * (1 - unimix) + unimix / logits.shape[-1]


@dataclass(frozen=True)
class Mixture:
    """Categoricals over K classes with a uniform share: raw logits and mixed probs [..., K]."""

    logits: Tensor
    probs: Tensor
    unimix: float

    @property
    def log_probs(self) -> Tensor:
        """In nats, [..., K]. Without a uniform share a probability can round to zero, its logarithm stays finite."""
        return self.probs.log() if self.unimix else torch.log_softmax(self.logits, -1)

    def detach(self) -> Mixture:
        """The same numbers without gradient."""
        return Mixture(self.logits.detach(), self.probs.detach(), self.unimix)


def mixture(logits: Tensor, unimix: float) -> Mixture:
    """The categoricals of raw logits [..., K], mixed as in `mixed_probs`."""
    return Mixture(logits, mixed_probs(logits, unimix), unimix)


def categorical_kl(p: Mixture, q: Mixture) -> Tensor:
    """KL(p || q) of categoricals [..., S, K], summed over S: [...] in nats."""
    return (p.probs * (p.log_probs - q.log_probs)).sum((-2, -1))


def kl_balance(post: Mixture, prior: Mixture, free_nats: float) -> tuple[Tensor, Tensor]:
    """The dynamics and the representation loss of categoricals [..., S, K]: two [...] in nats.

    dyn = max(free, KL[sg(post) || prior]), rep = max(free, KL[post || sg(prior)]); the KL is summed over the S latents
    before it is clipped, per time step. Where it is clipped there is no gradient. Source: paper, Eq. 5.
    """
    dyn = categorical_kl(post.detach(), prior).clamp(min=free_nats)
    rep = categorical_kl(post, prior.detach()).clamp(min=free_nats)
    return dyn, rep


def bernoulli_loss(logit: Tensor, target: Tensor) -> Tensor:
    """-(y ln p + (1 - y) ln(1 - p)) in nats with p = sigmoid(logit): logit, target y in [0, 1], [...] -> [...].

    Source: paper, Eq. 5 (continue predictor); the target is soft, because it contains the discount: reference code.
    """
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """A class for each categorical, by inversion: probs [..., K], uniform [...] in [0, 1) -> int64 [...]."""
    below = probs.cumsum(-1) <= uniform[..., None]
    return below.sum(-1).clamp(max=probs.shape[-1] - 1)  # the last class takes what is left


def straight_through(index: Tensor, probs: Tensor) -> Tensor:
    """onehot + p - sg(p): index [...], probs [..., K] -> [..., K]; the value is the one-hot vector exactly.

    Source: paper, "straight-through gradients"; the gradient is that of the mixed probabilities.
    """
    onehot = F.one_hot(index, probs.shape[-1]).to(probs.dtype)
    return onehot + (probs - probs.detach())


def categorical_log_prob(p: Mixture, index: Tensor) -> Tensor:
    """log p of the class: p [..., K], index [...] -> [...] in nats."""
    return p.log_probs.gather(-1, index[..., None]).squeeze(-1)


def categorical_entropy(p: Mixture) -> Tensor:
    """-sum p log p over the last axis, in nats."""
    return -(p.probs * p.log_probs).sum(-1)


def bounded_normal(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean) and 0.9 sigmoid(std + 2) + 0.1: the actor's raw outputs [..., A] -> mean, std [..., A].

    Source: reference code, heads.py; the paper gives the range 0.1 to 1.
    """
    return torch.tanh(mean), 0.9 * torch.sigmoid(std + 2) + 0.1


def normal_log_prob(mean: Tensor, std: Tensor, action: Tensor) -> Tensor:
    """log N(a; mean, std) summed over A: [..., A] -> [...]. No correction for the clipping at the environment."""
    return torch.distributions.Normal(mean, std, validate_args=False).log_prob(action).sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy of independent normals in nats, summed over A: [..., A] -> [...]."""
    return torch.distributions.Normal(torch.zeros_like(std), std, validate_args=False).entropy().sum(-1)


def squared_error(prediction: Tensor, target: Tensor, tolerance: float) -> Tensor:
    """sum (prediction - target)^2 over the last axis; squares below `tolerance` count as 0, gradient included.

    Both [..., n], in symlog space. Source: paper, Eq. 8, without its half; tolerance: reference code of 2024.
    """
    square = (prediction - target).square()
    if tolerance:
        square = torch.where(square < tolerance, 0.0, square)
    return square.sum(-1)
