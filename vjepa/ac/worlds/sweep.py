"""Whether a straight step goes through a wall: the part of the audit that looking at end points misses."""

from __future__ import annotations

import torch
from torch import Tensor

SKIN = 1e-3  # of a world's unit: touching a wall is not crossing it


def crosses(before: Tensor, after: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Whether the segments before -> after meet the inside of any box.

    before, after [..., 2]; low, high [..., K, 2]: opposite corners of K boxes, which may be infinite. Returns [...].
    """
    p, d = before[..., None, :], (after - before)[..., None, :]
    near, far = low + SKIN, high - SKIN
    is_flat = d == 0
    step = torch.where(is_flat, torch.ones_like(d), d)
    a, b = (near - p) / step, (far - p) / step
    # A flat direction is inside for ever or never.
    inside = (p > near) & (p < far)
    enter = torch.where(is_flat, torch.where(inside, -torch.inf, torch.inf), torch.minimum(a, b))
    leave = torch.where(is_flat, torch.where(inside, torch.inf, -torch.inf), torch.maximum(a, b))
    first, last = enter.amax(-1).clamp(min=0), leave.amin(-1).clamp(max=1)
    has_moved = (before != after).any(-1)
    return (first < last).any(-1) & has_moved
