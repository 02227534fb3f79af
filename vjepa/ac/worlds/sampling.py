"""Draws from an explicit generator, on its own device: uniform, truncated normal, von Mises."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

TABLE = 8192  # nodes of the inverse distribution function of an angle; its error is below 1e-6 rad


def uniform(low: Tensor | float, high: Tensor | float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in [low, high), float32 [*shape], with which low and high must broadcast."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def truncated_normal(
    mean: Tensor | float,
    std: float,
    low: Tensor | float,
    high: Tensor | float,
    shape: tuple[int, ...],
    generator: torch.Generator,
) -> Tensor:
    """Normal with mean and std, kept to [low, high]: float32 [*shape], by the inverse distribution function."""
    u = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    edges = [torch.as_tensor(edge, dtype=torch.float64, device=generator.device) for edge in (low, high)]
    a, b = (torch.special.ndtr((edge - mean) / std) for edge in edges)
    return (mean + std * torch.special.ndtri(a + (b - a) * u)).clamp(*edges).float()


def von_mises(concentration: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Angles in [-pi, pi] around 0, in radians, float32 [*shape]."""
    table = torch.from_numpy(_inverse(concentration)).to(generator.device)
    place = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64) * TABLE
    below = place.long().clamp(max=TABLE - 1)
    return torch.lerp(table[below], table[below + 1], place - below).float()


@functools.cache
def _inverse(concentration: float) -> np.ndarray:
    """The angle below which a share k / TABLE of all lies, for k = 0 to TABLE."""
    angles = np.linspace(-math.pi, math.pi, 64 * TABLE + 1)
    density = np.exp(concentration * (np.cos(angles) - 1))
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(np.linspace(0, 1, TABLE + 1), share / share[-1], angles)
