"""Frames as bytes and as numbers in [-1, 1], and the quantiser between them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(frames: Tensor) -> Tensor:
    """uint8 levels → float32 in [-1, 1]."""
    return frames.float() / 255 * 2 - 1


def to_bytes(frames: Tensor) -> Tensor:
    """Numbers → uint8 levels, clipped to [-1, 1] and truncated, not rounded.

    In float32 the exact levels 1 to 63 come out one lower, each time; hence real frames never pass through here.
    Reference code: denoiser.py.
    """
    return ((frames.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


def quantise(frames: Tensor) -> Tensor:
    """The nearest level at or below, as a number in [-1, 1]; no gradient."""
    return to_float(to_bytes(frames.detach()))
