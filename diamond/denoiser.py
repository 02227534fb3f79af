"""The world model proper: a diffusion model of the next frame, given the last frames and actions.

B batch, L frames of history, T frames of a segment, H rows, W columns; frames [B, 3, H, W] are in [-1, 1].
Source: paper, sections 3.1 and 3.2, Eq. 5 to 9; Karras et al. 2022; reference code: denoiser.py, inner_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diamond.blocks import Fourier, GroupNorm, conv3
from diamond.frames import quantise
from diamond.sampler import SamplerSettings, karras_sigmas, sample
from diamond.unet import UNet


@dataclass(frozen=True)
class Coefficients:
    """c_in, c_skip, c_out, c_noise of the preconditioning, shaped like sigma."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor, sigma_data: float, sigma_offset: float) -> Coefficients:
    """The coefficients at noise level sigma. Source: paper, Eq. 6; Karras et al. 2022, Table 1.

    The offset noise counts as noise, so s = sqrt(sigma^2 + sigma_offset^2) stands wherever Karras et al. have sigma.
    """
    variance = sigma**2 + sigma_offset**2
    total = variance + sigma_data**2
    c_skip = sigma_data**2 / total
    return Coefficients(1 / total.sqrt(), c_skip, (variance * c_skip).sqrt(), variance.sqrt().log() / 4)


@dataclass(frozen=True)
class NoiseLaw:
    """Noise of the training: ln sigma ~ N(loc, scale^2), clipped; sigma_offset is that of a whole channel."""

    loc: float = -0.4
    scale: float = 1.2
    low: float = 0.002
    high: float = 20.0
    sigma_data: float = 0.5
    sigma_offset: float = 0.3

    def sigma(self, normal: Tensor) -> Tensor:
        """Noise levels from standard normal numbers, of the same shape. Source: paper, section 3.1."""
        return (self.loc + self.scale * normal).exp().clip(self.low, self.high)


@dataclass(frozen=True)
class Normals:
    """Standard normal numbers of one term of the loss: level [B], offset [B, 3, 1, 1], pixel [B, 3, H, W]."""

    level: Tensor
    offset: Tensor
    pixel: Tensor


def draw_normals(batch: int, shape: Sequence[int], terms: int, generator: torch.Generator) -> list[Normals]:
    """The random numbers of one loss, in the reference's order; frames have `shape` [3, H, W]."""
    device = generator.device

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device)

    return [Normals(normal(batch), normal(batch, shape[0], 1, 1), normal(batch, *shape)) for _ in range(terms)]


class InnerModel(nn.Module):
    """F: history [B, L*3, H, W], noisy frame, c_noise [B] and actions [B, L] → [B, 3, H, W]."""

    def __init__(
        self,
        actions: int,
        cond_size: int,
        channels: Sequence[int],
        depths: Sequence[int],
        attention: Sequence[bool],
        history: int,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        if cond_size % history:
            raise ValueError(f"{cond_size} conditioning numbers do not divide over {history} actions")
        self.noise_emb = Fourier(cond_size)
        self.act_emb = nn.Sequential(nn.Embedding(actions, cond_size // history), nn.Flatten())
        self.cond_proj = nn.Sequential(nn.Linear(cond_size, cond_size), nn.SiLU(), nn.Linear(cond_size, cond_size))
        self.conv_in = conv3((history + 1) * image_channels, channels[0])
        self.unet = UNet(cond_size, channels, depths, attention)
        self.norm_out = GroupNorm(channels[0])
        self.conv_out = conv3(channels[0], image_channels)
        nn.init.zeros_(self.conv_out.weight)

    def condition(self, c_noise: Tensor, action: Tensor) -> Tensor:
        """[B, cond_size] of a noise level and L actions."""
        return self.cond_proj(self.noise_emb(c_noise) + self.act_emb(action))

    def forward(self, noisy: Tensor, c_noise: Tensor, history: Tensor, action: Tensor) -> Tensor:
        x = self.conv_in(torch.cat([history, noisy], dim=1))
        x = self.unet(x, self.condition(c_noise, action))
        return self.conv_out(F.silu(self.norm_out(x)))


@dataclass
class Segments:
    """Pieces of play: obs [B, T, 3, H, W] in [-1, 1], action [B, T], is_real [B, T]; padding is grey and action 0.

    count [T]: real frames at each index, of the whole batch, divided by the number of processes that share it.
    """

    obs: Tensor
    action: Tensor
    is_real: Tensor
    count: Tensor


def mean_of_real(error: Tensor, is_real: Tensor, count: Tensor) -> Tensor:
    """The mean of `error` over what is real in the whole batch, whose `count` is as in `Segments`; 0 if nothing is."""
    return (error * is_real).sum() / count.where(count > 0, 1)


class Denoiser(nn.Module):
    """D: an estimate of the clean next frame. The preconditioned F, its training loss, and its input noise."""

    def __init__(self, inner_model: InnerModel, law: NoiseLaw, history: int) -> None:
        super().__init__()
        self.inner_model, self.law, self.history = inner_model, law, history

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Those of noise levels [B], ready for frames [B, 3, H, W]; c_noise stays [B]."""
        found = precondition(sigma, self.law.sigma_data, self.law.sigma_offset)
        c_in, c_skip, c_out = (c[:, None, None, None] for c in (found.c_in, found.c_skip, found.c_out))
        return Coefficients(c_in, c_skip, c_out, found.c_noise)

    def model_output(self, noisy: Tensor, c: Coefficients, obs: Tensor, action: Tensor) -> Tensor:
        """F for obs [B, L, 3, H, W], oldest first; the history is divided by sigma_data."""
        history = obs.flatten(1, 2) / self.law.sigma_data
        return self.inner_model(noisy * c.c_in, c.c_noise, history, action)

    def estimate(self, noisy: Tensor, sigma: Tensor, obs: Tensor, action: Tensor) -> Tensor:
        """D before the quantiser. Source: paper, Eq. 5."""
        c = self.coefficients(sigma)
        return c.c_skip * noisy + c.c_out * self.model_output(noisy, c, obs, action)

    @torch.no_grad()
    def denoise(self, noisy: Tensor, sigma: Tensor, obs: Tensor, action: Tensor) -> Tensor:
        """D as the sampler takes it, cut to the 256 levels of a byte."""
        return quantise(self.estimate(noisy, sigma, obs, action))

    def next_frame(
        self,
        obs: Tensor,
        action: Tensor,
        start: Tensor,
        settings: SamplerSettings,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A frame [B, 3, H, W] drawn for obs [B, L, 3, H, W] and action [B, L], from standard normal `start`."""
        sigmas = karras_sigmas(settings.steps, settings.sigma_min, settings.sigma_max, settings.rho)
        return sample(lambda x, sigma: self.denoise(x, sigma, obs, action), start, sigmas, settings, generator)

    def add_noise(self, clean: Tensor, sigma: Tensor, normals: Normals) -> Tensor:
        """The frame at noise level sigma [B]. The offset is not scaled by sigma; reference code."""
        return clean + self.law.sigma_offset * normals.offset + sigma[:, None, None, None] * normals.pixel

    def loss(self, batch: Segments, normals: Sequence[Normals]) -> Tensor:
        """Mean squared error of F over the real frames behind the first L; one term for every entry of `normals`.

        From the second term on the history holds the model's own one-shot estimate of the frame before, quantised and
        without gradient; what is to be predicted is always real. Padding in the history is trained on.
        Source: paper, Eq. 8; reference code for the second term.
        """
        length = self.history
        if batch.obs.shape[1] != length + len(normals):
            raise ValueError(f"{len(normals)} terms need segments of {length + len(normals)}, not {batch.obs.shape[1]}")
        history = list(batch.obs.unbind(1))
        losses = []
        for i, normal in enumerate(normals):
            sigma = self.law.sigma(normal.level)
            noisy = self.add_noise(batch.obs[:, i + length], sigma, normal)
            c = self.coefficients(sigma)
            obs = torch.stack(history[i : i + length], dim=1)
            output = self.model_output(noisy, c, obs, batch.action[:, i : i + length])
            target = (batch.obs[:, i + length] - c.c_skip * noisy) / c.c_out
            error = ((output - target) ** 2).mean(dim=(1, 2, 3))
            losses.append(mean_of_real(error, batch.is_real[:, i + length], batch.count[i + length]))
            # Deviation D1: the code of the paper's runs only clipped this frame to [-1, 1].
            history[i + length] = quantise(c.c_skip * noisy + c.c_out * output)
        return torch.stack(losses).mean()
