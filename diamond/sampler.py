"""From noise to the next frame in a few steps: the probability-flow ODE, first or second order, with optional churn.

Source: Karras et al. 2022, Algorithm 2; paper, section 3.2; reference code: diffusion_sampler.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplerSettings:
    """steps: noise levels above zero; order: 1 is Euler, 2 Heun; churn adds noise between s_tmin and s_tmax."""

    steps: int = 3
    sigma_min: float = 0.002
    sigma_max: float = 5.0
    rho: float = 7.0
    order: int = 1
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0


@functools.cache
def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels [steps + 1], falling, the last is 0; not to be changed. Source: Karras et al. 2022, Eq. 5."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = (high + torch.linspace(0, 1, steps) * (low - high)) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def trajectory(
    denoise: Denoise,
    start: Tensor,
    sigmas: Tensor,
    settings: SamplerSettings,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """`start` [B, ...] and then x after each of the steps.

    `start` has unit variance whatever sigma_max is: less variance, less drift. denoise(x, sigma [B]) gets sigma and
    not the level raised by churn, unlike Karras et al. Both are of the reference code. `generator` is consumed by
    churn alone.
    """
    x = start
    yield x
    levels = sigmas.tolist()
    for sigma, following in zip(levels[:-1], levels[1:], strict=True):
        is_churned = settings.s_churn > 0 and settings.s_tmin <= sigma <= settings.s_tmax
        gamma = min(settings.s_churn / (len(levels) - 1), math.sqrt(2) - 1) if is_churned else 0.0
        raised = sigma * (1 + gamma)
        if gamma > 0:
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            x = x + settings.s_noise * math.sqrt(raised**2 - sigma**2) * noise
        slope = (x - denoise(x, x.new_full((len(x),), sigma))) / raised
        step = following - raised
        ahead = x + slope * step
        if settings.order == 2 and following > 0:
            second = (ahead - denoise(ahead, x.new_full((len(x),), following))) / following
            ahead = x + (slope + second) / 2 * step
        x = ahead
        yield x


def sample(
    denoise: Denoise,
    start: Tensor,
    sigmas: Tensor,
    settings: SamplerSettings,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The last x of `trajectory`."""
    for x in trajectory(denoise, start, sigmas, settings, generator):  # noqa: B007
        pass
    return x
