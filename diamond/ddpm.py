"""The rival of the comparison: the same network as a plain DDPM that predicts the noise.

Source: paper, section 5.1; Ho et al. 2020, Algorithms 1 and 2; reference code, branch ddpm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diamond.denoiser import InnerModel, Normals, Segments, mean_of_real
from diamond.frames import quantise
from diamond.sampler import SamplerSettings

LEVELS = 1000
BETAS = (1e-4, 0.02)
ONE_STEP_START = 500  # at high levels the noise is nearly the input itself, which says nothing about the frame


class DDPM(nn.Module):
    """Noise prediction with 1,000 linear levels; neither input nor history is scaled, nothing is fed back."""

    signal: Tensor

    def __init__(self, inner_model: InnerModel, history: int) -> None:
        super().__init__()
        self.inner_model, self.history = inner_model, history
        kept = (1 - torch.linspace(*BETAS, LEVELS)).cumprod(0)
        self.register_buffer("signal", kept, persistent=False)

    def noise(self, noisy: Tensor, level: Tensor, obs: Tensor, action: Tensor) -> Tensor:
        """The predicted noise at levels [B], whole numbers from 0; obs [B, L, 3, H, W]."""
        return self.inner_model(noisy, (level + 1) / LEVELS, obs.flatten(1, 2), action)

    def loss(self, batch: Segments, normals: Sequence[Normals]) -> Tensor:
        """Mean squared error of the noise over real frames; of `normals` only the first entry, for one term.

        The level is uniform: the quantile of the normal number that would be EDM's level.
        """
        normal, length = normals[0], self.history
        # Deviation D8: drawn from whole numbers in the reference code.
        level = (torch.special.ndtr(normal.level) * LEVELS).long().clamp(max=LEVELS - 1)
        share = self.signal[level][:, None, None, None]
        noisy = share.sqrt() * batch.obs[:, length] + (1 - share).sqrt() * normal.pixel
        found = self.noise(noisy, level, batch.obs[:, :length], batch.action[:, :length])
        error = ((found - normal.pixel) ** 2).mean(dim=(1, 2, 3))
        return mean_of_real(error, batch.is_real[:, length], batch.count[length])

    @torch.no_grad()
    def next_frame(
        self,
        obs: Tensor,
        action: Tensor,
        start: Tensor,
        settings: SamplerSettings,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A frame drawn in `settings.steps` ancestral steps from standard normal `start`, then cut to bytes.

        The predicted frame is clipped to [-1, 1] in every step, the added variance is the posterior's; `generator` is
        consumed by all steps but the last. Source: Ho et al. 2020, Eq. 7 and 11.
        """
        x, stride = start, LEVELS // settings.steps
        levels = [ONE_STEP_START] if settings.steps == 1 else [k * stride for k in reversed(range(settings.steps))]
        for k, level in enumerate(levels):
            kept = float(self.signal[level])
            before = float(self.signal[levels[k + 1]]) if k + 1 < len(levels) else 1.0
            noise = self.noise(x, torch.full((len(x),), level, device=x.device), obs, action)
            clean = ((x - (1 - kept) ** 0.5 * noise) / kept**0.5).clamp(-1, 1)
            alpha = kept / before
            weights = before**0.5 * (1 - alpha) / (1 - kept), alpha**0.5 * (1 - before) / (1 - kept)
            x = weights[0] * clean + weights[1] * x
            if before < 1:
                variance = (1 - before) / (1 - kept) * (1 - alpha)
                x = x + variance**0.5 * torch.randn(x.shape, generator=generator, device=x.device)
        return quantise(x)
