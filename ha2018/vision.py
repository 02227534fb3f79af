"""V: the convolutional variational autoencoder of the paper and its loss.

Shapes: B batch, Z latent size; images [B, 3, 64, 64] in [0, 1]. All convolutions are unpadded with stride 2.
Source: paper, appendix A.1; reference code: vae/vae.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OnePixelDeconv(nn.ConvTranspose2d):
    """A transposed convolution of a single pixel: one matrix product, which is how it is calculated here."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x [B, C, 1, 1] -> [B, C', kernel, kernel]."""
        assert self.bias is not None
        pixels = (x.flatten(1) @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        return pixels + self.bias[:, None, None]


class VAE(nn.Module):
    """Encoder 64-31-14-6-2 and decoder 1-5-13-30-64 (pixels a side).

    4,348,547 parameters at Z = 32 (CarRacing), 4,446,915 at Z = 64 (Doom).
    """

    def __init__(self, z_size: int, dtype: torch.dtype = torch.float32) -> None:
        """dtype: what the convolutions multiply, float32 (or that of the weights) or bfloat16."""
        super().__init__()
        self.z_size, self.dtype = z_size, dtype
        self.enc_conv1 = nn.Conv2d(3, 32, 4, stride=2)
        self.enc_conv2 = nn.Conv2d(32, 64, 4, stride=2)
        self.enc_conv3 = nn.Conv2d(64, 128, 4, stride=2)
        self.enc_conv4 = nn.Conv2d(128, 256, 4, stride=2)
        self.enc_mu = nn.Linear(1024, z_size)
        self.enc_logvar = nn.Linear(1024, z_size)
        self.dec_fc = nn.Linear(z_size, 1024)
        self.dec_deconv1 = OnePixelDeconv(1024, 128, 5, stride=2)
        self.dec_deconv2 = nn.ConvTranspose2d(128, 64, 5, stride=2)
        self.dec_deconv3 = nn.ConvTranspose2d(64, 32, 6, stride=2)
        self.dec_deconv4 = nn.ConvTranspose2d(32, 3, 6, stride=2)
        for parameter in self.parameters():  # TensorFlow's defaults: glorot uniform kernels, zero biases
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
            if parameter.ndim == 4 and parameter is not self.dec_deconv1.weight:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, 64, 64] in [0, 1] -> mu, logvar, each [B, Z]."""
        if images.ndim != 4 or images.shape[1:] != (3, 64, 64):
            raise ValueError(f"images: expected [B, 3, 64, 64], got {list(images.shape)}")
        x = images.contiguous(memory_format=torch.channels_last)
        with self._convolutions(x.device):
            x = F.relu_(self.enc_conv1(x))
            x = F.relu_(self.enc_conv2(x))
            x = F.relu_(self.enc_conv3(x))
            x = F.relu_(self.enc_conv4(x))
        x = x.to(images.dtype).permute(0, 2, 3, 1).flatten(1)  # [B, 256, 2, 2] -> [B, 1024]: (row, column, channel)
        return self.enc_mu(x), self.enc_logvar(x)

    def decode(self, z: Tensor) -> Tensor:
        """z [B, Z] -> images [B, 3, 64, 64] in (0, 1). No activation follows the linear layer."""
        x = self.dec_fc(z)[:, :, None, None]
        with self._convolutions(x.device):
            x = F.relu_(self.dec_deconv1(x)).contiguous(memory_format=torch.channels_last)
            x = F.relu_(self.dec_deconv2(x))
            x = F.relu_(self.dec_deconv3(x))
            x = self.dec_deconv4(x)
        return torch.sigmoid(x.to(z.dtype))

    def _convolutions(self, device: torch.device) -> torch.autocast:
        # Deviation D14: in bfloat16 where the preset allows it and the device has it.
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct `images` with the standard normal `noise` [B, Z]. Returns reconstruction, mu, logvar."""
        mu, logvar = self.encode(images)
        return self.decode(sample_z(mu, logvar, noise)), mu, logvar


def sample_z(mu: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """z = mu + exp(logvar / 2) * noise; all of one shape. z is sampled everywhere, at test time too."""
    return mu + torch.exp(logvar / 2) * noise


def reconstruction_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    """mean_b sum_{pixels, channels} (x - y)^2 over [B, ...] in [0, 1]. Scalar."""
    return (images - reconstruction).square().flatten(1).sum(1).mean()


def kl_loss(mu: Tensor, logvar: Tensor, kl_tolerance: float) -> Tensor:
    """mean_b max(KL_b, kl_tolerance * Z) in nats, KL_b = -1/2 sum(1 + logvar - mu^2 - exp(logvar)).

    mu, logvar [B, Z]; kl_tolerance in nats per dimension, applied to the sum of an image. An image below the floor has
    no KL gradient. Scalar. Source: paper, appendix A.1.
    """
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
    return kl.clamp(min=kl_tolerance * mu.shape[1]).mean()
