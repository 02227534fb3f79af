"""Values as numbers, as categories, and as what the tree compares: Appendix F of the paper.

S half width of the support (300: 601 bins, the integers -S to S); all functions work on any leading shape.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 0.001  # the linear part of h, which keeps its inverse Lipschitz continuous
SMALLEST_RANGE = 1e-5


def squash(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x.

    Written as |x| / (sqrt(|x| + 1) + 1), which loses no digits near zero.
    Source: paper, Appendix F.
    """
    size = x.abs()
    return x.sign() * size / ((size + 1).sqrt() + 1) + EPSILON * x


def unsquash(y: Tensor) -> Tensor:
    """The inverse of `squash`.

    With u = sqrt(|x| + 1) - 1 the transform is |y| = u + eps (u^2 + 2 u). Its positive root is taken in the form
    without a difference of nearly equal numbers, and |x| = u (u + 2); the usual form of the inverse is wrong by up to
    6 % at |x| = 0.001 in float32.
    """
    size, linear = y.abs(), 1 + 2 * EPSILON
    u = 2 * size / (linear + (linear * linear + 4 * EPSILON * size).sqrt())
    return y.sign() * u * (u + 2)


def two_hot(y: Tensor, half: int) -> Tensor:
    """[...] in support units -> [..., 2 S + 1]: the mass shared by the two integers around y, clipped to the support.

    An integer puts all of it on one bin. Source: paper, Appendix F (x = 3.7: 0.3 on 3 and 0.7 on 4).
    """
    place = y.clamp(-half, half)
    lower = place.floor().clamp(max=half - 1)
    # Before `half` is added: after that float32 has lost two or three digits of a small y.
    upper_share = (place - lower)[..., None]
    index = lower.long()[..., None] + half
    found = torch.zeros(*y.shape, 2 * half + 1, dtype=y.dtype, device=y.device)
    return found.scatter(-1, index, 1 - upper_share).scatter(-1, index + 1, upper_share)


def expected(logits: Tensor) -> Tensor:
    """[..., 2 S + 1] -> [...]: the mean of the support under softmax, in support units."""
    half = (logits.shape[-1] - 1) // 2
    support = torch.arange(-half, half + 1, dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * support).sum(-1)


def decode(output: Tensor) -> Tensor:
    """What a value or reward head says, [..., bins] -> [...] in reward units; a head of width 1 says the number itself.

    Expectation first, inverse transform second. No head, a width of 0, says 0.
    """
    if output.shape[-1] == 0:
        return output.sum(-1)
    return output[..., 0] if output.shape[-1] == 1 else unsquash(expected(output))


def scalar_loss(output: Tensor, target: Tensor) -> Tensor:
    """[..., bins] and [...] in reward units -> [...]: cross-entropy with the two-hot of h(target), nats.

    A head of width 1 has the squared error instead, one of width 0 no loss. Source: paper, Eq. 1 and Appendix F.
    """
    if output.shape[-1] == 0:
        return torch.zeros_like(target)
    if output.shape[-1] == 1:
        return (output[..., 0] - target) ** 2
    wanted = two_hot(squash(target), (output.shape[-1] - 1) // 2)
    return -(wanted * F.log_softmax(output, -1)).sum(-1)


def scale_hidden(state: Tensor, *, is_per_channel: bool = False) -> Tensor:
    """Hidden states [B, D] or [B, C, H, W] scaled to [0, 1]; of planes, over all of a sample or each channel alone.

    A range below 1e-5 is widened by it. Gradients go through. Source: paper, Appendix G, which leaves the axes open.
    """
    flat = state.flatten(2) if is_per_channel else state.flatten(1)
    low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    span = high - low
    span = span + SMALLEST_RANGE * (span.detach() < SMALLEST_RANGE)
    return ((flat - low) / span).view_as(state)
