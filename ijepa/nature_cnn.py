"""The convolutional encoder of AtariARI; with its first, random weights it is the control of that benchmark.

A smaller one does the same for images of some 28 x 28 pixels; that is ours.
Source: Anand et al. 2019; reference code: atariari/methods/encoders.py (NatureCNN for 210 x 160).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES = 256


class NatureCNN(nn.Module):
    """Four convolutions and a linear layer without activation; 1,124,896 parameters."""

    def __init__(self, generator: torch.Generator) -> None:
        """Orthogonal weights with gain sqrt(2), zero biases. Consumes `generator`."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(128, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(9 * 6 * 64, FEATURES),
        )
        _draw(self.layers, generator)

    def forward(self, frames: Tensor) -> Tensor:
        """frames [B, 1, 210, 160] in [0, 1] -> [B, 256]."""
        return self.layers(frames)


class SmallCNN(nn.Module):
    """Two convolutions, each with a maximum over 2 x 2 places behind it."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        """Orthogonal weights with gain sqrt(2), zero biases. Consumes `generator`."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        _draw(self.layers, generator)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] normalised -> [B, 64, H // 4, W // 4]."""
        return self.layers(images)


def _draw(layers: nn.Sequential, generator: torch.Generator) -> None:
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
